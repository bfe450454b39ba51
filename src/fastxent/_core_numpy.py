"""The kernels in plain NumPy: the specification that `_core.pyx` and the GPU backend repeat, and the fallback.

Every function has the same name, arguments and meaning in each backend.  The caller owns every buffer (arguments
ending in `_out`; None where an output is not wanted) and has checked every shape.  Logits lie as (outer, classes,
inner): row i is the pair (outer, inner), so that the class axis may stand anywhere without a transposed copy.
Arithmetic is in the logits' dtype (float16 and bfloat16 in float32); sums over rows are float64.

Stable forms, used by all backends.  With m = max u, e_k = exp(u_k - m), rest = sum of e without one maximum,
    loss  = log1p(rest) + (m - u_y)                 no cancellation: both terms are >= 0
    g_k   = e_k / (1 + rest)                        k != y
    g_y   = -(sum of e without y) / (1 + rest)      never p_y - 1
The rounding of u - m is amplified by |u - m| in exp(u - m) (500 ulp at -700), so its remainder is carried along.
"""

import numpy as np

__all__ = [
    "binary_elements",
    "divergence_hvp",
    "divergence_rows",
    "divergence_upper",
    "element_totals",
    "partial_grad",
    "partial_rows",
    "region_grad",
    "region_sums",
    "sigmoid_elements",
    "softmax_boost",
    "softmax_hvp",
    "softmax_rows",
    "softmax_solve",
    "softmax_upper",
    "target_totals",
]


# The limits at infinity are part of the contract, not mistakes to warn of.
_quiet = np.errstate(all="ignore")


@_quiet
def softmax_rows(
    logits,
    targets,
    sample_weight,
    class_weight,
    logit_bias,
    label_smoothing,
    exclude_target,
    ignore_index,
    z_loss,
    temperature,
    scale,
    loss_out,
    lse_out,
    grad_out,
    hess_out,
    num_threads,
    family="cross_entropy",
    a=0.0,
    b=0.0,
):
    """Softmax losses L = sum_k q_k f(p_k) of every row, with whichever of gradient and Hessian diagonal has a buffer.

    q is the weighted, smoothed target and f the family's member (`_MEMBERS`), -log p for cross-entropy.  With
    S = sum_k q_k G_k, the gradient is S p_j - q_j G_j and the Hessian
    S (diag p - p p') - sum_k q_k P_k / (1 - p_k) d_k d_k' with d_k = p - e_k; z_loss adds 2 z_loss lse to S and
    2 z_loss p p' to the Hessian.

    `scale` multiplies gradient and Hessian, not the losses.  Rows that are ignored or have weight 0 give loss 0 and
    gradient 0 whatever their logits are.  A bad label makes its row NaN.

    Returns
    -------
    (float, int, int)
        The sum of the weighted losses; the first row (outer * inner order) with a bad target, or -1; rows not ignored.
    """
    n_classes = logits.shape[1]
    rows = _softmax(logits, logit_bias, temperature, wide=family != "cross_entropy")
    _, q, weight, bad = _targets(
        targets,
        n_classes,
        rows.u.dtype,
        sample_weight,
        class_weight,
        label_smoothing,
        exclude_target,
        ignore_index,
    )
    member = _MEMBERS[family](rows, a, b)
    lse = rows.lse
    if family == "cross_entropy":
        total = q.sum(axis=1)
        loss = total * rows.log_sum + _product(q, rows.m[:, None] - rows.u).sum(axis=1)
    else:
        total = _product(q, member.G).sum(axis=1)
        loss = _product(q, member.f).sum(axis=1)
    slope = 2 * z_loss * lse if z_loss else np.zeros_like(lse)
    if z_loss:
        loss = np.where(np.isposinf(lse), lse, loss + z_loss * lse * lse)  # the square outgrows all others
    dead = weight == 0
    loss = np.where(dead, 0, loss * weight).astype(rows.dtype, copy=False)
    if loss_out is not None:
        loss_out[...] = loss.reshape(loss_out.shape)
    if lse_out is not None:
        lse_out[...] = lse.reshape(lse_out.shape)
    if grad_out is not None:
        own = _product(q, member.G)
        # q (p - 1) apart from the rest: at a label, and of a single class, the other terms cancel exactly
        grad = _product(rows.p, total[:, None] - own) - _product(own, rows.one_minus_p)
        if z_loss:
            grad += _product(rows.p, slope[:, None])
        _store(grad_out, grad, weight * (scale / temperature), dead)
    if hess_out is not None:
        hess = _product(rows.p * rows.one_minus_p, (total + slope)[:, None])
        if z_loss:
            hess += 2 * z_loss * rows.p * rows.p
        if family != "cross_entropy":
            bend = _quotient(_product(q, member.P), rows.one_minus_p)
            others = bend.sum(axis=1, keepdims=True) - bend
            hess -= others * rows.p * rows.p + _product(q, member.P) * rows.one_minus_p
        _store(hess_out, hess, weight * (scale / temperature**2), dead)
    return float(loss.sum(dtype=np.float64)), bad, _counted(targets, n_classes, ignore_index)


@_quiet
def softmax_hvp(
    logits,
    targets,
    sample_weight,
    class_weight,
    logit_bias,
    label_smoothing,
    exclude_target,
    ignore_index,
    z_loss,
    temperature,
    scale,
    x,
    hvp_out,
    num_threads,
    family="cross_entropy",
    a=0.0,
    b=0.0,
):
    """The Hessian of `softmax_rows` times x, row by row, times `scale`.

    Returns the first row with a bad target, or -1.
    """
    n_classes = logits.shape[1]
    rows = _softmax(logits, logit_bias, temperature, wide=True)
    _, q, weight, bad = _targets(
        targets,
        n_classes,
        rows.u.dtype,
        sample_weight,
        class_weight,
        label_smoothing,
        exclude_target,
        ignore_index,
    )
    member = _MEMBERS[family](rows, a, b)
    x = _rows(x).astype(rows.u.dtype, copy=False)
    mean = (rows.p * x).sum(axis=1, keepdims=True)
    coefficient = _product(q, member.G).sum(axis=1, keepdims=True)
    if z_loss:
        # finite for a row of one +inf, whose product does not depend on it
        coefficient = coefficient + 2 * z_loss * (rows.m + rows.log_sum)[:, None]
    product = coefficient * rows.p * (x - mean)
    if z_loss:
        product += 2 * z_loss * rows.p * mean
    if family != "cross_entropy":
        bend = _quotient(_product(q, member.P), rows.one_minus_p) * (mean - x)
        product += bend - rows.p * bend.sum(axis=1, keepdims=True)
    _store(hvp_out, product, weight * (scale / temperature**2), weight == 0)
    return bad


