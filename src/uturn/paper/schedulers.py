"""Reverse diffusion with the exact score: which schedulers draw from the posterior, which only from the data law.

Beyond the paper. On a grammar small enough to write out all strings, the law of reconstructions is compared with the exact one:
given the noisy observation (the posterior), and over all observations (the law of the data).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from uturn.corruption import Gaussian, Masking, Noisy, UniformReplacement
from uturn.measures.calibration import Calibration, calibrate, holm, parsed_agreement
from uturn.paper.channels import WORDS, ChannelSpec, channel_spec, gaussian_law, law_p_values
from uturn.paper.verdicts import Verdict, above, below, verdict
from uturn.paper.workshop import Scale, Workshop
from uturn.plotting.style import ACCENT, CLASS, MUTED, THEORY, style
from uturn.random import Purpose, keys, uniforms
from uturn.rhm import RandomHierarchyModel
from uturn.statistics import Estimate

TITLE = "Reverse diffusion with the exact score: posterior or data law only"
CAPTION = (
    "Distance between the law q of reconstructed strings and the exact law p, (sum over strings of (q - p)^2)^(1/2), unbiased, "
    "against the number of reverse steps. Left: given a noisy observation (mean over observations), for schedulers of diffusers "
    "driven by the exact score. Those with the full noise of the reverse process converge to the posterior; those with none, or "
    "half of it, do not, however many steps. Middle: the law of U-turned strings, which all of them keep. Right: discrete "
    "channels with exact leaf marginals. Hollow: not told apart from 0 (p > 0.01). Grey: chance alone (99 %)."
)
PARAMETERS = {"vocab_size": 4, "multiplicity": 2, "branching": 2, "depth": 2}
NOISE = {"gaussian": 0.35, "masking": 0.75, "uniform": 0.6}
SAMPLERS = {  # label: (class of diffusers, its options, eta, kind)
    "DDPM": ("DDPMScheduler", {}, None, "full"),
    "DDIM, η = 1": ("DDIMScheduler", {}, 1.0, "full"),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}, None, "full"),
    "SDE-DPM-Solver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, None, "full"),
    "DDIM, η = 1/2": ("DDIMScheduler", {}, 0.5, "half"),
    "DDIM, η = 0": ("DDIMScheduler", {}, 0.0, "none"),
    "Euler": ("EulerDiscreteScheduler", {}, None, "none"),
    "Heun": ("HeunDiscreteScheduler", {}, None, "none"),
    "DPM-Solver++": ("DPMSolverMultistepScheduler", {}, None, "none"),
    "UniPC": ("UniPCMultistepScheduler", {}, None, "none"),
    "flow matching, Euler": ("FlowMatchEulerDiscreteScheduler", {}, None, "none"),
}
CHANNELS: dict[str, Any] = {"masking": Masking(), "uniform": UniformReplacement()}
REFERENCE = "exact posterior draws"
_SAMPLING, _SIGNS = (Purpose.DENOISING, 0), (Purpose.DENOISING, 1)  # of the keys of random streams
_FLIPS = 2000  # of signs, for p-values
_TIMESTEPS = 4096  # of the training schedule
_SIZES = {  # scale: (steps, observations, sheets, strings a sheet)
    "smoke": ((2, 4, 8, 16, 32, 64), 4, 16, 512),
    "paper": ((2, 4, 8, 16, 32, 64, 128, 256), 8, 64, 1024),
}


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    steps, observations, sheets, strings = _SIZES[workshop.scale]
    settings = {"parameters": PARAMETERS, "noise": NOISE, "observations": observations, "sheets": sheets, "strings": strings}
    settings["clones"] = 2

    def measured(prepare: Callable, *arguments: Any) -> xr.Dataset:
        return _measured(steps, observations, sheets, strings, *prepare(*arguments))

    found = {}
    for label, sampler in SAMPLERS.items():
        found[label] = workshop.keep(
            f"schedulers-{_slug(label)}",
            {**settings, "steps": steps, "sampler": sampler, "timesteps": _TIMESTEPS},
            partial(measured, _gaussian, sampler, strings),
        )
    for label in CHANNELS:
        found[label] = workshop.keep(
            f"schedulers-{label}",
            {**settings, "steps": steps, "channel": label},
            partial(measured, _discrete, label),
        )
    found[REFERENCE] = workshop.keep(
        "schedulers-exact", settings, lambda: _measured((0,), observations, sheets, strings, *_exact())
    )
    return found


def _slug(label: str) -> str:
    return "".join(c for c in label.lower().replace("η", "eta") if c.isalnum())


def channels(scale: Scale) -> list[ChannelSpec]:
    return [channel_spec(WORDS[kind], {"type": "rhm", **PARAMETERS}, kind, scale, [level]) for kind, level in NOISE.items()]


# --- samplers: (observe(leaves, keys, steps), rebuild(observation, keys, steps), corruption, is_stochastic, model_of(steps)) ---


def _gaussian(sampler: tuple[str, dict[str, Any], float | None, str], strings: int) -> tuple[Any, ...]:
    from uturn.backward.score_model import noisy_images_of, strings_of

    name, options, eta, _ = sampler
    gaussian = Gaussian()

    @lru_cache
    def chain(steps: int) -> tuple[Any, int]:
        """The chain and the number of its reverse steps that are run."""
        # The straight paths of flow matching always start in pure noise; halfway the noise level is about the wanted one.
        total = 2 * steps if name.startswith("FlowMatch") else steps
        return _reverse_diffusion(name, options, eta, total, strings), steps

    def observe(leaves: np.ndarray, streams: np.ndarray, steps: int) -> Noisy:
        reverse, step = chain(steps)
        t = 0.5 * np.log(1 / reverse.forward.noise_levels["abar"][step])
        return gaussian.corrupt(leaves, t, PARAMETERS["vocab_size"], streams)

    def rebuild(observation: Noisy, streams: np.ndarray, steps: int) -> np.ndarray:
        reverse, step = chain(steps)
        images = noisy_images_of(observation, reverse.forward, step, rows=strings)
        rebuilt = strings_of(reverse.denoise(images, step, streams[::strings]))  # one stream a sheet
        return rebuilt.reshape(len(observation.values), -1)

    return observe, rebuild, gaussian, chain(2)[0].is_stochastic, lambda steps: chain(steps)[0].model


def _discrete(channel: str) -> tuple[Any, ...]:
    from uturn.corruption.denoising import ExactDenoiser, denoise

    corruption = CHANNELS[channel]
    denoiser = ExactDenoiser(_grammar(), corruption)

    def observe(leaves: np.ndarray, streams: np.ndarray, steps: int) -> Noisy:
        return corruption.corrupt(leaves, NOISE[channel], PARAMETERS["vocab_size"], streams)

    return observe, lambda observation, streams, steps: denoise(denoiser, observation, steps, streams), corruption, True, None


def _exact() -> tuple[Any, ...]:
    from uturn.inference import sample_posterior

    gaussian = Gaussian()

    def observe(leaves: np.ndarray, streams: np.ndarray, steps: int) -> Noisy:
        return gaussian.corrupt(leaves, NOISE["gaussian"], PARAMETERS["vocab_size"], streams)

    def rebuild(observation: Noisy, streams: np.ndarray, steps: int) -> np.ndarray:
        return sample_posterior(_grammar(), gaussian.log_evidence(observation), streams)[0]

    return observe, rebuild, gaussian, True, None


def _reverse_diffusion(name: str, options: dict[str, Any], eta: float | None, steps: int, rows: int) -> Any:
    import diffusers

    from uturn.backward.reverse_diffusion import ReverseDiffusion
    from uturn.backward.score_model import ScoreModel
    from uturn.corruption.denoising import ExactDenoiser

    class Watched(ScoreModel):
        """Keeps what it was asked first since `asked` was set to None: noisy strings and their timestep."""

        asked: tuple[Any, Any] | None = None

        def __call__(self, noisy: Any, timestep: Any) -> Any:
            if self.asked is None:
                self.asked = noisy.clone(), timestep
            return super().__call__(noisy, timestep)

    made = getattr(diffusers, name)
    if name.startswith("FlowMatch"):
        scheduler = made(num_train_timesteps=_TIMESTEPS)
    else:  # a schedule that ends at the observation: its last timestep has the level NOISE, its first is almost clean
        r = 1 / np.expm1(2 * NOISE["gaussian"]) - 6 * np.log1p(-np.arange(_TIMESTEPS)[::-1] / _TIMESTEPS)
        abar = r / (1 + r)
        betas = 1 - abar / np.r_[1.0, abar[:-1]]
        scheduler = made(num_train_timesteps=_TIMESTEPS, trained_betas=betas.tolist(), **options)
    model = Watched(ExactDenoiser(_grammar(), Gaussian()), scheduler, rows)
    return ReverseDiffusion(model, scheduler, steps, eta=eta, batch_size=max(1, 2**11 // rows))


# --- counting strings --------------------------------------------------------------------------------------------------------


def _grammar() -> RandomHierarchyModel:
    return RandomHierarchyModel(**PARAMETERS, seed=0)


def num_leaves() -> int:
    return PARAMETERS["branching"] ** PARAMETERS["depth"]


def _all_strings() -> tuple[np.ndarray, np.ndarray]:
    """All grammatical strings and their log-probabilities."""
    v, d = PARAMETERS["vocab_size"], num_leaves()
    candidates = np.indices((v,) * d).reshape(d, -1).T
    log_p = _grammar().log_likelihood(candidates)
    return candidates[np.isfinite(log_p)], log_p[np.isfinite(log_p)]


def _counts(strings: np.ndarray) -> np.ndarray:
    """How often each grammatical string occurs, and in the last place all others together: (.., strings, d) -> (.., S + 1)."""
    known, _ = _all_strings()
    v, d = PARAMETERS["vocab_size"], strings.shape[-1]
    place = np.full(v**d, len(known))
    place[known @ v ** np.arange(d)] = np.arange(len(known))
    found = place[strings @ v ** np.arange(d)].reshape(-1, strings.shape[-2])
    return np.stack([np.bincount(row, minlength=len(known) + 1) for row in found]).reshape(*strings.shape[:-2], -1)


def _posteriors(corruption: Any, observation: Noisy) -> np.ndarray:
    """Probability of every grammatical string given observations, by writing all of them out, and 0 for all others."""
    known, log_p = _all_strings()
    evidence = corruption.log_evidence(observation, np.float64)
    log_p = log_p + evidence[:, np.arange(known.shape[1]), known].sum(-1)
    p = np.exp(log_p - log_p.max(axis=1, keepdims=True))
    return np.pad(p / p.sum(axis=1, keepdims=True), ((0, 0), (0, 1)))


def _measured(
    steps: tuple[int, ...],
    observations: int,
    sheets: int,
    strings: int,
    observe: Callable,
    rebuild: Callable,
    corruption: Any,
    is_stochastic: bool,
    model_of: Callable | None,
) -> xr.Dataset:
    """Counts of reconstructed strings, sheet by sheet: of a few observations each many times, and of many observations once.

    Of one more sheet of observations two clones each, read as in `uturn.measures.calibration`; and, where a scheduler drives a
    model, what the model is asked first, against the law of the channel at the noise that the scheduler names.
    """
    rhm, d = _grammar(), num_leaves()
    few, many = observations, sheets * strings
    seen = rhm.sample(few + many, keys(0, *_SAMPLING, 0, np.arange(few + many))).leaves
    noises = keys(0, *_SAMPLING, 1, np.arange(few + many))
    given, law, laws, pairs, first = [], [], [], [], []
    fresh = rhm.sample(strings, keys(0, *_SAMPLING, 3, np.arange(strings))).leaves
    for number in steps:
        one = observe(fresh, keys(0, *_SAMPLING, 4, number, np.arange(strings)), number)
        if model_of is not None:
            model_of(number).asked = None
        clones = [rebuild(one, keys(0, *_SAMPLING, 5, number, k, np.arange(strings)), number) for k in range(2)]
        pairs.append(parsed_agreement(rhm, np.stack([fresh, *clones], axis=1)))
        if model_of is not None:
            first.append(_asked_first(model_of(number), fresh))
        observation = observe(seen, noises, number)
        laws.append(_posteriors(corruption, _rows(observation, slice(few))))
        # One sheet is enough of what always gives the same.
        drawn = sheets if is_stochastic else 1
        rows = np.r_[np.repeat(np.arange(few), drawn * strings), np.arange(few, few + many)]
        rebuilt = rebuild(_rows(observation, rows), keys(0, *_SAMPLING, 2, number, np.arange(len(rows))), number)
        counts = _counts(rebuilt.reshape(-1, strings, d))
        given.append(np.broadcast_to(counts[: few * drawn].reshape(few, drawn, -1), (few, sheets, counts.shape[-1])))
        law.append(counts[few * drawn :])
    data_law = np.append(np.exp(_all_strings()[1]), 0.0)
    return xr.Dataset(
        {
            "given_counts": (("steps", "observation", "sheet", "string"), np.array(given, np.uint16)),
            "posterior": (("steps", "observation", "string"), np.array(laws)),
            "law_counts": (("steps", "sheet", "string"), np.array(law, np.uint16)),
            "data_law": (("string",), data_law),
            "with_original": (("steps", "item", "clone", "tree_level"), np.array([pair[0] for pair in pairs])),
            "with_clones": (("steps", "item", "clone", "tree_level"), np.array([pair[1] for pair in pairs])),
            **_by_quantity(first),
        },
        coords={"steps": list(steps)},
        attrs={"strings": strings},
    )


def _asked_first(model: Any, strings: np.ndarray) -> tuple[Any, ...]:
    """Law of the noise in what a model was asked first (see `channels.gaussian_law`), at the timestep it was told."""
    noisy, timestep = model.asked
    a, s = (float(np.ravel(x)[0]) for x in model.amplitudes(timestep))
    scale = np.hypot(a, s)  # to the units of a variance-preserving process
    x = noisy.numpy().transpose(0, 2, 3, 1).reshape(len(strings), strings.shape[1], -1) / scale
    return gaussian_law(np.eye(x.shape[2])[strings], x, (a / scale) ** 2)


def _by_quantity(first: list[tuple[Any, ...]]) -> dict[str, Any]:
    if not first:
        return {}
    names = ("standardised", "mean", "expected", "excess")
    columns = dict(zip(names, zip(*first, strict=True), strict=True))
    columns["mean"] = tuple(natural.mean(axis=0) for natural in columns["mean"])
    dims = {"standardised": ("steps", "item", "quantity")}
    return {name: (dims.get(name, ("steps", "quantity")), np.array(values)) for name, values in columns.items()}


def _rows(observation: Noisy, rows: Any) -> Noisy:
    return Noisy(observation.values[rows], observation.noise[rows], observation.vocab_size)


# --- distances between laws --------------------------------------------------------------------------------------------------


def deviations(run: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """q - p of every sheet: given observations (steps, observations, sheets, S), and of the data law (steps, 1, sheets, S)."""
    given = run.given_counts.values / run.attrs["strings"] - run.posterior.values[:, :, None]
    law = run.law_counts.values / run.attrs["strings"] - run.data_law.values
    return given, law[:, None]


def squared_distance(deviation: np.ndarray) -> np.ndarray:
    """Unbiased estimate of |E(q - p)|^2 from independent sheets (.., observations, sheets, S), mean over observations."""
    sheets = deviation.shape[-2]
    total = (deviation.sum(-2) ** 2).sum(-1) - (deviation**2).sum((-2, -1))
    return total.mean(-1) / (sheets * (sheets - 1))


def jackknife(deviation: np.ndarray, statistic: Callable[[np.ndarray], Any]) -> tuple[Any, Any]:
    """A statistic of sheets (axis -2) and its standard error."""
    sheets = deviation.shape[-2]
    left_out = np.array([statistic(np.delete(deviation, k, axis=-2)) for k in range(sheets)])
    return statistic(deviation), np.sqrt((sheets - 1) * left_out.var(axis=0))


def by_chance(deviation: np.ndarray) -> np.ndarray:
    """Squared distances that chance alone gives, for one number of steps: signs of sheets flipped at random, 2,000 times."""
    sheets = deviation.shape[-2]
    total = np.zeros(_FLIPS)
    for one, signs in zip(deviation, _signs(deviation.shape[:-1]), strict=True):
        gram = one @ one.T
        total += ((signs @ gram) * signs).sum(-1) - np.trace(gram)
    return total / (len(deviation) * sheets * (sheets - 1))


@lru_cache(maxsize=8)
def _signs(shape: tuple[int, int]) -> np.ndarray:
    """Random signs (observations, 2,000, sheets)."""
    u = uniforms(keys(0, *_SIGNS, np.arange(shape[0] * _FLIPS)), shape[1])
    return np.where(u < 0.5, -1.0, 1.0).reshape(shape[0], _FLIPS, shape[1])


def p_value(deviation: np.ndarray) -> float:
    """Probability that chance gives such a distance between equal laws."""
    chance = by_chance(deviation)
    return float((1 + (chance >= squared_distance(deviation) * (1 - 1e-12)).sum()) / (1 + len(chance)))


def extrapolated(deviation: np.ndarray) -> np.ndarray:
    """To infinitely many steps, from the last two numbers of steps K and 2K: an error proportional to 1/K drops out."""
    return 2 * deviation[-1] - deviation[-2]


def order(deviation: np.ndarray, steps: np.ndarray) -> tuple[float, float]:
    """Order of convergence, -d log(distance)/d log(steps), and its standard error; NaN if fewer than 2 points tell.

    Weighted least squares over the numbers of steps >= 4 whose squared distance is at least 3 times what chance alone exceeds
    in 5 %.
    """
    chance = np.array([np.quantile(by_chance(d), 0.95) for d in deviation])
    value, error = jackknife(deviation, squared_distance)
    used = (steps >= 4) & (value > 3 * chance)
    if used.sum() < 2:
        return float("nan"), float("nan")
    weights = (value / np.maximum(error, 1e-3 * value))[used]

    def fit(sheets: np.ndarray) -> float:
        squares = np.maximum(squared_distance(sheets[used]), 1e-12)
        return float(-0.5 * np.polyfit(np.log(steps[used]), np.log(squares), 1, w=weights)[0])

    slope, error = jackknife(deviation, fit)
    return float(slope), float(error)


# --- analysis ----------------------------------------------------------------------------------------------------------------

LEAST_ORDER = 0.5  # strong order of Euler's method; the law converges with order 1
RARE = 1e-3  # false-alarm rate of one comparison with 0


def _root(square: Any) -> np.ndarray:
    return np.sqrt(np.maximum(square, 0))


def _distance(deviation: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance with its 95 % interval, along the leading axis."""
    square, error = jackknife(deviation, squared_distance)
    return _root(square), _root(square - 1.96 * error), _root(square + 1.96 * error)


