"""Small experiments with strings of a grammar, as tables; defaults of parts."""

import json

from uturn.core.registry import filled


def strings(channel, noise, probes=("tree_levels",), *, source=None, backward="exact", **options):
    """Eight symbols with two rules each, at a depth of three; `source`: its other options, `options`: of the experiment."""
    return {
        **options,
        "source": {"type": "rhm", "vocab_size": 8, "multiplicity": 2, "branching": 2, "depth": 3, **(source or {})},
        "corruption": {"type": channel, "noise": noise},
        "backward": {"type": backward},
        "probes": [{"type": probe} for probe in probes],
    }


def defaults_of(parts):
    """The options of parts {idea: types} by "idea type", as a spec with the type alone fills them in."""
    found = {}
    for idea, kinds in parts.items():
        for kind in kinds:
            table = filled({idea: [{"type": kind}] if idea == "probes" else {"type": kind}})[idea]
            found[f"{idea} {kind}"] = table[0] if idea == "probes" else table
    return json.loads(json.dumps(found))
