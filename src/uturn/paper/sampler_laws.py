"""The law of reconstructed strings of each sampler, on a grammar whose strings can be
enumerated, for figure `schedulers`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy.stats import gamma, norm

from uturn.backward.score_model import ScoreModel, noisy_images_of, strings_of
from uturn.core.random import Purpose, keys
from uturn.corruption import Gaussian, Noisy
from uturn.corruption.denoising import ExactDenoiser
from uturn.exact.inference import sample_posterior
from uturn.exact.rhm import RandomHierarchyModel
from uturn.measures.calibration import Calibration, calibrate, paired

PARAMETERS = {"vocab_size": 4, "multiplicity": 2, "branching": 2, "depth": 2}
NOISE = 0.35  # Gaussian diffusion time of the observations
Scheduler = tuple[str, dict[str, Any], float | None, str]
"""Class of diffusers, its options, eta, and the kind: how much of the noise of the reverse
process it adds.
"""
SAMPLERS: dict[str, Scheduler] = {
    "DDPM": ("DDPMScheduler", {}, None, "full"),
    "DDIM, η = 1": ("DDIMScheduler", {}, 1.0, "full"),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}, None, "full"),
    "SDE-DPM-Solver++": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++"},
        None,
        "full",
    ),
    "flow matching, ancestral": (
        "FlowMatchEulerDiscreteScheduler",
        {"ancestral": True},
        None,
        "full",
    ),
    "DDIM, η = 1/2": ("DDIMScheduler", {}, 0.5, "half"),
    "DDIM, η = 0": ("DDIMScheduler", {}, 0.0, "none"),
    "Euler": ("EulerDiscreteScheduler", {}, None, "none"),
    "Heun": ("HeunDiscreteScheduler", {}, None, "none"),
    "DPM-Solver++": ("DPMSolverMultistepScheduler", {}, None, "none"),
    "UniPC": ("UniPCMultistepScheduler", {}, None, "none"),
    "flow matching, Euler": ("FlowMatchEulerDiscreteScheduler", {}, None, "none"),
}
REFERENCE = "exact posterior draws"
_SAMPLING = (Purpose.DENOISING, 0)  # of the keys of random streams
TIMESTEPS = 4096  # of the training schedule


class Sampler(NamedTuple):
    """Draws observations of strings and reconstructs strings from them, in a number of steps."""

    observe: Callable[[np.ndarray, np.ndarray, int], Noisy]  # (leaves, keys, steps)
    rebuild: Callable[[Noisy, np.ndarray, int], np.ndarray]  # (observations, keys, steps)
    corruption: Any
    is_stochastic: bool = True
    # Steps -> the model that a scheduler drives, if there is one.
    model: Callable[[int], Any] | None = None


class Size(NamedTuple):
    """Numbers of steps, of observations, of sheets, and of strings in a sheet."""

    steps: tuple[int, ...]
    observations: int
    sheets: int
    strings: int


def scheduler_sampler(sampler: Scheduler, size: Size) -> Sampler:
    """A scheduler of diffusers with the exact score; the strings of a sheet share a stream of
    random numbers.
    """
    name, options, eta, _ = sampler
    gaussian = Gaussian()
    strings = size.strings

    @lru_cache
    def chain(steps: int) -> tuple[Any, int]:
        """The chain and the number of its reverse steps that are run."""
        # The straight paths of flow matching always start in pure noise; halfway the noise level is
        # about the wanted one.
        total = 2 * steps if name.startswith("FlowMatch") else steps
        return _reverse_diffusion(name, options, eta, total, strings), steps

    def observe(leaves: np.ndarray, streams: np.ndarray, steps: int) -> Noisy:
        reverse, step = chain(steps)
        t = 0.5 * np.log(1 / reverse.forward.noise_levels["abar"][step])
        return gaussian.corrupt(leaves, t, vocab_size=PARAMETERS["vocab_size"], seed=streams)

    def rebuild(observation: Noisy, streams: np.ndarray, steps: int) -> np.ndarray:
        reverse, step = chain(steps)
        images = noisy_images_of(observation, reverse.forward, step, rows=strings)
        # One stream a sheet.
        rebuilt = strings_of(reverse.denoise(images, step, streams[::strings]))
        return rebuilt.reshape(len(observation.values), -1)

    return Sampler(
        observe,
        rebuild,
        gaussian,
        chain(2)[0].is_stochastic,
        lambda steps: chain(steps)[0].model.network,
    )


def exact_sampler(size: Size) -> Sampler:
    """Exact posterior draws in the Gaussian process."""
    gaussian = Gaussian()

    def observe(leaves: np.ndarray, streams: np.ndarray, steps: int) -> Noisy:
        return gaussian.corrupt(leaves, NOISE, vocab_size=PARAMETERS["vocab_size"], seed=streams)

    def rebuild(observation: Noisy, streams: np.ndarray, steps: int) -> np.ndarray:
        return sample_posterior(_grammar(), gaussian.log_evidence(observation), streams)[0]

    return Sampler(observe, rebuild, gaussian)


def _reverse_diffusion(
    name: str, options: dict[str, Any], eta: float | None, steps: int, rows: int
) -> Any:
    import diffusers  # takes seconds to load

    from uturn.backward.reverse_diffusion import ReverseDiffusion, Sampler
    from uturn.networks.images.model import ImageModel

    class Watched(ScoreModel):
        """Records the first input after `asked` was set to None: noisy strings and their
        timestep.
        """

        asked: tuple[Any, Any] | None = None

        def __call__(self, noisy: Any, timestep: Any) -> Any:
            if self.asked is None:
                self.asked = noisy.clone(), timestep
            return super().__call__(noisy, timestep)

    made = getattr(diffusers, name)
    ancestral = options.get("ancestral", False)
    if name.startswith("FlowMatch"):
        scheduler = made(num_train_timesteps=TIMESTEPS)
    else:  # a schedule that ends at the observation: its last timestep has the level NOISE, its first is almost clean
        r = 1 / np.expm1(2 * NOISE) - 6 * np.log1p(-np.arange(TIMESTEPS)[::-1] / TIMESTEPS)
        abar = r / (1 + r)
        betas = 1 - abar / np.r_[1.0, abar[:-1]]
        scheduler = made(num_train_timesteps=TIMESTEPS, trained_betas=betas.tolist(), **options)
    model = Watched(ExactDenoiser(_grammar(), Gaussian()), scheduler, rows)
    return ReverseDiffusion(
        ImageModel(model, scheduler, batch_size=max(1, 2**11 // rows)),
        Sampler("ancestral" if ancestral else "stored", steps, eta=eta),
    )


def _grammar() -> RandomHierarchyModel:
    return RandomHierarchyModel(**PARAMETERS, seed=0)


def num_leaves() -> int:
    return PARAMETERS["branching"] ** PARAMETERS["depth"]


def _all_strings() -> tuple[np.ndarray, np.ndarray]:
    """All grammatical strings and their log-probabilities."""
    v = PARAMETERS["vocab_size"]
    d = num_leaves()
    candidates = np.indices((v,) * d).reshape(d, -1).T
    log_p = _grammar().log_likelihood(candidates)
    return candidates[np.isfinite(log_p)], log_p[np.isfinite(log_p)]


def _counts(strings: np.ndarray) -> np.ndarray:
    """Counts of each grammatical string and, last, of all others together: (.., strings, d) ->
    (.., S + 1).
    """
    known, _ = _all_strings()
    v = PARAMETERS["vocab_size"]
    d = strings.shape[-1]
    place = np.full(v**d, len(known))
    place[known @ v ** np.arange(d)] = np.arange(len(known))
    numbers = place[strings @ v ** np.arange(d)].reshape(-1, strings.shape[-2])
    return np.stack([np.bincount(row, minlength=len(known) + 1) for row in numbers]).reshape(
        *strings.shape[:-2], -1
    )


def _posteriors(corruption: Any, observation: Noisy) -> np.ndarray:
    """Posterior of every grammatical string by enumeration, and 0 for all others."""
    known, log_p = _all_strings()
    evidence = corruption.log_evidence(observation, np.float64)
    log_p = log_p + evidence[:, np.arange(known.shape[1]), known].sum(-1)
    p = np.exp(log_p - log_p.max(axis=1, keepdims=True))
    return np.pad(p / p.sum(axis=1, keepdims=True), ((0, 0), (0, 1)))


def measured(size: Size, sampler: Callable[[Size], Sampler]) -> xr.Dataset:
    """Counts of reconstructed strings on every sheet: a few observations reconstructed many times,
    and many observations once.

    Where a scheduler drives a model, the model reconstructs one more sheet of strings. Its first
    input is compared with the law of the channel at the noise that the scheduler names.
    """
    rhm = _grammar()
    d = num_leaves()
    (steps, few, sheets, strings) = size
    observe, rebuild, corruption, is_stochastic, model = sampler(size)
    many = sheets * strings
    seen = rhm.sample(few + many, keys(0, *_SAMPLING, 0, np.arange(few + many))).leaves
    noises = keys(0, *_SAMPLING, 1, np.arange(few + many))
    posterior_counts = []
    law = []
    laws = []
    first = []
    fresh = rhm.sample(strings, keys(0, *_SAMPLING, 3, np.arange(strings))).leaves
    for number in steps:
        if model is not None:
            observed = observe(fresh, keys(0, *_SAMPLING, 4, number, np.arange(strings)), number)
            model(number).asked = None
            rebuild(observed, keys(0, *_SAMPLING, 5, number, 0, np.arange(strings)), number)
            first.append(_asked_first(model(number), fresh))
        observation = observe(seen, noises, number)

        def rows_of(chosen: Any, observed: Noisy = observation) -> Noisy:
            return Noisy(observed.values[chosen], observed.noise[chosen], observed.vocab_size)

        laws.append(_posteriors(corruption, rows_of(slice(few))))
        # A deterministic sampler gives the same on every sheet: one is enough.
        drawn = sheets if is_stochastic else 1
        rows = np.r_[np.repeat(np.arange(few), drawn * strings), np.arange(few, few + many)]
        rebuilt = rebuild(
            rows_of(rows), keys(0, *_SAMPLING, 2, number, np.arange(len(rows))), number
        )
        counts = _counts(rebuilt.reshape(-1, strings, d))
        posterior_counts.append(
            np.broadcast_to(
                counts[: few * drawn].reshape(few, drawn, -1), (few, sheets, counts.shape[-1])
            )
        )
        law.append(counts[few * drawn :])
    return xr.Dataset(
        {
            "given_counts": (
                ("steps", "observation", "sheet", "string"),
                np.array(posterior_counts, np.uint16),
            ),
            "posterior": (("steps", "observation", "string"), np.array(laws)),
            "law_counts": (("steps", "sheet", "string"), np.array(law, np.uint16)),
            "data_law": ("string", np.append(np.exp(_all_strings()[1]), 0.0)),
            **(_laws_of_first_inputs(first) if first else {}),
        },
        coords={"steps": list(steps)},
        attrs={"strings": strings},
    )


def parsed_agreement(
    rhm: RandomHierarchyModel, strings: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The arguments of `calibrate`, (items, K, tree levels), from strings (items, K + 1,
    num_leaves), the original first: shares of equal parsed nodes. A node that is not grammatical
    equals nothing.
    """
    latents = rhm.parse(strings.reshape(-1, strings.shape[2])).latents

    def same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return ((a == b) & (a >= 0)).mean(axis=1)

    pairs = [
        paired(latents[level].reshape(*strings.shape[:2], -1), same) for level in sorted(latents)
    ]
    first, rows = (np.stack(values, axis=-1) for values in zip(*pairs, strict=True))
    return first, rows


