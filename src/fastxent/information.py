"""Entropy, cross-entropy, divergences and perplexity of distributions given as probabilities.

Here the arguments are distributions, not logits (for those: `fastxent.softmax_cross_entropy`).  They are used as
given, without normalization: counts or an unnormalized row give the formula's value of these numbers.  0 log 0 = 0.

Shapes: `p` and `q` broadcast against each other; `axis` (an int, a tuple, or None for all axes) holds the distribution
and disappears from the result.  A result without axes left is a Python float, otherwise an array, float32 where every
argument is float32 or shorter and float64 elsewhere.  `base` is that of the logarithm: None for nats, 2 for bits.

Arithmetic is float64 whatever the arguments' dtype.  Every term is accurate by itself and the sums are compensated
(Ogita, Rump and Oishi, 2005, "Accurate sum and dot product": twice the working precision), so results keep their digits
where the textbook forms cancel: two distributions that differ by 1e-9 have a divergence near 1e-18, and get it.
"""

import numpy as np

from . import _checks

__all__ = ["cross_entropy", "entropy", "js_divergence", "kl_divergence", "perplexity"]


@_checks.answers_in_kind()
def entropy(p, *, base=None, axis=-1):
    """Shannon entropy H(p) = -sum_k p_k log p_k.

    Shannon, 1948, "A mathematical theory of communication".

    Parameters
    ----------
    p : array-like of any shape
        Probabilities, or any finite non-negative numbers.
    base : float, optional
        Base of the logarithm; None for nats, 2 for bits.
    axis : int, tuple of ints or None, default=-1
        Where the distribution lies. None: the whole array is one distribution.

    Returns
    -------
    float, or ndarray of the shape of p without `axis`

    Raises
    ------
    TypeError
        Not real numbers.
    ValueError
        A negative number, an infinity or a NaN; no classes; an impossible base or axis.

    Examples
    --------
    >>> from fastxent import information
    >>> information.entropy([0.5, 0.25, 0.25, 0.0], base=2)
    1.5
    >>> round(information.entropy([0.9, 0.1], base=2), 12)
    0.468995593589
    """
    (p,), call = _start(base, axis, p=p)
    return call.finish(compensated_sum(_p_log(p, p, -1.0)))


@_checks.answers_in_kind()
def cross_entropy(p, q, *, base=None, axis=-1):
    """Cross-entropy of distributions, CE(p, q) = -sum_k p_k log q_k = H(p) + KL(p, q).

    Parameters
    ----------
    p, q : array-like, broadcastable against each other
        Finite non-negative numbers: the truth p, and the model q.
    base, axis
        As for `entropy`.

    Returns
    -------
    float, or ndarray of the broadcast shape without `axis`
        +inf where p_k > 0 = q_k for some k.

    Raises
    ------
    TypeError, ValueError
        As `entropy`; also for shapes that do not broadcast.

    Examples
    --------
    >>> from fastxent import information
    >>> round(information.cross_entropy([1.0, 0.0], [0.8, 0.2]), 12)
    0.223143551314
    >>> information.cross_entropy([0.5, 0.5], [[0.5, 0.5], [1.0, 0.0]], base=2).tolist()
    [1.0, inf]
    """
    (p, q), call = _start(base, axis, p=p, q=q)
    return call.finish(compensated_sum(_p_log(p, q, -1.0)))


@_checks.answers_in_kind()
def kl_divergence(p, q, *, base=None, axis=-1):
    """Kullback-Leibler divergence KL(p, q) = sum_k p_k log(p_k / q_k), the relative entropy.

    Kullback and Leibler, 1951, "On information and sufficiency". Summed as sum_k [p_k log(p_k / q_k) - p_k + q_k],
    whose terms are non-negative, plus sum_k (p_k - q_k), so that near-equal distributions keep their digits.

    Parameters
    ----------
    p, q : array-like, broadcastable against each other
        Finite non-negative numbers.
    base, axis
        As for `entropy`.

    Returns
    -------
    float, or ndarray of the broadcast shape without `axis`
        +inf where p_k > 0 = q_k for some k. Non-negative where both sum to the same; without that it may be negative.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`.

    Examples
    --------
    >>> from fastxent import information
    >>> round(information.kl_divergence([0.8, 0.2], [0.5, 0.5], base=2), 12)
    0.278071905113
    >>> information.kl_divergence([0.5, 0.5], [1.0, 0.0])
    inf
    """
    (p, q), call = _start(base, axis, p=p, q=q)
    difference = p - q
    part = difference - p
    rounding = (p - (difference - part)) - (q + part)
    return call.finish(compensated_sum(_excess(p, q), difference, rounding))


@_checks.answers_in_kind()
def js_divergence(p, q, *, base=None, axis=-1):
    """Jensen-Shannon divergence, (KL(p, m) + KL(q, m)) / 2 with m = (p + q) / 2.

    Lin, 1991, "Divergence measures based on the Shannon entropy". With s_k = (p_k - q_k) / (p_k + q_k) it is
    sum_k m_k [(1 + s_k) log(1 + s_k) + (1 - s_k) log(1 - s_k)] / 2, whose terms are all non-negative.

    Parameters
    ----------
    p, q : array-like, broadcastable against each other
        Finite non-negative numbers.
    base, axis
        As for `entropy`.

    Returns
    -------
    float, or ndarray of the broadcast shape without `axis`
        Symmetric and never negative; for distributions at most log 2, that is 1 bit.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`.

    Examples
    --------
    >>> from fastxent import information
    >>> round(information.js_divergence([0.9, 0.1], [0.5, 0.5], base=2), 12)
    0.146793102436
    >>> information.js_divergence([1.0, 0.0], [0.0, 1.0], base=2)
    1.0
    """
    (p, q), call = _start(base, axis, p=p, q=q)
    s = _contrast(p, q)
    bend = np.abs(s)
    near = bend <= 0.75
    far = bend[~near]
    with np.errstate(divide="ignore", invalid="ignore"):
        low = np.where(far < 1, (1 - far) * np.log1p(-far), 0.0)
    bend[~near] = (1 + far) * np.log1p(far) + low
    bend[near] = _even(bend[near])
    return call.finish(compensated_sum((0.25 * p + 0.25 * q) * bend))


