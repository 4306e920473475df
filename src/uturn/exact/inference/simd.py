"""A vector of LANES numbers as a numba type, with the few operations belief propagation needs.

LLVM compiles a 32-lane vector to whatever the machine has (two AVX-512 registers, four AVX2
registers, eight NEON ones), so sums over rules stay in registers, without relying on the
auto-vectoriser. All arithmetic is done per lane: a lane's result does not depend on its place in
the vector or on its neighbours.

After a change here, delete numba's cache of kernels.py (__pycache__/*.nbi): numba compares the date
of that file only.
"""

# mypy: ignore-errors
# (numba compiles this file and infers its types)
from __future__ import annotations

import math
import platform

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.cgutils import alloca_once
from numba.extending import intrinsic, models, register_model

LANES = 32
_LINE = 64  # bytes of a cache line
_EXP_SINGLE = [
    1.0,
    1.0,
    0.49999991059303284,
    0.16666419804096222,
    0.041668228805065155,
    0.008374856784939766,
    0.0013836794532835484,
]


# log 2 in two parts, the first with so few bits that its product with an exponent is exact.
LOG2_SINGLE = 0.693359375, -2.12194440054690583e-4
LOG2_DOUBLE = float.fromhex("0x1.62e42fee00000p-1"), 1.90821492927058770002e-10


class VectorType(types.Type):
    """numba's type of a vector register with `LANES` numbers."""

    def __init__(self, element):
        self.element = element
        super().__init__(name=f"Vector{LANES}({element})")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, ir.VectorType(_ir_float(vector.element), LANES))


def _ir_float(element):
    return ir.FloatType() if element == types.float32 else ir.DoubleType()


def _constant(vector, value):
    """The constant `value` in all lanes of an IR vector (or integer vector) type."""
    return ir.Constant(vector, [ir.Constant(vector.element, value)] * vector.count)


def _pointer(builder, data, offset, pointee):
    return builder.bitcast(builder.gep(data, [offset]), pointee.as_pointer())


def _operation(builder, name, vector, arguments):
    suffix = f"v{vector.count}f{32 if isinstance(vector.element, ir.FloatType) else 64}"
    function = ir.FunctionType(vector, [vector] * len(arguments))
    return builder.call(
        builder.module.declare_intrinsic(f"{name}.{suffix}", fnty=function), arguments
    )


@intrinsic
def pointer(typing_context, array):
    """The data pointer of an array. The kernels work on pointers because numba counts references
    of arrays with atomic operations at every call, which wait for all pending stores.
    """

    def codegen(context, builder, signature, arguments):
        return context.make_array(signature.args[0])(context, builder, value=arguments[0]).data

    return types.CPointer(array.dtype)(array), codegen


@intrinsic
def pointer_at(typing_context, array, offset):
    return array(array, types.uint64), lambda context, builder, signature, arguments: builder.gep(
        arguments[0], [arguments[1]]
    )


@intrinsic
def size_of(typing_context, array):
    """Bytes of a number behind a pointer."""
    size = array.dtype.bitwidth // 8
    return types.int64(array), lambda context, builder, signature, arguments: ir.IntType(64)(size)


@intrinsic
def load(typing_context, array, offset):
    """The vector at array[offset : offset + LANES]; offset must be a multiple of LANES, the
    pointer 64-byte aligned.
    """

    def codegen(context, builder, signature, arguments):
        vector = context.get_value_type(signature.return_type)
        pointer = _pointer(builder, *arguments, vector)
        return builder.load(pointer, align=_LINE)

    return VectorType(array.dtype)(array, types.uint64), codegen


@intrinsic
def store(typing_context, array, offset, value):
    """array[offset : offset + LANES] = value."""

    def codegen(context, builder, signature, arguments):
        pointer = _pointer(builder, *arguments[:2], arguments[2].type)
        builder.store(arguments[2], pointer, align=_LINE)
        return context.get_dummy_value()

    return types.void(array, types.uint64, value), codegen


@intrinsic
def splat(typing_context, number):

    def codegen(context, builder, signature, arguments):
        vector = context.get_value_type(signature.return_type)
        one = builder.insert_element(
            ir.Constant(vector, ir.Undefined), arguments[0], ir.IntType(32)(0)
        )
        return builder.shuffle_vector(
            one,
            ir.Constant(vector, ir.Undefined),
            ir.Constant(ir.VectorType(ir.IntType(32), LANES), None),
        )

    return VectorType(number)(number), codegen


def _binary(emit):
    @intrinsic
    def operation(typing_context, a, b):
        return a(a, b), lambda context, builder, signature, arguments: emit(builder, *arguments)

    return operation


