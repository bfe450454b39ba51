"""benchmarks/gpu/run.py without a GPU: it says what is missing, and its arithmetic and its tables are right."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cuda_twin
import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu" / "run.py"


@pytest.fixture(scope="module")
def bench():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("fastxent_gpu_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REPORT = {
    "date": "2026-01-02",
    "device": "NVIDIA H200",
    "versions": {"numba-cuda": "0.30.4"},
    "ceilings": {"copy": 4.0, "read": 4.5},
    "checks": {"tests": "passed: 3 passed"},
    "grid": [
        {
            "problem": "8192 x 32768",
            "dtype": "float32",
            "mode": "fused",
            "bytes": 2147581952,
            "us": 600.0,
            "torch": 1e4,
        },
        {"problem": "8192 x 32768", "dtype": "float32", "mode": "forward", "bytes": 1073872896, "us": 250.0},
        {"problem": "16 x 131072", "dtype": "float16", "mode": "fused", "bytes": 8},
    ],
    "general": [
        {
            "problem": "65536 x 100 hvp",
            "dtype": "float32",
            "mode": "general",
            "us": 50.0,
            "largest error": 2e-7,
        }
    ],
    "linear": [
        {"problem": "8192 x 1024 x 32768", "dtype": "float32", "us": 9e3, "extra memory / logits": 0.0625}
    ],
    "estimators": [{"fit": "an epoch", "cuda": 0.25, "torch": 0.5}],
    "launch": {"a call": 12.5},
    "errors": {"16 x 131072 float16 fused": "it broke"},
}


def test_without_a_gpu():
    """Status 2 and one line that says why, before anything is measured or written."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("benchmarks/gpu/run.py: nothing measured: ")
    assert "backend='cuda' needs" in done.stderr
    assert done.stdout == ""


def test_bytes(bench):
    """What a perfect kernel moves: one read of the logits, or one read and one write, and a row's own numbers."""
    assert bench.bytes_moved(32768, 1024, 4, "forward") == 134_742_016
    assert bench.bytes_moved(32768, 1024, 4, "backward") == 268_959_744
    assert bench.bytes_moved(1_000_000, 10, 2, "fused") == 52_000_000
    assert bench.element_bytes(100, 4, 4) == 1200


def test_share_is_of_the_rate_measured_in_the_same_run(bench):
    assert bench.share(REPORT["grid"][0], REPORT["ceilings"]) == pytest.approx(2147581952 / 600 / 1e6 / 4.0)
    assert bench.share(REPORT["grid"][1], REPORT["ceilings"]) == pytest.approx(1073872896 / 250 / 1e6 / 4.5)
    assert bench.share(REPORT["grid"][2], REPORT["ceilings"]) is None
    assert bench.share(REPORT["grid"][0], {}) is None


def test_report(bench, tmp_path):
    """Both files, with the failures in them."""
    numbers, text = bench.write(REPORT, tmp_path / "new")
    assert json.loads(numbers.read_text()) == REPORT
    assert text.name == "2026-01-02-NVIDIA-H200.md"
    lines = text.read_text().splitlines()
    assert "| 8192 x 32768 | float32 | fused | 600 | 3.58 | 0.89 | 1e+04 |  |  |" in lines
    assert "- 16 x 131072 float16 fused: it broke" in lines
    assert "| a call | 12.5 |" in lines
    assert "| 65536 x 100 hvp | float32 | 50 | 2e-07 |" in lines
    assert "| 8192 x 1024 x 32768 | float32 | 9000 |  |  |  |  | 0.0625 |  |" in lines
    assert "| an epoch | 0.25 |  | 0.5 |" in lines


@pytest.fixture
def in_memory(bench, monkeypatch):
    """The script on a device of memory: PyTorch's tensors there, no clock, no compiler."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    cuda_twin.install(monkeypatch)
    monkeypatch.setattr(bench, "DEVICE", "cpu")
    monkeypatch.setattr(bench, "microseconds", lambda torch, calls, repeats=30: (calls[0](), 1.0)[1])
    monkeypatch.setattr(bench, "seconds", lambda torch, call: (call(), 1.0)[1])
    monkeypatch.setattr(bench, "extra_memory", lambda torch, call: 0)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    return torch


def test_general_part(bench, in_memory, monkeypatch):
    """Every call agrees with itself in float64."""
    monkeypatch.setattr(bench, "GENERAL", [(6, 5)])
    errors = {}
    rows = bench.general_rows(in_memory, False, errors)
    assert set(errors) == set()
    assert len(rows) == 7 * len(bench.DTYPES)
    limits = {"float32": 1e-5, "float16": 3e-3, "bfloat16": 2e-2}
    assert all(row["largest error"] < limits[row["dtype"]] for row in rows), rows


def test_linear_part(bench, in_memory, monkeypatch):
    """Every column is there; nothing fails."""
    monkeypatch.setattr(bench, "LINEAR", [(40, 6, 50)])
    errors = {}
    rows = bench.linear_rows(in_memory, False, errors)
    assert errors == {}
    assert [row["dtype"] for row in rows] == list(bench.DTYPES)
    for row in rows:
        assert {"us", "products alone", "torch", "torch.compile", "torch's", "extra memory / logits"} <= set(
            row
        )


def test_estimators_part(bench, in_memory, monkeypatch):
    monkeypatch.setattr(bench, "ROWS", 1000)
    errors = {}
    rows = bench.estimators(in_memory, True, errors)
    assert errors == {}
    assert all(row["cuda"] == row["cpu"] == row["torch"] == 1.0 for row in rows)
    assert len(rows) == 2


@pytest.mark.parametrize("part", ["ceilings", "checks", "grid", "general", "linear", "estimators", "launch"])
def test_arguments(bench, part, monkeypatch, tmp_path):
    """--only takes every part; what fails in one is in the report, and the status says so."""
    names = {"ceilings": "ceilings", "checks": "tests", "grid": "grid", "linear": "linear_rows"}
    names["general"] = "general_rows"
    names |= {"estimators": "estimators", "launch": "launch_cost"}
    ran = []

    def broken(*args):
        ran.append(part)
        raise RuntimeError("it broke")

    monkeypatch.setattr(bench, names[part], broken)
    monkeypatch.setattr(
        bench, "need_gpu", lambda: SimpleNamespace(cuda=SimpleNamespace(get_device_name=lambda: "X 1"))
    )
    assert bench.main(["--only", part, "--quick", "--out", str(tmp_path)]) == 1
    assert ran == [part]
    (numbers,) = tmp_path.glob("*-X-1.json")
    assert "it broke" in json.loads(numbers.read_text())["errors"][part]
