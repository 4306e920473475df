"""Standard normal numbers from random words, with operations that compilers turn into vector code.

Every operation is exact or correctly rounded (integers, fused multiply-adds, square root), so that
all processors give the same bits, with vectors of any width.
"""

# mypy: ignore-errors
# (numba compiles this file and infers its types)
from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import types
from numba.extending import intrinsic

# Polynomials with the smallest relative error: 6e-9 for log(1 + f) with sqrt(1/2) <= 1 + f <
# sqrt(2), and 4e-9 and 1e-10 for sine and cosine up to pi/4.
_LOG = tuple(
    map(
        np.float32,
        (
            0.3333333134651184, -0.250008225440979, 0.20001226663589478, -0.16623356938362122,
            0.14201761782169342, -0.131601944565773, 0.12761549651622772, -0.07634429633617401,
        ),
    )
)  # fmt: skip
_SIN = tuple(map(np.float32, (-0.16666655242443085, 0.008332177996635437, -0.00019517297914717346)))
_COS = tuple(map(np.float32, (0.04166664555668831, -0.001388736767694354, 2.443845005473122e-05)))
_ONE = np.float32(1)
_HALF = np.float32(0.5)
_UNIT = np.float32(2.0**-32)
_LOG2 = np.float32(np.log(2))
_TURN = np.float32(2 * np.pi * 2.0**-32)
_SQRT_HALF = np.int32(0x3F3504F3)  # the bits of sqrt(1/2)
_EIGHTH = np.uint32(2**29)  # an eighth of a turn


@intrinsic
def _fma(typing_context, a, b, c):
    """a * b + c, rounded once."""

    def codegen(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), codegen


@intrinsic
def _bits(typing_context, x):
    return types.int32(
        types.float32
    ), lambda context, builder, signature, arguments: builder.bitcast(arguments[0], ir.IntType(32))


@intrinsic
def _from_bits(typing_context, i):
    return types.float32(
        types.int32
    ), lambda context, builder, signature, arguments: builder.bitcast(arguments[0], ir.FloatType())


@intrinsic
def wide_vectors(typing_context):
    """Let the compiler use vectors of 512 bits in the calling function; by default it prefers
    256 bits.
    """

    def codegen(context, builder, signature, arguments):
        # Llvmlite does not know this attribute.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), codegen


@njit(inline="always")
def _log(u):
    """Natural logarithm of a normal float32 u > 0, to 2 units in the last place of log(u) or of
    1e-7.
    """
    exponent = (_bits(u) - _SQRT_HALF) >> np.int32(23)
    f = _from_bits(np.int32(_bits(u) - (exponent << np.int32(23)))) - _ONE
    p = _LOG[7]
    for k in (6, 5, 4, 3, 2, 1, 0):
        p = _fma(p, f, _LOG[k])
    square = f * f
    p = _fma(p * f, square, -_HALF * square)
    return _fma(np.float32(exponent), _LOG2, f + p)


@njit(inline="always")
def normal_pair(a, b):
    """Two independent standard normal numbers, float32, from two uint32: Box-Muller.

    With u = (a + 1) 2^-32 in (0, 1] and the angle 2 pi b 2^-32: sqrt(-2 log u) (cos, sin); at most
    sqrt(64 log 2) = 6.66.
    """
    radius = np.sqrt(np.float32(-2) * _log((np.float32(a) + _ONE) * _UNIT))
    # The nearest multiple of a quarter turn.
    quarter = np.int32(np.uint32(b + _EIGHTH) >> np.uint32(30))
    # The remainder, exact before the product.
    x = np.float32(np.int32(b - (np.uint32(quarter) << np.uint32(30)))) * _TURN
    square = x * x
    sine = _fma(_fma(_fma(_SIN[2], square, _SIN[1]), square, _SIN[0]) * square, x, x)
    cosine = _fma(
        _fma(_fma(_COS[2], square, _COS[1]), square, _COS[0]),
        square * square,
        _fma(-_HALF, square, _ONE),
    )
    swap = quarter & np.int32(1)
    along, across = (sine, cosine) if swap else (cosine, sine)
    along = _from_bits(
        np.int32(_bits(along) ^ (((quarter + np.int32(1)) & np.int32(2)) << np.int32(30)))
    )
    across = _from_bits(np.int32(_bits(across) ^ ((quarter & np.int32(2)) << np.int32(30))))
    return radius * along, radius * across
