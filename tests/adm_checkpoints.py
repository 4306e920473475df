"""Small random checkpoints named and shaped as those of OpenAI's guided-diffusion, written down
independently of the reader.

`tests/golden/make_guided_diffusion.py` loads them into the original network, which accepts no other
names and shapes.
"""

import numpy as np
import torch

DEFAULTS = {
    "image_size": 16,
    "in_channels": 3,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": (1, 2),
    "attention_resolutions": (8,),
    "num_head_channels": 32,
    "num_heads": 1,
    "use_new_attention_order": False,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
    "learn_sigma": True,
    "num_classes": None,
}
"""Options of the original; `num_head_channels` None: heads by number."""


def shapes(**options):
    """{name: shape} of the state dict of the original network with these options (defaults:
    `DEFAULTS`).
    """
    unknown = set(options) - set(DEFAULTS)
    assert not unknown, unknown
    o = {**DEFAULTS, **options}
    width, mult, depth = o["num_channels"], o["channel_mult"], o["num_res_blocks"]
    table = {}

    def layer(name, *shape):
        table[f"{name}.weight"] = shape
        table[f"{name}.bias"] = shape[:1]

    def residual(name, before, after):
        layer(f"{name}.in_layers.0", before)
        layer(f"{name}.in_layers.2", after, before, 3, 3)
        layer(f"{name}.emb_layers.1", (2 if o["use_scale_shift_norm"] else 1) * after, 4 * width)
        layer(f"{name}.out_layers.0", after)
        layer(f"{name}.out_layers.3", after, after, 3, 3)
        if before != after:
            layer(f"{name}.skip_connection", after, before, 1, 1)

    def attention(name, channels):
        layer(f"{name}.norm", channels)
        layer(f"{name}.qkv", 3 * channels, channels, 1)
        layer(f"{name}.proj_out", channels, channels, 1)

    layer("time_embed.0", 4 * width, width)
    layer("time_embed.2", 4 * width, 4 * width)
    if o["num_classes"] is not None:
        table["label_emb.weight"] = (o["num_classes"], 4 * width)
    channels = int(mult[0] * width)
    layer("input_blocks.0.0", channels, o["in_channels"], 3, 3)
    skips, block, size = [channels], 1, o["image_size"]
    for level, factor in enumerate(mult):
        for _ in range(depth):
            after = int(factor * width)
            residual(f"input_blocks.{block}.0", channels, after)
            channels = after
            if size in o["attention_resolutions"]:
                attention(f"input_blocks.{block}.1", channels)
            skips.append(channels)
            block += 1
        if level < len(mult) - 1:
            if o["resblock_updown"]:
                residual(f"input_blocks.{block}.0", channels, channels)
            else:
                layer(f"input_blocks.{block}.0.op", channels, channels, 3, 3)
            skips.append(channels)
            block, size = block + 1, size // 2
    residual("middle_block.0", channels, channels)
    attention("middle_block.1", channels)
    residual("middle_block.2", channels, channels)
    block = 0
    for level in range(len(mult) - 1, -1, -1):
        for i in range(depth + 1):
            after, part = int(mult[level] * width), 1
            residual(f"output_blocks.{block}.0", channels + skips.pop(), after)
            channels = after
            if size in o["attention_resolutions"]:
                attention(f"output_blocks.{block}.1", channels)
                part = 2
            if level > 0 and i == depth:
                if o["resblock_updown"]:
                    residual(f"output_blocks.{block}.{part}", channels, channels)
                else:
                    layer(f"output_blocks.{block}.{part}.conv", channels, channels, 3, 3)
                size *= 2
            block += 1
    layer("out.0", channels)
    layer("out.2", (2 if o["learn_sigma"] else 1) * o["in_channels"], channels, 3, 3)
    return table


def state_dict(seed=0, dtype=torch.float32, **options):
    """Random weights of unit gain, none of them zero (the original starts some layers at zero);
    the same on every machine.
    """
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes(**options).items():
        values = rng.normal(size=shape)
        if len(shape) > 1 and name != "label_emb.weight":
            values /= np.sqrt(np.prod(shape[1:]))
        else:
            values *= 0.3
            if name.endswith("weight") and len(shape) == 1:
                values += 1
        weights[name] = torch.from_numpy(values.astype(np.float32)).to(dtype)
    return weights


