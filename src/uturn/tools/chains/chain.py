"""A chain of U-turns: x_(k+1) = U(x_k) at one noise level, accepted or not with an energy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from uturn.backward.queue import Queued
from uturn.core.checks import checked_integer, expect
from uturn.core.contracts import read_only
from uturn.core.protocols import Noisy
from uturn.core.random import Purpose, Streams, checked_seed, keys, uniforms
from uturn.core.u_turns import u_turns
from uturn.corruption.diffusion import Diffusion, ForwardDiffusion


@dataclass(frozen=True)
class ChainState:
    """The states x_k of some chains after `step` = k U-turns.

    `block`: what the next U-turn starts from, the states, or their latents for a latent model;
    `decode`: from these to images. `accepted`, bool (batch,): whether the last U-turn was accepted;
    without an energy all are. `energy`, float64 (batch,): E(x_k) or None.
    """

    block: Any
    step: int
    accepted: np.ndarray
    energy: np.ndarray | None
    decode: Callable[[Any], Any] | None

    @cached_property
    def originals(self) -> Any:
        """The states, as originals of the source of x_0."""
        return (
            self.block
            if self.decode is None
            else replace(self.block, images=self.decode(self.block.images))
        )

    @property
    def data(self) -> np.ndarray:
        """The states in the form of the originals, (batch, ...)."""
        data: np.ndarray = self.originals.data
        return data


@dataclass(frozen=True)
class UTurnStep:
    """One U-turn of a chain: its parts and noise level, and the Metropolis step with `energy` at
    inverse temperature `beta`.

    The state of a latent model is the latent, which passes through the autoencoder at the start and
    for readings alone.
    """

    corruption: Any
    backward: Any
    noise: float
    energy: Callable[[np.ndarray], Any] | None = None
    beta: float = 1.0

    @cached_property
    def _of_states(self) -> tuple[Any, Any]:
        """Corruption and backward of the blocks of states."""
        forward = getattr(self.corruption, "forward", self.corruption)
        if getattr(forward, "codec", None) is None:
            return self.corruption, self.backward
        return _NoisyLatents(forward), _DenoisedLatents(self.backward)

    def first(self, originals: Any) -> ChainState:
        """The state x_0."""
        block = originals
        decode = None
        if isinstance(self._of_states[1], _DenoisedLatents):
            forward = getattr(self.corruption, "forward", self.corruption)
            block = replace(originals, images=forward.clean(originals.images))
            decode = self.backward.reverse().decoded
        return self._with_energy(
            ChainState(block, 0, np.ones(len(originals.items), bool), None, decode)
        )

    def after(self, states: Sequence[ChainState], streams: Sequence[Streams]) -> list[ChainState]:
        """The states after one more U-turn of each, made together.

        `streams`: those of the chains, of one trajectory each. The U-turn number k takes the seed
        `keys(seed, CHAIN, k)`.
        """
        of_step = [
            Streams(
                int(keys(of.seed, Purpose.CHAIN, state.step + 1)),
                of.items,
                self.noise,
                of.trajectories,
            )
            for state, of in zip(states, streams, strict=True)
        ]
        blocks = ((k, state.block, self.noise, of_step[k]) for k, state in enumerate(states))
        after = dict(u_turns(blocks, *self._of_states))
        return [
            self._accepted(state, after[k].reconstructions, of_step[k])
            for k, state in enumerate(states)
        ]

    def _accepted(self, state: ChainState, reconstructions: Any, streams: Streams) -> ChainState:
        every = np.ones(len(state.accepted), bool)
        block = state.block.continued(reconstructions, every)
        proposed = self._with_energy(
            replace(state, block=block, step=state.step + 1, accepted=every)
        )
        if state.energy is None or proposed.energy is None:
            return proposed
        log_u = np.log1p(-uniforms(streams.keys(Purpose.CHAIN), 1)[:, 0])
        accepted = log_u <= -self.beta * (proposed.energy - state.energy)
        block = state.block.continued(reconstructions, accepted)
        energy = np.where(accepted, proposed.energy, state.energy)
        return replace(proposed, block=block, accepted=accepted, energy=energy)

    def _with_energy(self, state: ChainState) -> ChainState:
        if self.energy is None:
            return state
        energy = np.asarray(self.energy(read_only(state.data)), float)
        expect(
            energy.shape == state.accepted.shape,
            "energy: shape",
            energy.shape,
            f"{state.accepted.shape}, one of each datum",
        )
        bad = state.block.items[~np.isfinite(energy)]
        expect(not len(bad), "energy: items where it is not finite", bad, "none")
        return replace(state, energy=energy)


def chain(
    originals: Any,
    corruption: Any,
    backward: Any,
    noise: float,
    *,
    steps: int,
    energy: Any = None,
    beta: float = 1.0,
    streams: Streams | int = 0,
) -> Iterator[ChainState]:
    """Repeat the U-turn: x_(k+1) = U(x_k), starting from the originals; yields the states after
    each U-turn.

    With draws from the posterior the chain keeps the law p of the data, and is reversible. With an
    energy E, a U-turn is accepted with probability min(1, exp(-beta (E(x') - E(x)))), and the chain
    keeps p(x) exp(-beta E(x)). If the backward does not draw from the posterior, the chain keeps
    another law, and nothing in the chain shows it: test it first (`uturn.calibration`).

    `originals`, `corruption`, `backward`, `noise`: those of one U-turn, as in `uturn.u_turn`; a
    block of one's own needs the method `continued`. `steps`: number of U-turns. `energy`: a
    function of the data of a block (batch, ...) to finite numbers (batch,), or a name with options
    (`uturn.tools.chains.energies`); `beta` >= 0: inverse temperature. `streams`: a seed, or
    `Streams` of one trajectory. The U-turn number k has streams of its own, so that a longer chain
    begins with the states of a shorter one.

    Yields a `ChainState` after 1, 2, .., `steps` U-turns. ValueError as in `uturn.u_turn`, for
    ungrammatical strings, and for an energy that is not finite.

    Examples
    --------
    >>> import uturn as ut
    >>> rhm = ut.RandomHierarchyModel(vocab_size=8, multiplicity=2, branching=2, depth=3, seed=0)
    >>> originals = ut.sources.Strings(np.arange(100), rhm, rhm.sample(100, seed=0))
    >>> states = ut.chain(originals, ut.Masking(), ut.backward.ExactPosterior(), 0.3, steps=8)
    >>> [round(float((state.data == originals.data).mean()), 2) for state in states][::7]
    [0.91, 0.57]
    """
    if isinstance(energy, str):
        from uturn.tools.chains.energies import energy_of

        energy = energy_of(energy)
    expect(
        energy is None or callable(energy),
        "energy",
        energy,
        "a function, 'module:function', or a name with options",
    )
    steps = checked_integer("steps", steps, 1)
    expect(0 <= beta < np.inf, "beta", beta, "a finite number of 0 or more")
    of_items = (
        streams
        if isinstance(streams, Streams)
        else Streams(checked_seed(streams, "streams"), originals.items, noise)
    )
    expect(of_items.count == 1, "streams: trajectories", of_items.trajectories, "one")
    step = UTurnStep(corruption, backward, noise, energy, beta)
    return _states(step, originals, of_items, steps)


def _states(step: UTurnStep, originals: Any, streams: Streams, steps: int) -> Iterator[ChainState]:
    state = step.first(originals)
    for _ in range(steps):
        (state,) = step.after([state], [streams])
        yield state


class _NoisyLatents(ForwardDiffusion):
    """The forward process of a latent model, of latents."""

    def __init__(self, forward: ForwardDiffusion) -> None:
        self.__dict__.update(forward.__dict__ | {"codec": None})

    def corrupt(self, latents: np.ndarray, noise: float, keys: np.ndarray) -> Noisy:
        return Noisy(
            self.noised(latents, self.step_of(noise), keys), np.full(len(latents), float(noise))
        )


class _DenoisedLatents(Queued):
    """The backward of a latent model, without its decoder."""

    undoes: ClassVar[tuple[str, ...]] = (Diffusion.process,)

    def __init__(self, model: Any) -> None:
        self.model = model
        self.reverse = model.reverse().without_decoder()

    def works(self, noisy: Any, streams: Streams, clones: int) -> Iterable[Any]:
        return self.model.works(noisy, streams, clones)

    def queue(self, works: Iterator[Any]) -> Iterator[tuple[Any, np.ndarray]]:
        return self.reverse.queue(works)
