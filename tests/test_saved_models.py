"""Files and pickles of earlier versions load, and predict what they predicted there (`saved_models.py` wrote them)."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

import fastxent as fx

FOLDERS = sorted(Path(__file__).parent.joinpath("data").glob("saved-*"))
MODELS = ("logistic", "binary", "mlp", "multilabel", "temperature")


def assert_predicts(model, folder, name):
    """The stored answers: the same labels, probabilities to the rounding of another processor or BLAS."""
    with np.load(folder / "expected.npz") as expected:
        X, labels = expected[f"{name}.X"], expected[f"{name}.labels"]
        probabilities = expected[f"{name}.probabilities"]
    assert model.predict(X).dtype == labels.dtype
    np.testing.assert_array_equal(model.predict(X), labels)
    again = model.predict_proba(X)
    assert again.dtype == probabilities.dtype
    tolerance = 1e-5 if again.dtype == np.float32 else 1e-12
    np.testing.assert_allclose(again, probabilities, rtol=tolerance, atol=tolerance / 100)


def test_a_folder_of_every_minor_version_is_there():
    assert FOLDERS
    for folder in FOLDERS:
        assert {path.stem for path in folder.iterdir()} == {*MODELS, "expected", "models"}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_saved_files_load(folder, name):
    model = fx.load(folder / f"{name}.npz")
    assert_predicts(model, folder, name)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_pickles_load(folder):
    models = pickle.loads((folder / "models.pickle").read_bytes())
    assert set(models) == set(MODELS)
    for name, model in models.items():
        assert_predicts(model, folder, name)
        assert model.get_params()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_training_goes_on(folder):
    """What was saved is an estimator like any other: it is fitted anew with the parameters of then."""
    with np.load(folder / "expected.npz") as expected:
        X, labels = expected["logistic.X"], expected["logistic.labels"]
    model = fx.load(folder / "logistic.npz")
    assert model.get_params()["C"] == 0.5
    assert model.fit(X, labels).score(X, labels) > 0.8
