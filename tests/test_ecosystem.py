"""The estimators inside scikit-learn's tools and beside its neighbours: search, calibration, frames, routing, files."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression as SklearnLogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict, cross_validate
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neural_network import MLPClassifier as SklearnMLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import fastxent as fx

X, CODES = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])[CODES]
COLUMNS = ["sepal length", "sepal width", "petal length", "petal width"]
FOLDS = StratifiedKFold(3, shuffle=True, random_state=0)


def logistic(**options):
    return fx.LogisticRegression(**options)


def network(**options):
    return fx.MLPClassifier((8,), solver="lbfgs", max_iter=500, random_state=0, **options)


both = pytest.mark.parametrize("make", [logistic, network])


# -------------------------------------------------------------------------------------------------------- scikit-learn


@both
def test_pipeline_and_grid_search(make):
    """A grid over the loss object and the penalty, refitted and scored, in parallel processes."""
    strength = "C" if make is logistic else "alpha"
    name = type(make()).__name__.lower()
    pipeline = make_pipeline(StandardScaler(), make())
    grid = {
        f"{name}__loss": [None, "focal", fx.GeneralizedCrossEntropy(r=0.3)],
        f"{name}__{strength}": [0.1, 1.0],
    }
    search = GridSearchCV(pipeline, grid, scoring="neg_log_loss", cv=FOLDS, n_jobs=2, error_score="raise")
    search.fit(X, NAMES)
    assert len(search.cv_results_["params"]) == 6
    assert search.best_score_ > -0.3
    assert search.best_estimator_.score(X, NAMES) > 0.9
    assert list(search.classes_) == ["setosa", "versicolor", "virginica"]


@both
def test_cross_validation(make):
    pipeline = make_pipeline(StandardScaler(), make())
    scores = cross_validate(
        pipeline,
        X,
        NAMES,
        cv=FOLDS,
        scoring=["accuracy", "roc_auc_ovr", "neg_log_loss"],
        return_estimator=True,
    )
    assert scores["test_accuracy"].mean() > 0.9
    assert scores["test_roc_auc_ovr"].mean() > 0.98
    p = cross_val_predict(pipeline, X, NAMES, cv=FOLDS, method="predict_proba")
    assert log_loss(NAMES, p) == pytest.approx(-scores["test_neg_log_loss"].mean())


@pytest.mark.parametrize("method", ["sigmoid", "isotonic", "temperature"])
@both
def test_calibrated_classifier(make, method):
    if method == "temperature":
        pytest.importorskip("sklearn", minversion="1.8", reason="CalibratedClassifierCV learned this in 1.8")
    calibrated = CalibratedClassifierCV(make_pipeline(StandardScaler(), make()), method=method, cv=FOLDS)
    p = calibrated.fit(X, NAMES).predict_proba(X)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert calibrated.score(X, NAMES) > 0.9


@both
def test_one_versus_rest(make):
    model = OneVsRestClassifier(make_pipeline(StandardScaler(), make())).fit(X, NAMES)
    assert model.score(X, NAMES) > 0.9


def test_logistic_regression_takes_scikit_learns_place_in_a_search():
    """The same grid gives the same scores, to rounding."""
    grid = {"C": [0.01, 0.1, 1.0, 10.0]}
    results = []
    for model in (fx.LogisticRegression(tol=1e-8), SklearnLogisticRegression(tol=1e-8, max_iter=1000)):
        search = GridSearchCV(model, grid, scoring="neg_log_loss", cv=FOLDS).fit(
            StandardScaler().fit_transform(X), NAMES
        )
        results.append(search)
    ours, theirs = results
    assert ours.best_params_ == theirs.best_params_
    np.testing.assert_allclose(
        ours.cv_results_["mean_test_score"], theirs.cv_results_["mean_test_score"], rtol=1e-5
    )


# -------------------------------------------------------------------------------------------------------------- frames


def frames():
    """Constructors of a data frame from a matrix, for each library that is there."""
    return [
        pytest.param(name, marks=pytest.mark.skipif(not _is_there(name), reason=f"{name} is not installed"))
        for name in ("pandas", "polars")
    ]


def _is_there(name):
    import importlib.util

    return importlib.util.find_spec(name) is not None


def frame_of(library, values, columns=COLUMNS):
    module = pytest.importorskip(library)
    if library == "pandas":
        return module.DataFrame(values, columns=columns)
    return module.DataFrame(values, schema=columns)


def series_of(library, values):
    module = pytest.importorskip(library)
    return module.Series(values.tolist())


@pytest.mark.parametrize("library", frames())
@both
def test_frames(make, library):
    """Frames and series instead of arrays: the same model, with the names of its features."""
    frame, labels = frame_of(library, X), series_of(library, NAMES)
    model = make().fit(frame, labels)
    assert list(model.feature_names_in_) == COLUMNS
    expected = make().fit(X, NAMES)
    # Frames lie column by column, so the products round differently.
    np.testing.assert_allclose(model.predict_proba(frame), expected.predict_proba(X), rtol=1e-6, atol=1e-12)
    assert model.classes_.tolist() == expected.classes_.tolist()
    assert model.score(frame, labels) > 0.9
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame_of(library, X, [*COLUMNS[:3], "colour"]))
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        model.predict(X)
    weights = series_of(library, np.arange(150) / 150 + 0.5)
    weighted = make().fit(frame, labels, sample_weight=weights)
    again = make().fit(X, NAMES, sample_weight=np.arange(150) / 150 + 0.5)
    np.testing.assert_allclose(weighted.predict_proba(frame), again.predict_proba(X), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("library", frames())
@both
def test_transform_output(make, library):
    """`set_config(transform_output=...)`: the classifier gets frames from the steps before it, and names with them."""
    colour = np.array(["red", "blue"])[np.arange(150) % 2]
    module = pytest.importorskip(library)
    frame = module.DataFrame({**dict(zip(COLUMNS, X.T, strict=True)), "colour": colour})
    steps = make_column_transformer(
        (StandardScaler(), COLUMNS),
        (OneHotEncoder(sparse_output=False), ["colour"]),
        verbose_feature_names_out=False,
    )
    with config_context(transform_output=library):
        pipeline = make_pipeline(steps, make()).fit(frame, NAMES)
        assert pipeline.score(frame, NAMES) > 0.9
    assert list(pipeline[-1].feature_names_in_) == [*COLUMNS, "colour_blue", "colour_red"]


@pytest.mark.parametrize("library", frames())
def test_temperature_scaling_transforms_into_frames(library):
    scores = fx.LogisticRegression().fit(X, CODES).decision_function(X)
    scaling = fx.TemperatureScaling().fit(scores, CODES)
    frame = frame_of(library, scores, ["a", "b", "c"])
    np.testing.assert_array_equal(scaling.transform(frame), scaling.transform(scores))
    np.testing.assert_array_equal(scaling.predict_proba(frame), scaling.predict_proba(scores))


# ------------------------------------------------------------------------------------------------------------- routing


@both
def test_sample_weight_is_routed(make):
    """Metadata routing: weights pass through a pipeline and a search to fit and score, and change both."""
    pytest.importorskip(
        "sklearn", minversion="1.8", reason="before, a search refuses to route to Pipeline.score"
    )
    weights = np.where(CODES == 2, 20.0, 1.0)
    with config_context(enable_metadata_routing=True):
        model = make().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        pipeline = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), model)
        routed = clone(pipeline).fit(X, NAMES, sample_weight=weights)
        search = GridSearchCV(pipeline, {f"{pipeline.steps[1][0]}__tol": [1e-4]}, cv=FOLDS)
        search.fit(X, NAMES, sample_weight=weights)
        plain = make_pipeline(StandardScaler(), make().set_fit_request(sample_weight=False)).fit(X, NAMES)
    expected = make().fit(StandardScaler().fit_transform(X), NAMES, sample_weight=weights)
    np.testing.assert_array_equal(
        routed.predict_proba(X), expected.predict_proba(StandardScaler().fit_transform(X))
    )
    np.testing.assert_array_equal(search.predict_proba(X), routed.predict_proba(X))
    assert not np.allclose(routed.predict_proba(X), plain.predict_proba(X), rtol=1e-3)
    models = [
        clone(pipeline).fit(
            X[train], NAMES[train], **{f"{pipeline.steps[1][0]}__sample_weight": weights[train]}
        )
        for train, _ in FOLDS.split(X, NAMES)
    ]
    scores = [
        np.average(model.predict(X[test]) == NAMES[test], weights=weights[test])
        for model, (_, test) in zip(models, FOLDS.split(X, NAMES), strict=True)
    ]
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], [np.mean(scores)])


# -------------------------------------------------------------------------------------------------- beyond scikit-learn

PEERS = {
    "logistic": (logistic, SklearnLogisticRegression),
    "network": (network, SklearnMLPClassifier),
}


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("labels", [CODES, NAMES], ids=["numbers", "strings"])
@pytest.mark.parametrize("kind", PEERS)
def test_to_sklearn_is_a_fitted_scikit_learn_classifier(kind, labels, n_classes):
    make, peer = PEERS[kind]
    rows = np.isin(CODES, range(n_classes))
    model = make().fit(X[rows], labels[rows])
    converted = model.to_sklearn()
    assert type(converted) is peer
    np.testing.assert_array_equal(converted.classes_, model.classes_)
    np.testing.assert_array_equal(converted.predict(X), model.predict(X))
    # of two classes scikit-learn takes one for 1 minus the other
    np.testing.assert_allclose(converted.predict_proba(X), model.predict_proba(X), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("kind", PEERS)
def test_onnx(kind, n_classes):
    """Exported through `to_sklearn` by skl2onnx, run by ONNX Runtime: the same labels, probabilities to float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of protobuf's and onnx's own imports
        skl2onnx = pytest.importorskip("skl2onnx")
        onnxruntime = pytest.importorskip("onnxruntime")
    make, _ = PEERS[kind]
    rows = np.isin(CODES, range(n_classes))
    model = make().fit(X[rows].astype(np.float32), NAMES[rows])
    graph = skl2onnx.to_onnx(model.to_sklearn(), X[:1].astype(np.float32), options={"zipmap": False})
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    data = X.astype(np.float32)
    labels, probabilities = session.run(None, {session.get_inputs()[0].name: data})
    np.testing.assert_array_equal(labels, model.predict(data))
    np.testing.assert_allclose(probabilities, model.predict_proba(data), atol=1e-5)


