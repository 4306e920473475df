"""The fast backend: compiled kernels, in the precision of the evidence, on trees cut into bands and
tiles given to threads.

Samples whose messages leave the range of float32 are computed again in float64, and those that
leave that range too by the torch backend, in logarithms.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from uturn.core import threads
from uturn.core.checks import expect
from uturn.core.memory import aligned, recycled
from uturn.core.progress import steps
from uturn.exact.inference import kernels
from uturn.exact.inference.beliefs import Beliefs
from uturn.exact.inference.evidence import LOG, MESSAGES, Evidence, check_values
from uturn.exact.inference.simd import LANES

Levels = dict[int, np.ndarray]

_SINGLE = np.dtype(np.float32)
_TILE_BYTES = 2**20  # upward messages of a tile: half of a usual L2 cache
_BAND_BYTES = 2**19 + 2**16  # upward messages of a tile in a tree cut into bands
# Largest upward messages of a tile that may stay whole, although it exceeds the L2 cache.
_WHOLE_BYTES = 9 * 2**20
_LINK_BYTES = 2**24  # messages between bands
_LIMITS = {  # see kernels.py, "Range"
    np.dtype(np.float32): kernels.Limits(1e-16, 1e12, 1e-26),
    np.dtype(np.float64): kernels.Limits(1e-150, 1e140, 1e-280),
}


class PreparedGrammar:
    """Bands and rule arrays for the computation of a grammar in one precision.

    A tree that exceeds the cache is cut into bands of levels. The upward pass keeps only the
    messages of the bands' roots; the downward pass computes those of every band again. A tree
    slightly larger than the cache stays `whole` if many samples fill the lanes. The log-evidence,
    whose last digits depend on the cut, is always computed in bands.
    """

    def __init__(self, rhm: Any, dtype: np.dtype, whole: bool = False) -> None:
        v, s, L, n = rhm.vocab_size, rhm.branching, rhm.depth, rhm.num_classes
        self.vocab_size, self.branching, self.depth, self.dtype = v, s, L, dtype
        self.rules = _kernel_rules(rhm, dtype)
        self.one, self.limits = dtype.type(1), _LIMITS[dtype]
        columns = -(-max(v, n) // 4) * 4

        def bytes_of(height: int) -> int:
            return int((s ** (height + 1) - 1) // (s - 1) * columns * LANES * dtype.itemsize)

        height = L
        self.fits_whole = bytes_of(L) <= _WHOLE_BYTES
        if bytes_of(L) > _TILE_BYTES + columns * LANES * dtype.itemsize and not whole:
            height = max([1, *(h for h in range(1, L) if bytes_of(h) <= _BAND_BYTES)])
        count = -(-L // height)
        self.bands: list[tuple[int, int]] = list(
            pairwise(round(i * L / count) for i in range(count + 1))
        )
        self.workspace = max(
            kernels.workspace_size(s, high - low, columns) for low, high in self.bands
        )
        per_sample = sum(2 * s ** (L - high) * v * dtype.itemsize for _, high in self.bands[:-1])
        self.chunk = max(1, _LINK_BYTES // per_sample) if per_sample else 2**62  # samples at a time
        if self.chunk > LANES:
            self.chunk = self.chunk // LANES * LANES

    def job(
        self, low: int, high: int, evidence: Evidence, links: Levels, **settings: int
    ) -> kernels.Job:
        """The job of the kernels in a band, which reads evidence, or messages about the roots of
        the band below.
        """
        nothing = dict.fromkeys(
            ("root_out", "root_in", "leaf_out", "downward", "logs", "copies", "start"), 0
        )
        s, L = self.branching, self.depth
        subtrees = s ** (L - high)
        return kernels.Job(
            branching=s,
            low=low,
            high=high,
            top=high == L,
            items=len(evidence) * subtrees,
            subtrees=subtrees,
            source=_address(links[low] if low else evidence.values),
            evidence=MESSAGES if low else evidence.kind,
            factor=_address(evidence.factor),
            **{**nothing, **settings},
        )

    def links(self, batch: int) -> Levels:
        """Messages about the roots of all bands but the top one."""
        s, L, v = self.branching, self.depth, self.vocab_size
        return {
            high: aligned((batch, s ** (L - high), v), self.dtype) for _, high in self.bands[:-1]
        }


_PREPARED: WeakKeyDictionary[Any, dict[tuple[np.dtype, bool], PreparedGrammar]] = (
    WeakKeyDictionary()
)


def prepared_grammar(rhm: Any, dtype: np.dtype, batch: int = 0) -> PreparedGrammar:
    """A grammar prepared for the kernels, cached; whole trees if a batch size is given that
    fills lanes and threads.
    """
    cached = _PREPARED.setdefault(rhm, {})
    if (dtype, False) not in cached:
        cached[dtype, False] = PreparedGrammar(rhm, dtype)
    tiles = -(-batch // LANES)
    if (
        not cached[dtype, False].fits_whole
        or tiles < threads.num_threads
        or batch < 0.8 * tiles * LANES
        or not batch
    ):
        return cached[dtype, False]
    if (dtype, True) not in cached:
        cached[dtype, True] = PreparedGrammar(rhm, dtype, whole=True)
    return cached[dtype, True]


def _kernel_rules(rhm: Any, dtype: np.dtype) -> kernels.Rules:
    """The rules of all levels, joined: those of a level begin at `start`, row = symbol *
    multiplicity + number.

    `down_*`: the rules again, for every child i in the order of its symbol x, with the symbols of
    the parent and of the other children. Those of x are rows `down_start[level, i, x]` to
    `down_start[level, i, x + 1]`.
    """
    v, s, L = rhm.vocab_size, rhm.branching, rhm.depth
    symbols = np.array([v] * L + [rhm.num_classes], np.int64)
    multiplicity = np.array(
        [0, *(rhm.rules[level].shape[1] for level in range(1, L + 1))], np.int64
    )
    sizes = symbols * multiplicity
    start = np.cumsum(sizes) - sizes
    children = np.concatenate([rhm.rules[level].reshape(-1, s) for level in range(1, L + 1)])
    laws = [rhm.rule_probabilities[level].ravel() for level in range(1, L + 1)]
    probability, level_of = np.concatenate(laws), np.repeat(np.arange(L + 1), sizes)
    parent = (np.arange(len(children)) - start[level_of]) // multiplicity[level_of]
    down_start, down_index, down_weight = np.zeros((L + 1, s, v + 1), np.int64), [], []
    for i, column in enumerate(children.T):
        order = np.lexsort((column, level_of))
        counts = np.bincount(level_of * v + column, minlength=(L + 1) * v).reshape(L + 1, v)
        down_start[:, i] = (
            i * len(children) + start[:, None] + np.pad(counts.cumsum(axis=1), ((0, 0), (1, 0)))
        )
        down_index.append(np.column_stack([parent[order], np.delete(children[order], i, axis=1)]))
        down_weight.append(probability[order])
    return kernels.Rules(
        symbols=symbols,
        multiplicity=multiplicity,
        start=start,
        uniform=np.array([False, *(law.min() == law.max() for law in laws)], np.int64),
        up_index=(children * LANES).astype(np.uint32).ravel(),
        up_weight=probability.astype(dtype),
        down_start=down_start.astype(np.uint32).ravel(),
        down_index=(np.concatenate(down_index) * LANES).astype(np.uint32).ravel(),
        down_weight=np.concatenate(down_weight).astype(dtype),
        class_probability=rhm.class_probabilities.astype(dtype),
    )


# -- whole batches ---------------------------------------------------------------------------------
def infer_numba(
    rhm: Any, evidence: Evidence, outputs: tuple[str, ...], samples: np.ndarray | None = None
) -> Beliefs:
    """`infer` for evidence of checked shape; `samples`: their indices, for error messages."""
    if "log_evidence" in outputs and evidence.kind != LOG:
        evidence = Evidence.of(evidence.log(np.arange(len(evidence))))
    batch = len(evidence)
    grammar = prepared_grammar(rhm, evidence.dtype, 0 if "log_evidence" in outputs else batch)
    out = _empty(grammar, batch, outputs)
    left = []
    for first in steps(range(0, batch, grammar.chunk)):
        rows = slice(first, min(first + grammar.chunk, batch))
        views = {
            name: x[rows] if name == "log_evidence" else {k: y[rows] for k, y in x.items()}
            for name, x in out.items()
        }
        left += [
            first + b for b in propagate(grammar, evidence.rows(first, rows.stop), views, first)
        ]
    if left:
        rest, values, samples = _wider(evidence, left, samples)
        if grammar.dtype == _SINGLE:
            again = infer_numba(rhm, Evidence.of(values), outputs, samples)
        else:
            import torch

            from uturn.exact.inference.torch_backend import infer_torch

            again = infer_torch(rhm, torch.from_numpy(values), outputs, samples)
        for name, x in out.items():
            found = getattr(again, name)
            for target, source in (
                [(x, found)] if name == "log_evidence" else [(x[k], found[k]) for k in x]
            ):
                target[rest] = source
    return Beliefs(**out)


def true_beliefs(rhm: Any, evidence: Evidence, symbols: Mapping[int, np.ndarray]) -> np.ndarray:
    """Marginals at the true symbols, averaged over the nodes of each level: float64 (batch,
    levels), to 1e-10; not stored.

    `symbols`: {tree_level: int64 (originals, nodes)}; the samples of an original are next to each
    other.
    """
    batch, nodes = len(evidence), np.array([rhm.num_nodes(level) for level in range(rhm.depth + 1)])
    copies = batch // len(symbols[0])
    symbols = {level: np.ascontiguousarray(of, np.int64) for level, of in symbols.items()}
    for level, of in symbols.items():  # kernels do not check symbols, which are places in memory
        n, low, high = rhm.num_symbols(level), int(of.min(initial=0)), int(of.max(initial=0))
        expect(
            0 <= low <= high < n,
            f"range of symbols[{level}]",
            (low, high),
            f"symbols of grammatical strings, 0..{n - 1}",
        )
    grammar = prepared_grammar(rhm, evidence.dtype, batch)
    out, left = np.empty((batch, rhm.depth + 1), np.int64), []
    for first in steps(range(0, batch, grammar.chunk)):
        last = min(first + grammar.chunk, batch)
        views = {"beliefs": out[first:last]}
        left += [
            first + b
            for b in propagate(grammar, evidence.rows(first, last), views, first, symbols, copies)
        ]
    beliefs = out / (kernels.FIXED_POINT * nodes)
    if left:
        rest, values, _ = _wider(evidence, left)
        marginals = infer_numba(rhm, Evidence.of(values), ("marginals",), rest).marginals
        for level, of in symbols.items():
            at = of[rest // copies][..., None]
            beliefs[rest, level] = np.take_along_axis(marginals[level], at, 2).mean(
                axis=(1, 2), dtype=np.float64
            )
    return beliefs


def sample_numba(
    rhm: Any,
    evidence: Evidence,
    keys: np.ndarray,
    numbers: np.ndarray,
    samples: np.ndarray | None = None,
) -> Levels:
    """`sample_posterior` for evidence of checked shape, with one key per sample and a leading
    axis for the draws `numbers`.
    """
    batch, keys = len(evidence), np.ascontiguousarray(keys)
    grammar = prepared_grammar(rhm, evidence.dtype, batch)
    integers = np.dtype(np.int64)
    out = {
        level: recycled((len(numbers), batch, rhm.num_nodes(level)), integers)
        for level in range(rhm.depth + 1)
    }
    left = []
    for first in steps(range(0, batch, grammar.chunk)):
        rows = slice(first, min(first + grammar.chunk, batch))
        views = {level: x[:, rows] for level, x in out.items()}
        left += [
            first + b
            for b in draw(
                grammar, evidence.rows(first, rows.stop), keys[rows], numbers, views, batch, first
            )
        ]
    if left:
        rest, values, samples = _wider(evidence, left, samples)
        if grammar.dtype == _SINGLE:
            again = sample_numba(rhm, Evidence.of(values), keys[rest], numbers, samples)
        else:
            from uturn.exact.inference.torch_backend import sample_torch

            again = sample_torch(rhm, values, keys[rest], numbers, samples)
        for level, nodes in again.items():
            out[level][:, rest] = nodes
    return out


def _empty(grammar: PreparedGrammar, batch: int, outputs: tuple[str, ...]) -> dict[str, Any]:
    s, L, rules = grammar.branching, grammar.depth, grammar.rules
    shapes = {level: (batch, s ** (L - level), int(n)) for level, n in enumerate(rules.symbols)}
    of_levels = [name for name in outputs if name != "log_evidence"]
    out: dict[str, Any] = {
        name: {level: recycled(x, grammar.dtype) for level, x in shapes.items()}
        for name in of_levels
    }
    if "log_evidence" in outputs:
        out["log_evidence"] = np.empty(batch)
    if "downward" in out:
        out["downward"][L][:] = rules.class_probability
    return out


def _wider(
    evidence: Evidence, left: list[int], samples: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples that left the range of numbers, their log-evidence in float64, and their indices
    in the whole batch.
    """
    rest = np.array(left)
    return rest, evidence.log(rest).astype(np.float64), rest if samples is None else samples[rest]


