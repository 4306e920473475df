"""The reading instructions of a stored run: stored with its arrays, or, for stores of version 3, taken from a table by probe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from uturn.core.checks import validation_words
from uturn.core.protocols import Variable
from uturn.studies.runs import stored_spec

if TYPE_CHECKING:
    import xarray as xr

ATTRIBUTE = "reading"


def instructions_of(run: xr.Dataset) -> dict[str, Variable]:
    """The instructions of all variables of a run, in the order in which its probes declare them, followed by added variables.

    Raises
    ------
    ValueError
        If the attribute `reading` of a variable is damaged.
    """
    spec_names = _of_old_store(run)
    order = [str(name) for name in run.attrs.get("variables", ()) if name in run.data_vars]
    added = [str(name) for name in run.data_vars if name not in order and (not order or ATTRIBUTE in run[name].attrs)]
    instructions = {}
    for name in order + added:
        values = run[name]
        if "noise" not in values.dims:
            continue
        stored = values.attrs.get(ATTRIBUTE)
        try:
            table = spec_names.get(name, {}) if stored is None else json.loads(stored)
            instructions[name] = Variable(tuple(map(str, values.dims)), str(values.attrs.get("long_name", "")), **table)
            instructions[name].check()
        except (ValueError, TypeError, RecursionError) as error:
            reason = validation_words(error) if isinstance(error, ValidationError) else error
            raise ValueError(f"{name}: the attribute {ATTRIBUTE!r} is damaged ({reason}); copy the store again") from None
    return instructions


def is_kept_if_large(name: str) -> bool:
    """Whether the name of a reading says that large values are those without changes."""
    return any(word in name.lower() for word in ("kept", "same", "accuracy", "unchanged"))


def _of_old_store(run: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Instructions of the variables of the built-in probes in the stored spec, {variable: table}."""
    spec, instructions = stored_spec(run), {}
    for table in spec["probes"]:
        known = DECLARED.get(str(table.get("type")), {})
        prefix = f"{table['name']}_" if table.get("name") else ""
        model = table.get("classifier") or table.get("model") or ""
        names = {"probe": str(table.get("name") or table.get("type")), "model": str(model)}
        for name, declared in known.items():
            if name == "change_covariance":
                declared = declared | {"unit": _unit_of_sites(spec["source"], table)}
            instructions[prefix + name] = {**_prefixed(declared, prefix), **names}
            if declared.get("family") in known:  # a family named after a variable belongs to this probe alone
                instructions[prefix + name]["family"] = f"{prefix}{declared['family']}"
            if declared.get("symmetric"):
                instructions[f"clone_{prefix}{name}"] = {"role": "record", **names}
    return instructions


def _unit_of_sites(source: Mapping[str, Any], probe: Mapping[str, Any]) -> str:
    """The name of the sites that the probe `changes` reads, by built-in source."""
    images = f"patches of {probe.get('patch', 4)} pixels" if probe.get("layer") is None else "positions"
    units = {"tokens": "tokens", "rhm": "leaves", "filtered_rhm": "leaves"}
    units |= dict.fromkeys(("fashion_mnist", "array", "images", "generated"), images)
    return units.get(str(source.get("type")), "sites")


def _prefixed(declared: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Instructions of a probe whose variables and dims have a prefix."""

    def renamed(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        same, _, name = value.rpartition(":")
        first, equal, suffix = name.partition("=")
        return f"{same}{':' if same else ''}{prefix}{first}{equal}{suffix}"

    names = ("start", "chance", "order") if declared.get("family") == "text" else ("start", "chance", "order", "family")
    return {key: renamed(value) if key in names else value for key, value in declared.items()}


_SHARE: dict[str, Any] = {"start": 1, "bounds": [0, 1]}
_COSINE: dict[str, Any] = {"start": 1, "bounds": [-1, 1]}
_TREE: dict[str, Any] = {**_SHARE, "group": "tree levels", "order": "tree_level"}
_CLASS: dict[str, Any] = {**_SHARE, "group": "class"}
_RECORD: dict[str, Any] = {"role": "record"}

DECLARED: dict[str, dict[str, dict[str, Any]]] = {
    "tree_levels": {"unchanged": {**_TREE, "symmetric": True}, "belief": _TREE},
    "parsed_levels": {"parsed": {**_TREE, "symmetric": True}},
    "messages": {f"{name}_belief": {"bounds": [0, 1], "group": "messages"} for name in ("upward", "downward")},
    "tree_nodes": {"node_belief": _RECORD, "node_unchanged": _RECORD},
    "network_layers": {
        "same_class": {**_CLASS, "chance": "same:original_class", "symmetric": True},
        "same_class_top5": _CLASS,
        "label_top1": {**_CLASS, "start": "same:original_class=label"},
        "label_top5": {"bounds": [0, 1], "group": "class"},
        "similarity": {**_COSINE, "group": "layers", "order": "network_layer", "symmetric": True},
        "distance": {
            "start": 0,
            "chance": 1,
            "bounds": [0, None],
            "group": "distance of layers",
            "family": "distance",
            "symmetric": True,
        },
        "predicted_class": _RECORD,
        "original_class": _RECORD,
    },
    "perceptual": {"perceptual_distance": {"start": 0, "bounds": [0, None], "group": "perceptual distance", "symmetric": True}},
    "scales": {
        "scale_similarity": {**_COSINE, "group": "scales", "symmetric": True},
        "same_label": {**_CLASS, "chance": "same:label", "symmetric": True},
    },
    "images": {"image": _RECORD},
    "changes": {
        "change": {"start": 0, "bounds": [0, None], "group": "changes"},
        "change_covariance": {"role": "changes"},
        "change_covariance_sum": {"role": "changes"},
    },
    "kept_tokens": {
        "kept": {**_SHARE, "group": "tokens", "family": "text", "symmetric": True},
        "kept_region": {**_SHARE, "group": "regions"},
        "kept_segments": {**_SHARE, "group": "segments"},
    },
    "tokens": {"token": _RECORD, "noisy_token": _RECORD},
    "text_layers": {
        "text_similarity": {**_COSINE, "group": "layers", "order": "text_layer", "symmetric": True},
        "token_similarity": {**_COSINE, "group": "tokens in layers", "order": "text_layer", "symmetric": True},
    },
    "text_encoder": {
        "sentence_similarity": {**_COSINE, "group": "sentence", "chance": "sentence_chance", "family": "text", "symmetric": True},
        "sentence_chance": _RECORD,
    },
    "text_likelihood": {
        "log_likelihood": {"start": "original_log_likelihood", "group": "likelihood", "unit": "nats per character"},
        "original_log_likelihood": _RECORD,
    },
}
"""Reading instructions of the variables of built-in probes: {type of the probe: {variable: instructions}}."""
