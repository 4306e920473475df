"""Small experiments with strings of a grammar, as tables."""


def strings(channel, noise, probes=("tree_levels",), *, source=None, backward="exact", **options):
    """Eight symbols with two rules each, at a depth of three; `source`: its other options, `options`: of the experiment."""
    return {
        **options,
        "source": {"type": "rhm", "vocab_size": 8, "multiplicity": 2, "branching": 2, "depth": 3, **(source or {})},
        "corruption": {"type": channel, "noise": noise},
        "backward": {"type": backward},
        "probes": [{"type": probe} for probe in probes],
    }