# -- one chunk of samples --------------------------------------------------------------------------
def propagate(
    grammar: PreparedGrammar,
    evidence: Evidence,
    out: dict[str, Any],
    start: int,
    truth: Levels | None = None,
    copies: int = 0,
) -> list[int]:
    """Fill `out` for a contiguous chunk of samples; return the samples whose numbers left the
    floating point range.

    `start`: number of the first sample. `truth`, with `out["beliefs"]`: true symbols of the
    originals, of `copies` samples each.
    """
    L, batch = grammar.depth, len(evidence)
    upward, marginals, downward = (
        _addresses(out.get(name, {}), L) for name in ("upward", "marginals", "downward")
    )
    symbols = _addresses(truth or {}, L)
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
            start=start,
        )
        logs, status = np.empty(job.items if job.logs else 0), np.zeros(job.items, np.uint8)
        beliefs = np.zeros((high - low + 1, job.items if job.copies else 0), np.int64)
        wanted = upward if rising else np.zeros_like(upward)
        _over_tiles(
            grammar,
            kernels.run_tiles,
            job,
            wanted,
            marginals,
            downward,
            logs,
            symbols,
            beliefs,
            status,
        )
        _merge(flagged, status, evidence, start)
        if job.logs:
            out["log_evidence"] += logs.reshape(batch, -1).sum(axis=1)
        if job.copies:
            out["beliefs"][:, low : high + 1] += (
                beliefs.reshape(high - low + 1, batch, -1).sum(axis=2).T
            )

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
    start: int,
) -> list[int]:
    """Fill `out` (draws, samples, nodes), whose draws are `stride` samples apart; return the
    samples that left the range.
    """
    L, batch = grammar.depth, len(evidence)
    nowhere = np.zeros(L + 1, np.int64)
    links, flagged = grammar.links(batch), np.zeros(batch, np.uint8)
    for low, high in grammar.bands[:-1]:
        job = grammar.job(low, high, evidence, links, root_out=_address(links[high]))
        status, nothing = (
            np.zeros(job.items, np.uint8),
            (
                np.empty(0),
                nowhere,
                np.empty((0, 0), np.int64),
            ),
        )
        _over_tiles(grammar, kernels.run_tiles, job, nowhere, nowhere, nowhere, *nothing, status)
        _merge(flagged, status, evidence, start)
    for low, high in reversed(grammar.bands):
        job = grammar.job(low, high, evidence, links)
        status = np.zeros(job.items, np.uint8)
        apart, addresses = stride * job.subtrees, _addresses(out, L)
        _over_tiles(grammar, kernels.sample_tiles, job, keys, numbers, apart, addresses, status)
        _merge(flagged, status, evidence, start)
    return np.flatnonzero(flagged).tolist()


