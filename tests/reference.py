"""The oracle: what the kernels have to answer, computed slowly and independently.

Nothing here imports the package. Every function takes the public options of the function it checks and runs
one row (or element) at a time in one of two arithmetics: Python floats with ``math`` (float64, for shapes
of some thousand elements), or mpmath with 60 decimal digits (``exact=True``, for claims in ulp). Both share
the formulas:

    u = z/T + b,  m = max u,  e = exp(u - m),  p = e / sum e
    r = sum of e without one maximum,  lse = m + log1p(r)
    q = w t',  Q = sum q,  c = Q + 2 zeta lse
    L = v [Q log1p(r) + sum q (m - u) + zeta lse^2]
    dL/du_k = v [(Q - q_k) p_k - q_k (1 - p_k) + 2 zeta lse p_k]      1 - p_k summed without k
    d2L/du_k2 = v [c p_k (1 - p_k) + 2 zeta p_k^2]

which is the textbook loss v [Q lse - sum q u + zeta lse^2] rearranged so that no term cancels: a confident
row's loss of 1e-300 keeps all its digits in either arithmetic. ``test_golden.py`` holds this file against
constants, against mpmath's numerical differentiation of the textbook loss, and its two arithmetics against
each other.
"""

from __future__ import annotations

import functools
import math
import threading
from types import SimpleNamespace

import mpmath
import numpy as np

mp = mpmath.mp.clone()
mp.dps = 60


def _question(value):
    """Something hashable that says what was asked."""
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype, tuple(value.flat) if value.dtype == object else value.tobytes()
    if isinstance(value, (list, tuple)):
        return type(value), *map(_question, value)
    if isinstance(value, dict):
        return tuple((name, _question(value[name])) for name in sorted(value))
    return type(value), value


def _asked_once(oracle):
    """Decorator: the last answers are kept. Backends ask the same, and in `make parallel` eight threads at once."""
    answers, lock = {}, threading.Lock()

    @functools.wraps(oracle)
    def ask(*args, **options):
        question = _question(args), _question(options)
        with lock:
            answer = answers.pop(question, None)
            if answer is None:
                answer = oracle(*args, **options)
                for value in vars(answer).values():
                    if isinstance(value, np.ndarray):
                        value.flags.writeable = False
            answers[question] = answer
            if len(answers) > 64:
                del answers[next(iter(answers))]
        return answer

    return ask


def _exp_of_difference(x, m):
    """exp(x - m) in float64 with the rounding error of x - m carried along (TwoSum); it costs |x - m| ulp."""
    d = x - m
    back = d - x
    error = (x - (d - back)) - (m + back)
    return math.exp(d) * (1 + error if error == error else 1)


FLOAT = SimpleNamespace(
    number=float,
    exp=math.exp,
    exp_of_difference=_exp_of_difference,
    log=math.log,
    log1p=math.log1p,
    fsum=math.fsum,
    inf=math.inf,
    nan=math.nan,
)
EXACT = SimpleNamespace(
    number=lambda x: mp.mpf(float(x)),
    exp=mp.exp,
    exp_of_difference=lambda x, m: mp.exp(x - m),
    log=mp.log,
    log1p=mp.log1p,
    fsum=mp.fsum,
    inf=mp.inf,
    nan=mp.nan,
)


def _array(values, shape, exact):
    """Pack a flat list of numbers into an array of ``shape``: float64, or object for mpmath's numbers."""
    out = np.empty(len(values), object if exact else np.float64)
    out[:] = values
    return out.reshape(shape)