def _resolution(deviation: np.ndarray) -> float:
    """Distance that chance alone exceeds in 1 % between equal laws."""
    return float(_root(np.quantile(by_chance(deviation), 0.99)))


def _text(deviation: np.ndarray) -> str:
    value, low, high = _distance(deviation)
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


class Deviations(NamedTuple):
    """q - p of every sheet and its extrapolation, by sampler."""

    given: dict[str, np.ndarray]
    """Given observations, against the posterior."""
    law: dict[str, np.ndarray]
    """Over all observations, against the data law."""

    @property
    def limits(self) -> dict[str, float]:
        """P-values of the distances to the posterior, extrapolated to infinitely many steps."""
        return {label: p_value(extrapolated(self.given[label])) for label in [*SAMPLERS, *CHANNELS]}


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    labels = [*SAMPLERS, *CHANNELS]
    both = {label: deviations(runs[label]) for label in [*labels, REFERENCE]}
    found = Deviations(*({label: one[k] for label, one in both.items()} for k in (0, 1)))
    steps = runs[labels[0]].steps.values
    data = xr.Dataset(
        coords={"quantity": ["value", "low", "high"], "sampler": labels, "steps": steps},
        attrs={
            **PARAMETERS,
            "posterior_resolution": _resolution(found.given[REFERENCE][0]),
            "law_resolution": _resolution(found.law[REFERENCE][0]),
            "discrete_resolution": max(_resolution(found.given[label][-1]) for label in CHANNELS),
        },
    )
    for name, values in (("posterior", found.given), ("law", found.law)):
        distances = np.stack([_distance(values[label]) for label in labels], axis=1)
        data[f"{name}_distance"] = (("quantity", "sampler", "steps"), distances)
        data[f"{name}_p"] = (("sampler", "steps"), np.array([[p_value(d) for d in values[label]] for label in labels]))
    limits, last = found.limits, int(steps[-1])
    return data, [
        *_full_noise(found, limits, steps),
        _less_noise(found, limits, last),
        _data_law(found),
        _masking(found, steps),
        _replacement(found, limits, steps),
        _start(runs),
        _clones(runs, last),
    ]


