"""What every loss object can do, how losses add up, and the names by which estimators know them.

A loss is a frozen dataclass of options.  Calling a method makes a `Call`: arrays and options checked once, the
denominator of the reduction, and the doors to the kernels.  A new loss is a dataclass that derives from `Loss` (or from
`SoftmaxLoss`, where the family's kernel serves it) and says in `_call` which `Call` answers for it.
"""

import abc
import dataclasses
import numbers
from typing import ClassVar, NamedTuple

import numpy as np

from .. import _checks, _device

__all__ = ["HESSIANS", "Loss", "ScaledLoss", "SumLoss", "names", "resolve"]

# Second derivatives for boosting and for Newton steps; `Loss.grad_hess` says what each is.
HESSIANS = ("exact", "clip", "abs", "upper", "xgboost", "lightgbm")
CLIP = 1e-6
XGBOOST_FLOOR = 1e-16

_NAMES = {}


class Call(abc.ABC):
    """One checked call: what `Loss` needs of it. Losses without curvature implement `run` alone."""

    # Factor of the loss and of its derivatives, 1 / ln(base) where the logarithm has another base.
    unit = 1.0

    @abc.abstractmethod
    def run(self, *, grad=False, hess=False, out=None):
        """A tuple that starts with (loss, grad, hess), None for what was not asked for."""

    def curvature(self, hessian):
        """(grad, hess) under a curvature policy; `bound_of` gives those that the kernels do not know."""
        _, grad, hess, *_ = self.run(grad=True, hess=True)
        if hessian != "exact":
            hess = self.positive(hess, hessian)
        return grad, hess

    def positive(self, hess, hessian):
        """A curvature policy other than "exact"; `hess` is the exact diagonal, and may be written."""
        if hessian == "abs":
            return np.abs(hess, out=hess)
        if hessian == "clip":
            return np.maximum(hess, CLIP * self.row_factor(), out=hess, casting="same_kind")
        raise ValueError(f"hessian: this loss knows 'exact', 'clip' and 'abs', got {hessian!r}")

    def row_factor(self):
        """|weight| / denominator of every row, broadcastable to the logits; 0 where a row is ignored."""
        raise TypeError("hessian='clip' needs the weights of the rows, which this loss does not give")

    def hvp(self, x):
        """Hessian times x."""
        raise TypeError(f"{type(self).__name__} has no Hessian product")

    def hessian(self, factor):
        """`Hessian`: factor times that of the call."""
        raise TypeError(f"solve: the Hessian of {type(self).__name__} is not known as diagonal plus low rank")

    def solve(self, r, lam):
        """Solution of (lam I + H) x = r, row by row."""
        hessian = self.hessian(1.0)
        if _device.is_device(hessian.source):
            return hessian.core.solve_rows(hessian, r, lam)
        r = _checks.numbers_like(r, "r", np.dtype(np.float64))
        if r.shape != hessian.source.shape:
            raise ValueError(f"r: expected the shape of logits, {hessian.source.shape}, got {r.shape}")
        shape, axis = hessian.source.shape, hessian.axis
        if axis is not None:
            shape = shape[:axis] + shape[axis + 1 :]
        damping = _checks.per_row(lam, "lam", shape, np.dtype(np.float64))
        if not (damping > 0).all():
            raise ValueError(f"lam: expected positive numbers, got {damping.min()}")
        if axis is not None:
            damping = np.broadcast_to(np.expand_dims(damping, axis), r.shape)
        if hessian.diagonal is not None:
            damping = damping + hessian.diagonal
        solution = np.empty_like(hessian.source, subok=False)
        if not hessian.terms:
            with np.errstate(all="ignore"):
                solution[...] = r / damping
            return solution
        keys = list(dict.fromkeys(term.softmax for term in hessian.terms))
        terms = tuple((term.kind, keys.index(term.softmax), *term.arguments) for term in hessian.terms)
        rows = writable_rows(solution, axis)
        systems = (_checks.layered(damping, axis), _checks.layered(r, axis), rows)
        hessian.core.softmax_solve(terms, *systems, hessian.threads)
        write_back(solution, rows, axis)
        return solution


