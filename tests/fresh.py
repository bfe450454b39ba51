"""Scripts in interpreters of their own, for tests of imports, signals, instruction sets and deaths."""

from __future__ import annotations

import os
import subprocess
import sys


def run_python(code, *arguments, timeout=60, **environment):
    """The finished process, with what it printed; variables are added to those of the tests."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **environment},
        check=False,
    )


def printed(code, *arguments, timeout=60, **environment):
    """What a script that ends well prints, without the white space around it."""
    done = run_python(code, *arguments, timeout=timeout, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
