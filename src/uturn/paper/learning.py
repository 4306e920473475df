"""Trained denoisers against the exact one: the levels of the grammar are learned from the bottom up as data grows."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from uturn.paper import Scale, Verdict, Work
from uturn.paper.style import CLASS, MUTED, THEORY, level_bar, level_colors, style
from uturn.random import keys, uniforms
from uturn.rhm import RandomHierarchyModel
from uturn.statistics import Estimate

TITLE = "Does a trained denoiser do what belief propagation does?"
CAPTION = (
    "Networks in the shape of the tree, trained to denoise P strings of one grammar (Gaussian process) and compared with exact "
    "inference. (a) Use of the evidence that each level's rules give about new strings (partial correlation): 1 is exact, 0 is "
    "ignorance; triangles: predicted scale v m^(l+1) of level l (arXiv:2502.12089). (b) Share of rules obeyed in generated "
    "strings: nodes that are grammatical among those whose children are. (c) Excess of the denoising loss over Bayes' optimum, "
    "stopped early and at the end of the training; two other channels at one P. (d) Generated strings that are copies of "
    "training strings. (e-g) U-turns with the network (points, 95 % intervals) and exact (lines). (h) Squared error of the "
    "score, relative to its square, against noise. Networks stopped early unless said otherwise."
)

# Grammars with a transition: s f = 1/2. Of `training`, `steps` are the least and the largest number of optimisation steps, with
# 16 for each training string in between: by then small sets are known by heart. The other `steps` are those of U-turns;
# generation takes twice as many.
SETTINGS: dict[str, dict[str, Any]] = {
    "smoke": {
        "grammar": {"vocab_size": 8, "multiplicity": 2, "branching": 2, "depth": 4, "seed": 0},
        "sizes": [1, 2, 4, 8, 16, 32, 64, 128, 256, 1024],
        "other_size": 1024,
        "training": {
            "width": 32,
            "steps": [1200, 4000],
            "batch_size": 128,
            "learning_rate": 5e-3,
            "every": 100,
            "held_out": 1024,
        },
        "levels": 10,
        "items": 512,
        "generated": 1024,
        "steps": 32,
    },
    "paper": {
        "grammar": {"vocab_size": 16, "multiplicity": 4, "branching": 2, "depth": 4, "seed": 0},
        "sizes": [4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144],
        "other_size": 65536,
        "training": {
            "width": 128,
            "steps": [4000, 40000],
            "batch_size": 256,
            "learning_rate": 2e-3,
            "every": 500,
            "held_out": 4096,
        },
        "levels": 16,
        "items": 2048,
        "generated": 8192,
        "steps": 64,
    },
}
SWEPT, OTHERS = "gaussian", ("masking", "uniform")
_MARKERS = {"masking": ("^", "#0072b2", 0.87), "uniform": ("D", "#009e73", 1.15)}  # and a shift aside, both being at one size
MISSED = 0.10  # largest share of the information in the other leaves that the network with most data may miss
U_TURN_ERROR = 0.05  # largest difference of a U-turn probability, network against exact, at tree levels 0 and 1
_STRINGS, _TESTS, _FULL_NOISE, _LOSS_NOISE, _U_TURN_NOISE, _GENERATION, _U_TURN = range(
    2, 9
)  # first coordinates of the random streams of purpose 8
_PURPOSE, _BOOTSTRAP = 8, 4


# -- measurement -----------------------------------------------------------------------------------------------------------
def measure(work: Work) -> dict[str, xr.Dataset]:
    """Train what is not yet trained, then read it: one dataset for each network, and one for each channel's exact denoiser."""
    plan = {key: value for key, value in SETTINGS[work.scale].items() if key not in ("sizes", "other_size")}
    jobs = [{"channel": channel, "size": size, **plan} for channel, size in networks(work.scale)]
    work.folder.mkdir(parents=True, exist_ok=True)
    _train_all(jobs, work)
    runs = {}
    for channel in (SWEPT, *OTHERS):
        settings = {"channel": channel, **plan}
        runs[f"{channel}-exact"] = work.keep(f"learning-{channel}-exact", settings, partial(exact_readings, settings))
    for job in jobs:
        name = f"{job['channel']}-{job['size']}"
        runs[name] = work.keep(f"learning-{name}", job, partial(network_readings, job, work.folder))
    return runs


