"""What a chain of U-turns keeps: the overlap of strings, what was accepted, the energy, and
functions of both ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from uturn.core.checks import expect
from uturn.core.imports import import_function
from uturn.core.inputs import Input
from uturn.core.own_parts import code_digest
from uturn.core.protocols import Probe, Spec, UTurns, Variable
from uturn.exact.inference import infer
from uturn.probes.tokens import runs_kept, spans_of

_GRID = 4  # blocks of an image along each axis, whose means are observables
_GROUPS = 16  # of ids of tokens
_MOST = 16  # components of a vector
_OTHERS = 256  # texts with which an original is compared by chance
_LEVELS = {"strings": "tree_level", "tokens": "span"}  # dims of the overlap


@dataclass(frozen=True)
class OwnFunction(Input):
    """A function of the user, "module:function", and its arguments after the data; a digest of
    its code is its identity.
    """

    path: str
    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def own_code(self) -> Any:
        return import_function(self.path, f"{self.name} = {self.path!r}", "'module:function'")

    def fingerprint(self) -> str:
        return code_digest(self.own_code())

    def __call__(self, data: np.ndarray) -> Any:
        return self.own_code()(data, **dict(self.options))


class ChainReadings(Spec, Probe):
    """Readings of a chain after k U-turns.

    `overlap`, of strings: share of the nodes of each tree level that have the symbol of x_0. Its
    chance is the overlap of two independent strings, sum_a p_i(a)^2 averaged over nodes, from exact
    marginals. `overlap`, of texts: share of the spans of 1, 2, 4, .. tokens that are those of x_0.
    Its chance is the overlap with other texts of the source, at most 256. `accepted`: share of the
    U-turns up to k that were accepted. `energy`: E(x_k), if the chain has one. `before`, `after`:
    functions f(x_0), f(x_k), for `uturn.reversibility`; by default numbers of symbols of each
    level, numbers of tokens (ids modulo 16), means and second moment of blocks of images,
    components and second moment of vectors. `functions`: others, "module:function", each of data
    (batch, ...) to numbers (batch,).
    """

    type: Literal["chain"] = "chain"
    functions: tuple[str, ...] | None = Field(default=None, min_length=1)
    has_energy: bool = False
    batch_invariant: ClassVar[bool] = True

    def reads(self) -> list[OwnFunction]:
        return [OwnFunction(name, "functions") for name in self.functions or ()]

    def variables(self, source: Any) -> dict[str, Variable]:
        dims = ("noise", "item", "trajectory")
        variables = {
            "accepted": Variable(dims, "share of accepted U-turns", bounds=(0, 1), role="record"),
            "before": Variable(
                ("noise", "item", "observable"), "functions of x_0", role="record", pooled=False
            ),
            "after": Variable((*dims, "observable"), "functions of x_k", role="record"),
        }
        if self.has_energy:
            variables["energy"] = Variable(dims, "energy of x_k", group="energy")
        if (dim := _LEVELS.get(source.kind)) is not None:
            # That of x_0 ~ p and x_k ~ p exp(-beta E) is not known.
            chance = None if self.has_energy else "independent_overlap"
            share: dict[str, Any] = {
                "start": 1,
                "bounds": (0, 1),
                "group": "overlap",
                "order": dim,
                "symmetric": True,
            }
            variables["overlap"] = Variable(
                (*dims, dim), "share of x_0 that is left", chance=chance, **share
            )
            words = "overlap of x_0 with other originals"
            variables["independent_overlap"] = Variable(
                ("noise", "item", dim), words, role="record", pooled=False
            )
        return variables

    def coordinates(self, source: Any) -> dict[str, Any]:
        coordinates: dict[str, Any] = {
            "observable": np.array(self.functions or [*map(str, range(_number(source)))])
        }
        if source.kind == "strings":
            coordinates["tree_level"] = np.arange(source.depth + 1)
        if source.kind == "tokens":
            coordinates["span"] = np.array(spans_of(source))
        return coordinates

    def read(self, u_turns: UTurns, source: Any) -> dict[str, np.ndarray]:
        originals = u_turns.originals
        made = u_turns.reconstructions
        expect(
            "accepted" in u_turns.records,
            "probe chain: noisy data",
            type(u_turns.noisy).__name__,
            "corruption 'repeated'",
        )
        readings = dict(u_turns.records)
        if source.kind == "strings":
            before = originals.draw.latents
            readings["overlap"] = np.stack(
                [(made[at] == before[at][:, None]).mean(axis=2) for at in sorted(before)], axis=-1
            )
            readings["independent_overlap"] = np.tile(
                _independent_overlap(originals.rhm), (len(originals.items), 1)
            )
        if source.kind == "tokens":
            others = np.arange(min(_OTHERS, source.count()))
            texts = np.broadcast_to(
                source.ids(others), (len(originals.items), len(others), made.shape[2])
            )
            is_itself = originals.items[:, None, None] == others[:, None]
            readings["overlap"] = _spans_kept(originals, made, source)
            chance = np.where(is_itself, np.nan, _spans_kept(originals, texts, source))
            readings["independent_overlap"] = np.nanmean(chance, axis=1)
        readings["before"] = self._observed(originals, source)
        every = np.ones(len(originals.items), bool)
        by_level = isinstance(made, Mapping)
        after = []
        for k in range(originals.data_of(made).shape[1]):
            of_chain = (
                {at: nodes[:, k : k + 1] for at, nodes in made.items()}
                if by_level
                else made[:, k : k + 1]
            )
            after.append(self._observed(originals.continued(of_chain, every), source))
        readings["after"] = np.stack(after, axis=1)
        return readings

    def _observed(self, block: Any, source: Any) -> np.ndarray:
        """The functions of a block, float64 (batch, functions)."""
        if self.functions is not None:
            return np.stack([np.asarray(of(block.data), float) for of in self.reads()], axis=1)
        if source.kind == "strings":
            levels = [nodes for _, nodes in sorted(block.draw.latents.items())]
            return np.concatenate([_counts(nodes, source.vocab_size) for nodes in levels], axis=1)
        if source.kind == "tokens":
            return _counts(np.where(block.data < 0, -1, block.data % _GROUPS), _GROUPS)
        return _means(block.data)


def _number(source: Any) -> int:
    """Number of the default functions."""
    if source.kind in _LEVELS:
        return (source.depth + 1) * source.vocab_size if source.kind == "strings" else _GROUPS
    return _means(
        np.zeros((1, *(source.image_shape() or next(iter(source.scales().values())).shape)))
    ).shape[1]


def _counts(sites: np.ndarray, v: int) -> np.ndarray:
    """Numbers of the symbols 0 .. v - 1, float64 (batch, v)."""
    return (sites[..., None] == np.arange(v)).sum(axis=1).astype(float)


def _means(data: np.ndarray) -> np.ndarray:
    """Means of the blocks of images, or components of vectors; and the second moment."""
    data = data.astype(float)
    second = (data.reshape(len(data), -1) ** 2).mean(axis=1, keepdims=True)
    if data.ndim == 2:
        return np.concatenate([data[:, :_MOST], second], axis=1)
    rows = [part.mean(axis=2) for part in np.array_split(data, min(_GRID, data.shape[2]), axis=2)]
    blocks = [
        part.mean(axis=2)
        for row in rows
        for part in np.array_split(row, min(_GRID, data.shape[3]), axis=2)
    ]
    return np.concatenate([*blocks, second], axis=1)


def _spans_kept(originals: Any, texts: np.ndarray, source: Any) -> np.ndarray:
    """Share of the spans of each original that stand in texts (items, texts, length) too,
    float64 (items, texts, spans).
    """
    rows = np.repeat(np.arange(len(texts)), texts.shape[1])
    length = texts.shape[2]
    same = originals.data[rows] == texts.reshape(-1, length)
    free = originals.free[rows]
    kept = runs_kept(same, free, spans_of(source))
    return kept.reshape(*texts.shape[:2], -1)


@lru_cache(maxsize=1)
def _independent_overlap(rhm: Any) -> np.ndarray:
    """Mean over the nodes of each level of sum_a p_i(a)^2, with the marginals of the grammar,
    (levels,).
    """
    marginals = infer(rhm, np.zeros((1, rhm.num_leaves, rhm.vocab_size), np.float32)).marginals
    return np.array(
        [(marginals[at].astype(float) ** 2).sum(axis=-1).mean() for at in sorted(marginals)]
    )
