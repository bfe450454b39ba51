"""The documentation: its code runs, names everything public, is numpydoc, and Sphinx builds it without a warning."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastxent as fx

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
if not DOCS.is_dir():
    pytest.skip("the documentation is not part of this distribution", allow_module_level=True)

# What a page's code needs beyond the package.
NEEDS = {
    "boosting.md": ("xgboost", "lightgbm"),
    "pytorch.md": ("torch",),
    "scaling.md": ("dask", "distributed"),
    "deployment.md": ("skl2onnx", "onnxruntime", "xgboost", "lightgbm"),
}
# Public modules that fastxent.__all__ leaves out, with what they need.
MODULES = {
    "information": (),
    "shards": (),
    "plots": (),
    "boosting": (),
    "torch": ("torch",),
    "dask": ("dask",),
}
PAGES = sorted(DOCS.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_of_a_page(page, tmp_path, monkeypatch):
    for module in NEEDS.get(page.name, ()):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)  # for pages that save files
    failed, _ = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if "://" in target or target.startswith("auto_examples/"):
            continue
        name = target.removesuffix(".md")
        assert (DOCS / f"{name}.md").is_file() or (DOCS / target).is_file(), f"{page.name} links to {target}"


# Public names --------------------------------------------------------------------------------------------


def public_names():
    """Every public name, as ``name`` or ``module.name``, of the modules that can be imported here."""
    names = {name for name in fx.__all__ if not inspect.ismodule(getattr(fx, name))}
    for module, needs in MODULES.items():
        if all(importlib.util.find_spec(need) for need in needs):
            listed = importlib.import_module(f"fastxent.{module}").__all__
            names |= {f"{module}.{name}" for name in listed if name not in fx.__all__ or module == "dask"}
    return names


def listed_names():
    """Names in the autosummaries of the reference."""
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    return re.findall(r"^   ([A-Za-z_][\w.]*)$", text, flags=re.MULTILINE)


def test_every_public_name_has_its_place_in_the_reference():
    listed = listed_names()
    assert len(listed) == len(set(listed))
    assert not public_names() - set(listed), "add these to docs/api.md"
    for name in listed:
        module = name.rpartition(".")[0]
        if all(importlib.util.find_spec(need) for need in MODULES.get(module, ())):
            holder = importlib.import_module(f"fastxent.{module}".rstrip("."))
            assert hasattr(holder, name.rpartition(".")[2]), f"docs/api.md names {name}, which is not there"


def test_names_of_the_table_for_movers_exist():
    """`fx.…` anywhere in the pages, and the losses of the right-hand column."""
    for page in PAGES:
        for dotted in re.findall(r"\bfx\.([A-Za-z_]\w*(?:\.[a-z_]\w*)?)", page.read_text(encoding="utf-8")):
            value = fx
            for part in dotted.split("."):
                if not hasattr(value, part) and value is not fx and not inspect.ismodule(value):
                    break  # an attribute of what a call returned
                value = getattr(value, part)
    rows = re.findall(r"^\|[^|]*\|([^|]*)\|", (DOCS / "moving.md").read_text(encoding="utf-8"), re.MULTILINE)
    for name in re.findall(r"`([A-Z]\w*)", " ".join(rows)):
        assert hasattr(fx, name), f"docs/moving.md names {name}"


# numpydoc ------------------------------------------------------------------------------------------------

# What a docstring of this package may do without: an extended summary, "See also", a description of what name and
# type say already, and types where a sibling has them. SS05 takes nouns in -s for verbs ("Probabilities of ...").
FREE = {"ES01", "SA01", "PR04", "PR06", "PR07", "PR08", "RT03", "RT04", "SS05"}
# Of methods, whose class has the example and explains the options.
FREE_OF_METHODS = FREE | {"EX01", "PR01", "PR02", "PR03", "RT01"}
# "and all options that follow": said once, by the first of four siblings. PyTorch's deprecated arguments come last.
ALLOWED = {
    ("softmax_cross_entropy_with_grad", "PR01"), ("softmax_cross_entropy_with_grad", "PR02"),
    ("softmax_cross_entropy_forward", "PR01"), ("softmax_cross_entropy_forward", "PR02"),
    ("softmax_cross_entropy_backward", "PR01"), ("softmax_cross_entropy_backward", "PR02"),
    ("sigmoid_cross_entropy_with_grad", "PR03"), ("binary_cross_entropy_with_grad", "PR03"),
    ("torch.cross_entropy", "PR03"), ("torch.linear_cross_entropy", "PR03"),
    ("torch.LossModule", "EX01"), ("boosting.Objective", "EX01"), ("boosting.Metric", "EX01"),
    ("boosting.ProbabilityMixin", "EX01"),
    # Nobody calls it: partial_lse and merge_lse make it, and its attributes are described.
    ("shards.LSEState", "PR01"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(public_names()))
def test_numpydoc(name):
    validate = pytest.importorskip("numpydoc.validate").validate
    problems = [
        (name, code, text)
        for code, text in validate(f"fastxent.{name}")["errors"]
        if code not in FREE and (name, code) not in ALLOWED
    ]
    module, _, last = name.rpartition(".")
    value = getattr(importlib.import_module(f"fastxent.{module}".rstrip(".")), last)
    if inspect.isclass(value):
        for method, member in vars(value).items():
            if method.startswith("_") or not (
                callable(member) or isinstance(member, (classmethod, property))
            ):
                continue
            problems += [
                (f"{name}.{method}", code, text)
                for code, text in validate(f"fastxent.{name}.{method}")["errors"]
                if code not in FREE_OF_METHODS
            ]
    assert not problems


# The site ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    for module in (
        "sphinx",
        "myst_parser",
        "numpydoc",
        "pydata_sphinx_theme",
        "sphinx_gallery",
        "torch",
        "matplotlib",
    ):
        pytest.importorskip(module, reason=f"{module} is of the dependency group docs")
    shutil.copytree(DOCS, tmp_path / "docs")
    if (ROOT / "examples").is_dir():
        shutil.copytree(ROOT / "examples", tmp_path / "examples")
    environment = {name: value for name, value in os.environ.items() if name != "FASTXENT_EXAMPLES"}
    environment["PYTHONPATH"] = str(
        Path(fx.__file__).parents[1]
    )  # the package of these tests, from another folder
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", "html"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    index = (tmp_path / "html" / "index.html").read_text(encoding="utf-8")
    for page in ("start", "losses", "accuracy", "performance", "api", "design"):
        assert f'href="{page}.html"' in index
    for name in ("softmax_cross_entropy", "LogisticRegression", "losses.Loss", "torch.cross_entropy"):
        assert (tmp_path / "html" / "api" / f"fastxent.{name}.html").is_file()
    methods = (tmp_path / "html" / "api" / "fastxent.MLPClassifier.html").read_text(encoding="utf-8")
    assert "input_gradient" in methods


# The README's picture ------------------------------------------------------------------------------------


def test_the_picture_draws_the_readmes_table(tmp_path):
    """Every float32 row of the table is in the picture, which anybody can make again."""
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("fastxent_picture", DOCS / "images" / "kernels.py")
    picture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(picture)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = picture.rows_of(readme)
    assert len(rows) == len(re.findall(r"^\| \d+ × \d+ float32", readme, re.MULTILINE)) >= 10
    assert rows[0][0].replace(" ", "") in readme.replace(" ", "")
    picture.draw(rows, tmp_path / "again.png")
    assert 10_000 < (tmp_path / "again.png").stat().st_size < 100_000
    assert "docs/images/kernels.png" in readme
    assert (DOCS / "images" / "kernels.png").is_file()
