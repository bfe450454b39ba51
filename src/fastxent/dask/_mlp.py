"""The multi-layer perceptron over Dask collections: synchronous steps whose gradients the partitions share."""

from __future__ import annotations

import dataclasses

import numpy as np
from sklearn.base import _fit_context
from sklearn.utils.validation import _check_feature_names

from fastxent._blocks import Block, classes_of, encoded
from fastxent._estimator import row_weights
from fastxent.dask._lazy import OnDask
from fastxent.dask._sources import open_source
from fastxent.mlp._classifier import MLPClassifier as _Local
from fastxent.mlp._network import Dropout, Network, Pass
from fastxent.mlp._training import FullObjective, NumpyStep

__all__ = ["MLPClassifier"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a block of rows becomes gradients; sent to the workers once.

    Parameters
    ----------
    units : tuple of int
    activation : str
    classes : ndarray (n_classes,)
    class_vector : None or ndarray (n_classes,)
    pos_weight : None or ndarray (n_classes,)
        Weights of the positive rows of indicators.
    model : fastxent.MLPClassifier
        Unfitted, with what decides the loss of the output layer.
    dropout : None or (float, int)
        Rate and seed.
    """

    units: tuple
    activation: str
    classes: np.ndarray
    class_vector: np.ndarray | None
    pos_weight: np.ndarray | None
    model: object
    dropout: tuple | None

    def objective(self, number, block):
        """`Gradients` of a block."""
        return Gradients(self, number, block)

    @staticmethod
    def run(number, gradients, method, args, num_threads):
        """The sum of gradients over the rows of one step that lie in a block; None where there are none."""
        return getattr(gradients, method)(number, *args)


class Gradients:
    """Sums of losses and of gradients over some rows of a block.

    Parameters
    ----------
    recipe : Recipe
    number : int
    block : Block
    """

    def __init__(self, recipe, number, block):
        X, y, v = block
        if y.ndim == 1:
            y = encoded(number, y, recipe.classes, v)[1] if len(y) else np.empty(0, np.intp)
            v = row_weights(v, recipe.class_vector, y, X.dtype, some=False)
        targets = y.astype(X.dtype) if y.dtype == bool else recipe.model._as_targets(y, X.dtype)
        self._block = Block(X, targets, v)
        self._objective = recipe.model._objective(recipe.pos_weight)
        self._network = Network(recipe.units, recipe.activation, X.dtype)
        self._dropout = None if recipe.dropout is None else Dropout(*recipe.dropout)
        self._pass, self._rows, self._full = None, 0, None

    def weights(self, number):
        """Number and row weights of the block, in a list."""
        v = self._block.sample_weight
        return ([(number, np.ones(self._block.X.shape[0], self._block.X.dtype) if v is None else v)],)

    def whole(self, number, params, mass):
        """Loss and gradient of all rows of this block over the mass of all blocks' rows, without penalty.

        Parameters
        ----------
        params : ndarray, float64
            All weights.
        mass : float
        """
        X, y, v = self._block
        if X.shape[0] == 0:
            return None
        if self._full is None:
            self._full = FullObjective(self._network, self._objective, X, y, v, 0.0, mass)
        return self._full.value_and_grad(params)

    def step(self, number, params, chosen, mass, drawn):
        """Loss and gradient of the rows that a step takes from this block.

        Parameters
        ----------
        params : ndarray
            All weights.
        chosen : dict
            Number of a block to the rows it gives.
        mass : float
            Weights of all rows of the step.
        drawn : dict
            Number of a block to the place in the stream of dropout.
        """
        rows = chosen.get(number)
        if rows is None:
            return None
        X, y, v = self._block
        if self._rows < len(rows):
            self._rows = len(rows)
            self._pass = Pass(self._network, self._rows, gradients=True, dropout=self._dropout)
        if self._dropout is not None:
            self._dropout.drawn = drawn[number]
        self._network.params[...] = params
        x, v = X[rows], None if v is None else v[rows]
        z = self._pass.forward(x)
        here = float(len(rows)) if v is None else float(v.sum(dtype=np.float64))
        loss = self._objective(z, y[rows], v, here, 1 / mass)
        grad = np.empty_like(self._network.params)
        self._pass.backward(x, z, *self._network.split(grad))
        return loss, grad


class Step(NumpyStep):
    """`NumpyStep` whose gradients come from the blocks of a source: the same numbers but for rounding.

    Parameters
    ----------
    source : `Cluster` or `Scheduler`, prepared
    lengths : tuple of int
        Rows of every block.
    network, optimizer, v, batch_size, alpha, clip_norm, dropout
        As for `NumpyStep`.
    """

    def __init__(self, source, lengths, network, optimizer, v, batch_size, alpha, clip_norm, dropout):
        super().__init__(network, None, optimizer, None, None, v, batch_size, alpha, clip_norm)
        self._source, self._starts, self._network = source, np.cumsum([0, *lengths]), network
        self._stream = dropout

    def _gradient(self, rows):
        mass = float(len(rows)) if self._v is None else float(self._v[rows].sum(dtype=np.float64))
        owners = np.searchsorted(self._starts, rows, side="right") - 1
        chosen = {int(n): rows[owners == n] - self._starts[n] for n in np.unique(owners)}
        drawn = {}
        if self._stream is not None:
            for number, its in chosen.items():
                drawn[number] = self._stream.drawn
                self._stream.drawn += len(its) * sum(self._network.units[1:-1])
        loss, grad = self._source.total("step", self._network.params, chosen, mass, drawn)
        self._grad[...] = grad
        return loss, mass


class BlockObjective:
    """`FullObjective` over the blocks of a source.

    Parameters
    ----------
    source : `Cluster` or `Scheduler`, prepared
    network : Network
        Whose dtype the weights are sent in.
    mass : float
        Of all rows.
    alpha : float
    """

    def __init__(self, source, network, mass, alpha):
        self._source, self._mass, self._alpha = source, mass, float(alpha)
        self._n_coefs, self._dtype, self.calls = network.n_coefs, network.params.dtype, 0

    def value_and_grad(self, w):
        """Objective and gradient at the float64 vector w (n_params,)."""
        self.calls += 1
        w = w.astype(self._dtype, copy=False)
        loss, grad = self._source.total("whole", w, self._mass)
        coefs = w[: self._n_coefs]
        grad[: self._n_coefs] += self._alpha / self._mass * coefs
        return loss + 0.5 * self._alpha / self._mass * float(coefs @ coefs), grad


class MLPClassifier(OnDask, _Local):
    """`fastxent.MLPClassifier` over Dask collections, by synchronous steps.

    A step draws its rows from all partitions, in the order that `random_state` gives on one machine; the partitions
    return the gradients of the rows they have, one message per worker each way, which are added along a tree; and the
    update happens here.  So the weights are those of one machine but for rounding, whatever the number of workers.
    Dropout draws other masks than on one machine.

    Parameters
    ----------
    hidden_layer_sizes, activation, solver, alpha, batch_size, learning_rate, learning_rate_init, power_t, max_iter
    shuffle, random_state, tol, verbose, warm_start, momentum, nesterovs_momentum, early_stopping
    validation_fraction, beta_1, beta_2, epsilon, n_iter_no_change, max_fun, class_weight, loss, label_smoothing
    dropout, clip_norm, monitor, num_threads, backend
        As for `fastxent.MLPClassifier`, but for early stopping, which needs `validation_data`.
    client : dask.distributed.Client or None, default=None
        None is the current one, and without one there is no cluster.  It is not pickled.

    Notes
    -----
    A step costs a message, so `batch_size` should be thousands; "lbfgs" sends one per evaluation over all rows.
    This machine holds 8 bytes per row for the order of mini-batches.
    A loss object whose value for a batch is no sum over rows (dice, Tversky) is summed over the partitions.

    Examples
    --------
    >>> import dask.array as da
    >>> from sklearn.datasets import load_iris
    >>> from fastxent.dask import MLPClassifier
    >>> X, y = (da.from_array(a, chunks=50) for a in load_iris(return_X_y=True))
    >>> model = MLPClassifier((8,), learning_rate_init=0.05, max_iter=30, tol=0, n_iter_no_change=99, random_state=0)
    >>> import warnings
    >>> with warnings.catch_warnings(action="ignore"):  # it goes on improving
    ...     model = model.fit(X / 8, y)
    >>> model.score(X / 8, y) > 0.9
    True
    """

    _local = _Local

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None, *, validation_data=None):
        """Train on X and y.

        Parameters
        ----------
        X : Dask Array (n_samples, n_features), dense or with CSR chunks, or DataFrame
        y : Dask Array or Series (n_samples,), or Array or DataFrame (n_samples, n_classes)
            Labels; or floats, the probabilities of the classes; or integers or booleans, indicators of 0 and 1.
        sample_weight : None, or Dask Array or Series (n_samples,)
        validation_data : None, (X, y) or (X, y, sample_weight), default=None
            Arrays of this machine, scored after every epoch.

        Returns
        -------
        self

        Raises
        ------
        TypeError
            For anything but Dask collections of numbers.
        ValueError
            As `fastxent.MLPClassifier.fit`; for partitions that do not belong together.
        """
        if self.early_stopping and self.solver != "lbfgs" and validation_data is None:
            raise ValueError(
                "early_stopping expects validation_data=(X, y), arrays of this machine, got None"
            )
        self._check_combinations(False, validation_data)
        hidden = self._hidden_units()
        first = not (self.warm_start and hasattr(self, "coefs_"))
        with open_source(X, y, sample_weight, self.client, self.num_threads, indicators=True) as source:
            survey = source.survey()
            multilabel = survey.kind == "indicators"
            classes, class_vector, mass = classes_of(survey, None if multilabel else self.class_weight)
            if not first and not (np.array_equal(classes, self.classes_) and multilabel == self._multilabel):
                raise ValueError(
                    f"warm_start expects the classes of the last fit, {self.classes_}, got {classes}"
                )
            self.classes_, self._multilabel = classes, multilabel
            self._set_outputs()
            dtype, pos_weight = np.dtype(survey.dtype), None
            if multilabel:
                pos_weight = self._positive_weights(survey.class_mass, survey.mass, dtype)
            self.n_features_in_ = survey.n_features
            _check_feature_names(self, source.first_X, reset=True)
            network = self._begin(survey.n_features, hidden, dtype, first)
            shape = (network.units, self.activation)
            recipe = Recipe(*shape, classes, class_vector, pos_weight, self._shell(), None)
            with np.errstate(over="ignore", invalid="ignore"):
                if self.solver == "lbfgs":
                    source.prepare(recipe)
                    full = BlockObjective(source, network, mass, self.alpha)
                    self._fit_lbfgs(network, full, survey.n_rows, X, y, sample_weight)
                else:
                    weighted = sample_weight is not None or class_vector is not None
                    given = (X, y, sample_weight, validation_data)
                    self._fit_steps(source, survey, recipe, network, weighted, *given)
        self._check_finite(network)
        return self

    def _fit_steps(self, source, survey, recipe, network, weighted, X, y, sample_weight, validation_data):
        """The mini-batches; the last four arguments are those of `fit`."""
        v = None
        if weighted:
            source.prepare(recipe)
            v = np.concatenate([of for _, of in sorted(source.total("weights")[0], key=lambda p: p[0])])
        rows = np.arange(survey.n_rows) if v is None else np.flatnonzero(v)
        validation = None if validation_data is None else self._validation_set(validation_data)
        self._running = (source, survey.lengths, recipe)
        try:
            objective = self._objective(recipe.pos_weight)
            self._fit_stochastic(network, objective, X, y, v, sample_weight, rows, validation, False)
        finally:
            del self._running

    def _shell(self):
        """The local estimator, unfitted, that makes the losses of a block."""
        shell = self.to_local()
        for name in (
            set(vars(shell)) - set(shell.get_params()) - {"out_activation_", "n_outputs_", "_multilabel"}
        ):
            delattr(shell, name)
        return shell.set_params(num_threads=self.num_threads or 1)

    def _training_step(self, network, objective, X, y, v, batch_size):
        source, lengths, recipe = self._running
        if self._dropout is not None:
            recipe = dataclasses.replace(recipe, dropout=(self._dropout.rate, self._dropout.seed))
        source.prepare(recipe)
        options = (batch_size, self.alpha, self.clip_norm, self._dropout)
        return Step(source, lengths, network, self._optimizer, v, *options)

    def _score_dtype(self, dtype):
        return self.coefs_[0].dtype
