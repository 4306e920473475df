"""Probes of a masked model on noisy texts: does what it says about several tokens depend on the
order in which it says it?
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field, JsonValue, field_validator

from uturn.core.checks import expect
from uturn.core.progress import steps
from uturn.core.protocols import Probe, Spec, UTurns, Variable
from uturn.core.random import Purpose, Streams, streams
from uturn.corruption.sampling import MASKED, SymbolBeliefs
from uturn.corruption.unmasking import Decoder
from uturn.sources.tokens import NoisyTokens, TextSource, Tokens
from uturn.tools.audit.likelihood import check_determined, log_likelihoods
from uturn.tools.audit.orders import distance_ranges, drawn_pairs, order_discrepancy

if TYPE_CHECKING:
    from uturn.networks.texts.language import LanguageModel

Texts = UTurns[Tokens, NoisyTokens]
Beliefs = Callable[[np.ndarray, np.ndarray], SymbolBeliefs]
"""Beliefs of the model, as a function (texts, share of masked tokens of each)."""
_LEFT_TO_RIGHT = Decoder("blocks", block=1)


class _OfTheModel(Spec, Probe[Tokens, NoisyTokens, TextSource]):
    """A probe that asks the masked model of the backward about noisy texts; reconstructions are
    not read.
    """

    reads_noisy: ClassVar[bool] = True
    execution: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    kinds: ClassVar[tuple[str, ...]] = ("tokens",)
    batch_size: int | None = Field(default=None, ge=1, le=2**16)

    def model(self, source: TextSource) -> LanguageModel:
        """The masked model of the backward; ValueError if it denoises replaced tokens."""
        from uturn.networks.texts.language import language_of

        model = language_of(source)
        expect(
            model.corruption == "masking",
            "corruption of the model",
            model.corruption,
            "'masking', a masked model",
        )
        return model

    def calls(
        self, model: LanguageModel, values: np.ndarray
    ) -> Iterator[tuple[np.ndarray, Beliefs]]:
        """Rows of texts that share calls of the network, and the beliefs of the model."""
        pieces = model.pieces(self.batch_size, values.shape[1])
        groups = [numbers for numbers, _, _ in model.batches(values, pieces.batch_size)]
        for numbers in steps(groups):
            yield numbers, lambda values, noise: model.beliefs(values, noise, pieces)


class OrderConsistency(_OfTheModel):
    """Whether the conditionals of a masked model belong to one joint law, at the masked texts of
    the run.

    For two masked sites i and j, tokens are drawn in the order i, j and their log-probability is
    compared with that in the order j, i (`uturn.order_discrepancy`). The mean of D over draws and
    over both orders is a divergence, in nats a pair; 0 for one joint law. Each noisy text gives
    `pairs` random pairs in each range of distances 1, 2, 3 to 4, 5 to 8, ..; three texts are read
    for a pair. `batch_size`: texts in a call (execution-only).

    Variables. `order_discrepancy`: mean over all pairs of masked sites; each range counts by its
    share of the pairs of the text. `order_discrepancy_at`: mean over pairs in a range of distances,
    whose largest distance is `pair_distance`. Both are means over the noisy versions of a text; NaN
    where no version has such a pair.
    """

    type: Literal["order_consistency"] = "order_consistency"
    pairs: int = Field(default=1, ge=1)

    def variables(self, source: TextSource) -> dict[str, Variable]:
        self.model(source)
        dims = ("noise", "item")
        words = "inconsistency of two orders of two tokens, nats a pair"
        group = "order consistency"
        unit = "nats a pair"
        return {
            "order_discrepancy": Variable(dims, words, group=group, unit=unit),
            "order_discrepancy_at": Variable(
                (*dims, "pair_distance"), f"{words}, by largest distance", group=group, unit=unit
            ),
        }

    def coordinates(self, source: TextSource) -> dict[str, np.ndarray]:
        return {"pair_distance": distance_ranges(source.max_length)}

    def read(self, u_turns: Texts, source: TextSource) -> dict[str, np.ndarray]:
        items = u_turns.originals.items
        noisy = u_turns.noisy
        versions = len(noisy.values) // len(items)
        keys = Streams(0, items, noisy.noise[0], range(versions)).keys(Purpose.PAIRS)
        ends = distance_ranges(source.max_length)
        sites, shares = self._drawn_pairs(noisy.values, ends, keys)
        exist = np.nonzero(shares)  # (draws, texts, ranges)
        texts = exist[1]
        first, second = sites[exist].T
        pairs = _Pairs(noisy.values[texts], first, second, self._keys(keys, len(ends))[exist])
        found = self._discrepancies(self.model(source), pairs)
        if np.isinf(found).any():
            text = items[texts[np.flatnonzero(np.isinf(found))[0]] // versions]
            raise ValueError(
                f"text {text}: the model draws two tokens in one order that have the probability 0"
                " in the other, so that their divergence is infinite; leave the text out, or the"
                " probe"
            )
        discrepancies = np.full(shares.shape, np.nan)
        discrepancies[exist] = found
        with np.errstate(invalid="ignore"):
            weighted = np.where(shares > 0, shares * discrepancies, 0).sum(2)
            means = weighted / (shares.sum(2) > 0)
        by_range = discrepancies.swapaxes(0, 1).reshape(len(items), -1, len(ends))
        return {
            "order_discrepancy": _mean(means.T.reshape(len(items), -1), 1),
            "order_discrepancy_at": _mean(by_range, 1),
        }

    def _drawn_pairs(
        self, values: np.ndarray, ends: np.ndarray, keys: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sites (draws, texts, ranges, 2) and shares (draws, texts, ranges) of `drawn_pairs`."""
        sites = []
        shares = []
        for draw in range(self.pairs):
            drawn = drawn_pairs(values == MASKED, ends, streams(keys, len(keys), draw))
            sites.append(drawn[0])
            shares.append(drawn[1])
        return np.stack(sites), np.stack(shares)

    def _keys(self, keys: np.ndarray, num_ranges: int) -> np.ndarray:
        """Random streams of the tokens of every pair, (draws, texts, ranges)."""
        of_pairs = []
        for draw in range(self.pairs):
            repeated = streams(keys, len(keys), draw)
            for end in range(num_ranges):
                of_pairs.append(streams(repeated, len(repeated), 2**32 + end))
        table = np.stack(of_pairs, 1).reshape(len(keys), self.pairs, num_ranges)
        return table.swapaxes(0, 1)

    def _discrepancies(self, model: LanguageModel, pairs: _Pairs) -> np.ndarray:
        """`order_discrepancy` of all pairs, (pairs,)."""
        found = np.empty(len(pairs.texts))
        for rows, beliefs in self.calls(model, pairs.texts):
            found[rows] = order_discrepancy(
                _conditionals(beliefs),
                pairs.texts[rows],
                pairs.first[rows],
                pairs.second[rows],
                pairs.keys[rows],
            )
        return found


