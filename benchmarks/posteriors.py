"""Which test of `uturn.posterior_tests` sees which wrong posterior sampler, how often the kind of
error is right, false alarms.

    python benchmarks/posteriors.py [--clones 4] [--experiments 200] [--items 100] [--law 5] [--only
    NAME ..] python benchmarks/posteriors.py --mixing --only "values one by one" python
    benchmarks/posteriors.py --null [--experiments 200] python benchmarks/posteriors.py --items 300
    --only "spread x 1.15" --plot docs/images/posterior-tests.png

The law is a mixture of three Gaussians of different covariances in 16 dimensions, drawn with the
seed `--law`; every fourth value is measured with Gaussian noise of standard deviation .1, or with
`--mixing` as many orthonormal mixtures of all values. The exact posterior is known
(`LinearPosterior`), and wrong samplers are made from it. Power is the share of experiments in which
a test, or the family by Holm, has p <= .05. `--null`: runs of `uturn.run` with exact draws, and the
shares of p <= .05 among them, the false-alarm rates. `--plot`: the picture of one experiment with
the sampler in `--only`.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy.special import logsumexp

import uturn as ut
from uturn.core.protocols import UTurns
from uturn.studies.plotting.style import save_figure
from uturn.tools.inverse.figure import draw_posterior_tests
from uturn.tools.inverse.linear import LinearPosterior
from uturn.tools.inverse.measured import Measured
from uturn.tools.inverse.operators import Operator
from uturn.tools.inverse.probe import Posterior

DIMENSION, MODES, SIGMA, LEVEL = 16, 3, 0.1, 0.05
KINDS = {
    "exact": "none seen",
    "spread x .3": "too sure",
    "spread x .85": "too sure",
    "spread x 1.15": "not sure enough",
    "spread x 1.5": "not sure enough",
    "shifted by .3 sd": "shifted",
    "shifted by 1 sd": "shifted",
    "ignores y": "deaf to the data",
    "noise taken 3 times": "deaf to the data",
    "noise taken 1/3": "too sure",
    "values one by one": "unlike the data",
    "heavy tails": "some other error",
    "weights^.3": "wrong modes",
    "weights^3": "wrong modes",
    "likeliest mode alone": "wrong modes",
    "deterministic": "too sure",
}
"""Kind of the error of each sampler."""
TESTS = ("distance", "same_component", "log_likelihood", "log_prior")
RANKED = ("log_likelihood", "log_prior", "reference_distance")


class Mixture:
    """The law of the originals: means, covariances and equal weights, with what the probe asks
    of a law.
    """

    dimension, grid = DIMENSION, None

    def __init__(self, rng: np.random.Generator) -> None:
        self.weights = np.full(MODES, 1 / MODES)
        self.means = 0.5 + 0.12 * rng.standard_normal((MODES, DIMENSION))
        factors = 0.06 * rng.standard_normal((MODES, DIMENSION, 4))
        self.covariances = factors @ factors.transpose(0, 2, 1) + 0.0009 * np.eye(DIMENSION)
        self._whiten = np.linalg.inv(np.linalg.cholesky(self.covariances))
        self._log_det = np.log(np.diagonal(self._whiten, axis1=1, axis2=2)).sum(1)

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        modes, roots = rng.integers(MODES, size=count), np.linalg.cholesky(self.covariances)
        return self.means[modes] + np.einsum(
            "nij,nj->ni", roots[modes], rng.standard_normal((count, DIMENSION))
        )

    def _of_modes(self, values: Any) -> np.ndarray:
        white = np.einsum(
            "kij,...kj->...ki", self._whiten, np.asarray(values, float)[..., None, :] - self.means
        )
        return self._log_det - 0.5 * ((white**2).sum(-1) + DIMENSION * np.log(2 * np.pi))

    def log_density(self, values: Any) -> np.ndarray:
        return logsumexp(self._of_modes(values), axis=-1) - np.log(MODES)

    def classify(self, values: Any, law: Any = None) -> np.ndarray:
        return self._of_modes(values).argmax(axis=-1)

    law = True  # as a source, it has a law


def samplers(
    law: Mixture, observed: np.ndarray, clones: int, seed: int, H: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Wrong samplers by name, and their clones (items, clones, dimension) of measurements
    (items, measurements).
    """
    items, rng, streams = len(observed), np.random.default_rng(seed), iter(range(100))

    def drawn(
        count: int, sigma: float = SIGMA, weights: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> np.ndarray:
        posterior = LinearPosterior(law.means, law.covariances, law.weights, H, sigma**2)
        if weights is not None:
            of_modes, modes = posterior.means(observed), weights(posterior.weights(observed))
            chosen = (
                (rng.random((items, count, 1)) > modes.cumsum(1)[:, None])
                .sum(2)
                .clip(max=MODES - 1)
            )
            noise, roots = (
                rng.standard_normal((items, count, DIMENSION)),
                np.linalg.cholesky(posterior.covariances + 1e-12 * np.eye(16)),
            )
            return of_modes[np.arange(items)[:, None], chosen] + np.einsum(
                "nkij,nkj->nki", roots[chosen], noise
            )
        keys = ut.random.keys(seed, 100 + next(streams), np.arange(items * count))
        return posterior.sample(np.repeat(observed, count, axis=0), keys).reshape(
            items, count, DIMENSION
        )

    def flattened(weights: np.ndarray, power: float) -> np.ndarray:
        return weights**power / (weights**power).sum(1, keepdims=True)

    exact = drawn(clones)
    posterior = LinearPosterior(law.means, law.covariances, law.weights, H, SIGMA**2)
    mean, sd = posterior.mean(observed)[:, None], np.sqrt(posterior.variance(observed))[:, None]
    yield "exact", exact
    for factor in (0.3, 0.85, 1.15, 1.5):
        yield f"spread x {factor:g}".replace("0.", "."), mean + factor * (exact - mean)
    for shift in (0.3, 1.0):
        yield f"shifted by {shift:g} sd".replace("0.", "."), exact + shift * sd
    yield "ignores y", law.sample(items * clones, rng).reshape(items, clones, DIMENSION)
    yield "noise taken 3 times", drawn(clones, 3 * SIGMA)
    yield "noise taken 1/3", drawn(clones, SIGMA / 3)
    one_by_one = np.empty_like(exact)
    for value in range(DIMENSION):
        one_by_one[..., value] = drawn(clones)[..., value]
    yield "values one by one", one_by_one
    # Of Student's t with four degrees of freedom, variance 1.
    scale = np.sqrt(2 / rng.chisquare(4, (items, clones, 1)))
    yield "heavy tails", mean + scale * (exact - mean)
    yield "weights^.3", drawn(clones, weights=lambda weights: flattened(weights, 0.3))
    yield "weights^3", drawn(clones, weights=lambda weights: flattened(weights, 3))
    yield (
        "likeliest mode alone",
        drawn(clones, weights=lambda weights: np.eye(MODES)[weights.argmax(1)]),
    )
    yield "deterministic", np.repeat(mean, clones, axis=1)


def rows_of(mixing: bool) -> np.ndarray:
    """The matrix of the operator: every fourth value, or as many orthonormal mixtures of all
    values.
    """
    return (
        np.linalg.qr(np.random.default_rng(0).standard_normal((DIMENSION, DIMENSION)))[0][::4]
        if mixing
        else np.eye(DIMENSION)[::4]
    )


def measured(law: Mixture, data: np.ndarray, rng: np.random.Generator, H: np.ndarray) -> Measured:
    """Measurements H x of data (items, dimension), with noise."""
    mixing, rows = (H != 0).all(), torch.as_tensor(H, dtype=torch.float32)
    hidden = None if mixing else (H.sum(0) == 0).reshape(1, 1, -1)
    operator = Operator(lambda x: x @ rows.T, SIGMA, hidden=hidden)
    values = (data @ H.T + SIGMA * rng.standard_normal((len(data), len(H)))).reshape(
        len(data), 1, 1, -1
    )
    return Measured(
        values.astype(np.float32),
        np.full(len(data), SIGMA),
        operators=(operator,) * len(data),
        shape=(1, 1, DIMENSION),
        law=law,
    )


def runs(
    items: int,
    clones: int,
    seed: int,
    of_law: int = 5,
    only: Sequence[str] = (),
    mixing: bool = False,
) -> Iterator[tuple[str, xr.Dataset]]:
    """The readings of samplers, by default of all, as runs of many items."""
    rng, law = np.random.default_rng(seed), Mixture(np.random.default_rng(of_law))
    data = law.sample(items, rng).astype(np.float32)
    noisy = measured(law, data, rng, H := rows_of(mixing))
    originals = ut.sources.Vectors(np.arange(items), law, data, law.classify(data))
    for name, draws in samplers(
        law, noisy.values.reshape(items, -1).astype(float), clones, seed, H
    ):
        if only and name not in only:
            continue
        read = Posterior().read(UTurns(originals, noisy, draws.astype(np.float32), clones), law)
        shaped = {
            key: values.reshape(
                1, items, *[1] * (values.ndim - 1), *[clones] * (values.size > items)
            )
            for key, values in read.items()
        }
        yield (
            name,
            ut.readings(
                shaped,
                [SIGMA],
                unit="noise of the measurement",
                units=dict.fromkeys(TESTS[2:], "nats"),
            ),
        )


def experiments(run: xr.Dataset, items: int) -> Iterator[xr.Dataset]:
    """Independent runs of some items each, parts of a larger one."""
    for start in range(0, run.sizes["item"], items):
        yield run.isel(item=slice(start, start + items))


def nulls(count: int, items: int, clones: int) -> Iterator[xr.Dataset]:
    """Runs with exact draws, of different seeds."""
    for seed in range(count):
        yield ut.run(
            ut.Experiment.from_dict(
                {
                    "items": items,
                    "clones": clones,
                    "seed": seed,
                    "source": {
                        "type": "gaussian_mixture",
                        "dimension": 16,
                        "num_modes": 3,
                        "separation": 1.5,
                    },
                    "corruption": {
                        "type": "operator",
                        "operator": "inpainting",
                        "sigma": 0.3,
                        "noise": [0.5],
                    },
                    "backward": {"type": "exact"},
                    "probes": [{"type": "posterior"}],
                }
            )
        )


def row(name: str, tests: Sequence[xr.Dataset]) -> str:
    """Shares of experiments in which each test rejects, and how often each kind is named."""
    p = [np.mean([float(of.p.sel(reading=key)[0]) <= LEVEL for of in tests]) for key in TESTS]
    ranked = [
        np.mean([float(of.rank_p.sel(reading=key)[0]) <= LEVEL for of in tests]) for key in RANKED
    ]
    family = np.mean([not of.attrs["passed"] for of in tests])
    kinds = Counter(str(of.kind.values[0]) for of in tests).most_common()
    shares = " ".join(f"{share:9.2f}" for share in (*p, family, *ranked))
    return (
        f"{name:22s}{shares}  "
        f" {', '.join(f'{kind} {count / len(tests):.2f}' for kind, count in kinds)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clones", type=int, default=4)
    parser.add_argument("--experiments", type=int, default=200)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--law", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--mixing", action="store_true", help="an operator that mixes the values")
    parser.add_argument("--null", action="store_true")
    parser.add_argument("--plot", type=Path)
    of = parser.parse_args()
    if of.plot:
        ((_, run),) = runs(of.items, of.clones, 0, of.law, of.only)
        save_figure(draw_posterior_tests(ut.posterior_tests(run)), of.plot)
        return
    heads = [
        *("distance", "component", "loglik", "logprior"),
        "family",
        *("r.loglik", "r.logpri", "TARP"),
    ]
    print(
        f"{of.experiments} experiments, {of.items} items x {of.clones} clones, p <= {LEVEL}; r.:"
        " ranks"
    )
    print(" " * 22 + " ".join(f"{head:>9s}" for head in heads) + "   kinds named")
    if of.null:
        tests = [
            ut.posterior_tests(run, LEVEL) for run in nulls(of.experiments, of.items, of.clones)
        ]
        print(row("exact", tests))
        return
    for name, run in runs(of.items * of.experiments, of.clones, 0, of.law, of.only, of.mixing):
        tests = [ut.posterior_tests(part, LEVEL) for part in experiments(run, of.items)]
        print(f"{row(name, tests)}   (is: {KINDS[name]})", flush=True)


if __name__ == "__main__":
    main()
