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
from uturn.core.evidence import LOG, SCALED, SYMBOLS
from uturn.core.random import fold, uniform_at
from uturn.exact.inference.evidence import MESSAGES
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

# Status of an item.
OK = 0
REDO = 1
INVALID = 2
FIXED_POINT = 2.0**32
"""Beliefs are added as integers: the sum does not depend on the order, and is off by 1e-10 a node at
most."""

# Vectors of a tile: their offsets in the workspace, from `Tile.vectors` on.
UNIT = 0 * LANES
"""Ones."""
LEAST = 1 * LANES
"""Smallest z of a node."""
LEAVES = 2 * LANES
"""Sum over leaves of their sums, NaN if a leaf has no finite largest log-evidence."""
HIGHEST = 3 * LANES
"""Largest log-evidence of the leaf that is read."""
LARGEST_DOWN = 4 * LANES
"""Largest sum of a downward message."""
NODE_SUM = 5 * LANES
"""Sum of the upward message of the current node, or one over it."""
ROOT_SCALE = 6 * LANES
"""One over the probability of the evidence, at the root."""
DEVIATION = 7 * LANES
"""Sum of squares of how much the sums of marginals differ from 1."""
MARGINAL_SUM = 8 * LANES
"""Sum of the marginal of the current child, or one over it."""
DOWN_SUM = 9 * LANES
"""Sum of the downward message of the current child, or one over it."""
FACTOR = 10 * LANES
"""Factor of the evidence."""
SCALES = 11 * LANES
"""From here on: the scale of every inner node."""

Rules = namedtuple(
    "Rules",
    # Sizes of every level, row of its first rule, whether its rules are equally likely.
    "symbols multiplicity start uniform "
    # Children of all rules, and probabilities. Symbols are multiplied by LANES: they are offsets
    # into a message.
    "up_index up_weight "
    # The rules in the order of the symbol of each child, see `engine._kernel_rules`.
    "down_start down_index down_weight "
    "class_probability",
)
Job = namedtuple(
    "Job",
    # Levels of the band; is it the top band; number of items, and of a sample's.
    "branching low high top items subtrees "
    # Addresses of memory, 0 if not wanted: read at the low level; messages exchanged with the bands
    # around.
    "source evidence factor root_out root_in leaf_out "
    # Whether to go down; to write log totals; samples of an original (0: no beliefs); first sample.
    "downward logs copies start",
)
Limits = namedtuple("Limits", "smallest_z largest_down smallest_weight")  # see Range above
Tile = namedtuple(
    "Tile",
    # Workspace; the number 1 in its type; numbers in a message.
    "ws one slot "
    # Offsets in the workspace: node messages by level; the vectors above; a block for marginals,
    # then the downward messages of the s children at heights 1 .. height, and the root's.
    "base vectors stack "
    # Leaves of an item; numbers of the first item, and of the last item of the band.
    "leaves first last",
)
Step = namedtuple(
    "Step",
    # The rules of one level: branching; symbols and rules of a symbol; row of the first rule.
    "s n m start uniform index weight",
)

_options = {"nogil": True, "cache": True, "error_model": "numpy"}
_inlined = {**_options, "inline": "always"}  # else all arguments are copied at every node


@njit(**_options)
def _read_rows(tile, target, columns, address, item_bytes):
    """Read a message of LANES items from memory rows into a tile block; lanes beyond the last
    item repeat it.
    """
    ws = tile.ws
    size = size_of(ws)
    per_line = 64 // size
    whole = columns // per_line * per_line
    row_bytes = columns * size
    for lane in range(0, LANES, per_line):
        for x in range(0, whole, per_line):
            block = target + x * LANES + lane
            item = tile.first + lane
            read_block(ws, block, address + x * size, item_bytes, item, tile.last, row_bytes)
    for lane in range(LANES if whole < columns else 0):
        row = address + min(tile.first + lane, tile.last) * item_bytes
        for x in range(whole, columns):
            ws[target + x * LANES + lane] = read_number(ws[0], row + x * size)


