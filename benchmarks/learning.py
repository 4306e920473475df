"""In which order do trained denoisers learn the levels of a grammar? From the bottom up:
benchmarks/README.md.

    python benchmarks/learning.py [--workers N]

Networks in the shape of the tree are trained to denoise P strings of a grammar. They are then
compared with exact inference on new strings. All sizes P are tried on three grammars in the
Gaussian process; masking and replacement are tried at one size.

The observable and the grammar were chosen with results in view. The order was known for one of the
three grammars when the rule was set. This is an exploration, not a test.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest, page_trend_test

from uturn.core.processes import cores, in_processes
from uturn.core.protocols import Denoiser
from uturn.core.random import Purpose, keys, streams
from uturn.corruption.denoising import ExactDenoiser, checked_posterior, denoise
from uturn.exact.inference import infer
from uturn.exact.rhm import RandomHierarchyModel
from uturn.measures.statistics import Estimate, crossing
from uturn.networks.strings.denoisers import (
    CHANNELS,
    LearnedDenoiser,
    train_denoiser,
    training_noise,
)

GRAMMAR = {"vocab_size": 8, "multiplicity": 2, "branching": 2, "depth": 4}  # s f = 1/2
SEEDS = (0, 1, 2)
SIZES = (8, 32, 64, 128, 256, 1024)
"""Numbers P of training strings."""
TRAINING = {"width": 32, "batch_size": 64, "learning_rate": 2.5e-3, "every": 50, "held_out": 1024}
NOISE_LEVELS = 10
TEST_STRINGS = 512
GENERATED_STRINGS = 1024
STEPS = 32
"""Steps of a U-turn. The generation of a string takes twice as many."""

# First coordinates of the random streams with the purpose DENOISER; 0 and 1 are those of training.
_STRINGS, _TESTS, _FULL_NOISE, _LOSS_NOISE, _U_TURN_NOISE, _GENERATION, _U_TURN = range(2, 9)


@dataclass(frozen=True)
class Job:
    """One network: the channel in training, the number of training strings, the seed of the
    grammar.
    """

    channel: str
    size: int
    seed: int

    @property
    def rhm(self) -> RandomHierarchyModel:
        return RandomHierarchyModel(**GRAMMAR, seed=self.seed)

    @property
    def noise(self) -> np.ndarray:
        """Quantiles of the training distribution, so that a mean over them is a mean over that
        distribution.
        """
        return training_noise(self.channel, (np.arange(NOISE_LEVELS) + 0.5) / NOISE_LEVELS)

    @property
    def tests(self) -> Any:
        return self.rhm.sample(TEST_STRINGS, seed=_keys(_TESTS, range(TEST_STRINGS)))


def _keys(use: int, *coordinates: Any) -> np.ndarray:
    return keys(0, Purpose.DENOISER, use, *coordinates)


def training_strings(rhm: RandomHierarchyModel, size: int) -> np.ndarray:
    """The first `size` strings of one sequence: smaller training sets are part of the larger
    ones.
    """
    return rhm.sample(size, seed=_keys(_STRINGS, range(size))).leaves


def readings(job: Job) -> xr.Dataset:
    """Train a network and read it on new strings.

    The dimension `state` has the network at the lowest held-out loss ("best", early stopping) and
    at the end ("last").
    """
    rhm = job.rhm
    optimisation_steps = min(max(6 * job.size, 400), 4000)
    strings = training_strings(rhm, job.size)
    *models, _ = train_denoiser(rhm, job.channel, strings, steps=optimisation_steps, **TRAINING)
    networks = [LearnedDenoiser(model) for model in models]
    found = xr.concat(
        [compare(network, job) for network in networks], xr.Variable("state", ["best", "last"])
    )
    if job.seed != SEEDS[0]:
        return found
    copied = [is_copy(network, strings, rhm) for network in networks]
    found["copied"] = ("state", "string"), np.array(copied)
    exact = ExactDenoiser(rhm, networks[0].corruption)
    found["unchanged"] = u_turns(networks[0], job)
    found["exact_unchanged"] = u_turns(exact, job)
    found["belief"] = found.unchanged.copy(data=beliefs(exact, job))
    return found


def compare(denoiser: Denoiser, job: Job) -> xr.Dataset:
    """Distances of a denoiser from the exact one, (noise, item), means over the leaves of a string;
    and its level weights.

    `excess`: log p_exact(x_0^i) - log p_net(x_0^i) at the true symbols, in nats. Its expectation is
    never negative. `divergence`: sum_a p_exact(a) log(p_exact(a) / p_net(a)), the expectation of
    `excess` given the observation. `local`: log p_exact(x_0^i) - log p_0(x_0^i), with p_0 the
    posterior given the observation of leaf i alone. `squared_excess`: |onehot(x_0^i) - p_net|^2 -
    |onehot(x_0^i) - p_exact|^2. Its expectation is never negative.
    """
    rhm = job.rhm
    leaves = job.tests.leaves
    true = np.eye(rhm.vocab_size)[leaves]
    seeds = _keys(_LOSS_NOISE, range(TEST_STRINGS))
    rows: dict[str, list[np.ndarray]] = {
        "excess": [],
        "divergence": [],
        "local": [],
        "squared_excess": [],
    }
    moments = np.zeros((rhm.depth + 1, rhm.depth + 1))
    for k, noise in enumerate(job.noise):
        noisy = denoiser.corruption.corrupt(
            leaves, noise, vocab_size=rhm.vocab_size, seed=streams(seeds, TEST_STRINGS, k)
        )
        q = checked_posterior(denoiser, noisy).astype(float)
        posteriors = posteriors_by_level(rhm, denoiser.corruption.log_evidence(noisy, np.float64))
        own = posteriors[0]
        p = posteriors[-1]
        log_p, log_q, log_own = (np.log(np.maximum(x, 1e-30)) for x in (p, q, own))
        rows["excess"].append((true * (log_p - log_q)).sum(-1).mean(-1))
        rows["divergence"].append((p * (log_p - log_q)).sum(-1).mean(-1))
        rows["local"].append((true * (log_p - log_own)).sum(-1).mean(-1))
        rows["squared_excess"].append(
            (((true - q) ** 2).sum(-1) - ((true - p) ** 2).sum(-1)).mean(-1)
        )
        moments += evidence_moments(posteriors, q)
    found = xr.Dataset(
        {name: (("noise", "item"), np.array(values)) for name, values in rows.items()}
    )
    found["weight"] = "learned_level", level_weights(moments)
    return found.assign_coords(learned_level=range(1, rhm.depth + 1))


def posteriors_by_level(rhm: RandomHierarchyModel, evidence: np.ndarray) -> list[np.ndarray]:
    """Posteriors p_0 .. p_L of every leaf, (items, leaves, v); p_l is computed with the rules of
    tree levels 1 .. l alone.
    """
    found = [np.exp(evidence - np.logaddexp.reduce(evidence, -1, keepdims=True))]
    for top in range(1, rhm.depth):
        rules = {k: rhm.rules[k] for k in range(1, top + 1)}
        chances = {k: rhm.rule_probabilities[k] for k in rules}
        reader = RandomHierarchyModel.from_rules(rules, rhm.vocab_size, rule_probabilities=chances)
        blocks = evidence.reshape(-1, rhm.branching**top, rhm.vocab_size)
        found.append(infer(reader, blocks).marginals[0].reshape(evidence.shape))
    found.append(infer(rhm, evidence).marginals[0])
    return found


def evidence_moments(posteriors: list[np.ndarray], network: np.ndarray) -> np.ndarray:
    """Second moments of the evidence D_l = log p_l - log p_(l-1) of the levels, and of log p_net -
    log p_0 (last row).

    Symbols are weighted by p_L and centred: half the square of a difference in this metric is the
    Kullback-Leibler divergence.
    """
    logs = np.log(np.maximum(np.array([*posteriors, network]), 1e-30))
    of_levels = np.diff(logs[:-1], axis=0)
    of_network = logs[-1] - logs[0]
    terms = np.concatenate([of_levels, of_network[None]])
    terms -= (posteriors[-1] * terms).sum(-1, keepdims=True)
    return np.einsum("nia,jnia,knia->jk", posteriors[-1], terms, terms, optimize=True)


def level_weights(moments: np.ndarray) -> np.ndarray:
    """Weight of the rules of each tree level in a network's posterior: 1 for exact inference, 0 for
    unknown rules.

    Least squares determine the weights w, and then the scale, in

        log p_net - log p_0 = sum_l w_l D_l + rest,    scale * (log p_net - log p_0) = sum_l D_l + rest,    scale >= 0

    The result is `scale * w`. Without the scale, an overconfident network would appear to know the
    rules. Errors unrelated to the levels lower all weights by the same factor.
    """
    gram, projection, power = moments[:-1, :-1], moments[:-1, -1], moments[-1, -1]
    scale = max(projection.sum(), 0) / power if power > 0 else 0.0
    return scale * np.linalg.lstsq(gram, projection, rcond=None)[0]


def is_copy(denoiser: Denoiser, strings: np.ndarray, rhm: RandomHierarchyModel) -> list[float]:
    """Of strings generated from full noise: 1 for a copy of a training string."""
    numbers = range(GENERATED_STRINGS)
    blank = np.zeros((GENERATED_STRINGS, rhm.num_leaves), np.int64)
    corruption = denoiser.corruption
    nothing = corruption.corrupt(
        blank, corruption.max_noise, vocab_size=rhm.vocab_size, seed=_keys(_FULL_NOISE, numbers)
    )
    generated = denoise(denoiser, nothing, 2 * STEPS, _keys(_GENERATION, numbers))
    known = {string.tobytes() for string in strings}
    return [float(string.tobytes() in known) for string in generated]


def noisy_tests(corruption: Any, job: Job) -> list[Any]:
    numbers = range(TEST_STRINGS)
    leaves = job.tests.leaves
    levels = enumerate(job.noise)
    return [
        corruption.corrupt(
            leaves, noise, vocab_size=job.rhm.vocab_size, seed=_keys(_U_TURN_NOISE, k, numbers)
        )
        for k, noise in levels
    ]


def u_turns(denoiser: Denoiser, job: Job) -> xr.DataArray:
    """Share of nodes that keep their symbol, (noise, item, tree_level). A node that is not
    grammatical any more has changed.
    """
    rhm = job.rhm
    before = job.tests.latents
    unchanged = []
    for k, noisy in enumerate(noisy_tests(denoiser.corruption, job)):
        rebuilt = denoise(denoiser, noisy, STEPS, _keys(_U_TURN, k, range(TEST_STRINGS)))
        after = rhm.parse(rebuilt).latents
        unchanged.append(
            np.stack(
                [(after[level] == before[level]).mean(1) for level in range(rhm.depth + 1)], axis=1
            )
        )
    return xr.DataArray(np.array(unchanged), dims=("noise", "item", "tree_level"))


def beliefs(exact: ExactDenoiser, job: Job) -> np.ndarray:
    """The exact probabilities of what `u_turns` counts."""
    latents = job.tests.latents
    found = []
    for noisy in noisy_tests(exact.corruption, job):
        marginals = infer(job.rhm, exact.corruption.log_evidence(noisy, np.float32)).marginals
        right = [
            np.take_along_axis(marginals[k], latents[k][..., None], 2).mean((1, 2))
            for k in range(job.rhm.depth + 1)
        ]
        found.append(np.stack(right, axis=1))
    return np.array(found)


def reached(curve: np.ndarray, height: float = 0.5) -> float:
    """The P above which a rising curve stays above a height, interpolated in log P; 0 or
    infinity beyond the ends.
    """
    if curve[-1] < height:
        return np.inf
    place = crossing(np.log(SIZES), -curve, -height)
    return 0.0 if np.isnan(place) else float(np.exp(place))


def order_of_levels(found: dict[Job, xr.Dataset]) -> tuple[str, str]:
    places = []
    for seed in SEEDS:
        weights = np.array(
            [found[Job("gaussian", size, seed)].weight.sel(state="best").values for size in SIZES]
        )
        places.append([reached(weights[:, k]) for k in range(weights.shape[1])])
    middle = np.median(places, axis=0)
    ends = zip(middle, np.min(places, axis=0), np.max(places, axis=0), strict=True)
    medians = ", ".join(f"{Estimate(*each):.3g}" for each in ends)
    scales = GRAMMAR["vocab_size"] * float(GRAMMAR["multiplicity"]) ** (
        np.arange(1, GRAMMAR["depth"] + 1) + 1
    )
    p = float(page_trend_test(places).pvalue)
    ratios = ", ".join(f"{ratio:.2f}" for ratio in middle / scales)
    return (
        "P at which the weight of levels 1 .. 4 reaches 1/2, median [range]",
        f"{medians}; Page's trend test: p = {p:.2g}; over v m^(l+1): {ratios}",
    )


def excess_loss(found: dict[Job, xr.Dataset]) -> tuple[str, str]:
    mean = {
        job: float(run.divergence.sel(state="best").mean())
        for job, run in found.items()
        if job.channel == "gaussian"
    }
    rows = np.array([[mean[Job("gaussian", size, seed)] for size in SIZES] for seed in SEEDS])
    p = float(page_trend_test(-rows).pvalue)
    losses = ", ".join(f"{x:.4f}" for x in rows.mean(axis=0))
    return (
        f"excess loss over Bayes, nats a leaf, P = {', '.join(map(str, SIZES))}",
        f"{losses}; Page's trend test: p = {p:.2g}",
    )


def missed_information(found: dict[Job, xr.Dataset]) -> tuple[str, str]:
    shares = []
    for seed in SEEDS:
        best = found[Job("gaussian", SIZES[-1], seed)].sel(state="best")
        shares.append(float(best.divergence.mean() / best.local.mean()))
    return f"information in the other leaves that is missed, P = {SIZES[-1]}", ", ".join(
        f"{100 * x:.1f} %" for x in shares
    )


def bayes_bound(found: dict[Job, xr.Dataset]) -> tuple[str, str]:
    smallest = np.inf
    for job, run in found.items():
        if job.seed != SEEDS[0]:
            continue
        for gap in (run.excess, run.squared_excess):
            items = gap.mean("noise")
            t = items.mean("item") / items.std("item", ddof=1) * np.sqrt(TEST_STRINGS)
            smallest = min(smallest, float(t.min()))
    return (
        "no network beats Bayes: smallest t statistic of the excess of both losses",
        f"{smallest:+.1f}",
    )


def largest_u_turn_gap(found: dict[Job, xr.Dataset]) -> tuple[str, str]:
    texts = []
    for channel in CHANNELS:
        run = found[Job(channel, SIZES[-1], SEEDS[0])].sel(tree_level=[0, 1])
        gap = run.unchanged - run.belief
        largest = gap.isel(
            {name: int(place) for name, place in abs(gap.mean("item")).argmax(...).items()}
        )
        mean = float(largest.mean())
        error = 1.96 * float(largest.std("item", ddof=1)) / largest.size**0.5
        alone = float(abs((run.exact_unchanged - run.belief).mean("item")).max())
        texts.append(
            f"{channel} {Estimate(mean, mean - error, mean + error):+.3f} (the sampler alone:"
            f" {alone:.3f})"
        )
    return "U-turns, network against exact: largest difference at tree levels 0 and 1", "; ".join(
        texts
    )


def copies(found: dict[Job, xr.Dataset]) -> tuple[str, str]:
    texts = []
    for size in (SIZES[0], SIZES[-1]):
        copied = found[Job("gaussian", size, SEEDS[0])].copied.sel(state="last")
        test = binomtest(int(copied.sum()), copied.size)
        interval = test.proportion_ci(method="wilson")
        texts.append(f"{Estimate(test.statistic, interval.low, interval.high):.3f}")
    return (
        f"share of copies of training strings, trained to the end, P = {SIZES[0]} and {SIZES[-1]}",
        " and ".join(texts),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=cores(), help="networks trained at a time")
    chosen = parser.parse_args()
    start = time.monotonic()
    jobs = [Job(channel, SIZES[-1], SEEDS[0]) for channel in ("masking", "uniform")]
    jobs += [Job("gaussian", size, seed) for size in reversed(SIZES) for seed in SEEDS]
    found = {}
    # The largest networks first. Threads do not speed up networks of this size.
    for job, run in in_processes(
        job_and_readings, [(job,) for job in jobs], chosen.workers, threads=1
    ):
        found[job] = run
    table = Table("quantity", "measured", title="Trained denoisers against the exact one")
    for measure in (
        order_of_levels,
        excess_loss,
        missed_information,
        bayes_bound,
        largest_u_turn_gap,
        copies,
    ):
        table.add_row(*measure(found))
    Console(width=160, markup=False).print(table)
    print(f"{time.monotonic() - start:.0f} s")


def job_and_readings(job: Job) -> tuple[Job, xr.Dataset]:
    return job, readings(job)


if __name__ == "__main__":
    main()