@_quiet
def softmax_upper(
    logits,
    targets,
    sample_weight,
    class_weight,
    logit_bias,
    label_smoothing,
    exclude_target,
    ignore_index,
    z_loss,
    temperature,
    scale,
    upper_out,
    num_threads,
    family="cross_entropy",
    a=0.0,
    b=0.0,
):
    """A diagonal D, not negative, with D - H positive semidefinite for the Hessian H of every row, times `scale`.

    The sums of the rows' absolute values: diag p - p p' <= 2 diag p (1 - p), d d' <= diag |d_k| sum |d_j| =
    2 diag |d_k| (1 - p_y) for d = p - e_y, and p p' <= diag p.  In float64 for any storage, as the next functions.

    Returns the first row with a bad target, or -1.
    """
    rows, slope, own, weight, bad = _curvature(
        logits,
        targets,
        sample_weight,
        class_weight,
        logit_bias,
        label_smoothing,
        exclude_target,
        ignore_index,
        z_loss,
        temperature,
        family,
        a,
        b,
    )
    sign = np.sign(weight)[:, None]
    bend = np.maximum(-sign * own, 0)
    upper = np.maximum(sign * slope, 0) * rows.p * rows.one_minus_p
    upper += rows.p * (bend.sum(axis=1, keepdims=True) - bend) + rows.one_minus_p * bend
    upper += np.maximum(sign, 0) * z_loss * rows.p
    _store(upper_out, upper, np.abs(weight) * (2 * scale / temperature**2), weight == 0)
    return bad


@_quiet
def divergence_upper(
    logits,
    teacher,
    teacher_logits,
    sample_weight,
    ignore_index,
    temperature,
    scale,
    upper_out,
    num_threads,
    family,
    beta=0.5,
):
    """A diagonal that dominates the Hessian of every row of `divergence_rows`, times `scale`.

    The Hessian is C' diag(w) C with C = I - 1 Q' and w = f Q b.  Without the negative w, and by
    (x_k - Q.x)^2 <= 2 (1 - Q_k) ((1 - Q_k) x_k^2 + sum_(j != k) Q_j x_j^2), it is at most
    2 w_k (1 - Q_k)^2 + 2 Q_k sum_(j != k) w_j (1 - Q_j).

    Returns the first row with a bad label or a negative P, or -1.
    """
    rows, weight, bad, it = _divergence(
        logits, teacher, teacher_logits, sample_weight, ignore_index, temperature, family, beta
    )
    w = np.maximum(weight[:, None] * it.factor * rows.p * it.b, 0) * rows.one_minus_p
    upper = w * rows.one_minus_p + rows.p * (w.sum(axis=1, keepdims=True) - w)
    _store(upper_out, upper, np.full(len(weight), 2 * scale / temperature**2), weight == 0)
    return bad


@_quiet
def softmax_solve(terms, damping, rhs, x_out, num_threads):
    """(damping + H) x = rhs, row by row, in O(n_classes): H the sum of the Hessians of softmax losses and divergences.

    terms: tuples ("softmax", group, the arguments of `softmax_rows` up to `scale`, family, a, b) or ("divergence",
    group, the arguments of `divergence_rows` up to `scale`, family, beta), over the same logits.  Terms of one group,
    numbered from 0, have the same logit_bias and temperature.  damping and rhs are (outer, classes, inner), float64.

    With p = softmax(u) and C = I - 1 p', every such Hessian is C' diag(w) C + zeta p p', w = S p - q P / (1 - p) and
    zeta = 2 z_loss for a softmax loss, w = f Q b for a divergence, so those of a group add up.  With m = p.x and
    t = w.(x - m) - zeta m for every group, a row of the system is

        (damping + sum w) x = rhs + sum (w m + p t),

    and p.x = m with the definition of t are two equations for each m and t.  In those for m_0 and m_g - m_0 nothing
    cancels as the damping goes to 0, for 1 - sum_k p w / d = sum_k p damping / d.  Where d = damping + sum w is all but
    0 without the matrix being singular, w is moved by 1e-7 of its size: two steps of refinement undo that.
    """
    groups = {}
    size, alive = 0.0, False
    for kind, group, *arguments in terms:
        if kind == "softmax":
            *rest, z_loss, temperature, scale, family, a, b = arguments
            rows, slope, own, weight, _ = _curvature(*rest, z_loss, temperature, family, a, b)
            pull, back = slope * rows.p, _quotient(own, rows.one_minus_p)
        else:
            *rest, temperature, scale, family, beta = arguments
            rows, weight, _, it = _divergence(*rest, temperature, family, beta)
            pull, back, z_loss = it.factor * rows.p * it.b, 0.0, 0.0
        live = (weight != 0)[:, None]
        factor = weight[:, None] * (scale / temperature**2)
        _, w, zeta = groups.get(group, (rows, 0.0, 0.0))
        w = w + np.where(live, factor * (pull - back), 0)
        groups[group] = rows, w, zeta + np.where(live, 2 * z_loss * factor, 0)
        size = size + np.where(live, np.abs(factor) * (np.abs(pull) + np.abs(back)), 0)
        alive = alive | live
    groups = list(groups.values())
    lam, r = _rows(damping), _rows(rhs)
    d = lam + sum(w for _, w, _ in groups)
    least = 1e-7 * (lam + size)
    used = np.where(np.abs(d) < least, np.where(d < 0, -least, least), d)
    x = _eliminated(groups, lam, used, used - d, r)
    for _ in range(2):
        rest = r - lam * x
        for rows, w, zeta in groups:
            bent = w * _centred(rows, x)
            mean = (rows.p * x).sum(axis=1, keepdims=True)
            rest -= bent - rows.p * (bent.sum(axis=1, keepdims=True) - zeta * mean)
        x += _eliminated(groups, lam, used, used - d, rest)
    x = np.where(alive, x, r / lam)
    _store(x_out, x, np.ones(len(x)), np.zeros(len(x), bool))


