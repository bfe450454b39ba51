"""The mathematics of a row: the members of the family, and what follows from a row's sums.

With x_k the logits, top = max x, e_k = exp((x_k - top) / T) and others = sum of e without the label y,
    loss  = log1p(others)                         if y is a maximum
            (top - x_y) / T + log(others + e_y)   otherwise
    g_k   = A e_k - B,        g_y apart, from others / total and never from p_y - 1
so that one sweep that leaves the label out gives every term without cancellation.
"""

import math

from numba import cuda, float32, float64, int32, int64

from . import intrinsics as on

__all__ = [
    "ABSOLUTE",
    "BAD",
    "BIAS",
    "CLASS_WEIGHT",
    "DENOMINATOR",
    "EXCLUDE",
    "FAMILIES",
    "FLOORED",
    "HUGE",
    "IGNORE",
    "INF",
    "LN2",
    "LOSS",
    "LSE",
    "POSITIVE",
    "WEIGHT",
    "careful_exp",
    "finish",
    "label_of",
    "member",
    "scale_of",
    "times",
]

# Bits of `flags`: which of the pointers are given, and how a label is smoothed.
WEIGHT, CLASS_WEIGHT, LOSS, LSE, IGNORE, DENOMINATOR, BAD, BIAS, EXCLUDE, POSITIVE = (
    1 << i for i in range(10)
)
# What is done to a second derivative: its absolute value, no less than a floor.
ABSOLUTE, FLOORED = 1 << 10, 1 << 11

FAMILIES = {"cross_entropy": 0, "focal": 1, "linear": 2, "power": 3}

INF = float32(math.inf)
NAN = float32(math.nan)
LN2 = float32(math.log(2))
# Exponents beyond it, and the infinities, leave the fast path: its products would overflow.
HUGE = float32(1e37)
ZERO, ONE, TWO = float32(0), float32(1), float32(2)

device = cuda.jit(device=True, forceinline=True)


@device
def member(family, p, q, ell, a, b, one):
    """f and G = -p f'(p) of one class, from p, q = 1 - p and ell = -log p, in the arithmetic of `one`."""
    zero = one - one
    if family == 1:
        power = math.exp(a * math.log(q))
        ratio = one if q == zero else ell / q  # ell / q tends to 1
        slope = zero if p == zero else p * ratio
        return (zero if q == zero else power * ell), power * (a * slope + one)
    if family == 2:
        f = b * q
        if a != zero:
            f += a * ell
        return f, (a + b - b * q if b < zero else a + b * p)  # no digits lost where a = -b
    if family == 3:
        power = math.exp(-a * ell)
        return -math.expm1(-a * ell) / a, power
    return ell, one


@device
def label_of(Y, W, CW, BAD_ROW, row, n_rows, n_classes, w_step, ignore, flags, lane):
    """Label, row weight (0: nothing of the row counts, NaN: no such class) and class weight of a row."""
    y = int64(Y[row])
    weight = ONE
    if flags & WEIGHT:
        weight = W[row * w_step]
    if flags & IGNORE and y == ignore:
        weight = ZERO
        y = int64(0)
    elif y < 0 or y >= n_classes:
        if flags & BAD and lane == 0:
            on.raise_to(BAD_ROW, int64(n_rows - row))
        weight = NAN
        y = int64(0)
    own = ONE
    if flags & CLASS_WEIGHT:
        own = CW[y]
    return int32(y), weight, own


@device
def scale_of(scale, DEN, flags):
    """Factor of the gradient: over the denominator that an earlier launch left, if there is one; 0 over 0 is 0."""
    if flags & DENOMINATOR:
        return float32(float64(scale) / DEN[0]) if DEN[0] != float64(0) else ZERO
    return scale


@device
def times(a, b):
    """a * b where a factor a of 0 annihilates an infinite b."""
    return a if a == a - a and b == b else a * b


@device
def careful_exp(x, top, base2):
    """exp((x - top) / T) where both may be infinite."""
    return ONE if x == top else on.exp2((x - top) * base2)


@device
def finish(others, top, label, spread, n_classes, weight, own, scale, family, o):
    """Loss, lse, and A, B, g_y of the gradient, of a row whose label's logit is `label`.

    o = (1 / T, log2(e) / T, z_loss, a, b, target of the label, target of every other class); with a target of the
    others (label smoothing, for cross-entropy) `spread` is the sum of x_k - label, a NaN where an infinite logit
    makes the loss infinite.
    """
    inv_t, base2, z, a, b, on_label, off_label = o
    e = careful_exp(label, top, base2)
    if top == -INF or (top == INF and others + e > ONE):
        others = NAN
    total = others + e
    if label == top:
        ell = float32(math.log1p(others))
        lse = top * inv_t + ell
    else:
        log_total = float32(math.log(total))
        ell = (top - label) * inv_t + log_total
        lse = top * inv_t + log_total
    share = on.divide(ONE, total)
    p = e * share
    q = others * share
    f, slope = ell, ONE
    if family != 0:
        f, slope = member(family, p, q, ell, a, b, ONE)
    whole = on_label + float32(n_classes - 1) * off_label
    loss = times(own * whole, f)
    if off_label != ZERO and n_classes > 1 and loss < INF:
        loss = INF if lse == INF else loss - off_label * inv_t * spread
    coefficient = own * whole * slope
    if z != ZERO:
        loss = INF if lse == INF else loss + z * lse * lse
        coefficient += TWO * z * lse
    mine = own * on_label * slope
    factor = weight * scale
    if weight == ZERO:
        return ZERO, lse, ZERO, ZERO, ZERO
    grad = factor * (times(p, coefficient - mine) - mine * q)
    return loss * weight, lse, factor * coefficient * share, factor * own * off_label, grad