def _of_kind(*kinds: str) -> list[str]:
    return [label for label, (*_, kind) in SAMPLERS.items() if kind in kinds]


def _slope(label: str, found: Deviations, steps: np.ndarray) -> Estimate:
    """Order of convergence to the posterior."""
    slope, error = order(found.given[label], steps)
    return Estimate(slope, slope - 1.96 * error, slope + 1.96 * error)


def _slope_text(label: str, slope: Estimate) -> str:
    return f"{label} {slope.value:.2f} [{slope.low:.2f}, {slope.high:.2f}]"


def _full_noise(found: Deviations, limits: dict[str, float], steps: np.ndarray) -> list[Verdict]:
    full = _of_kind("full")
    slopes = {label: _slope(label, found, steps) for label in full}
    distances = (f"{label} {_text(extrapolated(found.given[label]))}, p = {limits[label]:.2g}" for label in full)
    return [
        verdict(
            "order at which schedulers with the full noise approach the posterior",
            "; ".join(_slope_text(label, slope) for label, slope in slopes.items()),
            "distance falls as a power of the number of steps: 1 for single steps",
            above([slope.low for slope in slopes.values()], LEAST_ORDER, f"all intervals above {LEAST_ORDER}"),
        ),
        verdict(
            f"their distance to the posterior, extrapolated from {steps[-1] // 2} and {steps[-1]} steps to infinitely many",
            "; ".join(distances),
            "0: they draw from the posterior",
            above([limits[label] for label in full], RARE, f"not told apart from 0 (p > {RARE:g} each)"),
        ),
    ]


