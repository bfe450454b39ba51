"""The estimator: labels, weights, schedules, stopping, prediction."""

from __future__ import annotations

import difflib
import math
import warnings
from contextlib import nullcontext
from numbers import Integral, Real

import numpy as np
import scipy.sparse
from scipy.special import expit, log_expit
from sklearn.base import BaseEstimator, ClassifierMixin, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import get_scorer, get_scorer_names
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier as PeerMLPClassifier
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils._param_validation import HasMethods, Interval, Options, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import (
    _check_partial_fit_first_call,
    check_classification_targets,
    type_of_target,
)
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from .. import _backend
from .._checks import thread_count
from .._estimator import (
    CallbackSupportMixin,
    FitTasks,
    check_sample_weight,
    class_weight_vector,
    encode_labels,
    loss_of,
    row_weights,
)
from .._files import SaveMixin
from ..losses import Loss, SigmoidCrossEntropy, names
from ..solvers import lbfgs
from ._network import ACTIVATIONS, Dropout, Network, Pass
from ._objectives import LossObject, Sigmoid, Softmax
from ._optimizers import Adam, Sgd
from ._progress import Progress
from ._training import FullObjective, training_step

STOCHASTIC_SOLVERS = ("sgd", "adam", "adamw", "radam")
# Seconds of steps between two looks at Ctrl-C and at the progress bar.
_GLANCE = 0.05
# Fall of the loss, relative to itself or to 1, below which 'lbfgs' has converged: the default of SciPy's L-BFGS-B and
# so of scikit-learn.
_FLAT = 1e7 * 2.0**-52
# Pairs of steps that 'lbfgs' keeps: after 200 iterations on three overlapping blobs (20 seeds) 8 reach a mean loss of
# 0.025, 10 reach 0.026 and 5 reach 0.047.
_MEMORY = 8
# What scikit-learn's class knows of ours, for `to_sklearn`.
_PEER_ACTIVATIONS = ("identity", "logistic", "tanh", "relu")
_PEER_SOLVERS = ("lbfgs", "sgd", "adam")
_PEER_SCHEDULES = ("constant", "invscaling", "adaptive")


def kind_of_targets(y):
    """'soft' for a matrix of floats whose rows sum to 1, 'indicators' for other matrices of 0 and 1, or 'labels'."""
    if not scipy.sparse.issparse(y) and y.ndim == 2 and y.shape[1] > 1 and y.dtype.kind == "f":
        if (y >= 0).all() and (np.abs(y.sum(axis=1) - 1) < 1e-5).all():
            return "soft"
        try:
            check_classification_targets(y)
        except ValueError as error:
            raise ValueError(
                f"{error} A matrix of floats holds soft labels where every row is >= 0 and sums to 1: divide rows of "
                "counts by their sums, take the softmax of rows of logits."
            ) from None
    return "indicators" if type_of_target(y, input_name="y") == "multilabel-indicator" else "labels"


def inside(p):
    """Probabilities of sigmoids, in place, kept off 0 and 1 by the smallest steps of the dtype."""
    zero, one = p.dtype.type(0), p.dtype.type(1)
    return np.clip(p, np.nextafter(zero, one), np.nextafter(one, zero), out=p)


def log_softmax(z):
    """Log-probabilities of logits (rows, classes), exact where a probability is close to 1.

    With the maximum at class j, rest = sum over the others of exp(z - z_j): log p_k = (z_k - z_j) -
    log1p(rest).

    Examples
    --------
    >>> log_softmax(np.array([[40.0, 0.0]]))[0]
    array([-4.24835426e-18, -4.00000000e+01])
    """
    if not len(z):
        return z
    top = z.argmax(axis=1)[:, None]
    z = z - np.take_along_axis(z, top, 1)
    others = np.exp(z)
    np.put_along_axis(others, top, 0, 1)
    z -= np.log1p(others.sum(axis=1, keepdims=True))
    return z


