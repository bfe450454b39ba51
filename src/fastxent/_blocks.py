"""Linear classifiers on rows that come in blocks: what a pass over blocks computes, and the order in which it is added.

A `Reader` checks blocks and finds the classes, a `Recipe` makes an objective of one block, and `BlockObjective` is the
sum of the blocks' objectives with the interface of `linear.LinearObjective`.  Who runs the blocks is a source: `Stream`
here, one block after another; Dask's clusters and threads in `fastxent.dask`.

Sums are taken along one binary tree over the blocks' numbers: the node (level, place) is the sum of the blocks
place · 2^level to (place + 1) · 2^level - 1.  Whoever has some of the blocks adds up as many nodes as these fill; what
is sent is one node for an aligned run of blocks, at most 2 log2(n) for any run, and the bits do not depend on
who had what.  Up to three blocks the tree is the sum from left to right.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import NamedTuple

import numpy as np
from scipy import sparse
from sklearn.utils import check_array

from . import _backend, linear
from ._estimator import check_sample_weight, class_weight_vector, encode_labels, loss_of, row_weights

__all__ = [
    "Block",
    "BlockObjective",
    "Nodes",
    "Reader",
    "Recipe",
    "Stream",
    "Survey",
    "added",
    "encoded",
    "tree_total",
]


# ------------------------------------------------------------------------------------------------- the tree of sums


def added(a, b):
    """a + b entry by entry for tuples; None is nothing; arrays of a are overwritten."""
    if a is None or b is None:
        return b if a is None else a
    if isinstance(a, tuple):
        return tuple(map(added, a, b))
    if isinstance(a, np.ndarray):
        a += b
        return a
    return a + b


class Nodes:
    """Sums of blocks, added along the tree as soon as a node has both its halves.

    Attributes
    ----------
    sums : dict
        (level, place) to a sum: the largest nodes that the blocks so far fill.

    Examples
    --------
    >>> left, right = Nodes(), Nodes()
    >>> for number in (0, 1, 2):
    ...     left.add((0, number), 10**number)
    >>> right.add((0, 3), 1000)
    >>> left.sums
    {(1, 0): 11, (0, 2): 100}
    >>> tree_total([left.sums, right.sums])
    1111
    """

    def __init__(self):
        self.sums = {}

    def add(self, node, value):
        """Add the sum of a node; arrays in it are overwritten later."""
        level, place = node
        while (level, place ^ 1) in self.sums:
            other = self.sums.pop((level, place ^ 1))
            value = added(value, other) if place % 2 == 0 else added(other, value)
            level, place = level + 1, place // 2
        self.sums[level, place] = value


def tree_total(parts):
    """The sum of all blocks from the nodes that several places hold; None of no blocks.

    Parameters
    ----------
    parts : iterable of dict
        `Nodes.sums` of disjoint sets of blocks, together the numbers 0 to n - 1.
    """
    nodes = Nodes()
    for part in parts:
        for node, value in part.items():
            nodes.add(node, value)
    # What a number of blocks that is no power of two leaves over: runs of falling length, added from the right.
    total = None
    for node in sorted(nodes.sums, key=lambda node: node[1] << node[0], reverse=True):
        total = added(nodes.sums[node], total)
    return total


# --------------------------------------------------------------------------------------------------------- the blocks


class Block(NamedTuple):
    """Checked rows: X (n, d) or CSR, y (n,) or soft (n, n_classes), and the rows' weights or None."""

    X: object
    y: np.ndarray
    sample_weight: np.ndarray | None

    def __sizeof__(self):
        return sum(map(_bytes, self))


def _bytes(value):
    if sparse.issparse(value):
        return value.data.nbytes + value.indices.nbytes + value.indptr.nbytes
    return 0 if value is None else value.nbytes


