"""Reverse processes of the Bayesian channels of strings, driven by the posterior of single leaves.

Exact posterior sampling (`uturn.inference.sample_posterior`) draws whole strings. A denoiser gives
the posterior of each single leaf, `p(x_0^i | x_t)`. With many small steps of the reverse process,
exact or learned denoisers draw from the joint posterior; with few steps, leaves are drawn as if
they were independent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from uturn.core import progress
from uturn.core.checks import checked_integer, checked_noise, expect
from uturn.core.data import checked_noisy
from uturn.core.protocols import Channel, Corruption, Denoiser, Noisy
from uturn.core.random import streams
from uturn.corruption.sampling import MASKED, ArrayBeliefs, Sampler, State

if TYPE_CHECKING:
    from uturn.exact.grammar import Grammar

_MOST_CALLS = 100  # a sampler with more evaluations for each expected one never ends
_AT_ONCE = 2**23  # largest number of values (sample, leaf, symbol) in memory
# Sub-streams of a sample for the order of unmasking and the last draw; the sub-streams 0, 1, .. are
# those of the steps.
ORDER = 2**62
LAST = 2**62 + 1


class ExactDenoiser:
    """The Bayes-optimal denoiser of a grammar: leaf marginals by belief propagation (Eqs. 7, 8 of
    arXiv:2402.16991).

    Unmasking several leaves at once can give a string that the grammar cannot complete, and whose
    posterior does not exist. Therefore an unmasked leaf has each other symbol with relative
    probability e**-25 (`Masking.misread`), which changes the posterior of consistent strings by
    about 1e-11.
    """

    def __init__(self, rhm: Grammar, corruption: Channel) -> None:
        check_channel(corruption)
        self.rhm = rhm
        self.corruption = corruption
        self.vocab_size = rhm.vocab_size
        self.num_leaves = rhm.num_leaves

    def posterior(self, noisy: Noisy) -> np.ndarray:
        """Leaf marginals given the noisy datum, float32 (batch, num_leaves, vocab_size)."""
        from uturn.exact.inference import infer

        evidence = self.corruption.log_evidence(noisy, np.float32)
        if np.isfinite(self.corruption.misread):
            evidence = np.maximum(evidence, np.float32(self.corruption.misread))
        marginals: np.ndarray = infer(self.rhm, evidence).marginals[0]
        return marginals


def denoise(
    denoiser: Denoiser,
    noisy: Noisy,
    steps: int,
    keys: np.ndarray,
    sampler: Sampler | None = None,
) -> np.ndarray:
    """Draw strings given noisy data, with `steps` evaluations of a denoiser.

    Each evaluation but the last makes a step of the reverse process to a lower noise level; after
    the last one every leaf is drawn from its own posterior.

    - Gaussian: ancestral sampling of the one-hot leaves (diffusers' DDIM scheduler with eta = 1,
      which is DDPM). For x_0 held at its posterior mean over a step, this is the Euler step of `dy
      = E[x_0 | y] dr + dB`, `y = x_t sqrt(abar)/(1 - abar)`, whose time is the signal-to-noise
      ratio `r = abar/(1 - abar)`. Of K levels, number k = 0, 1, .. is at `r_0 - 6 log(1 - k/K)`.
    - Masking: leaves are unmasked in random order, in groups of equal size. One at a time (steps >=
      masked leaves) is exact.
    - Uniform replacement: `q(x_s | x_t) = sum_a p(x_0 = a | x_t) q(x_s | x_t, x_0 = a)` leaf by
      leaf (arXiv:2107.03006), the replaced fraction going to 0 in equal steps.

    `noisy`: data of the denoiser's channel; noise levels may differ between samples. `keys`: uint64
    (batch,), one random stream for each sample (`uturn.random.keys`). `sampler`: it replaces the
    reverse process of the channel, and `steps` has no effect. Returns strings, int64 (batch,
    num_leaves); those with noise at most `clean_noise` of the channel are unchanged.
    """
    steps = checked_integer("steps", steps, 1)
    channel = denoiser.corruption
    check_channel(channel)
    noisy = checked_observation(denoiser, noisy)
    keys = streams(np.asarray(keys), len(noisy.noise))
    strings = np.empty((len(keys), denoiser.num_leaves), np.int64)
    at_once = max(1, _AT_ONCE // (denoiser.num_leaves * denoiser.vocab_size))
    for rows in progress.steps(list(_equal_noise(noisy.noise, at_once))):
        group = Noisy(noisy.values[rows], noisy.noise[rows], noisy.vocab_size)
        if group.noise[0] <= channel.clean_noise:
            strings[rows] = channel.shown(group)
        elif sampler is None:
            strings[rows] = channel.reverse(denoiser, group, steps, keys[rows])
        else:
            strings[rows] = drawn(sampler, denoiser, group, keys[rows])
    return strings


def drawn(sampler: Sampler, denoiser: Denoiser, noisy: Noisy, keys: np.ndarray) -> np.ndarray:
    """Strings int64 (batch, length) that a sampler draws from noisy ones with a denoiser.

    `keys`, uint64 (batch,): one random stream for each string, whose draws depend on no other
    stream. An evaluation serves all strings that are not done.
    """
    strings = noisy.values.copy()
    rows = np.arange(len(strings))
    expect(isinstance(sampler, Sampler), "sampler", sampler, "an object of a Sampler")
    name = type(sampler).__name__
    state = _checked_state(f"{name}.start", sampler.start(noisy, keys), len(rows))
    calls = np.asarray(sampler.calls(noisy))
    most = _MOST_CALLS * (1 + int(calls.max(initial=0)))
    num_made = 0
    with progress.units(calls.sum()):
        while True:
            is_waiting = np.asarray(sampler.is_waiting(state))
            form = (is_waiting.dtype, is_waiting.shape)
            fits = form == (np.dtype(bool), rows.shape)
            expect(fits, f"{name}.is_waiting: dtype, shape", form, f"bool {rows.shape}")
            strings[rows[~is_waiting]] = state.values[~is_waiting]
            state = state.rows(is_waiting)
            rows = rows[is_waiting]
            if not rows.size:
                break
            expected = f"at most {most}; `is_waiting` must become False for each string"
            expect(num_made < most, f"{name}: evaluations", num_made, expected)
            question = checked_noisy(sampler.question(state), f"{name}.question", [len(rows)])
            question = replace(question, vocab_size=noisy.vocab_size)
            beliefs = ArrayBeliefs(checked_posterior(denoiser, question))
            state = _checked_state(f"{name}.answered", sampler.answered(state, beliefs), len(rows))
            progress.add(len(rows))
            num_made += 1
    is_wrong = (strings >= denoiser.vocab_size) | ((strings < 0) & (noisy.values >= MASKED))
    expected = f"symbols 0 .. {denoiser.vocab_size - 1}"
    expect(not is_wrong.any(), f"{name}: drawn symbols", strings[is_wrong].tolist(), expected)
    return strings


def _checked_state(where: str, state: State, num_rows: int) -> State:
    """A state of a sampler; ValueError unless it has `num_rows` strings of symbols."""
    expect(isinstance(state, State), where, state, "a uturn.corruption.sampling.State")
    form = (state.values.dtype, state.values.shape[:1])
    fits = state.values.dtype.kind in "iu" and len(state.values) == num_rows
    expected = f"integers ({num_rows}, positions)"
    expect(fits, f"{where}: dtype, rows of values", form, expected)
    return state


def checked_posterior(denoiser: Denoiser, noisy: Noisy) -> np.ndarray:
    """The posterior of a denoiser as float32, or a ValueError if it is not a distribution at
    every leaf.
    """
    belief = np.asarray(denoiser.posterior(noisy), np.float32)
    name = f"the posterior of {type(denoiser).__name__}"
    shape = (len(noisy.noise), denoiser.num_leaves, denoiser.vocab_size)
    expect(belief.shape == shape, f"shape of {name}", belief.shape, str(shape))
    total = belief.sum(-1)
    is_law = belief.min(initial=0) >= 0 and np.abs(total - 1).max(initial=0) < 1e-3  # false for NaN
    expect(is_law, f"sums of {name}", total, "1 at each leaf, of numbers >= 0 (a softmax)")
    return belief


def _equal_noise(noise: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Groups of at most `size` indices of samples with equal noise."""
    for level in np.unique(noise):
        rows = np.flatnonzero(noise == level)
        for start in range(0, len(rows), size):
            yield rows[start : start + size]


def check_channel(corruption: Corruption) -> None:
    """ValueError for a corruption that has no reverse steps."""
    is_reversible = getattr(corruption, "is_reversible", False) and corruption.is_random
    channels = (
        "Gaussian(), Masking(), UniformReplacement(), or a channel of your own that draws noise and"
        " has reverse steps"
    )
    expect(is_reversible, "corruption", corruption, f"{channels} (is_reversible)")


def checked_observation(denoiser: Denoiser, noisy: Noisy) -> Noisy:
    """Noisy data that fit the denoiser, with one noise level for each sample, or a ValueError."""
    channel = denoiser.corruption
    v = denoiser.vocab_size
    values = np.asarray(noisy.values)
    shape = (*values.shape[1:], noisy.vocab_size)
    expected = (*channel.value_shape(denoiser.num_leaves, v), v)
    where = "shape and number of symbols of the noisy values"
    expect(shape == expected, where, shape, str(expected))
    noise = checked_noise(noisy.noise, channel.max_noise, len(values))
    noise = np.array(np.broadcast_to(noise, len(values)))
    return Noisy(channel.checked_values(values, noise, v), noise, v)
