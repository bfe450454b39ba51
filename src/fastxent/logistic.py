"""Logistic regression with scikit-learn's interface on the fused linear cross-entropy.

An estimator is objective x loss x solver: `_penalized.Problem` holds the penalized mean loss as functions of one
flat float64 vector, `solvers` minimizes it, and `LogisticRegression` translates between people and that.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from copy import copy
from numbers import Integral, Real

import numpy as np
from scipy import sparse, special
from sklearn import linear_model
from sklearn.base import BaseEstimator, ClassifierMixin, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array, check_consistent_length
from sklearn.utils._param_validation import Hidden, Interval, StrOptions
from sklearn.utils.extmath import safe_sparse_dot
from sklearn.utils.validation import _check_feature_names, check_is_fitted, validate_data

from . import _backend, linear, solvers
from ._blocks import BlockObjective, Recipe, Stream, checked_loss, classes_of, make_rows, soft_labels
from ._estimator import (
    CallbackSupportMixin,
    FitTasks,
    ProgressBar,
    check_sample_weight,
    class_weight_vector,
    encode_labels,
    row_weights,
)
from ._files import SaveMixin
from ._penalized import ContinuedProblem, Problem

__all__ = ["LogisticRegression"]

_SOLVERS = ("auto", "lbfgs", "liblinear", "newton-cg", "newton-cholesky", "sag", "saga")
_LARGE = 100_000  # parameters from which 20 pairs of L-BFGS cost more than the passes they save
_LARGE_MEMORY = (
    5  # pairs then: BANKING77 (792,000) is within 1e-4 of the optimum after 25 passes, 24 with 10 or 20
)
_NEWTON_WORK = 4_000_000  # rows x parameters² up to which Hessians cost less than the passes they save


class LogisticRegression(CallbackSupportMixin, SaveMixin, ClassifierMixin, BaseEstimator):
    """Regularized logistic regression: the parameters, objective and attributes of scikit-learn's class.

    It minimizes over W and b, with v the product of sample and class weight,

        Σ_i v_i CE(W x_i + b, y_i) / Σ_i v_i + ½ ‖W‖² / (C Σ_i v_i),

    and stops when the largest entry of this function's gradient is at most `tol`, whatever the solver (with
    an L1 penalty, of its subgradient of smallest norm).  Two classes have one logit, more have one each.

    Parameters
    ----------
    penalty : deprecated
        As in scikit-learn 1.8 to 1.9; use `C` and `l1_ratio`.
    C : float, default=1.0
        Inverse of the regularization strength, ``np.inf`` for none.
    l1_ratio : float, default=0.0
        Share of ‖W‖₁ in the penalty, which is then ((1 - l1_ratio) ½ ‖W‖² + l1_ratio ‖W‖₁) / (C Σ_i v_i).
        Above 0 for the solvers "auto", "saga" and, as 1, "liblinear"; coefficients become exactly 0.
    dual : bool, default=False
        Only with ``solver="liblinear"``; the solution is that of the primal problem.
    tol : float, default=1e-4
        Bound on the largest entry of the gradient of the objective above.
    fit_intercept : bool, default=True
    intercept_scaling : float, default=1
        With ``solver="liblinear"`` the intercept is penalized as b / intercept_scaling.
    class_weight : dict, "balanced" or None, default=None
    random_state : int, RandomState instance or None, default=None
        Without effect: nothing here is random.
    solver : str, default="auto"
        "auto" takes Newton's method with a Cholesky factor where features times outputs are few, else
        preconditioned L-BFGS; with absolute values (`l1_ratio` > 0), a proximal Newton method and OWL-QN.
        "lbfgs", "newton-cg" and "newton-cholesky" name one; "sag" and "saga" solve the same problem as "auto",
        "liblinear" that of LIBLINEAR (two classes, penalized intercept).
    max_iter : int, default=100
    verbose : int, default=0
        1 prints the outcome and, on a terminal, shows a bar; 2 prints every iteration.
    warm_start : bool, default=False
        Start from the last solution.
    n_jobs : deprecated, without effect
    loss : str, loss object or None, default=None
        A name ("focal", "gce", ...: `fastxent.losses.names()`) or a loss object. None
        is cross-entropy; otherwise a loss of the softmax family, which for two classes reads the logits
        (0, z).
    label_smoothing : float, default=0.0
        Uniform smoothing of cross-entropy's targets.
    num_threads : int or None, default=None
    backend : {"auto", "cpu", "numpy", "cuda"} or None, default=None
        "cuda" fits on a GPU by CuPy's products (dense X, L-BFGS, no `partial_fit`); predictions are made in memory.

    Attributes
    ----------
    classes_ : ndarray (n_classes,)
    coef_ : ndarray or CSR (1, n_features) for two classes, else (n_classes, n_features)
    intercept_ : ndarray (1,) or (n_classes,)
    n_iter_ : ndarray (1,), int32
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (n_features,), where X has names
    opt_result_ : `solvers.Outcome`
        How the minimization ended.

    Examples
    --------
    >>> import numpy as np
    >>> from fastxent.logistic import LogisticRegression
    >>> X = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> model = LogisticRegression(tol=1e-8).fit(X, ["no", "no", "yes", "yes"])
    >>> model.predict([[0.5], [2.5]]).tolist()
    ['no', 'yes']
    >>> model.predict_proba([[1.5]]).round(6).tolist()
    [[0.5, 0.5]]
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        "penalty": [StrOptions({"l1", "l2", "elasticnet"}), None, Hidden(StrOptions({"deprecated"}))],
        "C": [Interval(Real, 0, None, closed="right")],
        "l1_ratio": [Interval(Real, 0, 1, closed="both"), None],
        "dual": ["boolean"],
        "tol": [Interval(Real, 0, None, closed="left")],
        "fit_intercept": ["boolean"],
        "intercept_scaling": [Interval(Real, 0, None, closed="neither")],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "random_state": ["random_state"],
        "solver": [StrOptions(set(_SOLVERS))],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "verbose": ["verbose"],
        "warm_start": ["boolean"],
        "n_jobs": [None, Integral],
        "loss": "no_validation",
        "label_smoothing": [Interval(Real, 0, 1, closed="both")],
        "num_threads": [Interval(Integral, 1, None, closed="left"), None],
        "backend": [StrOptions(set(_backend.NAMES)), None],
    }

    _saved = ("_past",)

    def __init__(
        self,
        penalty="deprecated",
        *,
        C=1.0,
        l1_ratio=0.0,
        dual=False,
        tol=1e-4,
        fit_intercept=True,
        intercept_scaling=1,
        class_weight=None,
        random_state=None,
        solver="auto",
        max_iter=100,
        verbose=0,
        warm_start=False,
        n_jobs=None,
        loss=None,
        label_smoothing=0.0,
        num_threads=None,
        backend=None,
    ):
        self.penalty = penalty
        self.C = C
        self.l1_ratio = l1_ratio
        self.dual = dual
        self.tol = tol
        self.fit_intercept = fit_intercept
        self.intercept_scaling = intercept_scaling
        self.class_weight = class_weight
        self.random_state = random_state
        self.solver = solver
        self.max_iter = max_iter
        self.verbose = verbose
        self.warm_start = warm_start
        self.n_jobs = n_jobs
        self.loss = loss
        self.label_smoothing = label_smoothing
        self.num_threads = num_threads
        self.backend = backend

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        if self.solver == "liblinear":
            tags.classifier_tags.multi_class = False
        return tags

    # ------------------------------------------------------------------------------------------------ fitting

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None, sample_weight=None):
        """Fit the model.

        Parameters
        ----------
        X : array-like or CSR matrix (n_samples, n_features), or callable
            float32 and float64 are kept, in C or F order, without a copy; a memory map is read where it lies.
            A callable without arguments returns an iterable of blocks (X, y) or (X, y, sample_weight), the same
            ones each time: data that no memory holds.  It is called once for every pass over the rows.
        y : array-like (n_samples,), or float matrix (n_samples, n_classes)
            Labels of any kind, or probabilities of the classes 0 to n_classes - 1, whose rows sum to 1.
            None beside a callable.
        sample_weight : None or array-like (n_samples,)
            Weight k is k repeats, weight 0 is removal.

        Returns
        -------
        self

        Raises
        ------
        TypeError
            For an iterator instead of a function that makes one.
        ValueError
            For parameters that do not go together, invalid data, or fewer than two classes.

        Examples
        --------
        >>> import numpy as np
        >>> from fastxent.logistic import LogisticRegression
        >>> def blocks():
        ...     for start in range(0, 8, 4):
        ...         x = np.arange(start, start + 4.0)
        ...         yield x[:, None], x >= 3
        >>> LogisticRegression().fit(blocks).predict([[2.0], [4.0]]).tolist()
        [False, True]
        """
        if y is None and _are_blocks(X):
            raise TypeError(
                f"X: expected an array, or a function that returns its blocks anew for every pass, got a "
                f"{type(X).__name__}; pass the generator's function itself, lambda: blocks for a list"
            )
        if callable(X):
            if y is not None or sample_weight is not None:
                raise ValueError(
                    "y, sample_weight: expected None beside a callable X, whose blocks hold them"
                )
            return self._fit_blocks(Stream(X, self.num_threads), X, None, None)
        C, l1_ratio = self._penalty()
        X, y = self._validated(X, y)
        dtype = X.dtype
        weights = check_sample_weight(sample_weight, X.shape[0], dtype)
        classes, targets, weights = self._targets(y, weights, dtype)
        self._check_classes(classes)
        mass = _mass(X, weights)
        objective = self._objective(X, targets, len(classes), weights)
        with linear.Team(objective, self.num_threads) as team:
            options = (1.0 / (C * mass), l1_ratio, self.fit_intercept, self._intercept_share)
            problem = Problem(objective, team, mass, *options)
            start = self._start(problem) if self.warm_start else np.zeros(problem.size)
            tasks = FitTasks(self, self.max_iter, "iteration", X, y, sample_weight)
            outcome = self._minimize(problem, objective.place(start), tasks, classes, dtype)
        self._keep(problem, outcome, classes, dtype)
        tasks.close()
        self._past = None
        return self

    def _fit_blocks(self, source, X, y, sample_weight):
        """`fit` on the blocks of a source; the last three arguments are what callbacks are told."""
        if self.backend == "cuda":
            raise ValueError("backend: expected a CPU backend for rows that come in blocks, got 'cuda'")
        C, l1_ratio = self._penalty()
        survey = source.survey()
        classes, class_vector, mass = classes_of(survey, self.class_weight)
        self._check_classes(classes)
        self.n_features_in_ = survey.n_features
        _check_feature_names(self, source.first_X, reset=True)
        recipe = Recipe(classes, class_vector, self.loss, self.label_smoothing, self.backend)
        objective = BlockObjective(source, survey, recipe)
        source.prepare(recipe)
        options = (1.0 / (C * mass), l1_ratio, self.fit_intercept, self._intercept_share)
        problem = Problem(objective, None, mass, *options)
        start = self._start(problem) if self.warm_start else np.zeros(problem.size)
        tasks = FitTasks(self, self.max_iter, "iteration", X, y, sample_weight)
        outcome = self._minimize(problem, start, tasks, classes, objective.dtype)
        self._keep(problem, outcome, classes, objective.dtype)
        tasks.close()
        self._past = None
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """Go on with rows that were not there before: data too large for memory, or that arrive one by one.

        Every call minimizes the losses of its own rows, exactly as `fit` would, plus a quadratic that stands
        for all earlier rows: the Hessians of the earlier calls around their solution, the whole matrix up to
        1000 parameters and its diagonal beyond.  So the first call is `fit`, rows given twice count twice,
        and no learning rate needs to be chosen.  After `fit` it starts from nothing again; `save` keeps the
        quadratic, so that a stream goes on where a file left it.  A loss that is not convex leaves the part
        of its Hessian whose curvature is positive.

        Parameters
        ----------
        X : array-like or CSR matrix (n_samples, n_features)
        y : array-like (n_samples,), or float matrix (n_samples, n_classes)
            As for `fit`; a call need not see every class.
        classes : array-like (n_classes,)
            All labels that will ever come; for the first call, later ones may repeat it.  Not needed for a
            matrix y.
        sample_weight : None or array-like (n_samples,)

        Returns
        -------
        self

        Raises
        ------
        ValueError
            As for `fit`; for labels that are none of `classes`; for ``class_weight="balanced"``, which
            needs all rows.

        Examples
        --------
        >>> import numpy as np
        >>> from fastxent.logistic import LogisticRegression
        >>> model = LogisticRegression()
        >>> for x in (0.0, 1.0):
        ...     model = model.partial_fit([[x], [x + 2]], [0, 1], classes=[0, 1])
        >>> model.predict([[0.5], [2.5]]).tolist()
        [0, 1]
        """
        if self.backend == "cuda":
            raise ValueError("partial_fit expects a backend in memory, got backend='cuda': it needs Hessians")
        if self.class_weight == "balanced":
            raise ValueError(
                'partial_fit expects class_weight=None or a dict: "balanced" needs all rows at once'
            )
        C, l1_ratio = self._penalty()
        past = getattr(self, "_past", None)
        X, y = self._validated(X, y, reset=past is None)
        dtype = X.dtype
        weights = check_sample_weight(sample_weight, X.shape[0], dtype)
        known = self._known_classes(y, classes, past is None)
        classes, targets, weights = self._targets(y, weights, dtype, known)
        self._check_classes(classes)
        past, earlier = past or (None, 0.0)
        mass = earlier + _mass(X, weights)
        objective = linear.LinearObjective(X, self._rows(targets, len(classes), weights, dtype), dtype)
        with linear.Team(objective, self.num_threads) as team:
            options = (1.0 / (C * mass), l1_ratio, self.fit_intercept, self._intercept_share)
            problem = ContinuedProblem(objective, team, mass, *options, past=past)
            start = np.zeros(problem.size) if past is None else past[0]
            tasks = FitTasks(self, self.max_iter, "iteration", X, y, sample_weight)
            outcome = self._minimize(problem, start, tasks, classes, dtype)
            self._keep(problem, outcome, classes, dtype)
            self._past = (problem.past_at(outcome.x), mass)
        tasks.close()
        return self

    @property
    def _intercept_share(self):
        return 1.0 / self.intercept_scaling if self.solver == "liblinear" else 0.0

    def _check_classes(self, classes):
        if len(classes) < 2:
            raise ValueError(
                "This solver needs samples of at least 2 classes in the data, but the data contains only one class: "
                f"{classes.tolist()[0]!r}"
            )
        if self.solver == "liblinear" and len(classes) > 2:
            raise ValueError(
                "The 'liblinear' solver does not support multiclass classification (n_classes >= 3). Either use "
                "another solver or wrap the estimator in a OneVsRestClassifier to keep applying a one-versus-rest "
                "scheme. Only binary classification is supported."
            )

    def _known_classes(self, y, classes, first):
        """All labels of a stream, sorted; the first call brings them."""
        if y.ndim == 2 and classes is None:
            classes = np.arange(y.shape[1])
        if classes is not None:
            classes = np.unique(classes)
        if first and classes is not None:
            return classes
        if first and not hasattr(self, "classes_"):
            raise ValueError("classes must be passed on the first call to partial_fit.")
        if classes is not None and not np.array_equal(classes, self.classes_):
            raise ValueError(
                f"classes: expected those of the first call to partial_fit, {self.classes_}, got {classes}"
            )
        return self.classes_

    def _penalty(self):
        """C and l1_ratio as they count, with scikit-learn's warnings and refusals on the way."""
        C, l1_ratio, solver = self.C, self.l1_ratio, self.solver
        if self.penalty == "deprecated":
            if l1_ratio is None:
                warnings.warn(
                    "'l1_ratio=None' was deprecated in version 1.8 and will trigger an error in 1.10. "
                    "Use 0<=l1_ratio<=1 instead.",
                    FutureWarning,
                    stacklevel=4,
                )
            ratio = l1_ratio or 0.0
            penalty = None if np.inf == C else "l2" if ratio == 0 else "l1" if ratio == 1 else "elasticnet"
        else:
            penalty = self.penalty
            warnings.warn(
                "'penalty' was deprecated in version 1.8 and will be removed in 1.10. To avoid this warning, leave "
                "'penalty' set to its default value and use 'l1_ratio' or 'C' instead. Use l1_ratio=0 instead of "
                "penalty='l2', l1_ratio=1 instead of penalty='l1', l1_ratio set to a float between 0 and 1 instead of "
                "penalty='elasticnet', and C=np.inf instead of penalty=None.",
                FutureWarning,
                stacklevel=4,
            )
            ratio = {"l1": 1.0, "elasticnet": l1_ratio}.get(penalty, 0.0)
        if solver not in ("auto", "liblinear", "saga") and penalty not in ("l2", None):
            raise ValueError(
                f"Solver {solver} supports only 'l2' or None penalties, got {penalty} penalty. "
                "solver='auto' supports all of them."
            )
        if solver != "liblinear" and self.dual:
            raise ValueError(f"Solver {solver} supports only dual=False, got dual={self.dual}")
        if penalty == "elasticnet" and solver == "liblinear":
            raise ValueError(f"Only 'saga' solver supports elasticnet penalty, got solver={solver}.")
        if solver == "liblinear" and penalty is None:
            raise ValueError("C=np.inf as well as penalty=None is not supported for the liblinear solver")
        if solver == "liblinear" and penalty == "l1" and self.dual:
            raise ValueError(
                "Unsupported set of arguments: The combination of penalty='l1' and loss='logistic_regression' are not "
                f"supported when dual=True, Parameters: penalty={penalty!r}, loss='logistic_regression', dual=True"
            )
        if penalty != "elasticnet" and l1_ratio is not None and 0 < l1_ratio < 1:
            warnings.warn(
                f"l1_ratio parameter is only used when penalty is 'elasticnet'. Got (penalty={penalty})",
                stacklevel=4,
            )
        if (self.penalty == "l2" and l1_ratio != 0) or (self.penalty == "l1" and l1_ratio != 1):
            warnings.warn(
                f"Inconsistent values: penalty={self.penalty} with l1_ratio={l1_ratio}. penalty is deprecated. Please "
                "use l1_ratio only.",
                stacklevel=4,
            )
        if penalty == "elasticnet" and l1_ratio is None:
            raise ValueError("l1_ratio must be specified when penalty is elasticnet.")
        if self.penalty is None:
            if self.C != 1.0:
                warnings.warn("Setting penalty=None will ignore the C and l1_ratio parameters", stacklevel=4)
            C, ratio = np.inf, 0.0
        if self.n_jobs is not None:
            warnings.warn(
                "'n_jobs' has no effect since 1.8 and will be removed in 1.10. You provided "
                f"'n_jobs={self.n_jobs}', please leave it unspecified.",
                FutureWarning,
                stacklevel=4,
            )
        return C, ratio

    def _validated(self, X, y, reset=True):
        options = {"accept_sparse": "csr", "dtype": [np.float64, np.float32], "reset": reset}
        if not _is_soft(y):
            shape = getattr(y, "shape", ())
            if len(shape) == 2 and shape[1] > 1:
                raise ValueError(
                    f"y should be a 1d array, got an array of shape {shape} instead. For one-hot rows pass "
                    "y.argmax(axis=1), for probabilities a matrix of floats; several labels per row are for "
                    "MLPClassifier."
                )
            return validate_data(self, X, y, **options)
        X = validate_data(self, X, **options)
        y = check_array(y, dtype=X.dtype, input_name="y")
        check_consistent_length(X, y)
        return X, soft_labels(y)

    def _targets(self, y, weights, dtype, known=None):
        """Classes, `known` or found, targets as integers or probabilities, and the weights of the rows or None."""
        if y.ndim == 2:
            if self.class_weight is not None:
                raise ValueError(
                    "class_weight: expected None for a matrix y of soft labels, which have no one class."
                )
            classes = np.arange(y.shape[1])
            if known is not None and not np.array_equal(known, classes):
                raise ValueError(
                    f"y: expected a column for each of the classes {known}, got {y.shape[1]} columns"
                )
            return classes, y, weights
        classes, codes = encode_labels(y, weights, known)
        per_class = class_weight_vector(self.class_weight, classes, codes, weights)
        return classes, codes, row_weights(weights, per_class, codes, dtype)

    def _objective(self, X, targets, n_classes, weights):
        if self.backend != "cuda":
            return linear.LinearObjective(X, self._rows(targets, n_classes, weights, X.dtype), X.dtype)
        if self.solver.startswith("newton"):
            raise ValueError(
                f"solver: expected 'auto' or 'lbfgs' with backend='cuda', which has no Hessians, got {self.solver!r}"
            )
        from ._logistic_on_device import DeviceObjective

        loss = checked_loss(self.loss, self.label_smoothing)
        return DeviceObjective(X, targets, n_classes, weights, self.label_smoothing, loss)

    def _rows(self, targets, n_classes, weights, dtype):
        options = (self.loss, self.label_smoothing, self.backend)
        return make_rows(targets, n_classes, weights, dtype, *options)

    def _start(self, problem):
        d, k = problem.shape
        if not hasattr(self, "coef_"):
            return np.zeros(problem.size)
        coef = self.coef_.toarray() if sparse.issparse(self.coef_) else self.coef_
        if coef.shape != (k, d):
            raise ValueError(f"Initialization coef is of shape {coef.shape}, expected shape {(k, d)}")
        return problem.join(coef.T, self.intercept_)

    def _minimize(self, problem, start, tasks, classes, dtype):
        bar = ProgressBar(self.verbose == 1, type(self).__name__, self.tol)

        def callback(iterate):
            bar.show(iterate)
            if self.verbose > 1:
                value, gradient = f"objective {iterate.fun:.8g}", f"max |gradient| {iterate.grad_max:.3g}"
                print(f"LogisticRegression: iteration {iterate.n_iter}, {value}, {gradient}")
            return tasks.end_iteration(lambda: _attributes(problem, iterate.x, classes, dtype))

        options = {
            "tol": self.tol,
            "max_iter": self.max_iter,
            "precision": float(np.finfo(dtype).eps),
            "callback": callback if tasks.listening or self.verbose > 1 or bar.shown else None,
        }
        try:
            return self._solved(problem, start, options)
        finally:
            bar.wipe()

    def _solved(self, problem, start, options):
        work = problem.objective.n_rows * problem.size**2
        dense = not problem.objective.is_sparse and self.backend != "cuda"
        few = work <= _NEWTON_WORK and dense and self.loss is None
        if problem.l1 is not None and few:
            return solvers.proximal_newton(
                problem.value_and_grad, problem.hessian, problem.l1, start, **options
            )
        if problem.l1 is not None:
            # The preconditioner turns the direction across the orthants' walls: with it, 1310 iterations
            # instead of 83.
            return solvers.owlqn(problem.value_and_grad, problem.l1, start, memory=20, **options)
        solver = self.solver
        if solver not in ("lbfgs", "newton-cg", "newton-cholesky"):
            solver = "newton-cholesky" if few else "lbfgs"
        continued = isinstance(problem, ContinuedProblem) and problem.past is not None
        if solver == "newton-cholesky" or (continued and problem.whole):
            return solvers.newton(problem.value_and_grad, problem.hessian, start, **options)
        options["precondition"] = problem.preconditioner()
        if solver == "newton-cg" and not continued:
            return solvers.newton_cg(problem.value_and_grad, problem.hvp, start, **options)
        large = problem.size > _LARGE
        options["memory"] = _LARGE_MEMORY if large else 20
        options["pair_dtype"] = problem.objective.dtype if large else np.float64
        options["first_step"] = 1.0 if continued else problem.first_step
        options["tol_decrease"] = 0.5 * self.tol
        return solvers.lbfgs(problem.value_and_grad, start, **options)

    def _keep(self, problem, outcome, classes, dtype):
        """The fitted attributes, and the warning where the solver fell short."""
        for name, value in _attributes(problem, outcome.x, classes, dtype).items():
            setattr(self, name, value)
        self.n_iter_ = np.array([outcome.n_iter], dtype=np.int32)
        self.opt_result_ = outcome
        if self.verbose:
            print(f"LogisticRegression: {outcome.message}")
        if outcome.status not in ("converged", "stopped"):
            warnings.warn(
                f"{self.solver} failed to converge after {outcome.n_iter} iteration(s) (status={outcome.status}):\n"
                f"{outcome.message}.",
                ConvergenceWarning,
                stacklevel=4,
            )

    # --------------------------------------------------------------------------------------------- prediction

    def decision_function(self, X):
        """Logits: (n_samples,) for two classes, the second's; else (n_samples, n_classes).

        Parameters
        ----------
        X : array-like or CSR matrix (n_samples, n_features)

        Returns
        -------
        ndarray
        """
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32], reset=False)
        scores = safe_sparse_dot(X, self.coef_.T, dense_output=True) + self.intercept_
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, X):
        """The most probable class of every row.

        Parameters
        ----------
        X : array-like or CSR matrix (n_samples, n_features)

        Returns
        -------
        ndarray (n_samples,), of `classes_`
        """
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(np.intp) if scores.ndim == 1 else scores.argmax(axis=1)]

    def predict_proba(self, X):
        """Probabilities of the classes.

        Parameters
        ----------
        X : array-like or CSR matrix (n_samples, n_features)

        Returns
        -------
        ndarray (n_samples, n_classes)
        """
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.stack([special.expit(-scores), special.expit(scores)], axis=1)
        return special.softmax(scores, axis=1)

    def predict_log_proba(self, X):
        """Logarithms of the probabilities, exact where a probability is 1 or 0 to rounding; never -inf.

        Parameters
        ----------
        X : array-like or CSR matrix (n_samples, n_features)

        Returns
        -------
        ndarray (n_samples, n_classes)
        """
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.stack([special.log_expit(-scores), special.log_expit(scores)], axis=1)
        at = scores.argmax(axis=1)[:, None]
        below = scores - np.take_along_axis(scores, at, 1)
        rest = np.exp(below)
        np.put_along_axis(rest, at, 0, 1)
        return below - np.log1p(rest.sum(axis=1, keepdims=True))

    def to_sklearn(self):
        """The same model as scikit-learn's `LogisticRegression`, for tools that know only that.

        It predicts what this one predicts and needs no fastxent to be loaded.  Parameters that scikit-learn does not
        have are left out; its solver, should it be fitted again, is its default where ours is "auto" ("saga" for an
        L1 penalty).

        Returns
        -------
        sklearn.linear_model.LogisticRegression
            Fitted.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from fastxent.logistic import LogisticRegression
        >>> X, y = load_iris(return_X_y=True)
        >>> model = LogisticRegression().fit(X, y)
        >>> bool((model.to_sklearn().predict(X) == model.predict(X)).all())
        True
        """
        check_is_fitted(self)
        peer = linear_model.LogisticRegression()
        names = peer.get_params().keys() & self.get_params(deep=False).keys()
        given = {name: getattr(self, name) for name in names}
        if self.solver == "auto":
            given["solver"] = "saga" if self.l1_ratio else "lbfgs"
        if given["penalty"] == "deprecated" and peer.penalty != "deprecated":  # scikit-learn < 1.8
            ratio = self.l1_ratio or 0.0
            given["penalty"] = {0.0: "l2", 1.0: "l1"}.get(ratio, "elasticnet")
            if given["penalty"] != "elasticnet":
                given["l1_ratio"] = None  # it warns of any other
            if np.inf == self.C:
                given |= {"penalty": None, "C": 1.0}
        peer.set_params(**given)
        for name in ("classes_", "coef_", "intercept_", "n_iter_", "n_features_in_", "feature_names_in_"):
            if hasattr(self, name):
                setattr(peer, name, copy(getattr(self, name)))
        return peer

    def sparsify(self):
        """Store `coef_` as a CSR matrix, which pays where more than half of it is zero.

        Returns
        -------
        self
        """
        check_is_fitted(self)
        self.coef_ = sparse.csr_matrix(self.coef_)
        return self

    def densify(self):
        """Store `coef_` as an array again.

        Returns
        -------
        self
        """
        check_is_fitted(self)
        if sparse.issparse(self.coef_):
            self.coef_ = self.coef_.toarray()
        return self


def _are_blocks(X):
    """Whether X is an iterator, or a list of blocks, where a function that makes one is expected."""
    if isinstance(X, list) and X:
        return isinstance(X[0], tuple) and len(X[0]) in (2, 3) and np.ndim(X[0][0]) == 2
    return isinstance(X, Iterator)


def _mass(X, weights):
    """Sum of the rows' weights."""
    return float(X.shape[0]) if weights is None else float(weights.sum(dtype=np.float64))


def _is_soft(y):
    """Whether y is a matrix of floats with a column per class."""
    y = np.asarray(y)
    return y.ndim == 2 and y.shape[1] > 1 and y.dtype.kind == "f"


def _attributes(problem, w, classes, dtype):
    W, b = problem.split(solvers.host(w))
    if b is None:
        b = np.zeros(W.shape[1])
    elif problem.shift_free:
        b = b - b.mean()
    return {
        "classes_": classes,
        "coef_": np.ascontiguousarray(W.T, dtype=dtype),
        "intercept_": b.astype(dtype),
    }
