"""Parts of an experiment whose noise level is a number of U-turns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BeforeValidator, Field, PlainSerializer
from scipy.special import comb

from uturn.backward.diffusion import DiffusionModel
from uturn.core.checks import expect
from uturn.core.data import Originals, Reconstructed
from uturn.core.findings import Finding
from uturn.core.progress import part, portion, units
from uturn.core.protocols import Axes, Backward, Corruption, FromFiles, Noisy, Source, Spec
from uturn.core.random import NOISE, Seed, Streams, streams, uniforms
from uturn.core.registry import as_part, check_fit, table_of
from uturn.corruption import Masking
from uturn.corruption.strings import checked_strings
from uturn.tools.chains.chain import ChainState, UTurnStep
from uturn.tools.chains.probe import ChainReadings

_ROWS = 1024  # chains that step together, at least: several batches of a network


class MaskedLeaves(Masking):
    """Masking of an exact number of leaves, drawn uniformly: the noise level. With one leaf, the
    U-turn is minimal.

    The evidence is that of `Masking`. (Replacement of an exact number of leaves hides which they
    are, and its evidence is no product over leaves.)
    """

    unit: ClassVar[str] = "masked leaves"
    max_noise: ClassVar[float] = 2.0**20
    kinds: ClassVar[tuple[str, ...]] = ("strings",)

    def corrupt(
        self, leaves: ArrayLike, noise: ArrayLike, seed: Seed = 0, *, vocab_size: int = 0
    ) -> Noisy:
        """Mask `noise` leaves of each string (batch, num_leaves)."""
        leaves, count = checked_strings(leaves, noise, vocab_size, np.inf)
        _check_whole(count, "leaves", leaves.shape[1])
        order = (
            uniforms(streams(seed, len(leaves), NOISE), leaves.shape[1])
            .argsort(axis=1)
            .argsort(axis=1)
        )
        return Noisy(
            np.where(order < count[:, None], -1, leaves), count / leaves.shape[1], vocab_size
        )

    def axes(self, noise: np.ndarray, source: Any) -> Axes:
        """Those of `Masking` at the share of leaves that is masked."""
        _check_whole(noise, "leaves", source.num_leaves)
        return super().axes(noise / source.num_leaves, source)

    def log_observation_factor(self, noisy: Noisy) -> np.ndarray:
        return -np.log(comb(noisy.values.shape[1], (noisy.values < 0).sum(axis=1)))


def _check_whole(noise: np.ndarray, what: str, most: float) -> None:
    """ValueError unless noise levels are whole numbers up to `most`."""
    bad = noise[(noise != np.rint(noise)) | (noise > most)]
    expect(not len(bad), "noise", bad.tolist(), f"whole numbers of {what}, at most {most:g}")


@dataclass(frozen=True, eq=False)
class ChainStart:
    """The originals from which chains start."""

    originals: Originals
    steps: int
    """U-turns of each chain."""
    corruption: Corruption
    """That of each U-turn."""


class Repeated(Spec, Corruption):
    """The start of a chain of U-turns. Its noise level is the number of U-turns; `of`, the
    corruption of each of them.
    """

    process: ClassVar[str] = "U-turns"
    unit: ClassVar[str] = "U-turns"
    max_noise: ClassVar[float] = 2.0**40
    type: Literal["repeated"] = "repeated"
    of: Annotated[Any, BeforeValidator(partial(as_part, "corruption")), PlainSerializer(table_of)]

    def reads(self) -> Sequence[Any]:
        return [self.of]

    def corrupt(self, data: np.ndarray, noise: float, keys: np.ndarray) -> Any:
        raise ValueError("a chain of U-turns has no noisy datum")

    def observe(self, originals: Any, noise: float, streams: Streams) -> ChainStart:
        return ChainStart(originals, int(noise), self.of)

    def axes(self, noise: np.ndarray, source: Any) -> Axes:
        _check_whole(noise, "U-turns", self.max_noise)
        return {}


class RepeatedBackward(Spec, Backward):
    """Chains of U-turns: the corruption of `Repeated`, undone by `of` at one noise level, again and
    again.

    `of`: the backward of each U-turn; `noise`: its noise level in the unit of the corruption of
    each. `energy`, `beta`: as in `uturn.chain`; an energy is "module:function", or a name with
    options, such as "symbol number=3". All noise levels (numbers of U-turns) of some originals are
    read off one chain, so that a run costs the U-turns of its longest chains.
    """

    undoes: ClassVar[tuple[str, ...]] = ("U-turns",)
    by_items: ClassVar[bool] = True
    blocks_ahead: ClassVar[int | None] = None
    adds_trajectories: ClassVar[bool] = True
    type: Literal["repeated"] = "repeated"
    of: Annotated[Any, BeforeValidator(partial(as_part, "backward")), PlainSerializer(table_of)]
    noise: float = Field(ge=0, allow_inf_nan=False, strict=True)
    energy: str | None = None
    beta: float = Field(default=1.0, ge=0, allow_inf_nan=False, strict=True)

    @property
    def shares_batches(self) -> bool:  # type: ignore[override]
        """That of `of`."""
        return bool(self.of.shares_batches)

    @property
    def wants_processes(self) -> bool:
        return bool(self.of.wants_processes)

    @property
    def data_in_call(self) -> int | None:
        count: int | None = self.of.data_in_call
        return count

    @property
    def single_u_turn(self) -> Backward:
        backward: Backward = self.of.single_u_turn
        return backward

    def model_check(self, source: Source, originals: Sequence[Originals]) -> list[Finding]:
        """Suspected faults of the backward that is repeated."""
        check = getattr(self.of, "model_check", None)
        findings: list[Finding] = [] if check is None else check(source, originals)
        return findings

    def reads(self) -> Sequence[Any]:
        return [self.of, *([] if self.energy is None else [self._energy()])]

    def _energy(self, source: Any = None) -> Any:
        if self.energy is None:
            return None
        # Only where needed, since it imports torch.
        from uturn.tools.chains.energies import energy_of

        return energy_of(self.energy, source)

    def check(self, source: Source, corruption: Any) -> None:
        expect(
            not isinstance(self.of, FromFiles),
            "of",
            self.of,
            "a backward that makes U-turns; those of another program cannot be repeated",
        )
        check_fit(source, corruption.of, self.of, [], 1)
        of = corruption.of
        self.of.check(source, of)
        expect(
            self.noise <= of.max_noise,
            "backward.noise",
            self.noise,
            f"at most {of.max_noise:g} ({of.unit})",
        )
        self._energy(source)

    def forward_process(self, source: Source, corruption: Any = None) -> Repeated | None:
        """The start of chains whose U-turns have the forward process of `of`."""
        forward = self.of.forward_process(source, corruption and corruption.of)
        of = corruption.of if forward is None else forward
        of.axes(np.array([self.noise]), source)  # which checks numbers of leaves
        return Repeated.model_construct(of=of)

    def describe(self) -> str:
        return f"chains of U-turns at noise {self.noise:g}: {self.of.describe()}".removesuffix(": ")

    def missing(self, experiment: Any) -> Mapping[str, str]:
        expect(
            experiment.clones == 1,
            "clones",
            experiment.clones,
            "1: further chains from an original are trajectories",
        )
        reading = [probe.probe_name for probe in experiment.probes if probe.reads_noisy]
        expect(
            not reading,
            "probes",
            reading,
            "probes that compare x_k with x_0; a chain of U-turns has no noisy datum",
        )
        told = [probe.has_energy for probe in experiment.probes if isinstance(probe, ChainReadings)]
        fits = all(has_energy == (self.energy is not None) for has_energy in told)
        expect(
            fits,
            "probe chain: has_energy",
            told,
            f"{self.energy is not None}, as the backward has energy = {self.energy!r}",
        )
        return self.of.missing(experiment)

    def doubts(self, experiment: Any) -> Sequence[str]:
        self.missing(experiment)  # whose errors `uturn check` would not see
        wrong = list[str]()
        decoder = getattr(self.of, "decoder", None)
        if not experiment.parts.corruption.of.is_bayesian:
            wrong.append("evidence that is no likelihood")
        if decoder is not None and not decoder.is_exact:
            wrong.append(f"the decoder ({decoder.description})")
        if isinstance(self.of, DiffusionModel):
            wrong += (
                ["a sampler that draws no noise"] if not self.of.reverse().is_stochastic else []
            )
            wrong += ["guidance"] if self.of.guidance != 1 else []
        law = "p(x) exp(-beta E(x))" if self.energy else "p(x)"
        found = (
            f"{one} does not draw from the posterior, so the chain does not keep {law}"
            for one in wrong
        )
        return [*self.of.doubts(experiment), *found]

    def reconstruct(self, noisy: Any, streams: Streams, clones: int = 1) -> Any:
        ((_, made),) = self.reconstruct_stream([(None, noisy, streams)], clones)
        return made

    def reconstruct_stream(
        self, blocks: Iterable[tuple[Any, ChainStart, Streams]], clones: int = 1
    ) -> Iterator[tuple[Any, Any]]:
        for some in self._groups(blocks):
            with portion(sum(len(of.items) * of.count for _, _, of in some)):
                yield from self._together(some)

    def _groups(
        self, blocks: Iterable[tuple[Any, ChainStart, Streams]]
    ) -> Iterator[list[tuple[Any, ChainStart, Streams]]]:
        """Blocks whose chains step together: all noise levels of the same items, and several
        items while batches have room.
        """
        size = getattr(self.of, "batch_size", None)
        wanted = max(_ROWS, 4 * size) if isinstance(size, int) else _ROWS  # it may be "auto"
        some = list[Any]()
        rows = 0
        for _, group in groupby(blocks, key=lambda block: block[2].items.tobytes()):
            if rows >= wanted:
                yield some
                some = []
                rows = 0
            some += group
            rows += len(some[-1][2].items) * some[-1][2].count
        yield some

    def _together(
        self, blocks: Sequence[tuple[Any, ChainStart, Streams]]
    ) -> Iterator[tuple[Any, Any]]:
        """Step the chains of some blocks, and give each block its reconstructions when its
        chains are that long.
        """
        step = UTurnStep(blocks[0][1].corruption, self.of, self.noise, self._energy(), self.beta)
        chains = dict[Any, _Chain]()  # by items and trajectory
        of_block = list[list[_Chain]]()
        for _, start, of in blocks:
            for t in of.trajectories:
                name = of.items.tobytes(), t
                if name not in chains:
                    streams = Streams(of.seed, of.items, step.noise, range(t, t + 1))
                    chains[name] = _Chain(
                        step.first(start.originals), streams, np.zeros(len(of.items))
                    )
                chains[name].steps = max(chains[name].steps, start.steps)
            of_block.append([chains[of.items.tobytes(), t] for t in of.trajectories])
        longest = max(chain.steps for chain in chains.values())
        for k in range(longest + 1):
            moving = [chain for chain in chains.values() if chain.steps >= k > 0]
            if moving:
                with (
                    part(1 / (longest - k + 1)),
                    units(sum(len(chain.state.accepted) for chain in moving)),
                ):
                    after = step.after(
                        [chain.state for chain in moving], [chain.streams for chain in moving]
                    )
                for chain, state in zip(moving, after, strict=True):
                    chain.state, chain.accepted = state, chain.accepted + state.accepted
            for (key, start, _), some in zip(blocks, of_block, strict=True):
                if start.steps == k:
                    yield key, self._reconstructed(some, k)

    def _reconstructed(self, chains: Sequence[_Chain], steps: int) -> Reconstructed:
        """The states of chains of an original after some U-turns, and what was accepted."""
        accepted = np.stack([chain.accepted for chain in chains], 1)
        records = {"accepted": accepted / max(steps, 1)}
        if self.energy is not None:
            energies = [np.asarray(chain.state.energy) for chain in chains]
            records["energy"] = np.stack(energies, 1)
        return Reconstructed(_stacked([chain.state.originals for chain in chains]), records)


@dataclass
class _Chain:
    """A chain under way: its state and streams, how many U-turns were `accepted`, (batch,), and
    how many there will be.
    """

    state: ChainState
    streams: Streams
    accepted: np.ndarray
    steps: int = 0


def _stacked(states: Sequence[Any]) -> Any:
    """Blocks of originals in the form of reconstructions, (items, draws, ...) or {tree_level:
    (items, draws, nodes)}.
    """
    if not hasattr(states[0], "draw"):
        return np.stack([of.data for of in states], axis=1)
    return {
        level: np.stack([of.draw.latents[level] for of in states], axis=1)
        for level in states[0].draw.latents
    }
