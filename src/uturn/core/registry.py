"""Names of parts in specs, with the import paths of their classes, so that the core imports none of them."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from uturn.core.checks import expect
from uturn.core.imports import import_object, is_import_path
from uturn.core.tools import installed_tools, own_tools

GROUP = "uturn.parts"
"""Entry points of installed packages: the name of one is the `type` in a spec, its value the class."""

PARTS: dict[str, dict[str, str]] = {
    "source": {
        "rhm": "uturn.sources.strings:RHMSource",
        "filtered_rhm": "uturn.sources.strings:FilteredRHMSource",
        "grammar": "uturn.sources.strings:GrammarSource",
        "hmm": "uturn.sources.strings:HiddenMarkovSource",
        "fashion_mnist": "uturn.sources.images:FashionMNISTSource",
        "images": "uturn.sources.images:ImageFolderSource",
        "array": "uturn.sources.images:ArraySource",
        "generated": "uturn.sources.generated:GeneratedSource",
        "gaussian_mixture": "uturn.sources.vectors:GaussianMixtureSource",
        "gaussian_field": "uturn.sources.vectors:GaussianFieldSource",
        "tokens": "uturn.sources.tokens:TokenSource",
    },
    "corruption": {
        "diffusion": "uturn.corruption.diffusion:Diffusion",
        "gaussian": "uturn.corruption.gaussian:Gaussian",
        "masking": "uturn.corruption.masking:Masking",
        "uniform": "uturn.corruption.uniform:UniformReplacement",
        "epsilon": "uturn.corruption.strings:EpsilonBelief",
        "recorded": "uturn.corruption.recorded:Recorded",
    },
    "backward": {
        "exact": "uturn.backward.denoiser:ExactPosterior",
        "denoiser": "uturn.backward.denoiser:StringDenoiser",
        "score": "uturn.backward.score_model:StringDiffusion",
        "diffusion": "uturn.backward.diffusion:DiffusionModel",
        "language": "uturn.backward.language:LanguageDenoiser",
        "recorded": "uturn.backward.recorded:RecordedImages",
    },
    "probes": {
        "tree_levels": "uturn.probes.tree:TreeLevels",
        "tree_nodes": "uturn.probes.tree:TreeNodes",
        "parsed_levels": "uturn.probes.tree:ParsedLevels",
        "messages": "uturn.probes.tree:Messages",
        "network_layers": "uturn.probes.network_layers:NetworkLayers",
        "images": "uturn.probes.pictures:KeepImages",
        "scales": "uturn.probes.scales:Scales",
        "changes": "uturn.probes.changes:Changes",
        "perceptual": "uturn.probes.perceptual:Perceptual",
        "kept_tokens": "uturn.probes.tokens:KeptTokens",
        "tokens": "uturn.probes.tokens:KeepTokens",
        "text_layers": "uturn.probes.texts:TextLayers",
        "text_encoder": "uturn.probes.texts:TextEncoder",
        "text_likelihood": "uturn.probes.texts:TextLikelihood",
        "repetition": "uturn.probes.repetition:Repetition",
        "text_class": "uturn.probes.texts:TextClass",
    },
}
"""Built-in parts, {idea: {type: import path of the class}}."""
for _tool in own_tools().values():
    for _idea, _kinds in _tool.parts.items():
        PARTS[_idea] |= _kinds


def part_class(idea: str, kind: str) -> type:
    """The class of a built-in part."""
    return import_object(PARTS[idea][kind], f"{idea} {kind!r}", "'module:Class'")


def installed_parts() -> list[str]:
    """The types that installed packages register."""
    of_tools = (kind for tool in installed_tools().values() for kinds in tool.parts.values() for kind in kinds)
    return sorted({*entry_points(group=GROUP).names, *of_tools})


def installed_part(kind: Any) -> str | None:
    """The import path of a type registered by an installed package, or None; ValueError if two packages register it."""
    packages = {entry.value: entry.dist.name if entry.dist else "a package" for entry in entry_points(group=GROUP, name=kind)}
    for name, tool in installed_tools().items():
        packages |= {path: name for kinds in tool.parts.values() for own, path in kinds.items() if own == kind}
    is_one = len(packages) < 2 and all(map(is_import_path, packages))
    expect(is_one, f"type {kind!r}, as packages register it,", packages, "one 'module:Class'; uninstall the others")
    return next(iter(packages), None)
