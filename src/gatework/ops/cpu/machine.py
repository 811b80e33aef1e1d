"""What compiled loops are made of: pointers, a call of BLAS, vectorised ``exp2`` and maximum, a counter.

Memory is reached through pointers, because indexing an array tests each index for being negative, which
keeps loops from being vectorised.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])

#: ``2**f = 1 + f * polynomial(f)`` for ``|f| <= 1/2``, within 1.6e-7; highest power first.
_EXP2 = (
    0.001326472706543371,
    0.009671512648913194,
    0.05550733743690814,
    0.24022242085173176,
    0.6931469775988582,
    1.0,
)


def compiler(*signature: Any, **options: Any) -> Any:
    """The decorator that compiles without the interpreter's lock; NaN and infinity stay what they are."""
    fastmath = {"contract", "reassoc", "nsz", "arcp"}
    return numba.njit(*signature, nogil=True, error_model="numpy", fastmath=fastmath, **options)


def jit(function: F) -> F:
    """Compile a function when it is first called, or into the one that calls it."""
    return compiler()(inspect.unwrap(function))  # type: ignore[no-any-return]


def _pointer(element: Any) -> Any:
    """Make the function that turns an address into a pointer to numbers of one type."""

    @intrinsic
    def pointer(context: Any, address: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        kind: Any = types.CPointer  # untyped in numba
        return kind(element)(types.int64), code

    return pointer


floats, integers = _pointer(types.float32), _pointer(types.int64)
indices, octets = _pointer(types.int32), _pointer(types.uint8)


def _fetch_add(context: Any, address: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        pointer = builder.inttoptr(arguments[0], word.as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(word, 1), "acq_rel")

    return types.int64(types.int64), code


#: Add one to the integer at an address, as one step for all threads; return what it was.
fetch_add: Any = intrinsic(_fetch_add)


def _sgemm(context: Any, function: Any, *arguments: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [word] * 13)
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 14), code


def _call_blas(
    context: Any, f: Any, ta: Any, tb: Any, m: Any, n: Any, k: Any, alpha: Any, a: Any, lda: Any, b: Any,
    ldb: Any, beta: Any, c: Any, ldc: Any,
) -> Any:  # fmt: skip
    return _sgemm(context, f)


#: Call the BLAS routine at an address; which one is known only at run time, so that no symbol is cached.
call_blas: Any = intrinsic(_call_blas)


def _exp2(context: Any, x: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # "less than" is false for NaN, which so reaches the product at the end.
        tiny = builder.fcmp_ordered("<", arguments[0], _real(context, -126.0))
        x = builder.select(tiny, _real(context, -126.0), arguments[0])
        return builder.select(tiny, _real(context, 0.0), _power(context, builder, x))

    return types.float32(types.float32), code


def _real(context: Any, value: float) -> Any:
    """A constant of code that is being built."""
    return context.get_constant(types.float32, value)


def _power(context: Any, builder: Any, x: Any) -> Any:
    """Code for ``2**x``, where ``x`` is at least -126; infinity from 127.5 to 128."""
    single, word = ir.FloatType(), ir.IntType(32)
    nearest = builder.call(builder.module.declare_intrinsic("llvm.nearbyint", [single]), [x])
    fraction = builder.fsub(x, nearest)
    value = _real(context, _EXP2[0])
    for coefficient in _EXP2[1:]:
        value = builder.fadd(builder.fmul(value, fraction), _real(context, coefficient))
    exponent = builder.add(builder.fptosi(nearest, word), ir.Constant(word, 127))
    return builder.fmul(value, builder.bitcast(builder.shl(exponent, ir.Constant(word, 23)), single))


#: ``2**x`` in a form that is vectorised; 0 where the result would be denormal, NaN for NaN.
exp2: Any = intrinsic(_exp2)


def _larger(context: Any, x: Any, y: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # Only with these flags is a maximum over a row vectorised.
        flags = ("nnan", "nsz")
        larger = builder.fcmp_ordered(">", *arguments, flags=flags)
        return builder.select(larger, *arguments, flags=flags)

    return types.float32(types.float32, types.float32), code


#: The larger of two numbers; any of the two if one is NaN.
larger: Any = intrinsic(_larger)


def _sigmoid2(context: Any, x: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # Neither comparison is true for NaN. At 128 the power is infinite, and the result exactly 0.
        y = builder.fneg(arguments[0])
        far, near = _real(context, 128.0), _real(context, -126.0)
        y = builder.select(builder.fcmp_ordered(">", y, far), far, y)
        y = builder.select(builder.fcmp_ordered("<", y, near), near, y)
        one = _real(context, 1.0)
        return builder.fdiv(one, builder.fadd(one, _power(context, builder, y)))

    return types.float32(types.float32), code


#: ``1 / (1 + 2**-x)`` in a form that is vectorised; 0 where the result would be denormal, NaN for NaN.
sigmoid2: Any = intrinsic(_sigmoid2)
