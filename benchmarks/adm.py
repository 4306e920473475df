"""How near the networks that uturn reads from checkpoints of guided-diffusion are to those of its
original code.

    PYTHONPATH=tests:PATH_OF_THE_CLONE python benchmarks/adm.py [--combinations 100] [--skip-sizes]

The original (https://github.com/openai/guided-diffusion, commit 22e0df8, MIT licence) is imported
from a clone of it; none of it is here. Weights are random. Prints the numbers of
benchmarks/README.md: largest differences of the outputs of small networks with combinations of all
options, of the published sizes (553 million parameters: 7 GB of memory), of float16, and the
numbers of steps at which the spacing "linspace" differs from the original's respacing.
"""

import argparse
import itertools
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import adm_checkpoints as adm

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/golden"))
from make_guided_diffusion import original_network

from uturn.networks.images.guided_diffusion import (
    PRESETS,
    guided_diffusion_scheduler,
    load_guided_diffusion,
)

HEADS = ({"num_heads": 1}, {"num_heads": 4}, {"num_head_channels": 32}, {"num_head_channels": 16})
SHAPES = ((1, 2), (1, 2, 3), (1, 1, 2))
ATTENTION = ((), (8,), (16, 8, 4))  # nowhere but in the middle, at one level, at all
SIZES = (
    "64x64_diffusion",
    "128x128_diffusion",
    "256x256_diffusion",
    "256x256_diffusion_uncond",
    "512x512_diffusion",
)


def combinations():
    """All options of small networks, with the precision in which their weights are saved."""
    flags = ("use_new_attention_order", "use_scale_shift_norm", "resblock_updown", "learn_sigma")
    for values in itertools.product(
        (None, 5), HEADS, SHAPES, ATTENTION, (1, 2), *[(False, True)] * len(flags), (32, 16)
    ):
        num_classes, heads, shape, attention, blocks, *switches, bits = values
        options = {
            "num_head_channels": None,
            **heads,
            "channel_mult": shape,
            "attention_resolutions": attention,
        }
        options |= {
            "num_classes": num_classes,
            "num_res_blocks": blocks,
            **dict(zip(flags, switches, strict=True)),
        }
        yield options, getattr(torch, f"float{bits}")


def difference(ours, original, noisy, timestep, labels):
    """Largest difference of two networks on the same input, and the standard deviation of the
    original's output.
    """
    arguments = {} if labels is None else {"y": labels}
    expected = original(noisy, timestep, **arguments)
    return float((ours(noisy, timestep, labels) - expected).abs().max()), float(expected.std())


def small(seed, options, dtype, folder):
    """Largest difference for a small network."""
    original, o = original_network(seed, dtype, options)
    path = adm.save_checkpoint(Path(folder) / "network.pt", seed, dtype, **options)
    ours = load_guided_diffusion(path, **adm.flags(**options))
    return difference(
        ours, original, *adm.inputs(seed, o["image_size"], o["in_channels"], o["num_classes"])
    )[0]


def published(name, flags, folder):
    """Difference for a published size, with random weights: those that the original starts at
    zero are drawn too.
    """
    from guided_diffusion.script_util import create_model, model_and_diffusion_defaults

    defaults = model_and_diffusion_defaults()
    given = {
        key: type(defaults[key])(value if value != "False" else "")
        for key, value in flags.items()
        if key in defaults
    }
    known = create_model.__code__.co_varnames[: create_model.__code__.co_argcount]
    original = create_model(
        **{key: value for key, value in given.items() if key in known and key != "use_fp16"}
    ).eval()
    for parameter in original.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    path = Path(folder) / f"{name}.pt"
    torch.save(original.state_dict(), path)
    ours = load_guided_diffusion(path, name)
    labels = torch.tensor([7]) if given["class_cond"] else None
    found = difference(ours, original, torch.randn(1, 3, 64, 64), torch.tensor([500]), labels)
    path.unlink()
    return found


def readme_flags(clone):
    """MODEL_FLAGS in the README of the original, by the name of the checkpoint that the next
    line samples from.
    """
    found = re.findall(
        r'MODEL_FLAGS="([^"]*)"\n\S+ \S+ .*?models/(\w+_diffusion(?:_uncond)?)\.pt',
        (clone / "README.md").read_text(),
    )
    return {name: dict(re.findall(r"--(\w+) (\S+)", flags)) for flags, name in found}


def float16():
    """Largest difference from float32, of ours in float16 and of the original's float16 torso."""
    with tempfile.TemporaryDirectory() as folder:
        path = adm.save_checkpoint(Path(folder) / "network.pt", 0)
        noisy, timestep, _ = adm.inputs(0, 16, 3, None)
        exact, half = (load_guided_diffusion(path, **adm.flags()) for _ in range(2))
        expected, found = exact(noisy, timestep), half.half()(noisy, timestep).float()
        original, _ = original_network(0, torch.float32, {})
        original.convert_to_fp16()
        original.dtype = torch.float16
        return [
            float((x.float() - expected).abs().max()) for x in (found, original(noisy, timestep))
        ]


def respacing():
    """Numbers of steps 1 .. 1000 whose timesteps differ from the original's, and by how much at
    most.
    """
    from guided_diffusion.respace import space_timesteps

    scheduler, differ, most = (
        guided_diffusion_scheduler("256x256_diffusion_uncond", learn_sigma=True),
        [],
        0,
    )
    for steps in range(1, 1001):
        scheduler.set_timesteps(steps)
        apart = np.abs(
            np.sort(scheduler.timesteps.numpy())
            - np.array(sorted(space_timesteps(1000, str(steps))))
        ).max()
        most = max(most, int(apart))
        differ += [steps] if apart else []
    return differ, most


def main(number, skip_sizes):
    import guided_diffusion

    options = list(combinations())
    chosen = (
        options
        if number >= len(options)
        else [options[k] for k in np.random.default_rng(0).permutation(len(options))[:number]]
    )
    with tempfile.TemporaryDirectory() as folder:
        largest = max(small(seed, *each, folder) for seed, each in enumerate(chosen))
        print(
            f"{len(chosen)} of {len(options)} combinations of options: largest difference"
            f" {largest:.2g}",
            flush=True,
        )
        ours, theirs = float16()
        print(
            f"float16 against float32: ours differs by {ours:.2g} at most, the original by"
            f" {theirs:.2g}",
            flush=True,
        )
        differ, most = respacing()
        even = [steps for steps in differ if steps % 2 == 0]
        print(
            f"timesteps of {len(differ)} numbers of steps differ, {len(even)} of them even, by"
            f" {most} at most: {differ[:4]} .."
        )
        flags = {} if skip_sizes else readme_flags(Path(guided_diffusion.__file__).parents[1])
        assert skip_sizes or set(flags) >= set(SIZES) <= set(PRESETS)
        for name in SIZES if flags else ():
            value, deviation = published(name, flags[name], folder)
            print(
                f"{name}: differs by {value:.2g} at most, outputs of standard deviation"
                f" {deviation:.2g}",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--combinations", type=int, default=100, help="so many, drawn from all")
    parser.add_argument("--skip-sizes", action="store_true", help="leave out the published sizes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.inference_mode():
        main(arguments.combinations, arguments.skip_sizes)