def _softmax_row(u, q, zeta, ops):
    """Loss, lse, gradient, Hessian diagonal and the larger term of each gradient entry, with respect to u."""
    n_classes = len(u)
    n_infinite = sum(x == ops.inf for x in u)
    if any(x != x for x in u) or n_infinite > 1 or all(x == -ops.inf for x in u):
        nan = [ops.nan] * n_classes
        return SimpleNamespace(loss=ops.nan, lse=ops.nan, grad=nan, hess=nan, scale=nan, p=nan, not_p=nan)
    m = max(u)
    top = u.index(m)
    zero, one = ops.number(0), ops.number(1)
    if n_infinite:
        gap = [zero if k == top else ops.inf for k in range(n_classes)]
        e = [one if k == top else zero for k in range(n_classes)]
    else:
        gap = [m - x for x in u]
        e = [ops.exp_of_difference(x, m) for x in u]
    before, after = [zero], [zero]
    for k in range(n_classes - 1):
        before.append(before[-1] + e[k])
        after.append(after[-1] + e[n_classes - 1 - k])
    rest = [b + a for b, a in zip(before, reversed(after), strict=True)]
    total = e[top] + rest[top]
    tail = ops.log1p(rest[top])
    lse = m + tail
    p = [x / total for x in e]
    not_p = [x / total for x in rest]
    big_q = ops.fsum(q)
    pull = 2 * zeta * lse if zeta else zero
    loss = big_q * tail + ops.fsum([a * b for a, b in zip(q, gap, strict=True) if a != 0])
    loss += zeta * lse**2 if zeta else zero
    c = big_q + pull
    rows = range(n_classes)
    return SimpleNamespace(
        loss=loss,
        lse=lse,
        p=p,
        not_p=not_p,
        c=c,
        grad=[(big_q - q[k]) * p[k] - q[k] * not_p[k] + pull * p[k] for k in rows],
        hess=[c * p[k] * not_p[k] + 2 * zeta * p[k] ** 2 for k in rows],
        scale=[max(abs(c * p[k]), abs(q[k])) for k in rows],
    )


def smoothed(t, label_smoothing, smoothing, ops=FLOAT):
    """Spread ``label_smoothing`` of one target row over all classes, or over all but the label."""
    a = ops.number(label_smoothing)
    n_classes = len(t)
    if not a:
        return t
    if smoothing == "uniform":
        return [(1 - a) * x + a / n_classes for x in t]
    return [(1 - a) * x + a / (n_classes - 1) * (1 - x) for x in t]


