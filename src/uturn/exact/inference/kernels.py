"""Compiled belief propagation on tiles of LANES subtrees (Eq. 7, 16-19 of arXiv:2402.16991), in
linear space.

A *band* is a range of tree levels; an *item* is one subtree spanning a band (of one sample); a
*tile* is LANES items, one a lane. Inside a tile a message is a block `[symbol][lane]` of the
workspace, so that every sum over rules is a sum of whole vectors held in registers. Nodes are
visited depth first, so that what was just computed is still in the L1 cache.

Scaling. At every node the upward message, whose sum is z, is multiplied by the power of two that
brings the sum into [1/2, 1): that is exact, so that the log-evidence collects no rounding from it.
Downward messages are scaled so that `sum_x down[x] up[x] = 1`. Then `sum_x down_child[x]
up_child[x]` is 1 / scale of the parent before scaling, and multiplying by the scale known from the
upward pass makes it 1 again: `down * up` is the marginal, in one pass over the rules.

Range. All terms are products of non-negative numbers, so relative errors stay at rounding size
unless a number underflows. Whatever is below the smallest normal number (t = 1.2e-38 in float32)
may be flushed to 0, as evidence, message or product. Upward, all factors are at most 1: a rule
loses at most (s + 1) t, and a message, relative to its sum, `rules (s + 1) t / z`. Downward, a
factor may be as large as the sum D of a downward message, where the two sides of a node contradict
each other; a child's message, whose sum is at least 1, loses `rules (s + 1) t D / z`, and a
marginal no more than that. Items with z < 1e-16 or D > 1e12 at some node (1e-150 and 1e140 in
float64) are flagged and redone with a larger range; for all others the loss is below `rules (s + 1)
1.2e-10`, less than rounding. A message that overflows shows in D or in the sum of a marginal. A
draw takes the rules of a symbol in proportion to their terms, whose sum must not be below 1e-26
(1e-280): else the draw is repeated in the larger range.
"""

# mypy: ignore-errors
# (numba compiles this file and infers its types)
from __future__ import annotations

from collections import namedtuple

import numpy as np
from numba import njit

from uturn.core.box_muller import wide_vectors
from uturn.core.random import fold, uniform_at
from uturn.exact.inference.evidence import LOG, MESSAGES, SCALED, SYMBOLS
from uturn.exact.inference.simd import (
    LANES,
    add,
    divide,
    exp_nonpositive,
    flush_denormals,
    largest,
    load,
    multiply,
    multiply_add,
    pointer,
    pointer_at,
    power_of_two_over,
    read_block,
    read_number,
    restore_denormals,
    size_of,
    smallest,
    splat,
    store,
    stream_block,
    subtract,
    write_block,
    write_number,
)

OK, REDO, INVALID = 0, 1, 2  # status of an item
_VECTORS = 9  # before the scales, see `_layout`
# Beliefs are added as integers: the sum does not depend on the order, and is off by 1e-10 a node at
# most.
FIXED_POINT = 2.0**32

# Symbols in the index arrays are multiplied by LANES: they are offsets into a message.
Rules = namedtuple(
    "Rules",
    "symbols multiplicity start uniform up_index up_weight down_start down_index down_weight"
    " class_probability",
)
# All addresses are of memory; 0 = not wanted.
Job = namedtuple(
    "Job",
    # Levels of the band; is it the top band; number of items, and of a sample's.
    "branching low high top items subtrees "
    # Read at the low level; messages exchanged with the bands around.
    "source evidence factor root_out root_in leaf_out "
    # Whether to go down; to write log totals; samples of an original (0: no beliefs); first sample.
    "downward logs copies start",
)
Limits = namedtuple("Limits", "smallest_z largest_down smallest_weight")  # see Range above

_options = {"nogil": True, "cache": True, "error_model": "numpy"}