@dataclasses.dataclass(frozen=True)
class Survey:
    """What is known of blocks before training; the surveys of all blocks add up to that of the whole.

    Attributes
    ----------
    n_rows : int
    mass : float
        Sum of the sample weights.
    n_features : int
    dtype : str
    sparse : bool
    nnz : int
        Stored entries of a sparse X, else those of the array.
    kind : {"labels", "soft", "indicators"}
        Whether y has a label per row, a matrix of probabilities, or one of 0 and 1.
    classes : ndarray
        Sorted labels of the rows that have a weight; the numbers of the columns of a matrix.
    class_mass : ndarray
        Their weights; empty for soft labels, those of the rows with a 1 for indicators.
    lengths : tuple of int
        Rows of every block, in order.
    """

    n_rows: int
    mass: float
    n_features: int
    dtype: str
    sparse: bool
    nnz: int
    kind: str
    classes: np.ndarray = dataclasses.field(repr=False)
    class_mass: np.ndarray = dataclasses.field(repr=False)
    lengths: tuple

    def __add__(self, other):
        for name, what in (
            ("n_features", "columns in X"),
            ("dtype", "dtype of X"),
            ("sparse", "sparse X"),
            ("kind", "kind of y"),
        ):
            mine, its = getattr(self, name), getattr(other, name)
            if mine != its:
                raise ValueError(f"blocks: expected the same in all of them, got {what}: {mine} and {its}")
        if self.kind != "labels" and len(self.classes) != len(other.classes):
            sizes = f"{len(self.classes)} and {len(other.classes)}"
            raise ValueError(f"y: expected the same number of columns in all blocks, got {sizes}")
        classes, class_mass = self.classes, self.class_mass
        if self.kind == "labels":
            classes, class_mass = _united(self, other)
        elif self.kind == "indicators":
            class_mass = class_mass + other.class_mass
        return dataclasses.replace(
            self,
            n_rows=self.n_rows + other.n_rows,
            mass=self.mass + other.mass,
            nnz=self.nnz + other.nnz,
            classes=classes,
            class_mass=class_mass,
            lengths=self.lengths + other.lengths,
        )


def _united(*surveys):
    """Sorted labels of surveys, and their weights."""
    surveys = [survey for survey in surveys if len(survey.classes)] or list(surveys[:1])
    kinds = {"OSU".find(survey.classes.dtype.kind) >= 0 for survey in surveys}
    if len(kinds) > 1:
        raise ValueError(
            "y: expected labels of one kind in all blocks, got strings in some and numbers in others"
        )
    classes, codes = np.unique(np.concatenate([survey.classes for survey in surveys]), return_inverse=True)
    return classes, np.bincount(
        codes, np.concatenate([survey.class_mass for survey in surveys]), len(classes)
    )


