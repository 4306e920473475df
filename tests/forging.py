"""Stores whose metadata are changed, by a careless hand or by a stranger who also computes the
digest; runs made by hand.
"""

import json
from types import SimpleNamespace

import pytest

from uturn.core.registry import part_class
from uturn.store.run_file import signed as with_digest
from uturn.studies.tables import tested_families

_CLASSES = (
    "same_class",
    "same_class_top5",
    "label_top1",
    "label_top5",
    "predicted_class",
    "original_class",
)


def forge(store, change, *, signed=True):
    """Change the content of `run.json`. `signed`: with its digest."""
    run = json.loads((store / "run.json").read_text())
    change(run)
    (store / "run.json").write_bytes(with_digest(run) if signed else json.dumps(run).encode())


def leaves(node, path=()):
    """The path to every value of a JSON document, with those in attributes that are JSON
    themselves.
    """
    if path:
        yield path
    children = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for key, value in children:
        yield from leaves(value, (*path, key))
        if path == ("attributes",) and isinstance(value, str) and value[:1] in ("[", "{"):
            yield from leaves(json.loads(value), (*path, key, "JSON"))


def replaced(root, path, value):
    """Put another value at a path of a JSON document, or remove what is there where the value is
    `...`.
    """
    if "JSON" in path:
        k = path.index("JSON")
        inner = json.loads(root[path[0]][path[1]])
        replaced(inner, path[k + 1 :], value)
        path, value = path[:k], json.dumps(inner)
    for key in path[:-1]:
        root = root[key]
    if value is ...:
        del root[path[-1]]
    else:
        root[path[-1]] = value


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def passed(study):
    """Whether the clones of a study pass the test of calibration: {family: outcome}."""
    families = tested_families(study).items()
    return {
        family: not bool((tested.gap_p <= study.gap_level).any()) for family, tested in families
    }


def outcomes(verdicts):
    """Whether each verdict of a figure passed."""
    return [verdict.passed for verdict in verdicts]


_BOUND = {
    "_measured": ("similarity", "distance", *_CLASSES),
    "_texts": SimpleNamespace(shares_tokens=True),
    "_has_labels": False,
}
"""What the declaration of variables asks of a probe that is bound to a source."""


def instructed(run):
    """A run made by hand, with the reading instructions of the probes in its spec, whose
    networks and texts are not here.
    """
    source = SimpleNamespace(
        regions=(),
        separators=lambda: (".",),
        site_name="tokens",
        image_shape=lambda: None,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uturn.probes.texts.TextLikelihood.head", "causal")
        for table in json.loads(run.attrs["spec"])["probes"]:
            options = {key: value for key, value in table.items() if key != "type"}
            of_probe = {
                "probe": table.get("name") or table["type"],
                "model": table.get("classifier") or table.get("model") or "",
            }
            probe = part_class("probes", table["type"])(**options)
            for name, value in _BOUND.items():
                if name in type(probe).__private_attributes__:
                    setattr(probe, name, value)
            for name, variable in probe.variables(source).items():
                if name in run:
                    run[name].attrs["reading"] = json.dumps(variable.instructions() | of_probe)
    return run