def _less_noise(found: Deviations, limits: dict[str, float], last: int) -> Verdict:
    less = _of_kind("half", "none")
    worst = max(float(_distance(found.given[label][-1])[2]) for label in _of_kind("full"))
    return verdict(
        f"distance to the posterior after {last} steps without noise, or with half of it",
        "; ".join(f"{label} {_text(found.given[label][-1])}" for label in less),
        f"stays away from 0 (schedulers with the full noise: at most {worst:.3f})",
        above([_distance(found.given[label][-1])[1] for label in less], 5 * worst, "lower limits above 5 times that"),
        below([limits[label] for label in less], RARE, f"extrapolated distance told apart from 0 (p < {RARE:g})"),
    )


def _data_law(found: Deviations) -> Verdict:
    limits = [p_value(extrapolated(found.law[label])) for label in SAMPLERS]
    first = [float(_distance(found.law[label][0])[0]) for label in SAMPLERS]
    return verdict(
        "distance of the law of U-turned strings to the data law, all schedulers, extrapolated in the same way",
        f"p = {min(limits):.2g} .. {max(limits):.2g} (after 2 steps the distance is {min(first):.3f} .. {max(first):.3f})",
        "0: all keep the data law",
        above(limits, RARE, f"not told apart from 0 (p > {RARE:g} each)"),
    )