class MLPClassifier(CallbackSupportMixin, SaveMixin, ClassifierMixin, BaseEstimator):
    """Multi-layer perceptron classifier, a drop-in for scikit-learn's.

    Minimizes  (sum_i v_i L_i + alpha/2 ||W||^2) / sum_i v_i  with the cross-entropy L of the network's
    logits: softmax for three classes and more, one sigmoid for two, a sigmoid per label for an indicator
    matrix; v is the sample weight times the class weight.  float32 data are trained in float32, sparse data
    stay sparse.

    Parameters
    ----------
    hidden_layer_sizes : array-like of int or int, default=(100,)
        Width of every hidden layer.
    activation : {'identity', 'logistic', 'tanh', 'relu', 'gelu', 'silu'}, default='relu'
        Of the hidden layers; 'gelu' is the exact form, z Phi(z).
    solver : {'auto', 'adam', 'adamw', 'radam', 'sgd', 'lbfgs'}, default='auto'
        'auto' is 'adam', whatever the data. 'adamw' decays the weights by learning rate times alpha instead
        of penalizing them. 'lbfgs' takes all rows at every step: for small data.
    alpha : float, default=0.0001
        Strength of the L2 penalty; intercepts are not penalized.
    batch_size : int or 'auto', default='auto'
        'auto' is min(200, n_samples). Not used by 'lbfgs'.
    learning_rate : {'constant', 'invscaling', 'adaptive', 'cosine'}, default='constant'
        'invscaling' divides by (samples seen + 1)**power_t; 'adaptive' divides by 5 whenever training stops
        improving; both leave 'adam' alone, as in scikit-learn. 'cosine' falls from epoch to epoch over
        `max_iter` epochs, learning_rate_init · (1 + cos(pi · epoch / max_iter)) / 2: its end is no
        ConvergenceWarning.
    learning_rate_init : float, default=0.001
    power_t : float, default=0.5
    max_iter : int, default=200
        At most so many epochs, or iterations of 'lbfgs'.
    shuffle : bool, default=True
        Whether every epoch takes the rows in a new order.
    random_state : int, RandomState instance or None, default=None
        Of initial weights, validation split, order of the rows and dropout.
    tol : float, default=1e-4
        Training stops when the loss (or the validation score) has not improved by more than `tol` for more
        than `n_iter_no_change` epochs; for 'lbfgs', when the largest entry of the gradient is at most `tol`,
        or an iteration lowers the loss by less than 2.2e-9 of itself or of 1.
    verbose : bool or int, default=False
        Whether to print a line per epoch with loss and speed; on a terminal a bar shows how far the epoch is.
    warm_start : bool, default=False
        Whether `fit` goes on from the weights it finds.
    momentum : float, default=0.9
        Of 'sgd'.
    nesterovs_momentum : bool, default=True
        Whether 'sgd' uses Nesterov's momentum.
    early_stopping : bool, default=False
        Whether to stop by the score on held-out rows, and to return the weights that scored best.
    validation_fraction : float, default=0.1
        Share of the rows held out for early stopping, where `fit` is given no validation data.
    beta_1, beta_2 : float, default=0.9, 0.999
        Decay of the moments of 'adam', 'adamw' and 'radam'.
    epsilon : float, default=1e-8
        Added to their denominator.
    n_iter_no_change : int or inf, default=10
    max_fun : int, default=15000
        At most so many evaluations by 'lbfgs'.
    class_weight : None, 'balanced' or dict, default=None
        Weight of each class, times the sample weight. 'balanced' is n / (n_classes · n_k) with counts in
        sample weights. With indicator matrices: the weight of a label's positive rows, 'balanced' their
        negatives per positive.
    loss : None, str or loss object, default=None
        A name ("focal", "gce", ...: `fastxent.losses.names()`), or an object
        with ``loss_grad(z, y, sample_weight=None, reduction="mean")`` whose mean replaces the mean
        cross-entropy. It gets one logit per class; a `SigmoidCrossEntropy`, or an object whose attribute
        ``elementwise`` is true, gets one logit for two classes and one per label for indicator matrices,
        whose mean is over rows and labels.
    label_smoothing : float, default=0.0
        Share of every label spread evenly over all classes; the loss object's own option where `loss` is
        given.
    dropout : float, default=0.0
        Share of the hidden activations left out at every training step. Not used by 'lbfgs'.
    clip_norm : None or float, default=None
        Longest gradient: a longer one, all weights and the penalty together, is scaled down to this Euclidean norm.
        Not used by 'lbfgs'.
    monitor : None, 'loss', str or callable, default=None
        What is watched on the validation rows, and decides where training stops early: None is the accuracy,
        'loss' the loss, a string or callable one of scikit-learn's scorers
        (`sklearn.metrics.get_scorer_names()`).
    num_threads : int or None, default=None
        Threads of the loss kernels and of the matrix products; None leaves both at their defaults.
    backend : {None, 'auto', 'numpy', 'cpu', 'cuda'}, default=None
        Of the loss kernels; 'cuda' trains on a GPU as a whole, with CuPy's products: dense X, stochastic solvers.
        Predictions are made in memory.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted; the numbers of the columns for indicator matrices.
    loss_ : float
        Mean objective over the last epoch, weighted.
    best_loss_ : float or None
        Lowest entry of `loss_curve_`; None with early stopping.
    loss_curve_ : list of float
        `loss_` after every epoch or iteration.
    validation_scores_ : list of float or None
        What `monitor` watches on the validation rows, after every epoch: the larger, the better ('loss': minus the
        loss). None where there are none.
    validation_loss_curve_ : list of float or None
        Mean loss on the validation rows, without the penalty.
    best_validation_score_ : float or None
    t_ : int
        Training samples seen.
    n_iter_ : int
        Epochs or iterations of the last fit.
    n_layers_ : int
        Layers with the input and the output.
    n_outputs_ : int
        Logits per row.
    out_activation_ : str
        'softmax' or 'logistic'.
    coefs_ : list of ndarray of shape (fan_in, fan_out)
    intercepts_ : list of ndarray of shape (fan_out,)
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (n_features,)
        Only where X has names that are all strings.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fastxent.mlp import MLPClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = MLPClassifier((8,), solver="lbfgs", max_iter=1000, random_state=0).fit(X / 8, y)
    >>> model.score(X / 8, y) > 0.97
    True
    """

    _parameter_constraints: dict = {  # noqa: RUF012 (scikit-learn's convention)
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "solver": [StrOptions({"auto", "lbfgs", *STOCHASTIC_SOLVERS})],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "learning_rate": [StrOptions({"constant", "invscaling", "adaptive", "cosine"})],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "power_t": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "shuffle": ["boolean"],
        "random_state": ["random_state"],
        "tol": [Interval(Real, 0, None, closed="left")],
        "verbose": ["verbose"],
        "warm_start": ["boolean"],
        "momentum": [Interval(Real, 0, 1, closed="both")],
        "nesterovs_momentum": ["boolean"],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="left")],
        "beta_1": [Interval(Real, 0, 1, closed="left")],
        "beta_2": [Interval(Real, 0, 1, closed="left")],
        "epsilon": [Interval(Real, 0, None, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left"), Options(Real, {np.inf})],
        "max_fun": [Interval(Integral, 1, None, closed="left")],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "loss": [HasMethods("loss_grad"), StrOptions(set(names())), None],
        "label_smoothing": [Interval(Real, 0, 1, closed="both")],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "clip_norm": [Interval(Real, 0, None, closed="neither"), None],
        "monitor": [str, callable, None],
        "num_threads": [Interval(Integral, 1, None, closed="left"), None],
        "backend": [StrOptions(set(_backend.NAMES)), None],
    }

    _saved = ("_multilabel",)
    _optimizer = _dropout = None  # where `load` has brought the weights
    _no_improvement_count = 0

    def __init__(
        self,
        hidden_layer_sizes=(100,),
        activation="relu",
        *,
        solver="auto",
        alpha=0.0001,
        batch_size="auto",
        learning_rate="constant",
        learning_rate_init=0.001,
        power_t=0.5,
        max_iter=200,
        shuffle=True,
        random_state=None,
        tol=1e-4,
        verbose=False,
        warm_start=False,
        momentum=0.9,
        nesterovs_momentum=True,
        early_stopping=False,
        validation_fraction=0.1,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        n_iter_no_change=10,
        max_fun=15000,
        class_weight=None,
        loss=None,
        label_smoothing=0.0,
        dropout=0.0,
        clip_norm=None,
        monitor=None,
        num_threads=None,
        backend=None,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.class_weight = class_weight
        self.loss = loss
        self.label_smoothing = label_smoothing
        self.dropout = dropout
        self.clip_norm = clip_norm
        self.monitor = monitor
        self.num_threads = num_threads
        self.backend = backend

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.classifier_tags.multi_label = True
        return tags

    # ----------------------------------------------------------------------------------------------- training

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None, *, validation_data=None):
        """Train on X and y.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Labels; or indicators of 0 and 1, one column per label; or a matrix of floats whose rows sum to 1, the
            probabilities of the classes 0 to n_outputs - 1.
        sample_weight : array-like of shape (n_samples,), default=None
            Weight k counts as k repeats; rows of weight 0 count as removed, with their class if it has no
            other row.
        validation_data : None, (X, y) or (X, y, sample_weight), default=None
            Scored after every epoch, and used by early stopping instead of held-out training rows.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For data or parameters out of their range, and where the loss or the weights become non-finite.
        """
        return self._fit(X, y, sample_weight, validation_data, incremental=False)

    def _is_stochastic(self):
        if self.solver == "lbfgs":
            raise AttributeError(
                f"partial_fit is only available for stochastic optimizers. {self.solver} is not stochastic."
            )
        return True

    @available_if(_is_stochastic)
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, sample_weight=None, classes=None):
        """Train for one epoch over X and y, from the weights and the optimizer's state there are.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, n_labels)
        sample_weight : array-like of shape (n_samples,), default=None
        classes : array-like of shape (n_classes,), default=None
            All labels that will ever come; needed at the first call.

        Returns
        -------
        self
        """
        _check_partial_fit_first_call(self, classes)
        return self._fit(X, y, sample_weight, None, incremental=True)

    def _fit(self, X, y, sample_weight, validation_data, incremental):
        first = not hasattr(self, "coefs_") or not (self.warm_start or incremental)
        hidden = self._hidden_units()
        self._check_combinations(incremental, validation_data)
        # A model goes on in the dtype it began with.
        dtype = (np.float64, np.float32) if first else self.coefs_[0].dtype
        X, y = validate_data(self, X, y, accept_sparse="csr", multi_output=True, dtype=dtype, reset=first)
        sample_weight = check_sample_weight(sample_weight, X.shape[0], X.dtype)
        labels = y
        y, v, pos_weight = self._targets(y, sample_weight, X.dtype, first, incremental)
        network = self._begin(X.shape[1], hidden, X.dtype, first)
        objective = self._objective(pos_weight)
        # Overflow on the way to a non-finite loss is reported once, by an error that names the step.
        with self._blas_threads(), np.errstate(over="ignore", invalid="ignore"):
            if self.solver == "lbfgs":
                full = FullObjective(network, objective, X, y, v, self.alpha)
                self._fit_lbfgs(network, full, X.shape[0], X, y, v)
            else:
                validation = self._split(X, y, labels, v, sample_weight, validation_data)
                self._fit_stochastic(network, objective, X, y, v, sample_weight, *validation, incremental)
        self._check_finite(network)
        return self

    def _begin(self, n_features, hidden, dtype, first):
        """The network to train: initialized, or with the weights there are."""
        self._random_state = check_random_state(self.random_state)
        network = Network([n_features, *hidden, self.n_outputs_], self.activation, dtype)
        if first:
            network.initialize(self._random_state)
            self._reset(network)
        else:
            self._check_shapes(network)
            network.copy_from(self.coefs_, self.intercepts_)
        # Views of the flat buffer: what a step writes is what the estimator predicts with.
        self.coefs_, self.intercepts_ = network.coefs, network.intercepts
        return network

    def _check_finite(self, network):
        if not np.isfinite(network.params).all():
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large values and "
                f"need to be preprocessed. Scale X, or lower learning_rate_init={self.learning_rate_init:g}."
            )

    def _blas_threads(self):
        if self.num_threads is None:
            return nullcontext()
        return threadpool_limits(thread_count(self.num_threads), user_api="blas")

    def _hidden_units(self):
        hidden = self.hidden_layer_sizes
        hidden = [hidden] if isinstance(hidden, Integral) else list(hidden)
        if any(not isinstance(width, Integral) or width <= 0 for width in hidden):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {hidden}.")
        return [int(width) for width in hidden]

    def _check_combinations(self, incremental, validation_data):
        if incremental and self.early_stopping:
            raise ValueError("partial_fit does not support early_stopping=True")
        if incremental and self.class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' needs all labels at once; partial_fit expects None or a dict."
            )
        if self.loss is not None and self.label_smoothing:
            raise ValueError(
                f"label_smoothing={self.label_smoothing} expects loss=None, got loss={self.loss!r}: "
                "give the option to the loss object."
            )
        if self.solver == "lbfgs" and self.dropout:
            raise ValueError(f"dropout={self.dropout} expects a stochastic solver, got solver='lbfgs'.")
        if self.solver == "lbfgs" and validation_data is not None:
            raise ValueError("validation_data expects a stochastic solver, got solver='lbfgs'.")
        if self.solver == "lbfgs" and self.backend == "cuda":
            raise ValueError("solver: expected a stochastic one with backend='cuda', got 'lbfgs'.")
        if self.solver == "lbfgs" and self.clip_norm is not None:
            raise ValueError(f"clip_norm={self.clip_norm} expects a stochastic solver, got solver='lbfgs'.")
        if isinstance(self.monitor, str) and self.monitor not in (names := ("loss", *get_scorer_names())):
            close = " or ".join(map(repr, difflib.get_close_matches(self.monitor, names)))
            raise ValueError(
                f"monitor: expected 'loss' or one of sklearn.metrics.get_scorer_names(), got {self.monitor!r}"
                + (f"; did you mean {close}?" if close else "")
            )
        if self.monitor is not None and not self.early_stopping and validation_data is None:
            raise ValueError(
                f"monitor={self.monitor!r} expects rows to watch: early_stopping=True, or validation_data in fit."
            )

    def _check_shapes(self, network):
        have = [coef.shape for coef in self.coefs_]
        want = [coef.shape for coef in network.coefs]
        if have != want:
            raise ValueError(
                f"The weights to start from have shapes {have}, expected {want} for the given layers."
            )

    def _targets(self, y, sample_weight, dtype, first, incremental):
        """Targets as the kernels take them, row weights, weights of positive labels; sets `classes_`."""
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        kind = kind_of_targets(y)
        multilabel = kind == "indicators"
        known = incremental or not first  # classes_ is there, from partial_fit's first call or an earlier fit
        if not first and multilabel != self._multilabel:
            kinds = ("one label per row", "an indicator matrix")
            raise ValueError(f"y: expected {kinds[self._multilabel]} as before, got {kinds[multilabel]}.")
        if multilabel:
            y = y.toarray() if scipy.sparse.issparse(y) else np.asarray(y)
            classes = np.arange(y.shape[1])
        elif kind == "soft":
            classes, codes = np.arange(y.shape[1]), y
        else:
            classes, codes = encode_labels(y, sample_weight, self.classes_ if incremental else None)
        if known and not np.array_equal(classes, self.classes_):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous call to fit, and "
                f"partial_fit with the classes it began with. Previously got {self.classes_}, `y` has {classes}"
            )
        self.classes_, self._multilabel = classes, multilabel
        self._set_outputs()
        if multilabel:
            targets = (y != 0).astype(dtype)
            v = np.ones(len(targets)) if sample_weight is None else sample_weight.astype(np.float64)
            return targets, sample_weight, self._positive_weights(v @ targets, v.sum(), dtype)
        if kind == "soft":
            if self.class_weight is not None:
                raise ValueError(
                    f"class_weight expects labels, got {self.class_weight!r} with rows of probabilities for y."
                )
            return self._as_targets(codes, dtype), sample_weight, None
        weight_of = class_weight_vector(self.class_weight, classes, codes, sample_weight)
        v = row_weights(sample_weight, weight_of, codes, dtype)
        return self._as_targets(codes, dtype), v, None

    def _set_outputs(self):
        """Number and kind of the logits, from the classes and the loss."""
        n_classes = len(self.classes_)
        if self._multilabel or (n_classes == 2 and self._loss_is_elementwise()):
            self.n_outputs_, self.out_activation_ = n_classes if self._multilabel else 1, "logistic"
        else:
            self.n_outputs_, self.out_activation_ = n_classes, "softmax"
        if not self._multilabel and n_classes > 2 and isinstance(self._loss_object(), SigmoidCrossEntropy):
            raise ValueError(
                f"loss: {self.loss!r} takes every label by itself, and y names one of {n_classes} classes: use "
                "SoftmaxCrossEntropy(), or pass y as an indicator matrix."
            )

    def _as_targets(self, codes, dtype):
        """Class numbers, or probabilities of the classes, as the output layer's loss takes them."""
        if self.out_activation_ == "softmax":
            return codes if codes.ndim == 1 else np.ascontiguousarray(codes, dtype)
        return np.ascontiguousarray(codes[:, None] if codes.ndim == 1 else codes[:, 1:], dtype)

    def _loss_object(self):
        return None if self.loss is None else loss_of(self.loss)

    def _loss_is_elementwise(self):
        return self.loss is None or bool(getattr(self._loss_object(), "elementwise", False))

    def _positive_weights(self, positive, mass, dtype):
        """Weight of the positive rows of every label, or None.

        Parameters
        ----------
        positive : ndarray (n_labels,), float64
            Sample weights of each label's positive rows.
        mass : float
            Sample weights of all rows.
        dtype : float32 or float64
        """
        if self.loss is not None and not self._loss_is_elementwise():
            raise ValueError(
                f"y: a matrix of indicators expects an elementwise loss, got loss={self.loss!r}."
            )
        if self.class_weight is None:
            return None
        if self.loss is not None:
            raise ValueError(
                "class_weight with a matrix of indicators expects loss=None: give the loss pos_weight."
            )
        if isinstance(self.class_weight, str):
            weights = np.divide(mass - positive, positive, out=np.ones_like(positive), where=positive > 0)
        else:
            weights = class_weight_vector(self.class_weight, self.classes_, np.arange(len(self.classes_)))
        return None if weights is None else weights.astype(dtype)

    def _objective(self, pos_weight=None):
        threads = thread_count(self.num_threads)
        if self.loss is not None:
            loss = self._loss_object()
            given = {"backend": self.backend, "num_threads": self.num_threads}
            options = {name: value for name, value in given.items() if value is not None}
            if isinstance(loss, Loss):
                options["check"] = False  # targets were checked once, in fit
            return LossObject(loss, self.out_activation_ == "logistic", options)
        kernels = _backend.choose(self.backend)
        smoothing = float(self.label_smoothing)
        if self.out_activation_ == "softmax":
            return Softmax(kernels, smoothing, threads)
        return Sigmoid(kernels, smoothing, pos_weight, threads)

    def _reset(self, network):
        self.n_iter_ = self.t_ = 0
        self.n_layers_ = len(network.units)
        self._no_improvement_count = 0
        self.loss_curve_ = []
        self.best_loss_ = None if self.early_stopping else np.inf
        self.validation_scores_ = self.validation_loss_curve_ = self.best_validation_score_ = None
        self._optimizer = self._dropout = None

    def _new_optimizer(self, solver, params):
        if solver == "sgd":
            return Sgd(params, self.learning_rate_init, self.momentum, self.nesterovs_momentum)
        return Adam(params, solver, self.learning_rate_init, self.beta_1, self.beta_2, self.epsilon)

    def _fit_stochastic(self, network, objective, X, y, v, sample_weight, rows, validation, incremental):
        n_samples = len(rows)
        batch_size = min(200, n_samples) if self.batch_size == "auto" else self.batch_size
        removed = 0 if v is None else np.count_nonzero(v == 0)
        if batch_size > n_samples + removed:
            warnings.warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped",
                stacklevel=5,
            )
        batch_size = min(int(batch_size), n_samples)
        solver = "adam" if self.solver == "auto" else self.solver
        if not incremental or self._optimizer is None or self._optimizer.kind != solver:
            self._optimizer = self._new_optimizer(solver, network.params)
        if not self.early_stopping and self.best_loss_ is None:
            self.best_loss_ = np.inf
        if not self.dropout:
            self._dropout = None
        elif not incremental or self._dropout is None or self._dropout.rate != self.dropout:
            self._dropout = Dropout(float(self.dropout), int(self._random_state.randint(2**31)))
        step = self._training_step(network, objective, X, y, v, batch_size)
        best = network.params.copy() if self.early_stopping else None
        if validation is not None and self.validation_scores_ is None:
            self.validation_scores_, self.validation_loss_curve_ = [], []
            self.best_validation_score_ = -np.inf
        max_iter = 1 if incremental else self.max_iter
        tasks = FitTasks(self, max_iter, "epoch", X, y, sample_weight)
        progress = Progress(self.verbose, max_iter, n_samples)
        self.n_iter_ = 0
        try:
            for _ in range(max_iter):
                if self.learning_rate == "cosine":
                    self._optimizer.learning_rate = self._cosine_rate(self._optimizer.epochs)
                if self.shuffle:
                    order = np.arange(n_samples)
                    self._random_state.shuffle(order)
                    rows = rows[order]
                self._run_epoch(step, rows, batch_size, progress)
                self._optimizer.epochs += 1
                self.n_iter_ += 1
                self.t_ += n_samples
                self.loss_curve_.append(self.loss_)
                progress.end_epoch(self.n_iter_, self.loss_)
                gain = self._judge(network, objective, validation, best, progress)
                if self.learning_rate == "invscaling" and self._is_scheduled():
                    self._optimizer.learning_rate = self.learning_rate_init / (self.t_ + 1) ** self.power_t
                if tasks.end_iteration(lambda: self._snapshot(network, network.params)):
                    break
                if self._no_improvement_count > self.n_iter_no_change:
                    if self._stops(progress):
                        break
                    self._no_improvement_count = 0
                if not incremental and self.n_iter_ == self.max_iter and self.learning_rate != "cosine":
                    self._warn_not_converged(gain)
        except KeyboardInterrupt:
            warnings.warn(
                f"Training interrupted by user. The model is the one after {self.n_iter_} whole epochs and a "
                "part of the next.",
                stacklevel=5,
            )
        finally:
            progress.wipe()
            if best is not None:
                network.params[...] = best
        tasks.close()

    def _training_step(self, network, objective, X, y, v, batch_size):
        given = (network, objective, self._optimizer, X, y, v, batch_size, self.alpha, self.clip_norm)
        threads = thread_count(self.num_threads)
        return training_step(_backend.choose(self.backend), *given, self._dropout, num_threads=threads)

    def _split(self, X, y, labels, v, sample_weight, validation_data):
        """Numbers of the training rows, and the validation set (X, targets, labels, weights) or None."""
        rows = np.arange(X.shape[0]) if v is None else np.flatnonzero(v)
        if validation_data is not None:
            return rows, self._validation_set(validation_data)
        if not self.early_stopping:
            return rows, None
        # Stratified where scikit-learn stratifies, so that the same random_state holds out the same rows.
        stratify = None
        if self.n_outputs_ == 1 and np.isin(y, (0, 1)).all():
            stratify = y[rows]
        rows, held = train_test_split(
            rows, random_state=self._random_state, test_size=self.validation_fraction, stratify=stratify
        )
        if len(held) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your "
                f"dataset. Expected at least 2 rows, got {len(held)}."
            )
        return rows, (X[held], y[held], labels[held], None if sample_weight is None else sample_weight[held])

    def _validation_set(self, given):
        if not isinstance(given, (tuple, list)) or len(given) not in (2, 3):
            raise ValueError(
                f"validation_data: expected (X, y) or (X, y, sample_weight), got {type(given).__name__}."
            )
        X = self._check_X(given[0])
        sample_weight = check_sample_weight(given[2], X.shape[0], X.dtype) if len(given) == 3 else None
        y = self._known_targets(given[1], X, "validation_data")
        return X, y, given[1], sample_weight

    def _known_targets(self, y, X, name):
        """Targets for rows of classes that are known."""
        dtype = X.dtype
        if self._multilabel:
            y = y.toarray() if scipy.sparse.issparse(y) else np.asarray(y)
            if y.shape != (X.shape[0], self.n_outputs_):
                raise ValueError(
                    f"{name}: expected indicators of shape {(X.shape[0], self.n_outputs_)}, got {y.shape}."
                )
            check_classification_targets(y)
            return (y != 0).astype(dtype)
        codes = np.asarray(y)
        if codes.ndim != 2 or codes.shape[1:] != self.classes_.shape or kind_of_targets(codes) != "soft":
            codes = encode_labels(y, None, self.classes_)[1]
        if len(codes) != X.shape[0]:
            raise ValueError(f"{name}: expected one label for each of {X.shape[0]} rows, got {len(codes)}.")
        return self._as_targets(codes, dtype)

    def _run_epoch(self, step, rows, batch_size, progress):
        total = mass = 0.0
        start = number = 0
        progress.begin_epoch()
        while start < len(rows):
            steps, start, loss, weight, last = step.run(rows, start, _GLANCE)
            number += steps
            if not math.isfinite(last):
                raise ValueError(
                    f"The loss is {last} at step {number} of {math.ceil(len(rows) / batch_size)} in epoch "
                    f"{self.n_iter_ + 1}. The input data may contain large values and need to be preprocessed: scale "
                    f"X, for example with StandardScaler, or lower learning_rate_init={self.learning_rate_init:g}, or "
                    "set clip_norm."
                )
            total += loss
            mass += weight
            progress.show(self.n_iter_ + 1, start, total / mass)
        self.loss_ = total / mass

    def _judge(self, network, objective, validation, best, progress):
        """Score the epoch; returns by how much it beat the best before."""
        if validation is not None:
            score, loss = self._evaluate(network, objective, validation)
            self.validation_scores_.append(score)
            self.validation_loss_curve_.append(loss)
            progress.line(f"Validation score: {score:f}")
            score_gain = score - self.best_validation_score_
            self.best_validation_score_ = max(score, self.best_validation_score_)
        if self.early_stopping:
            stalled = score_gain < self.tol
            if score_gain > 0:
                best[...] = network.params
            gain = score_gain
        else:
            gain = self.best_loss_ - self.loss_
            stalled = gain < self.tol
            self.best_loss_ = min(self.loss_, self.best_loss_)
        self._no_improvement_count = self._no_improvement_count + 1 if stalled else 0
        return gain

    def _evaluate(self, network, objective, validation):
        """What is monitored, and the mean loss, on the validation rows, both in sample weights."""
        X, y, labels, sample_weight = validation
        z = self._logits(X, network)
        if self.monitor is None:
            if self.out_activation_ == "softmax":
                right = z.argmax(axis=1) == (y if y.ndim == 1 else y.argmax(axis=1))
            else:
                right = ((z > 0) == (y > 0.5)).all(axis=1)
            score = float(np.average(right, weights=sample_weight))
        mass = float(len(z)) if sample_weight is None else float(sample_weight.sum(dtype=np.float64))
        loss = objective(z, y, sample_weight, mass, 1.0) / mass
        if self.monitor == "loss":
            score = -loss
        elif self.monitor is not None:
            weights = {} if sample_weight is None else {"sample_weight": sample_weight}
            with warnings.catch_warnings():  # the rows held out have lost the names of their features
                warnings.filterwarnings("ignore", "X does not have valid feature names", UserWarning)
                score = float(get_scorer(self.monitor)(self, X, labels, **weights))
        return score, loss

    def _cosine_rate(self, epoch):
        """Rate of an epoch; calls of partial_fit beyond `max_iter` go on at the last one."""
        share = min(epoch, self.max_iter - 1) / self.max_iter
        return self.learning_rate_init * (1 + math.cos(math.pi * share)) / 2

    def _is_scheduled(self):
        return self.solver not in ("auto", "adam")

    def _stops(self, progress):
        """Whether training ends here; a learning rate that adapts is lowered first."""
        what = "Validation score" if self.early_stopping else "Training loss"
        message = (
            f"{what} did not improve more than tol={self.tol:f} for {self.n_iter_no_change} consecutive "
        )
        message += "epochs."
        stop = True
        if self.learning_rate == "adaptive" and self._is_scheduled():
            if self._optimizer.learning_rate <= 1e-6:
                message += " Learning rate too small."
            else:
                self._optimizer.learning_rate /= 5.0
                message += f" Setting learning rate to {self._optimizer.learning_rate:f}"
                stop = False
        progress.line(message + (" Stopping." if stop else ""))
        return stop

    def _warn_not_converged(self, gain):
        what = "validation score" if self.early_stopping else "training loss"
        gained = f"The last epoch improved the best {what} by {gain:.3g}; t" if math.isfinite(gain) else "T"
        warnings.warn(
            f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the optimization hasn't "
            f"converged yet. {gained}raining has converged "
            f"after more than {self.n_iter_no_change} epochs in a row below tol={self.tol:g}, and the last "
            f"{self._no_improvement_count} were. Increase max_iter, learning_rate_init or tol.",
            ConvergenceWarning,
            stacklevel=6,
        )

    @staticmethod
    def _snapshot(network, params):
        """The weights of a flat vector as the attributes of an estimator stopped there."""
        coefs, intercepts = network.split(params.astype(network.params.dtype))
        return {"coefs_": coefs, "intercepts_": intercepts}

    def _fit_lbfgs(self, network, full, n_samples, X, y, v):
        tasks = FitTasks(self, self.max_iter, "iteration", X, y, v)
        before, out_of_calls, flat = math.inf, False, False

        def after_iteration(iterate):
            nonlocal before, out_of_calls, flat
            self.n_iter_ = iterate.n_iter
            self.loss_curve_.append(iterate.fun)
            if self.verbose:
                print(f"Iteration {iterate.n_iter}, loss = {iterate.fun:.8f}")
            out_of_calls = full.calls >= self.max_fun
            flat = before - iterate.fun <= _FLAT * max(iterate.fun, 1.0)
            before = iterate.fun
            return tasks.end_iteration(lambda: self._snapshot(network, iterate.x)) or flat or out_of_calls

        self.n_iter_ = 0
        outcome = lbfgs(
            full.value_and_grad,
            network.params,
            tol=self.tol,
            max_iter=self.max_iter,
            memory=_MEMORY,
            precision=float(np.finfo(network.params.dtype).eps),
            callback=after_iteration,
        )
        network.params[...] = outcome.x
        self.loss_, self.n_iter_ = outcome.fun, outcome.n_iter
        self.t_ += n_samples * outcome.n_evaluations
        if self.best_loss_ is not None:
            self.best_loss_ = min(self.loss_, self.best_loss_)
        tasks.close()
        if outcome.status == "not_finite":
            raise ValueError(
                f"The loss is {outcome.fun} at the first step. The input data may contain large values and "
                "need to be preprocessed: scale X, for example with StandardScaler."
            )
        if outcome.status == "interrupted":
            warnings.warn(f"Training interrupted by user. lbfgs {outcome.message}.", stacklevel=5)
        elif out_of_calls and not flat and not outcome.converged:
            warnings.warn(
                f"lbfgs failed to converge after {full.calls} evaluations, max_fun={self.max_fun}: "
                f"max |gradient| is {outcome.grad_max:.3g}, tol asks for {self.tol:.3g}. "
                "Increase max_fun or tol, or scale the features.",
                ConvergenceWarning,
                stacklevel=5,
            )
        elif outcome.status in ("max_iter", "precision"):
            warnings.warn(
                f"lbfgs failed to converge after {outcome.n_iter} iteration(s): it {outcome.message}.",
                ConvergenceWarning,
                stacklevel=5,
            )

    # --------------------------------------------------------------------------------------------- prediction

    def _check_X(self, X):
        return validate_data(self, X, accept_sparse="csr", dtype=(np.float64, np.float32), reset=False)

    def _fitted_network(self):
        units = [self.coefs_[0].shape[0], *(coef.shape[1] for coef in self.coefs_)]
        network = Network(units, self.activation, self.coefs_[0].dtype)
        network.copy_from(self.coefs_, self.intercepts_)
        return network

    @staticmethod
    def _logits(X, network):
        """Logits of checked rows, in the dtype of the weights, block of rows by block of rows."""
        n_samples, dtype = X.shape[0], network.params.dtype
        z = np.empty((n_samples, network.units[-1]), dtype)
        rows = network.rows_per_block(n_samples)
        forward = Pass(network, rows).forward
        for start in range(0, n_samples, rows):
            block = slice(start, start + rows)
            z[block] = forward(X[block].astype(dtype, copy=False))
        return z

    def _predict_logits(self, X):
        check_is_fitted(self)
        X = self._check_X(X)
        with self._blas_threads():
            return self._logits(X, self._fitted_network())

    def predict(self, X):
        """Most probable class of every row, or the labels more probable than not for indicator matrices.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,), or (n_samples, n_labels) of 0 and 1
        """
        z = self._predict_logits(X)
        if self._multilabel:
            return (z > 0).astype(np.int64)
        if self.out_activation_ == "softmax":
            return self.classes_[z.argmax(axis=1)]
        return self.classes_[(z[:, 0] > 0).astype(np.intp)]

    def predict_proba(self, X):
        """Probability of every class, or of every label for indicator matrices.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_classes), in the order of `classes_`
            Never 0, and in the order of the logits even where probabilities underflow.
        """
        z = self._predict_logits(X)
        if self._multilabel:
            return inside(expit(z))
        if self.out_activation_ == "logistic":
            return inside(expit(np.hstack([-z, z])))
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        smallest = np.nextafter(p.dtype.type(0), p.dtype.type(1))
        low = (p < smallest * p.shape[1]).any(axis=1)
        if low.any():
            # Classes whose probabilities underflow stay apart by one smallest number each, in the order of
            # the logits.
            rank = 1 + z[low].argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
            p[low] = np.maximum(p[low], rank * smallest)
        return p

    def predict_log_proba(self, X):
        """Logarithm of the probabilities, from the logits: exact where they are close to 0 or to 1.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        z = self._predict_logits(X)
        if self._multilabel:
            return log_expit(z)
        if self.out_activation_ == "logistic":
            return log_expit(np.hstack([-z, z]))
        return log_softmax(z)

    def to_sklearn(self):
        """The same model as scikit-learn's `MLPClassifier`, for tools that know only that.

        It predicts what this one predicts, and needs no fastxent to be loaded.  Parameters that scikit-learn does not
        have are left out; its solver, should it be fitted again, is 'adam' where it has not ours.

        Returns
        -------
        sklearn.neural_network.MLPClassifier
            Fitted.

        Raises
        ------
        ValueError
            For 'gelu' and 'silu', and for a single class, which scikit-learn's network does not have.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from fastxent.mlp import MLPClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> model = MLPClassifier((8,), solver="lbfgs", max_iter=1000, random_state=0).fit(X / 8, y)
        >>> bool(np.allclose(model.to_sklearn().predict_proba(X), model.predict_proba(X), atol=1e-12))
        True
        """
        check_is_fitted(self)
        if self.activation not in _PEER_ACTIVATIONS:
            raise ValueError(
                f"to_sklearn expects one of the activations {', '.join(_PEER_ACTIVATIONS)}, got {self.activation!r}."
            )
        if len(self.classes_) == 1 and not self._multilabel:
            raise ValueError("to_sklearn expects two classes or more, got a model of one.")
        peer = PeerMLPClassifier()
        given = {
            name: value for name, value in self.get_params(deep=False).items() if name in peer.get_params()
        }
        given["solver"] = self.solver if self.solver in _PEER_SOLVERS else "adam"
        if self.learning_rate not in _PEER_SCHEDULES:
            given["learning_rate"] = "constant"
        peer.set_params(**given)
        coefs, intercepts = list(map(np.copy, self.coefs_)), list(map(np.copy, self.intercepts_))
        outputs = self.n_outputs_
        if self.out_activation_ == "softmax" and len(self.classes_) == 2:
            # two logits say as much as their difference, and scikit-learn has one
            coefs[-1], intercepts[-1] = np.diff(coefs[-1], axis=1), np.diff(intercepts[-1])
            outputs = 1
        peer.coefs_, peer.intercepts_, peer.n_outputs_ = coefs, intercepts, outputs
        peer.out_activation_ = "softmax" if outputs > 1 and not self._multilabel else "logistic"
        if self._multilabel:
            peer._label_binarizer = LabelBinarizer().fit(np.eye(outputs, dtype=int)[: max(outputs, 2)])
        else:
            peer._label_binarizer = LabelBinarizer().fit(self.classes_)
        copied = "classes_ n_features_in_ feature_names_in_ n_layers_ n_iter_ t_ loss_ best_loss_ loss_curve_"
        for name in (*copied.split(), "validation_scores_", "best_validation_score_"):
            if hasattr(self, name):
                setattr(peer, name, getattr(self, name))
        return peer

    def input_gradient(self, X, y):
        """Gradient of the mean loss over the rows with respect to X: the direction that fools the model.

        The loss is the one trained with, without penalty, weights and dropout.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, n_labels)
            Labels that `fit` has seen.

        Returns
        -------
        ndarray of shape (n_samples, n_features), in the dtype of the weights

        Raises
        ------
        ValueError
            For a label that `fit` has not seen.
        """
        check_is_fitted(self)
        network = self._fitted_network()
        dtype = network.params.dtype
        X = self._check_X(X).astype(dtype, copy=False)
        y = self._known_targets(y, X, "y")
        objective = self._objective()
        n_samples = X.shape[0]
        rows = network.rows_per_block(n_samples) if objective.rows_are_separate else n_samples
        work = Pass(network, rows, gradients=True)
        gradient = np.empty(X.shape, dtype)
        for start in range(0, n_samples, rows):
            block = slice(start, start + rows)
            z = work.forward(X[block])
            objective(z, y[block], None, float(len(z)), 1 / n_samples)
            delta = work.backward(X[block], z, None, None)
            np.matmul(delta, network.coefs[0].T, out=gradient[block])
        return gradient