@dataclasses.dataclass(frozen=True)
class Reader:
    """Checks blocks as `fit` checks whole data; indicators become booleans.

    Parameters
    ----------
    dtype : None, "float32" or "float64"
        Of the answer; None keeps a block's own, and float64 for integers.
    n_features : None or int
        What X must have.
    indicators : bool
        Whether a matrix y of integers or booleans is one of indicators, and no error.
    """

    dtype: str | None = None
    n_features: int | None = None
    indicators: bool = False

    def block(self, number, X, y, sample_weight=None):
        """A checked `Block`.

        Raises
        ------
        ValueError, TypeError
            As `fit`, with the number of the block.
        """
        try:
            dtype = [np.float64, np.float32] if self.dtype is None else np.dtype(self.dtype)
            least = {"ensure_min_samples": 0}
            X = check_array(X, accept_sparse="csr", dtype=dtype, input_name="X", **least)
            if isinstance(X, np.ndarray) and not X.flags.aligned:
                X = (
                    X.copy()
                )  # as messages bring them; NumPy would copy for each product, and Xᵀ X round otherwise
            if self.n_features not in (None, X.shape[1]):
                raise ValueError(f"X: expected {self.n_features} columns, got {X.shape[1]}")
            y = np.asarray(y)
            if y.ndim == 2 and y.shape[1] > 1 and y.dtype.kind == "f":
                y = soft_labels(check_array(y, dtype=X.dtype, input_name="y", **least))
            elif self.indicators and y.ndim == 2 and y.shape[1] > 1 and y.dtype.kind in "biu":
                y = _indicators(y)
            elif y.ndim == 2 and y.shape[1] == 1:
                y = y[:, 0]
            elif y.ndim != 1:
                raise ValueError(
                    f"y: expected labels (n_rows,) or floats (n_rows, n_classes), got shape {y.shape} of {y.dtype}"
                )
            if len(y) != X.shape[0]:
                raise ValueError(
                    f"y: expected one entry for each of the {X.shape[0]} rows of X, got {len(y)}"
                )
            if sample_weight is not None and np.shape(sample_weight) == (0,) and X.shape[0] == 0:
                sample_weight = None
            weight = check_sample_weight(sample_weight, X.shape[0], X.dtype, some=False)
        except (ValueError, TypeError) as error:
            raise type(error)(f"block {number}: {error}") from error
        return Block(X, y, weight)

    def survey(self, number, block):
        """The `Survey` of a checked block."""
        X, y, weight = block
        n_rows = X.shape[0]
        classes, class_mass = np.arange(y.shape[1]) if y.ndim == 2 else y[:0], np.empty(0)
        kind = "labels" if y.ndim == 1 else "indicators" if y.dtype == bool else "soft"
        if kind == "indicators":
            class_mass = (np.ones(n_rows) if weight is None else weight.astype(np.float64)) @ y
        elif kind == "labels":
            counted = slice(None) if weight is None else weight > 0
            if len(y[counted]):
                classes, codes = encoded(number, y[counted])
                mass = None if weight is None else weight[counted]
                class_mass = np.bincount(codes, mass, len(classes)).astype(np.float64)
        return Survey(
            n_rows=n_rows,
            mass=float(n_rows) if weight is None else float(weight.sum(dtype=np.float64)),
            n_features=X.shape[1],
            dtype=X.dtype.name,
            sparse=sparse.issparse(X),
            nnz=X.nnz if sparse.issparse(X) else X.size,
            kind=kind,
            classes=classes,
            class_mass=class_mass,
            lengths=(n_rows,),
        )