@njit(**_options)
def _write_rows(tile, source, scale, columns, address, item_bytes):
    """Write a tile block, scaled by the vector at `scale`, to memory rows."""
    ws = tile.ws
    size = size_of(ws)
    per_line = 64 // size
    whole = columns // per_line * per_line
    is_aligned = address % 64 == 0 and item_bytes % 64 == 0
    streams = whole == columns and is_aligned
    lanes = min(LANES, tile.last - tile.first + 1)
    for lane in range(0, lanes, per_line):
        item = tile.first + lane
        for x in range(0, whole, per_line):
            block = source + x * LANES + lane
            target = address + x * size
            if streams:
                stream_block(ws, block, scale + lane, target, item_bytes, item, tile.last)
            else:
                write_block(ws, block, scale + lane, target, item_bytes, item, tile.last)
    for lane in range(lanes if whole < columns else 0):
        row = address + (tile.first + lane) * item_bytes
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
def _read_factor(tile, job):
    """The factor of the evidence of every lane, and for symbols the evidence of those not
    observed.
    """
    ws = tile.ws
    factor = tile.vectors + FACTOR
    for lane in range(LANES):
        sample = min(tile.first + lane, tile.last) // job.subtrees
        ws[factor + lane] = read_number(np.float32(0), job.factor + sample * 4)
    if job.evidence == SYMBOLS:
        store(ws, factor, exp_nonpositive(load(ws, factor)))


@njit(**_options)
def _sum(ws, zero, block, columns, total):
    """Store the sum over the columns of a block."""
    value = splat(zero)
    for x in range(columns):
        value = add(value, load(ws, block + x * LANES))
    store(ws, total, value)


@njit(**_options)
def _scale(ws, block, columns, factor):
    """Multiply a block by the vector at `factor`."""
    of_lanes = load(ws, factor)
    for x in range(columns):
        store(ws, block + x * LANES, multiply(load(ws, block + x * LANES), of_lanes))


@njit(**_options)
def _read_symbols(tile, block, columns, address, item_bytes):
    """Evidence of observed symbols: 1 for the symbol itself (for all if it is -1), the factor
    for the others.
    """
    ws = tile.ws
    factor = tile.vectors + FACTOR
    others = tile.vectors + NODE_SUM
    nothing = np.int64(0)
    for lane in range(LANES):
        symbol = read_number(nothing, address + min(tile.first + lane, tile.last) * item_bytes)
        ws[others + lane] = ws[factor + lane] if symbol >= 0 else tile.one
    of_others = load(ws, others)
    for x in range(columns):
        store(ws, block + x * LANES, of_others)
    for lane in range(LANES):
        symbol = read_number(nothing, address + min(tile.first + lane, tile.last) * item_bytes)
        if symbol >= 0:
            ws[block + symbol * LANES + lane] = tile.one


@njit(**_options)
def _sum_of_products(ws, zeros, left, right, index, first, end):
    """Sum of the products of two messages over the pairs of symbols first .. end - 1, in two
    accumulators.
    """
    a = zeros
    b = zeros
    k = first
    while k + 2 <= end:
        a = multiply_add(load(ws, left + index[2 * k]), load(ws, right + index[2 * k + 1]), a)
        b = multiply_add(load(ws, left + index[2 * k + 2]), load(ws, right + index[2 * k + 3]), b)
        k += 2
    if k < end:
        a = multiply_add(load(ws, left + index[2 * k]), load(ws, right + index[2 * k + 1]), a)
    return add(a, b)


@njit(**_options)
def _up_node(tile, step, children, out, scale):
    """Compute the upward message of a node from those of its children, with its scale and its
    sum.
    """
    ws = tile.ws
    s = step.s
    slot = tile.slot
    index = step.index
    zeros = splat(tile.one - tile.one)
    last_child = children + (s - 1) * slot
    total = zeros
    for y in range(step.n):
        first = step.start + y * step.m
        end = first + step.m
        if s == 2 and step.uniform:
            message = _sum_of_products(ws, zeros, children, last_child, index, first, end)
        else:
            message = zeros
            for k in range(first, end):
                term = load(ws, children + index[s * k])
                for i in range(1, s - 1):
                    term = multiply(term, load(ws, children + i * slot + index[s * k + i]))
                if not step.uniform:
                    term = multiply(term, splat(step.weight[k]))
                message = multiply_add(term, load(ws, last_child + index[s * k + s - 1]), message)
        store(ws, out + y * LANES, message)
        total = add(total, message)
    least = tile.vectors + LEAST
    store(ws, least, smallest(total, load(ws, least)))
    factor = power_of_two_over(total)
    store(ws, scale, factor)
    store(ws, tile.vectors + NODE_SUM, multiply(total, factor))
    for y in range(step.n):
        store(ws, out + y * LANES, multiply(load(ws, out + y * LANES), factor))


