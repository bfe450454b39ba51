"""The displays: what they compute, what they draw, and that drawing is all that loads matplotlib."""

from __future__ import annotations

import numpy as np
import pytest
from fresh import printed
from sklearn.datasets import load_iris
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from fastxent.plots import BenchmarkDisplay, LossCurveDisplay, ReliabilityDisplay, format_seconds

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    return X, y, LogisticRegression(max_iter=500).fit(X, y)


def test_importing_the_module_leaves_matplotlib_alone():
    code = "import sys, fastxent.plots; print('matplotlib' in sys.modules)"
    assert printed(code) == "False"


def drawn(display):
    """Render the figure, and check the attributes that every display has."""
    assert display.ax_.figure is display.figure_
    display.figure_.canvas.draw()
    return display


class TestLossCurve:
    def test_from_estimator(self):
        estimator = DummyClassifier()
        estimator.loss_curve_ = [2.0, 1.0, 0.5]
        display = drawn(LossCurveDisplay.from_estimator(estimator))
        np.testing.assert_array_equal(display.line_.get_xydata(), [[1, 2.0], [2, 1.0], [3, 0.5]])
        assert display.ax_.get_legend().get_texts()[0].get_text() == "DummyClassifier"
        assert "nat" in display.ax_.get_ylabel()

    def test_an_estimator_without_a_curve_is_an_error(self):
        with pytest.raises(AttributeError, match="DummyClassifier has no loss_curve_"):
            LossCurveDisplay.from_estimator(DummyClassifier())

    def test_from_predictions(self, iris):
        X, y, model = iris
        stages = [np.full((len(y), 3), 1 / 3), model.predict_proba(X)]
        display = drawn(LossCurveDisplay.from_predictions(y, stages))
        np.testing.assert_allclose(display.loss, [np.log(3), log_loss(y, stages[1])])

    def test_two_on_one_axes(self):
        first = LossCurveDisplay([1, 0.5], name="a").plot()
        second = LossCurveDisplay([1, 0.4], [10, 20], name="b").plot(first.ax_, color="red")
        assert second.ax_ is first.ax_
        assert len(first.ax_.lines) == 2
        assert second.line_.get_color() == "red"

    def test_epochs_are_whole_numbers(self):
        display = drawn(LossCurveDisplay([2.0, 1.0, 0.5, 0.4, 0.3]).plot())
        ticks = display.ax_.get_xticks()
        np.testing.assert_array_equal(ticks, ticks.round())

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (([1, 2], [1, 2, 3]), ValueError, "^iteration: expected one number per loss, 2, got 3$"),
            (
                ([1, 2], ["a", "b"]),
                TypeError,
                "^iteration: expected float32.*text must be turned into numbers",
            ),
            (("abc",), TypeError, "^loss: expected float32.*text must be turned into numbers"),
            ((None,), TypeError, "^loss: expected an array-like, got None"),
            ((0.5,), ValueError, r"^loss: expected one axis with at least one number, got shape \(\)"),
            (([],), ValueError, r"^loss: expected one axis with at least one number, got shape \(0,\)"),
            (([[0.5, 0.4]],), ValueError, r"^loss: expected one axis.*got shape \(1, 2\)"),
        ],
    )
    def test_errors(self, arguments, error, message):
        with pytest.raises(error, match=message):
            LossCurveDisplay(*arguments)