add = _binary(lambda builder, a, b: builder.fadd(a, b))
subtract = _binary(lambda builder, a, b: builder.fsub(a, b))
multiply = _binary(lambda builder, a, b: builder.fmul(a, b))
divide = _binary(lambda builder, a, b: builder.fdiv(a, b))
# Where one is NaN, the second is taken (what x86 does in one instruction).
largest = _binary(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))
smallest = _binary(lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b))


@intrinsic
def multiply_add(typing_context, a, b, c):
    """a * b + c, fused where the machine can."""

    def codegen(context, builder, signature, arguments):
        return _operation(builder, "llvm.fmuladd", arguments[0].type, arguments)

    return a(a, b, c), codegen


@intrinsic
def power_of_two_over(typing_context, x):
    """The power of two that brings x > 0 into [1/2, 1); finite for 0."""
    bits, mantissa, bias = (32, 23, 127) if x.element == types.float32 else (64, 52, 1023)

    def codegen(context, builder, signature, arguments):
        integers = ir.VectorType(ir.IntType(bits), LANES)
        exponent = builder.and_(
            builder.bitcast(arguments[0], integers), _constant(integers, (2 * bias + 1) << mantissa)
        )
        scale = builder.sub(_constant(integers, (2 * bias - 1) << mantissa), exponent)
        return builder.bitcast(scale, arguments[0].type)

    return x(x), codegen


@intrinsic
def exp_nonpositive(typing_context, x):
    """exp(x) for x <= 0 to within 1.5 units in the last place; 0 where it would be denormal; NaN
    for NaN.

    x = n log 2 + r with |r| <= log(2)/2; a polynomial in r; 2**n through the exponent bits.
    """
    single = x.element == types.float32
    bits, mantissa, one = (32, 23, 0x3F800000) if single else (64, 52, 0x3FF0000000000000)
    high, low = LOG2_SINGLE if single else LOG2_DOUBLE
    lowest = -87.33 if single else -708.39
    # In float32 the polynomial of degree 6 with the smallest relative error (2e-9), in float64 the
    # Taylor series.
    coefficients = _EXP_SINGLE if single else [1 / math.factorial(k) for k in range(14)]

    def codegen(context, builder, signature, arguments):
        (x,) = arguments
        vector = x.type
        integers = ir.VectorType(ir.IntType(bits), LANES)

        def number(value):
            return _constant(vector, float(np.float32(value)) if single else value)

        def fma(a, b, c):
            return _operation(builder, "llvm.fmuladd", vector, [a, b, c])

        flushed = builder.fcmp_ordered("<", x, number(lowest))  # in these lanes the rest is garbage
        shift = number(1.5 * 2.0**mantissa)  # adding it rounds to an integer, left in the low bits
        rounded = fma(x, number(1 / math.log(2)), shift)
        n = builder.fsub(rounded, shift)
        r = fma(n, number(-high), x)
        r = fma(n, number(-low), r)
        *lower, p = map(number, coefficients)
        for coefficient in reversed(lower):
            p = fma(p, r, coefficient)
        exponent = builder.shl(builder.bitcast(rounded, integers), _constant(integers, mantissa))
        scale = builder.bitcast(builder.add(exponent, _constant(integers, one)), vector)
        return builder.select(flushed, number(0.0), builder.fmul(p, scale))

    return x(x), codegen


def _shuffle(builder, a, b, indices):
    mask = ir.Constant(
        ir.VectorType(ir.IntType(32), len(indices)), [ir.IntType(32)(i) for i in indices]
    )
    return builder.shuffle_vector(a, b, mask)