@_asked_once
def softmax(
    logits,
    targets,
    *,
    sample_weight=None,
    class_weight=None,
    label_smoothing=0.0,
    smoothing="uniform",
    ignore_index=-100,
    z_loss=0.0,
    temperature=1.0,
    logit_bias=None,
    axis=-1,
    reduction="mean",
    base=None,
    empty="zero",
    direction=None,
    exact=False,
):
    """Softmax cross-entropy: losses, lse, loss, derivatives and the scale that rounding is measured by.

    ``losses`` and ``lse`` have the shape of the rows, ``grad``, ``hess``, ``hvp`` and ``scale`` that of the
    logits; derivatives are those of the reduced loss with respect to z ("none" as "sum"). ``scale`` is
    max(|c p|, |q|) with every factor of the gradient on it: what a gradient that is a difference is
    measured by.

    ``losses_scale``, ``lse_scale``, ``grad_scale`` and ``hess_scale`` are what an honest computation in the
    compute dtype is measured by when every option is in play. They add to the size of the terms what
    rounding u costs where u is not z itself (a bias, or a temperature other than a power of two): the error
    of u, |u| in ulp, reaches the loss times c and p times itself; and what the rounding of lse, max(|u|,
    log K) in ulp, costs times 2 zeta.
    """
    ops = EXACT if exact else FLOAT
    z = np.moveaxis(np.asarray(logits), axis, -1)
    targets = np.asarray(targets)
    soft = targets.ndim == z.ndim
    n_classes, row_shape = z.shape[-1], z.shape[:-1]
    n_rows = math.prod(row_shape)
    z2 = z.reshape(n_rows, n_classes)
    t2 = np.moveaxis(targets, axis, -1).reshape(n_rows, n_classes) if soft else targets.reshape(n_rows)
    number = ops.number
    v_all = (
        np.ones(n_rows) if sample_weight is None else np.broadcast_to(sample_weight, row_shape).reshape(-1)
    )
    w = [number(x) for x in (np.ones(n_classes) if class_weight is None else class_weight)]
    b = [number(x) for x in (np.zeros(n_classes) if logit_bias is None else logit_bias)]
    zeta, inv_t = number(z_loss), 1 / number(temperature)
    x2 = None
    if direction is not None:
        x2 = np.moveaxis(np.asarray(direction), axis, -1).reshape(n_rows, n_classes)
    zero = number(0)

    losses, lses, grads, hesses, scales, hvps = [], [], [], [], [], []
    losses_scales, lse_scales, grad_scales, hess_scales = [], [], [], []
    masses, n_unmasked = [], 0
    moved = logit_bias is not None or math.frexp(float(temperature))[0] != 0.5
    for i in range(n_rows):
        ignored = not soft and ignore_index is not None and int(t2[i]) == ignore_index
        v = zero if ignored else number(v_all[i])
        n_unmasked += not ignored
        u = [number(x) * inv_t + bias for x, bias in zip(z2[i], b, strict=True)]
        if soft:
            t = [number(x) for x in t2[i]]
        else:
            t = [number(not ignored and k == int(t2[i])) for k in range(n_classes)]
        masses.append(v * ops.fsum([a * x for a, x in zip(w, t, strict=True)]))
        q = [a * x for a, x in zip(w, smoothed(t, label_smoothing, smoothing, ops), strict=True)]
        row = _softmax_row(u, q, zeta, ops)
        terms = [abs(x) for x in [*u, *b, *(number(x) * inv_t for x in z2[i])] if abs(x) < ops.inf]
        lse_scale = max([ops.number(math.log(n_classes)), *terms])
        reach = lse_scale if moved else zero
        lses.append(row.lse)
        lse_scales.append(lse_scale)
        dead = v == 0
        losses.append(zero if dead else v * row.loss)
        losses_scales.append(
            zero if dead else abs(v) * (row.loss + reach * ops.fsum(row.scale) + 2 * zeta * lse_scale**2)
        )
        c_scale = ops.fsum(q) + 2 * zeta * lse_scale
        wide = row.scale
        if zeta or moved:
            wide = [s + c_scale * x * (1 + reach) for s, x in zip(row.scale, row.p, strict=True)]
        for out, values, power in (
            (grads, row.grad, v * inv_t),
            (hesses, row.hess, v * inv_t**2),
            (scales, row.scale, abs(v) * inv_t),
            (grad_scales, wide, abs(v) * inv_t),
            (
                hess_scales,
                [
                    (c_scale * n + 2 * zeta * x) * x * (1 + reach)
                    for n, x in zip(row.not_p, row.p, strict=True)
                ],
                abs(v) * inv_t**2,
            ),
        ):
            out += [zero] * n_classes if dead else [x * power for x in values]
        if x2 is not None:
            x = [number(value) for value in x2[i]]
            px = ops.fsum([a * d for a, d in zip(row.p, x, strict=True)])
            hvps += [
                v * inv_t**2 * (row.c * (a * d - a * px) + 2 * zeta * a * px) if not dead else zero
                for a, d in zip(row.p, x, strict=True)
            ]

    divisor = {
        "none": number(1),
        "sum": number(1),
        "mean": ops.fsum(masses),
        "mean_rows": number(n_unmasked),
        "mean_all": number(n_rows),
    }[reduction]
    unit = number(1) if base is None else 1 / ops.log(number(base))
    degenerate = divisor == 0
    factor = zero if degenerate else unit / divisor

    def shaped(values):
        full = [zero if degenerate else factor * x for x in values]
        return np.moveaxis(_array(full, z.shape, exact), -1, axis)

    per_row = _array([unit * x for x in losses], row_shape, exact)
    if reduction == "none":
        loss = per_row
    elif degenerate:
        loss = zero if empty == "zero" else ops.nan
    else:
        loss = factor * ops.fsum(losses)
    total_scale = ops.fsum(losses_scales)
    return SimpleNamespace(
        loss=loss,
        loss_scale=zero if degenerate else abs(factor) * total_scale,
        losses=per_row,
        lse=_array(lses, row_shape, exact),
        grad=shaped(grads),
        hess=shaped(hesses),
        scale=shaped(scales),
        hvp=None if x2 is None else shaped(hvps),
        losses_scale=_array([unit * x for x in losses_scales], row_shape, exact),
        lse_scale=_array(lse_scales, row_shape, exact),
        grad_scale=abs(shaped(grad_scales)),
        hess_scale=abs(shaped(hess_scales)),
        divisor=divisor,
    )


_STEP = mpmath.mpf(10) ** -25