def _masking(found: Deviations, steps: np.ndarray) -> Verdict:
    two, one_by_one = (found.given["masking"][k] for k in (0, np.flatnonzero(steps >= num_leaves())[0]))
    return verdict(
        "masking: distance to the posterior in 2 steps, and with one leaf at a time",
        f"{_text(two)}; {_text(one_by_one)}, p = {p_value(one_by_one):.2g}",
        "not 0; 0: exact without a limit",
        below(p_value(two), RARE, f"p below and above {RARE:g}"),
        above(p_value(one_by_one), RARE, ""),
    )


def _replacement(found: Deviations, limits: dict[str, float], steps: np.ndarray) -> Verdict:
    slope, p = _slope("uniform", found, steps), limits["uniform"]
    return verdict(
        "uniform replacement: order of convergence; distance extrapolated to infinitely many steps",
        f"{_slope_text('uniform', slope)}; {_text(extrapolated(found.given['uniform']))}, p = {p:.2g}",
        "1; 0",
        above(slope.low, LEAST_ORDER, f"interval above {LEAST_ORDER}"),
        above(p, RARE, f"p > {RARE:g}"),
    )


def _start(runs: dict[str, xr.Dataset]) -> Verdict:
    """The noise that a chain starts from is that of its first timestep."""
    p = np.stack([law_p_values(runs[label].rename(steps="noise")).ravel() for label in SAMPLERS])
    adjusted = holm(p)
    worst = int(adjusted.min(axis=1).argmin())
    run = runs[list(SAMPLERS)[worst]]
    signal, variance = (", ".join(f"{x:.3f}" for x in run["mean"].values[:, k]) for k in (0, 1))
    names = " and ".join(", ".join(f"{x:.3f}" for x in np.unique(run["expected"].values[:, k].round(3))) for k in (0, 1))
    return verdict(
        "what the model is asked first, against the noise of its timestep: signal and variance, all schedulers and steps",
        f"{p.size} tests, smallest p = {p.min():.2g}, by Holm {adjusted.min():.2g}; {list(SAMPLERS)[worst]}: signal {signal}; "
        f"variance {variance}",
        f"sqrt(abar) and 1 - abar of the first timestep: {names}",
        above(adjusted, RARE, f"mean, spread between strings, independence of the chains: no p by Holm <= {RARE:g}"),
    )


