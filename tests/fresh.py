"""Scripts in interpreters of their own, for tests of imports, signals, instruction sets and deaths."""

from __future__ import annotations

import os
import subprocess
import sys

HANGS = 600  # seconds: no test of speed, only the end of a process that waits for ever, on a busy machine too


def run_python(code, *arguments, **environment):
    """The finished process, with what it printed; variables are added to those of the tests."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=HANGS,
        env={**os.environ, **environment},
        check=False,
    )


def printed(code, *arguments, **environment):
    """What a script that ends well prints, without the white space around it."""
    done = run_python(code, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
