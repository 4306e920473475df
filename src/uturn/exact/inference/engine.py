"""Runs the compiled kernels on whole batches: trees are cut into bands, and tiles are distributed over threads."""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from uturn.core import threads
from uturn.core.memory import aligned
from uturn.exact.inference import kernels
from uturn.exact.inference.evidence import Evidence, check_values
from uturn.exact.inference.simd import LANES
from uturn.exact.inference.tables import Tables, tables_of

Levels = dict[int, np.ndarray]

_TILE_BYTES = 2**20  # upward messages of a tile: half of a usual L2 cache
_BAND_BYTES = 2**19 + 2**16  # upward messages of a tile in a tree cut into bands
_WHOLE_BYTES = 9 * 2**20  # largest upward messages of a tile that may stay whole, although it exceeds the L2 cache
_LINK_BYTES = 2**24  # messages between bands
_LIMITS = {  # see kernels.py, "Range"
    np.dtype(np.float32): kernels.Limits(1e-16, 1e12, 1e-26),
    np.dtype(np.float64): kernels.Limits(1e-150, 1e140, 1e-280),
}


class PreparedGrammar:
    """Bands and rule arrays for the computation of a grammar in one precision.

    A tree that exceeds the cache is cut into bands of levels. The upward pass keeps only the messages of the bands' roots; the
    downward pass computes the upward messages of every band again, which costs less than memory traffic. In a band a lane is a
    subtree, so that one deep sample fills the lanes as well as many shallow ones.

    A tree slightly larger than the cache stays `whole` if many samples fill the lanes, because the L3 cache then costs less than
    computing upward messages again. The cut changes no bit of messages and draws. It changes the last digits of the log-evidence,
    a sum over bands, which is therefore always computed in bands.
    """

    def __init__(self, tables: Tables, dtype: np.dtype, whole: bool = False) -> None:
        v, s, L, n = tables.vocab_size, tables.branching, tables.depth, tables.num_classes
        self.tables, self.dtype = tables, dtype
        self.rules = _kernel_rules(tables, dtype)
        self.one, self.limits = dtype.type(1), _LIMITS[dtype]
        columns = -(-max(v, n) // 4) * 4

        def bytes_of(height: int) -> int:
            return int((s ** (height + 1) - 1) // (s - 1) * columns * LANES * dtype.itemsize)

        height = L
        self.fits_whole = bytes_of(L) <= _WHOLE_BYTES
        if bytes_of(L) > _TILE_BYTES + columns * LANES * dtype.itemsize and not whole:
            height = max([1, *(h for h in range(1, L) if bytes_of(h) <= _BAND_BYTES)])
        count = -(-L // height)
        self.bands = list(pairwise(round(i * L / count) for i in range(count + 1)))
        self.workspace = max(kernels.workspace_size(s, high - low, columns) for low, high in self.bands)
        per_sample = sum(2 * s ** (L - high) * v * dtype.itemsize for _, high in self.bands[:-1])
        self.chunk = max(1, _LINK_BYTES // per_sample) if per_sample else 2**62  # samples at a time
        if self.chunk > LANES:
            self.chunk = self.chunk // LANES * LANES

    def job(self, low: int, high: int, evidence: Evidence, links: Levels, **settings: int) -> kernels.Job:
        """The job of the kernels in a band, which reads evidence, or messages about the roots of the band below."""
        nothing = dict.fromkeys(("root_out", "root_in", "leaf_out", "downward", "logs", "copies", "start"), 0)
        s, L = self.tables.branching, self.tables.depth
        subtrees = s ** (L - high)
        return kernels.Job(
            branching=s,
            low=low,
            high=high,
            top=high == L,
            items=len(evidence) * subtrees,
            subtrees=subtrees,
            source=_address(links[low] if low else evidence.values),
            evidence=kernels.MESSAGES if low else evidence.kind,
            factor=_address(evidence.factor),
            **{**nothing, **settings},
        )

    def links(self, batch: int) -> Levels:
        """Messages about the roots of all bands but the top one."""
        s, L, v = self.tables.branching, self.tables.depth, self.tables.vocab_size
        return {high: aligned((batch, s ** (L - high), v), self.dtype) for _, high in self.bands[:-1]}


_PREPARED: WeakKeyDictionary[Any, dict[tuple[np.dtype, bool], PreparedGrammar]] = WeakKeyDictionary()


def prepared_grammar(rhm: Any, dtype: np.dtype, batch: int = 0) -> PreparedGrammar:
    """A grammar prepared for the kernels, cached; whole trees if a batch size is given that fills lanes and threads."""
    cached = _PREPARED.setdefault(rhm, {})
    if (dtype, False) not in cached:
        cached[dtype, False] = PreparedGrammar(tables_of(rhm), dtype)
    tiles = -(-batch // LANES)
    if not cached[dtype, False].fits_whole or tiles < threads.num_threads or batch < 0.8 * tiles * LANES or not batch:
        return cached[dtype, False]
    if (dtype, True) not in cached:
        cached[dtype, True] = PreparedGrammar(tables_of(rhm), dtype, whole=True)
    return cached[dtype, True]


def _kernel_rules(t: Tables, dtype: np.dtype) -> kernels.Rules:
    (total, s), (index, weight) = t.children.shape, t.by_child
    return kernels.Rules(
        symbols=t.symbols,
        multiplicity=t.multiplicity,
        start=t.rule_start,
        uniform=t.uniform.astype(np.int64),
        up_index=(t.children * LANES).astype(np.uint32).ravel(),
        up_weight=t.probability.astype(dtype),
        down_start=(t.inverse_start + total * np.arange(s)[:, None]).astype(np.uint32).ravel(),
        down_index=(index * LANES).astype(np.uint32).ravel(),
        down_weight=weight.astype(dtype).ravel(),
        class_probability=t.class_probability.astype(dtype),
    )


class Truth(NamedTuple):
    """The true symbols whose marginals are requested, {tree_level: int64 (originals, nodes)}, and samples of each original."""

    symbols: Levels
    copies: int


# -- one chunk of samples ------------------------------------------------------------------------------------------------
def propagate(
    grammar: PreparedGrammar, evidence: Evidence, out: dict[str, Any], first_sample: int = 0, truth: Truth | None = None
) -> list[int]:
    """Fill `out` for a contiguous chunk of samples; return the samples whose numbers left the floating point range.

    `first_sample`: index in the batch of the first sample, for error messages. The names in `out` are those of `infer`,
    and "beliefs", which needs `truth`.
    """
    t, batch = grammar.tables, len(evidence)
    upward, marginals, downward = (_addresses(out.get(name, {}), t.depth) for name in ("upward", "marginals", "downward"))
    symbols, copies = (_addresses(truth.symbols, t.depth), truth.copies) if truth else (np.zeros(t.depth + 1, np.int64), 0)
    go_down = truth is not None or not {"marginals", "downward"}.isdisjoint(out)
    want_logs = "log_evidence" in out
    up_links, down_links = grammar.links(batch), grammar.links(batch) if go_down else {}
    flagged = np.zeros(batch, np.uint8)
    if want_logs:
        out["log_evidence"][:] = 0
    if truth:
        out["beliefs"][:] = 0

    def sweep(low: int, high: int, rising: bool, down: bool) -> None:
        job = grammar.job(
            low,
            high,
            evidence,
            up_links,
            root_out=_address(up_links.get(high)) if rising else 0,
            root_in=_address(down_links.get(high)) if down else 0,
            leaf_out=_address(down_links.get(low)) if down else 0,
            downward=down,
            logs=want_logs and rising,
            copies=copies if down else 0,
            start=first_sample,
        )
        logs, status = np.empty(job.items if job.logs else 0), np.zeros(job.items, np.uint8)
        beliefs = np.zeros((high - low + 1, job.items if job.copies else 0), np.int64)
        wanted = upward if rising else np.zeros_like(upward)
        _over_tiles(grammar, kernels.run_tiles, job, wanted, marginals, downward, logs, symbols, beliefs, status)
        _merge(flagged, status, evidence, first_sample)
        if job.logs:
            out["log_evidence"] += logs.reshape(batch, -1).sum(axis=1)
        if job.copies:
            out["beliefs"][:, low : high + 1] += beliefs.reshape(high - low + 1, batch, -1).sum(axis=2).T

    *lower, top = grammar.bands
    for band in lower:
        sweep(*band, rising=True, down=False)
    sweep(*top, rising=True, down=go_down)
    if go_down:
        for band in reversed(lower):
            sweep(*band, rising=False, down=True)
    return np.flatnonzero(flagged).tolist()


def draw(
    grammar: PreparedGrammar,
    evidence: Evidence,
    keys: np.ndarray,
    numbers: np.ndarray,
    out: Levels,
    stride: int,
    first_sample: int = 0,
) -> list[int]:
    """Fill `out` (draws, samples, nodes) with the draws `numbers` of a contiguous chunk of samples.

    Returns the samples whose numbers left the floating point range. `out` may be part of a larger array, in which draws are
    `stride` samples apart.
    """
    t, batch = grammar.tables, len(evidence)
    nowhere = np.zeros(t.depth + 1, np.int64)
    links, flagged = grammar.links(batch), np.zeros(batch, np.uint8)
    for low, high in grammar.bands[:-1]:
        job = grammar.job(low, high, evidence, links, root_out=_address(links[high]))
        status, nothing = np.zeros(job.items, np.uint8), (np.empty(0), nowhere, np.empty((0, 0), np.int64))
        _over_tiles(grammar, kernels.run_tiles, job, nowhere, nowhere, nowhere, *nothing, status)
        _merge(flagged, status, evidence, first_sample)
    for low, high in reversed(grammar.bands):
        job = grammar.job(low, high, evidence, links)
        status = np.zeros(job.items, np.uint8)
        apart, addresses = stride * job.subtrees, _addresses(out, t.depth)
        _over_tiles(grammar, kernels.sample_tiles, job, keys, numbers, apart, addresses, status)
        _merge(flagged, status, evidence, first_sample)
    return np.flatnonzero(flagged).tolist()


def _merge(flagged: np.ndarray, status: np.ndarray, evidence: Evidence, first_sample: int) -> None:
    """A sample is flagged if one of its subtrees is."""
    worst = status.reshape(len(flagged), -1).max(axis=1)
    if (worst == kernels.INVALID).any():
        check_values(evidence.log(np.arange(first_sample, first_sample + len(evidence))), first_sample)
        raise AssertionError("unreachable: a leaf without a finite maximum")
    np.maximum(flagged, worst, out=flagged)


def _addresses(levels: Levels, L: int) -> np.ndarray:
    return np.array([_address(levels.get(level)) for level in range(L + 1)], np.int64)


def _address(array: np.ndarray | None) -> int:
    return 0 if array is None else array.ctypes.data


# -- threads and memory ----------------------------------------------------------------------------------------------------
def _over_tiles(grammar: PreparedGrammar, kernel: Any, job: kernels.Job, *arguments: Any) -> None:
    def block(first: int, last: int) -> None:
        kernel(first, last, _workspace(grammar), grammar.one, grammar.limits, grammar.rules, job, *arguments)

    threads.over_blocks(-(-job.items // LANES), block)


_local = threading.local()


def _workspace(grammar: PreparedGrammar) -> np.ndarray:
    """The workspace of this thread, reused because new memory pages take as long as the computation on them."""
    spaces = _local.__dict__.setdefault("spaces", {})
    space = spaces.get(grammar.dtype)
    if space is None or len(space) < grammar.workspace:
        # From 4 MB on numpy requests huge pages, which reduce misses of the address translation.
        size = max(grammar.workspace, 2**22 // grammar.dtype.itemsize)
        space = spaces[grammar.dtype] = aligned((size,), grammar.dtype, boundary=2**21)
        space[:] = 0
    return space