class Term(NamedTuple):
    """A term of a Hessian that couples a row's classes, as the kernel `softmax_solve` takes it."""

    kind: str
    softmax: tuple  # what makes its softmax: equal for terms that share one
    arguments: tuple


class Hessian(NamedTuple):
    """A Hessian that is a diagonal plus terms over the rows along `axis` (None: the diagonal alone)."""

    source: np.ndarray  # the logits
    axis: int | None
    diagonal: np.ndarray | None
    terms: tuple
    core: object  # of the kernels; of arrays on a device, the call that has them
    threads: int


class Loss(abc.ABC):
    """Base of all losses: frozen dataclasses of options with loss, gradient, curvature, sums and multiples.

    ``0.3 * a + b`` is a loss over the same logits. Losses compare and hash by their options, pickle, print the options
    that matter, and register the names by which `resolve` finds them.
    """

    # Whether every logit stands alone (multilabel), as opposed to competing with the others of its row.
    elementwise: ClassVar[bool] = False
    # Why the loss has no second derivatives; empty where it has.
    no_curvature: ClassVar[str] = ""

    def __init_subclass__(cls, names=(), **kwargs):
        super().__init_subclass__(**kwargs)
        for name in names:
            _NAMES[name] = cls

    @abc.abstractmethod
    def _call(self, z, y, sample_weight, reduction, backend, num_threads, check):
        """The checked call of this loss."""

    @_checks.answers_in_kind(1)
    def loss(self, z, y, sample_weight=None, reduction="mean", *, backend=None, num_threads=None, check=True):
        """Loss of logits `z` against targets `y`: a float, or one number per row with reduction="none"."""
        return self._call(z, y, sample_weight, reduction, backend, num_threads, check).run()[0]

    @_checks.answers_in_kind(1)
    def loss_grad(
        self,
        z,
        y,
        sample_weight=None,
        reduction="mean",
        *,
        out=None,
        backend=None,
        num_threads=None,
        check=True,
    ):
        """Loss, and its gradient in the shape and dtype of `z` (in `out`, which may be `z`, if given)."""
        call = self._call(z, y, sample_weight, reduction, backend, num_threads, check)
        return call.run(grad=True, out=out)[:2]

    @_checks.answers_in_kind(1)
    def grad_hess(
        self,
        z,
        y,
        sample_weight=None,
        reduction="mean",
        *,
        hessian="exact",
        backend=None,
        num_threads=None,
        check=True,
    ):
        """Gradient and diagonal of the Hessian, or a stand-in for it that is never negative.

        Parameters
        ----------
        z, y, sample_weight, reduction, backend, num_threads, check
            As for `loss`.
        hessian : {"exact", "clip", "abs", "upper", "xgboost", "lightgbm"}, default="exact"
            "exact": the diagonal h. "clip": max(h, 1e-6). "abs": its absolute value. "upper": a diagonal D with
            D - H positive semidefinite, 2 G p (1 - p) + 2 max(-PG, 0) abs(p_k - [k = y]) (1 - p_y) for a softmax
            loss f(p_y) with G = -p f', PG = p dG/dp, so that steps of -g/D never overshoot. "xgboost": what that
            library uses for cross-entropy, max(2 p (1 - p), 1e-16) for softmax and max(p (1 - p), 1e-16) for sigmoid
            losses. "lightgbm": K / (K - 1) p (1 - p), and p (1 - p). Floors are those of a row of weight 1; weights
            multiply.

        Returns
        -------
        grad, hess : ndarrays, shape and dtype of `z`

        Raises
        ------
        TypeError
            The loss has no curvature.
        ValueError
            A policy that the loss does not know.
        """
        self._need_curvature("grad_hess")
        _checks.choice(hessian, "hessian", HESSIANS)
        return self._call(z, y, sample_weight, reduction, backend, num_threads, check).curvature(hessian)

    @_checks.answers_in_kind(1)
    def hvp(
        self, z, y, x, sample_weight=None, reduction="mean", *, backend=None, num_threads=None, check=True
    ):
        """Hessian of the reduced loss times `x`, in the shape of `z`."""
        self._need_curvature("hvp")
        return self._call(z, y, sample_weight, reduction, backend, num_threads, check).hvp(x)

    @_checks.answers_in_kind(1)
    def solve(
        self,
        z,
        y,
        r,
        lam,
        sample_weight=None,
        reduction="mean",
        *,
        backend=None,
        num_threads=None,
        check=True,
    ):
        """Solve (lam I + H) x = r for every row, H the Hessian of the reduced loss, in O(n_classes) per row.

        Of sums too: the diagonals add up, and so do the terms of low rank that couple the classes of a row.

        Parameters
        ----------
        z, y, sample_weight, reduction, backend, num_threads, check
            As for `loss`.
        r : array-like, shape of `z`
            Right-hand sides.
        lam : float > 0, or array-like of such, broadcastable to the rows
            Damping. The softmax Hessian is singular, so 0 has no answer.

        Returns
        -------
        ndarray, shape and dtype of `z`

        Raises
        ------
        TypeError
            The loss has no curvature.
        ValueError
            Shapes that do not fit; `lam` not positive; a sum whose terms have their classes along different axes.
        """
        self._need_curvature("solve")
        return self._call(z, y, sample_weight, reduction, backend, num_threads, check).solve(r, lam)

    def _need_curvature(self, method):
        if self.no_curvature:
            raise TypeError(
                f"{method}: {type(self).__name__} has loss and gradient only: {self.no_curvature}. "
                "Use loss or loss_grad, or a loss with second derivatives"
            )

    def __add__(self, other):
        return SumLoss((self, other)) if isinstance(other, Loss) else NotImplemented

    def __radd__(self, other):
        # what sum([a, b]) starts from
        return self if isinstance(other, numbers.Real) and other == 0 else NotImplemented

    def __mul__(self, factor):
        return ScaledLoss(factor, self) if _is_number(factor) else NotImplemented

    __rmul__ = __mul__

    def __repr__(self):
        """The loss's own options, and of those that it shares with others the ones that are set."""
        shown = []
        for field in sorted(dataclasses.fields(self), key=lambda field: field.kw_only):
            value = getattr(self, field.name)
            own = not field.kw_only and value is not None
            if own or value != field.default:
                shown.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