def _clones(runs: dict[str, xr.Dataset], last: int) -> Verdict:
    """Two draws from one observation: calibration, in which schedulers without noise are the negative controls."""
    found: dict[str, Calibration] = {}
    for label in [REFERENCE, *CHANNELS, *SAMPLERS]:
        run = runs[label].isel(steps=-1)
        pair = [run[name].transpose("item", "clone", "tree_level").values for name in ("with_original", "with_clones")]
        found[label] = calibrate(pair[0], pair[1], level=0.01, relabellings=40_000)
    kinds = {label: "full" for label in [REFERENCE, *CHANNELS]} | {label: kind for label, (*_, kind) in SAMPLERS.items()}
    p = {label: float(one.adjusted.min()) for label, one in found.items()}

    def words(label: str) -> str:
        one = found[label]
        k = int(one.p_value.argmin())
        return f"{label} {one.gap[k]:+.3f} [{one.low[k]:+.3f}, {one.high[k]:+.3f}]"

    drawn, fixed = ([label for label, kind in kinds.items() if (kind == "full") == full] for full in (True, False))
    least = min(p[label] for label in drawn)
    return verdict(
        f"calibration, E f(x0, x̂) - E f(x̂, x̂'), two draws of one observation in {last} steps; f: share of equal parsed nodes",
        "; ".join(map(words, drawn)) + f": smallest p = {least:.2g}. Less noise: " + "; ".join(map(words, fixed)),
        "0 with the full noise; below 0 without it, where the draws resemble each other too much",
        above(least * len(drawn), 0.01, "exact randomisation test: no p by Holm <= 0.01"),
        below([p[label] for label in fixed], RARE, f"p < {RARE:g} each"),
        below([found[label].gap.min() for label in fixed], 0, ""),
    )