@_checks.answers_in_kind()
def perplexity(p, q=None, *, base=None, axis=-1):
    """Perplexity b^H(p), or b^CE(p, q) with q: the number of equally likely outcomes of the same entropy.

    Jelinek, Mercer, Bahl and Baker, 1977, "Perplexity, a measure of the difficulty of speech recognition tasks". The
    power undoes the logarithm, so `base` does not change the value.

    Parameters
    ----------
    p : array-like
        Finite non-negative numbers.
    q : array-like, broadcastable against p, optional
        The model whose perplexity on p is asked for.
    base, axis
        As for `entropy`.

    Returns
    -------
    float, or ndarray of the broadcast shape without `axis`

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`.

    Examples
    --------
    >>> from fastxent import information
    >>> round(information.perplexity([0.25, 0.25, 0.25, 0.25]), 12)
    4.0
    >>> round(information.perplexity([0.5, 0.5], [0.8, 0.2], base=2), 12)
    2.5
    """
    if q is None:
        (p,), call = _start(base, axis, p=p)
        q = p
    else:
        (p, q), call = _start(base, axis, p=p, q=q)
    with np.errstate(over="ignore"):
        return call.finish(np.exp(compensated_sum(_p_log(p, q, -1.0))), unit=1.0)


# ----------------------------------------------------------------------------------------------------------- machinery


class _Call:
    """What a result needs: the logarithm of the base, the shape without the distribution's axes, and the dtype."""

    def __init__(self, unit, shape, dtype):
        self.unit, self.shape, self.dtype = unit, shape, dtype

    def finish(self, values, unit=None):
        """Sums (rows,) as the caller gets them; adding 0 turns -0 into 0."""
        values = values / (self.unit if unit is None else unit) + 0.0
        if not self.shape:
            return float(values[0])
        with np.errstate(over="ignore", under="ignore"):
            return values.reshape(self.shape).astype(self.dtype)


def _start(base, axis, **arguments):
    """Arguments as float64 arrays (classes, rows), and the call that they belong to."""
    unit = 1.0 if base is None else _checks.log_of_base(base)
    arrays, shape, dtype = _checks.distributions(arguments, axis)
    return arrays, _Call(unit, shape, dtype)


def _p_log(p, q, sign):
    """Return sign p log q, 0 where p = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p == 0, 0.0, sign * p * np.log(q))


def _contrast(p, q):
    """s = (p - q) / (p + q) in [-1, 1]; 0 where both are 0.  Halves, because p + q may overflow."""
    half = 0.5 * p + 0.5 * q
    with np.errstate(invalid="ignore"):
        return np.where(half == 0, 0.0, (0.5 * p - 0.5 * q) / half)


def _excess(p, q):
    """p log(p / q) - p + q >= 0.

    With s = (p - q) / (p + q), so that log(p / q) = 2 atanh s, it is (p + q) (s atanh s + [atanh s - s]).
    """
    s = _contrast(p, q)
    near = np.abs(s) <= 0.6
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # p / q may overflow or vanish where neither logarithm does
        far = np.where(p == 0, q, p * (np.log(p) - np.log(q)) - (p - q))
        ratio = p / q
        safe = (ratio > 1e-300) & (ratio < 1e300) & (p > 0)
        far = np.where(safe, p * np.log(ratio) - (p - q), far)
    x = s[near]
    tail = _odd_tail(x)
    far[near] = (p[near] + q[near]) * (x * (x + tail) + tail)
    return far


def _odd_tail(s):
    """atanh(s) - s = s^3/3 + s^5/5 + ... for |s| <= 0.6, where 36 terms leave 1e-18."""
    square = s * s
    series = np.zeros_like(s)
    for k in range(36, 0, -1):
        series = series * square + 1 / (2 * k + 1)
    return s * square * series


def _even(s):
    """(1 + s) log(1 + s) + (1 - s) log(1 - s) = s^2 + s^4/6 + s^6/15 + ...; |s| <= 3/4, 60 terms leave 1e-18."""
    square = s * s
    series = np.zeros_like(s)
    for k in range(60, 0, -1):
        series = series * square + 1 / (k * (2 * k - 1))
    return square * series


def compensated_sum(*terms):
    """Compensated sum of (classes, rows) arrays over the classes: a tree of TwoSums, with their errors added."""
    a = np.concatenate(terms) if len(terms) > 1 else terms[0]
    error = 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        while len(a) > 1:
            half = len(a) // 2
            x, y = a[:half], a[half : 2 * half]
            total = x + y
            part = total - x
            error = error + ((x - (total - part)) + (y - part)).sum(axis=0)
            a = total if 2 * half == len(a) else np.concatenate((total, a[2 * half :]))
        return np.where(np.isfinite(a[0]), a[0] + error, a[0])
