"""The package as users get it: its wheel, in new environments, on the versions that pyproject.toml claims and the next.

`make versions` runs all sessions whose interpreter is there, `make versions ARGS="-l"` lists them, and
`make versions ARGS="-k oldest"` chooses. The tests run in a copy of their own, away from the sources, without a
compiler on PATH. On a free-threaded interpreter, importing the package must leave the GIL off.

Sessions of "oldest" and "newest" run what `make test` runs. Those of one version of scikit-learn leave out the files of
tests that name neither scikit-learn nor an estimator: the kernels do not know it.

A wheel is built once per interpreter, into build/wheels, and anew when a source is newer. "oldest" takes the oldest
versions that the requirements of the package and of its tests allow and that have binary packages for the interpreter.
"""

import os
import re
import shutil
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).parent
WHEELS = ROOT / "build" / "wheels"
COPIED = ("tests", "pyproject.toml", "README.md")
PYTHONS = nox.project.python_versions(nox.project.load_toml("pyproject.toml"))
PYTHONS += ["3.14", "3.14t"]  # not claimed before they have passed
VERSIONS = [(python, choice) for python in PYTHONS for choice in ("oldest", "newest")]
VERSIONS.remove(("3.14t", "oldest"))  # free threading moves with the newest versions
VERSIONS += [(PYTHONS[0], f"scikit-learn=={minor}.*") for minor in ("1.6", "1.7", "1.8", "1.9")]
USES_SKLEARN = re.compile("sklearn|saved_models|LogisticRegression|MLPClassifier|TemperatureScaling")

CHECK = """
import sys, sysconfig
import fastxent, fastxent.linear, fastxent.mlp
assert "site-packages" in fastxent.__file__
assert not (sysconfig.get_config_var("Py_GIL_DISABLED") and sys._is_gil_enabled())
fastxent.show_versions()
"""

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "uv"
nox.options.download_python = "never"
nox.options.sessions = ["tests"]


def answer(session, code):
    """What the session's interpreter prints."""
    return session.run("python", "-c", code, silent=True).strip()


def wheel_of(session):
    """Path of the wheel for the session's interpreter."""
    tag = answer(session, "import sys; print(f'cp{sys.version_info.major}{sys.version_info.minor}')")
    free = answer(session, "import sysconfig; print(sysconfig.get_config_var('Py_GIL_DISABLED') or 0)") == "1"
    pattern = f"*-{tag}-{tag}{'t' * free}-*.whl"
    package = ROOT / "src" / "fastxent"  # beside it lies what every build writes anew
    sources = [path for path in package.rglob("*") if path.suffix not in ("", ".so", ".pyc")]
    newest = max(path.stat().st_mtime for path in [ROOT / "setup.py", ROOT / "pyproject.toml", *sources])
    if not any(path.stat().st_mtime > newest for path in WHEELS.glob(pattern)):
        session.install("--group", "build")
        session.run("python", "-m", "build", "--no-isolation", "--outdir", WHEELS)
    return max(WHEELS.glob(pattern), key=lambda path: path.stat().st_mtime)


def install(session, choice):
    """The wheel with the chosen versions of what it and its tests need, binary packages alone."""
    wheel = wheel_of(session)
    uv = [sys.executable, "-m", "uv", "pip"]
    folder = Path(session.create_tmp())
    command = [*uv, "compile", "-q", "pyproject.toml", "--group", "test", "--only-binary", ":all:"]
    command += ["--python", answer(session, "import sys; print(sys.executable)"), "-o", folder / "pins.txt"]
    command += ["--resolution", "lowest-direct" if choice == "oldest" else "highest"]
    if choice != "newest":
        # the oldest Matplotlib calls what newer versions of pyparsing, which it brings, deprecate
        (folder / "chosen.txt").write_text("pyparsing<3.3" if choice == "oldest" else choice)
        command += ["--constraint", folder / "chosen.txt"]
    session.run(*command, external=True)
    session.run(*uv, "sync", "-q", "--only-binary", ":all:", folder / "pins.txt", external=True)
    session.install("--no-deps", wheel)


def run_tests(session, choice):
    """The tests, from a folder that holds nothing else; arguments after `--` choose some of them."""
    folder = Path(session.create_tmp()) / "away"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in COPIED:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
    env = {"PATH": session.bin, "FASTXENT_DATA": os.environ.get("FASTXENT_DATA")}
    with session.chdir(folder):
        session.run("python", "-W", "error", "-c", CHECK, env=env)
        command = ["python", "-m", "pytest", "-q", "-n", os.environ.get("JOBS", "2"), "--dist", "worksteal"]
        command += ["-p", "no:cacheprovider", "--benchmark-disable", "-m", "not slow"]
        if choice not in ("oldest", "newest"):
            files = sorted(Path("tests").glob("test_*.py"))
            command += [
                f"--ignore={file}" for file in files if not USES_SKLEARN.search(file.read_text("utf-8"))
            ]
        session.run(*command, *(session.posargs or ["tests", "README.md"]), env=env)


@nox.session
@nox.parametrize("python,choice", VERSIONS, ids=[f"{python}, {choice}" for python, choice in VERSIONS])
def tests(session, choice):
    """`make test` on one interpreter with one choice of versions."""
    install(session, choice)
    run_tests(session, choice)