@dataclass(frozen=True)
class _Pairs:
    """Pairs of masked sites."""

    texts: np.ndarray
    """The text of each pair, int64 (pairs, length)."""
    first: np.ndarray
    """int64 (pairs,)"""
    second: np.ndarray
    """int64 (pairs,)"""
    keys: np.ndarray
    """Random streams, uint64 (pairs,)."""


def _conditionals(beliefs: Beliefs) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """The beliefs of a model as `order_discrepancy` asks for them."""

    def conditionals(values: np.ndarray, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        share = (values == MASKED).sum(1) / (values >= MASKED).sum(1)
        return beliefs(values, share).at(rows, positions)

    return conditionals


DecoderTable = dict[str, JsonValue]
"""Options of a `Decoder`."""


def decoder_of(options: DecoderTable) -> Decoder:
    return Decoder(**options)  # type: ignore[arg-type]


class OrderLikelihood(_OfTheModel):
    """How many nats of the likelihood of a text depend on the order in which its masked tokens are
    revealed.

    The originals are read, given the tokens that trajectory 0 keeps: log q(masked tokens | kept
    tokens), which is exact for decoders whose positions are a function of the tokens already
    revealed (arXiv:2603.01367; `uturn.tools.audit.likelihood`). At noise 1 it is the log-likelihood
    of the whole text. For conditionals of one joint law all decoders with one token a call have the
    same; several tokens a call are drawn independently, so that q is another law.

    `decoders`: tables of options of `uturn.corruption.unmasking.Decoder`, with order "random",
    "blocks", "entropy" or "probability", without remasking and `causal`. `orders`: random orders of
    each text, which are drawn beforehand; the reading is their mean. `batch_size`: texts in a call
    (execution-only). A masked token of a text costs one row of a call for each decoder and random
    order.

    Variables. `left_to_right`: log-likelihood in the order from left to right, one token a call, in
    nats. `order_nats`: that of each decoder, minus `left_to_right`. `random_orders_differ`: mean
    size of the difference of two random orders, one token a call.
    """

    type: Literal["order_likelihood"] = "order_likelihood"
    decoders: tuple[DecoderTable, ...] = ({"order": "entropy"}, {"order": "probability"})
    orders: int = Field(default=2, ge=2)

    @field_validator("decoders")
    @classmethod
    def _known(cls, decoders: tuple[DecoderTable, ...]) -> tuple[DecoderTable, ...]:
        for options in decoders:
            try:
                check_determined(decoder_of(options))
            except TypeError as error:
                raise ValueError(str(error)) from None
        return decoders

    def _decoders(self) -> dict[str, Decoder]:
        """Random order first, then the others, by their names."""
        chosen = [Decoder(), *(decoder_of(options) for options in self.decoders)]
        return {decoder.description.removeprefix("order "): decoder for decoder in chosen}

    def variables(self, source: TextSource) -> dict[str, Variable]:
        self.model(source)
        dims = ("noise", "item")
        unit = "nats a text"
        words = "log-likelihood of the masked tokens of the original"
        group = "order of the likelihood"
        return {
            "left_to_right": Variable(
                dims,
                f"{words}, from left to right, nats",
                group="likelihood in order",
                unit=unit,
                pooled=False,
            ),
            "order_nats": Variable(
                (*dims, "decoder"),
                f"{words}, minus that from left to right, nats",
                group=group,
                unit=unit,
                pooled=False,
            ),
            "random_orders_differ": Variable(
                dims,
                "difference of the log-likelihood of two random orders, nats",
                group=group,
                unit=unit,
                pooled=False,
            ),
        }

    def coordinates(self, source: TextSource) -> dict[str, np.ndarray]:
        return {"decoder": np.array(list(self._decoders()))}

    def read(self, u_turns: Texts, source: TextSource) -> dict[str, np.ndarray]:
        items = u_turns.originals.items
        noisy = u_turns.noisy
        first_versions = noisy.values[:: len(noisy.values) // len(items)]
        keys = Streams(0, items, noisy.noise[0]).keys(Purpose.PAIRS)
        decoders = list(self._decoders().values())
        columns = self._columns(decoders)
        texts = np.repeat(u_turns.originals.data, len(columns), axis=0)
        masked = np.repeat(first_versions, len(columns), axis=0)
        of_columns = [streams(keys, len(keys), column.order) for column in columns]
        row_keys = np.stack(of_columns, 1).ravel()
        found = np.empty(len(texts))
        for rows, beliefs in self.calls(self.model(source), masked):
            chosen = [columns[row % len(columns)].decoder for row in rows]
            found[rows] = log_likelihoods(
                beliefs, texts[rows], masked[rows], row_keys[rows], chosen
            )
        table = found.reshape(len(items), len(columns))
        is_possible = np.isfinite(table).all(1)
        if not is_possible.all():
            text = items[np.flatnonzero(~is_possible)[0]]
            raise ValueError(
                f"the model gives text {text} the probability 0: it never draws one of its tokens,"
                " such as a special one like [SEP]; remove it from the text, or fix it (fixed)"
            )
        means = []
        for decoder in decoders:
            own = [k for k, column in enumerate(columns) if k and column.decoder == decoder]
            means.append(table[:, own].mean(1))
        random = table[:, 1 : 1 + self.orders]
        i, j = np.triu_indices(self.orders, 1)
        return {
            "left_to_right": table[:, 0],
            "order_nats": np.stack(means, 1) - table[:, :1],
            "random_orders_differ": np.abs(random[:, i] - random[:, j]).mean(1),
        }

    def _columns(self, decoders: list[Decoder]) -> list[_Column]:
        """Left to right, then each decoder; a random order stands once for each of `orders`."""
        columns = [_Column(_LEFT_TO_RIGHT, 0)]
        for decoder in decoders:
            repeats = self.orders if decoder.order == "random" else 1
            columns += [_Column(decoder, order) for order in range(repeats)]
        return columns


@dataclass(frozen=True)
class _Column:
    """A likelihood that is measured of each text."""

    decoder: Decoder
    order: int
    """Number of the random stream that draws a random order."""


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of the values that exist; NaN if there are none."""
    exist = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean: np.ndarray = np.where(exist, values, 0).sum(axis) / exist.sum(axis)
    return mean
