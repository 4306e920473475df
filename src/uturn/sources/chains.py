"""Strings of hidden Markov models as originals."""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from uturn.core.checks import expect
from uturn.core.random import Purpose, keys
from uturn.exact.hmm import HiddenMarkovModel
from uturn.sources.strings import StringSource

_MATRICES = ("initial", "transition", "emission")


class HiddenMarkovSource(StringSource):
    """Strings of hidden Markov models, whose tree level 1 are the hidden states; items are spread evenly over `chains` chains.

    Options. `states`, `symbols`, `length`, `persistence`: chains drawn at random, as `HiddenMarkovModel.drawn`. Or `initial`,
    `transition`, `emission`: the matrices of one chain, in place of `states`, `symbols` and `persistence`. Coordinate of `item`:
    `grammar`, the number of the chain.
    """

    site_name: ClassVar[str] = "symbols"
    depth: ClassVar[int] = 1
    type: Literal["hmm"] = "hmm"
    length: int = Field(ge=1)
    states: int | None = Field(default=None, ge=1)
    symbols: int | None = Field(default=None, ge=1)
    persistence: float = Field(default=0.9, ge=0, le=1)
    chains: int = Field(default=1, ge=1)
    initial: tuple[float, ...] | None = None
    transition: tuple[tuple[float, ...], ...] | None = None
    emission: tuple[tuple[float, ...], ...] | None = None

    @model_validator(mode="after")
    def _fits(self) -> HiddenMarkovSource:
        given = [name for name in _MATRICES if getattr(self, name) is not None]
        sizes = [name for name in ("states", "symbols") if getattr(self, name) is not None]
        fits = (len(given) == 3 and not sizes and self.chains == 1) or (not given and len(sizes) == 2)
        expect(fits, "given", given + sizes, f"states and symbols, or all of {', '.join(_MATRICES)} for one chain")
        self.grammar(0, 0)
        return self

    @property
    def number(self) -> tuple[str, int]:
        return "chains", self.chains

    @property
    def vocab_size(self) -> int:
        return self.grammar(0, 0).vocab_size

    @property
    def num_leaves(self) -> int:
        return self.length

    def grammar(self, number: int, seed: int) -> HiddenMarkovModel:
        """Chain `number` (0 .. chains - 1) of an experiment with this seed."""
        return _chain(self, number, seed)


@lru_cache(maxsize=32)
def _chain(source: HiddenMarkovSource, number: int, seed: int) -> HiddenMarkovModel:
    if source.initial is not None:
        return HiddenMarkovModel(source.initial, source.transition, source.emission, length=source.length)
    of_chain = int(keys(seed, Purpose.GRAMMAR, number))
    return HiddenMarkovModel.drawn(source.states or 1, source.symbols or 1, source.length, source.persistence, of_chain)