def encoded(number, y, classes=None, weight=None):
    """`encode_labels`, which may not warn that a small block has a class for every second row."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%", UserWarning)
        try:
            return encode_labels(y, weight, classes)
        except ValueError as error:
            raise ValueError(f"block {number}: {error}") from error


def soft_labels(y):
    """Probabilities, checked.

    Raises
    ------
    ValueError
        For the first row with a negative number, or whose sum is not 1.
    """
    sums = y.sum(axis=1)
    wrong = (y < 0).any(axis=1) | (abs(sums - 1) > 1e-5)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"y[{row}] is {y[row]}, expected probabilities (>= 0, summing to 1): a matrix y holds soft labels. "
            "Divide rows of counts by their sums, take the softmax of rows of logits."
        )
    return y


def _indicators(y):
    """A matrix of 0 and 1 as booleans.

    Raises
    ------
    ValueError
        For the first row with another number.
    """
    wrong = ((y != 0) & (y != 1)).any(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"y[{row}] is {y[row]}, expected 0 and 1: a matrix y of integers holds indicators.")
    return y.astype(bool)


def classes_of(survey, class_weight):
    """Classes, their weights (one per class, or None) and the mass of all rows, from the survey of all blocks.

    Raises
    ------
    ValueError
        For no rows, weights that are all zero, or class weights that do not fit.
    """
    if survey is None or survey.n_rows == 0:
        raise ValueError("blocks: expected at least one row, got none")
    if survey.mass == 0:
        raise ValueError("Sample weights must contain at least one non-zero number.")
    classes = survey.classes
    if survey.kind == "soft":
        if class_weight is not None:
            raise ValueError(
                "class_weight: expected None for a matrix y of soft labels, which have no one class."
            )
        return classes, None, survey.mass
    vector = class_weight_vector(class_weight, classes, np.arange(len(classes)), survey.class_mass)
    if vector is None:
        return classes, None, survey.mass
    mass = float(vector @ survey.class_mass)
    if mass == 0:
        raise ValueError("sample_weight times class_weight must be positive for some row, got only zeros.")
    return classes, vector, mass


def checked_loss(loss, label_smoothing):
    """The loss object of `LogisticRegression(loss=)`, or None for cross-entropy.

    Raises
    ------
    ValueError
        A loss whose logits stand alone; smoothing beside a loss.
    """
    if loss is None:
        return None
    loss = loss_of(loss)
    if getattr(loss, "elementwise", False):
        raise ValueError(
            f"loss: expected a loss of the softmax family, got the elementwise {loss!r}; MLPClassifier takes such, and "
            "for two classes SoftmaxCrossEntropy() is the binary cross-entropy"
        )
    if label_smoothing:
        raise ValueError("label_smoothing: expected 0 beside a loss object, which has options of its own.")
    return loss


def make_rows(targets, n_classes, weights, dtype, loss, label_smoothing, backend):
    """The losses of rows, as `linear.LinearObjective` takes them.

    Parameters
    ----------
    targets : ndarray (n,) of integers or (n, n_classes)
    n_classes : int
    weights : None or ndarray (n,)
    dtype : float32 or float64
    loss, label_smoothing, backend
        As for `LogisticRegression`.
    """
    core = _backend.choose(backend)
    binary = n_classes == 2
    loss = checked_loss(loss, label_smoothing)
    if loss is not None:
        return linear.LossRows(loss, targets, n_classes, weights, binary, backend)
    column = None if weights is None else weights[:, None]
    if binary:
        positive = targets[:, 1] if targets.ndim == 2 else targets
        return linear.SigmoidRows(core, positive.astype(dtype), weights, label_smoothing)
    targets = targets[:, :, None] if targets.ndim == 2 else targets[:, None]
    return linear.SoftmaxRows(core, targets, n_classes, column, label_smoothing=label_smoothing)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a block becomes an objective; small, and sent to whoever has the blocks.

    Parameters
    ----------
    classes : ndarray (n_classes,)
    class_vector : None or ndarray (n_classes,)
        Weights of the classes.
    loss, label_smoothing, backend
        As for `LogisticRegression`.
    """

    classes: np.ndarray
    class_vector: np.ndarray | None
    loss: object
    label_smoothing: float
    backend: str | None

    def objective(self, number, block):
        """`linear.LinearObjective` of a block."""
        X, targets, weights = block
        if targets.ndim == 1 and len(targets) == 0:
            targets = np.empty(0, np.intp)
        elif targets.ndim == 1:
            targets = encoded(number, targets, self.classes, weights)[1]
            weights = row_weights(weights, self.class_vector, targets, X.dtype, some=False)
        return linear.LinearObjective(X, self.rows(targets, weights, X.dtype), X.dtype)

    @staticmethod
    def run(number, objective, method, args, num_threads):
        """`block_sum`, for whoever does not know of what."""
        return block_sum(objective, method, args, num_threads)

    def rows(self, targets, weights, dtype):
        """The losses of rows whose classes are numbers."""
        options = (self.loss, self.label_smoothing, self.backend)
        return make_rows(targets, len(self.classes), weights, dtype, *options)


def block_sum(objective, method, args, num_threads):
    """One method of a block's objective, as a tuple; None for a block without rows.

    Parameters
    ----------
    objective : `linear.LinearObjective`
    method : str
        "loss_grad", "hvp", "hessian", "moment_sum" or "squares".
    args : tuple
        Before the team of threads.
    num_threads : None or int
    """
    if objective.n_rows == 0:
        return None
    with linear.Team(objective, num_threads) as team:
        result = getattr(objective, method)(*args, team)
    return result if isinstance(result, tuple) else (result,)