def _merge(flagged: np.ndarray, status: np.ndarray, evidence: Evidence, first_sample: int) -> None:
    """A sample is flagged if one of its subtrees is."""
    worst = status.reshape(len(flagged), -1).max(axis=1)
    if (worst == kernels.INVALID).any():
        check_values(
            evidence.log(np.arange(first_sample, first_sample + len(evidence))), first_sample
        )
        raise AssertionError("unreachable: a leaf without a finite maximum")
    np.maximum(flagged, worst, out=flagged)


def _addresses(levels: Levels, L: int) -> np.ndarray:
    return np.array([_address(levels.get(level)) for level in range(L + 1)], np.int64)


def _address(array: np.ndarray | None) -> int:
    return 0 if array is None else array.ctypes.data


# -- threads and memory ----------------------------------------------------------------------------
def _over_tiles(grammar: PreparedGrammar, kernel: Any, job: kernels.Job, *arguments: Any) -> None:
    def block(first: int, last: int) -> None:
        kernel(
            first,
            last,
            _workspace(grammar),
            grammar.one,
            grammar.limits,
            grammar.rules,
            job,
            *arguments,
        )

    threads.over_blocks(-(-job.items // LANES), block)


_local = threading.local()


def _workspace(grammar: PreparedGrammar) -> np.ndarray:
    """The workspace of this thread, reused because new memory pages take as long as the
    computation on them.
    """
    spaces = _local.__dict__.setdefault("spaces", {})
    space = spaces.get(grammar.dtype)
    if space is None or len(space) < grammar.workspace:
        # From 4 MB on numpy requests huge pages, which reduce misses of the address translation.
        size = max(grammar.workspace, 2**22 // grammar.dtype.itemsize)
        space = spaces[grammar.dtype] = aligned((size,), grammar.dtype, boundary=2**21)
        space[:] = 0
    return space
