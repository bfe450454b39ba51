"""Logistic regression with scikit-learn's interface on the fused linear cross-entropy.

An estimator is objective x loss x solver: `_Problem` holds the penalized mean loss as functions of one flat
float64 vector, `solvers` minimizes it, and `LogisticRegression` translates between people and that.
"""

from __future__ import annotations

import math
import warnings
from numbers import Integral, Real

import numpy as np
from scipy import linalg, sparse, special
from sklearn.base import BaseEstimator, ClassifierMixin, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array, check_consistent_length
from sklearn.utils._param_validation import Hidden, Interval, StrOptions
from sklearn.utils.extmath import safe_sparse_dot
from sklearn.utils.validation import check_is_fitted, validate_data

from . import _backend, linear, solvers
from ._estimator import (
    CallbackSupportMixin,
    FitTasks,
    check_sample_weight,
    class_weight_vector,
    encode_labels,
    row_weights,
)
from ._files import SaveMixin
from .losses import resolve

__all__ = ["LogisticRegression"]

_SOLVERS = ("auto", "lbfgs", "liblinear", "newton-cg", "newton-cholesky", "sag", "saga")
_NEWTON_WORK = 4_000_000  # rows x parameters² up to which Hessians cost less than the passes they save
_MOMENT_ROWS = 16  # per feature: so many give a preconditioner as good as all
_FACTOR_FEATURES = 2000  # features up to which the preconditioner's factor, O(features³), pays
# Evaluations to tol=1e-4 on 6000 rows of MNIST: 120 without, 103 at 1/2, 55 at 0.1, 44 at 0.03, 40 at 0.01.
_CURVATURE = 0.02