class Stream:
    """A callable that yields the blocks anew for each pass; one block is in memory at a time.

    Parameters
    ----------
    blocks : callable without arguments
        Returns an iterable of (X, y) or (X, y, sample_weight).
    num_threads : None or int
    """

    def __init__(self, blocks, num_threads=None):
        self._blocks, self._num_threads = blocks, num_threads
        self._reader, self._lengths, self._recipe = Reader(), None, None
        self.first_X = None

    def _pass(self):
        """Numbers and blocks, checked; the callable's blocks must be those of the first pass."""
        count = 0
        for number, given in enumerate(self._blocks()):
            if not isinstance(given, (tuple, list)) or len(given) not in (2, 3):
                raise TypeError(
                    f"block {number}: expected (X, y) or (X, y, sample_weight), got {type(given).__name__}"
                )
            if number == 0 and self.first_X is None:
                self.first_X = given[0][:0]
            block = self._reader.block(number, *given)
            length = block.X.shape[0]
            if self._lengths is not None and (
                number >= len(self._lengths) or length != self._lengths[number]
            ):
                known = self._lengths[number] if number < len(self._lengths) else "no such block"
                raise ValueError(
                    f"block {number}: expected the rows of the first pass, {known}, got {length}"
                )
            count += 1
            yield number, block
        if self._lengths is not None and count != len(self._lengths):
            raise ValueError(
                f"blocks: expected the {len(self._lengths)} blocks of the first pass, got {count}: the callable has "
                "to yield all of them anew each time it is called"
            )

    def survey(self):
        """The `Survey` of all blocks, or None where there are none."""
        total = None
        for number, block in self._pass():
            found = self._reader.survey(number, block)
            total = found if total is None else total + found
            self._reader = Reader(total.dtype, total.n_features)
        self._lengths = () if total is None else total.lengths
        return total

    def prepare(self, recipe):
        """Take the recipe of the objectives."""
        self._recipe = recipe

    def total(self, method, *args):
        """`block_sum` over all blocks."""
        nodes = Nodes()
        for number, block in self._pass():
            objective = self._recipe.objective(number, block)
            nodes.add((0, number), block_sum(objective, method, args, self._num_threads))
        return tree_total([nodes.sums])


class BlockObjective:
    """The sum of the blocks' objectives, with the interface of `linear.LinearObjective`.

    Parameters
    ----------
    source
        With `total(method, *args)`: a method of every block's objective, added along the tree.
    survey : Survey
    recipe : Recipe
    """

    def __init__(self, source, survey, recipe):
        self._source, self.dtype = source, np.dtype(survey.dtype)
        empty = np.empty((0, *survey.classes.shape)) if survey.kind == "soft" else np.empty(0, np.intp)
        rows = recipe.rows(empty, None, self.dtype)
        self.shift_free = rows.shift_free
        self.shape = (survey.n_features, rows.n_outputs)
        self.n_rows, self.is_sparse = survey.n_rows, survey.sparse
        self.work = survey.nnz * rows.n_outputs

    def _sum(self, method, *parameters):
        # In the dtype of the products, which the blocks would convert to anyway: half the message for float32.
        return self._source.total(
            method, *(None if p is None else np.ascontiguousarray(p, dtype=self.dtype) for p in parameters)
        )

    def place(self, array):
        """An array where the solver's vectors live."""
        return array

    def loss_grad(self, W, b, team=None):
        """Sum of the losses, its gradient dW (d, K) and db (K,)."""
        return self._sum("loss_grad", W, b)

    def hvp(self, W, b, V, c, team=None):
        """Hessian at (W, b) times (V, c)."""
        return self._sum("hvp", W, b, V, c)

    def hessian(self, W, b, team=None):
        """Hessian in W (row by row), then b where there is one."""
        return self._sum("hessian", W, b)[0]

    def moment(self, team=None, most_rows=math.inf):
        """As `linear.LinearObjective.moment`."""
        every = max(math.ceil(self.n_rows / most_rows), 1)
        M, mass = self._source.total("moment_sum", every)
        return linear.scaled_moment(M, mass)

    def squares(self, team=None):
        """As `linear.LinearObjective.squares`."""
        return self._source.total("squares")[0]
