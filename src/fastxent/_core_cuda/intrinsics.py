"""What Numba has no name for: 16-byte loads and stores, bit casts, packed conversions, and three instructions.

Four adjacent scalar loads are not merged by the compiler; a `<4 x i32>` load through the global address space is one
LDG.E.128.  The arithmetic is chosen by instruction, not by fast-math flags, which would allow the compiler to assume
that there is no NaN and no infinity.
"""

from llvmlite import ir
from numba.core import cgutils
from numba.cuda import types
from numba.cuda.extending import intrinsic

__all__ = [
    "advance",
    "as_float",
    "as_word",
    "beyond_boundary",
    "bfloat16_pair",
    "divide",
    "exp2",
    "float16_pair",
    "fma",
    "fmax",
    "high_float16",
    "load16",
    "low_float16",
    "quotient",
    "raise_to",
    "store16",
]

FLOAT, WORD = ir.FloatType(), ir.IntType(32)
QUAD = ir.VectorType(WORD, 4)


def _global_quad(builder, pointer, index):
    """Address of the 16 bytes that begin at an element, in the global address space."""
    generic = builder.bitcast(builder.gep(pointer, [index]), QUAD.as_pointer())
    return builder.addrspacecast(generic, QUAD.as_pointer(1))


@intrinsic
def load16(typingctx, pointer, index):
    """Four 32-bit words from the element `index`, which lies at a multiple of 16 bytes."""
    signature = types.UniTuple(types.uint32, 4)(pointer, types.int64)

    def codegen(context, builder, signature, args):
        quad = builder.load(_global_quad(builder, *args), align=16)
        words = [builder.extract_element(quad, WORD(i)) for i in range(4)]
        return context.make_tuple(builder, signature.return_type, words)

    return signature, codegen


@intrinsic
def store16(typingctx, pointer, index, words):
    """Store four 32-bit words at the element `index`, which lies at a multiple of 16 bytes."""
    signature = types.void(pointer, types.int64, types.UniTuple(types.uint32, 4))

    def codegen(context, builder, signature, args):
        pointer, index, words = args
        quad = ir.Constant(QUAD, ir.Undefined)
        for i, word in enumerate(cgutils.unpack_tuple(builder, words, 4)):
            quad = builder.insert_element(quad, word, WORD(i))
        builder.store(quad, _global_quad(builder, pointer, index), align=16)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def advance(typingctx, pointer, count):
    """Pointer to the element `count` places on; a row's own pointer leaves 32-bit indices within it."""
    return pointer(pointer, types.int64), lambda c, builder, s, args: builder.gep(args[0], [args[1]])


@intrinsic
def beyond_boundary(typingctx, pointer, index):
    """Bytes from the 16-byte boundary at or before the element `index` to it."""

    def codegen(context, builder, signature, args):
        address = builder.ptrtoint(builder.gep(args[0], [args[1]]), ir.IntType(64))
        return builder.and_(builder.trunc(address, WORD), WORD(15))

    return types.int32(pointer, types.int64), codegen


@intrinsic
def raise_to(typingctx, pointer, value):
    """Set the int64 behind a pointer to the larger of itself and a value, atomically."""
    signature = types.void(pointer, types.int64)

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.VoidType(), [args[0].type, ir.IntType(64)])
        text = "red.global.max.s64 [$0], $1;"
        builder.call(ir.InlineAsm(kind, text, "l,l,~{memory}", side_effect=True), args)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def as_float(typingctx, word):
    """The float32 of a word's bits."""
    return types.float32(types.uint32), lambda c, builder, s, args: builder.bitcast(args[0], FLOAT)


@intrinsic
def as_word(typingctx, value):
    """The bits of a float32."""
    return types.uint32(types.float32), lambda c, builder, s, args: builder.bitcast(args[0], WORD)


def _float16(builder, word):
    return builder.fpext(builder.bitcast(builder.trunc(word, ir.IntType(16)), ir.HalfType()), FLOAT)


@intrinsic
def low_float16(typingctx, word):
    """The float16 in the lower half of a word."""
    return types.float32(types.uint32), lambda c, builder, s, args: _float16(builder, args[0])


@intrinsic
def high_float16(typingctx, word):
    """The float16 in the upper half of a word."""
    return types.float32(types.uint32), lambda c, builder, s, args: _float16(
        builder, builder.lshr(args[0], WORD(16))
    )


def _instruction(text, constraints, result, *arguments):
    """Intrinsic of one PTX instruction over float32 arguments."""
    lowered = {types.float32: FLOAT, types.uint32: WORD}
    signature = result(*arguments)

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(lowered[result], [lowered[a] for a in arguments])
        return builder.call(ir.InlineAsm(kind, text, constraints, side_effect=False), args)

    return signature, codegen


@intrinsic
def float16_pair(typingctx, low, high):
    """Two float32, rounded to nearest even, as the halves of a word."""
    return _instruction("cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f", types.uint32, types.float32, types.float32)


@intrinsic
def bfloat16_pair(typingctx, low, high):
    """Two float32, rounded to nearest even, as the halves of a word."""
    return _instruction("cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", types.uint32, types.float32, types.float32)


@intrinsic
def exp2(typingctx, x):
    """2^x within 2 ulp; results below 2^-126 are 0."""
    return _instruction("ex2.approx.ftz.f32 $0, $1;", "=f,f", types.float32, types.float32)


@intrinsic
def fmax(typingctx, x, y):
    """The larger of two numbers; the other one where one is NaN."""
    return _instruction("max.f32 $0, $1, $2;", "=f,f,f", types.float32, types.float32, types.float32)


@intrinsic
def fma(typingctx, x, y, z):
    """x * y + z with one rounding."""
    return _instruction(
        "fma.rn.f32 $0, $1, $2, $3;", "=f,f,f,f", types.float32, types.float32, types.float32, types.float32
    )


@intrinsic
def divide(typingctx, x, y):
    """x / y within 2 ulp over the whole range, without the call that correct rounding takes."""
    return _instruction("div.full.f32 $0, $1, $2;", "=f,f,f", types.float32, types.float32, types.float32)


@intrinsic
def quotient(typingctx, a, b):
    """a // b of two numbers from 0 to 2^32 - 1, as int64. Of Numba's own 64-bit one the compiler may not see that."""
    signature = types.int64(types.int64, types.int64)

    def codegen(context, builder, signature, args):
        a, b = (builder.trunc(value, WORD) for value in args)
        return builder.zext(builder.udiv(a, b), ir.IntType(64))

    return signature, codegen
