"""Probes of tokens: shares of unchanged tokens, runs, regions and segments; and the stored
tokens themselves.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PrivateAttr

from uturn.core.checks import expect
from uturn.core.protocols import Probe, Spec, UTurns, Variable
from uturn.probes.comparison import Comparison, Features
from uturn.probes.prepared import Prepared
from uturn.sources.tokens import NoisyTokens, TextSource, Tokens


class KeptTokens(Prepared, Comparison[Tokens, NoisyTokens, TextSource]):
    """Share of tokens that are kept, in U-turns of texts.

    Variables. `kept`: share of runs of `span` = 1, 2, 4, .. neighbouring tokens in which all tokens
    are kept; span 1 gives the share of tokens kept. `kept_region`: share of tokens kept in each
    region of the source (NaN where a text has no such region). `kept_segments`: share of the
    source's segments in which all tokens are kept.

    A run depends on several tokens, so calibration can detect errors of samplers that draw tokens
    independently of each other. Tokens that the source fixes take no part. `spans`: the lengths of
    runs, by default the powers of two up to 64 that are at most the length of the shortest text
    (with fixed tokens, of its longest run without them).
    """

    kinds: ClassVar[tuple[str, ...]] = ("tokens",)
    batch_invariant: ClassVar[bool] = True
    type: Literal["kept_tokens"] = "kept_tokens"
    spans: tuple[int, ...] | None = Field(default=None, min_length=1)
    _spans: tuple[int, ...] = PrivateAttr()

    def prepare(self, source: TextSource) -> None:
        self._spans = spans_of(source, self.spans)

    def variables(self, source: TextSource) -> dict[str, Variable]:
        dims = ("noise", "item", "trajectory")
        share: dict[str, Any] = {"start": 1, "bounds": (0, 1)}
        of_spans: dict[str, Any] = {"group": "tokens", "family": "text", "symmetric": True, **share}
        every = {
            "kept": Variable((*dims, "span"), "share of runs of tokens that are kept", **of_spans)
        }
        if source.regions:
            every["kept_region"] = Variable(
                (*dims, "region"), "share of tokens kept in a region", group="regions", **share
            )
        if source.separators():
            every["kept_segments"] = Variable(
                dims, "share of segments that are kept whole", group="segments", **share
            )
        return every

    def coordinates(self, source: TextSource) -> dict[str, np.ndarray]:
        coordinates = {"span": np.array(self._spans)}
        if source.regions:
            coordinates["region"] = np.array(source.regions)
        return coordinates

    def features(
        self, u_turns: UTurns[Tokens, NoisyTokens], source: TextSource
    ) -> tuple[Features, Features]:
        originals = u_turns.originals
        texts = u_turns.reconstructions
        free = source.free(originals.items)
        return (
            {"text": originals.data, "free": free},
            {"text": texts, "free": np.broadcast_to(free[:, None], texts.shape)},
        )

    def compare(self, first: Features, second: Features) -> dict[str, np.ndarray]:
        is_kept = first["text"] == second["text"]
        return {"kept": runs_kept(is_kept, second["free"], self._spans)}

    def read(
        self, u_turns: UTurns[Tokens, NoisyTokens], source: TextSource
    ) -> dict[str, np.ndarray]:
        readings = super().read(u_turns, source)
        items = u_turns.originals.items
        is_kept = u_turns.originals.data[:, None] == u_turns.reconstructions
        if source.regions:
            regions = source.regions_of(items)[:, None]
            readings["kept_region"] = _regions_kept(is_kept, regions, len(source.regions))
        if source.separators():
            segments = source.segments_of(items)[:, None]
            readings["kept_segments"] = _segments_kept(is_kept, segments)
        return readings


def spans_of(source: TextSource, wanted: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """Lengths of runs of tokens that every text of a source has: those wanted, or the powers of two
    up to 64; ValueError if a text has no run of a wanted length.
    """
    shortest = int(longest_runs(source.free(np.arange(source.count()))).min())
    if wanted is None:
        return tuple(2**k for k in range(7) if 2**k <= shortest)
    is_possible = min(wanted) > 0 and max(wanted) <= shortest
    expect(
        is_possible and len(set(wanted)) == len(wanted),
        "spans",
        wanted,
        f"different lengths in 1 .. {shortest}, the number of tokens of the shortest text",
    )
    return wanted


def runs_kept(is_kept: np.ndarray, is_free: np.ndarray, spans: tuple[int, ...]) -> np.ndarray:
    """Share of runs of each length in which all tokens are kept, (.., spans), from bool (..,
    tokens).

    `is_free`: the tokens that can change; runs with others do not count.
    """
    changed = _counts_before(is_free & ~is_kept)
    fixed = _counts_before(~is_free)
    shares = []
    for span in spans:
        is_inside = fixed[..., span:] == fixed[..., :-span]
        is_whole = changed[..., span:] == changed[..., :-span]
        shares.append((is_whole & is_inside).sum(-1) / is_inside.sum(-1))
    return np.stack(shares, axis=-1)


def _counts_before(is_true: np.ndarray) -> np.ndarray:
    """Number of True before each token and before the end, int (.., tokens + 1)."""
    beginning = np.zeros((*is_true.shape[:-1], 1), int)
    return np.concatenate([beginning, np.cumsum(is_true, axis=-1)], axis=-1)


def longest_runs(present: np.ndarray) -> np.ndarray:
    """Length of the longest run of True in each row, (rows,)."""
    length = np.zeros(len(present), int)
    longest = length
    for column in present.T:
        length = np.where(column, length + 1, 0)
        longest = np.maximum(longest, length)
    return longest


def _regions_kept(is_kept: np.ndarray, regions: np.ndarray, count: int) -> np.ndarray:
    """Share of tokens kept in each region, (.., regions); NaN for regions without tokens."""
    is_inside = regions[..., None] == np.arange(count)
    with np.errstate(invalid="ignore"):
        share: np.ndarray = (is_inside & is_kept[..., None]).sum(-2) / is_inside.sum(-2)
        return share


def _segments_kept(is_kept: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Share of segments whose tokens are all kept, (..,)."""
    is_inside = segments[..., None] == np.arange(segments.max(initial=0) + 1)
    exists = is_inside.any(-2)
    is_lost = (is_inside & ~is_kept[..., None]).any(-2)
    with np.errstate(invalid="ignore"):
        share: np.ndarray = (exists & ~is_lost).sum(-1) / exists.sum(-1)
        return share