@njit(**_options)
def _read_rows(ws, target, columns, address, item_bytes, first, last):
    """Read a message of LANES items from memory rows into a tile block; lanes beyond the last
    item repeat it.
    """
    size = size_of(ws)
    per_line = 64 // size
    whole = columns // per_line * per_line
    for lane in range(0, LANES, per_line):
        for x in range(0, whole, per_line):
            at = target + x * LANES + lane
            read_block(ws, at, address + x * size, item_bytes, first + lane, last, columns * size)
    for lane in range(LANES if whole < columns else 0):
        row = address + min(first + lane, last) * item_bytes
        for x in range(whole, columns):
            ws[target + x * LANES + lane] = read_number(ws[0], row + x * size)


@njit(**_options)
def _write_rows(ws, source, scale, columns, address, item_bytes, first, last):
    """Write a tile block, scaled by the vector at `scale`, to memory rows."""
    size = size_of(ws)
    per_line = 64 // size
    whole = columns // per_line * per_line
    stream = whole == columns and address % 64 == 0 and item_bytes % 64 == 0
    for lane in range(0, min(LANES, last - first + 1), per_line):
        for x in range(0, whole, per_line):
            at = source + x * LANES + lane
            if stream:
                stream_block(
                    ws, at, scale + lane, address + x * size, item_bytes, first + lane, last
                )
            else:
                write_block(
                    ws, at, scale + lane, address + x * size, item_bytes, first + lane, last
                )
    for lane in range(min(LANES, last - first + 1) if whole < columns else 0):
        row = address + (first + lane) * item_bytes
        for x in range(whole, columns):
            write_number(ws[source + x * LANES + lane] * ws[scale + lane], row + x * size)


@njit(**_options)
def _exponentiate(ws, block, columns, highest, sums):
    """Turn log-evidence into evidence with largest entry 1, in place; store the largest log and
    the sum.
    """
    top = load(ws, block)
    for x in range(1, columns):
        top = largest(load(ws, block + x * LANES), top)
    total = subtract(top, top)
    for x in range(columns):
        value = exp_nonpositive(subtract(load(ws, block + x * LANES), top))
        store(ws, block + x * LANES, value)
        total = add(total, value)
    store(ws, highest, top)
    store(ws, sums, total)


@njit(**_options)
def _read_factor(ws, vectors, job, first, last):
    """The factor of the evidence of every lane, and for symbols the evidence of those not
    observed.
    """
    factor = vectors + 8 * LANES
    for lane in range(LANES):
        sample = min(first + lane, last) // job.subtrees
        ws[factor + lane] = read_number(np.float32(0), job.factor + sample * 4)
    if job.evidence == SYMBOLS:
        store(ws, factor, exp_nonpositive(load(ws, factor)))


@njit(**_options)
def _sum(ws, zero, block, columns, total):
    value = splat(zero)
    for x in range(columns):
        value = add(value, load(ws, block + x * LANES))
    store(ws, total, value)


@njit(**_options)
def _scale(ws, block, columns, factor):
    by = load(ws, factor)
    for x in range(columns):
        store(ws, block + x * LANES, multiply(load(ws, block + x * LANES), by))


@njit(**_options)
def _read_symbols(ws, one, block, columns, factor, spare, address, item_bytes, first, last):
    """Evidence of observed symbols: 1 for the symbol itself (for all if it is -1), the factor
    for the others.
    """
    nothing = np.int64(0)
    for lane in range(LANES):
        symbol = read_number(nothing, address + min(first + lane, last) * item_bytes)
        ws[spare + lane] = ws[factor + lane] if symbol >= 0 else one
    others = load(ws, spare)
    for x in range(columns):
        store(ws, block + x * LANES, others)
    for lane in range(LANES):
        symbol = read_number(nothing, address + min(first + lane, last) * item_bytes)
        if symbol >= 0:
            ws[block + symbol * LANES + lane] = one