@_quiet
def softmax_boost(
    margins, labels, sample_weight, class_weight, factor, floor, grad_out, hess_out, num_threads
):
    """A booster's derivatives of softmax cross-entropy: v (p - [k = y]) and v max(factor p (1 - p), floor).

    `margins`, `grad_out` and `hess_out` are (rows, classes), `labels` (rows,) of integers, float32 or float64,
    `sample_weight` (rows,) float32 or float64, `class_weight` contiguous in the dtype of the margins; v is the row's
    weight times its label's. The outputs are float32.

    Returns
    -------
    bool
        Whether every row is plain: its label a class, its weight finite and not negative, and its logits without a
        limit (NaN, infinities). Otherwise the outputs mean nothing.
    """
    plain = (labels >= 0) & (labels < margins.shape[1]) & (labels == np.floor(labels))
    v = np.ones(len(margins)) if sample_weight is None else sample_weight.astype(margins.dtype)
    if not (plain & (v >= 0) & (v < np.inf)).all():
        return False
    u, v = margins.astype(np.float64), v[:, None]
    top = u.max(axis=1, keepdims=True)
    gap, e = _exponentials(u, top, margins.dtype)
    ties = gap == 0
    rest = np.where(ties, 0, e).sum(axis=1, keepdims=True)
    others = rest + (ties.sum(axis=1, keepdims=True) - 1)
    total = others + 1
    p, left = e / total, np.where(ties, others, total - e) / total
    own = labels[:, None] == np.arange(u.shape[1])
    if class_weight is not None:
        v = v * np.where(own, class_weight, 0).sum(axis=1, keepdims=True)
    grad_out[...] = np.where(own, -left, p) * v
    hess_out[...] = np.maximum(factor * (p * left), floor) * v
    return bool(np.isfinite(top).all() and np.isfinite(total).all())


@_quiet
def target_totals(targets, sample_weight, class_weight, n_classes, ignore_index, num_threads):
    """The denominators of the reductions, and the target check, without touching the logits.

    Returns
    -------
    (float, int, int)
        sum_i v_i sum_k w_k t_ik over un-smoothed targets; rows that are not ignored; first bad row or -1.
    """
    dtype = np.dtype(np.float64)
    _, target, weight, bad = _targets(
        targets, n_classes, dtype, sample_weight, class_weight, 0.0, False, ignore_index
    )
    live = weight != 0
    total = target.sum(axis=1)[live] * np.where(np.isnan(weight), 1, weight)[live]
    return float(total.sum()), _counted(targets, n_classes, ignore_index), bad


@_quiet
def divergence_rows(
    logits,
    teacher,
    teacher_logits,
    sample_weight,
    ignore_index,
    temperature,
    scale,
    loss_out,
    grad_out,
    hess_out,
    num_threads,
    family,
    beta=0.5,
):
    """A divergence between Q = softmax(logits / temperature) and a teacher P, row by row, with its derivatives.

    "entropy" -sum Q log Q; "forward_kl" sum P log(P / Q); "reverse_kl" sum Q log(Q / P); "jensen_shannon"
    beta KL(P || M) + (1 - beta) KL(Q || M) with M = beta P + (1 - beta) Q (Lin, 1991).  In float64 for any storage.

    teacher: (outer, classes, inner) in the compute dtype, logits (softened by the same temperature) if
    `teacher_logits`, else non-negative weights that are used as given; or labels (outer, inner), whose P is 1 at the
    label.  "entropy" reads of labels only which rows are ignored, and takes None.  `scale` multiplies gradient and
    Hessian diagonal, not the losses.  Where P_k = 0 < Q_k, the reverse KL is +inf: its gradient is +inf there, -inf
    elsewhere, its curvature NaN.

    Returns
    -------
    (float, int)
        The sum of the weighted losses, and the first row with a bad label or a negative P, or -1.
    """
    rows, weight, bad, it = _divergence(
        logits, teacher, teacher_logits, sample_weight, ignore_index, temperature, family, beta
    )
    loss = it.loss * weight
    dead = weight == 0
    loss[dead] = 0
    if loss_out is not None:
        loss_out[...] = loss.reshape(loss_out.shape)
    if grad_out is not None:
        _store(grad_out, it.grad, weight * (scale / temperature), dead)
    if hess_out is not None:
        hess = it.factor * rows.p * (rows.one_minus_p * it.b - rows.p * it.c)
        _store(hess_out, hess, weight * (scale / temperature**2), dead)
    return float(loss.sum()), bad


@_quiet
def divergence_hvp(
    logits,
    teacher,
    teacher_logits,
    sample_weight,
    ignore_index,
    temperature,
    scale,
    x,
    hvp_out,
    num_threads,
    family,
    beta=0.5,
):
    """The Hessian of `divergence_rows` times x, row by row, times `scale`.

    Returns the first row with a bad label or a negative P, or -1.
    """
    rows, weight, bad, it = _divergence(
        logits, teacher, teacher_logits, sample_weight, ignore_index, temperature, family, beta
    )
    x = _rows(x).astype(np.float64)
    product = it.factor * rows.p * _centred(rows, _centred(rows, x) * it.b)
    _store(hvp_out, product, weight * (scale / temperature**2), weight == 0)
    return bad