def names():
    """The names that `resolve` knows, in alphabetical order.

    Examples
    --------
    >>> from fastxent import losses
    >>> "focal" in losses.names()
    True
    """
    return tuple(sorted(_NAMES))


def resolve(loss):
    """Loss object for a name or a loss object.

    Parameters
    ----------
    loss : str or loss object
        A name stands for the loss with its default options.

    Returns
    -------
    loss object
        What was given, if it is none of the names.

    Raises
    ------
    TypeError
        Neither a name nor an object with `loss_grad`.
    ValueError
        An unknown name.

    Examples
    --------
    >>> from fastxent import losses
    >>> losses.resolve("focal")
    FocalLoss(gamma=2.0)
    """
    if isinstance(loss, str):
        if loss not in _NAMES:
            raise ValueError(
                f"loss: expected one of {', '.join(map(repr, names()))} or a loss object, got {loss!r}"
                + _checks.nearest(loss, names())
            )
        return _NAMES[loss]()
    if isinstance(loss, type) or not callable(getattr(loss, "loss_grad", None)):
        known = isinstance(loss, type) and issubclass(loss, Loss)
        hint = f"; make an object of the class: {loss.__name__}()" if known else ""
        raise TypeError(
            f"loss: expected a name or a loss object such as FocalLoss(gamma=2), got {loss!r}{hint}"
        )
    return loss


# --------------------------------------------------------------------------------------------------------- composition