@njit(**_options)
def _up_node(ws, zero, left, slot, out, scale, sums, low, s, n, m, start, uniform, index, weight):
    """Compute the upward message of a node from those of its children, its scale and its sum;
    `low`: smallest z of the tile.
    """
    zeros = splat(zero)
    total = zeros
    right = left + slot
    for y in range(n):
        k = start + y * m
        end = k + m
        a = zeros
        if s == 2 and uniform:
            b = zeros
            while k + 2 <= end:
                a = multiply_add(
                    load(ws, left + index[2 * k]), load(ws, right + index[2 * k + 1]), a
                )
                b = multiply_add(
                    load(ws, left + index[2 * k + 2]), load(ws, right + index[2 * k + 3]), b
                )
                k += 2
            if k < end:
                a = multiply_add(
                    load(ws, left + index[2 * k]), load(ws, right + index[2 * k + 1]), a
                )
            a = add(a, b)
        else:
            while k < end:
                term = load(ws, left + index[s * k])
                for i in range(1, s - 1):
                    term = multiply(term, load(ws, left + i * slot + index[s * k + i]))
                if not uniform:
                    term = multiply(term, splat(weight[k]))
                a = multiply_add(term, load(ws, left + (s - 1) * slot + index[s * k + s - 1]), a)
                k += 1
        store(ws, out + y * LANES, a)
        total = add(total, a)
    store(ws, low, smallest(total, load(ws, low)))
    factor = power_of_two_over(total)
    store(ws, scale, factor)
    store(ws, sums, multiply(total, factor))
    for y in range(n):
        store(ws, out + y * LANES, multiply(load(ws, out + y * LANES), factor))


@njit(**_options)
def _down_child(
    ws, zero, left, slot, i, above, scale, down, keep, marginal, sums, totals, s, v, row, uniform, start, index, weight
):  # fmt: skip
    """Compute the downward message of child i, and the sums over symbols of it and of its marginal
    (`totals`, `sums`).

    The marginal is stored if `keep`.
    """
    zeros = splat(zero)
    factor = load(ws, scale)
    sum_down, sum_marginal = zeros, zeros
    me, sibling = left + i * slot, left + (1 - i) * slot
    end = start[row]
    for x in range(v):
        k = end
        end = start[row + x + 1]
        a = zeros
        if s == 2 and uniform:
            b = zeros
            while k + 2 <= end:
                a = multiply_add(
                    load(ws, above + index[2 * k]), load(ws, sibling + index[2 * k + 1]), a
                )
                b = multiply_add(
                    load(ws, above + index[2 * k + 2]), load(ws, sibling + index[2 * k + 3]), b
                )
                k += 2
            if k < end:
                a = multiply_add(
                    load(ws, above + index[2 * k]), load(ws, sibling + index[2 * k + 1]), a
                )
            a = add(a, b)
        else:
            while k < end:
                term = load(ws, above + index[s * k])
                for j in range(1, s):
                    other = j - 1 if j <= i else j
                    term = multiply(term, load(ws, left + other * slot + index[s * k + j]))
                if not uniform:
                    term = multiply(term, splat(weight[k]))
                a = add(a, term)
                k += 1
        a = multiply(a, factor)
        store(ws, down + x * LANES, a)
        sum_down = add(sum_down, a)
        a = multiply(a, load(ws, me + x * LANES))
        if keep:
            store(ws, marginal + x * LANES, a)
        sum_marginal = add(sum_marginal, a)
    store(ws, totals, sum_down)
    store(ws, sums, sum_marginal)


@njit(**_options)
def _reciprocal(ws, one, at):
    store(ws, at, divide(splat(one), load(ws, at)))


@njit(**_options)
def _accumulate_deviation(ws, one, value, into):
    """into += (value - 1)^2: large, infinite or NaN if a marginal does not add up to 1."""
    deviation = subtract(load(ws, value), splat(one))
    store(ws, into, multiply_add(deviation, deviation, load(ws, into)))


