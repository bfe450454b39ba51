"""What is shipped: the metadata, the content of the sdist, and the builds of a stranger's machine.

Builds run in a copy of the source tree, in a folder with a blank in its name.
"""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest

import fastxent as fx

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PROJECT_FILES = sorted(
    path.name
    for pattern in (
        "*.md",
        "*.cff",
        "pyproject.toml",
        "setup.py",
        "noxfile.py",
        "MANIFEST.in",
        "Makefile",
        "LICENSE",
    )
    for path in ROOT.glob(pattern)
)
FOLDERS = (".ci", "src", "tests", "fuzz", "benchmarks", "examples", "docs")
GENERATED = re.compile(r"(\.(so|pyd|pyc)|/_core\.cpp|/_dense\.cpp|/_step\.cpp)$")

# A loss and its gradient by the compiled kernels, from an installation that must not be the source tree.
USE = """
import json, sys
import numpy as np
import fastxent as fx
from fastxent import _backend
labels = np.arange(64) % 4
loss, grad = fx.softmax_cross_entropy_with_grad(np.zeros((64, 4), np.float32), labels, backend="cpu")
assert abs(loss - np.log(4)) < 1e-6
assert np.allclose(grad[0] * 64, [-0.75, 0.25, 0.25, 0.25])
X, y = [[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1]
assert fx.LogisticRegression().fit(X, y).score(X, y) == 1
json.dump({"file": fx.__file__, **_backend.describe()}, sys.stdout, default=str)
"""


def run(*command, cwd, **env):
    """Standard output of a command; a failure shows everything it printed."""
    command = [str(part) for part in command]
    done = subprocess.run(command, cwd=cwd, env=os.environ | env, text=True, capture_output=True)
    assert done.returncode == 0, f"{command} failed\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def build(kind, source, out, **env):
    """Path of the "sdist" or "wheel" that setuptools makes of a source tree, without network or isolation."""
    out.mkdir(exist_ok=True)
    code = f"import setuptools.build_meta as b; b.build_{kind}({str(out)!r})"
    log = run(sys.executable, "-W", "ignore", "-c", code, cwd=source, **env)
    (made,) = out.iterdir()
    return made, log


def install(wheel, site):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)


def unpack(sdist, folder):
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return unpacked


def lend_kernels(unpacked):
    """Give a source tree the objects of kernels that were compiled in this one, which are minutes of work.

    They must be newer than whatever setup.py lets them depend on, and that be the same in both trees; with other flags
    than theirs, setup.py compiles them anew.
    """
    kernels = Path("build", f"temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}")
    names = [
        name
        for name in sources(ROOT)
        if name.startswith("src/") and name.endswith((".pxd", ".pyx", ".cpp", ".hpp", ".h", ".inc"))
    ]
    for name in ["setup.py", *names]:
        assert (unpacked / name).read_bytes() == (ROOT / name).read_bytes(), name
    newest = max((ROOT / name).stat().st_mtime for name in ["setup.py", *names])
    settings, objects = ROOT / kernels / "settings.txt", list((ROOT / kernels).rglob("_kernels/*.o"))
    if settings.exists() and all(path.stat().st_mtime > newest for path in objects):
        for path in [settings, *objects]:  # in this order: the settings must be older
            copy = unpacked / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)


def use(site, cwd, **env):
    answer = json.loads(run(sys.executable, "-c", USE, cwd=cwd, PYTHONPATH=str(site), **env))
    assert Path(answer["file"]).is_relative_to(site)
    return answer


def sources(root):
    """Names of the files below the folders of a source tree that nothing has made."""
    files = [path for folder in FOLDERS for path in (root / folder).rglob("*") if path.is_file()]
    return {name for name in (path.relative_to(root).as_posix() for path in files) if is_source(name)}


