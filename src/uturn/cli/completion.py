"""Names that a shell completes as values of options and arguments; where none fits, shells complete names of files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from uturn.networks.images.guided_diffusion_options import PRESETS
from uturn.paper.registry import FIGURES

# Written out, because the modules that define them take a second to import.
NAMES: Mapping[str, Iterable[str]] = {
    "figures": (*FIGURES, "all"),
    "models": ("fashion_mnist",),
    "cluster": ("local", "auto"),
    "data": ("generated",),
    "classifiers": ("fashion_mnist",),
    "preset": PRESETS,
    "scheduler": (
        *("stored", "ancestral", "ddpm", "ddim", "euler", "euler_ancestral", "dpm_solver", "heun", "sde_dpm_solver", "unipc"),
        *("flow_match", "flow_match_stochastic"),
    ),
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "condition": ("null", "label"),
    "corruption": ("masking", "uniform"),
    "dtype": ("float32", "bfloat16", "float16"),
    "device": ("cpu", "cuda", "mps"),
    "order": ("random", "blocks", "entropy", "probability", "confidence"),
    "split": ("smiles", "characters"),
    "time": ("none", "sigma"),
    "output": ("logits", "ratios"),
    "layers": ("same",),
    "likelihood": ("same",),
}


def completing(name: str, default: Any = None) -> Callable[[str], list[str]]:
    """A function that lists the names of an option which begin as what is typed: its default, and those above."""
    names = dict.fromkeys([*([default] if isinstance(default, str) else []), *NAMES.get(name, ())])

    def complete(incomplete: str) -> list[str]:
        return [one for one in names if one.startswith(incomplete)]

    return complete
