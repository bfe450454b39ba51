"""Pictures in scikit-learn's Display convention: what was drawn stays in attributes, ``plot`` draws it again.

Every display has ``plot(ax=None)`` and keeps ``ax_`` and ``figure_``; class methods compute and draw at once.
One display draws one model (`BenchmarkDisplay`: one comparison); pass ``ax=`` to lay several over each other.
Matplotlib is loaded when something is drawn, never on import.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np

from . import _checks

__all__ = ["BenchmarkDisplay", "LossCurveDisplay", "ReliabilityDisplay"]

# Okabe and Ito's palette: told apart with every common form of colour blindness, and in grey by lightness.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_INK = "#444444"


def _axes(ax: Any) -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("fastxent.plots needs matplotlib: pip install 'fastxent[plots]'") from error
    return plt.subplots(layout="constrained")[1] if ax is None else ax


def _column(values: Any, name: str) -> np.ndarray:
    """Numbers of one axis, at least one of them, as float64."""
    column = _checks.floats(_checks.given(values, name), name)
    if column.ndim != 1 or not len(column):
        raise ValueError(f"{name}: expected one axis with at least one number, got shape {column.shape}")
    return column.astype(float)


def _of_equal_length(name: str, column: np.ndarray, other: np.ndarray, what: str) -> None:
    if len(column) != len(other):
        raise ValueError(f"{name}: expected one number per {what}, {len(other)}, got {len(column)}")


def _within(name: str, values: np.ndarray, inside: np.ndarray, expected: str) -> None:
    """Raise at the first number that is not `inside`."""
    if not inside.all():
        first = int(np.flatnonzero(~inside)[0])
        raise ValueError(f"{name}: expected {expected}, got {values.flat[first]:g} at index {first}")


def _mapping(values: Any, name: str, to: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise TypeError(f"{name}: expected a mapping of names to {to}, got {_checks.brief(values)}")
    return values


def _tidy(ax: Any) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, color="#E3E3E3", linewidth=0.8)
    ax.set_axisbelow(True)


def _plain_log_ticks(axis: Any) -> None:
    """Label a logarithmic axis 0.1, 0.2, 0.5, 1, ... rather than by powers, which hide the loss's size."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