def networks(scale: Scale) -> list[tuple[str, int]]:
    """Channel and number of training strings of every network."""
    plan = SETTINGS[scale]
    return [(SWEPT, size) for size in plan["sizes"]] + [(channel, plan["other_size"]) for channel in OTHERS]


def _train_all(jobs: list[dict[str, Any]], work: Work) -> None:
    from uturn.experiment import _cores, _progress_bar

    # Largest first: the processes end at about the same time.
    todo = sorted((job for job in jobs if not _is_trained(job, work.folder)), key=lambda job: -job["size"])
    workers = min(work.workers or _cores(), len(todo))
    if workers <= 1:
        for job in todo:
            _train(job, work.folder, work.progress)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    # One thread each: the networks are so small that threads would wait for each other. The processes inherit these when they
    # start; a fork of a process that runs threads can hang.
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        with _progress_bar(work.progress, "networks in training", len(todo), 0) as advance:
            for done in as_completed([pool.submit(_train, job, work.folder, False) for job in todo]):
                done.result()
                advance()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _train(job: dict[str, Any], folder: Path, progress: bool) -> None:
    import torch

    from uturn.denoisers import train_denoiser
    from uturn.networks import save_network

    rhm = RandomHierarchyModel(**job["grammar"])
    least, most = job["training"]["steps"]
    training = {**job["training"], "steps": min(max(16 * job["size"], least), most)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    checkpoint = _path(job, folder, "training").with_suffix(".pt")
    try:
        best, last, history = train_denoiser(
            rhm, job["channel"], training_strings(rhm, job["size"]), **training, checkpoint=checkpoint, progress=progress
        )
    finally:
        torch.set_num_threads(threads)
    for state, model in (("best", best), ("last", last)):
        save_network(model, _path(job, folder, state), settings=_training_settings(job), held_out=history.records["held_out"])
    checkpoint.unlink()


def _path(job: Mapping[str, Any], folder: Path, state: str) -> Path:
    return folder / f"learning-{job['channel']}-{job['size']}-{state}.safetensors"


def _training_settings(job: Mapping[str, Any]) -> str:
    return json.dumps({key: job[key] for key in ("grammar", "channel", "size", "training")}, sort_keys=True)


def _is_trained(job: dict[str, Any], folder: Path) -> bool:
    from uturn.networks import load_network

    try:
        facts: list[Any] = [load_network(_path(job, folder, state), "tree_denoiser").facts for state in ("best", "last")]
        return all(one["settings"] == _training_settings(job) for one in facts)
    except (ValueError, KeyError):  # absent, damaged or not ours: trained anew
        return False


def training_strings(rhm: RandomHierarchyModel, size: int) -> np.ndarray:
    """The first `size` strings of one sequence: smaller training sets are part of the larger ones."""
    return rhm.sample(size, seed=_keys(_STRINGS, range(size))).leaves


def network_readings(job: Mapping[str, Any], folder: Path) -> xr.Dataset:
    """Everything about one size: generated strings, losses against Bayes, U-turns; dims state (best, last), ...

    `tried` (string, tree_level) counts the nodes whose children are all grammatical, `obeyed` those of them that are grammatical
    too, `valid` is the share of all nodes; `copied` (string) is 1 for a copy of a training string.
    """
    from uturn.backward.denoising import ExactDenoiser, denoise
    from uturn.denoisers import LearnedDenoiser, compare_denoisers, full_noise
    from uturn.networks import load_network

    rhm = RandomHierarchyModel(**job["grammar"])
    known = {string.tobytes() for string in training_strings(rhm, job["size"])}
    tests = _tests(rhm, job)
    states, denoisers = [], {}
    for state in ("best", "last"):
        learned = denoisers[state] = LearnedDenoiser(load_network(_path(job, folder, state), "tree_denoiser"))
        count = range(job["generated"])
        nothing = full_noise(learned.corruption, len(count), rhm.num_leaves, rhm.vocab_size, _keys(_FULL_NOISE, count))
        strings = denoise(learned, nothing, 2 * job["steps"], _keys(_GENERATION, count))
        exact = ExactDenoiser(rhm, learned.corruption)
        losses = compare_denoisers(learned, exact, tests.leaves, _noise(job), _keys(_LOSS_NOISE, range(job["items"])))
        copied = np.array([string.tobytes() in known for string in strings], float)
        weights = evidence_moments(learned, rhm, tests.leaves, _noise(job), _keys(_LOSS_NOISE, range(job["items"])))
        states.append(losses.assign(copied=("string", copied), **weights, **grammaticality(rhm, strings)))
    both = xr.concat(states, xr.DataArray(["best", "last"], dims="state", name="state"))
    return both.assign(unchanged=u_turns(denoisers["best"], rhm, tests, job))


def exact_readings(job: Mapping[str, Any]) -> xr.Dataset:
    """U-turns by belief propagation: probabilities (`belief`), and draws by the sampler that the networks use (`unchanged`)."""
    from uturn.backward.denoising import ExactDenoiser
    from uturn.denoisers import CHANNELS
    from uturn.inference import infer

    rhm, corruption = RandomHierarchyModel(**job["grammar"]), CHANNELS[job["channel"]]()
    tests = _tests(rhm, job)
    beliefs = []
    for noisy in _noisy(corruption, tests, job, rhm):
        marginals = infer(rhm, corruption.log_evidence(noisy, np.float32)).marginals
        right = [np.take_along_axis(marginals[k], tests.latents[k][..., None], 2).mean((1, 2)) for k in range(rhm.depth + 1)]
        beliefs.append(np.stack(right, 1))
    dims = ("noise", "item", "tree_level")
    return xr.Dataset(
        {"belief": (dims, np.array(beliefs)), "unchanged": u_turns(ExactDenoiser(rhm, corruption), rhm, tests, job)},
        {"noise": _noise(job), "tree_level": range(rhm.depth + 1)},
    )


def evidence_moments(
    denoiser: Any, rhm: RandomHierarchyModel, leaves: np.ndarray, noise: np.ndarray, seed: Any
) -> dict[str, Any]:
    """What a denoiser makes of the evidence that each level of the grammar adds.

    Let p_l be the exact posterior of a leaf for a reader who knows the rules of levels 1 .. l only, and so uses no more than the
    leaves of the same subtree of height l; p_0 knows the leaf alone, p_L is the exact posterior. `D_l = log p_l - log p_{l-1}` is
    the evidence that level l adds. The least squares fit

        log p_net - log p_0 = sum_l w_l D_l + rest

    (over symbols under the exact posterior, centred: the metric of which the Kullback-Leibler divergence is half the square)
    says how far the network's own evidence goes along with that of each level. For exact inference w_l = 1 and nothing is left; a
    network that knows nothing of a level's rules has w_l = 0. The strings being new to it, memory does not help it.

    Returns
    -------
    gram (item, learned_level, other_level), projection (item, learned_level), power (item) : the moments of the fit, from which
    `use_of_evidence` makes correlations for any set of items.
    """
    from uturn.inference import infer
    from uturn.random import streams

    s, L, v, corruption = rhm.branching, rhm.depth, rhm.vocab_size, denoiser.corruption
    readers = [
        RandomHierarchyModel.from_rules(
            {k: rhm.rules[k] for k in range(1, top + 1)},
            v,
            rule_probabilities={k: rhm.rule_probabilities[k] for k in range(1, top + 1)},
        )
        for top in range(1, L)
    ]
    gram, projection, power = np.zeros((len(leaves), L, L)), np.zeros((len(leaves), L)), np.zeros(len(leaves))
    for k, level in enumerate(noise):
        noisy = corruption.corrupt(leaves, level, v, streams(streams(seed, len(leaves)), len(leaves), k))
        evidence = corruption.log_evidence(noisy, np.float64)
        known = [np.exp(evidence - np.logaddexp.reduce(evidence, -1, keepdims=True))]
        for reader in [*readers, rhm]:
            blocks = evidence.reshape(-1, s**reader.depth, v)
            known.append(infer(reader, blocks).marginals[0].reshape(evidence.shape))
        logs = np.log(np.maximum(np.array([*known, denoiser.posterior(noisy)]), 1e-30))
        parts = np.concatenate([np.diff(logs[: L + 1], axis=0), (logs[-1] - logs[0])[None]])
        parts -= (known[L] * parts).sum(-1, keepdims=True)
        moments = np.einsum("nia,jnia,knia->njk", known[L], parts, parts, optimize=True)
        gram, projection, power = gram + moments[:, :L, :L], projection + moments[:, :L, L], power + moments[:, L, L]
    dims = ("item", "learned_level", "other_level")
    return {"gram": (dims, gram), "projection": (dims[:2], projection), "power": ("item", power)}


def use_of_evidence(gram: np.ndarray, projection: np.ndarray, power: np.ndarray) -> np.ndarray:
    """Partial correlation (..., levels) of a network's evidence with that of each level: 1 for exact inference, 0 for ignorance.

    `w_l / sqrt(w_l**2 + |rest|**2 (G**-1)_ll)`, from moments of `evidence_moments` summed over items. Unlike the weight itself,
    it does not mistake a network that is sure of everything for one that knows.
    """
    inverse = np.linalg.inv(gram)
    w = (inverse @ projection[..., None])[..., 0]
    rest = np.maximum(power - (w * projection).sum(-1), 1e-9 * power)  # not less than rounding: nothing is no direction
    spread = rest[..., None] * np.diagonal(inverse, axis1=-2, axis2=-1)
    return w / np.sqrt(np.maximum(w**2 + spread, 1e-300))


def grammaticality(rhm: RandomHierarchyModel, strings: np.ndarray) -> dict[str, Any]:
    """Of every string and tree level: nodes whose children are all grammatical (`tried`), nodes that are so themselves
    (`obeyed`), and the share of these among all nodes (`valid`)."""
    valid = rhm.parse(strings).valid
    tried = [valid[0]] + [valid[k].reshape(len(strings), -1, rhm.branching).all(-1) for k in range(rhm.depth)]
    dims, levels = ("string", "tree_level"), range(rhm.depth + 1)
    return {
        "tried": (dims, np.stack([tried[k].sum(1, dtype=float) for k in levels], 1)),
        "obeyed": (dims, np.stack([valid[k].sum(1, dtype=float) for k in levels], 1)),
        "valid": (dims, np.stack([valid[k].mean(1) for k in levels], 1)),
    }


def u_turns(denoiser: Any, rhm: RandomHierarchyModel, tests: Any, job: Mapping[str, Any]) -> xr.DataArray:
    """Share of nodes that keep their symbol, (noise, item, tree_level); a node that is not grammatical any more has changed."""
    from uturn.backward.denoising import denoise

    found = []
    for k, noisy in enumerate(_noisy(denoiser.corruption, tests, job, rhm)):
        strings = denoise(denoiser, noisy, job["steps"], _keys(_U_TURN, k, range(job["items"])))
        latents = rhm.parse(strings).latents
        found.append(np.stack([(latents[j] == tests.latents[j]).mean(1) for j in range(rhm.depth + 1)], 1))
    coords = {"noise": _noise(job), "tree_level": range(rhm.depth + 1)}
    return xr.DataArray(np.array(found), coords, ("noise", "item", "tree_level"))


def _keys(use: int, *coordinates: Any) -> np.ndarray:
    return keys(0, _PURPOSE, use, *coordinates)


def _tests(rhm: RandomHierarchyModel, job: Mapping[str, Any]) -> Any:
    return rhm.sample(job["items"], seed=_keys(_TESTS, range(job["items"])))


def _noise(job: Mapping[str, Any]) -> np.ndarray:
    """Quantiles of the training distribution, so that a mean over them is a mean over that distribution."""
    from uturn.denoisers import training_noise

    return training_noise(job["channel"], (np.arange(job["levels"]) + 0.5) / job["levels"])


def _noisy(corruption: Any, tests: Any, job: Mapping[str, Any], rhm: RandomHierarchyModel) -> list[Any]:
    items = range(job["items"])
    return [
        corruption.corrupt(tests.leaves, level, rhm.vocab_size, _keys(_U_TURN_NOISE, k, items))
        for k, level in enumerate(_noise(job))
    ]


# -- analysis --------------------------------------------------------------------------------------------------------------
def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    runs = {name: run.load() for name, run in runs.items()}
    exact = {channel: runs[f"{channel}-exact"] for channel in (SWEPT, *OTHERS)}
    read = {name: run for name, run in runs.items() if not name.endswith("-exact")}
    sweep = {int(name.rpartition("-")[2]): run for name, run in read.items() if name.startswith(SWEPT)}
    sizes = sorted(sweep)
    swept = xr.concat([sweep[size] for size in sizes], xr.DataArray(sizes, dims="size", name="size"), join="override")
    grammar = json.loads(sweep[sizes[0]].attrs["settings"])["grammar"]
    v, m, s, L = (grammar[key] for key in ("vocab_size", "multiplicity", "branching", "depth"))
    chance = m / v ** (s - 1)
    data = summary(swept)
    data = data.assign(exact=exact[SWEPT].belief.mean("item"), sampled=exact[SWEPT].unchanged.mean("item"))
    others = xr.concat(
        [summary(read[name]) for name in read if not name.startswith(SWEPT)],
        xr.DataArray([name for name in read if not name.startswith(SWEPT)], dims="network", name="network"),
        join="override",
    )
    for name in ("excess", "divergence", "local", "copied", "obeyed_share", "valid"):
        data[f"other_{name}"] = others[name]
    scales = v * float(m) ** (np.arange(1, L + 1) + 1)
    learned_at = half_way(swept.sel(state="best"))
    use = np.array(learned_at["use"]).reshape(len(sizes), L, 3)
    data = data.assign(
        use=(("size", "learned_level", "bound"), use),
        learned_at=(("learned_level", "bound"), np.array([e[:3] for e in learned_at["levels"]])),
        predicted_at=("learned_level", scales),
    ).assign_coords(learned_level=np.arange(1, L + 1), bound=["value", "low", "high"])
    data.attrs = {**grammar, "chance": chance}
    verdicts = [
        _bayes_bound(read),
        *_order(learned_at, scales, m, sizes),
        *_approach(swept.sel(state="best"), sizes),
        _u_turns(read, exact, sizes),
        _copies(swept, sizes),
    ]
    return data, verdicts


def summary(readings: xr.Dataset) -> xr.Dataset:
    """Means over test strings (losses also over noise) and over generated strings."""
    losses = readings[["excess", "divergence", "local", "squared_error", "exact_squared_error", "mean_error"]]
    data = losses.mean(["noise", "item"])
    data["excess_error"] = readings.excess.mean("noise").std("item", ddof=1) / np.sqrt(readings.sizes["item"])
    tried = np.maximum(readings.tried.sum("string"), 1)
    data["obeyed_share"] = readings.obeyed.sum("string") / tried
    rest = readings.obeyed - data.obeyed_share * readings.tried  # standard error of a quotient
    data["obeyed_error"] = np.sqrt((rest**2).sum("string")) / tried
    data["valid"] = readings.valid.mean("string")
    data["copied"] = readings.copied.mean("string")
    data["unchanged"] = readings.unchanged.mean("item")
    data["unchanged_error"] = readings.unchanged.std("item", ddof=1) / np.sqrt(readings.sizes["item"])
    if "score_error" in readings:
        data["score_error"] = readings.score_error.mean("item") / readings.score_square.mean("item")
    return data


def half_way(readings: xr.Dataset, num: int = 400) -> dict[str, Any]:
    """Number of training strings at which the use of each level's evidence is half of the best (`use_of_evidence`).

    Linear interpolation in log P; 0 or infinity if all or none of the sizes are beyond. Intervals by bootstrap over the test
    strings, the same for all sizes: they hold for these networks, and do not know how others would have fared.

    Returns
    -------
    levels : one Estimate for each tree level 1 .. L
    ratios : Estimates of the quotient of neighbouring levels, 2/1 .. L/(L-1)
    growth : Estimate of the factor per level, least squares of the logarithm over the levels found
    use : Estimates of the use of evidence itself, size by size and level by level
    """
    gram = readings.gram.transpose("item", "size", "learned_level", "other_level").values
    projection = readings.projection.transpose("item", "size", "learned_level").values
    power = readings.power.transpose("item", "size").values
    sizes, items = readings["size"].values.astype(float), readings.sizes["item"]

    def solved(counts: np.ndarray) -> np.ndarray:
        return use_of_evidence(*(np.tensordot(counts, moments, 1) for moments in (gram, projection, power)))

    def found(use: np.ndarray) -> np.ndarray:
        return np.array([_reached(sizes, use[:, k], 0.5) for k in range(use.shape[1])])

    picked = (uniforms(keys(0, _BOOTSTRAP, np.arange(num)), items) * items).astype(np.int64)
    solutions = np.array([solved(np.bincount(row, minlength=items).astype(float)) for row in picked])
    use = solved(np.ones(items))
    value, draws = found(use), np.array([found(one) for one in solutions])
    above, below = draws[:, 1:], draws[:, :-1]
    ratios, ratio_draws = _quotient(value[1:], value[:-1]), _quotient(above, below)
    return {
        "levels": [_interval(value[k], draws[:, k]) for k in range(len(value))],
        "ratios": [_interval(ratios[k], ratio_draws[:, k]) for k in range(len(ratios))],
        "growth": _interval(_growth(value), np.array([_growth(row) for row in draws])),
        "use": [_interval(use[i, k], solutions[:, i, k]) for i in range(len(sizes)) for k in range(len(value))],
    }


def _reached(sizes: np.ndarray, share: np.ndarray, height: float) -> float:
    """Where a rising curve gets above a height for good: interpolated in log P."""
    below = np.flatnonzero(share < height)
    if not len(below):
        return 0.0
    k = below[-1]
    if k == len(sizes) - 1:
        return np.inf
    part = (height - share[k]) / (share[k + 1] - share[k])
    return float(sizes[k] * (sizes[k + 1] / sizes[k]) ** part)


def _quotient(above: Any, below: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(above) / np.asarray(below)


def _growth(levels: np.ndarray) -> float:
    exists = np.isfinite(levels) & (levels > 0)
    if exists.sum() < 2:
        return np.nan
    return float(np.exp(np.polyfit(np.flatnonzero(exists), np.log(levels[exists]), 1)[0]))


def _interval(value: Any, draws: np.ndarray) -> Estimate:
    known = np.sort(draws[~np.isnan(draws)])
    if len(known) < 0.95 * len(draws):
        return Estimate(float(value), np.nan, np.nan)
    # Order statistics, not interpolated: infinity is a legal value.
    low, high = known[int(0.025 * (len(known) - 1))], known[int(np.ceil(0.975 * (len(known) - 1)))]
    return Estimate(float(value), float(low), float(high))


def _mean(values: xr.DataArray) -> Estimate:
    """Mean over items with its 95 % interval (normal)."""
    mean, error = float(values.mean()), float(values.std("item", ddof=1)) / np.sqrt(values.sizes["item"])
    return Estimate(mean, mean - 1.96 * error, mean + 1.96 * error)


def _bayes_bound(read: dict[str, xr.Dataset]) -> Verdict:
    """No denoiser beats Bayes, in either loss, for any network."""
    worst = np.inf, ""
    for name, run in read.items():
        for state in run.state.values:
            one = run.sel(state=state)
            for words, gap in (("log loss", one.excess), ("squared", one.squared_error - one.exact_squared_error)):
                items = gap.mean("noise")
                z = float(items.mean() / (items.std("item", ddof=1) / np.sqrt(items.sizes["item"])))
                worst = min(worst, (z, f"{words}, {name}, {state}"))
    return Verdict(
        f"no network beats Bayes: smallest t statistic of the excess loss, {len(read)} networks x 2 states x 2 losses",
        f"{worst[0]:+.1f} ({worst[1]})",
        "not negative",
        worst[0] > -3,
        "above -3",
    )


def _order(learned_at: dict[str, Any], scales: np.ndarray, m: int, sizes: list[int]) -> list[Verdict]:
    levels, ratios = learned_at["levels"], learned_at["ratios"]
    L = len(levels)
    pairs = list(zip(levels[:-1], levels[1:], ratios, strict=True))
    compared = [ratio for lower, upper, ratio in pairs if not (lower.value == upper.value and lower.value in (0, np.inf))]
    return [
        Verdict(
            f"training strings at which half of the evidence of levels 1 .. {L} is used, and quotients of neighbours",
            ", ".join(_words(level) for level in levels) + "; quotients " + ", ".join(_words(ratio) for ratio in ratios),
            "levels are learned from the bottom up",
            len(compared) >= L - 2 and all(ratio.low > 1 for ratio in compared),
            f"each level later than the one below it, intervals above 1; at most one pair beyond the same end of "
            f"P = {sizes[0]} .. {sizes[-1]} (0 or inf)",
        ),
        Verdict(
            "growth of that number from level to level",
            _words(learned_at["growth"]),
            f"m = {m}: scales v m^(l+1) = " + ", ".join(f"{scale:.0f}" for scale in scales),
            m / 2 < learned_at["growth"].value < 2 * m,
            f"between m/2 = {m / 2:g} and 2m = {2 * m:g}",
        ),
    ]


def _words(estimate: Estimate) -> str:
    return f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"


def _approach(best: xr.Dataset, sizes: list[int]) -> list[Verdict]:
    """Towards Bayes as data grows."""
    excess = best.divergence.mean("noise")
    steps = [excess.isel(size=k + 1) - excess.isel(size=k) for k in range(len(sizes) - 1)]
    z = [float(d.mean() / (d.std("item", ddof=1) / np.sqrt(d.sizes["item"]))) for d in steps]
    last = best.isel(size=-1)
    share = float(last.divergence.mean() / last.local.mean())
    return [
        Verdict(
            f"excess loss over Bayes, nats a leaf, P = {', '.join(map(str, sizes))}",
            ", ".join(f"{float(excess.isel(size=k).mean()):.4f}" for k in range(len(sizes))),
            "falls with P",
            all(value < 3 for value in z) and float(excess.isel(size=-1).mean()) < float(excess.isel(size=0).mean()),
            "no size worse than the one before it by 3 standard errors, the last better than the first",
        ),
        Verdict(
            f"information in the other leaves that the network misses at P = {sizes[-1]}",
            f"{100 * share:.1f} % ({_mean(last.divergence.mean('noise'))} of {_mean(last.local.mean('noise'))} nats a leaf)",
            "0 as P and training grow",
            share < MISSED,
            f"below {100 * MISSED:.0f} %",
        ),
    ]


def _u_turns(read: dict[str, xr.Dataset], exact: dict[str, xr.Dataset], sizes: list[int]) -> Verdict:
    """U-turns of the network with most data, in every channel, against exact probabilities at the same observations."""
    parts, good = [], True
    for channel, truth in exact.items():
        name = f"{channel}-{sizes[-1]}" if channel == SWEPT else next(key for key in read if key.startswith(channel))
        gap = (read[name].unchanged - truth.belief).sel(tree_level=[0, 1])
        worst = abs(gap.mean("item"))
        at = worst.argmax(...)
        one = _mean(gap.isel({key: int(value) for key, value in at.items()}))
        own = float(abs((truth.unchanged - truth.belief).sel(tree_level=[0, 1]).mean("item")).max())
        parts.append(f"{name} {one.value:+.3f} [{one.low:+.3f}, {one.high:+.3f}] (exact denoiser, same sampler: {own:.3f})")
        good &= abs(one.value) < U_TURN_ERROR
    return Verdict(
        "U-turns with the network against exact probabilities, largest difference over noise at levels 0 and 1",
        "; ".join(parts),
        "0",
        good,
        f"below {U_TURN_ERROR} in size",
    )


def _copies(swept: xr.Dataset, sizes: list[int]) -> Verdict:
    last = swept.copied.sel(state="last")
    few, many = (int(last.isel(size=k).sum()) for k in (0, -1))
    count = last.sizes["string"]
    first, final = _proportion(few, count), _proportion(many, count)
    stopped = float(swept.copied.sel(state="best").isel(size=0).mean())
    return Verdict(
        f"generated strings that are copies of training strings, trained to the end, P = {sizes[0]} and {sizes[-1]}",
        f"{first} and {final} (with early stopping at P = {sizes[0]}: {stopped:.3f})",
        "falls with P: little data is memorised",
        first.low > final.high and final.value < 0.01,
        "intervals apart, and below 0.01 at the largest P",
    )


def _proportion(hits: int, count: int) -> Estimate:
    """A share and its 95 % interval (Wilson)."""
    z, share = 1.96, hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return Estimate(share, max(0.0, float(middle - half)), min(1.0, float(middle + half)))


# -- drawing ---------------------------------------------------------------------------------------------------------------
def draw(data: xr.Dataset) -> Any:
    L = int(data.attrs["depth"])
    colors = level_colors(L + 1)
    sizes = data["size"].values
    with style() as plt:
        figure, axes = plt.subplots(2, 4, figsize=(19, 8.6), layout="constrained")
        weight, rules, loss, copies, few, some, many, score = axes.ravel()
        for level in range(1, L + 1):
            one = data.use.sel(learned_level=level)
            value, low, high = (one.sel(bound=name) for name in ("value", "low", "high"))
            weight.errorbar(sizes, value, [value - low, high - value], fmt="o-", color=colors[level], ms=5)
            at = data.predicted_at.values[level - 1]
            weight.plot(at, 1.12, "v", color=colors[level], ms=8)
            weight.annotate(f"{level}", (at, 1.12), (6, 0), textcoords="offset points", color=colors[level], va="center")
        weight.plot([], [], "v", color=MUTED, ms=8, label=r"predicted for level $l$: $v\,m^{l+1}$")
        for height in (0, 0.5, 1):
            weight.axhline(height, color=MUTED, lw=1, ls=":")
        lowest = float(data.use.sel(bound="value").min())
        weight.set(xscale="log", ylabel="use of the evidence (correlation)", ylim=(min(-0.25, lowest - 0.05), 1.2))
        weight.set_title("(a) evidence from the rules of each level", pad=14)
        weight.legend(loc="lower right")
        for level in range(1, L + 1):
            one = data.sel(state="best", tree_level=level)
            rules.errorbar(sizes, one.obeyed_share, 1.96 * one.obeyed_error, fmt="o-", color=colors[level], ms=5)
        rules.axhline(data.attrs["chance"], color=MUTED, lw=1, ls=":")
        rules.text(
            1,
            data.attrs["chance"],
            "chance",
            color=MUTED,
            va="bottom",
            ha="right",
            fontsize=9.5,
            transform=rules.get_yaxis_transform(),
        )
        rules.set(xscale="log", ylabel="share of rules obeyed", ylim=(0, 1.05))
        rules.set_title("(b) rules in generated strings", pad=14)

        for state, marker, color, words in (("best", "o", THEORY, "stopped early"), ("last", "s", CLASS, "trained to the end")):
            loss.loglog(sizes, data.divergence.sel(state=state), f"{marker}-", color=color, ms=5, label=words)
            copies.semilogx(sizes, data.copied.sel(state=state), f"{marker}-", color=color, ms=5, label=words)
        for k, network in enumerate(data.network.values):
            channel, _, size = str(network).rpartition("-")
            marker, color, aside = _MARKERS[channel]
            value = float(data.other_divergence.isel(network=k).sel(state="best"))
            loss.loglog(int(size) * aside, value, marker, color=color, ms=8, label=channel, zorder=4)
        local = float(data.local.isel(size=0).sel(state="best"))
        loss.axhline(local, color=MUTED, lw=1, ls="--")
        loss.text(sizes[-1], local * 0.97, "each leaf by itself", color=MUTED, ha="right", va="top", fontsize=9.5)
        loss.yaxis.set_minor_formatter(plt.NullFormatter())
        loss.set(ylabel="excess loss over Bayes (nats / leaf)")
        loss.set_title("(c) distance from exact inference", pad=14)
        loss.legend(loc="lower left")
        copies.set(ylabel="share of copies", ylim=(-0.03, 1.03))
        copies.set_title("(d) copies of training strings", pad=14)
        copies.legend()

        for panel, place, letter in ((few, 0, "e"), (some, len(sizes) // 2, "f"), (many, -1, "g")):
            one = data.isel(size=place)
            for level in range(L + 1):
                panel.semilogx(data.noise, data.exact.sel(tree_level=level), color=colors[level], lw=1.5)
                panel.errorbar(
                    data.noise, one.unchanged.sel(tree_level=level), 1.96 * one.unchanged_error.sel(tree_level=level),
                    fmt="o", color=colors[level], ms=4.5, lw=1,
                )  # fmt: skip
            panel.set(xlabel="diffusion time $t$", ylabel="P(symbol unchanged)", ylim=(0, 1.03))
            panel.set_title(f"({letter}) U-turns, P = {sizes[place]}")
        few.plot([], [], "o", color=MUTED, ms=4.5, label="network")
        few.plot([], [], color=MUTED, lw=1.5, label="exact (belief propagation)")
        few.legend(loc="upper right")
        shades = plt.colormaps["viridis"](np.linspace(0.85, 0.1, len(sizes)))
        for k, size in enumerate(sizes):
            score.loglog(
                data.noise, data.score_error.sel(state="best").isel(size=k), "o-", ms=4, color=shades[k], label=f"{size}"
            )
        score.set(xlabel="diffusion time $t$", ylabel=r"$|s_{net}-s|^2\;/\;|s|^2$")
        score.set_title("(h) error of the score")
        score.legend(title="$P$", ncols=2, loc="lower left")
        for panel in (weight, rules, loss, copies):
            panel.set_xlabel("training strings $P$")
        level_bar(plt, many, L + 1, "tree level (0 = leaves)")
    return figure