def _line_type(kind):
    return ir.VectorType(_ir_float(kind.dtype), _LINE // (4 if kind.dtype == types.float32 else 8))


def _transpose(builder, rows):
    """Transpose a square block: swap the off-diagonal quarters of all blocks of size 2d, for d =
    half the size .. 1.
    """
    size = len(rows)
    rows = list(rows)
    d = size // 2
    while d:
        first = [j if not j & d else size + j - d for j in range(size)]
        second = [j + d if not j & d else size + j for j in range(size)]
        for i in range(size):
            if not i & d:
                a = rows[i]
                b = rows[i + d]
                rows[i] = _shuffle(builder, a, b, first)
                rows[i + d] = _shuffle(builder, a, b, second)
        d //= 2
    return rows


def _row_pointers(builder, line, address, item_bytes, first, last):
    """Pointers to one line of as many successive items as it has numbers; items beyond the last
    are the last.
    """
    for lane in range(line.count):
        item = builder.add(first, first.type(lane))
        item = builder.select(builder.icmp_signed("<", item, last), item, last)
        yield builder.inttoptr(
            builder.add(address, builder.mul(item, item_bytes)), line.as_pointer()
        )


@intrinsic
def read_block(typing_context, array, target, address, item_bytes, first, last, ahead):
    """One cache line each of the items first, first + 1, .., turned: column c goes to array[target +
    c * LANES:].

    Item i is at `address + i * item_bytes`; `ahead` bytes further on is what will be read next
    time.
    """

    def codegen(context, builder, signature, arguments):
        array, target, address, item_bytes, first, last, ahead = arguments
        line = _line_type(signature.args[0])
        word = ir.IntType(32)
        prefetch = builder.module.declare_intrinsic(
            "llvm.prefetch.p0",
            fnty=ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), word, word, word]),
        )
        rows = []
        for pointer in _row_pointers(builder, line, address, item_bytes, first, last):
            rows.append(builder.load(pointer, align=4))
            bytes_ = builder.bitcast(pointer, ir.IntType(8).as_pointer())
            builder.call(prefetch, [builder.gep(bytes_, [ahead]), word(0), word(3), word(1)])
        for c, column in enumerate(_transpose(builder, rows)):
            offset = builder.add(target, target.type(c * LANES))
            builder.store(column, _pointer(builder, array, offset, line), align=_LINE)
        return context.get_dummy_value()

    return types.void(array, *[types.int64] * 6), codegen


def _block_writer(streaming):
    @intrinsic
    def write(typing_context, array, source, scale, address, item_bytes, first, last):
        def codegen(context, builder, signature, arguments):
            array, source, scale, address, item_bytes, first, last = arguments
            line = _line_type(signature.args[0])
            factor = builder.load(_pointer(builder, array, scale, line), align=_LINE)
            columns = []
            for c in range(line.count):
                offset = builder.add(source, source.type(c * LANES))
                column = builder.load(_pointer(builder, array, offset, line), align=_LINE)
                columns.append(builder.fmul(column, factor))
            pointers = _row_pointers(builder, line, address, item_bytes, first, last)
            for row, pointer in zip(_transpose(builder, columns), pointers, strict=True):
                instruction = builder.store(row, pointer, align=_LINE if streaming else 4)
                if streaming:
                    instruction.set_metadata(
                        "nontemporal", builder.module.add_metadata([ir.IntType(32)(1)])
                    )
            return context.get_dummy_value()

        return types.void(array, *[types.int64] * 6), codegen

    return write


# The reverse of read_block, scaled by the numbers at array[scale:]. Lanes beyond the last item hold
# its copies.
write_block = _block_writer(False)
# Past the caches (no read for ownership); every address is a multiple of 64.
stream_block = _block_writer(True)


@intrinsic
def read_number(typing_context, like, address):

    def codegen(context, builder, signature, arguments):
        return builder.load(builder.inttoptr(arguments[1], arguments[0].type.as_pointer()))

    return like(like, types.uint64), codegen


@intrinsic
def write_number(typing_context, value, address):

    def codegen(context, builder, signature, arguments):
        builder.store(arguments[0], builder.inttoptr(arguments[1], arguments[0].type.as_pointer()))
        return context.get_dummy_value()

    return types.void(value, types.uint64), codegen


_X86 = platform.machine().lower() in ("x86_64", "amd64")
_FLUSH = 0x8040  # MXCSR: flush denormal results to zero, treat denormal operands as zero


def _control_word(builder, name, pointer):
    function = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
    builder.call(
        builder.module.declare_intrinsic(name, fnty=function),
        [builder.bitcast(pointer, ir.IntType(8).as_pointer())],
    )


@intrinsic
def flush_denormals(typing_context):
    """Make this thread flush denormals, which cost 10 to 30 times a normal number on x86; the
    former state for `restore`.
    """

    def codegen(context, builder, signature, arguments):
        word = ir.IntType(32)
        if not _X86:
            return word(0)
        pointer = alloca_once(builder, word)
        _control_word(builder, "llvm.x86.sse.stmxcsr", pointer)
        before = builder.load(pointer)
        builder.store(builder.or_(before, word(_FLUSH)), pointer)
        _control_word(builder, "llvm.x86.sse.ldmxcsr", pointer)
        return before

    return types.uint32(), codegen


@intrinsic
def restore_denormals(typing_context, before):
    def codegen(context, builder, signature, arguments):
        if _X86:
            pointer = alloca_once(builder, ir.IntType(32))
            builder.store(arguments[0], pointer)
            _control_word(builder, "llvm.x86.sse.ldmxcsr", pointer)
        return context.get_dummy_value()

    return types.void(types.uint32), codegen