class LossCurveDisplay:
    """The loss of one model against the epoch or iteration.

    Parameters
    ----------
    loss : array-like of shape (n_points,)
        Loss in nat.
    iteration : array-like of shape (n_points,), default=None
        Epoch or iteration of each point; None counts from 1.
    name : str, default=None
        Label in the legend.

    Attributes
    ----------
    line_ : matplotlib Line2D
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Raises
    ------
    TypeError, ValueError
        Not real numbers, no numbers, or another number of iterations than of losses.

    Examples
    --------
    >>> from fastxent.plots import LossCurveDisplay
    >>> LossCurveDisplay([2.3, 0.9, 0.4], name="MLP").iteration.tolist()
    [1, 2, 3]
    """

    def __init__(self, loss: Any, iteration: Any = None, *, name: str | None = None) -> None:
        self.loss = _column(loss, "loss")
        if iteration is None:
            iteration = np.arange(1, len(self.loss) + 1)
        else:
            _of_equal_length("iteration", _column(iteration, "iteration"), self.loss, "loss")
        self.iteration = np.asarray(iteration)
        self.name = name

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, name: str | None = None, ax: Any = None, **kwargs: Any
    ) -> LossCurveDisplay:
        """Draw the ``loss_curve_`` of a fitted estimator.

        Parameters
        ----------
        estimator : fitted estimator with ``loss_curve_``
        name : str, default=None
            Label; None takes the class name.
        ax : matplotlib Axes, default=None
        **kwargs : for ``Axes.plot``

        Raises
        ------
        AttributeError
            If the estimator has no ``loss_curve_``: it is not fitted, or its solver records none.
        """
        own_name = type(estimator).__name__
        if not hasattr(estimator, "loss_curve_"):
            raise AttributeError(f"{own_name} has no loss_curve_: an MLPClassifier has one once it is fitted")
        return cls(estimator.loss_curve_, name=own_name if name is None else name).plot(ax, **kwargs)

    @classmethod
    def from_predictions(
        cls,
        y_true: Any,
        staged_proba: Iterable[Any],
        *,
        labels: Any = None,
        sample_weight: Any = None,
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> LossCurveDisplay:
        """Draw the mean cross-entropy of a sequence of predictions, one per stage of the training.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
        staged_proba : iterable of array-like of shape (n_samples, n_classes)
            Probabilities after each stage, as ``staged_predict_proba`` of boosted trees gives them.
        labels : array-like of shape (n_classes,), default=None
            Needed where ``y_true`` lacks a class.
        sample_weight : array-like of shape (n_samples,), default=None
        name : str, default=None
        ax : matplotlib Axes, default=None
        **kwargs : for ``Axes.plot``
        """
        from sklearn.metrics import log_loss

        loss = [log_loss(y_true, proba, labels=labels, sample_weight=sample_weight) for proba in staged_proba]
        return cls(loss, name=name).plot(ax, **kwargs)

    def plot(self, ax: Any = None, *, name: str | None = None, **kwargs: Any) -> LossCurveDisplay:
        """Draw on ``ax`` (None: a new figure); ``kwargs`` go to ``Axes.plot``. Returns the display."""
        ax = _axes(ax)
        from matplotlib.ticker import MaxNLocator

        style = {"label": self.name if name is None else name, "linewidth": 2.0, **kwargs}
        (self.line_,) = ax.plot(self.iteration, self.loss, **style)
        ax.set(xlabel="epoch or iteration", ylabel="loss (nat)", yscale="log")
        _plain_log_ticks(ax.yaxis)
        ax.xaxis.set_major_locator(
            MaxNLocator(integer=True, steps=(1, 2, 5, 10))
        )  # there is no half an epoch
        _tidy(ax)
        if style["label"] is not None:
            ax.legend(frameon=False)
        self.ax_, self.figure_ = ax, ax.figure
        return self


class ReliabilityDisplay:
    r"""How often events of predicted probability p come true, with 95 % intervals.

    A bin b of predictions has mean probability ``prob_pred[b]`` and observed frequency ``prob_true[b]``;
    the expected calibration error is :math:`\sum_b n_b |\mathrm{true}_b - \mathrm{pred}_b| / \sum_b n_b`
    (Naeini et al., AAAI 2015; Guo et al., ICML 2017). The shaded
    band joins Wilson's score intervals (1927), bin by bin.

    Parameters
    ----------
    prob_true, prob_pred : ndarray of shape (n_bins,)
        Observed frequency and mean predicted probability of the bins that are not empty.
    count : ndarray of shape (n_bins,)
        Predictions per bin.
    name : str, default=None
        Label in the legend.

    Attributes
    ----------
    expected_calibration_error : float
    line_ : matplotlib Line2D
    band_ : matplotlib PolyCollection
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Raises
    ------
    TypeError, ValueError
        Not real numbers, lengths that differ, a frequency or probability outside [0, 1], a bin without predictions.

    Examples
    --------
    >>> from fastxent.plots import ReliabilityDisplay
    >>> display = ReliabilityDisplay([0.1, 0.7], [0.2, 0.9], [30, 10])
    >>> round(display.expected_calibration_error, 3)
    0.125
    """

    def __init__(self, prob_true: Any, prob_pred: Any, count: Any, *, name: str | None = None) -> None:
        self.prob_true = _column(prob_true, "prob_true")
        self.prob_pred = _column(prob_pred, "prob_pred")
        self.count = np.asarray(count)
        self.name = name
        counted = _column(count, "count")
        for values, of in ((self.prob_true, "prob_true"), (self.prob_pred, "prob_pred")):
            _within(of, values, (values >= 0) & (values <= 1), "numbers in [0, 1]")
        _of_equal_length("prob_pred", self.prob_pred, self.prob_true, "bin")
        _of_equal_length("count", counted, self.prob_true, "bin")
        _within("count", counted, counted > 0, "a positive number per bin")
        gap = np.abs(self.prob_true - self.prob_pred)
        self.expected_calibration_error = float(np.average(gap, weights=self.count))

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any,
        *,
        n_bins: int = 10,
        strategy: str = "uniform",
        kind: str = "classwise",
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> ReliabilityDisplay:
        """Draw the reliability of ``estimator.predict_proba(X)``; for the options see `from_predictions`."""
        return cls.from_predictions(
            y,
            estimator.predict_proba(X),
            classes=estimator.classes_,
            n_bins=n_bins,
            strategy=strategy,
            kind=kind,
            name=type(estimator).__name__ if name is None else name,
            ax=ax,
            **kwargs,
        )

    @classmethod
    def from_predictions(
        cls,
        y_true: Any,
        y_proba: Any,
        *,
        classes: Any = None,
        n_bins: int = 10,
        strategy: str = "uniform",
        kind: str = "classwise",
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> ReliabilityDisplay:
        """Draw the reliability of given probabilities.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
        y_proba : array-like of shape (n_samples,) or (n_samples, n_classes)
            One column: the probability of the last class.
        classes : array-like of shape (n_classes,), default=None
            The columns' labels; None takes the sorted labels of ``y_true``.
        n_bins : int, default=10
        strategy : {"uniform", "quantile"}, default="uniform"
            Bins of equal width, or of (nearly) equal number of predictions.
        kind : {"classwise", "top"}, default="classwise"
            With three classes or more: every class's probability against "is it that class", pooled; or only
            the largest probability against "is the prediction right". Two classes: the last one's.
        name : str, default=None
        ax : matplotlib Axes, default=None
        **kwargs : for ``Axes.plot``

        Raises
        ------
        ValueError
            Unknown option, shapes or classes that do not fit, or a value outside [0, 1].
        TypeError
            Probabilities that are no real numbers, `n_bins` that is no integer.
        """
        y_true = np.asarray(_checks.given(y_true, "y_true"))
        y_proba = _checks.floats(_checks.given(y_proba, "y_proba"), "y_proba").astype(float)
        _checks.choice(kind, "kind", ("classwise", "top"))
        _checks.choice(strategy, "strategy", ("uniform", "quantile"))
        if _checks.whole(n_bins, "n_bins") < 1:
            raise ValueError(f"n_bins: expected at least 1, got {n_bins}")
        if y_true.ndim != 1 or not len(y_true):
            raise ValueError(
                f"y_true: expected shape (n_samples,) with at least one label, got {y_true.shape}"
            )
        inside = (y_proba >= 0) & (y_proba <= 1)
        if not inside.all():
            raise ValueError(
                f"y_proba: expected probabilities in [0, 1], got {y_proba[~inside][0]:g}; "
                "of scores take the softmax or sigmoid first"
            )
        classes = np.unique(y_true) if classes is None else np.asarray(classes)
        if y_proba.ndim == 1:
            y_proba = np.column_stack((1 - y_proba, y_proba))
        if y_proba.shape != (len(y_true), len(classes)):
            raise ValueError(
                "y_proba: expected one row per label and one column per class, "
                f"{(len(y_true), len(classes))}, got {y_proba.shape}; "
                "classes= names the columns where y_true lacks a class"
            )
        if len(classes) == 2:
            probability, outcome = y_proba[:, 1], y_true == classes[1]
        elif kind == "classwise":
            probability, outcome = y_proba.ravel(), (y_true[:, None] == classes).ravel()
        else:
            probability, outcome = y_proba.max(axis=1), y_true == classes[y_proba.argmax(axis=1)]

        edges = np.linspace(0, 1, n_bins + 1)
        if strategy == "quantile":
            edges = np.quantile(probability, edges)
        index = np.searchsorted(edges[1:-1], probability, side="right")
        count = np.bincount(index, minlength=n_bins)
        filled = count > 0
        prob_true, prob_pred = (
            np.bincount(index, weights=v, minlength=n_bins)[filled] / count[filled]
            for v in (outcome, probability)
        )
        return cls(prob_true, prob_pred, count[filled], name=name).plot(ax, **kwargs)

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """The lower and upper ends of Wilson's 95 % interval of ``prob_true``, each of shape (n_bins,)."""
        z2 = 1.959963984540054**2  # squared 97.5 % point of the normal distribution
        n, p = self.count, self.prob_true
        center = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
        return center - half, center + half

    def plot(self, ax: Any = None, *, name: str | None = None, **kwargs: Any) -> ReliabilityDisplay:
        """Draw on ``ax`` (None: a new figure); ``kwargs`` go to ``Axes.plot``. Returns the display."""
        ax = _axes(ax)
        name = self.name if name is None else name
        error = f"calibration error {self.expected_calibration_error:.3f}"
        style = {
            "label": error if name is None else f"{name} ({error})",
            "marker": "o",
            "markersize": 5,
            "linewidth": 2.0,
            **kwargs,
        }
        ideal = "perfectly calibrated"
        if ideal not in ax.get_legend_handles_labels()[1]:
            ax.plot([0, 1], [0, 1], color=_INK, linestyle=":", linewidth=1.5, label=ideal, zorder=1)
        (self.line_,) = ax.plot(self.prob_pred, self.prob_true, **style)
        self.band_ = ax.fill_between(
            self.prob_pred, *self.interval(), color=self.line_.get_color(), alpha=0.13, linewidth=0, zorder=1
        )
        ax.set(
            xlim=(-0.02, 1.02),
            ylim=(-0.02, 1.02),
            xlabel="predicted probability",
            ylabel="observed frequency (shaded: 95 % interval)",
        )
        _tidy(ax)
        ax.legend(loc="best", framealpha=0.85, edgecolor="none")  # readable over a line, too
        self.ax_, self.figure_ = ax, ax.figure
        return self


class BenchmarkDisplay:
    """Times as horizontal bars: the median of the runs, a thin line from the fastest to the slowest.

    Parameters
    ----------
    seconds : mapping of str to float or sequence of float
        The runs of each competitor, in seconds, in the order to be drawn.
    baseline : mapping of str to str, default=None
        Whom a competitor is compared with; the bar's label then says how many times faster or slower it is.

    Attributes
    ----------
    median : dict of str to float
        Median seconds.
    bars_ : matplotlib BarContainer
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Raises
    ------
    TypeError, ValueError
        No mapping, an entry without runs, a time that is not positive and finite, an unknown name in `baseline`.

    Examples
    --------
    >>> from fastxent.plots import BenchmarkDisplay
    >>> BenchmarkDisplay({"ours": [0.2, 0.1, 0.4], "theirs": 1.0}, baseline={"ours": "theirs"}).median
    {'ours': 0.2, 'theirs': 1.0}
    """

    def __init__(
        self, seconds: Mapping[str, float | Sequence[float]], *, baseline: Mapping[str, str] | None = None
    ) -> None:
        self.seconds = {}
        for name, runs in _mapping(seconds, "seconds", "times").items():
            entry = f"seconds[{name!r}]"
            times = _column(np.atleast_1d(_checks.array(_checks.given(runs, entry), entry)), entry)
            _within(entry, times, (times > 0) & (times < np.inf), "positive, finite seconds")
            self.seconds[name] = times
        if not self.seconds:
            raise ValueError("seconds: expected at least one entry, got an empty mapping")
        self.median = {name: float(np.median(runs)) for name, runs in self.seconds.items()}
        self.baseline = {} if baseline is None else dict(_mapping(baseline, "baseline", "names"))
        unknown = ({*self.baseline} | {*self.baseline.values()}) - {*self.seconds}
        if unknown:
            raise ValueError(
                f"baseline: expected names among {list(self.seconds)}, got {sorted(map(str, unknown))}"
            )

    @classmethod
    def from_estimator(
        cls,
        estimators: Mapping[str, Any],
        X: Any,
        y: Any,
        *,
        repeats: int = 3,
        baseline: Mapping[str, str] | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> BenchmarkDisplay:
        """Time ``fit(X, y)`` of clones of several estimators, in turn, and draw the result.

        Parameters
        ----------
        estimators : mapping of str to estimator
        X, y : the training data
        repeats : int, default=3
            Timed rounds, after one that is not timed; in each round every estimator has one turn, so that a
            noisy moment of the machine hits all.
        baseline : mapping of str to str, default=None
        ax : matplotlib Axes, default=None
        **kwargs : for ``Axes.barh``

        Raises
        ------
        TypeError, ValueError
            No mapping, no estimator, fewer than one round.
        """
        from sklearn.base import clone

        if _checks.whole(repeats, "repeats") < 1:
            raise ValueError(f"repeats: expected at least 1, got {repeats}")
        seconds: dict[str, list[float]] = {
            name: [] for name in _mapping(estimators, "estimators", "estimators")
        }
        for _ in range(repeats + 1):
            for name, estimator in estimators.items():
                candidate = clone(estimator)
                start = perf_counter()
                candidate.fit(X, y)
                seconds[name].append(perf_counter() - start)
        return cls({name: runs[1:] for name, runs in seconds.items()}, baseline=baseline).plot(ax, **kwargs)

    def label(self, name: str) -> str:
        """What stands at the end of a bar, such as ``"200 ms, 5.0× faster"``."""
        text = format_seconds(self.median[name])
        if name not in self.baseline:
            return text
        ratio = self.median[self.baseline[name]] / self.median[name]
        if 1 / 1.05 < ratio < 1.05:
            return f"{text}, equally fast"
        return f"{text}, {ratio:.1f}× faster" if ratio >= 1 else f"{text}, {1 / ratio:.1f}× slower"

    def plot(self, ax: Any = None, **kwargs: Any) -> BenchmarkDisplay:
        """Draw on ``ax`` (None: a new figure); ``kwargs`` go to ``Axes.barh``. Returns the display."""
        ax = _axes(ax)
        names = list(self.seconds)
        median = np.array([self.median[name] for name in names])
        spread = [[abs(self.median[n] - end(self.seconds[n])) for n in names] for end in (np.min, np.max)]
        against = {*self.baseline.values()}
        style = {
            "color": [COLORS[1] if name in against else COLORS[0] for name in names],
            "height": 0.65,
            "xerr": spread,
            "error_kw": {"ecolor": _INK, "elinewidth": 1},
            **kwargs,
        }
        self.bars_ = ax.barh(names, median, **style)
        ends = [self.seconds[name].max() for name in names]
        for row, (name, end) in enumerate(zip(names, ends, strict=True)):
            ax.annotate(
                self.label(name),
                (end, row),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                color=_INK,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},  # over the grid
            )
        # Room for the labels, which start at the end of the bar.
        ax.set(xlim=(0, 1.65 * max(ends)), xlabel="seconds")
        ax.invert_yaxis()
        _tidy(ax)
        ax.grid(False, axis="y")
        ax.tick_params(axis="y", length=0)
        self.ax_, self.figure_ = ax, ax.figure
        return self


def format_seconds(seconds: float) -> str:
    """A time for people: two or three digits, in s, ms or µs.

    >>> [format_seconds(t) for t in (83.21, 1.234, 0.0456, 7.8e-6)]
    ['83.2 s', '1.23 s', '45.6 ms', '7.80 µs']
    """
    factor, unit = (1, "s") if seconds >= 1 else (1e3, "ms") if seconds >= 1e-3 else (1e6, "µs")
    value = float(f"{seconds * factor:.3g}")  # rounded first: 99.96 is to read 100, not 100.0
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
