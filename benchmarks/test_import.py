"""How long a fresh interpreter takes to import something; the row "pass" is the interpreter itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

STATEMENTS = ["pass", "import numpy", "import fastxent", "import sklearn.linear_model"]


@pytest.mark.parametrize("statement", STATEMENTS)
def test_import(statement, timed, benchmark):
    benchmark.group = "import"
    command = [sys.executable, "-c", statement]
    rounds = {"rounds": 9, "warmup_rounds": 1} if timed else {}
    done = benchmark.pedantic(subprocess.run, (command,), {"capture_output": True}, **rounds)
    assert (done.returncode, done.stderr) == (0, b"")
    benchmark.extra_info["statement"] = statement