@_quiet
def sigmoid_elements(
    logits,
    targets,
    sample_weight,
    pos_weight,
    label_smoothing,
    scale,
    loss_out,
    grad_out,
    hess_out,
    num_threads,
    family="cross_entropy",
    a=0.0,
    b=0.0,
    c=0.0,
):
    """Losses v (pi y f_1(z) + (1 - y) f_0(z)) on logits, element by element over 2-D arrays.

    Weights may have strides of 0.

    "cross_entropy": f_1 = sp(-z), f_0 = sp(z), with sp(z) = max(z, 0) + log1p(exp(-|z|)); sigma(z) and sigma(-z) each
    come from exp(-|z|), never from 1 - sigma.  "focal": f_1 = b q^a sp(-z), f_0 = c p^a sp(z), p = sigma(z),
    q = sigma(-z) (Lin et al., 2017).  "asymmetric": f_1 = q^a sp(-z), f_0 = -s^b log(1 - s), s = max(p - c, 0)
    (Ridnik et al., 2021), whose Hessian is NaN: it has a kink.

    Returns
    -------
    (float, int, int)
        The sum of the losses; the first element (in C order) whose target lies outside [0, 1], or -1; -1.
    """
    z = _compute(logits)
    y, not_y = _smoothed(targets.astype(z.dtype, copy=False), label_smoothing)
    if pos_weight is not None:
        y = y * pos_weight.astype(z.dtype, copy=False)
    if family == "focal":
        y, not_y = y * z.dtype.type(b), not_y * z.dtype.type(c)
    e = np.exp(-np.abs(z))
    tail = np.log1p(e)
    big = 1 / (1 + e)
    small = e * big
    p = np.where(z > 0, big, small)  # sigma(z)
    q = np.where(z > 0, small, big)  # sigma(-z)
    up, down = np.maximum(z, 0) + tail, np.maximum(-z, 0) + tail  # sp(z), sp(-z)
    if family == "cross_entropy":
        one, zero = (down, -q, p * q), (up, p, p * q)
    elif family == "focal":
        one, (f, g, h) = _focal_side(p, q, down, a), _focal_side(q, p, up, a)
        zero = f, -g, h
    else:
        one, zero = _focal_side(p, q, down, a), _shifted_side(p, q, up, b, c)
    mixed = tuple(_product(y, f) + _product(not_y, g) for f, g in zip(one, zero, strict=True))
    total = _elements_out(z, sample_weight, scale, mixed, (loss_out, grad_out, hess_out))
    return total, _first(~((targets >= 0) & (targets <= 1))), -1


@_quiet
def binary_elements(
    probabilities,
    targets,
    sample_weight,
    pos_weight,
    label_smoothing,
    scale,
    loss_out,
    grad_out,
    hess_out,
    num_threads,
):
    """Binary cross-entropy on probabilities, without a clamp: -(pi y log p + (1 - y) log(1 - p)).

    Returns
    -------
    (float, int, int)
        The sum of the losses; the first element whose target, and whose probability, lies outside [0, 1], or -1.
    """
    p = _compute(probabilities)
    wrong = ~((p >= 0) & (p <= 1))
    p = np.where(wrong, p.dtype.type(np.nan), p)
    y, not_y = _smoothed(targets.astype(p.dtype, copy=False), label_smoothing)
    difference = p - y
    if pos_weight is not None:
        y = y * pos_weight.astype(p.dtype, copy=False)
        difference = not_y * p - y * (1 - p)
    loss = 0 - _product(y, np.log(p)) - _product(not_y, np.log1p(-p))
    # p - y cancels exactly where it should; at the ends of [0, 1] one of the two terms has no limit problem
    ends = _quotient(not_y, 1 - p) - _quotient(y, p)
    grad = np.where((p > 0) & (p < 1), difference / (p * (1 - p)), ends)
    hess = _quotient(y, p * p) + _quotient(not_y, (1 - p) * (1 - p))
    total = _elements_out(p, sample_weight, scale, (loss, grad, hess), (loss_out, grad_out, hess_out))
    return total, _first(~((targets >= 0) & (targets <= 1))), _first(wrong)


def element_totals(targets, sample_weight, num_threads):
    """Sum of the weights (element count without weights), and first target outside [0, 1] or -1; 2-D arrays."""
    total = float(targets.size) if sample_weight is None else float(sample_weight.sum(dtype=np.float64))
    return total, _first(~((targets >= 0) & (targets <= 1)))


@_quiet
def partial_rows(logits, labels, start, m_out, r_out, t_out, Z_out, num_threads):
    """State of every row from its columns `start` and up: maximum, the other exponentials, the label's gap, all gaps.

    logits (rows, k), k > 0; labels (rows,) int64 over all classes; outputs (rows,) float64, in which all is computed:
    m = max x, r = sum exp(x - m) without one maximum, t = m - x_y (0 where y is in no column here), Z = sum (m - x).
    One +inf: the others' exponentials are 0; two: r is NaN.  All -inf: r = 0, t and Z are +inf.
    """
    k = logits.shape[1]
    for b in _blocks(*logits.shape):
        x = logits[b].astype(np.float64)
        at = labels[b] - start
        owned = (at >= 0) & (at < k)
        top = x.argmax(axis=1)[:, None]  # of a NaN if there is one
        m = np.take_along_axis(x, top, 1)
        gap, e = _exponentials(x, m, logits.dtype)
        np.put_along_axis(e, top, 0, 1)
        r, Z = e.sum(axis=1), gap.sum(axis=1)
        t = np.where(owned, np.take_along_axis(gap, np.where(owned, at, 0)[:, None], 1)[:, 0], 0)
        m = m[:, 0]
        nothing = m == -np.inf
        r[nothing], Z[nothing], t[nothing & owned] = 0, np.inf, np.inf
        r[(m == np.inf) & (r > 0)] = np.nan
        m_out[b], r_out[b], t_out[b], Z_out[b] = m, r, t, Z