@dataclasses.dataclass(frozen=True, repr=False)
class ScaledLoss(Loss):
    """A loss times a number: ``0.3 * loss``.

    Parameters
    ----------
    factor : float >= 0
        With 0, loss and derivatives are 0 even where those of the term are infinite.
    term : loss object
        Multiples of multiples are flattened; a multiple of a sum, ``0.3 * (a + b)``, is a sum of multiples.

    Raises
    ------
    TypeError, ValueError
        A factor that is not a finite non-negative number; a term that is no loss.

    Examples
    --------
    >>> import fastxent as fx
    >>> round((0.5 * fx.SoftmaxCrossEntropy()).loss([[0.0, 0.0]], [0]), 10)
    0.3465735903
    >>> 2 * (0.5 * fx.FocalLoss())
    1.0 * FocalLoss(gamma=2.0)
    """

    factor: float
    term: Loss

    def __post_init__(self):
        factor, term = _checks.real(self.factor, "factor", 0.0), self.term
        if isinstance(term, ScaledLoss):
            factor, term = _checks.real(factor * term.factor, "factor", 0.0), term.term
        if not isinstance(term, Loss) or isinstance(term, SumLoss):
            raise TypeError(f"term: expected a loss object that is no sum (write factor * sum), got {term!r}")
        object.__setattr__(self, "factor", factor)
        object.__setattr__(self, "term", term)

    def __repr__(self):
        return f"{self.factor!r} * {self.term!r}"

    @property
    def elementwise(self):
        """Whether the term is."""
        return self.term.elementwise

    @property
    def no_curvature(self):
        """Why the term has no curvature."""
        return self.term.no_curvature

    def _call(self, z, y, sample_weight, reduction, backend, num_threads, check):
        call = self.term._call(z, y, sample_weight, reduction, backend, num_threads, check)
        return _ScaledCall(self.factor, call)


@dataclasses.dataclass(frozen=True, repr=False)
class SumLoss(Loss):
    """Several losses over the same logits: ``a + b``. Each term is reduced, then they are added.

    The targets of every method are one `y` for all terms, or a tuple with one entry per term; sample weights are
    shared. The curvature is the sum of the terms'.

    Parameters
    ----------
    terms : tuple of loss objects
        Sums within sums are flattened.

    Raises
    ------
    TypeError
        A term that is no loss.
    ValueError
        No terms.

    Examples
    --------
    >>> import fastxent as fx
    >>> loss = fx.SoftmaxCrossEntropy() + 0.5 * fx.Poly1Loss()
    >>> loss
    SoftmaxCrossEntropy() + 0.5 * Poly1Loss(epsilon=1.0)
    >>> round(loss.loss([[0.0, 0.0]], [0]), 10)
    1.2897207708
    >>> round(loss.loss([[0.0, 0.0]], ([0], [[1.0, 0.0]])), 10)
    1.2897207708
    """

    terms: tuple[Loss, ...]

    def __post_init__(self):
        flat = []
        for term in self.terms:
            if not isinstance(term, Loss):
                raise TypeError(f"terms: expected loss objects, got {term!r}")
            flat += term.terms if isinstance(term, SumLoss) else (term,)
        if not flat:
            raise ValueError("terms: expected at least one loss")
        object.__setattr__(self, "terms", tuple(flat))

    def __mul__(self, factor):
        return SumLoss(tuple(factor * term for term in self.terms)) if _is_number(factor) else NotImplemented

    __rmul__ = __mul__

    def __repr__(self):
        return " + ".join(map(repr, self.terms))

    @property
    def elementwise(self):
        """Whether all terms are."""
        return all(term.elementwise for term in self.terms)

    @property
    def no_curvature(self):
        """Why the first term that has no curvature has none."""
        without = (f"its term {term!r}: {term.no_curvature}" for term in self.terms if term.no_curvature)
        return next(without, "")

    def _call(self, z, y, sample_weight, reduction, backend, num_threads, check):
        z = z if _device.is_device(z) else _checks.floats(z, "logits")
        if not isinstance(y, tuple):
            y = (y,) * len(self.terms)
        elif len(y) != len(self.terms):
            raise ValueError(
                f"targets: expected one array for all terms, or a tuple with one entry for each of the "
                f"{len(self.terms)} terms, got a tuple of {len(y)}"
            )
        rest = (sample_weight, reduction, backend, num_threads, check)
        return _SumCall(z, [term._call(z, each, *rest) for term, each in zip(self.terms, y, strict=True)])


