"""The pages of the doors, as a reader would try them: every Python block runs, and answers what its comment says."""

from __future__ import annotations

import ast
import importlib.util
import re
import warnings
from pathlib import Path

import pytest

PAGES = Path(__file__).resolve().parents[1] / "docs"
OPTIONAL = {"xgboost", "lightgbm", "torch", "skl2onnx", "onnxruntime", "skops", "mlflow"}

pytestmark = pytest.mark.skipif(not PAGES.is_dir(), reason="the pages are not here")


def blocks(text):
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def run(block, names):
    """Run a block; an expression with a comment must have the value that the comment shows, before any colon."""
    lines = block.splitlines()
    for statement in ast.parse(block).body:
        code = ast.unparse(statement)
        if not isinstance(statement, ast.Expr):
            exec(code, names)
            continue
        value = eval(code, names)
        _, _, comment = lines[statement.end_lineno - 1].partition("  # ")
        if comment:
            expected = re.split(r": (?!.*[']$)", comment)[0]
            assert repr(value) == expected or str(value) == expected, (
                f"{code}: {value!r}, the page says {expected}"
            )


@pytest.mark.slow
@pytest.mark.parametrize("page", ["boosting", "pytorch", "deployment"])
@pytest.mark.filterwarnings("ignore")  # of the other libraries' own imports
def test_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    names, missing, ran = {}, set(), 0
    for block in blocks((PAGES / f"{page}.md").read_text(encoding="utf-8")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                run(block, names)
                ran += 1
            except ImportError as error:
                root = (error.name or "").partition(".")[0]
                if root not in OPTIONAL:
                    raise
                missing.add(root)
            except NameError as error:
                if not missing:
                    raise
                missing.add(error.name)  # made by a block that could not run
    assert ran or missing, "the page has no code"
    if not ran:
        pytest.skip(f"not installed: {', '.join(sorted(missing))}")


def test_model_of_scaling():
    """Its formula gives its column from its parameters, and that is as close to what was measured as it says."""
    pytest.importorskip("dask", reason="the script needs Dask")
    page, script = PAGES / "scaling.md", PAGES.parent / "benchmarks" / "scaling.py"
    spec = importlib.util.spec_from_file_location("scaling", script)
    scaling = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scaling)
    text = page.read_text(encoding="utf-8")
    features, classes = map(int, re.search(r"(\d+) features, (\d+) classes, float64", text).groups())
    number = r"(-?[\d.]+)"
    work = {int(w): 1e-9 * float(c) for c, w in re.findall(rf"c = {number} ns with (\d) working", text)}
    a, b, bandwidth = re.search(rf"a = {number} ms, b = {number} ms, B = {number} MB/s", text).groups()
    costs = scaling.Costs(work, 1e-3 * float(a), 1e-3 * float(b), 1e6 * float(bandwidth))
    share, least = re.search(r"within (\d+) % or (\d+) ms", text).groups()
    table = re.findall(rf"\| (\d) \| ([\d ]+) \| {number} \| {number} \| {number} \| {number} \|", text)
    assert len(table) >= 6
    for workers, rows, measured, expected, computed, rest in table:
        workers, rows = int(workers), int(rows.replace(" ", ""))
        measured, expected, computed, rest = map(float, (measured, expected, computed, rest))
        seconds = scaling.model(costs, rows, features, classes, workers)
        assert 1e3 * seconds == pytest.approx(expected, abs=0.1)
        assert measured == pytest.approx(expected, rel=float(share) / 100, abs=float(least))
        assert rest == pytest.approx(measured - computed, abs=0.11)