def calibrated(run: xr.Dataset, level: float, relabellings: int) -> Calibration:
    """The test of `calibrate` on stored readings `with_original` and `with_clones`."""
    first, rows = (
        run[name].transpose("item", "clone", ...).values
        for name in ("with_original", "with_clones")
    )
    return calibrate(first, rows, level, relabellings)


def _laws_of_first_inputs(laws: list[Law]) -> dict[str, Any]:
    """The results of `_asked_first` for all numbers of steps as variables of a dataset."""
    standardised, natural, expected, excess = map(np.array, zip(*laws, strict=True))
    by_quantity = {"mean": natural.mean(axis=1), "expected": expected, "excess": excess}
    variables: dict[str, Any] = {
        name: (("steps", "quantity"), values) for name, values in by_quantity.items()
    }
    return variables | {"standardised": (("steps", "item", "quantity"), standardised)}


def _asked_first(model: Any, strings: np.ndarray) -> Law:
    """Law of the noise in the first input of a model, at the timestep it was called with (see
    `gaussian_law`).
    """
    noisy, timestep = model.asked
    a, s = (float(np.ravel(x)[0]) for x in model.amplitudes(timestep))
    scale = np.hypot(a, s)  # to the units of a variance-preserving process
    x = noisy.numpy().transpose(0, 2, 3, 1).reshape(len(strings), strings.shape[1], -1) / scale
    return gaussian_law(np.eye(x.shape[2])[strings], x, (a / scale) ** 2)