def draw(data: xr.Dataset) -> Any:
    attrs, steps = data.attrs, data.steps.values
    bottom = 0.5 * min(attrs["posterior_resolution"], attrs["law_resolution"])
    shown = (
        ("posterior", list(SAMPLERS), "given an observation: the posterior", "posterior_resolution"),
        ("law", list(SAMPLERS), "over all observations: the data law", "law_resolution"),
        ("posterior", list(CHANNELS), "discrete channels: the posterior", "discrete_resolution"),
    )
    with style() as plt:
        figure, panels = plt.subplots(1, 3, figsize=(13.5, 5.6), width_ratios=[1.15, 1.15, 1], sharey=True, layout="constrained")
        for axes, (name, labels, title, resolution) in zip(panels, shown, strict=True):
            axes.axhspan(bottom / 2, attrs[resolution], color="#e4e4e4", lw=0, zorder=0)
            for label in labels:
                distance, p = data[f"{name}_distance"].sel(sampler=label), data[f"{name}_p"].sel(sampler=label)
                _draw_sampler(axes, steps, distance.values, p.values < 0.01, bottom, label)
            axes.set(xscale="log", yscale="log", xlabel="reverse steps", ylim=(bottom * 0.85, 1.1))
            axes.set_title(title)
            axes.set_xticks(steps, [str(k) for k in steps])
            axes.minorticks_off()
        _draw_guides(panels[0], steps)
        handles, names = panels[0].get_legend_handles_labels()
        more = panels[2].get_legend_handles_labels()[0]
        names += ["masking: random order", "uniform replacement"]
        place = {"loc": "outside lower center", "ncols": 5, "columnspacing": 1.6, "handletextpad": 0.2}
        figure.legend(handles + more, names, **place)
    return figure