@njit(**_options)
def _down_child(tile, step, children, i, above, scale, down, row, keep):
    """Compute the downward message of child i, and the sums over symbols of it and of its
    marginal.

    `row`: row of `step.start` with the rules of the child. The marginal is stored if `keep`.
    """
    ws = tile.ws
    s = step.s
    slot = tile.slot
    index = step.index
    zeros = splat(tile.one - tile.one)
    factor = load(ws, scale)
    child = children + i * slot
    sibling = children + (1 - i) * slot
    marginal = tile.stack[0]
    sum_down = zeros
    sum_marginal = zeros
    end = step.start[row]
    for x in range(step.n):
        first = end
        end = step.start[row + x + 1]
        if s == 2 and step.uniform:
            message = _sum_of_products(ws, zeros, above, sibling, index, first, end)
        else:
            message = zeros
            for k in range(first, end):
                term = load(ws, above + index[s * k])
                for j in range(1, s):
                    other = j - 1 if j <= i else j
                    term = multiply(term, load(ws, children + other * slot + index[s * k + j]))
                if not step.uniform:
                    term = multiply(term, splat(step.weight[k]))
                message = add(message, term)
        message = multiply(message, factor)
        store(ws, down + x * LANES, message)
        sum_down = add(sum_down, message)
        product = multiply(message, load(ws, child + x * LANES))
        if keep:
            store(ws, marginal + x * LANES, product)
        sum_marginal = add(sum_marginal, product)
    store(ws, tile.vectors + DOWN_SUM, sum_down)
    store(ws, tile.vectors + MARGINAL_SUM, sum_marginal)


@njit(**_options)
def _reciprocal(ws, one, vector):
    """Replace a vector by one over it."""
    store(ws, vector, divide(splat(one), load(ws, vector)))


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
        column = symbol * LANES + lane
        belief = np.float64(ws[down + column] * ws[up + column] * ws[over + lane])
        beliefs[lane] += np.int64(belief * FIXED_POINT + 0.5)


@njit(**_inlined)
def _read_leaf(tile, rules, job, leaf, upward, log_sum):
    """Read the evidence of a leaf into its block; write its normalised evidence if wanted."""
    ws = tile.ws
    v = rules.symbols[job.low]
    leaves = tile.leaves
    row_bytes = v * size_of(ws)
    block = tile.base[0] + leaf * tile.slot
    total = tile.vectors + NODE_SUM
    if job.evidence == SYMBOLS:
        _read_symbols(tile, block, v, job.source + leaf * 8, leaves * 8)
    else:
        _read_rows(tile, block, v, job.source + leaf * row_bytes, leaves * row_bytes)
    if job.evidence == SCALED:
        _scale(ws, block, v, tile.vectors + FACTOR)
    if job.evidence == LOG or job.evidence == SCALED:
        highest = tile.vectors + HIGHEST
        of_leaves = tile.vectors + LEAVES
        _exponentiate(ws, block, v, highest, total)
        store(ws, of_leaves, add(load(ws, total), load(ws, of_leaves)))
        if job.logs:
            for lane in range(LANES):
                log_sum[lane] += np.float64(ws[highest + lane])
    if job.evidence != MESSAGES and upward[job.low] != 0:
        if job.evidence == SYMBOLS:
            _sum(ws, tile.one - tile.one, block, v, total)
        _reciprocal(ws, tile.one, total)
        address = upward[job.low] + leaf * row_bytes
        _write_rows(tile, block, total, v, address, leaves * row_bytes)


@njit(**_options)
def _scale_of(tile, k, position):
    """Offset of the scale of a node at height k of the band."""
    number = tile.base[k] // tile.slot - tile.leaves + position
    return tile.vectors + SCALES + number * LANES