Law = tuple[np.ndarray, np.ndarray, list[float], list[float]]


def gaussian_law(x0: np.ndarray, xt: np.ndarray, abar: float) -> Law:
    """Law of the noise in `x_t = sqrt(abar) x_0 + sqrt(1 - abar) xi`, arrays (items, ...), by two
    quantities.

    With the residual r = (x_t - sqrt(abar) x_0)/sqrt(1 - abar) they are r projected on x_0, and the
    square of r. Returns both with mean 0 and variance 1, (items, quantity); both in natural units,
    amplitude of the signal and variance of the noise; the expectation of these; and the excess
    kurtosis of the first.
    """
    x0, xt = (np.asarray(x, float).reshape(len(x), -1) for x in (x0, xt))
    norm = np.sqrt((x0**2).sum(axis=1))
    n = x0.shape[1]
    noise = xt - np.sqrt(abar) * x0
    along = (noise * x0).sum(axis=1) / norm
    square = (noise**2).sum(axis=1)
    standardised = np.stack(
        [along / np.sqrt(1 - abar), (square / (1 - abar) - n) / np.sqrt(2 * n)], axis=1
    )
    natural = np.stack([np.sqrt(abar) + along / norm, square / n], axis=1)
    return standardised, natural, [np.sqrt(abar), 1 - abar], [0.0, 12 / n]


def law_p_values(data: xr.Dataset) -> np.ndarray:
    """P-values of the mean and of the spread over items at each noise level, and of the spread of
    the sum over the levels.

    `data`: `standardised` (noise, item, quantity), numbers of mean 0 and variance 1, and `excess`,
    their excess kurtosis. The sum over L independent levels has variance L; noise that is the same
    at all levels has L**2.
    """
    z = data.standardised.transpose("noise", "item", "quantity").values
    levels, items = z.shape[:2]
    excess = data.excess.transpose("noise", "quantity").values

    def spread(values: np.ndarray, excess: np.ndarray) -> np.ndarray:
        # A sum of squares has mean 1 and variance 2 + excess per item: the gamma law with these
        # moments.
        law = gamma(items / (2 + excess), scale=2 + excess)
        square = (values**2).sum(axis=-2)
        return (2 * np.minimum(law.cdf(square), law.sf(square))).clip(max=1)

    p_values = [2 * norm.sf(np.abs(z.sum(axis=1)) / np.sqrt(items)), spread(z, excess)]
    if levels > 1:
        p_values.append(spread(z.sum(axis=0) / np.sqrt(levels), excess.mean(axis=0) / levels)[None])
    return np.concatenate(p_values)