class _ScaledCall(Call):
    def __init__(self, factor, call):
        self.factor, self.call = factor, call

    def run(self, *, grad=False, hess=False, out=None):
        return tuple(self.scaled(value) for value in self.call.run(grad=grad, hess=hess, out=out)[:3])

    def curvature(self, hessian):
        return tuple(self.scaled(value) for value in self.call.curvature(hessian))

    def hvp(self, x):
        return self.scaled(self.call.hvp(x))

    def hessian(self, factor):
        return self.call.hessian(factor * self.factor)

    def scaled(self, value):
        """The factor times a number or an array, in place; a factor of 0 annihilates what is not finite."""
        if value is None:
            return None
        if isinstance(value, numbers.Real):
            return value * self.factor if self.factor else 0.0
        if not self.factor:
            value[...] = 0
        elif not isinstance(value, np.ndarray):
            value *= self.factor
        elif value.dtype.itemsize == 2:
            value[...] = value.astype(np.float32) * np.float32(self.factor)
        else:
            value *= value.dtype.type(self.factor)
        return value


class _SumCall(Call):
    def __init__(self, z, calls):
        self.z, self.calls = z, calls

    def run(self, *, grad=False, hess=False, out=None):
        # Every term reads the logits, which may be `out`: it is written last.
        if _device.is_device(self.z):
            if out is not None:
                _device.output(_device.library_of(self.z)[0], out, self.z)
        elif out is not None:
            _checks.output(out, self.z)
        loss, *arrays = _added(call.run(grad=grad, hess=hess)[:3] for call in self.calls)
        if out is not None:
            out[...] = arrays[0]
            arrays[0] = out
        return loss, *arrays

    def curvature(self, hessian):
        return _added(call.curvature(hessian) for call in self.calls)

    def hvp(self, x):
        return _added((call.hvp(x),) for call in self.calls)[0]

    def hessian(self, factor):
        parts = [call.hessian(factor) for call in self.calls]
        axes = list(dict.fromkeys(part.axis for part in parts if part.axis is not None))
        if len(axes) > 1:
            raise ValueError(
                f"solve: the terms have their classes along different axes, {axes[0]} and {axes[1]}, so their Hessians "
                "share no rows to solve one by one; solve with hvp and conjugate gradients"
            )
        diagonals = [part.diagonal for part in parts if part.diagonal is not None]
        terms = tuple(term for part in parts for term in part.terms)
        diagonal = sum(diagonals) if diagonals else None
        return Hessian(self.z, axes[0] if axes else None, diagonal, terms, parts[0].core, parts[0].threads)


def _added(results):
    """Sums, entry by entry, of tuples of numbers, arrays or None."""
    results = iter(results)
    total = list(next(results))
    for values in results:
        for at, value in enumerate(values):
            shapes = [tuple(getattr(each, "shape", ())) for each in (total[at], value)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"reduction='none': expected terms with losses of one shape, got {shapes[0]} and {shapes[1]}; "
                    "reduce them"
                )
            if value is not None:
                total[at] += value
    return tuple(total)


# ------------------------------------------------------------------------------------------------------------- helpers


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))


def writable_rows(array, axis):
    """Array as (outer, classes, inner) for a kernel to fill: a view, or a fresh buffer where no view exists."""
    rows = _checks.layered(array, axis)
    if array.flags.aligned and (rows.size == 0 or np.may_share_memory(rows, array)):
        return rows
    return np.empty(rows.shape, array.dtype)


def write_back(array, rows, axis):
    """Copy a buffer of `writable_rows` that is no view to where the caller wants it."""
    if array is not None and rows.size and not np.may_share_memory(rows, array):
        array[...] = rows.reshape(array.shape)


def as_tuple(values, name):
    """Array option of a frozen dataclass as something hashable: a tuple of floats, or None."""
    if values is None:
        return None
    a = _checks.numbers_like(values, name, np.dtype(np.float64))
    if a.ndim != 1:
        raise ValueError(f"{name}: expected one number per class, got shape {a.shape}")
    return tuple(a.tolist())


def upstream(grad_loss):
    """The derivative of whatever follows with respect to a reduced loss: one number, also as a 0-d array."""
    if isinstance(grad_loss, np.ndarray):
        if grad_loss.ndim:
            raise TypeError(
                f"grad_loss: expected a real number, got an array of shape {grad_loss.shape}; "
                'one number per row goes with reduction="none"'
            )
        grad_loss = grad_loss.item()
    return _checks.real(grad_loss, "grad_loss")