@njit(**_options)
def upward_tile(tile, rules, job, upward, log_sum):
    """Upward pass of a tile. Blocks: leaves first, level by level. Writes wanted upward
    messages.
    """
    s = job.branching
    height = job.high - job.low
    leaves = tile.leaves
    ws = tile.ws
    store(ws, tile.vectors + UNIT, splat(tile.one))
    store(ws, tile.vectors + LEAST, splat(tile.one))
    store(ws, tile.vectors + LEAVES, splat(tile.one - tile.one))
    log_sum[:] = 0.0
    if job.evidence == SCALED or job.evidence == SYMBOLS:
        _read_factor(tile, job)
    for first_parent in range(leaves // s):
        for i in range(s):
            _read_leaf(tile, rules, job, first_parent * s + i, upward, log_sum)
        position = first_parent
        nodes = leaves
        for k in range(1, height + 1):
            nodes //= s
            level = job.low + k
            n = rules.symbols[level]
            step = Step(
                s,
                n,
                rules.multiplicity[level],
                rules.start[level],
                rules.uniform[level] != 0,
                rules.up_index,
                rules.up_weight,
            )
            block = tile.base[k] + position * tile.slot
            children = tile.base[k - 1] + position * s * tile.slot
            _up_node(tile, step, children, block, _scale_of(tile, k, position))
            if upward[level] != 0:
                size = n * size_of(ws)
                total = tile.vectors + NODE_SUM
                _reciprocal(ws, tile.one, total)
                address = upward[level] + position * size
                _write_rows(tile, block, total, n, address, nodes * size)
            if position % s != s - 1:
                break
            position //= s


@njit(**_options)
def _add_log_normalisers(ws, scales, count, log_sum):
    """Add minus the log of all scales to the sums of the lanes."""
    for lane in range(LANES):
        product = 1.0
        for node in range(count):
            product *= np.float64(ws[scales + node * LANES + lane])
            if product > 1e20 or product < 1e-20:
                log_sum[lane] -= np.log(product)
                product = 1.0
        log_sum[lane] -= np.log(product)


@njit(**_options)
def downward_tile(tile, rules, job, marginals, downward, truth, origin, place, beliefs):
    """Downward pass of a tile, depth first: the messages of a node's s children share one slot a
    level of the stack.
    """
    s = job.branching
    height = job.high - job.low
    for node in range(tile.leaves // s):
        # Start with the highest ancestor whose subtree begins at this node of level 1.
        width = 1
        top = 1
        while top < height and node % (width * s) == 0:
            width *= s
            top += 1
        for k in range(top, 0, -1):
            nodes = tile.leaves // width  # of the level below
            _down_from_node(
                tile, rules, job, k, node // width, nodes, marginals, downward, truth, origin, place,
                beliefs,
            )  # fmt: skip
            width //= s


@njit(**_inlined)
def _down_from_node(
    tile, rules, job, k, position, nodes, marginals, downward, truth, origin, place, beliefs
):
    """The downward messages of the children of a node at height k; writes what is wanted of them.

    `nodes`: number of nodes of the level of the children.
    """
    ws = tile.ws
    s = job.branching
    level = job.low + k
    v = rules.symbols[job.low]
    step = Step(
        s,
        v,
        rules.multiplicity[level],
        rules.down_start,
        rules.uniform[level] != 0,
        rules.down_index,
        rules.down_weight,
    )
    children = tile.base[k - 1] + position * s * tile.slot
    scale = _scale_of(tile, k, position)
    above = tile.stack[1 + k] + (position % s) * tile.slot
    marginal_sum = tile.vectors + MARGINAL_SUM
    down_sum = tile.vectors + DOWN_SUM
    largest_down = tile.vectors + LARGEST_DOWN
    size = v * size_of(ws)
    item_bytes = nodes * size
    keep = marginals[level - 1] != 0
    for i in range(s):
        down = tile.stack[k] + i * tile.slot
        row = (level * s + i) * (v + 1)
        _down_child(tile, step, children, i, above, scale, down, row, keep)
        _accumulate_deviation(ws, tile.one, marginal_sum, tile.vectors + DEVIATION)
        store(ws, largest_down, largest(load(ws, down_sum), load(ws, largest_down)))
        child = position * s + i
        if keep or job.copies != 0:
            _reciprocal(ws, tile.one, marginal_sum)
        if job.copies != 0:
            believed = pointer_at(beliefs, (k - 1) * LANES)
            up = children + i * tile.slot
            _add_beliefs(
                ws, up, down, marginal_sum, truth[level - 1], origin, place, nodes, child, believed
            )
        if keep:
            address = marginals[level - 1] + child * size
            _write_rows(tile, tile.stack[0], marginal_sum, v, address, item_bytes)
        if downward[level - 1] != 0:
            _reciprocal(ws, tile.one, down_sum)
            address = downward[level - 1] + child * size
            _write_rows(tile, down, down_sum, v, address, item_bytes)
        if k == 1 and job.leaf_out != 0:
            address = job.leaf_out + child * size
            _write_rows(tile, down, tile.vectors + UNIT, v, address, item_bytes)


@njit(**_options)
def _root(tile, up, down, n, class_probability):
    """The prior as the root's downward message, scaled; the root's marginal, and one over its
    sum.
    """
    ws = tile.ws
    marginal = tile.stack[0]
    total = splat(tile.one - tile.one)
    for y in range(n):
        value = multiply(splat(class_probability[y]), load(ws, up + y * LANES))
        store(ws, marginal + y * LANES, value)
        total = add(total, value)
    factor = divide(splat(tile.one), total)
    store(ws, tile.vectors + ROOT_SCALE, factor)
    store(ws, tile.vectors + MARGINAL_SUM, factor)
    for y in range(n):
        store(ws, down + y * LANES, multiply(splat(class_probability[y]), factor))


@njit(**_options)
def _rule_pointers(tables):
    """The rules with pointers in place of arrays."""
    return Rules(
        pointer(tables.symbols), pointer(tables.multiplicity), pointer(tables.start), pointer(tables.uniform),
        pointer(tables.up_index), pointer(tables.up_weight), pointer(tables.down_start), pointer(tables.down_index),
        pointer(tables.down_weight), pointer(tables.class_probability),
    )  # fmt: skip


@njit(**_options)
def _layout(s, height, columns):
    """Offsets in the workspace as in `Tile`: numbers in a message, node messages by level,
    vectors, the stack of downward messages; and the end.
    """
    slot = columns * LANES
    base = np.empty(height + 1, np.int64)
    stack = np.empty(height + 2, np.int64)
    end = 0
    for k in range(height + 1):
        base[k] = end
        end += s ** (height - k) * slot
    vectors = end
    end += SCALES + (s**height - 1) // (s - 1) * LANES
    stack[0] = end
    end += slot
    for k in range(1, height + 2):
        stack[k] = end
        end += s * slot
    return slot, base, vectors, stack, end


@njit(**_options)
def workspace_size(s, height, columns):
    """Numbers in the workspace of a thread."""
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
    s = job.branching
    low = job.low
    high = job.high
    height = high - low
    rules = _rule_pointers(tables)
    ws = pointer(workspace)
    n = rules.symbols[high]
    slot, base_array, vectors, stack_array, _ = _layout(s, height, max(rules.symbols[low], n))
    base = pointer(base_array)
    stack = pointer(stack_array)
    leaves = s**height
    up_root = base[height]
    down_root = stack[height + 1]
    log_sum = np.empty(LANES)
    sums_array = np.zeros((height + 1) * LANES, np.int64)
    origin_array = np.empty(LANES, np.int64)
    place_array = np.empty(LANES, np.int64)
    believed = pointer(sums_array)
    origin = pointer(origin_array)
    place = pointer(place_array)
    constant = 0.0
    for level in range(low + 1, high + 1):
        if rules.uniform[level] != 0:
            constant -= s ** (high - level) * np.log(np.float64(rules.multiplicity[level]))
    size = n * size_of(ws)
    last = job.items - 1

    before = flush_denormals()
    for number in range(first_tile, last_tile):
        first = number * LANES
        tile = Tile(ws, one, slot, base, vectors, stack, leaves, first, last)
        upward_tile(tile, rules, job, pointer(upward), log_sum)
        if job.logs:
            _add_log_normalisers(ws, vectors + SCALES, (leaves - 1) // (s - 1), log_sum)
        if job.root_out != 0:
            _write_rows(tile, up_root, vectors + UNIT, n, job.root_out, size)
        store(ws, vectors + DEVIATION, splat(one - one))
        store(ws, vectors + LARGEST_DOWN, splat(one - one))
        if job.copies != 0:
            for lane in range(LANES):
                item = min(first + lane, last)
                origin[lane] = (job.start + item // job.subtrees) // job.copies * job.subtrees
                place[lane] = item % job.subtrees
            for k in range((height + 1) * LANES):
                believed[k] = 0
        if job.top:
            _root(tile, up_root, down_root, n, rules.class_probability)
            if marginals[high] != 0:
                _write_rows(tile, stack[0], vectors + MARGINAL_SUM, n, marginals[high], size)
            if job.copies != 0:
                row = pointer_at(believed, height * LANES)
                _add_beliefs(
                    ws, up_root, down_root, vectors + UNIT, truth[high], origin, place, 1, 0, row
                )
            if job.logs:
                for lane in range(LANES):
                    log_sum[lane] -= np.log(np.float64(ws[vectors + ROOT_SCALE + lane]))
        elif job.root_in != 0:
            _read_rows(tile, down_root, n, job.root_in, size)
        if job.downward:
            downward_tile(
                tile,
                rules,
                job,
                pointer(marginals),
                pointer(downward),
                pointer(truth),
                origin,
                place,
                believed,
            )
        for lane in range(min(LANES, job.items - first)):
            in_range = ws[vectors + LEAST + lane] >= limits.smallest_z
            in_range = in_range and ws[vectors + DEVIATION + lane] < 1e-4
            in_range = in_range and ws[vectors + LARGEST_DOWN + lane] <= limits.largest_down
            if job.top:
                in_range = in_range and ws[vectors + ROOT_SCALE + lane] <= limits.largest_down
            if np.isnan(ws[vectors + LEAVES + lane]):
                status[first + lane] = INVALID
            elif not in_range:
                status[first + lane] = REDO
            if job.logs:
                logs[first + lane] = log_sum[lane] + constant
            if job.copies != 0:
                for k in range(height + 1):
                    beliefs[k, first + lane] = believed[k * LANES + lane]
    # Pointers do not keep their arrays alive, so the arrays are used here, after the last use of
    # the pointers.
    sums_array[0] = origin_array[0] + place_array[0] + base_array[0] + stack_array[0]
    restore_denormals(before)


@njit(**_options)
def _term(ws, slot, step, children, rule):
    """p(rule) prod_i up_i[x_i] for the lane at `children`; uniform probabilities are left out."""
    s = step.s
    index = step.index
    if s == 2:
        term = ws[children + index[2 * rule]] * ws[children + slot + index[2 * rule + 1]]
    else:
        term = ws[children + index[s * rule]]
        for i in range(1, s):
            term *= ws[children + i * slot + index[s * rule + i]]
    return term if step.uniform else term * step.weight[rule]


@njit(**_options)
def _draw_rules(ws, slot, step, node, children, scale, symbols, uniforms, totals, choice):
    """Draw a rule for the symbol of each lane with probability ~ p(rule) prod_i up_i[x_i]; its row
    into `choice`.

    The upward message of the node is the sum of these terms, times `scale`: into `totals` without
    the scale.
    """
    m = step.m
    for lane in range(LANES):
        total = np.float64(ws[node + symbols[lane] * LANES + lane]) / np.float64(ws[scale + lane])
        totals[lane] = total
        target = uniforms[lane] * total
        first = step.start + symbols[lane] * m
        below = 0.0
        chosen = first
        for rule in range(first, first + m):
            below += np.float64(_term(ws, slot, step, children + lane, rule))
            # The number of partial sums that are not above the target.
            chosen += 1 if below <= target else 0
        if chosen == first + m:  # rounding put the target above the last partial sum
            chosen -= 1
            while chosen > first and _term(ws, slot, step, children + lane, chosen) == 0.0:
                chosen -= 1
        choice[lane] = chosen


@njit(**_options)
def _uniforms(streams, offset, first, nodes, uniforms):
    """The uniform number of a node in every lane, in a loop that becomes vector code."""
    wide_vectors()
    for lane in range(LANES):
        uniforms[lane] = uniform_at(streams[lane], np.uint64(first + offset[lane] * nodes))


@njit(**_options)
def _sum_of_root(ws, up, n, class_probability):
    """Sum over symbols of prior times upward message of the root, for the lane at `up`."""
    total = 0.0
    for y in range(n):
        total += np.float64(ws[up + y * LANES] * class_probability[y])
    return total


@njit(**_options)
def _draw_root(ws, up, n, class_probability, target):
    """The first symbol at which the sum of `_sum_of_root` is above the target; the last possible
    one if rounding leaves none.
    """
    partial = 0.0
    chosen = 0
    for y in range(n):
        weight = np.float64(ws[up + y * LANES] * class_probability[y])
        if weight > 0.0:
            partial += weight
            chosen = y
            if partial > target:
                break
    return chosen


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
    s = job.branching
    low = job.low
    high = job.high
    height = high - low
    rules = _rule_pointers(tables)
    ws = pointer(workspace)
    n = rules.symbols[high]
    slot, base_array, vectors, stack_array, _ = _layout(s, height, max(rules.symbols[low], n))
    base = pointer(base_array)
    stack = pointer(stack_array)
    log_sum = np.empty(LANES)
    cumulative = np.empty(LANES)
    uniforms = np.empty(LANES)
    symbols_array = np.empty(LANES, np.int64)
    choice_array = np.empty(LANES, np.int64)
    streams = np.empty(LANES, np.uint64)
    offset = np.empty(LANES, np.int64)
    uniform_at_lane = pointer(uniforms)
    totals = pointer(cumulative)
    symbols = pointer(symbols_array)
    choice = pointer(choice_array)
    streams_at = pointer(streams)
    offset_at = pointer(offset)
    nothing = np.zeros(high + 1, np.int64)
    leaves = s**height
    subtrees = job.subtrees
    last = job.items - 1

    wide_vectors()
    before = flush_denormals()
    for tile_number in range(first_tile, last_tile):
        first = tile_number * LANES
        count = min(LANES, job.items - first)
        tile = Tile(ws, one, slot, base, vectors, stack, leaves, first, last)
        upward_tile(tile, rules, job, pointer(nothing), log_sum)
        for lane in range(count):
            if np.isnan(ws[vectors + LEAVES + lane]):
                status[first + lane] = INVALID
            elif not ws[vectors + LEAST + lane] >= limits.smallest_z:
                status[first + lane] = REDO
        for draw in range(len(numbers)):
            row = draw * draw_items + first
            for lane in range(LANES):
                item = min(first + lane, last)
                streams[lane] = fold(keys[item // subtrees], numbers[draw])
                offset[lane] = item % subtrees
            if job.top:
                for lane in range(count):
                    up = base[height] + lane
                    total = _sum_of_root(ws, up, n, rules.class_probability)
                    if not total >= limits.smallest_weight:
                        status[first + lane] = max(status[first + lane], REDO)
                    target = total * uniform_at(streams[lane], np.uint64(0))
                    symbol = _draw_root(ws, up, n, rules.class_probability, target)
                    write_number(symbol, out[high] + (row + lane) * 8)
            nodes = 1
            for k in range(height, 0, -1):
                level = low + k
                step = Step(
                    s,
                    rules.symbols[level],
                    rules.multiplicity[level],
                    rules.start[level],
                    rules.uniform[level] != 0,
                    rules.up_index,
                    rules.up_weight,
                )
                # Nodes above this level, and the root's symbol.
                above = 1 + (subtrees * nodes - 1) // (s - 1)
                for node in range(nodes):
                    for lane in range(LANES):
                        item = row + min(lane, count - 1)
                        symbols[lane] = read_number(0, out[level] + (item * nodes + node) * 8)
                    _uniforms(streams_at, offset_at, above + node, nodes, uniform_at_lane)
                    _draw_rules(
                        ws,
                        slot,
                        step,
                        base[k] + node * slot,
                        base[k - 1] + node * s * slot,
                        _scale_of(tile, k, node),
                        symbols,
                        uniform_at_lane,
                        totals,
                        choice,
                    )
                    for lane in range(count):
                        if not totals[lane] >= limits.smallest_weight:
                            status[first + lane] = max(status[first + lane], REDO)
                        address = out[level - 1] + ((row + lane) * nodes + node) * s * 8
                        for i in range(s):
                            child = np.int64(rules.up_index[s * choice[lane] + i]) // LANES
                            write_number(child, address + i * 8)
                nodes *= s
        # Pointers do not keep their arrays alive, so the arrays are used here, after the last use
        # of the pointers.
        floats = uniforms[0] + cumulative[0] + np.float64(streams[0])
        integers = symbols_array[0] + choice_array[0] + offset[0] + base_array[0] + stack_array[0]
        log_sum[0] = floats + integers
    restore_denormals(before)