def flags(noise_schedule="linear", **options):
    """The options that cannot be read from the weights, as keyword arguments of
    `load_guided_diffusion`.
    """
    o = {**DEFAULTS, **options}
    heads = (
        {"num_heads": o["num_heads"]}
        if o["num_head_channels"] is None
        else {"num_head_channels": o["num_head_channels"]}
    )
    return {
        "image_size": o["image_size"],
        "use_new_attention_order": o["use_new_attention_order"],
        "noise_schedule": noise_schedule,
        **heads,
    }


def preset(**options):
    """`flags` as one string, as a preset of a spec or of the command line."""
    return " ".join(f"--{name} {value}" for name, value in flags(**options).items())


def save_checkpoint(path, seed=0, dtype=torch.float32, **options):
    """Write a checkpoint to `path` (.pt); returns the path."""
    torch.save(state_dict(seed, dtype, **options), path)
    return path


CASES = {
    "plain": {},
    "classes, new order": {
        "num_classes": 7,
        "use_new_attention_order": True,
        "channel_mult": (1, 2, 3),
        "num_channels": 32,
    },
    "four heads": {"num_head_channels": None, "num_heads": 4, "attention_resolutions": (16, 8)},
    "four heads, new order, classes": {
        "num_head_channels": None,
        "num_heads": 4,
        "attention_resolutions": (16, 8),
        "use_new_attention_order": True,
        "num_classes": 3,
    },
    "heads of one width": {
        "num_head_channels": None,
        "num_heads": 2,
        "use_scale_shift_norm": False,
    },
    "narrow first level": {
        "num_channels": 64,
        "channel_mult": (0.5, 1, 1),
        "num_head_channels": 16,
    },
    "convolutions": {
        "use_scale_shift_norm": False,
        "resblock_updown": False,
        "learn_sigma": False,
        "attention_resolutions": (),
    },
    "convolutions, attention everywhere": {
        "resblock_updown": False,
        "attention_resolutions": (16, 8, 4),
        "channel_mult": (1, 1, 2),
        "num_res_blocks": 2,
        "num_head_channels": 16,
        "num_classes": 5,
    },
    "one channel, one level": {
        "in_channels": 1,
        "channel_mult": (2,),
        "learn_sigma": False,
        "num_head_channels": 16,
    },
}
"""Options of the networks with golden outputs; the seed of a network's weights is its place in
this table.
"""

HALF = "heads of one width"
"""The network whose weights are saved as float16."""

U_TURNS = {
    "learned variance": {"steps": 10, "step": 10, "noise_schedule": "linear", "options": {}},
    "cosine, classes": {
        "steps": 25,
        "step": 6,
        "noise_schedule": "cosine",
        "options": {
            "num_classes": 7,
            "use_new_attention_order": True,
            "image_size": 8,
            "attention_resolutions": (4,),
        },
    },
    "fixed variance": {
        "steps": 50,
        "step": 5,
        "noise_schedule": "linear",
        "options": {"learn_sigma": False, "image_size": 8},
    },
}
"""U-turns with golden states: `step` of `steps` reverse steps."""


def inputs(seed, image_size, in_channels, num_classes):
    """(noisy, timestep, labels or None) of two images."""
    rng = np.random.default_rng([1, seed])
    noisy = torch.from_numpy(
        rng.normal(size=(2, in_channels, image_size, image_size)).astype(np.float32)
    )
    labels = None if num_classes is None else torch.tensor([0, num_classes - 1])
    return noisy, torch.tensor([999, 3]), labels


def u_turn_inputs(seed, image_size, step):
    """(images in [-1, 1], noise of the forward process, noises of the reverse steps), of two
    images.
    """
    rng = np.random.default_rng([2, seed])
    shape = (2, 3, image_size, image_size)
    images = torch.from_numpy(rng.uniform(-1, 1, shape).astype(np.float32))
    noises = [torch.from_numpy(rng.normal(size=shape).astype(np.float32)) for _ in range(step + 1)]
    return images, noises[0], noises[1:]
