"""Parts of an experiment whose noise level is a number of U-turns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_serializer, field_validator
from scipy.special import comb

from uturn.backward.diffusion import DiffusionModel
from uturn.core.checks import expect
from uturn.core.progress import part, portion, units
from uturn.core.protocols import Axes, Backward, Corruption, Noisy, Spec
from uturn.core.random import NOISE, Streams, streams, uniforms
from uturn.core.registry import as_part, check_fit, table_of
from uturn.corruption import COMPACT, Masking
from uturn.corruption.strings import checked_strings
from uturn.sources.strings import num_leaves
from uturn.tools.chains.chain import ChainState, UTurnStep
from uturn.tools.chains.energies import Energy, energy_of
from uturn.tools.chains.probe import ChainReadings

_ROWS = 1024  # chains that step together, at least: several batches of a network


class MaskedLeaves(Masking):
    """Masking of an exact number of leaves, drawn uniformly: the noise level. With one leaf, the U-turn is minimal.

    The evidence is that of `Masking`. (Replacement of an exact number of leaves hides which they are, and its evidence is no
    product over leaves.)
    """

    unit: ClassVar[str] = "masked leaves"
    max_noise: ClassVar[float] = 2.0**20
    kinds: ClassVar[tuple[str, ...]] = ("strings",)

    def corrupt(self, leaves: Any, noise: Any, vocab_size: int, seed: Any = 0) -> Noisy:
        """Mask `noise` leaves of each string (batch, num_leaves)."""
        leaves, count = checked_strings(leaves, noise, vocab_size, np.inf)
        is_number = (count == np.rint(count)).all() and (count <= leaves.shape[1]).all()
        expect(is_number, "noise", noise, f"a whole number of leaves, at most {leaves.shape[1]}")
        order = uniforms(streams(seed, len(leaves), NOISE), leaves.shape[1]).argsort(axis=1).argsort(axis=1)
        return Noisy(np.where(order < count[:, None], -1, leaves), count / leaves.shape[1], vocab_size)

    def axes(self, noise: np.ndarray, source: Any) -> Axes:
        """Those of `Masking` at the share of leaves that is masked."""
        return super().axes(noise / num_leaves(source), source)

    def log_observation_factor(self, noisy: Noisy) -> np.ndarray:
        return -np.log(comb(noisy.values.shape[1], (noisy.values < 0).sum(axis=1)))


COMPACT[MaskedLeaves] = MaskedLeaves.log_evidence


@dataclass(frozen=True, eq=False)
class Start:
    """The originals from which chains of `steps` U-turns start. The backward keeps in `found` what probes read of them."""

    originals: Any
    steps: int
    corruption: Any
    found: dict[str, np.ndarray] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ValueError(f"a chain of U-turns has no noisy datum, and so no {name!r}; choose probes that compare x_k with x_0")


class Repeated(Spec, Corruption):
    """The start of a chain of U-turns. Its noise level is the number of U-turns; `of`, the corruption of each of them."""

    process: ClassVar[str] = "U-turns"
    unit: ClassVar[str] = "U-turns"
    max_noise: ClassVar[float] = 2.0**40
    type: Literal["repeated"] = "repeated"
    of: Any

    @field_validator("of")
    @classmethod
    def _part(cls, given: Any) -> Any:
        return as_part("corruption", given)

    @field_serializer("of")
    def _table(self, of: Any) -> dict[str, Any]:
        return table_of(of)

    def reads(self) -> Sequence[Any]:
        return [self.of]

    def corrupt(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("a chain of U-turns has no noisy datum")

    def observe(self, originals: Any, noise: float, streams: Streams) -> Start:
        expect(noise == int(noise), "noise", noise, "whole numbers of U-turns")
        return Start(originals, int(noise), self.of)

    def axes(self, noise: np.ndarray, source: Any) -> Axes:
        return {}


class RepeatedBackward(Spec, Backward):
    """Chains of U-turns: the corruption of `Repeated`, undone by `of` at one noise level, again and again.

    `of`: the backward of each U-turn; `noise`: its noise level in the unit of the corruption of each. `energy`, `beta`: as in
    `uturn.chain`; an energy is "module:function", or a name with options, such as "symbol number=3". All noise levels (numbers of
    U-turns) of some originals are read off one chain, so that a run costs the U-turns of its longest chains.
    """

    undoes: ClassVar[tuple[str, ...]] = ("U-turns",)
    by_items: ClassVar[bool] = True
    blocks_ahead: ClassVar[int | None] = None
    adds_trajectories: ClassVar[bool] = True
    type: Literal["repeated"] = "repeated"
    of: Any
    noise: float = Field(ge=0, allow_inf_nan=False)
    energy: str | None = None
    beta: float = Field(default=1.0, ge=0, allow_inf_nan=False)

    @field_validator("of")
    @classmethod
    def _part(cls, given: Any) -> Any:
        of = as_part("backward", given)
        expect(not of.has_gaps, "of", of, "a backward that makes U-turns; those of another program cannot be repeated")
        return of

    @field_serializer("of")
    def _table(self, of: Any) -> dict[str, Any]:
        return table_of(of)

    @property
    def shares_batches(self) -> bool:  # type: ignore[override]
        """That of `of`."""
        return bool(self.of.shares_batches)

    @property
    def wants_processes(self) -> bool:
        return bool(self.of.wants_processes)

    def __getattr__(self, name: str) -> Any:
        """What sources and probes ask of a model, such as its tokens, is that of `of`."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.of, name)

    def reads(self) -> Sequence[Any]:
        return [self.of, *([] if self.energy is None else [Energy(self.energy)])]

    def undone(self, corruption: Any, source: Any) -> Any:
        """The start of chains whose U-turns have the corruption that `of` completes."""
        check_fit({"source": source, "corruption": corruption.of, "backward": self.of}, 1)
        return Repeated.model_construct(of=self.of.undone(corruption.of, source))

    def describe(self) -> str:
        return f"chains of U-turns at noise {self.noise:g}: {self.of.describe()}".removesuffix(": ")

    def missing(self, experiment: Any) -> Mapping[str, str]:
        expect(experiment.clones == 1, "clones", experiment.clones, "1: further chains from an original are trajectories")
        told = [probe.has_energy for probe in experiment.probes if isinstance(probe, ChainReadings)]
        fits = all(has_energy == (self.energy is not None) for has_energy in told)
        expect(fits, "probe chain: has_energy", told, f"{self.energy is not None}, as the backward has energy = {self.energy!r}")
        return self.of.missing(experiment)

    def doubts(self, experiment: Any) -> Sequence[str]:
        found, decoder = [*self.of.doubts(experiment)], getattr(self.of, "decoder", None)
        wrong = "" if decoder is None or decoder.is_exact else f"the decoder ({decoder.description})"
        wrong = wrong if experiment.parts.corruption.of.is_bayesian else "a backward by evidence that is no likelihood"
        if isinstance(self.of, DiffusionModel):
            wrong = "a sampler that draws no noise" if not self.of.reverse().is_stochastic else wrong
            wrong = "guidance" if self.of.guidance != 1 else wrong
        target = "p(x) exp(-beta E(x))" if self.energy else "p(x)"
        return [*found, f"{wrong} does not draw from the posterior, so the chain does not keep {target}"] if wrong else found

    def reconstruct(self, noisy: Any, streams: Streams, clones: int = 1) -> Any:
        ((_, made),) = self.reconstruct_stream([(None, noisy, streams)], clones)
        return made

    def reconstruct_stream(self, blocks: Iterable[tuple[Any, Start, Streams]], clones: int = 1) -> Iterator[tuple[Any, Any]]:
        expect(clones == 1, "clones", clones, "1: further chains from an original are trajectories")
        for some in self._groups(blocks):
            with portion(sum(len(of.items) * of.count for _, _, of in some)):
                yield from self._together(some)

    def _groups(self, blocks: Iterable[tuple[Any, Start, Streams]]) -> Iterator[list[tuple[Any, Start, Streams]]]:
        """Blocks whose chains step together: all noise levels of the same items, and several items while batches have room."""
        size = getattr(self, "batch_size", None)
        wanted = max(_ROWS, 4 * size) if isinstance(size, int) else _ROWS
        some, rows, last = list[Any](), 0, b""
        for block in blocks:
            items = block[2].items.tobytes()
            if items != last:
                if rows >= wanted:
                    yield some
                    some, rows = [], 0
                rows += len(block[2].items) * block[2].count
                last = items
            some.append(block)
        if some:
            yield some

    def _together(self, blocks: Sequence[tuple[Any, Start, Streams]]) -> Iterator[tuple[Any, Any]]:
        """Step the chains of some blocks, and give each block its reconstructions when its chains are that long."""
        step = UTurnStep(blocks[0][1].corruption, self.of, self.noise, energy_of(self.energy), self.beta)
        states, seeds, ends = dict[Any, ChainState](), dict[Any, Streams](), dict[Any, int]()
        accepted = dict[Any, np.ndarray]()
        of_block = list[list[Any]]()  # names of the chains of each block, one for each trajectory
        for _, start, of in blocks:
            names = [(of.items.tobytes(), t) for t in of.trajectories]
            for name, t in zip(names, of.trajectories, strict=True):
                if name not in states:
                    states[name] = step.first(start.originals)
                    seeds[name] = Streams(of.seed, of.items, step.noise, range(t, t + 1))
                    accepted[name] = np.zeros(len(of.items))
                ends[name] = max(ends.get(name, 0), start.steps)
            of_block.append(names)
        longest = max(ends.values())
        for k in range(longest + 1):
            if k:
                names = [name for name, end in ends.items() if end >= k]
                with part(1 / (longest - k + 1)), units(sum(len(states[name].accepted) for name in names)):
                    after = step.after([states[name] for name in names], [seeds[name] for name in names])
                for name, state in zip(names, after, strict=True):
                    states[name] = state
                    accepted[name] = accepted[name] + state.accepted
            for (key, start, _), names in zip(blocks, of_block, strict=True):
                if start.steps == k:
                    of_chains = [states[name] for name in names]
                    start.found["accepted"] = np.stack([accepted[name] for name in names], 1) / max(k, 1)
                    if self.energy is not None:
                        start.found["energy"] = np.stack([np.asarray(state.energy) for state in of_chains], 1)
                    yield key, _stacked([_made(state.originals) for state in of_chains])


def _made(originals: Any) -> Any:
    """A block in the form of reconstructions, without the axis of draws."""
    return originals.draw.latents if hasattr(originals, "draw") else originals.data


def _stacked(draws: Sequence[Any]) -> Any:
    """Reconstructions (items, draws, ...) of single draws (items, ...)."""
    if isinstance(draws[0], Mapping):
        return {level: np.stack([of[level] for of in draws], axis=1) for level in draws[0]}
    return np.stack(draws, axis=1)