@njit(**_options)
def _add_beliefs(ws, up, down, over, truth, origin, place, nodes, node, beliefs):
    """Add the marginal of one node at the true symbol of each lane, `up * down * over`, to
    `beliefs`.

    `truth`: address of the true symbols of a tree level, int64 (originals, subtrees, nodes).
    `origin`, `place`: number of the first subtree of the lane's original, and of the lane's subtree
    after it.
    """
    nothing = np.int64(0)
    for lane in range(LANES):
        symbol = read_number(nothing, truth + ((origin[lane] + place[lane]) * nodes + node) * 8)
        at = symbol * LANES + lane
        belief = np.float64(ws[down + at] * ws[up + at] * ws[over + lane])
        beliefs[lane] += np.int64(belief * FIXED_POINT + 0.5)


@njit(**_options)
def upward_tile(ws, one, first, base, slot, vectors, rules, job, upward, log_sum):
    """Upward pass of a tile. Blocks: leaves first, level by level. Writes wanted upward
    messages.
    """
    s, low, high, last = job.branching, job.low, job.high, job.items - 1
    zero = one - one
    height = high - low
    leaves = s**height
    v = rules.symbols[low]
    row_bytes = v * size_of(ws)
    unit, least, sums, highest, spare = (
        vectors,
        vectors + LANES,
        vectors + 2 * LANES,
        vectors + 3 * LANES,
        vectors + 4 * LANES,
    )
    scales, factor = vectors + _VECTORS * LANES, vectors + 8 * LANES
    store(ws, unit, splat(one))
    store(ws, least, splat(one))
    store(ws, sums, splat(zero))
    log_sum[:] = 0.0
    if job.evidence == SCALED or job.evidence == SYMBOLS:
        _read_factor(ws, vectors, job, first, last)
    for node in range(leaves // s):
        for i in range(s):
            leaf = node * s + i
            block = base[0] + leaf * slot
            if job.evidence == SYMBOLS:
                _read_symbols(
                    ws, one, block, v, factor, spare, job.source + leaf * 8, leaves * 8, first, last
                )
            else:
                _read_rows(
                    ws, block, v, job.source + leaf * row_bytes, leaves * row_bytes, first, last
                )
            if job.evidence == SCALED:
                _scale(ws, block, v, factor)
            if job.evidence == LOG or job.evidence == SCALED:
                _exponentiate(ws, block, v, highest, spare)
                store(ws, sums, add(load(ws, spare), load(ws, sums)))
                if job.logs:
                    for lane in range(LANES):
                        log_sum[lane] += np.float64(ws[highest + lane])
            if job.evidence != MESSAGES and upward[low] != 0:
                if job.evidence == SYMBOLS:
                    _sum(ws, zero, block, v, spare)
                _reciprocal(ws, one, spare)
                address = upward[low] + leaf * row_bytes
                _write_rows(ws, block, spare, v, address, leaves * row_bytes, first, last)
        position, above, nodes = node, 0, leaves
        while above < height:
            below, above = above, above + 1
            nodes //= s
            level = low + above
            n, m = rules.symbols[level], rules.multiplicity[level]
            block = base[above] + position * slot
            scale = scales + (base[above] // slot - leaves + position) * LANES
            children = base[below] + position * s * slot
            _up_node(
                ws, zero, children, slot, block, scale, spare, least, s, n, m, rules.start[level], rules.uniform[level] != 0,
                rules.up_index, rules.up_weight,
            )  # fmt: skip
            if upward[level] != 0:
                size = n * size_of(ws)
                _reciprocal(ws, one, spare)
                address = upward[level] + position * size
                _write_rows(ws, block, spare, n, address, nodes * size, first, last)
            if position % s != s - 1:
                break
            position //= s


@njit(**_options)
def _add_log_normalisers(ws, scales, count, log_sum):
    for lane in range(LANES):
        product = 1.0
        for node in range(count):
            product *= np.float64(ws[scales + node * LANES + lane])
            if product > 1e20 or product < 1e-20:
                log_sum[lane] -= np.log(product)
                product = 1.0
        log_sum[lane] -= np.log(product)


@njit(**_options)
def downward_tile(
    ws, one, first, base, slot, vectors, stack, rules, job, marginals, downward, truth, origin, place,
    beliefs
):  # fmt: skip
    """Downward pass of a tile, depth first: the messages of a node's s children share one slot a
    level of the stack.
    """
    s, low, high, last = job.branching, job.low, job.high, job.items - 1
    zero = one - one
    height = high - low
    leaves = s**height
    v = rules.symbols[low]
    unit, deviation, sums, totals = (
        vectors,
        vectors + 5 * LANES,
        vectors + 6 * LANES,
        vectors + 7 * LANES,
    )
    scales = vectors + _VECTORS * LANES
    marginal, most = stack[0], vectors + 3 * LANES
    store(ws, deviation, splat(zero))
    store(ws, most, splat(zero))
    for node in range(leaves // s):
        # Start with the highest ancestor whose subtree begins at this node of level 1.
        step, top = 1, 1
        while top < height and node % (step * s) == 0:
            step *= s
            top += 1
        for k in range(top, 0, -1):
            position = node // step
            level = low + k
            children = base[k - 1] + position * s * slot
            scale = scales + (base[k] // slot - leaves + position) * LANES
            above = stack[1 + k] + (position % s) * slot
            size = v * size_of(ws)
            item_bytes = s ** (height - k + 1) * size
            for i in range(s):
                down = stack[k] + i * slot
                keep = marginals[level - 1] != 0
                _down_child(
                    ws, zero, children, slot, i, above, scale, down, keep, marginal, sums, totals, s, v,
                    (level * s + i) * (v + 1), rules.uniform[level] != 0, rules.down_start, rules.down_index, rules.down_weight,
                )  # fmt: skip
                _accumulate_deviation(ws, one, sums, deviation)
                store(ws, most, largest(load(ws, totals), load(ws, most)))
                offset = (position * s + i) * size
                if keep or job.copies != 0:
                    _reciprocal(ws, one, sums)
                if job.copies != 0:
                    nodes = s ** (height - k + 1)
                    row = pointer_at(beliefs, (k - 1) * LANES)
                    _add_beliefs(
                        ws, children + i * slot, down, sums, truth[level - 1], origin, place, nodes, position * s + i, row
                    )  # fmt: skip
                if keep:
                    address = marginals[level - 1] + offset
                    _write_rows(ws, marginal, sums, v, address, item_bytes, first, last)
                if downward[level - 1] != 0:
                    _reciprocal(ws, one, totals)
                    address = downward[level - 1] + offset
                    _write_rows(ws, down, totals, v, address, item_bytes, first, last)
                if k == 1 and job.leaf_out != 0:
                    _write_rows(ws, down, unit, v, job.leaf_out + offset, item_bytes, first, last)
            step //= s


@njit(**_options)
def _root(ws, one, up, down, marginal, n, sums, spare, class_probability):
    """The prior as the root's downward message, scaled; the root's marginal; 1/scale in `spare`."""
    total = splat(one - one)
    for y in range(n):
        value = multiply(splat(class_probability[y]), load(ws, up + y * LANES))
        store(ws, marginal + y * LANES, value)
        total = add(total, value)
    factor = divide(splat(one), total)
    store(ws, spare, factor)
    store(ws, sums, factor)
    for y in range(n):
        store(ws, down + y * LANES, multiply(splat(class_probability[y]), factor))


@njit(**_options)
def _rule_pointers(tables):
    return Rules(
        pointer(tables.symbols), pointer(tables.multiplicity), pointer(tables.start), pointer(tables.uniform),
        pointer(tables.up_index), pointer(tables.up_weight), pointer(tables.down_start), pointer(tables.down_index),
        pointer(tables.down_weight), pointer(tables.class_probability),
    )  # fmt: skip


@njit(**_options)
def _layout(s, height, columns):
    """Offsets in the workspace: node messages by level, vectors, and the stack of downward
    messages; the end.

    vectors: ones, smallest z, sum of the leaves' sums, top, spare, deviation, sum of a marginal,
    sum of a downward message, factor of the evidence; then the scale of every inner node. stack: a
    block for marginals, the s children's messages at heights 1..height, the root's.
    """
    slot = columns * LANES
    base, stack = np.empty(height + 1, np.int64), np.empty(height + 2, np.int64)
    end = 0
    for k in range(height + 1):
        base[k] = end
        end += s ** (height - k) * slot
    vectors = end
    end += (_VECTORS + (s**height - 1) // (s - 1)) * LANES
    stack[0] = end
    end += slot
    for k in range(1, height + 2):
        stack[k] = end
        end += s * slot
    return slot, base, vectors, stack, end


@njit(**_options)
def workspace_size(s, height, columns):
    return _layout(s, height, columns)[-1]


@njit(**_options)
def run_tiles(
    first_tile, last_tile, workspace, one, limits, tables, job, upward, marginals, downward, logs, truth, beliefs, status
):  # fmt: skip
    """Belief propagation on the tiles first_tile .. last_tile - 1 of a band.

    `workspace`: that of this thread. `upward`, `marginals`, `downward`: addresses of the outputs,
    by level. `truth`: addresses of the true symbols, int64 (originals, nodes), by level, if
    `job.copies` samples belong to each original. Written for each item: `logs`, the log of the
    total divisor of its messages; `beliefs` (levels of the band, items), the marginals at the true
    symbols, added over nodes, in fixed point; and `status`, OK, REDO or INVALID.
    """
    s, low, high = job.branching, job.low, job.high
    height = high - low
    leaves = s**height
    ws, rules = pointer(workspace), _rule_pointers(tables)
    v, n = rules.symbols[low], rules.symbols[high]
    slot, base, vectors, stack, _ = _layout(s, height, max(v, n))
    least, checked, deviation = vectors + LANES, vectors + 2 * LANES, vectors + 5 * LANES
    sums, spare, most = vectors + 6 * LANES, vectors + 4 * LANES, vectors + 3 * LANES
    log_sum = np.empty(LANES)
    sums_array = np.zeros((height + 1) * LANES, np.int64)
    origin_array, place_array = np.empty(LANES, np.int64), np.empty(LANES, np.int64)
    believed, origin, place = pointer(sums_array), pointer(origin_array), pointer(place_array)
    constant = 0.0
    for level in range(low + 1, high + 1):
        if rules.uniform[level] != 0:
            constant -= s ** (high - level) * np.log(np.float64(rules.multiplicity[level]))
    size = n * size_of(ws)

    before = flush_denormals()
    for tile in range(first_tile, last_tile):
        first, last = tile * LANES, job.items - 1
        upward_tile(ws, one, first, base, slot, vectors, rules, job, upward, log_sum)
        if job.logs:
            _add_log_normalisers(ws, vectors + _VECTORS * LANES, (leaves - 1) // (s - 1), log_sum)
        if job.root_out != 0:
            _write_rows(ws, base[height], vectors, n, job.root_out, size, first, last)
        store(ws, deviation, splat(one - one))
        store(ws, most, splat(one - one))
        root = stack[height + 1]
        if job.copies != 0:
            for lane in range(LANES):
                item = min(first + lane, last)
                origin[lane] = (job.start + item // job.subtrees) // job.copies * job.subtrees
                place[lane] = item % job.subtrees
            for k in range((height + 1) * LANES):
                believed[k] = 0
        if job.top:
            _root(ws, one, base[height], root, stack[0], n, sums, spare, rules.class_probability)
            if marginals[high] != 0:
                _write_rows(ws, stack[0], sums, n, marginals[high], size, first, last)
            if job.copies != 0:
                row = pointer_at(believed, height * LANES)
                _add_beliefs(ws, base[height], root, vectors, truth[high], origin, place, 1, 0, row)
            if job.logs:
                for lane in range(LANES):
                    log_sum[lane] -= np.log(np.float64(ws[spare + lane]))
        elif job.root_in != 0:
            _read_rows(ws, root, n, job.root_in, size, first, last)
        if job.downward:
            downward_tile(
                ws, one, first, base, slot, vectors, stack, rules, job, marginals, downward, truth, origin,
                place, believed,
            )  # fmt: skip
        for lane in range(min(LANES, job.items - first)):
            fine = ws[least + lane] >= limits.smallest_z and ws[deviation + lane] < 1e-4
            fine = fine and ws[most + lane] <= limits.largest_down
            if job.top:
                fine = fine and ws[spare + lane] <= limits.largest_down
            if np.isnan(ws[checked + lane]):
                status[first + lane] = INVALID
            elif not fine:
                status[first + lane] = REDO
            if job.logs:
                logs[first + lane] = log_sum[lane] + constant
            if job.copies != 0:
                for k in range(height + 1):
                    beliefs[k, first + lane] = believed[k * LANES + lane]
    # Pointers do not keep their arrays alive, so the arrays are used here, after the last use of
    # the pointers.
    sums_array[0] = origin_array[0] + place_array[0]
    restore_denormals(before)


@njit(**_options)
def _term(ws, children, slot, s, rule, uniform, index, weight):
    """p(rule) prod_i up_i[x_i] for the lane at `children`; uniform probabilities are left out."""
    if s == 2:
        term = ws[children + index[2 * rule]] * ws[children + slot + index[2 * rule + 1]]
    else:
        term = ws[children + index[s * rule]]
        for i in range(1, s):
            term *= ws[children + i * slot + index[s * rule + i]]
    return term if uniform else term * weight[rule]


@njit(**_options)
def _draw_rules(
    ws,
    node,
    children,
    slot,
    scale,
    s,
    m,
    start,
    uniform,
    index,
    weight,
    symbols,
    uniforms,
    totals,
    choice,
):
    """Draw a rule for the symbol of each lane with probability ~ p(rule) prod_i up_i[x_i]; its row
    into `choice`.

    The upward message of the node is the sum of these terms, times `scale`: into `totals` without
    the scale.
    """
    for lane in range(LANES):
        total = np.float64(ws[node + symbols[lane] * LANES + lane]) / np.float64(ws[scale + lane])
        totals[lane] = total
        target = uniforms[lane] * total
        first = start + symbols[lane] * m
        below, chosen = 0.0, first
        for rule in range(first, first + m):
            below += np.float64(_term(ws, children + lane, slot, s, rule, uniform, index, weight))
            # The number of partial sums that are not above the target.
            chosen += 1 if below <= target else 0
        if chosen == first + m:  # rounding put the target above the last partial sum
            chosen -= 1
            while (
                chosen > first
                and _term(ws, children + lane, slot, s, chosen, uniform, index, weight) == 0.0
            ):
                chosen -= 1
        choice[lane] = chosen


@njit(**_options)
def _uniforms(streams, offset, first, nodes, uniforms):
    """The uniform number of a node in every lane, in a loop that becomes vector code."""
    wide_vectors()
    for lane in range(LANES):
        uniforms[lane] = uniform_at(streams[lane], np.uint64(first + offset[lane] * nodes))


@njit(**_options)
def sample_tiles(
    first_tile, last_tile, workspace, one, limits, tables, job, keys, numbers, draw_items, out, status
):  # fmt: skip
    """Draw the nodes of a band below its root from the posterior (and the root's symbol, in the top
    band).

    `out`: addresses, by level, of int64 arrays (draws, samples, nodes); draws are `draw_items`
    items apart. A random number is a function of the sample's key, the draw's number (in `numbers`)
    and the node's number in the tree, counted level by level from the root (0 is for the root's
    symbol).
    """
    s, low, high = job.branching, job.low, job.high
    height = high - low
    ws, rules = pointer(workspace), _rule_pointers(tables)
    v, n = rules.symbols[low], rules.symbols[high]
    slot, base, vectors, _, _ = _layout(s, height, max(v, n))
    log_sum, cumulative, uniforms = np.empty(LANES), np.empty(LANES), np.empty(LANES)
    symbols_array, choice_array = np.empty(LANES, np.int64), np.empty(LANES, np.int64)
    streams, offset = np.empty(LANES, np.uint64), np.empty(LANES, np.int64)
    uniform_at_lane, totals = pointer(uniforms), pointer(cumulative)
    symbols, choice = pointer(symbols_array), pointer(choice_array)
    nothing = np.zeros(high + 1, np.int64)
    subtrees = job.subtrees
    least, checked, scales = vectors + LANES, vectors + 2 * LANES, vectors + _VECTORS * LANES

    streams_at, offset_at = pointer(streams), pointer(offset)
    wide_vectors()
    before = flush_denormals()
    for tile in range(first_tile, last_tile):
        first = tile * LANES
        count = min(LANES, job.items - first)
        upward_tile(ws, one, first, base, slot, vectors, rules, job, nothing, log_sum)
        for lane in range(count):
            if np.isnan(ws[checked + lane]):
                status[first + lane] = INVALID
            elif not ws[least + lane] >= limits.smallest_z:
                status[first + lane] = REDO
        for draw in range(len(numbers)):
            row = draw * draw_items + first
            for lane in range(LANES):
                item = min(first + lane, job.items - 1)
                streams[lane] = fold(keys[item // subtrees], numbers[draw])
                offset[lane] = item % subtrees
            if job.top:
                for lane in range(count):
                    total = 0.0
                    for y in range(n):
                        total += np.float64(
                            ws[base[height] + y * LANES + lane] * rules.class_probability[y]
                        )
                    if not total >= limits.smallest_weight:
                        status[first + lane] = max(status[first + lane], REDO)
                    target = total * uniform_at(streams[lane], np.uint64(0))
                    partial, chosen = 0.0, 0
                    for y in range(n):
                        weight = np.float64(
                            ws[base[height] + y * LANES + lane] * rules.class_probability[y]
                        )
                        if weight > 0.0:
                            partial += weight
                            chosen = y
                            if partial > target:
                                break
                    write_number(chosen, out[high] + (row + lane) * 8)
            nodes = 1
            for k in range(height, 0, -1):
                level = low + k
                m = rules.multiplicity[level]
                uniform = rules.uniform[level] != 0
                # Nodes above this level, and the root's symbol.
                above = 1 + (subtrees * nodes - 1) // (s - 1)
                for node in range(nodes):
                    for lane in range(LANES):
                        at = min(lane, count - 1)
                        symbols[lane] = read_number(0, out[level] + ((row + at) * nodes + node) * 8)
                    _uniforms(streams_at, offset_at, above + node, nodes, uniform_at_lane)
                    _draw_rules(
                        ws, base[k] + node * slot, base[k - 1] + node * s * slot, slot,
                        scales + (base[k] // slot - s**height + node) * LANES, s, m, rules.start[level], uniform, rules.up_index,
                        rules.up_weight, symbols, uniform_at_lane, totals, choice,
                    )  # fmt: skip
                    for lane in range(count):
                        if not totals[lane] >= limits.smallest_weight:
                            status[first + lane] = max(status[first + lane], REDO)
                        address = out[level - 1] + ((row + lane) * nodes + node) * s * 8
                        for i in range(s):
                            write_number(
                                np.int64(rules.up_index[s * choice[lane] + i]) // LANES,
                                address + i * 8,
                            )
                nodes *= s
        # Pointers do not keep their arrays alive, so the arrays are used here, after the last use
        # of the pointers.
        log_sum[0] = (
            uniforms[0]
            + cumulative[0]
            + symbols_array[0]
            + choice_array[0]
            + offset[0]
            + np.float64(streams[0])
        )
    restore_denormals(before)
