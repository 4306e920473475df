"""Probes of tokens: shares of unchanged tokens, runs, regions and segments; and the stored
tokens themselves.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from uturn.core.checks import expect
from uturn.core.protocols import Probe, Spec, UTurns, Variable
from uturn.measures.clones import between_clones


class KeptTokens(Spec, Probe):
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

    def variables(self, source: Any) -> dict[str, Variable]:
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

    def coordinates(self, source: Any) -> dict[str, Any]:
        added: dict[str, Any] = {"span": np.array(self._spans(source))}
        return added | {"region": np.array(source.regions)} if source.regions else added

    def _spans(self, source: Any) -> tuple[int, ...]:
        shortest = int(longest_runs(source.free(np.arange(source.count()))).min())
        if self.spans is None:
            return tuple(2**k for k in range(7) if 2**k <= shortest)
        fits = (
            max(self.spans) <= shortest
            and min(self.spans) > 0
            and len(set(self.spans)) == len(self.spans)
        )
        expect(
            fits,
            "spans",
            self.spans,
            f"different lengths in 1 .. {shortest}, the number of tokens of the shortest text",
        )
        return self.spans

    def read(self, u_turns: UTurns, source: Any) -> dict[str, np.ndarray]:
        before, after, clones = u_turns.originals.data, u_turns.reconstructions, u_turns.clones
        items, draws, length = after.shape
        rows = np.repeat(np.arange(items), draws)
        present = source.free(u_turns.originals.items)[rows]
        same = before[rows] == after.reshape(-1, length)
        spans = self._spans(source)
        readings = {"kept": runs_kept(same, present, spans)}
        if source.regions:
            readings["kept_region"] = _regions_kept(
                same, source.regions_of(u_turns.originals.items)[rows], len(source.regions)
            )
        if source.separators():
            readings["kept_segments"] = _segments_kept(
                same, source.segments_of(u_turns.originals.items)[rows]
            )
        readings = {
            name: values.reshape(items, draws, *values.shape[1:])
            for name, values in readings.items()
        }
        if clones > 1:
            of_noisy = present[::clones]  # one row for each noisy text
            readings["clone_kept"] = between_clones(
                after, clones, lambda a, b: runs_kept(a == b, of_noisy, spans)
            )
        return readings


def runs_kept(same: np.ndarray, present: np.ndarray, spans: tuple[int, ...]) -> np.ndarray:
    """Share of runs of each length in which all tokens are unchanged, (rows, spans); `present`:
    tokens that can change.
    """
    changed, absent = (
        np.pad(np.cumsum(of, axis=1), ((0, 0), (1, 0))) for of in (present & ~same, ~present)
    )
    shares = []
    for span in spans:
        whole, inside = (count[:, span:] == count[:, :-span] for count in (changed, absent))
        shares.append((whole & inside).sum(1) / inside.sum(1))
    return np.stack(shares, axis=1)


def longest_runs(present: np.ndarray) -> np.ndarray:
    """Length of the longest run of True in each row, (rows,)."""
    length = np.zeros(len(present), int)
    longest = length
    for column in present.T:
        length = np.where(column, length + 1, 0)
        longest = np.maximum(longest, length)
    return longest


def _regions_kept(same: np.ndarray, regions: np.ndarray, count: int) -> np.ndarray:
    """Share of tokens kept in each region, (rows, regions); NaN for regions without tokens."""
    inside = regions[..., None] == np.arange(count)
    with np.errstate(invalid="ignore"):
        return (inside & same[..., None]).sum(1) / inside.sum(1)


def _segments_kept(same: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Share of segments whose tokens are all kept, (rows,)."""
    of_each = segments[..., None] == np.arange(segments.max(initial=0) + 1)
    there, lost = of_each.any(1), (of_each & ~same[..., None]).any(1)
    with np.errstate(invalid="ignore"):
        return (there & ~lost).sum(1) / there.sum(1)


class KeepTokens(Spec, Probe):
    """The tokens of reconstructions and of noisy texts; with `first`, of the first items only.

    Variables. `token` and `noisy_token`: ids; -2 beyond the end of a text, NaN for items beyond
    `first`, and in `noisy_token` -1 where masked.
    """

    kinds: ClassVar[tuple[str, ...]] = ("tokens",)
    batch_invariant: ClassVar[bool] = True
    type: Literal["tokens"] = "tokens"
    first: int | None = Field(default=None, ge=1)

    def variables(self, source: Any) -> dict[str, Variable]:
        dims = ("noise", "item", "trajectory", "position")
        return {
            "token": Variable(dims, "id of a reconstructed token", role="record"),
            "noisy_token": Variable(dims, "id of a noisy token, -1 if masked", role="record"),
        }

    def coordinates(self, source: Any) -> dict[str, Any]:
        return {"position": np.arange(source.max_length)}

    def read(self, u_turns: UTurns, source: Any) -> dict[str, np.ndarray]:
        after, clones = u_turns.reconstructions, u_turns.clones
        noisy = np.repeat(
            u_turns.noisy.values.reshape(len(after), -1, after.shape[2]), clones, axis=1
        )
        kept = u_turns.originals.items < (self.first or np.inf)
        return {
            name: np.where(kept[:, None, None], values, np.nan).astype(np.float32)
            for name, values in (("token", after), ("noisy_token", noisy))
        }
