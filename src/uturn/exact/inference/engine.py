"""The fast backend: compiled kernels, in the precision of the evidence, on trees cut into bands and
tiles given to threads.

Samples whose messages leave the range of float32 are computed again in float64, and those that
leave that range too by the torch backend, in logarithms.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from uturn.core import threads
from uturn.core.checks import expect
from uturn.core.evidence import LOG, Evidence
from uturn.core.memory import aligned, recycled
from uturn.core.progress import steps
from uturn.exact.grammar import RuleGrammar
from uturn.exact.inference import kernels
from uturn.exact.inference.beliefs import Beliefs
from uturn.exact.inference.evidence import MESSAGES, check_values
from uturn.exact.inference.simd import LANES

Levels = dict[int, np.ndarray]

_SINGLE = np.dtype(np.float32)
_TILE_BYTES = 2**20
"""Upward messages of a tile: half of a usual L2 cache."""
_BAND_BYTES = 2**19 + 2**16
"""Upward messages of a tile in a tree cut into bands."""
_WHOLE_BYTES = 9 * 2**20
"""Largest upward messages of a tile that may stay whole, although it exceeds the L2 cache."""
_LINK_BYTES = 2**24
"""Messages between bands."""
_LIMITS = {
    np.dtype(np.float32): kernels.Limits(1e-16, 1e12, 1e-26),
    np.dtype(np.float64): kernels.Limits(1e-150, 1e140, 1e-280),
}
"""See kernels.py, "Range"."""


class PreparedGrammar:
    """Bands and rule arrays for the computation of a grammar in one precision.

    A tree that exceeds the cache is cut into bands of levels. The upward pass keeps only the
    messages of the bands' roots; the downward pass computes those of every band again. A tree
    slightly larger than the cache stays `whole` if many samples fill the lanes. The log-evidence,
    whose last digits depend on the cut, is always computed in bands.
    """

    def __init__(self, rhm: RuleGrammar, dtype: np.dtype, whole: bool = False) -> None:
        v = rhm.vocab_size
        s = rhm.branching
        L = rhm.depth
        self.vocab_size = v
        self.branching = s
        self.depth = L
        self.dtype = dtype
        self.rules = _kernel_rules(rhm, dtype)
        self.one = dtype.type(1)
        self.limits = _LIMITS[dtype]
        columns = -(-max(v, rhm.num_classes) // 4) * 4
        message_bytes = columns * LANES * dtype.itemsize

        def bytes_of(height: int) -> int:
            """Size of the upward messages of a tile of subtrees of this height."""
            nodes = (s ** (height + 1) - 1) // (s - 1)
            return int(nodes * message_bytes)

        height = L
        self.fits_whole = bytes_of(L) <= _WHOLE_BYTES
        if bytes_of(L) > _TILE_BYTES + message_bytes and not whole:
            height = max([1, *(h for h in range(1, L) if bytes_of(h) <= _BAND_BYTES)])
        count = -(-L // height)
        cuts = [round(i * L / count) for i in range(count + 1)]
        self.bands: list[tuple[int, int]] = list(pairwise(cuts))
        sizes = [kernels.workspace_size(s, high - low, columns) for low, high in self.bands]
        self.workspace = max(sizes)
        links = sum(s ** (L - high) for _, high in self.bands[:-1])
        per_sample = 2 * links * v * dtype.itemsize
        self.chunk = max(1, _LINK_BYTES // per_sample) if per_sample else 2**62  # samples at a time
        if self.chunk > LANES:
            self.chunk = self.chunk // LANES * LANES

    def job(
        self, low: int, high: int, evidence: Evidence, links: Levels, **settings: int
    ) -> kernels.Job:
        """The job of the kernels in a band, which reads evidence, or messages about the roots of
        the band below.
        """
        job = dict.fromkeys(kernels.Job._fields, 0)
        s = self.branching
        L = self.depth
        subtrees = s ** (L - high)
        job |= {
            "branching": s,
            "low": low,
            "high": high,
            "top": high == L,
            "items": len(evidence) * subtrees,
            "subtrees": subtrees,
            "source": _address(links[low] if low else evidence.values),
            "evidence": MESSAGES if low else evidence.kind,
            "factor": _address(evidence.factor),
        }
        return kernels.Job(**job | settings)

    def links(self, batch: int) -> Levels:
        """Messages about the roots of all bands but the top one."""
        links = {}
        for _, high in self.bands[:-1]:
            nodes = self.branching ** (self.depth - high)
            links[high] = aligned((batch, nodes, self.vocab_size), self.dtype)
        return links


_PREPARED: WeakKeyDictionary[RuleGrammar, dict[tuple[np.dtype, bool], PreparedGrammar]]
_PREPARED = WeakKeyDictionary()


def prepared_grammar(rhm: RuleGrammar, dtype: np.dtype, batch: int = 0) -> PreparedGrammar:
    """A grammar prepared for the kernels, cached; whole trees if a batch size is given that
    fills lanes and threads.
    """
    cached = _PREPARED.setdefault(rhm, {})
    if (dtype, False) not in cached:
        cached[dtype, False] = PreparedGrammar(rhm, dtype)
    in_bands = cached[dtype, False]
    tiles = -(-batch // LANES)
    fills_threads = tiles >= threads.num_threads
    fills_lanes = batch > 0 and batch >= 0.8 * tiles * LANES
    if not (in_bands.fits_whole and fills_threads and fills_lanes):
        return in_bands
    if (dtype, True) not in cached:
        cached[dtype, True] = PreparedGrammar(rhm, dtype, whole=True)
    return cached[dtype, True]


def _kernel_rules(rhm: RuleGrammar, dtype: np.dtype) -> kernels.Rules:
    """The rules of all levels, joined: those of a level begin at `start`, row = symbol *
    multiplicity + number.

    `down_*`: the rules again, for every child i in the order of its symbol x, with the symbols of
    the parent and of the other children. Those of x are rows `down_start[level, i, x]` to
    `down_start[level, i, x + 1]`.
    """
    v = rhm.vocab_size
    s = rhm.branching
    L = rhm.depth
    tables = [rhm.rules[level] for level in range(1, L + 1)]
    laws = [rhm.rule_probabilities[level].ravel() for level in range(1, L + 1)]
    symbols = np.array([v] * L + [rhm.num_classes], np.int64)
    multiplicity = np.array([0, *(table.shape[1] for table in tables)], np.int64)
    sizes = symbols * multiplicity
    start = np.cumsum(sizes) - sizes
    children = np.concatenate([table.reshape(-1, s) for table in tables])
    probability = np.concatenate(laws)
    level_of = np.repeat(np.arange(L + 1), sizes)
    parent = (np.arange(len(children)) - start[level_of]) // multiplicity[level_of]
    down_start = np.zeros((L + 1, s, v + 1), np.int64)
    down_index = []
    down_weight = []
    for i, child in enumerate(children.T):
        order = np.lexsort((child, level_of))
        counts = np.bincount(level_of * v + child, minlength=(L + 1) * v).reshape(L + 1, v)
        before = np.pad(counts.cumsum(axis=1), ((0, 0), (1, 0)))
        down_start[:, i] = i * len(children) + start[:, None] + before
        siblings = np.delete(children[order], i, axis=1)
        down_index.append(np.column_stack([parent[order], siblings]))
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
@dataclass
class _Outputs:
    """Arrays for the outputs of a chunk of samples, or of a whole batch."""

    messages: dict[str, Levels] = field(default_factory=dict)
    """{output: {tree_level: (batch, nodes, symbols)}}."""
    log_evidence: np.ndarray | None = None
    """float64 (batch,)."""
    beliefs: np.ndarray | None = None
    """Marginals at the true symbols, added over the nodes of a level, in fixed point: int64
    (batch, levels)."""

    @classmethod
    def empty(cls, grammar: PreparedGrammar, batch: int, names: tuple[str, ...]) -> _Outputs:
        s = grammar.branching
        L = grammar.depth
        rules = grammar.rules
        outputs = cls()
        for name in names:
            if name == "log_evidence":
                outputs.log_evidence = np.empty(batch)
                continue
            levels = {}
            for level, n in enumerate(rules.symbols.tolist()):
                levels[level] = recycled((batch, s ** (L - level), n), grammar.dtype)
            outputs.messages[name] = levels
        if "downward" in outputs.messages:
            outputs.messages["downward"][L][:] = rules.class_probability
        return outputs

    def rows(self, rows: slice) -> _Outputs:
        """Views of the arrays of some samples."""
        messages = {}
        for name, levels in self.messages.items():
            messages[name] = {level: values[rows] for level, values in levels.items()}
        return _Outputs(
            messages,
            None if self.log_evidence is None else self.log_evidence[rows],
            None if self.beliefs is None else self.beliefs[rows],
        )

    def replace(self, samples: np.ndarray, beliefs: Beliefs) -> None:
        """Replace the numbers of some samples."""
        if self.log_evidence is not None:
            self.log_evidence[samples] = beliefs.log_evidence
        for name, levels in self.messages.items():
            computed = getattr(beliefs, name)
            for level, values in levels.items():
                values[samples] = computed[level]

    def as_beliefs(self) -> Beliefs:
        computed: dict[str, object] = dict(self.messages)
        if self.log_evidence is not None:
            computed["log_evidence"] = self.log_evidence
        return Beliefs(**computed)


class _Remaining(NamedTuple):
    """Samples whose numbers left the range of a precision."""

    rows: np.ndarray
    """Their indices in the batch."""
    log_evidence: np.ndarray
    """In float64."""
    samples: np.ndarray
    """Their indices for error messages."""

    @classmethod
    def of(
        cls, evidence: Evidence, rows: list[int], samples: np.ndarray | None = None
    ) -> _Remaining:
        indices = np.array(rows)
        log_evidence = evidence.log(indices).astype(np.float64)
        return cls(indices, log_evidence, indices if samples is None else samples[indices])


def _chunks(grammar: PreparedGrammar, batch: int) -> list[slice]:
    """The samples of a batch in chunks, whose messages between bands fit into memory."""
    size = grammar.chunk
    return [slice(first, min(first + size, batch)) for first in range(0, batch, size)]


def infer_numba(
    rhm: RuleGrammar,
    evidence: Evidence,
    outputs: tuple[str, ...],
    samples: np.ndarray | None = None,
) -> Beliefs:
    """`infer` for evidence of checked shape; `samples`: their indices, for error messages."""
    batch = len(evidence)
    in_bands = "log_evidence" in outputs
    if in_bands and evidence.kind != LOG:
        evidence = Evidence.of(evidence.log(np.arange(batch)))
    grammar = prepared_grammar(rhm, evidence.dtype, 0 if in_bands else batch)
    out = _Outputs.empty(grammar, batch, outputs)
    left: list[int] = []
    for rows in steps(_chunks(grammar, batch)):
        left += propagate(grammar, evidence.rows(rows.start, rows.stop), out.rows(rows), rows.start)
    if left:
        remaining = _Remaining.of(evidence, left, samples)
        if grammar.dtype == _SINGLE:
            wider = Evidence.of(remaining.log_evidence)
            again = infer_numba(rhm, wider, outputs, remaining.samples)
        else:
            import torch

            from uturn.exact.inference.torch_backend import infer_torch

            logs = torch.from_numpy(remaining.log_evidence)
            again = infer_torch(rhm, logs, outputs, remaining.samples)
        out.replace(remaining.rows, again)
    return out.as_beliefs()


def true_beliefs(
    rhm: RuleGrammar, evidence: Evidence, symbols: Mapping[int, np.ndarray]
) -> np.ndarray:
    """Marginals at the true symbols, averaged over the nodes of each level: float64 (batch,
    levels), to 1e-10; not stored.

    `symbols`: {tree_level: int64 (originals, nodes)}; the samples of an original are next to each
    other.
    """
    batch = len(evidence)
    copies = batch // len(symbols[0])
    truth = {level: np.ascontiguousarray(nodes, np.int64) for level, nodes in symbols.items()}
    _check_symbols(rhm, truth)
    grammar = prepared_grammar(rhm, evidence.dtype, batch)
    sums = np.empty((batch, rhm.depth + 1), np.int64)
    out = _Outputs(beliefs=sums)
    left: list[int] = []
    for rows in steps(_chunks(grammar, batch)):
        of_rows = evidence.rows(rows.start, rows.stop)
        left += propagate(grammar, of_rows, out.rows(rows), rows.start, truth, copies)
    nodes = np.array([rhm.num_nodes(level) for level in range(rhm.depth + 1)])
    beliefs = np.asarray(sums / (kernels.FIXED_POINT * nodes))
    if left:
        remaining = _Remaining.of(evidence, left)
        wider = Evidence.of(remaining.log_evidence)
        marginals = infer_numba(rhm, wider, ("marginals",), remaining.samples).marginals
        for level, values in truth.items():
            true = values[remaining.rows // copies][..., None]
            of_true = np.take_along_axis(marginals[level], true, 2)
            beliefs[remaining.rows, level] = of_true.mean(axis=(1, 2), dtype=np.float64)
    return beliefs


def _check_symbols(rhm: RuleGrammar, symbols: Levels) -> None:
    """ValueError for symbols that the grammar lacks: kernels use them as places in memory."""
    for level, nodes in symbols.items():
        n = rhm.num_symbols(level)
        low = int(nodes.min(initial=0))
        high = int(nodes.max(initial=0))
        expected = f"symbols of grammatical strings, 0..{n - 1}"
        expect(0 <= low <= high < n, f"range of symbols[{level}]", (low, high), expected)


def sample_numba(
    rhm: RuleGrammar,
    evidence: Evidence,
    keys: np.ndarray,
    numbers: np.ndarray,
    samples: np.ndarray | None = None,
) -> Levels:
    """`sample_posterior` for evidence of checked shape, with one key per sample and a leading
    axis for the draws `numbers`.
    """
    batch = len(evidence)
    keys = np.ascontiguousarray(keys)
    grammar = prepared_grammar(rhm, evidence.dtype, batch)
    out = {}
    for level in range(rhm.depth + 1):
        shape = (len(numbers), batch, rhm.num_nodes(level))
        out[level] = recycled(shape, np.dtype(np.int64))
    left: list[int] = []
    for rows in steps(_chunks(grammar, batch)):
        views = {level: nodes[:, rows] for level, nodes in out.items()}
        of_rows = evidence.rows(rows.start, rows.stop)
        left += draw(grammar, of_rows, keys[rows], numbers, views, batch, rows.start)
    if left:
        remaining = _Remaining.of(evidence, left, samples)
        own = keys[remaining.rows]
        if grammar.dtype == _SINGLE:
            wider = Evidence.of(remaining.log_evidence)
            again = sample_numba(rhm, wider, own, numbers, remaining.samples)
        else:
            from uturn.exact.inference.torch_backend import sample_torch

            logs = remaining.log_evidence
            again = sample_torch(rhm, logs, own, numbers, remaining.samples)
        for level, nodes in again.items():
            out[level][:, remaining.rows] = nodes
    return out


# -- one chunk of samples --------------------------------------------------------------------------
def propagate(
    grammar: PreparedGrammar,
    evidence: Evidence,
    out: _Outputs,
    start: int,
    truth: Levels | None = None,
    copies: int = 0,
) -> list[int]:
    """Fill `out` for a contiguous chunk of samples; return the samples of the batch whose numbers
    left the floating point range.

    `start`: number of the first sample. `truth`, with `out.beliefs`: true symbols of the
    originals, of `copies` samples each.
    """
    L = grammar.depth
    batch = len(evidence)
    upward = _addresses(out.messages.get("upward", {}), L)
    marginals = _addresses(out.messages.get("marginals", {}), L)
    downward = _addresses(out.messages.get("downward", {}), L)
    symbols = _addresses(truth or {}, L)
    goes_down = truth is not None or not {"marginals", "downward"}.isdisjoint(out.messages)
    up_links = grammar.links(batch)
    down_links = grammar.links(batch) if goes_down else {}
    flagged = np.zeros(batch, np.uint8)
    if out.log_evidence is not None:
        out.log_evidence[:] = 0
    if out.beliefs is not None:
        out.beliefs[:] = 0

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
            logs=rising and out.log_evidence is not None,
            copies=copies if down else 0,
            start=start,
        )
        levels = high - low + 1
        logs = np.empty(job.items if job.logs else 0)
        beliefs = np.zeros((levels, job.items if job.copies else 0), np.int64)
        status = np.zeros(job.items, np.uint8)
        written = upward if rising else np.zeros_like(upward)
        arrays = (written, marginals, downward, logs, symbols, beliefs, status)
        _over_tiles(grammar, kernels.run_tiles, job, *arrays)
        _merge(flagged, status, evidence, start)
        if job.logs and out.log_evidence is not None:
            out.log_evidence += logs.reshape(batch, -1).sum(axis=1)
        if job.copies and out.beliefs is not None:
            of_samples = beliefs.reshape(levels, batch, -1).sum(axis=2)
            out.beliefs[:, low : high + 1] += of_samples.T

    *lower, top = grammar.bands
    for band in lower:
        sweep(*band, rising=True, down=False)
    sweep(*top, rising=True, down=goes_down)
    if goes_down:
        for band in reversed(lower):
            sweep(*band, rising=False, down=True)
    return (start + np.flatnonzero(flagged)).tolist()


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
    samples of the batch that left the range. `start`: number of the first sample.
    """
    L = grammar.depth
    nowhere = np.zeros(L + 1, np.int64)
    no_logs = np.empty(0)
    no_beliefs = np.empty((0, 0), np.int64)
    links = grammar.links(len(evidence))
    flagged = np.zeros(len(evidence), np.uint8)
    for low, high in grammar.bands[:-1]:
        job = grammar.job(low, high, evidence, links, root_out=_address(links[high]))
        status = np.zeros(job.items, np.uint8)
        arrays = (nowhere, nowhere, nowhere, no_logs, nowhere, no_beliefs, status)
        _over_tiles(grammar, kernels.run_tiles, job, *arrays)
        _merge(flagged, status, evidence, start)
    for low, high in reversed(grammar.bands):
        job = grammar.job(low, high, evidence, links)
        status = np.zeros(job.items, np.uint8)
        apart = stride * job.subtrees
        trees = _addresses(out, L)
        _over_tiles(grammar, kernels.sample_tiles, job, keys, numbers, apart, trees, status)
        _merge(flagged, status, evidence, start)
    return (start + np.flatnonzero(flagged)).tolist()


