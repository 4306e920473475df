"""Exact covariances of changes against enumeration of all trees, against U-turns, and against
closed formulas of the controls.
"""

import numpy as np
import pytest

from enumeration import tree_posterior
from uturn.core.experiment import Experiment
from uturn.core.random import Streams
from uturn.measures.covariances import Covariances, Tree
from uturn.paper.correlated_runs import (
    _FIRST,
    SITES,
    controls,
    exact_covariances,
    independent_changes,
)


def experiment(channel, noise, s=2, **source):
    source = {
        "type": "rhm",
        "vocab_size": 4,
        "multiplicity": 2,
        "branching": s,
        "depth": 5 - s,
        "grammars": 2,
        **source,
    }
    return Experiment.from_dict(
        {
            "items": 4,
            "trajectories": 2,
            "source": source,
            "corruption": {"type": channel, "noise": noise},
            "backward": {"type": "exact"},
            "probes": [{"type": "changes"}],
        }
    )


def moments(rhm, log_evidence, truth):
    """Mean changes, and mean products of the changes of two leaves, over all strings."""
    nodes, p, _ = tree_posterior(rhm, log_evidence)
    changed = (nodes[0] != truth).astype(float)
    return p @ changed, np.einsum("t,ti,tj->ij", p, changed, changed)


@pytest.mark.parametrize(
    ("channel", "noise", "options"),
    [
        ("epsilon", [0.2, 0.7], {}),
        ("epsilon", [0.5], {"s": 3}),
        ("epsilon", [0.5], {"zipf_exponent": 1.0, "num_classes": 3}),
        ("masking", [0.5], {}),
        ("gaussian", [0.3], {}),
        ("uniform", [0.4], {"s": 3}),
    ],
)
def test_equal_enumeration(channel, noise, options):
    draws, made = 3, experiment(channel, noise, **options)
    source, corruption, *_ = made.parts
    found, tree = (
        exact_covariances(made, draws),
        Tree(source.branching**source.depth, source.branching),
    )
    for level in noise:
        for originals in source.blocks(np.arange(4), made.seed, 4):
            streams = Streams(made.seed, originals.items, level, range(_FIRST, _FIRST + draws))
            noisy = originals.observed_by(corruption, level, streams)
            evidence = noisy.log_evidence.reshape(
                len(originals.items), -1, *noisy.log_evidence.shape[1:]
            )
            for k, item in enumerate(originals.items):
                rows = [
                    moments(originals.rhm, one.astype(float), originals.data[k])
                    for one in evidence[k]
                ]
                means, products = (np.array(part) for part in zip(*rows, strict=True))
                covariance = products.mean(axis=0) - np.einsum("ti,tj->ij", means, means) / len(
                    means
                )
                if len(means) > 1:  # unbiased between noisy strings
                    covariance += np.cov(means, rowvar=False)
                values = found.sel(noise=level).isel(item=item)
                sums = [
                    covariance[a, b] for a in range(tree.num_sites) for b in range(tree.num_sites)
                ]
                assert values.change_covariance_sum.item() == pytest.approx(
                    sum(sums) / tree.num_sites, rel=1e-5, abs=1e-7
                )
                for n, r in enumerate(tree.values):
                    pairs = [
                        covariance[a, b]
                        for a in range(tree.num_sites)
                        for b in range(tree.num_sites)
                        if r
                        == (0 if a == b else next(s for s in tree.values[1:] if a // s == b // s))
                    ]
                    assert len(pairs) == tree.pairs[n]
                    assert values.change_covariance.values[n] == pytest.approx(
                        np.mean(pairs), rel=1e-5, abs=1e-7
                    )


@pytest.mark.parametrize("label", ["field", "mixture"])
def test_independent_data_have_the_closed_covariances(label):
    """Bonferroni over all distances at 1e-3, between 400 originals with 40 reconstructions each
    that are drawn from the law.
    """
    made = Experiment.from_dict(controls("smoke")[label].to_dict() | {"items": 400})
    originals = next(made.parts.source.blocks(np.arange(400), made.seed, 400))
    rebuilt = originals.law.sample(400 * 40, seed=1).values.reshape(400, 40, -1)
    measured = Covariances(SITES[label]).add(np.abs(rebuilt - originals.values[:, None])).covariance
    exact = independent_changes(label, made).change_covariance.values[0]
    # The formula of the field is in its own unit.
    ratio = measured.mean(axis=0)[0] / exact.mean(axis=0)[0] if label == "field" else 1.0
    away = measured - ratio * exact
    z = away.mean(axis=0) / (away.std(axis=0, ddof=1) / 20)
    assert np.abs(z).max() < 4.6
    assert np.abs(measured.mean(axis=0) / (away.std(axis=0, ddof=1) / 20)).max() > 20
