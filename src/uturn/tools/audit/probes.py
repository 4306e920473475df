"""Probes of a masked model on noisy texts: does what it says about several tokens depend on the
order in which it says it?
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from uturn.core.checks import expect
from uturn.core.progress import steps
from uturn.core.protocols import Probe, Spec, UTurns, Variable
from uturn.core.random import Purpose, Streams, streams
from uturn.corruption.sampling import MASKED
from uturn.corruption.unmasking import Decoder
from uturn.tools.audit.likelihood import check_determined, log_likelihoods
from uturn.tools.audit.orders import distance_ranges, drawn_pairs, order_discrepancy

if TYPE_CHECKING:
    from uturn.networks.texts.language import LanguageModel

_LEFT_TO_RIGHT = Decoder("blocks", block=1)


class _OfTheModel(Spec, Probe):
    """A probe that asks the masked model of the backward about noisy texts; reconstructions are
    not read.
    """

    execution: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    kinds: ClassVar[tuple[str, ...]] = ("tokens",)
    batch_size: int | None = Field(default=None, ge=1, le=2**16)

    def model(self, source: Any) -> LanguageModel:
        """The masked model of the backward; ValueError if it denoises replaced tokens."""
        model: LanguageModel = source.language()
        expect(
            model.corruption == "masking",
            "corruption of the model",
            model.corruption,
            "'masking', a masked model",
        )
        return model

    def calls(self, model: LanguageModel, values: np.ndarray) -> Iterator[tuple[np.ndarray, Any]]:
        """Rows of texts that share calls of the network, and the beliefs of the model as a
        function (values, noise).
        """
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

    def variables(self, source: Any) -> dict[str, Variable]:
        self.model(source)
        how: dict[str, Any] = {"group": "order consistency", "unit": "nats a pair"}
        dims, words = ("noise", "item"), "inconsistency of two orders of two tokens, nats a pair"
        return {
            "order_discrepancy": Variable(dims, words, **how),
            "order_discrepancy_at": Variable(
                (*dims, "pair_distance"), f"{words}, by largest distance", **how
            ),
        }

    def coordinates(self, source: Any) -> dict[str, Any]:
        return {"pair_distance": distance_ranges(source.max_length)}

    def read(self, u_turns: UTurns, source: Any) -> dict[str, np.ndarray]:
        items, noisy = u_turns.originals.items, u_turns.noisy
        keys = Streams(0, items, noisy.noise[0], range(len(noisy.values) // len(items))).keys(
            Purpose.PAIRS
        )
        ends = distance_ranges(source.max_length)
        repeated = [streams(keys, len(keys), draw) for draw in range(self.pairs)]
        drawn = [drawn_pairs(noisy.values == MASKED, ends, of) for of in repeated]
        # (draws, texts, ranges, ..).
        sites, shares = (np.stack(of) for of in zip(*drawn, strict=True))
        discrepancies = np.full(shares.shape, np.nan)
        exist = np.nonzero(shares)
        first, second = sites[exist].T
        of_pairs = np.stack(
            [streams(of, len(of), 2**32 + end) for of in repeated for end in range(len(ends))], 1
        )
        of_pairs = of_pairs.reshape(len(keys), self.pairs, len(ends)).swapaxes(0, 1)[exist]
        discrepancies[exist] = self._discrepancies(
            self.model(source), noisy.values[exist[1]], first, second, of_pairs
        )
        if np.isinf(discrepancies).any():
            text = items[
                exist[1][np.flatnonzero(np.isinf(discrepancies[exist]))[0]]
                // (len(keys) // len(items))
            ]
            raise ValueError(
                f"text {text}: the model draws two tokens in one order that have the probability 0"
                " in the other, so that their divergence is infinite; leave the text out, or the"
                " probe"
            )
        with np.errstate(invalid="ignore"):
            of_all = np.where(shares > 0, shares * discrepancies, 0).sum(2) / (shares.sum(2) > 0)
        by_item = (len(items), -1)
        return {
            "order_discrepancy": _mean(of_all.T.reshape(*by_item), 1),
            "order_discrepancy_at": _mean(
                discrepancies.swapaxes(0, 1).reshape(*by_item, len(ends)), 1
            ),
        }

    def _discrepancies(
        self,
        model: LanguageModel,
        texts: np.ndarray,
        first: np.ndarray,
        second: np.ndarray,
        keys: np.ndarray,
    ) -> np.ndarray:
        out = np.empty(len(texts))
        for some, beliefs in self.calls(model, texts):

            def conditionals(
                values: np.ndarray, rows: np.ndarray, positions: np.ndarray, beliefs: Any = beliefs
            ) -> np.ndarray:
                law: np.ndarray = beliefs(
                    values, (values == MASKED).sum(1) / (values >= MASKED).sum(1)
                ).at(rows, positions)
                return law

            out[some] = order_discrepancy(
                conditionals, texts[some], first[some], second[some], keys[some]
            )
        return out


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
    decoders: tuple[dict[str, Any], ...] = ({"order": "entropy"}, {"order": "probability"})
    orders: int = Field(default=2, ge=2)

    @field_validator("decoders")
    @classmethod
    def _known(cls, decoders: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for options in decoders:
            try:
                check_determined(Decoder(**options))
            except TypeError as error:
                raise ValueError(str(error)) from None
        return decoders

    def _decoders(self) -> dict[str, Decoder]:
        """Random order first, then the others, by their names."""
        chosen = [Decoder(), *(Decoder(**options) for options in self.decoders)]
        return {decoder.description.removeprefix("order "): decoder for decoder in chosen}

    def variables(self, source: Any) -> dict[str, Variable]:
        self.model(source)
        dims = ("noise", "item")
        how: dict[str, Any] = {"unit": "nats a text", "pooled": False}
        words = "log-likelihood of the masked tokens of the original"
        nats: dict[str, Any] = {"group": "order of the likelihood", **how}
        return {
            "left_to_right": Variable(
                dims, f"{words}, from left to right, nats", group="likelihood in order", **how
            ),
            "order_nats": Variable(
                (*dims, "decoder"), f"{words}, minus that from left to right, nats", **nats
            ),
            "random_orders_differ": Variable(
                dims, "difference of the log-likelihood of two random orders, nats", **nats
            ),
        }

    def coordinates(self, source: Any) -> dict[str, Any]:
        return {"decoder": np.array(list(self._decoders()))}

    def read(self, u_turns: UTurns, source: Any) -> dict[str, np.ndarray]:
        items, noisy = u_turns.originals.items, u_turns.noisy
        values = noisy.values[:: len(noisy.values) // len(items)]
        keys = Streams(0, items, noisy.noise[0]).keys(Purpose.PAIRS)
        # One row for each text and decoder, and for each random order of a text.
        decoders = list(self._decoders().values())
        rows = [
            (_LEFT_TO_RIGHT, 0),
            *(
                (of, k)
                for of in decoders
                for k in range(self.orders if of.order == "random" else 1)
            ),
        ]
        texts, masked = (
            np.repeat(ids, len(rows), axis=0) for ids in (u_turns.originals.data, values)
        )
        of_rows = np.stack([streams(keys, len(keys), k) for _, k in rows], 1).ravel()
        model, out = self.model(source), np.empty(len(texts))
        for some, beliefs in self.calls(model, masked):
            chosen = [rows[row % len(rows)][0] for row in some]
            out[some] = log_likelihoods(beliefs, texts[some], masked[some], of_rows[some], chosen)
        table = out.reshape(len(items), len(rows))
        if not (possible := np.isfinite(table).all(1)).all():
            text = items[np.flatnonzero(~possible)[0]]
            raise ValueError(
                f"the model gives text {text} the probability 0: it never draws one of its tokens,"
                " such as a special one like [SEP]; remove it from the text, or fix it (fixed)"
            )
        means = [
            table[:, [k for k, (of, _) in enumerate(rows) if k and of == decoder]].mean(1)
            for decoder in decoders
        ]
        random = table[:, 1 : 1 + self.orders]
        i, j = np.triu_indices(self.orders, 1)
        return {
            "left_to_right": table[:, 0],
            "order_nats": np.stack(means, 1) - table[:, :1],
            "random_orders_differ": np.abs(random[:, i] - random[:, j]).mean(1),
        }


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of the values that exist; NaN if there are none."""
    exist = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(exist, values, 0).sum(axis) / exist.sum(axis)
