"""Write guided_diffusion.npz: outputs of OpenAI's original code for the networks and U-turns of
tests/adm_checkpoints.py.

The original (https://github.com/openai/guided-diffusion, commit 22e0df8, MIT licence) is imported
from a clone of it; none of it is here:

    PYTHONPATH=tests:PATH_OF_THE_CLONE python tests/golden/make_guided_diffusion.py
"""

from pathlib import Path

import numpy as np
import torch

import adm_checkpoints as adm

HERE = Path(__file__).parent


def original_network(seed, dtype, options):
    from guided_diffusion.unet import UNetModel

    o = {**adm.DEFAULTS, **options}
    network = UNetModel(
        image_size=o["image_size"],
        in_channels=o["in_channels"],
        model_channels=o["num_channels"],
        out_channels=o["in_channels"] * (2 if o["learn_sigma"] else 1),
        num_res_blocks=o["num_res_blocks"],
        attention_resolutions=tuple(o["image_size"] // size for size in o["attention_resolutions"]),
        channel_mult=o["channel_mult"],
        num_classes=o["num_classes"],
        num_heads=o["num_heads"],
        num_head_channels=-1 if o["num_head_channels"] is None else o["num_head_channels"],
        use_scale_shift_norm=o["use_scale_shift_norm"],
        resblock_updown=o["resblock_updown"],
        use_new_attention_order=o["use_new_attention_order"],
    )
    # Strict: the names and shapes are the original's.
    network.load_state_dict(adm.state_dict(seed, dtype, **options))
    return network.eval(), o


def outputs():
    for seed, (case, options) in enumerate(adm.CASES.items()):
        network, o = original_network(
            seed, torch.float16 if case == adm.HALF else torch.float32, options
        )
        noisy, timestep, labels = adm.inputs(
            seed, o["image_size"], o["in_channels"], o["num_classes"]
        )
        yield (
            f"output/{case}",
            network(noisy, timestep, **({} if labels is None else {"y": labels})).numpy(),
        )


def u_turns():
    from guided_diffusion.script_util import create_gaussian_diffusion

    for seed, (case, turn) in enumerate(adm.U_TURNS.items()):
        network, o = original_network(seed, torch.float32, turn["options"])
        diffusion = create_gaussian_diffusion(
            learn_sigma=o["learn_sigma"],
            noise_schedule=turn["noise_schedule"],
            timestep_respacing=str(turn["steps"]),
        )
        images, noise, noises = adm.u_turn_inputs(seed, o["image_size"], turn["step"])
        arguments = (
            {} if o["num_classes"] is None else {"y": torch.tensor([0, o["num_classes"] - 1])}
        )
        state = diffusion.q_sample(images, torch.full((2,), turn["step"] - 1), noise)
        states = [state]
        draw = torch.randn_like
        for place, index in enumerate(reversed(range(turn["step"]))):
            torch.randn_like = lambda x, place=place, noises=noises: noises[place]
            state = diffusion.p_sample(
                network, state, torch.full((2,), index), clip_denoised=True, model_kwargs=arguments
            )["sample"]
            states.append(state)
        torch.randn_like = draw
        yield f"u_turn/{case}", np.stack(states).astype(np.float32)


def timesteps():
    from guided_diffusion.respace import space_timesteps

    for steps in (1, 2, 10, 21, 25, 50, 100, 250, 1000):
        yield f"timesteps/{steps}", np.array(sorted(space_timesteps(1000, str(steps))), np.int16)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.inference_mode():
        arrays = dict([*outputs(), *u_turns(), *timesteps()])
    np.savez_compressed(HERE / "guided_diffusion.npz", **arrays)