def _merge(flagged: np.ndarray, status: np.ndarray, evidence: Evidence, first_sample: int) -> None:
    """A sample is flagged if one of its subtrees is."""
    worst = status.reshape(len(flagged), -1).max(axis=1)
    if (worst == kernels.INVALID).any():
        samples = np.arange(first_sample, first_sample + len(evidence))
        check_values(evidence.log(samples), first_sample)
        raise AssertionError("unreachable: a leaf without a finite maximum")
    np.maximum(flagged, worst, out=flagged)


def _addresses(levels: Levels, L: int) -> np.ndarray:
    return np.array([_address(levels.get(level)) for level in range(L + 1)], np.int64)


def _address(array: np.ndarray | None) -> int:
    return 0 if array is None else array.ctypes.data


# -- threads and memory ----------------------------------------------------------------------------
def _over_tiles(
    grammar: PreparedGrammar,
    kernel: Callable[..., None],
    job: kernels.Job,
    *arrays: np.ndarray | int,
) -> None:
    """Run a kernel over all tiles of a job, in blocks of tiles given to threads."""

    def block(first: int, last: int) -> None:
        workspace = _workspace(grammar)
        kernel(first, last, workspace, grammar.one, grammar.limits, grammar.rules, job, *arrays)

    threads.over_blocks(-(-job.items // LANES), block)


_local = threading.local()


def _workspace(grammar: PreparedGrammar) -> np.ndarray:
    """The workspace of this thread, reused because new memory pages take as long as the
    computation on them.
    """
    spaces: dict[np.dtype, np.ndarray] = _local.__dict__.setdefault("spaces", {})
    space = spaces.get(grammar.dtype)
    if space is None or len(space) < grammar.workspace:
        # From 4 MB on numpy requests huge pages, which reduce misses of the address translation.
        size = max(grammar.workspace, 2**22 // grammar.dtype.itemsize)
        space = aligned((size,), grammar.dtype, boundary=2**21)
        space[:] = 0
        spaces[grammar.dtype] = space
    return space