class _Problem:
    """The penalized mean loss and its derivatives as functions of w: W (d, K) row by row, then b (K,).

    f(w) = (sum of weighted losses) / mass + strength · ((1 - l1_ratio) / 2 · Σ W² + l1_ratio · Σ |W|)

    The derivatives and `value_and_grad` leave the absolute values to the solver, which takes their weights,
    `l1`.

    Parameters
    ----------
    objective : `linear.LinearObjective`
    team : entered `linear.Team`
    mass : float
        Sum of the weights.
    strength : float
        1 / (C · mass).
    l1_ratio : float
    fit_intercept : bool
    intercept_share : float
        What is penalized of the intercept: 0, or with LIBLINEAR's synthetic feature 1 / intercept_scaling.

    Attributes
    ----------
    shift_free : bool
        Whether adding one number to all of b changes nothing, as softmax allows: then b is kept with mean 0.
    """

    def __init__(self, objective, team, mass, strength, l1_ratio, fit_intercept, intercept_share):
        self.objective, self.team, self.mass, self.fit_intercept = objective, team, mass, fit_intercept
        self.shift_free = objective.shape[1] > 1 and objective.rows.shift_free
        self.penalty = strength * (1 - l1_ratio)
        self.intercept_penalty = self.penalty * intercept_share**2
        self.shape = objective.shape
        self.size = math.prod(self.shape) + (self.shape[1] if fit_intercept else 0)
        self.l1 = None
        if strength * l1_ratio > 0:
            self.l1 = np.full(self.size, strength * l1_ratio)
            self.l1[math.prod(self.shape) :] *= intercept_share

    def split(self, w):
        """Views of W and b (None without intercept)."""
        d, k = self.shape
        return w[: d * k].reshape(d, k), w[d * k :] if self.fit_intercept else None

    def join(self, W, b):
        """The vector of W and b."""
        return np.concatenate([np.ravel(W), b]) if self.fit_intercept else np.ravel(W).astype(np.float64)

    def value_and_grad(self, w):
        W, b = self.split(w)
        total, dW, db = self.objective.loss_grad(W, b, self.team)
        value = total / self.mass
        grad = np.empty(self.size)
        gW, gb = self.split(grad)
        np.multiply(dW, 1 / self.mass, out=gW)
        if self.penalty:
            value += 0.5 * self.penalty * float(np.vdot(W, W))
            gW += self.penalty * W
        if b is not None:
            np.multiply(db, 1 / self.mass, out=gb)
            if self.intercept_penalty:
                value += 0.5 * self.intercept_penalty * float(b @ b)
                gb += self.intercept_penalty * b
        return value, grad

    def hvp(self, w, v):
        W, b = self.split(w)
        V, c = self.split(v)
        HW, Hb = self.objective.hvp(W, b, V, c, self.team)
        HW = HW / self.mass + self.penalty * V
        Hb /= self.mass
        if self.intercept_penalty and c is not None:
            Hb += self.intercept_penalty * c
        return self.join(HW, Hb)

    def hessian(self, w):
        W, b = self.split(w)
        d, k = self.shape
        H = self.objective.hessian(W, b, self.team) / self.mass
        diagonal = np.einsum("ii->i", H)
        diagonal[: d * k] += self.penalty
        diagonal[d * k :] += self.intercept_penalty
        if self.shift_free:
            # Softmax ignores a shift of all outputs, so H is singular along it where nothing is penalized.
            # The gradient has no part along that shift: whatever curvature it gets here, no step takes it.
            shift = np.full((k, k), 1 / k)
            for at in range(0 if self.penalty == 0 else d * k, self.size, k):
                H[at : at + k, at : at + k] += shift * diagonal[at : at + k].max()
        return H

    def preconditioner(self):
        """P⁻¹ as a function of a gradient, P the same matrix for every output, or its diagonal for sparse or wide X.

        P = curvature · (moment matrix of X and the intercept) + penalty, which Böhning (Multinomial logistic
        regression algorithm, Ann. Inst. Statist. Math. 44, 1992) shows to bound the Hessian at curvature 1/2
        (1/4 for one output).  A bound is not what conditions best, so `_CURVATURE` is smaller.
        """
        d, k = self.shape
        if linear._is_sparse(self.objective.X) or d > _FACTOR_FEATURES:
            squares = self.objective.squares()[: d + self.fit_intercept]
            diagonal = squares * (_CURVATURE / self.mass) + self.penalty
            if self.fit_intercept:
                diagonal[d] += self.intercept_penalty - self.penalty
            diagonal += 1e-10 * diagonal.max()
            inverse = np.repeat(1 / diagonal, k)
            return lambda g: inverse * g
        moment = self.objective.moment(self.team, _MOMENT_ROWS * (d + 1))
        if not self.fit_intercept:
            moment = moment[:d, :d]
        P = moment * (_CURVATURE / self.mass)
        diagonal = np.einsum("ii->i", P)
        diagonal[:d] += self.penalty
        diagonal[d:] += self.intercept_penalty
        diagonal += 1e-10 * diagonal.max()
        try:
            factor = linalg.cholesky(P, lower=True, check_finite=False)
        except linalg.LinAlgError:
            return None
        inverse = linalg.solve_triangular(factor, np.eye(len(P)), lower=True, check_finite=False)
        inverse = inverse.astype(self.objective.dtype, copy=False)

        def apply(g):
            G = g.reshape(len(inverse), k).astype(inverse.dtype, copy=False)
            return (inverse.T @ (inverse @ G)).ravel().astype(np.float64, copy=False)

        return apply


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
        preconditioned L-BFGS.  "lbfgs", "newton-cg" and "newton-cholesky" name one; "sag" and "saga" solve
        the same problem as "auto", "liblinear" that of LIBLINEAR (two classes, penalized intercept).
    max_iter : int, default=100
    verbose : int, default=0
        1 prints the outcome, 2 every iteration.
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
    backend : {"auto", "cpu", "numpy"} or None, default=None

    Attributes
    ----------
    classes_ : ndarray (n_classes,)
    coef_ : ndarray or CSR (1, n_features) for two classes, else (n_classes, n_features)
    intercept_ : ndarray (1,) or (n_classes,)
    n_iter_ : ndarray (1,), int32
    n_features_in_ : int
    feature_names_in_ : ndarray (n_features_in_,), where X has names
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
    def fit(self, X, y, sample_weight=None):
        """Fit the model.

        Parameters
        ----------
        X : array-like or CSR matrix (n_samples, n_features)
            float32 and float64 are kept, in C or F order, without a copy.
        y : array-like (n_samples,), or float matrix (n_samples, n_classes)
            Labels of any kind, or probabilities of the classes 0 to n_classes - 1, whose rows sum to 1.
        sample_weight : None or array-like (n_samples,)
            Weight k is k repeats, weight 0 is removal.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For parameters that do not go together, invalid data, or fewer than two classes.
        """
        C, l1_ratio = self._penalty()
        X, y = self._validated(X, y)
        dtype = X.dtype
        weights = check_sample_weight(sample_weight, X.shape[0], dtype)
        classes, targets, weights = self._targets(y, weights, dtype)
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
        mass = float(X.shape[0]) if weights is None else float(weights.sum(dtype=np.float64))
        objective = linear.LinearObjective(X, self._rows(targets, len(classes), weights, dtype), dtype)
        intercept_share = 1.0 / self.intercept_scaling if self.solver == "liblinear" else 0.0
        with linear.Team(objective, self.num_threads) as team:
            options = (1.0 / (C * mass), l1_ratio, self.fit_intercept, intercept_share)
            problem = _Problem(objective, team, mass, *options)
            start = self._start(problem)
            tasks = FitTasks(self, self.max_iter, "iteration", X, y, sample_weight)
            outcome = self._minimize(problem, start, tasks, classes, dtype)
        self._keep(problem, outcome.x, classes, dtype)
        tasks.close()
        self.n_iter_ = np.array([outcome.n_iter], dtype=np.int32)
        self.opt_result_ = outcome
        if self.verbose:
            print(f"LogisticRegression: {outcome.message}")
        if outcome.status not in ("converged", "stopped"):
            warnings.warn(
                f"{self.solver} failed to converge after {outcome.n_iter} iteration(s) (status={outcome.status}):\n"
                f"{outcome.message}.",
                ConvergenceWarning,
                stacklevel=3,
            )
        return self

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
            raise ValueError(f"Solver {solver} supports only 'l2' or None penalties, got {penalty} penalty.")
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

    def _validated(self, X, y):
        options = {"accept_sparse": "csr", "dtype": [np.float64, np.float32]}
        if not _is_soft(y):
            return validate_data(self, X, y, **options)
        X = validate_data(self, X, **options)
        y = check_array(y, dtype=X.dtype, input_name="y")
        check_consistent_length(X, y)
        sums = y.sum(axis=1)
        wrong = (y < 0).any(axis=1) | (abs(sums - 1) > 1e-5)
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(
                f"y[{row}] is {y[row]}, expected probabilities (>= 0, summing to 1): a matrix y holds soft labels."
            )
        return X, y

    def _targets(self, y, weights, dtype):
        """Classes, targets as integers or probabilities, and the weights of the rows or None."""
        if y.ndim == 2:
            if self.class_weight is not None:
                raise ValueError(
                    "class_weight: expected None for a matrix y of soft labels, which have no one class."
                )
            return np.arange(y.shape[1]), y, weights
        classes, codes = encode_labels(y, weights)
        per_class = class_weight_vector(self.class_weight, classes, codes, weights)
        return classes, codes, row_weights(weights, per_class, codes, dtype)

    def _rows(self, targets, n_classes, weights, dtype):
        core = _backend.choose(self.backend)
        binary = n_classes == 2
        if self.loss is not None:
            loss = resolve(self.loss)
            if getattr(loss, "elementwise", False):
                raise ValueError(f"loss: expected a loss of the softmax family, got the elementwise {loss!r}")
            if self.label_smoothing:
                raise ValueError(
                    "label_smoothing: expected 0 beside a loss object, which has options of its own."
                )
            return linear.LossRows(loss, targets, n_classes, weights, binary, self.backend)
        column = None if weights is None else weights[:, None]
        if binary:
            positive = targets[:, 1] if targets.ndim == 2 else targets
            return linear.SigmoidRows(core, positive.astype(dtype), weights, self.label_smoothing)
        targets = targets[:, :, None] if targets.ndim == 2 else targets[:, None]
        return linear.SoftmaxRows(core, targets, n_classes, column, label_smoothing=self.label_smoothing)

    def _start(self, problem):
        d, k = problem.shape
        if not (self.warm_start and hasattr(self, "coef_")):
            return np.zeros(problem.size)
        coef = self.coef_.toarray() if sparse.issparse(self.coef_) else self.coef_
        if coef.shape != (k, d):
            raise ValueError(f"Initialization coef is of shape {coef.shape}, expected shape {(k, d)}")
        return problem.join(coef.T, self.intercept_)

    def _minimize(self, problem, start, tasks, classes, dtype):
        def callback(iterate):
            if self.verbose > 1:
                value, gradient = f"objective {iterate.fun:.8g}", f"max |gradient| {iterate.grad_max:.3g}"
                print(f"LogisticRegression: iteration {iterate.n_iter}, {value}, {gradient}")
            return tasks.end_iteration(lambda: _attributes(problem, iterate.x, classes, dtype))

        options = {
            "tol": self.tol,
            "max_iter": self.max_iter,
            "precision": float(np.finfo(dtype).eps),
            "callback": callback if tasks.listening or self.verbose > 1 else None,
        }
        solver = self.solver
        if solver not in ("lbfgs", "newton-cg", "newton-cholesky"):
            work = problem.objective.X.shape[0] * problem.size**2
            few = work <= _NEWTON_WORK and not linear._is_sparse(problem.objective.X)
            solver = "newton-cholesky" if few and self.loss is None else "lbfgs"
        if problem.l1 is not None:
            # The preconditioner turns the direction across the orthants' walls: with it, 1310 iterations
            # instead of 83.
            return solvers.owlqn(problem.value_and_grad, problem.l1, start, memory=20, **options)
        if solver == "newton-cholesky":
            return solvers.newton(problem.value_and_grad, problem.hessian, start, **options)
        options["precondition"] = problem.preconditioner()
        if solver == "newton-cg":
            return solvers.newton_cg(problem.value_and_grad, problem.hvp, start, **options)
        # At W = 0 the Hessian is the moment matrix times 1/4 for one output, 1/K for more.
        first_step = _CURVATURE * (4 if problem.shape[1] == 1 else problem.shape[1])
        return solvers.lbfgs(problem.value_and_grad, start, memory=20, first_step=first_step, **options)

    def _keep(self, problem, w, classes, dtype):
        for name, value in _attributes(problem, w, classes, dtype).items():
            setattr(self, name, value)

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


def _is_soft(y):
    """Whether y is a matrix of floats with a column per class."""
    y = np.asarray(y)
    return y.ndim == 2 and y.shape[1] > 1 and y.dtype.kind == "f"


def _attributes(problem, w, classes, dtype):
    W, b = problem.split(w)
    if b is None:
        b = np.zeros(W.shape[1])
    elif problem.shift_free:
        b = b - b.mean()
    return {
        "classes_": classes,
        "coef_": np.ascontiguousarray(W.T, dtype=dtype),
        "intercept_": b.astype(dtype),
    }
