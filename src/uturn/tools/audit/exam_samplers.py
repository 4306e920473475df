"""Samplers of discrete diffusion with exact denoisers in two worlds, a Markov chain and a grammar: a measurement of `exam`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
import xarray as xr

from uturn.backward.denoiser import reverse_process
from uturn.core.random import Purpose, keys, uniforms
from uturn.corruption import Masking, Noisy, UniformReplacement
from uturn.corruption.denoising import Denoiser, ExactDenoiser, denoise
from uturn.corruption.unmasking import Decoder, law_of
from uturn.exact.hmm import HiddenMarkovModel
from uturn.exact.rhm import RandomHierarchyModel, zipf
from uturn.measures.calibration import paired
from uturn.paper.workshop import Scale
from uturn.tools.audit.decoder_laws import Recorder, divergence

CHAIN, GRAMMAR = "chain", "grammar"
EXACT = {
    "random order": Decoder(),
    "first hitting": Decoder("first_hitting"),
    "remasked singly": Decoder("random", 8, remask="cap", eta=0.2),
}
"""One token a call, from the posterior. The other samplers are wrong in general:"""
WRONG = {
    "causal blocks of 4": Decoder("blocks", block=4, causal=True),
    "given tokens too": Decoder("random", 8, remask="cap", eta=0.2, remask_given=True),
}
FAMILIES: dict[str, Any] = {
    "random order": lambda steps: Decoder(steps=steps),
    "analytic (MDLM, SEDD)": lambda steps: Decoder("analytic", steps),
    "ReMDM cap": lambda steps: Decoder("analytic", steps, remask="cap", eta=0.2),
    "ReMDM rescale": lambda steps: Decoder("analytic", steps, remask="rescale", eta=0.2),
    "ReMDM conf": lambda steps: Decoder("analytic", steps, remask="conf", eta=1.0),
    "uniform, analytic": lambda steps: Decoder("analytic", steps),
    "uniform, Euler": lambda steps: Decoder("euler", steps),
}
"""Samplers that take a number of steps."""
NOT_ENUMERATED = ("given tokens too", "ReMDM conf")
"""The first costs too much; the law of the second depends on the probabilities of earlier draws."""
READINGS = ("tokens", "pairs", "log-likelihood")
"""What clones are compared in: share of equal tokens, of equal pairs of neighbours; mean log-likelihood, nats a token."""
CLONES = 2
# `masked`: number of masked tokens of each short observation, at random places; of the last one, all right of the kept tokens.
SETTINGS: dict[Scale, dict[str, Any]] = {
    "smoke": {"length": 8, "steps": [2, 4, 8], "masked": [5, 6, 5], "items": 192, "long_steps": [2, 8, 32], "depth": 6},
    "paper": {"length": 8, "steps": [2, 4, 8, 16, 32], "masked": [4, 5, 6, 6, 5], "items": 1024,
              "long_steps": [2, 4, 8, 16, 32], "depth": 6},
}  # fmt: skip
SHARE = 0.7
"""Noise level of the observations, short ones of replaced tokens and all long ones."""
_STREAMS, _STRINGS, _NOISE, _DRAWS = (Purpose.DENOISING, 2), 0, 1, 2


def worlds(num_leaves: int, symbols: int) -> dict[str, Any]:
    """A chain and a grammar of binary rules in which every string is possible. A state of the chain stays with probability .8 and
    is seen as its symbol with probability .9."""
    stay, seen = (np.where(np.eye(symbols), p, (1 - p) / (symbols - 1)) for p in (0.8, 0.9))
    sizes = {"vocab_size": symbols, "multiplicity": symbols, "branching": 2, "depth": int(np.log2(num_leaves))}
    return {
        CHAIN: HiddenMarkovModel(np.full(symbols, 1 / symbols), stay, seen, length=num_leaves),
        GRAMMAR: RandomHierarchyModel(**sizes, rule_probabilities=zipf(symbols, 1.0), seed=0),
    }


def samplers(steps: list[int]) -> dict[str, Decoder]:
    return {**EXACT, **WRONG, **{in_steps(label, k): family(k) for label, family in FAMILIES.items() for k in steps}}


def in_steps(label: str, number: int) -> str:
    """Label of a sampler with a number of steps."""
    return f"{label}, {number} step{'s' if number > 1 else ''}"


def is_of(label: str, names: tuple[str, ...]) -> bool:
    """Whether the label of a sampler is one of the names, with any number of steps."""
    return label.rpartition(", ")[0] in names or label in names


def jobs(scale: Scale) -> dict[str, Any]:
    """Settings and computation by label, for `Workshop.keep_all`."""
    made = {}
    for label, compute, names in (
        ("short", short, ("steps", "length", "masked")),
        ("long", long, ("long_steps", "items", "depth")),
    ):
        plan = {name: SETTINGS[scale][name] for name in names}
        plan["samplers"] = {name: repr(decoder) for name, decoder in samplers(plan[names[0]]).items()}
        made[f"samplers-{label}"] = plan, partial(compute, plan)
    return made


def _keys(use: int, *coordinates: Any) -> np.ndarray:
    return keys(0, *_STREAMS, use, *coordinates)


class AllPossible(Masking):
    """Masking of strings that all have a probability above 0: an exact denoiser needs no misread leaves."""

    misread: ClassVar[float] = -np.inf


class _Tabled:
    """An exact denoiser of masked strings with all its answers in a table."""

    def __init__(self, denoiser: ExactDenoiser) -> None:
        self.corruption, self.vocab_size, self.num_leaves = denoiser.corruption, denoiser.vocab_size, denoiser.num_leaves
        self._place = (self.vocab_size + 1) ** np.arange(self.num_leaves)[::-1]
        every = np.indices((self.vocab_size + 1,) * self.num_leaves).reshape(self.num_leaves, -1).T - 1
        self._answers = denoiser.posterior(Noisy(every, (every < 0).mean(axis=1), self.vocab_size))

    def posterior(self, noisy: Noisy) -> np.ndarray:
        return self._answers[(noisy.values + 1) @ self._place]


def _denoiser(world: Any, label: str) -> ExactDenoiser:
    return ExactDenoiser(world, UniformReplacement() if label.startswith("uniform") else AllPossible())


def draws(denoiser: Denoiser, decoder: Decoder, noisy: Noisy, streams: np.ndarray) -> tuple[np.ndarray, float]:
    """Strings drawn by a sampler, and its mean number of evaluations for a string."""
    recorder = Recorder(denoiser, keep=False)
    strings = denoise(recorder, noisy, decoder.steps or 1, streams, reverse_process(decoder, denoiser.corruption))
    return strings, recorder.evaluations / len(strings)


def observations(world: Any, masked: list[int]) -> np.ndarray:
    """Strings with some masked tokens, in the last one all of them on the right."""
    count, d = len(masked), world.num_leaves
    place = uniforms(_keys(_NOISE, range(count)), d).argsort(axis=1).argsort(axis=1)
    place[-1] = np.arange(d)[::-1]
    leaves = world.sample(count, seed=_keys(_STRINGS, range(count))).leaves
    return np.where(place < np.array(masked)[:, None], -1, leaves)


def short(plan: Mapping[str, Any]) -> xr.Dataset:
    """8 tokens of 3 symbols: `divergence` KL(sampler ‖ posterior) in nats by enumeration, (world, sampler, observation), and
    evaluations of the denoiser for a string, mean over observations and draws, `calls` (world, sampler)."""
    tried = {label: decoder for label, decoder in samplers(plan["steps"]).items() if not is_of(label, NOT_ENUMERATED)}
    found, calls = [], []
    for world in worlds(plan["length"], 3).values():
        masked, table = observations(world, plan["masked"]), _Tabled(ExactDenoiser(world, AllPossible()))
        leaves = world.sample(len(masked), seed=_keys(_STRINGS, range(len(masked)))).leaves
        seen = UniformReplacement().corrupt(leaves, SHARE, 3, _keys(_NOISE, range(len(masked))))
        for label, decoder in tried.items():
            uniform = label.startswith("uniform")
            denoiser = _denoiser(world, label) if uniform else table
            values = seen.values if uniform else masked
            noise = np.full(len(values), SHARE) if uniform else (values < 0).mean(axis=1)
            evidence = UniformReplacement().log_evidence(seen) if uniform else [None] * len(values)
            laws = [law_of(denoiser, row, decoder, level) for row, level in zip(values, noise, strict=True)]
            found.append([divergence(world, row, law, own) for row, law, own in zip(values, laws, evidence, strict=True)])
            copies = Noisy(np.repeat(values, 16, axis=0), np.repeat(noise, 16), 3)
            calls.append(draws(denoiser, decoder, copies, _keys(_DRAWS, range(len(copies.values))))[1])
    shape = (2, len(tried))
    return xr.Dataset(
        {
            "divergence": (("world", "sampler", "observation"), np.reshape(found, (*shape, -1))),
            "calls": (("world", "sampler"), np.reshape(calls, shape)),
        },
        {"world": [CHAIN, GRAMMAR], "sampler": list(tried)},
    )


def long(plan: Mapping[str, Any]) -> xr.Dataset:
    """Clones that every sampler draws from one noisy string of each item, 8 symbols: `READINGS` (world, sampler, item, clone,
    reading) as arguments of `calibrate`, and `calls` (world, sampler). The log-likelihood of a pair is the mean of those of its
    strings, so the gap is the difference of the means of originals and clones."""
    items, tried, results, calls = np.arange(plan["items"]), samplers(plan["long_steps"]), [], []
    for world in worlds(2 ** plan["depth"], 8).values():
        leaves = world.sample(len(items), seed=_keys(_STRINGS, items)).leaves
        for label, decoder in tried.items():
            denoiser = _denoiser(world, label)
            noisy = denoiser.corruption.corrupt(leaves, SHARE, 8, _keys(_NOISE, items))
            copies = Noisy(np.repeat(noisy.values, CLONES, axis=0), np.repeat(noisy.noise, CLONES), 8)
            strings, count = draws(denoiser, decoder, copies, _keys(_DRAWS, items[:, None], np.arange(CLONES)).reshape(-1))
            together = np.concatenate([leaves[:, None], strings.reshape(len(items), CLONES, -1)], axis=1)
            likelihood = world.log_likelihood(together.reshape(-1, world.num_leaves)).reshape(together.shape[:2])
            pairs = [paired(together, partial(equal_runs, length=length)) for length in (1, 2)]
            pairs.append(paired(likelihood / world.num_leaves, lambda a, b: (a + b) / 2))
            results.append([np.stack(values, axis=-1) for values in zip(*pairs, strict=True)])
            calls.append(count)
    shape, dims = (2, len(tried)), ("world", "sampler", "item", "clone", "reading")
    first, rows = (np.reshape([pair[k] for pair in results], (*shape, len(items), CLONES, len(READINGS))) for k in (0, 1))
    return xr.Dataset(
        {"with_original": (dims, first), "with_clones": (dims, rows), "calls": (("world", "sampler"), np.reshape(calls, shape))},
        {"world": [CHAIN, GRAMMAR], "sampler": list(tried), "reading": list(READINGS)},
    )


def equal_runs(a: np.ndarray, b: np.ndarray, length: int) -> np.ndarray:
    """Share of the runs of `length` neighbouring tokens that are equal in two strings (.., tokens)."""
    same = a == b
    return np.lib.stride_tricks.sliding_window_view(same, length, axis=-1).all(axis=-1).mean(axis=-1)