@_asked_once
def softmax_family(
    f,
    logits,
    targets,
    *,
    alpha=None,
    sample_weight=None,
    class_weight=None,
    label_smoothing=0.0,
    smoothing="uniform",
    ignore_index=-100,
    z_loss=0.0,
    temperature=1.0,
    logit_bias=None,
    reduction="mean",
    base=None,
):
    """Losses sum_k q_k f(p_k) + zeta lse^2 of logits (n, K), their gradient and the rows' Hessians (n, K, K).

    Nothing but the textbook loss in 110 digits is written down; derivatives are its central differences of step
    1e-25, which leaves them some fifty digits. ``f`` takes p and mpmath's context. ``alpha`` multiplies the loss
    of every class and stays out of the mean's denominator.
    """
    ctx = mpmath.mp.clone()
    ctx.dps = 110
    z, targets = np.asarray(logits, np.float64), np.asarray(targets)
    n, n_classes = z.shape
    soft = targets.ndim == 2
    number = lambda x: ctx.mpf(float(x))  # noqa: E731
    w = [number(x) for x in (np.ones(n_classes) if class_weight is None else class_weight)]
    a = [number(x) for x in np.broadcast_to(1.0 if alpha is None else alpha, (n_classes,))]
    b = [number(x) for x in (np.zeros(n_classes) if logit_bias is None else logit_bias)]
    h, zeta, T = ctx.mpf(_STEP), number(z_loss), number(temperature)
    losses, mass, counted = [], ctx.mpf(0), 0
    grad = np.zeros((n, n_classes), object)
    hess = np.zeros((n, n_classes, n_classes), object)
    for i in range(n):
        ignored = not soft and ignore_index is not None and targets[i] == ignore_index
        v = number(0 if ignored else 1 if sample_weight is None else sample_weight[i])
        counted += not ignored
        t = [number(targets[i, k] if soft else targets[i] == k and not ignored) for k in range(n_classes)]
        mass += v * ctx.fsum(x * y for x, y in zip(w, t, strict=True))
        ops = SimpleNamespace(number=number)
        q = [x * y * c for x, y, c in zip(w, smoothed(t, label_smoothing, smoothing, ops), a, strict=True)]

        def row(*moves, v=v, q=q, i=i):
            """The loss of the row with its logits moved: moves are pairs (k, step)."""
            x = [number(value) for value in z[i]]
            for k, step in moves:
                x[k] += step
            e = [ctx.exp(value / T + bias) for value, bias in zip(x, b, strict=True)]
            total = ctx.fsum(e)
            return v * ctx.fsum(
                [weight * f(value / total, ctx) for weight, value in zip(q, e, strict=True) if weight]
                + [zeta * ctx.log(total) ** 2]
            )

        losses.append(row())
        for j in range(n_classes):
            grad[i, j] = (row((j, h)) - row((j, -h))) / (2 * h)
            for k in range(j + 1):
                corners = (
                    row((j, h), (k, h)) - row((j, h), (k, -h)) - row((j, -h), (k, h)) + row((j, -h), (k, -h))
                )
                hess[i, j, k] = hess[i, k, j] = corners / (4 * h * h)
    divisor = {"none": 1, "sum": 1, "mean": mass, "mean_rows": counted, "mean_all": n}[reduction]
    factor = (1 if base is None else 1 / ctx.log(number(base))) / divisor
    grad, hess = (factor * grad).astype(np.float64), (factor * hess).astype(np.float64)
    losses = np.array([float(factor * x) for x in losses])
    return SimpleNamespace(loss=losses if reduction == "none" else losses.sum(), grad=grad, hess=hess)


def _softplus(x, ops):
    """max(x, 0) + log1p(exp(-|x|))."""
    if x != x:
        return ops.nan
    if abs(x) == ops.inf:
        return max(x, ops.number(0))
    return max(x, ops.number(0)) + ops.log1p(ops.exp(-abs(x)))


def _logistic(x, ops):
    """1 / (1 + exp(-x)) from exp(-|x|), so that neither side is a difference."""
    if x != x:
        return ops.nan
    e = ops.number(0) if abs(x) == ops.inf else ops.exp(-abs(x))
    return 1 / (1 + e) if x >= 0 else e / (1 + e)


def _times(a, b, ops):
    """a b, where a zero a annihilates an infinite b (and only that: NaN stays)."""
    return ops.number(0) if a == 0 and b == b else a * b


@_asked_once
def sigmoid(
    logits,
    targets,
    *,
    sample_weight=None,
    pos_weight=None,
    label_smoothing=0.0,
    reduction="mean",
    base=None,
    exact=False,
):
    """Binary cross-entropy on logits, element by element: losses, loss, grad, hess and the gradient's scale.

    L = v [pi y' sp(-z) + (1 - y') sp(z)],  y' = (1 - a) y + a / 2;  "mean" divides by the sum of the weights.
    """
    ops = EXACT if exact else FLOAT
    z = np.asarray(logits)
    shape = z.shape
    y = np.broadcast_to(targets, shape).reshape(-1)
    v = np.broadcast_to(1.0 if sample_weight is None else sample_weight, shape).reshape(-1)
    pi = np.broadcast_to(1.0 if pos_weight is None else pos_weight, shape).reshape(-1)
    number = ops.number
    a = number(label_smoothing)
    losses, grads, hesses, scales = [], [], [], []
    for zi, yi, vi, pi_i in zip(z.reshape(-1), y, v, pi, strict=True):
        x, t, weight = number(zi), number(yi), number(vi)
        t = (1 - a) * t + a / 2
        positive, negative = number(pi_i) * t, 1 - t
        if weight == 0:
            for out in (losses, grads, hesses, scales):
                out.append(number(0))
            continue
        up, down = _logistic(x, ops), _logistic(-x, ops)
        losses.append(
            weight * (_times(positive, _softplus(-x, ops), ops) + _times(negative, _softplus(x, ops), ops))
        )
        grads.append(weight * (negative * up - positive * down))
        hesses.append(weight * (positive + negative) * up * down)
        scales.append(abs(weight) * max(negative * up, positive * down))
    return _elementwise(losses, grads, hesses, scales, v, shape, reduction, base, ops, exact)