_KINDS = {"full": (ACCENT, "full noise", 0.055), "half": ("#e69f00", "half of it", 0.52), "none": (CLASS, "no noise", 0.9)}


def _looks() -> dict[str, tuple[Any, str, str]]:
    """Colour, mark and line of every sampler."""
    marks = ("o", "s", "^", "D", "v", "P", "X")
    looks: dict[str, tuple[Any, str, str]] = {"masking": (THEORY, "o", "-"), "uniform": ("#009e73", "s", "-")}
    for kind, (color, *_) in _KINDS.items():
        for k, label in enumerate(_of_kind(kind)):
            looks[label] = (color, marks[k % len(marks)], "-" if kind == "full" else "--")
    return looks


def _draw_sampler(axes: Any, steps: np.ndarray, distance: np.ndarray, seen: np.ndarray, bottom: float, label: str) -> None:
    """A distance (value, low, high) against the number of steps; hollow where it is not told apart from 0."""
    color, mark, line = _looks()[label]
    value, low, high = distance
    at = np.maximum(value, bottom)
    axes.plot(steps, at, color=color, ls=line, lw=1.3, alpha=0.75, zorder=2)
    axes.vlines(steps[seen], np.maximum(low, bottom)[seen], high[seen], color=color, lw=1.1, zorder=2)
    axes.plot(steps[seen], at[seen], ls="", marker=mark, ms=5.5, color=color, label=label, zorder=3)
    axes.plot(steps[~seen], at[~seen], ls="", marker=mark, ms=5.5, mfc="white", mec=color, zorder=3)


def _draw_guides(axes: Any, steps: np.ndarray) -> None:
    """Words, and a line for first order."""
    guide = steps[1:4].astype(float)
    axes.plot(guide, 0.9 / guide * 1.0, color=MUTED, lw=1, ls=":")
    axes.text(guide[1], 1.05 * 0.9 / guide[1], r"$\propto 1/\mathrm{steps}$", color=MUTED, fontsize=10, va="bottom")
    axes.text(0.02, 0.03, "not told apart from 0", color=MUTED, fontsize=9.5, transform=axes.transAxes)
    axes.set_ylabel("distance to the exact law")
    for color, text, at in _KINDS.values():
        axes.text(steps[-1], at, text, color=color, fontsize=10.5, ha="right", va="bottom", weight="bold")
