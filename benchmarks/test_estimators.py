"""Every training of `fastxent._bench`: our classifiers beside scikit-learn's, the network beside PyTorch's too."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest

from fastxent import _bench

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def data(folder):
    """Features and labels by name, the latest kept."""
    return lru_cache(maxsize=1)(lambda name, small: _bench.load_fit_data(name, small=small, folder=folder))


@pytest.mark.parametrize("fit", _bench.fits(), ids=lambda fit: fit.name)
def test_fit(fit, data, timed, benchmark):
    if not timed and fit.data != "digits":
        pytest.skip("the small run needs no more than the digits")
    try:
        X, y = data(fit.data, not timed)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    estimator = _bench.prepare_fit(fit, small=not timed)
    benchmark.group = fit.group
    rounds = {"rounds": 3 if len(y) > 10_000 else 7, "warmup_rounds": len(y) <= 10_000} if timed else {}
    with _bench.limited(estimator, fit.threads):
        fitted = benchmark.pedantic(estimator.fit, (X, y), **rounds)
    row = _bench.quality(fit, fitted, X, y)
    benchmark.extra_info.update(row)
    if fit.model == "LogisticRegression":
        assert row["iterations"] < 1000
    else:
        assert fitted.n_iter_ == _bench.EPOCHS


def test_curves(timed, tmp_path, monkeypatch):
    """The script of the objective-against-time curves, on its smallest problem."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import curves

    if timed:
        pytest.skip("benchmarks/curves.py keeps its own time")
    points, best = curves.measure(curves.PROBLEMS["iris"](), rounds=1)
    ours = points["fastxent auto"]
    assert ours[-1].value == pytest.approx(best, rel=1e-8)
    assert all(point.value >= best for line in points.values() for point in line)
    assert curves.table("iris", points, best).count("\n") == 4 + sum(map(len, points.values()))
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    curves.picture({"iris": (points, best)}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