@_quiet
def partial_grad(logits, labels, start, m, r, t, pull, weight, spread, share, grad_out, num_threads):
    """Gradient with respect to some columns of every row, from the states of whole rows.

    m, r, t (rows,) are those of `partial_rows` over all columns; pull = 2 z_loss lse; weight is divided by the loss's
    denominator.  p = exp(x - m) / (1 + r); g = weight (p (1 + pull) - spread), less weight share at the label; without
    smoothing, spread = 0, p - 1 at the label is minus the sum of the others.  Weight 0 gives 0.
    """
    k = logits.shape[1]
    for b in _blocks(*logits.shape):
        gap, e = _exponentials(logits[b].astype(np.float64), m[b, None], logits.dtype)
        unit = weight[b, None] / (1 + r[b, None])
        g = _scaled(gap, e, unit * (1 + pull[b, None])) - spread * weight[b, None]
        at = labels[b] - start
        here = np.flatnonzero((at >= 0) & (at < k))
        column = at[here]
        if spread:
            g[here, column] -= share * weight[b][here]
        else:
            others = np.where(t == 0, r, 1 + r - np.exp(-t))[b]
            g[here, column] = (_product(e[here, column], pull[b][here]) - others[here]) * unit[here, 0]
        g[weight[b] == 0] = 0
        grad_out[b] = g


@_quiet
def region_sums(values, targets, sample_weight, activation, soft_labels, sums_out, num_threads):
    """Weighted sums of true positives, false positives and false negatives over regions.

    Arrays are (regions, outer, classes, inner); activation "softmax" (over the classes), "sigmoid" or "none" makes
    probabilities p of the values.  TP = v p t, FP = v p (1 - t), FN = v (1 - p) t, or with `soft_labels`
    min(p, t), max(p - t, 0), max(t - p, 0); what weighs 0 counts nothing, whatever it is.  sums_out is
    (regions, 1 or classes, 3) float64: summed over the classes, or class by class.
    """
    p, q, _ = _probabilities(values, activation)
    if soft_labels:
        parts = np.minimum(p, targets), np.maximum(p - targets, 0), np.maximum(targets - p, 0)
    else:
        parts = p * targets, p * (1 - targets), q * targets
    axes = (1, 3) if sums_out.shape[1] == values.shape[2] else (1, 2, 3)
    for at, part in enumerate(parts):
        if sample_weight is not None:
            part = np.where(sample_weight == 0, 0, sample_weight * part)
        sums_out[:, :, at] = part.sum(axis=axes, dtype=np.float64).reshape(sums_out.shape[:2])


@_quiet
def region_grad(
    values,
    targets,
    sample_weight,
    activation,
    soft_labels,
    alpha,
    beta,
    slopes,
    grad_out,
    num_threads,
):
    """Gradient of region losses (alpha FP + beta FN) / (TP + alpha FP + beta FN + s) with respect to `values`.

    With slopes (regions, 1 or classes, 2): dL/dp = v (bend slopes_0 - hit slopes_1), hit and bend the derivatives of TP
    and of alpha FP + beta FN, slopes = (TP + s, alpha FP + beta FN) over the denominator squared; then through the
    activation.
    """
    p, q, rows = _probabilities(values, activation)
    if soft_labels:
        below, above = p < targets, p > targets
        hit = np.where(below, 1.0, np.where(above, 0.0, 0.5))
        bend = alpha * np.where(above, 1.0, np.where(below, 0.0, 0.5)) - beta * hit
    else:
        hit, bend = targets, alpha * (1 - targets) - beta * targets
    slope = bend * slopes[:, None, :, None, 0] - hit * slopes[:, None, :, None, 1]
    dead = np.zeros(1, bool) if sample_weight is None else sample_weight == 0
    if sample_weight is not None:
        slope = np.where(dead, 0, slope * sample_weight)
    if activation == "sigmoid":
        slope = slope * p * q
    elif activation == "softmax":
        centred = _centred(rows, np.moveaxis(slope, 2, 3).reshape(rows.p.shape))
        slope = p * np.moveaxis(centred.reshape(p.shape[0], p.shape[1], p.shape[3], p.shape[2]), 3, 2)
    grad_out[...] = np.where(dead, 0, slope)


def _probabilities(values, activation):
    """p and 1 - p of region losses, each without cancellation, and the rows of a softmax, in float64 as in the kernels.

    Without smoothing a region's loss is a ratio of sums that may be smaller than any float32.
    """
    z = values.astype(np.float64)
    if activation == "none":
        return z, 1 - z, None
    if activation == "sigmoid":
        e = np.exp(-np.abs(z))
        big = 1 / (1 + e)
        small = e * big
        return np.where(z > 0, big, small), np.where(z > 0, small, big), None
    rows = _softmax(z.reshape(z.shape[0] * z.shape[1], *z.shape[2:]), None, 1.0)
    shape = (*z.shape[:2], z.shape[3], z.shape[2])
    return *(np.moveaxis(a.reshape(shape), 3, 2) for a in (rows.p, rows.one_minus_p)), rows


def _exponentials(x, m, dtype):
    """Gap m - x and exp(x - m) of float64 arrays.

    The rounding of x - m, which would cost |x - m| / 2 ulp, is carried along (TwoSum), unless the numbers come from a
    shorter `dtype`: then it is below that one's rounding.
    """
    d = x - m
    if not np.isfinite(m).all():
        d[x == m] = 0
    e = np.exp(d)
    if dtype == np.float64:
        back = d - x
        remainder = (x - (d - back)) - (m + back)
        remainder[~np.isfinite(remainder)] = 0
        remainder *= e
        e += remainder
    return np.negative(d, out=d), e