def is_source(name):
    return not (GENERATED.search(name) or "__pycache__" in name or ".egg-info" in name or "/." in name)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the source tree without anything that was built."""
    copy = tmp_path_factory.mktemp("a tree")
    for entry in PROJECT_FILES:
        shutil.copy(ROOT / entry, copy)
    for name in sorted(sources(ROOT)):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory):
    return build("sdist", source, tmp_path_factory.mktemp("sdist"))[0]


def test_metadata_is_that_of_pyproject():
    metadata = importlib.metadata.metadata("fastxent")
    assert metadata["Version"] == fx.__version__
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert set(metadata.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    always = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(re.match(r"[\w-]+", line)[0] for line in always) == sorted(
        ["numpy", "scipy", "scikit-learn", "threadpoolctl"]
    )


def test_tests_of_the_sources_are_known():
    """Without the sources, beside a wheel, conftest.py leaves out what reads them, and nothing else."""
    conftest = (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8")
    (names,) = re.findall(r'^SOURCES = "(.*)"$', conftest, re.M)
    reading = [
        path for path in ROOT.glob("tests/test_*.py") if "parents[1]" in path.read_text(encoding="utf-8")
    ]
    assert {f"test_{name}.py" for name in names.split()} == {path.name for path in reading}


def test_workflows_pin_actions_and_call_make():
    """Every action by commit with its version beside it; what they run are targets of the Makefile."""
    workflows = sorted(ROOT.glob(".github/workflows/*.yml"))
    if not workflows:
        pytest.skip("an sdist holds no workflows")
    targets = set(
        re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)[1].split()
    )
    for path in workflows:
        text = path.read_text(encoding="utf-8")
        for use in re.findall(r"uses: (.*)", text):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use), use
        assert text.count("actions/checkout@") == text.count("persist-credentials: false")
        assert set(re.findall(r"run: make ([\w-]+)", text)) <= targets
    listed = re.search(r"target: \[(.*)\]", workflows[0].read_text(encoding="utf-8"))[1]
    assert set(listed.split(", ")) <= targets


def test_console_script_starts_the_command_line():
    (script,) = importlib.metadata.distribution("fastxent").entry_points.select(group="console_scripts")
    assert (script.name, script.value) == ("fastxent", "fastxent.cli:main")
    assert callable(script.load())


def test_sdist_holds_the_sources_and_nothing_built(source, sdist):
    with tarfile.open(sdist) as archive:
        names = {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}
    expected = sources(source) | set(PROJECT_FILES)
    assert {"src/fastxent/_core.pyx", "src/fastxent/_kernels/isa_avx512.cpp", "README.md"} <= expected
    assert not expected - names
    made = {"PKG-INFO", "setup.cfg"}
    assert not {name for name in names - expected if name not in made and ".egg-info/" not in name}


@pytest.mark.slow
def test_wheel_from_sdist_works_where_it_is_installed(sdist, tmp_path):
    """Its kernels were compiled in this tree, from the same bytes; the test below compiles those of the sdist."""
    unpacked = unpack(sdist, tmp_path / "un packed")
    lend_kernels(unpacked)
    wheel, _ = build("wheel", unpacked, tmp_path / "dist")
    site = tmp_path / "site"
    install(wheel, site)
    names = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    assert {"fastxent/py.typed", "fastxent/__init__.pyi", "fastxent/_core.pyi"} <= names
    assert not {name for name in names if name.endswith((".pyx", ".pxd", ".cpp", ".hpp"))}
    assert {name.split("/")[0].split("-")[0] for name in names} == {"fastxent"}
    (bill,) = site.glob("fastxent-*.dist-info/sboms/*.cdx.json")
    bill = json.loads(bill.read_text(encoding="utf-8"))
    parts = [bill["metadata"]["component"], *bill["components"]]
    assert [(part["name"], part["version"]) for part in parts] == [
        ("fastxent", fx.__version__),
        ("cython", importlib.metadata.version("cython")),
        ("numpy", np.__version__),
    ]
    assert use(site, tmp_path)["cpu"]["available"]
    command = [
        sys.executable,
        "-m",
        "fastxent.cli",
        "bench",
        "--quick",
        "--shapes",
        "31x3",
        "--out",
        tmp_path,
    ]
    assert "fastxent-bench.html" in run(*command, cwd=tmp_path, PYTHONPATH=str(site))
    tests = ["tests/test_golden.py", "tests/test_linear.py"]
    pytest_again = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    assert " passed" in run(*pytest_again, cwd=unpacked, PYTHONPATH=str(site))


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="the stand-in for an old compiler is a shell script")
def test_build_goes_on_without_threads_and_without_instruction_sets(sdist, tmp_path):
    """Compiled without optimization, which takes a tenth of the time and changes none of what is asked here."""
    for name, real in (("cc", os.environ.get("CC", "cc")), ("c++", os.environ.get("CXX", "c++"))):
        script = tmp_path / name
        script.write_text(f'#!/bin/sh\ncase "$*" in *-mavx*) exit 1;; esac\nexec {real} "$@" -O0\n')
        script.chmod(0o755)
    tree = unpack(sdist, tmp_path / "un packed")
    compilers = {"CC": str(tmp_path / "cc"), "CXX": str(tmp_path / "c++")}
    wheel, log = build("wheel", tree, tmp_path / "dist", FASTXENT_THREADS="0", **compilers)
    for isa in ("avx2", "avx512"):
        assert f"building fastxent without {isa} kernels" in log
    site = tmp_path / "site"
    install(wheel, site)
    answer = use(site, tmp_path)
    assert answer["cpu"]["instruction_sets"] == ["baseline"]
    assert not answer["cpu"]["threads"]
