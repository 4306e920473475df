"""The reverse process of every Bayesian channel of strings, driven by the posterior of single leaves.

Exact posterior sampling (`uturn.inference.sample_posterior`) draws whole strings. A denoiser knows less: the posterior of every
leaf by itself, `p(x_0^i | observation)`. Many small steps of the reverse process make draws from the joint posterior out of it,
for exact and for learned denoisers alike; few steps draw leaves as if they were independent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from uturn.checks import checked_integer, checked_noise
from uturn.corruption import Corruption, Gaussian, Masking, Noisy, UniformReplacement
from uturn.random import streams, uniforms

if TYPE_CHECKING:
    from uturn.rhm import RandomHierarchyModel

# Of the signal-to-noise ratio r. The error of an Euler step of length h is about h^2 |d mmse/dr|, and the uncertainty about a
# leaf (mmse) dies out as exp(-r/4), a little faster among its neighbours: best is a density of levels falling as exp(-r/6) or so.
_SCALE = 6.0
_MISREAD = -25.0  # log-probability that an unmasked leaf is not what it seems, see ExactDenoiser
_AT_ONCE = 2**23  # numbers (sample, leaf, symbol) held at a time
# Sub-streams of a sample: one a step, and these. Far from the number of any step.
_ORDER, _LAST = 2**62, 2**62 + 1


class Denoiser(Protocol):
    """What a reverse process asks of a denoiser; any object with these members will do."""

    vocab_size: int
    num_leaves: int
    corruption: Corruption
    """The channel it undoes: `Gaussian()`, `Masking()` or `UniformReplacement()`."""

    def posterior(self, noisy: Noisy) -> np.ndarray:
        """Probability of every symbol at every leaf given the observation, float32 (batch, num_leaves, vocab_size)."""
        ...

    def fingerprint(self) -> str:
        """Identity of grammar or weights, recorded with results."""
        ...


class ExactDenoiser:
    """The Bayes-optimal denoiser of a grammar: leaf marginals by belief propagation (Eqs. 7, 8 of arXiv:2402.16991).

    Parameters
    ----------
    rhm : RandomHierarchyModel
    corruption : Gaussian, Masking or UniformReplacement

    Notes
    -----
    Unmasking several leaves at once can make a string that the grammar cannot complete, and whose posterior does not exist. So
    an unmasked leaf is taken to be misread with probability e**-25 per symbol: consistent strings notice nothing (1e-11), and
    others are explained with as few misread leaves as possible.
    """

    def __init__(self, rhm: RandomHierarchyModel, corruption: Corruption) -> None:
        check_channel(corruption)
        self.rhm = rhm
        self.corruption = corruption
        self.vocab_size = rhm.vocab_size
        self.num_leaves = rhm.num_leaves

    def posterior(self, noisy: Noisy) -> np.ndarray:
        """Leaf marginals given the observation, float32 (batch, num_leaves, vocab_size)."""
        from uturn.inference import infer

        evidence = self.corruption.log_evidence(noisy, np.float32)
        if isinstance(self.corruption, Masking):
            evidence = np.maximum(evidence, np.float32(_MISREAD))
        return infer(self.rhm, evidence).marginals[0]

    def fingerprint(self) -> str:
        """SHA-256 of grammar and channel (hexadecimal)."""
        return hashlib.sha256(f"{self.rhm.fingerprint} {self.corruption!r}".encode()).hexdigest()


def denoise(denoiser: Denoiser, noisy: Noisy, steps: int, keys: np.ndarray) -> np.ndarray:
    """Draw strings given observations, with `steps` evaluations of a denoiser.

    All but the last evaluation make a step of the reverse process to a lower noise level; after the last one every leaf is
    drawn from its own posterior. With the exact denoiser the strings follow the joint posterior as the number of steps grows, and
    the product of its marginals for one step.

    - Gaussian: ancestral sampling of the one-hot leaves (diffusers' DDIM scheduler with eta = 1, which is DDPM). For x_0 held at
      its posterior mean over a step, this is the Euler step of `dy = E[x_0 | y] dr + dB`, `y = x_t sqrt(abar)/(1 - abar)`, whose
      time is the signal-to-noise ratio `r = abar/(1 - abar)`. Of K levels, number k = 0, 1, .. is at `r_0 - 6 log(1 - k/K)`.
    - Masking: leaves are unmasked in random order, in groups of equal size. One at a time (steps >= masked leaves) is exact.
    - Uniform replacement: `q(x_s | x_t) = sum_a p(x_0 = a | x_t) q(x_s | x_t, x_0 = a)` leaf by leaf (arXiv:2107.03006), the
      replaced fraction going to 0 in equal steps.

    Parameters
    ----------
    denoiser : Denoiser
    noisy : Noisy
        Observations by the denoiser's channel; noise levels may differ between samples, and full noise generates strings from
        nothing.
    steps : int >= 1
    keys : uint64 (batch,)
        One stream of random numbers for each sample (`uturn.random.keys`), on which alone its string depends.

    Returns
    -------
    int64 (batch, num_leaves)
        A sample without noise (or with so little that nothing is in doubt) is returned as it is.

    Raises
    ------
    ValueError
        If the observation is not one of the denoiser's channel, vocabulary and length, or a posterior is not a distribution.

    Examples
    --------
    >>> import uturn as ut
    >>> rhm = ut.RandomHierarchyModel(vocab_size=8, multiplicity=2, branching=2, depth=3, seed=0)
    >>> nothing = Noisy(np.full((5, 8), -1), np.ones(5), 8)
    >>> strings = denoise(ExactDenoiser(rhm, Masking()), nothing, steps=8, keys=ut.random.keys(0, range(5)))
    >>> bool(rhm.parse(strings).valid[3].all())
    True
    """
    steps = checked_integer("steps", steps, 1)
    check_channel(denoiser.corruption)
    noisy = checked_observation(denoiser, noisy)
    keys = streams(np.asarray(keys), len(noisy.noise))
    reverse = _REVERSE[type(denoiser.corruption)]
    out = np.empty((len(keys), denoiser.num_leaves), np.int64)
    at_once = max(1, _AT_ONCE // (denoiser.num_leaves * denoiser.vocab_size))
    for rows in _equal_noise(noisy.noise, at_once):
        part = Noisy(noisy.values[rows], noisy.noise[rows], noisy.vocab_size)
        clean = part.noise[0] <= _CLEAN[type(denoiser.corruption)]
        out[rows] = _observed(part) if clean else reverse(denoiser, part, steps, keys[rows])
    return out


def _gaussian(denoiser: Denoiser, noisy: Noisy, steps: int, keys: np.ndarray) -> np.ndarray:
    import torch

    from uturn.random import normals

    batch, d, v = noisy.values.shape
    if steps > 1:
        start = 1 / np.expm1(2 * min(noisy.noise[0], 300.0))  # beyond, nothing is seen and exp overflows
        scheduler = _ancestral_scheduler(start, steps)
        abar = scheduler.alphas_cumprod.numpy()
        state = torch.from_numpy(noisy.values.astype(np.float32))
        for step, timestep in enumerate(range(steps - 1, 0, -1)):  # timestep 0 is the level of the last draw
            mean = torch.from_numpy(checked_posterior(denoiser, noisy))
            noise = torch.from_numpy(normals(streams(keys, batch, step), d * v).reshape(batch, d, v))
            state = scheduler.step(mean, timestep, state, eta=1.0, variance_noise=noise).prev_sample
            noisy = Noisy(state.numpy(), np.full(batch, -0.5 * np.log(abar[timestep - 1], dtype=np.float64)), v)
    return _drawn(checked_posterior(denoiser, noisy), keys, _LAST)


def _ancestral_scheduler(start: float, steps: int) -> Any:
    """DDIM scheduler whose training timesteps are the grid itself, from steps - 1 (the observation) to 0 (the last draw)."""
    import diffusers

    # Below 1e-4 next to nothing is seen, and the scheduler would take roots of rounding errors.
    r = max(start, 1e-4) - _SCALE * np.log1p(-np.arange(steps)[::-1] / steps)
    abar = r / (1 + r)
    betas = 1 - abar / np.r_[1.0, abar[:-1]]
    scheduler: Any = diffusers.DDIMScheduler(
        num_train_timesteps=steps,
        trained_betas=betas.tolist(),
        prediction_type="sample",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    scheduler.set_timesteps(steps)
    return scheduler


def _masking(denoiser: Denoiser, noisy: Noisy, steps: int, keys: np.ndarray) -> np.ndarray:
    leaves = noisy.values.copy()
    batch, d = leaves.shape
    hidden = leaves < 0
    order = np.where(hidden, uniforms(streams(keys, batch, _ORDER), d), 2.0)
    rank = order.argsort(axis=1).argsort(axis=1)  # of the hidden leaves: 0, 1, ..
    masked = hidden.sum(axis=1)
    groups = np.minimum(masked, steps)
    for step in range(int(groups.max(initial=0))):
        active = np.flatnonzero(groups > step)
        first, end = (masked[active] * k // groups[active] for k in (step, step + 1))
        share = (masked[active] - first) / d
        now = Noisy(leaves[active], share if step else noisy.noise[active], noisy.vocab_size)
        drawn = _drawn(checked_posterior(denoiser, now), keys[active], step)
        chosen = (rank[active] >= first[:, None]) & (rank[active] < end[:, None]) & hidden[active]
        leaves[active] = np.where(chosen, drawn, leaves[active])
    return leaves


def _uniform(denoiser: Denoiser, noisy: Noisy, steps: int, keys: np.ndarray) -> np.ndarray:
    v = noisy.vocab_size
    for step, (now, later) in enumerate(_pairs(1 - noisy.noise[0] * np.arange(steps, 0, -1) / steps)):
        at = noisy.values[..., None]
        belief = checked_posterior(denoiser, noisy)
        # q(x_s = b | x_t, x_0 = a) = q(x_t | b) q(b | a) / q(x_t | a), summed over a with the weights p(a | x_t) / q(x_t | a).
        ratio = now / later
        belief = belief.astype(np.float64) / _replaced(np.arange(v) == at, now, v)
        law = _replaced(np.arange(v) == at, ratio, v) * (later * belief + (1 - later) / v * belief.sum(-1, keepdims=True))
        noisy = Noisy(_drawn(law, keys, step), np.full(len(keys), 1 - later), v)
    return _drawn(checked_posterior(denoiser, noisy), keys, _LAST)


def _replaced(same: np.ndarray, alpha: float, v: int) -> np.ndarray:
    return np.where(same, alpha + (1 - alpha) / v, (1 - alpha) / v)


def _pairs(levels: np.ndarray) -> Iterator[tuple[float, float]]:
    return zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True)


_REVERSE = {Gaussian: _gaussian, Masking: _masking, UniformReplacement: _uniform}
# Noise that leaves no doubt in float64 (Gaussian: one standard deviation is 1e-3 of a one-hot component), where nothing is drawn.
_CLEAN = {Gaussian: 5e-7, Masking: 0.0, UniformReplacement: 1e-15}


def checked_posterior(denoiser: Denoiser, noisy: Noisy) -> np.ndarray:
    """The posterior of a denoiser as float32, or a ValueError if it is not a distribution at every leaf."""
    belief = np.asarray(denoiser.posterior(noisy), np.float32)
    shape = (len(noisy.noise), denoiser.num_leaves, denoiser.vocab_size)
    if belief.shape != shape:
        raise ValueError(f"posterior of {type(denoiser).__name__} has shape {belief.shape}; expected {shape}")
    total = belief.sum(-1)
    if not (belief.min(initial=0) >= 0 and np.abs(total - 1).max(initial=0) < 1e-3):  # also catches NaN
        sample, leaf = np.argwhere(~(np.abs(total - 1) < 1e-3) | (belief < 0).any(-1))[0]
        raise ValueError(
            f"posterior of {type(denoiser).__name__} is not a distribution at leaf {leaf} of sample {sample}: it adds up to "
            f"{total[sample, leaf]}; expected probabilities (a softmax)"
        )
    return belief


def _drawn(law: np.ndarray, keys: np.ndarray, stream: int) -> np.ndarray:
    """One symbol of every leaf, each by itself, from laws (batch, leaves, v) that need not be normalised."""
    batch, d, v = law.shape
    below = np.cumsum(law, axis=-1, dtype=np.float64)
    height = uniforms(streams(keys, batch, stream), d) * below[..., -1]
    return np.minimum((below <= height[..., None]).sum(-1), v - 1)


def _equal_noise(noise: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Indices of samples of one noise level, at most so many at a time."""
    for level in np.unique(noise):
        rows = np.flatnonzero(noise == level)
        yield from (rows[k : k + most] for k in range(0, len(rows), most))


def _observed(noisy: Noisy) -> np.ndarray:
    """The symbols that an observation without noise shows."""
    return noisy.values.argmax(-1) if noisy.values.ndim == 3 else noisy.values


def check_channel(corruption: Any) -> None:
    """ValueError for a corruption that has no reverse process."""
    if type(corruption) not in (Gaussian, Masking, UniformReplacement):
        raise ValueError(
            f"corruption = {corruption!r}: a reverse process needs a Bayesian channel that draws noise; expected Gaussian(), "
            f"Masking() or UniformReplacement()"
        )


def checked_observation(denoiser: Denoiser, noisy: Noisy) -> Noisy:
    """An observation by the denoiser's channel, one noise level per sample, or a ValueError that says what is wrong with it."""
    if not isinstance(noisy, Noisy):
        raise ValueError(f"noisy is a {type(noisy).__name__}; expected a Noisy, as corrupt() of {denoiser.corruption!r} makes it")
    values, d, v = np.asarray(noisy.values), denoiser.num_leaves, denoiser.vocab_size
    gaussian = isinstance(denoiser.corruption, Gaussian)
    expected = (*values.shape[:1], d, v) if gaussian else (*values.shape[:1], d)
    if values.shape != expected or noisy.vocab_size != v:
        raise ValueError(
            f"noisy holds values of shape {values.shape} over {noisy.vocab_size} symbols; expected "
            f"{('batch', *expected[1:])} over {v}"
        )
    noise = np.array(np.broadcast_to(checked_noise(noisy.noise, denoiser.corruption.max_noise, len(values)), len(values)))
    if gaussian:
        good = values.dtype.kind == "f" and bool(np.isfinite(values).all())
        wanted = "finite floats"
    else:
        least = -1 if isinstance(denoiser.corruption, Masking) else 0
        good = values.dtype.kind in "iu" and bool(((values >= least) & (values < v)).all())
        wanted = f"integers {least}..{v - 1}"
    if good and gaussian:
        still = values[noise == 0]
        good = bool(((still == 0) | (still == 1)).all() and (still.sum(axis=-1) == 1).all())
        wanted = "one-hot leaves where noise = 0"
    elif good:
        good = not (values[noise == 0] < 0).any()
        wanted = "no masked leaf where noise = 0"
    if not good:
        raise ValueError(f"noisy.values are not what {denoiser.corruption!r} makes; expected {wanted}")
    return Noisy(values if gaussian else values.astype(np.int64, copy=False), noise, v)