@_asked_once
def binary(probabilities, targets, *, sample_weight=None, reduction="mean", base=None, exact=False):
    """Binary cross-entropy of probabilities: -(y log p + (1 - y) log(1 - p)), 0 log 0 = 0, no clamp."""
    ops = EXACT if exact else FLOAT
    p = np.asarray(probabilities)
    y = np.broadcast_to(targets, p.shape).reshape(-1)
    v = np.broadcast_to(1.0 if sample_weight is None else sample_weight, p.shape).reshape(-1)
    losses, grads, scales = [], [], []
    for pi, yi, vi in zip(p.reshape(-1), y, v, strict=True):
        x, t, weight = ops.number(pi), ops.number(yi), ops.number(vi)
        log_p = ops.log(x) if x > 0 else -ops.inf
        log_q = ops.log1p(-x) if x < 1 else -ops.inf
        losses.append(-weight * (_times(t, log_p, ops) + _times(1 - t, log_q, ops)))
        left = t / x if x > 0 else (ops.inf if t else ops.number(0))
        right = (1 - t) / (1 - x) if x < 1 else (ops.inf if t < 1 else ops.number(0))
        grads.append(weight * (right - left))
        scales.append(abs(weight) * max(left, right))
    return _elementwise(losses, grads, grads, scales, v, p.shape, reduction, base, ops, exact)


def _elementwise(losses, grads, hesses, scales, v, shape, reduction, base, ops, exact):
    divisor = ops.fsum([ops.number(x) for x in v]) if reduction == "mean" else ops.number(1)
    unit = ops.number(1) if base is None else 1 / ops.log(ops.number(base))
    factor = ops.number(0) if divisor == 0 else unit / divisor
    per_element = _array([unit * x for x in losses], shape, exact)
    if reduction == "none":
        loss = per_element
    else:
        loss = ops.number(0) if divisor == 0 else factor * ops.fsum(losses)
    grad, hess, scale = (
        _array([factor * x for x in values], shape, exact) for values in (grads, hesses, scales)
    )
    return SimpleNamespace(loss=loss, losses=per_element, grad=grad, hess=hess, scale=scale, divisor=divisor)


def ulps(actual, exact, scale=None, dtype=None):
    """Distance of ``actual`` from mpmath's ``exact`` in ulp of ``scale`` (default: of exact).

    The unit is the spacing of ``dtype`` (default: that of ``actual``) at the rounded value, so it is the
    smallest denormal below the normal range. Equal infinities and NaN against NaN are at distance 0, any
    other pair with a non-finite member at infinity.
    """
    actual = np.asarray(actual)
    dtype = actual.dtype if dtype is None else np.dtype(dtype)
    exact = np.asarray(exact, object)
    scale = exact if scale is None else np.asarray(scale, object)
    if actual.shape != exact.shape:
        raise AssertionError(f"shape {actual.shape} against {exact.shape}")
    out = np.empty(exact.size)
    flat = zip(actual.reshape(-1), exact.reshape(-1), scale.reshape(-1), strict=True)
    with np.errstate(over="ignore"):
        for i, (a, truth, unit) in enumerate(flat):
            a, rounded = float(a), np.asarray(float(truth)).astype(dtype)
            if not (math.isfinite(a) and np.isfinite(rounded)):
                same = a == float(rounded) or (math.isnan(a) and np.isnan(rounded))
                out[i] = 0.0 if same else math.inf
                continue
            spacing = np.spacing(np.abs(np.asarray(float(unit)).astype(dtype)))
            out[i] = abs(mp.mpf(a) - truth) / mp.mpf(float(spacing))
    return out.reshape(exact.shape)


def worst(actual, exact, scale=None, dtype=None):
    """Largest distance in ulp, 0 for empty arrays."""
    return float(ulps(actual, exact, scale, dtype).max(initial=0.0))
