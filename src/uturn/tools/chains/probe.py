"""What a chain of U-turns keeps: the overlap of strings, what was accepted, the energy, and functions of both ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from uturn.core.checks import expect
from uturn.core.protocols import Probe, Spec, UTurns, Variable
from uturn.probes.tokens import KeptTokens, runs_kept
from uturn.tools.chains.energies import OwnFunction

_GRID = 4  # blocks of an image along each axis, whose means are observables
_GROUPS = 16  # of ids of tokens
_MOST = 16  # components of a vector
_OTHERS = 256  # texts with which an original is compared by chance
_LEVELS = {"strings": "tree_level", "tokens": "span"}  # dims of the overlap


class ChainReadings(Spec, Probe):
    """Readings of a chain after k U-turns.

    `overlap`, of strings: share of the nodes of each tree level that have the symbol of x_0. Its chance is the overlap of two
    independent strings, sum_a p_i(a)^2 averaged over nodes, from exact marginals. `overlap`, of texts: share of the spans of 1,
    2, 4, .. tokens that are those of x_0. Its chance is the overlap with other texts of the source, at most 256. `accepted`:
    share of the U-turns up to k that were accepted. `energy`: E(x_k), if the chain has one. `before`, `after`: functions f(x_0),
    f(x_k), for `uturn.reversibility`; by default numbers of symbols of each level, numbers of tokens (ids modulo 16), means and
    second moment of blocks of images, components and second moment of vectors. `functions`: others, "module:function", each of
    data (batch, ...) to numbers (batch,).
    """

    type: Literal["chain"] = "chain"
    functions: tuple[str, ...] | None = Field(default=None, min_length=1)
    has_energy: bool = False
    batch_invariant: ClassVar[bool] = True

    def reads(self) -> list[OwnFunction]:
        return [OwnFunction(name, "functions") for name in self.functions or ()]

    def variables(self, source: Any) -> dict[str, Variable]:
        dims = ("noise", "item", "trajectory")
        found = {
            "accepted": Variable(dims, "share of accepted U-turns", bounds=(0, 1), role="record"),
            "before": Variable(("noise", "item", "observable"), "functions of x_0", role="record", pooled=False),
            "after": Variable((*dims, "observable"), "functions of x_k", role="record"),
        }
        if self.has_energy:
            found["energy"] = Variable(dims, "energy of x_k", group="energy")
        if (dim := _LEVELS.get(source.kind)) is not None:
            chance = None if self.has_energy else "independent_overlap"  # that of x_0 ~ p and x_k ~ p exp(-beta E) is not known
            share: dict[str, Any] = {"start": 1, "bounds": (0, 1), "group": "overlap", "order": dim, "symmetric": True}
            found["overlap"] = Variable((*dims, dim), "share of x_0 that is left", chance=chance, **share)
            words = "overlap of x_0 with other originals"
            found["independent_overlap"] = Variable(("noise", "item", dim), words, role="record", pooled=False)
        return found

    def coordinates(self, source: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if source.kind == "strings":
            found["tree_level"] = np.arange(source.depth + 1)
        if source.kind == "tokens":
            found["span"] = KeptTokens().coordinates(source)["span"]
        found["observable"] = np.array(self.functions or [str(k) for k in range(_count(source))])
        return found

    def read(self, u_turns: UTurns, source: Any) -> dict[str, np.ndarray]:
        originals, made = u_turns.originals, u_turns.reconstructions
        expect(hasattr(u_turns.noisy, "steps"), "probe chain: noisy data", type(u_turns.noisy).__name__, "corruption 'repeated'")
        found = dict(u_turns.noisy.found)
        if source.kind == "strings":
            before = originals.draw.latents
            found["overlap"] = np.stack([(made[at] == before[at][:, None]).mean(axis=2) for at in sorted(before)], axis=-1)
            chance = _independent_overlap(originals.rhm)
            found["independent_overlap"] = np.broadcast_to(chance, (len(originals.items), len(chance)))
        if source.kind == "tokens":
            others = source.ids(np.arange(min(_OTHERS, source.count())))
            is_other = originals.items[:, None] != np.arange(len(others))
            apart = _spans_kept(originals, np.broadcast_to(others, (len(is_other), *others.shape)), source)
            found["overlap"] = _spans_kept(originals, made, source)
            found["independent_overlap"] = np.nanmean(np.where(is_other[..., None], apart, np.nan), axis=1)
        found["before"] = self._observed(originals, source)
        every, by_level = np.ones(len(originals.items), bool), isinstance(made, Mapping)
        chains = [
            {at: nodes[:, k : k + 1] for at, nodes in made.items()} if by_level else made[:, k : k + 1]
            for k in range(originals.data_of(made).shape[1])
        ]
        found["after"] = np.stack([self._observed(originals.continued(one, every), source) for one in chains], axis=1)
        return found

    def _observed(self, block: Any, source: Any) -> np.ndarray:
        """The functions of a block, float64 (batch, functions)."""
        if self.functions is not None:
            return np.stack([np.asarray(of.function(block.data), float) for of in self.reads()], axis=1)
        if source.kind == "strings":
            return _symbol_counts(block.draw.latents, source.vocab_size)
        return _observables(block.data, source)


def _spans_kept(originals: Any, texts: np.ndarray, source: Any) -> np.ndarray:
    """Share of the spans of each original that stand in texts (items, texts, length) too, float64 (items, texts, spans)."""
    rows, length = np.repeat(np.arange(len(texts)), texts.shape[1]), texts.shape[2]
    same, free = originals.data[rows] == texts.reshape(-1, length), originals.free[rows]
    kept = runs_kept(same, free, tuple(KeptTokens().coordinates(source)["span"]))
    return kept.reshape(*texts.shape[:2], -1)


def _count(source: Any) -> int:
    """Number of the default functions."""
    if source.kind == "strings":
        return int((source.depth + 1) * source.vocab_size)
    if source.kind == "tokens":
        return _GROUPS
    if (shape := source.image_shape()) is not None:
        return int(shape[0] * min(_GRID, shape[1]) * min(_GRID, shape[2]) + 1)
    return min(_MOST, len(next(iter(source.scales().values())))) + 1


def _symbol_counts(latents: Any, v: int) -> np.ndarray:
    """Numbers of the symbols of each level, float64 (batch, levels * v)."""
    counts = [(nodes[..., None] == np.arange(v)).sum(axis=1) for _, nodes in sorted(latents.items())]
    return np.concatenate(counts, axis=1).astype(float)


def _observables(data: np.ndarray, source: Any) -> np.ndarray:
    if source.kind == "tokens":
        groups = np.where(data >= 0, data % _GROUPS, -1)
        return (groups[..., None] == np.arange(_GROUPS)).sum(axis=1).astype(float)
    second = (data.reshape(len(data), -1).astype(float) ** 2).mean(axis=1, keepdims=True)
    if data.ndim == 4:
        rows = [part.mean(axis=2) for part in np.array_split(data.astype(float), min(_GRID, data.shape[2]), axis=2)]
        blocks = [part.mean(axis=2) for row in rows for part in np.array_split(row, min(_GRID, data.shape[3]), axis=2)]
        return np.concatenate([*blocks, second], axis=1)
    return np.concatenate([data[:, :_MOST].astype(float), second], axis=1)


_overlaps: dict[int, tuple[Any, np.ndarray]] = {}


def _independent_overlap(rhm: Any) -> np.ndarray:
    """Mean over the nodes of each level of sum_a p_i(a)^2, with the marginals of the grammar, (levels,)."""
    from uturn.exact.inference import infer

    if _overlaps.get(id(rhm), (None,))[0] is not rhm:
        marginals = infer(rhm, np.zeros((1, rhm.num_leaves, rhm.vocab_size), np.float32)).marginals
        shares = [float((marginals[at].astype(float) ** 2).sum(axis=-1).mean()) for at in sorted(marginals)]
        _overlaps.clear()
        _overlaps[id(rhm)] = rhm, np.array(shares)
    return _overlaps[id(rhm)][1]
