"""The examples at their small setting, with what holds there; the page of errata with its code."""

from __future__ import annotations

import doctest
import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"

matplotlib = pytest.importorskip("matplotlib")


def load_runner():
    spec = importlib.util.spec_from_file_location("fastxent_examples_run", EXAMPLES / "_run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


runner = load_runner()
SOURCES = {path.stem: path.read_text(encoding="utf-8") for path in runner.examples()}
# Seconds at the small setting, unlike the others'.
FAST = {"plot_code_length", "plot_worked_examples", "plot_saturation", "plot_binary_logits"}


def reads_data(name):
    return re.search(r"^from _gallery import .*\b(mnist|folder)\b", SOURCES[name], re.MULTILINE)


def marks(name):
    slow = [] if name in FAST else [pytest.mark.slow]
    return slow + ([pytest.mark.data] if reads_data(name) else [])


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run an example at the small setting; returns its variables, and leaves its pictures in `tmp_path`."""
    monkeypatch.setenv("FASTXENT_EXAMPLES", "small")
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    monkeypatch.delitem(sys.modules, "_gallery", raising=False)
    matplotlib.use("Agg")

    def run(name):
        return runner.run(EXAMPLES / f"{name}.py", tmp_path)

    yield run
    sys.modules.pop("_gallery", None)


def check_code_length(v):
    assert v["needed"][0] == pytest.approx(1.9375)  # 1/2 + 2/4 + 3/8 + 4/16 + 5/32 + 5/32
    assert v["needed"][2] == pytest.approx(np.log2(6))
    assert v["needed"][3] + v["wasted"][3] == pytest.approx(20 / 6)  # the mean of K1's code lengths
    assert v["forward"] != v["backward"]


def check_worked_examples(v):
    assert v["loss"] == pytest.approx(-np.log(0.9), rel=1e-15)
    np.testing.assert_allclose(v["grad"], [-0.1, 0.1], rtol=1e-14)
    np.testing.assert_allclose(v["by_hand"], [-0.1, 0.1], rtol=1e-8)


def check_saturation(v):
    assert v["z"][v["at"]] == pytest.approx(-10)
    assert v["pull"][v["at"]] == pytest.approx(-0.99995, abs=5e-6)
    assert v["weak_pull"][v["at"]] == pytest.approx(-4.5e-5, abs=5e-7)


def check_binary_logits(v):
    assert v["exact"][-1] == 40
    assert np.isposinf(v["rounded"][-1])
    assert v["clipped"][-1] == v["clipped"][-2] < 17


def check_mnist_binary(v):
    assert v["n_parameters"] == 201_217
    assert v["model"].loss_curve_[1] < v["model"].loss_curve_[0] < np.log(2)
    assert v["accuracy"] > 0.99


def check_mnist_ten_classes(v):
    assert min(v["accuracy"].values()) > 0.8
    assert v["losses"][v["worst"][0]] == v["losses"].max()


def check_cnn_pytorch(v):
    assert v["n_parameters"] == 1_199_882
    assert v["difference"] < 1e-5
    assert v["accuracy"] > 0.5


def check_class_imbalance(v):
    plain, balanced, focal = v["recall"].values()
    assert plain < focal < balanced


def check_boosting_imbalanced(v):
    assert len(v["results"]) == 15
    assert all(0 < score <= 1 for scores in v["results"].values() for score in scores)
    assert {len(scores) for scores in v["results"].values()} == {2}


def check_label_noise(v):
    assert min(curve[-1] for curve in v["curves"].values()) > 0.5


def check_gan(v):
    assert v["d_losses"][0] == pytest.approx(2 * np.log(2), abs=0.15)
    assert v["g_losses"][0] == pytest.approx(np.log(2), abs=0.15)
    assert v["d_losses"][-1] < v["d_losses"][0]


def check_segmentation(v):
    plain, mixed = v["scores"].values()
    assert mixed > plain > 0.5
    assert np.shares_memory(v["features"], np.moveaxis(v["features"], 3, 1))


def check_distillation(v):
    labels, _, teacher, as_sum = v["accuracy"].values()
    assert min(teacher, as_sum) > labels


def check_adversarial(v):
    plain, _, trained = v["scores"].values()
    assert plain[2] < plain[0] - 0.3
    assert trained[2] > plain[2] + 0.2


def check_vae(v):
    assert v["curve"][1] < v["curve"][0] < 784 * np.log(2)


def check_language_model(v):
    perplexity = list(v["perplexity"].values())
    assert perplexity == sorted(perplexity, reverse=True)


def check_optimizers(v):
    assert len(v["models"]) == 7
    assert all(model.loss_curve_[-1] < model.loss_curve_[0] for model in v["models"].values())


def check_large_scale(v):
    losses = list(v["losses"].values())
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)
    assert v["megabytes"]["linear_cross_entropy"] < v["megabytes"]["by the book"]
    assert v["merged"].loss() == pytest.approx(losses[1], rel=1e-6)
    assert v["difference"] < 1e-9


def check_policy_gradient(v):
    assert np.mean(v["curve"][:20]) < 0.2
    assert v["accuracy"] > 0.5


def check_transfer(v):
    scratch, warm = v["accuracy"].values()
    assert warm[-1] > v["first"].score(v["X_test"], v["y_test"])
    assert warm[0] > scratch[0] or warm[-1] > scratch[-1]


def check_multitask(v):
    assert min(v["accuracy"].values()) > 0.6


def check_dask(v):
    assert v["difference"] < 1e-4


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in SOURCES])
def test_example(name, run, request, tmp_path, capsys):
    """It runs, prints, draws, and shows at the small setting what it tells of the full one."""
    source = SOURCES[name]
    if reads_data(name):
        request.getfixturevalue("data_folder")
    for optional in ("torch", "xgboost", "lightgbm", "dask"):
        if re.search(rf"^(from|import) (fastxent\.)?{optional}\b", source, re.MULTILINE):
            pytest.importorskip(optional)
    variables = run(name)
    assert capsys.readouterr().out
    assert list(tmp_path.glob("*.png"))
    check = globals().get(name.replace("plot_", "check_"))
    if check is not None:
        check(variables)


@pytest.mark.parametrize("name", SOURCES)
def test_examples_use_public_names_only(name):
    """And they begin with a title, as the gallery wants it."""
    source = SOURCES[name]
    assert not re.search(r"fastxent[\w.]*\._|\bfx\._", source)
    title, rule = source.split("\n")[1:3]
    assert set(rule) == {"="}
    assert len(rule) >= len(title)
    assert "\n# %%\n" in source


def test_every_check_has_its_example():
    checks = {name for name in globals() if name.startswith("check_")}
    assert {name.replace("check_", "plot_") for name in checks} <= set(SOURCES)


def test_missing_data_say_what_to_do(run, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTXENT_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"mnist\.npz.*set FASTXENT_DATA to its folder"):
        run("plot_mnist_binary")


def test_errata():
    failed, attempted = doctest.testfile(str(ROOT / "docs" / "errata.md"), module_relative=False)
    assert failed == 0
    assert attempted > 20