class KeepTokens(Spec, Probe[Tokens, NoisyTokens, TextSource]):
    """The tokens of reconstructions and of noisy texts; with `first`, of the first items only.

    Variables. `token` and `noisy_token`: ids; -2 beyond the end of a text, NaN for items beyond
    `first`, and in `noisy_token` -1 where masked.
    """

    reads_noisy: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ("tokens",)
    batch_invariant: ClassVar[bool] = True
    type: Literal["tokens"] = "tokens"
    keeps: ClassVar[str] = "token"
    first: int | None = Field(default=None, ge=1)

    def variables(self, source: TextSource) -> dict[str, Variable]:
        dims = ("noise", "item", "trajectory", "position")
        return {
            "token": Variable(dims, "id of a reconstructed token", role="record"),
            "noisy_token": Variable(dims, "id of a noisy token, -1 if masked", role="record"),
        }

    def coordinates(self, source: TextSource) -> dict[str, np.ndarray]:
        return {"position": np.arange(source.max_length)}

    def read(
        self, u_turns: UTurns[Tokens, NoisyTokens], source: TextSource
    ) -> dict[str, np.ndarray]:
        texts = u_turns.reconstructions
        noisy = u_turns.noisy.values.reshape(len(texts), -1, texts.shape[2])
        noisy = np.repeat(noisy, u_turns.clones, axis=1)
        is_stored = np.full(len(texts), True)
        if self.first is not None:
            is_stored = u_turns.originals.items < self.first
        return {
            name: np.where(is_stored[:, None, None], ids, np.nan).astype(np.float32)
            for name, ids in {"token": texts, "noisy_token": noisy}.items()
        }