class TestReliability:
    def test_by_hand(self):
        # Bins [0, .5) and [.5, 1]: means .2 and .8, frequencies 1/2 and 2/3.
        display = drawn(
            ReliabilityDisplay.from_predictions(
                [0, 1, 1, 0, 1], [0.1, 0.3, 0.7, 0.8, 0.9], n_bins=2, name="hand"
            )
        )
        np.testing.assert_allclose(display.prob_pred, [0.2, 0.8])
        np.testing.assert_allclose(display.prob_true, [1 / 2, 2 / 3])
        np.testing.assert_array_equal(display.count, [2, 3])
        assert display.expected_calibration_error == pytest.approx((2 * 0.3 + 3 * (0.8 - 2 / 3)) / 5)

    def test_every_prediction_is_counted_once(self, iris):
        X, y, model = iris
        assert ReliabilityDisplay.from_estimator(model, X, y).count.sum() == 3 * len(y)
        assert ReliabilityDisplay.from_estimator(model, X, y, kind="top").count.sum() == len(y)
        quantile = ReliabilityDisplay.from_estimator(model, X, y, kind="top", strategy="quantile", n_bins=5)
        assert quantile.count.sum() == len(y)
        assert np.ptp(quantile.count) <= 2  # an edge is interpolated, so a neighbour may fall on either side

    def test_top_is_confidence_against_accuracy(self, iris):
        X, y, model = iris
        display = ReliabilityDisplay.from_estimator(model, X, y, kind="top", n_bins=1)
        assert display.prob_true.item() == pytest.approx(model.score(X, y))
        assert display.prob_pred.item() == pytest.approx(model.predict_proba(X).max(axis=1).mean())

    def test_string_labels(self):
        proba = [[0.9, 0.1], [0.2, 0.8]]
        display = ReliabilityDisplay.from_predictions(["no", "yes"], proba, n_bins=2)
        np.testing.assert_allclose(display.prob_true, [0, 1])

    def test_wilson_interval(self):
        # Agresti and Coull (1998): 0 of 10 and 5 of 10 at 95 %.
        low, high = ReliabilityDisplay([0.0, 0.5], [0.1, 0.5], [10, 10]).interval()
        np.testing.assert_allclose(low, [0, 0.2366], atol=5e-5)
        np.testing.assert_allclose(high, [0.2775, 0.7634], atol=5e-5)

    def test_the_diagonal_is_drawn_once(self, iris):
        X, y, model = iris
        first = ReliabilityDisplay.from_estimator(model, X, y, name="first")
        ReliabilityDisplay.from_estimator(model, X, y, name="second", ax=first.ax_)
        labels = [text.get_text() for text in first.ax_.get_legend().get_texts()]
        assert labels.count("perfectly calibrated") == 1
        assert len(labels) == 3

    @pytest.mark.parametrize(
        ("proba", "options", "message"),
        [
            (
                [0.1, 1.2],
                {},
                r"^y_proba: expected probabilities in \[0, 1\], got 1\.2; of scores take the softmax",
            ),
            ([0.1, np.nan], {}, r"^y_proba: expected probabilities in \[0, 1\], got nan"),
            ([0.1, 0.2, 0.3], {}, r"^y_proba: .* one column per class, \(2, 2\), got \(3, 2\)"),
            ([0.1, 0.2], {"kind": "topp"}, "^kind: expected one of .* did you mean 'top'"),
            (
                [0.1, 0.2],
                {"strategy": "even"},
                "^strategy: expected one of 'uniform', 'quantile', got 'even'",
            ),
            ([0.1, 0.2], {"n_bins": 0}, "^n_bins: expected at least 1, got 0"),
        ],
    )
    def test_errors(self, proba, options, message):
        with pytest.raises(ValueError, match=message):
            ReliabilityDisplay.from_predictions([0, 1], proba, **options)

    def test_errors_of_type(self):
        with pytest.raises(TypeError, match=r"^n_bins: expected an integer, got 2\.5"):
            ReliabilityDisplay.from_predictions([0, 1], [0.1, 0.2], n_bins=2.5)
        with pytest.raises(TypeError, match=r"^y_proba: expected float32.*text must be turned into numbers"):
            ReliabilityDisplay.from_predictions([0, 1], ["a", "b"])
        with pytest.raises(ValueError, match=r"^y_true: expected shape \(n_samples,\).*got \(0,\)"):
            ReliabilityDisplay.from_predictions([], [])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (([0.1, 0.2], [0.1], [3, 4]), "^prob_pred: expected one number per bin, 2, got 1"),
            (([0.1, 0.2], [0.1, 0.2], [3]), "^count: expected one number per bin, 2, got 1"),
            (([0.1, 2.0], [0.1, 0.2], [3, 4]), r"^prob_true: expected numbers in \[0, 1\], got 2 at index 1"),
            (
                ([0.1, 0.2], [0.1, 0.2], [3, 0]),
                "^count: expected a positive number per bin, got 0 at index 1",
            ),
        ],
    )
    def test_bins_that_do_not_fit(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            ReliabilityDisplay(*arguments)


class TestBenchmark:
    def test_bars_and_labels(self):
        display = drawn(
            BenchmarkDisplay(
                {"ours": [0.2, 0.1, 0.4], "theirs": 1.0, "twin": 0.99},
                baseline={"ours": "theirs", "twin": "theirs"},
            ).plot()
        )
        assert [bar.get_width() for bar in display.bars_] == [0.2, 1.0, 0.99]
        assert [text.get_text() for text in display.ax_.texts] == [
            "200 ms, 5.0× faster",
            "1.00 s",
            "990 ms, equally fast",
        ]
        assert "seconds" in display.ax_.get_xlabel()

    def test_a_slower_one_says_so(self):
        assert BenchmarkDisplay({"a": 3.0, "b": 1.5}, baseline={"a": "b"}).label("a") == "3.00 s, 2.0× slower"

    def test_from_estimator_times_fits(self, iris):
        X, y, _ = iris
        display = BenchmarkDisplay.from_estimator(
            {"a": DummyClassifier(), "b": LogisticRegression(max_iter=500)}, X, y, repeats=2
        )
        assert {name: len(runs) for name, runs in display.seconds.items()} == {"a": 2, "b": 2}
        assert min(display.median.values()) > 0

    @pytest.mark.parametrize(
        ("seconds", "baseline", "error", "message"),
        [
            ({"a": 1.0}, {"a": "c"}, ValueError, r"^baseline: expected names among \['a'\], got \['c'\]"),
            ({"a": 1.0}, "a", TypeError, "^baseline: expected a mapping of names to names, got 'a'"),
            ({}, None, ValueError, "^seconds: expected at least one entry"),
            ([1.0, 2.0], None, TypeError, "^seconds: expected a mapping of names to times"),
            ({"a": []}, None, ValueError, r"^seconds\['a'\]: expected one axis with at least one number"),
            ({"a": None}, None, TypeError, r"^seconds\['a'\]: expected an array-like, got None"),
            ({"a": "1 s"}, None, TypeError, r"^seconds\['a'\]: .*text must be turned into numbers"),
            ({"a": [1.0, -1.0]}, None, ValueError, r"^seconds\['a'\]: .* got -1 at index 1"),
            ({"a": [1.0, np.nan]}, None, ValueError, r"^seconds\['a'\]: .* got nan at index 1"),
        ],
    )
    def test_errors(self, seconds, baseline, error, message):
        with pytest.raises(error, match=message):
            BenchmarkDisplay(seconds, baseline=baseline)

    def test_errors_of_from_estimator(self):
        with pytest.raises(TypeError, match=r"^estimators: expected a mapping of names to estimators"):
            BenchmarkDisplay.from_estimator([DummyClassifier()], [[0.0]], [0])
        with pytest.raises(ValueError, match=r"^repeats: expected at least 1, got 0"):
            BenchmarkDisplay.from_estimator({"a": DummyClassifier()}, [[0.0]], [0], repeats=0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (83.21, "83.2 s"),
        (123.4, "123 s"),
        (1.0, "1.00 s"),
        (0.0456, "45.6 ms"),
        (7.8e-6, "7.80 µs"),
        (0.09996, "100 ms"),
    ],
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text