def test_skops(tmp_path):
    """Every type in the file is one that skops trusts by itself; the loaded model predicts the same."""
    skops_io = pytest.importorskip("skops.io")
    for make in (logistic, network):
        model = make().fit(X, NAMES)
        skops_io.dump(model.to_sklearn(), tmp_path / "model.skops")
        assert skops_io.get_untrusted_types(file=tmp_path / "model.skops") == []
        loaded = skops_io.load(tmp_path / "model.skops")
        np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
        np.testing.assert_allclose(loaded.predict_proba(X), model.predict_proba(X), rtol=1e-12, atol=1e-15)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of MLflow's own imports
def test_mlflow(tmp_path, monkeypatch):
    """Logged in a run of a local store, and loaded from there: the same predictions, through both of MLflow's doors."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # its databases need SQLAlchemy
    monkeypatch.chdir(tmp_path)
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    for make in (logistic, network):
        model = make().fit(X, NAMES)
        with mlflow.start_run():
            logged = mlflow.sklearn.log_model(
                model.to_sklearn(), name="iris", pip_requirements=["scikit-learn"]
            )
        loaded = mlflow.sklearn.load_model(logged.model_uri)
        assert type(loaded) is type(model.to_sklearn())
        np.testing.assert_allclose(loaded.predict_proba(X), model.predict_proba(X), rtol=1e-12, atol=1e-15)
        served = mlflow.pyfunc.load_model(logged.model_uri)
        np.testing.assert_array_equal(served.predict(X), model.predict(X))
