"""How long a fresh interpreter takes to import something; the row "pass" is the interpreter itself."""

from __future__ import annotations

import subprocess

import pytest

from fastxent import _bench


@pytest.mark.parametrize("statement", _bench.STATEMENTS)
def test_import(statement, timed, benchmark):
    benchmark.group = "import"
    command = _bench.import_command(statement)
    rounds = {"rounds": 9, "warmup_rounds": 1} if timed else {}
    done = benchmark.pedantic(subprocess.run, (command,), {"capture_output": True}, **rounds)
    assert (done.returncode, done.stderr) == (0, b"")
    benchmark.extra_info.update(what="import", statement=statement)