def _scaled(gap, e, factor):
    """e * factor with e = exp(-gap); where e is subnormal, its rounding is not multiplied."""
    product = _product(e, factor)
    low = (e < np.finfo(e.dtype).smallest_normal) & (gap < np.inf) & np.isfinite(factor)
    if low.any():
        half = np.exp(gap[low] / -2)
        product[low] = half * (half * np.broadcast_to(factor, e.shape)[low])
    return product


def _blocks(n_rows, k):
    """Blocks of rows whose temporaries stay in cache."""
    step = max(1, (1 << 15) // k)
    return [slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]


class _softmax:
    """Rows of logits as numbers: u, m, log1p(rest), lse, l = -log p, p, and 1 - p without cancellation.

    `wide` computes in float64 what follows from u, as the kernels do for powers of p, which amplify rounding.
    """

    def __init__(self, logits, logit_bias, temperature, *, wide=False):
        u = _compute(_rows(logits))
        if temperature != 1:
            u = u * u.dtype.type(1 / temperature)
        if logit_bias is not None:
            u = u + logit_bias
        self.dtype = u.dtype
        if wide:
            u = u.astype(np.float64)
        m = u.max(axis=1)
        infinite = None
        if not np.isfinite(m).all():
            u, m, infinite = _limits(u, m)
        at = u.argmax(axis=1)[:, None]
        d = u - m[:, None]
        back = d - u
        remainder = (u - (d - back)) - (m[:, None] + back)
        e = np.exp(d)
        e += np.where(np.isfinite(remainder), e * remainder, 0)
        without = e.copy()
        np.put_along_axis(without, at, 0, 1)
        rest = without.sum(axis=1, dtype=np.float64, keepdims=True)
        total = rest + np.take_along_axis(e, at, 1)
        self.u, self.m = u, m
        self.log_sum = np.log1p(rest[:, 0].astype(u.dtype))
        self.lse = m + self.log_sum
        if infinite is not None:
            self.lse[infinite] = np.inf
        self.ell = self.log_sum[:, None] + (m[:, None] - u)
        self.p = (e / total).astype(u.dtype)
        self.one_minus_p = ((total - e) / total).astype(u.dtype)
        np.put_along_axis(self.one_minus_p, at, (rest / total).astype(u.dtype), 1)


def _limits(u, m):
    """Rows whose maximum is not finite: a single +inf takes all the probability, any other such row is NaN."""
    u, m = u.copy(), m.copy()
    infinite = np.isposinf(m) & (np.count_nonzero(np.isposinf(u), axis=1) == 1)
    odd = ~np.isfinite(m) & ~infinite
    u[infinite] = np.where(np.isposinf(u[infinite]), 0, -np.inf)
    m[infinite] = 0
    u[odd] = m[odd] = np.nan
    return u, m, infinite


class _member:
    """f, G = -p f'(p) and P = (1 - p) p dG/dp of every class, from p, q = 1 - p and l = -log p."""

    def __init__(self, f, G, P):
        self.f, self.G, self.P = f, G, P


def _cross_entropy(rows, a, b):
    return _member(rows.ell, np.ones_like(rows.p), np.zeros_like(rows.p))


def _focal(rows, gamma, b):
    """(1 - p)^gamma l; Lin et al., 2017."""
    p, q, ell = rows.p, rows.one_minus_p, rows.ell
    power = q**gamma
    ratio = np.where(q == 0, 1, ell / q)  # l / q tends to 1
    pr = np.where(p == 0, 0, p * ratio)
    f = np.where(q == 0, 0, power * ell)
    return _member(f, power * (gamma * pr + 1), gamma * power * (pr * (1 - gamma * p) - 2 * p))


def _linear(rows, a, b):
    """a l + b (1 - p): poly-1, symmetric cross-entropy, mean absolute error."""
    p, q = rows.p, rows.one_minus_p
    G = a + b - b * q if b < 0 else a + b * p  # for a = -b, p -> 1: no digits lost
    return _member((a * rows.ell if a else 0) + b * q, G, b * p * q)


def _power(rows, r, b):
    """(1 - p^r) / r: generalized cross-entropy; Zhang and Sabuncu, 2018."""
    power = np.exp(-r * rows.ell)
    return _member(-np.expm1(-r * rows.ell) / r, power, r * power * rows.one_minus_p)


_MEMBERS = {"cross_entropy": _cross_entropy, "focal": _focal, "linear": _linear, "power": _power}


def _curvature(
    logits,
    targets,
    sample_weight,
    class_weight,
    logit_bias,
    label_smoothing,
    exclude_target,
    ignore_index,
    z_loss,
    temperature,
    family,
    a,
    b,
):
    """Softmax rows in float64, S = sum_k q_k G_k + 2 z_loss lse, q_k P_k, weight of every row, first bad row or -1."""
    rows = _softmax(logits.astype(np.float64), logit_bias, temperature)
    _, q, weight, bad = _targets(
        targets,
        logits.shape[1],
        rows.u.dtype,
        sample_weight,
        class_weight,
        label_smoothing,
        exclude_target,
        ignore_index,
    )
    member = _MEMBERS[family](rows, a, b)
    slope = _product(q, member.G).sum(axis=1, keepdims=True)
    if z_loss:
        # finite for a row of one +inf, whose curvature does not depend on it
        slope = slope + 2 * z_loss * (rows.m + rows.log_sum)[:, None]
    return rows, slope, _product(q, member.P), weight, bad


def _eliminated(groups, lam, d, moved, r):
    """x of `softmax_solve` for right-hand sides r; `moved` is added to w of the first group."""

    def total(a):
        return a.sum(axis=1)

    p, w = [rows.p for rows, _, _ in groups], [w for _, w, _ in groups]
    w[0] = w[0] + moved
    n = len(groups)
    columns = [d - lam, *w[1:], *p]
    A, right = np.zeros((len(r), 2 * n, 2 * n)), np.empty((len(r), 2 * n))
    for at, row in enumerate(p + w):
        over = row / d
        right[:, at] = -total(over * r)
        A[:, at, 0] = -total(over * lam)
        for column in range(1, 2 * n):
            A[:, at, column] = total(over * columns[column])
        group = at % n
        if at < n:
            if group:
                A[:, at, group] -= 1
        else:
            if group:
                A[:, at, group] -= total(row)
            zeta = np.broadcast_to(groups[group][2], (len(r), 1))[:, 0]
            for column in {0, group}:
                A[:, at, column] -= zeta
            A[:, at, n + group] -= 1
    if n == 1:  # 1 - sum p w / d once more
        A[:, 1, 1] = A[:, 0, 0]
    unknowns = _small_solve(A, right)
    return (r + sum(column * u[:, None] for column, u in zip(columns, unknowns.T, strict=True))) / d


def _small_solve(A, right):
    """Gauss and Jordan, with row exchanges, over a stack of systems; a singular one becomes NaN or infinite."""
    A = np.concatenate([A, right[:, :, None]], axis=2)
    every = np.arange(len(A))
    for c in range(A.shape[1]):
        best = c + np.abs(A[:, c:, c]).argmax(axis=1)
        A[every, c], A[every, best] = A[every, best], A[every, c].copy()
        A[:, c] /= A[:, c, c, None]
        for j in range(A.shape[1]):
            if j != c:
                A[:, j] -= A[:, j, c, None] * A[:, c]
    return A[:, :, -1]


class _divergence_parts:
    """Loss and gradient of every row, and factor, b, c of the Hessian.

    All gradients but forward KL's are factor Q_k (r_k - R), R = sum Q r, and with a_k = dr_k / d log Q_k, A = sum Q a,
    b = r - R + a, c = b - A and the centred d = x - sum Q x:
        Hessian diagonal  factor Q ((1 - Q) b - Q c),      Hessian times x  factor Q (d b - sum Q d b).
    """

    def __init__(self, rows, loss, factor, r, a):
        self.loss, self.factor = loss, factor
        infinite = np.isposinf(r) & (rows.p > 0)
        r = np.where(infinite.any(axis=1, keepdims=True), np.nan, r)
        centred = _centred(rows, r)
        self.grad = factor * rows.p * centred
        _limits_of_slope(self.grad, rows.p, infinite)
        self.c = centred + _centred(rows, a)
        self.b = centred + np.where(rows.p == 0, 0, a)


def _divergence(logits, teacher, teacher_logits, sample_weight, ignore_index, temperature, family, beta):
    """Softmax rows of the student, weight of every row, first bad row or -1, and the divergence's parts."""
    rows = _softmax(logits.astype(np.float64), None, temperature)
    Q, n_classes = rows.p, logits.shape[1]
    # log-probabilities less a constant of the row, which `_centred` takes away in any case
    distance = rows.u - rows.m[:, None]
    given = teacher
    if teacher is None or teacher_logits:
        given, ignore_index = np.zeros((len(Q), 1), np.int64), None
    _, P, weight, bad = _targets(given, n_classes, Q.dtype, sample_weight, None, 0.0, False, ignore_index)
    P[~_shares(P)] = np.nan
    if family == "entropy":
        loss = _product(Q, rows.ell).sum(axis=1)
        return rows, weight, bad, _divergence_parts(rows, loss, -1, distance, np.ones_like(Q))
    if teacher_logits:
        other = _softmax(teacher.astype(np.float64), None, temperature)
        P, others, ell, surplus = other.p, other.one_minus_p, other.ell, 0.0
        distance = distance - (other.u - other.m[:, None])
    else:
        at = P.argmax(axis=1)[:, None]
        top = np.take_along_axis(P, at, 1)
        without = P.copy()
        np.put_along_axis(without, at, 0, 1)
        rest = without.sum(axis=1, keepdims=True)
        others = rest + top - P
        np.put_along_axis(others, at, rest, 1)
        ell = -np.log(P)
        surplus = ((top - 1) + rest)[:, 0]
        distance = distance + ell
    rows.p = Q = np.where(np.isnan(P).any(axis=1, keepdims=True), np.nan, Q)
    gap = rows.ell - ell  # log(P / Q)
    if family == "forward_kl":
        mass = (1 + np.broadcast_to(surplus, len(Q)))[:, None]
        it = _divergence_parts(
            rows, _excess(P, gap, Q).sum(axis=1) + surplus, 1, np.zeros_like(Q), mass + 0 * (P + Q)
        )
        it.grad = np.where((mass / 2 < P) & (Q > 0.5), others - mass * rows.one_minus_p, mass * Q - P)
    elif family == "reverse_kl":
        loss = _excess(Q, -gap, P).sum(axis=1) - surplus
        it = _divergence_parts(rows, loss, 1, distance, np.ones_like(Q))
    else:
        M = beta * P + (1 - beta) * Q
        x = np.expm1(-np.abs(gap))
        near = gap <= 0
        share = np.where(near, beta, 1 - beta)
        log = np.log1p(share * x)
        r = np.where(near, -log, -gap - log)  # log(Q / M)
        s = np.where(near, gap - log, -log)  # log(P / M)
        a = beta * np.where(near, 1 + x, 1) / (1 + share * x)  # beta P / M
        loss = (beta * _excess(P, s, M) + (1 - beta) * _excess(Q, r, M)).sum(axis=1)
        it = _divergence_parts(rows, loss, 1 - beta, r, a)
    return rows, weight, bad, it


def _excess(P, s, X):
    """P log(P / X) - P + X >= 0 with s = log(P / X): without the cancellation where P is close to X."""
    x = -s
    series = np.ones_like(x)
    for n in range(17, 2, -1):
        series = 1 + x / n * series
    return np.where(P == 0, X, np.where(np.abs(s) < 0.5, P * (x * x / 2 * series), P * s - P + X))


def _centred(rows, v):
    """v - sum Q v of every row; exact where one class has nearly all of Q.  0 where Q is 0."""
    at = rows.u.argmax(axis=1)[:, None]
    v = np.where(rows.p == 0, 0, v - np.take_along_axis(v, at, 1))
    return np.where(rows.p == 0, 0, v - (rows.p * v).sum(axis=1, keepdims=True))


def _limits_of_slope(grad, Q, infinite):
    """Gradient in rows with r = +inf somewhere: uphill there, downhill elsewhere, 0 if there is no elsewhere."""
    odd = infinite.any(axis=1)
    elsewhere = ((Q > 0) & ~infinite).any(axis=1)
    limit = np.where(Q > 0, np.where(infinite, np.inf, -np.inf), 0)
    limit[~elsewhere] = 0
    grad[odd] = limit[odd]


def _focal_side(p, q, S, gamma):
    """q^gamma S with S = -log p, and its derivatives along the logit of p."""
    power = _power_of(q, gamma)
    pS = _product(p, S)
    g = -power * (gamma * pS + q)
    return power * S, g, power * (pS * (gamma * gamma * p - gamma * q) + (2 * gamma + 1) * p * q)


def _shifted_side(p, q, S, gamma, margin):
    """-s^gamma log(1 - s), s = max(p - margin, 0), with its derivative; S = -log q."""
    s = np.maximum(p - p.dtype.type(margin), 0)
    rest = q + p.dtype.type(margin)  # 1 - s
    ell = np.log1p(s / rest) if margin else S
    power = np.where(s > 0, _power_of(s, gamma), s)
    slope = _product(p * q, ell / np.where(s > 0, s, 1))
    f = np.where(s > 0, power * ell, s)
    return f, power * (gamma * slope + (p * (q / rest) if margin else p)), np.full_like(p, np.nan)


def _power_of(q, gamma):
    """q^gamma through float64: powers amplify rounding."""
    return (q.astype(np.float64) ** gamma).astype(q.dtype)


def _targets(
    targets, n_classes, dtype, sample_weight, class_weight, label_smoothing, exclude_target, ignore_index
):
    """Labels (None if soft), weighted and smoothed targets q, weight of every row, first bad row or -1.

    The weight is 0 where a row is ignored and NaN where its label is no class: such a row's numbers are those of
    class 0 until the weight makes them NaN.
    """
    label = None
    weight = np.ones(targets.size if targets.ndim == 2 else targets.size // n_classes, dtype)
    if sample_weight is not None:
        weight = _flat(sample_weight).astype(dtype)
    if targets.ndim == 2:
        given = _flat(targets)
        wrong = (given < 0) | (given >= n_classes)
        label = np.where(wrong, 0, given).astype(np.int64)
        if ignore_index is not None:
            ignored = given == ignore_index
            wrong &= ~ignored
            weight[ignored] = 0
        weight[wrong] = np.nan
        t = np.zeros((len(label), n_classes), dtype)
        np.put_along_axis(t, label[:, None], 1, 1)
    else:
        t = _rows(targets).astype(dtype)
        wrong = ~_shares(t)
    if label_smoothing:
        if exclude_target:
            other = label_smoothing / (n_classes - 1) if n_classes > 1 else 0.0
            t = (1 - label_smoothing) * t + other * (1 - t)
        else:
            t = (1 - label_smoothing) * t + label_smoothing / n_classes
    if class_weight is not None:
        t = t * class_weight.astype(dtype, copy=False)
    return label, t.astype(dtype, copy=False), weight, _first(wrong)


def _shares(t):
    """Rows whose numbers are not negative, infinite or NaN."""
    return ((t >= 0) & (t < np.inf)).all(axis=1)


def _counted(targets, n_classes, ignore_index):
    """Rows that are not ignored."""
    if targets.ndim == 3:
        return targets.size // n_classes
    return targets.size - (0 if ignore_index is None else int(np.count_nonzero(targets == ignore_index)))


def _rows(a):
    """(outer, classes, inner) as (rows, classes)."""
    return np.moveaxis(a, 1, 2).reshape(-1, a.shape[1])


def _flat(a):
    return a.reshape(-1)


def _compute(a):
    return a.astype(np.float32) if a.dtype.itemsize == 2 else a


def _product(a, b):
    """a * b where a factor of 0 annihilates an infinite one."""
    product = a * b
    return np.where((a == 0) & ~np.isnan(b), 0, product).astype(product.dtype, copy=False)


def _quotient(a, b):
    """a / b where a numerator of 0 gives 0."""
    return np.where((a == 0) & ~np.isnan(b), 0, a / b).astype(a.dtype, copy=False)


def _store(out, rows, factor, dead):
    rows *= factor[:, None].astype(rows.dtype, copy=False)
    rows[dead] = 0
    outer, n_classes, inner = out.shape
    out[...] = np.moveaxis(rows.reshape(outer, inner, n_classes), 2, 1)


def _first(wrong):
    """Flat index of the first True, or -1."""
    return int(wrong.argmax()) if wrong.any() else -1


def _smoothed(y, label_smoothing):
    """Smoothed y and its complement, each without cancellation."""
    if not label_smoothing:
        return y, 1 - y
    half = label_smoothing / 2
    return (1 - label_smoothing) * y + half, (1 - label_smoothing) * (1 - y) + half


def _elements_out(z, sample_weight, scale, values, outs):
    loss, grad, hess = values
    factor = scale
    if sample_weight is not None:
        weight = sample_weight.astype(z.dtype, copy=False)
        dead = np.broadcast_to(weight == 0, z.shape)
        loss = np.where(dead, 0, loss * weight).astype(z.dtype)
        grad = np.where(dead, 0, grad * weight)
        hess = np.where(dead, 0, hess * weight)
    loss_out, grad_out, hess_out = outs
    if loss_out is not None:
        loss_out[...] = loss
    if grad_out is not None:
        grad_out[...] = grad * z.dtype.type(factor)
    if hess_out is not None:
        hess_out[...] = hess * z.dtype.type(factor)
    return float(loss.sum(dtype=np.float64))
