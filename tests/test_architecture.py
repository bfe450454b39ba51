"""The house rules that no user sees: imports, twins, lazy loading, the build, symbols, instruction sets."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fresh import printed, run_python

import fastxent as fx

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(fx.__file__).parent
KERNELS = ROOT / "src" / "fastxent" / "_kernels"

# A file imports only from the rows above its own, inside functions too; rows 0 to 2 do not know each other.
LAYERS = (
    ("_core_numpy", "_core", "_dense", "_step", "_core_cuda"),
    ("_memory", "_threads", "_checks", "_device", "_backend"),
    (
        "losses",
        "information",
        "_shards_on_device",
        "shards",
        "_linear_on_device",
        "linear",
        "_boosting_on_device",
    ),
    (
        "solvers",
        "_files",
        "_estimator",
        "_blocks",
        "_penalized",
        "_logistic_on_device",
        "logistic",
        "mlp",
        "calibration",
        "files",
        "dask",
    ),
    ("torch", "boosting", "plots", "_bench", "cli"),
)
LAYER = {name: number for number, row in enumerate(LAYERS) for name in row}
ORDER = {name: place for place, name in enumerate(name for row in LAYERS for name in row)}
HEAVY = ("sklearn", "scipy", "torch", "numba", "dask", "matplotlib", "pandas", "threadpoolctl")


def imports_of(path):
    """Modules of the package that a file names in any import statement, at any depth of nesting."""
    folders = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                module = ".".join((*folders[: len(folders) + 1 - node.level], node.module or "")).strip(".")
            elif (node.module or "").partition(".")[0] == "fastxent":
                module = node.module.partition(".")[2]
            else:
                continue
            if module:
                yield module.partition(".")[0]
            else:
                yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "fastxent":
                    yield alias.name.partition(".")[2].partition(".")[0] or "__init__"


def modules():
    outside = [PACKAGE / "__init__.py", PACKAGE / "__main__.py"]
    files = [path for path in PACKAGE.rglob("*.py") if path not in outside]
    return sorted((path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path) for path in files)


@pytest.mark.parametrize(
    ("name", "path"), modules(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_import_rule(name, path):
    """Only from files listed above it; kernels do not know each other; _dense is for linear alone, _step for mlp."""
    assert name in ORDER, f"{name} has no place in the layout"
    for other in imports_of(path):
        if other == name:
            continue
        assert other in ORDER, f"{name} imports {other}, which has no place in the layout"
        assert ORDER[other] < ORDER[name], f"{name} imports {other}, which stands below it"
        assert LAYER[name] > 0, f"the kernel {name} imports {other}"
        if other == "_dense":
            assert name == "linear", f"{name} imports _dense"
        if other == "_step":
            assert name == "mlp", f"{name} imports _step"
        if LAYER[name] == 4:
            assert other in ("_bench", "plots") or LAYER[other] < 4, (
                f"the edge {name} imports the edge {other}"
            )


def test_cython_files_know_only_the_table_of_kernels():
    """_dense and _step run the kernels of _core between their products, in a crew; nothing else enters a kernel."""
    for path in (ROOT / "src" / "fastxent").glob("*.pyx"):
        lines = path.read_text(encoding="utf-8").splitlines()
        found = [x for x in lines if re.match(r"\s*(from|import|cimport)\s+(\.|fastxent)", x)]
        if path.stem in ("_dense", "_step"):
            found = [x for x in found if not re.match(r"from fastxent\.(_core|_crew) cimport\b", x)]
        assert not found, f"{path.name}: {found}"


def test_nothing_imports_the_edges():
    for name, path in modules():
        for other in imports_of(path):
            assert LAYER.get(other) != 4 or LAYER[name] == 4, f"{name} imports the edge {other}"


def test_only_the_door_to_pytorch_imports_it():
    """The benchmark cases run PyTorch as a peer; everything else knows tensors only where the user imported them."""
    for name, path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if any(module.partition(".")[0] == "torch" for module in named):
                assert name in ("torch", "_bench"), f"{path.name} imports PyTorch"


# Twins ----------------------------------------------------------------------------------------------------


def kernels_of(module):
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and not inspect.isclass(value)
    }


def test_extension_is_loaded():
    """The compiled backend is what it says: an extension module, and the one that "auto" takes."""
    from fastxent import _backend, _core

    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    assert any(_core.__file__.endswith(suffix) for suffix in suffixes)
    assert _backend.choose("cpu") is _core
    assert _backend.choose(None) is _core
    assert _backend.choose("auto") is _core
    assert "cpu" in _backend.describe()["backends"]


@pytest.mark.compiled
def test_twins_have_identical_signatures():
    """Every kernel of the specification is in the accelerated twin, with the same parameters in order."""
    from fastxent import _core, _core_numpy

    specification = {name: getattr(_core_numpy, name) for name in _core_numpy.__all__}
    assert set(specification) <= set(kernels_of(_core))
    for name, function in specification.items():
        expected = list(inspect.signature(function).parameters.values())
        actual = list(inspect.signature(getattr(_core, name)).parameters.values())
        assert [p.name for p in actual] == [p.name for p in expected], name
        assert [p.default for p in actual] == [p.default for p in expected], name


def test_specification_lists_its_kernels():
    from fastxent import _core_numpy

    assert sorted(_core_numpy.__all__) == _core_numpy.__all__
    assert set(kernels_of(_core_numpy)) == set(_core_numpy.__all__)


def test_doors_of_a_family_share_their_options():
    """The same options with the same defaults in the same order behind every door of a family."""
    families = {
        "softmax_cross_entropy": ("_with_grad", "_forward", "_backward"),
        "sigmoid_cross_entropy": ("_with_grad", "_forward", "_backward"),
        "binary_cross_entropy": ("_with_grad",),
    }
    own = {"grad_loss", "lse", "out"}
    for family, suffixes in families.items():
        expected = list(inspect.signature(getattr(fx, family)).parameters.values())
        for suffix in suffixes:
            parameters = inspect.signature(getattr(fx, family + suffix)).parameters.values()
            assert [p for p in parameters if p.name not in own] == expected, family + suffix
    back = inspect.signature(fx.softmax_cross_entropy_backward).parameters
    assert list(back)[:4] == ["grad_loss", "logits", "targets", "lse"]
    assert back["lse"].default is None
    assert back["lse"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert back["out"].kind is inspect.Parameter.KEYWORD_ONLY


# Loading --------------------------------------------------------------------------------------------------


def test_import_loads_numpy_and_the_extension_only():
    code = f"""
import json, sys
import numpy
before = set(sys.modules)
import fastxent
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
print(json.dumps(sorted(m for m in sys.modules if m.startswith("fastxent."))))
"""
    heavy, own = map(json.loads, printed(code).splitlines())
    assert heavy == []
    allowed = {
        "_memory",
        "_core_numpy",
        "_core",
        "_core_cuda",
        "_checks",
        "_device",
        "_backend",
        "losses",
        "information",
    }
    assert {name.partition(".")[2].partition(".")[0] for name in own} <= allowed


def test_kernels_run_without_the_heavy_libraries():
    """A call of every door of the losses loads none of them either."""
    code = f"""
import sys
import fastxent as fx
fx.softmax_cross_entropy_with_grad([[1.0, 2.0]], [0])
fx.sigmoid_cross_entropy([1.0], [1])
fx.binary_cross_entropy([0.5], [1])
fx.SoftmaxCrossEntropy().grad_hess([[1.0, 2.0]], [0])
dir(fx)
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    assert printed(code) == "[]"


def stub_names(path):
    """Public names that a stub declares: imports, functions, classes and annotated names."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names, listed = set(), None
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign):
            names.add(node.target.id)
        elif isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
            listed = ast.literal_eval(node.value)
    return {name for name in names if not name.startswith("_")}, listed


def test_all_is_what_the_stub_says():
    """`__all__`, the stub and what can be got are one list."""
    assert len(set(fx.__all__)) == len(fx.__all__)
    declared, listed = stub_names(PACKAGE / "__init__.pyi")
    if listed is not None:
        assert set(listed) == set(fx.__all__)
    assert set(fx.__all__) <= declared
    for name in fx.__all__:
        assert getattr(fx, name) is not None
        assert name in dir(fx)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = fx.nonsense


def test_private_modules_declare_what_they_offer():
    for name in ("losses", "_core_numpy"):
        module = importlib.import_module(f"fastxent.{name}")
        for public in module.__all__:
            value = getattr(module, public)
            if callable(value):
                assert value.__module__.startswith(module.__name__)
                assert value.__doc__


def test_package_is_typed():
    assert (PACKAGE / "py.typed").is_file()


def test_torch_and_dask_are_not_exported():
    """Names that shadow top-level packages stay out of `__all__`."""
    assert not {"torch", "dask"} & set(fx.__all__)


# The build ------------------------------------------------------------------------------------------------

FORBIDDEN_FLAGS = (
    "-ffast-math",
    "-Ofast",
    "-march=native",
    "-mtune=native",
    "-funsafe-math-optimizations",
    "/fp:fast",
)


def test_no_unsafe_flags():
    """fast-math flushes denormals in the whole process and breaks NaN; native code does not travel."""
    files = [
        ROOT / "setup.py",
        ROOT / "pyproject.toml",
        ROOT / "Makefile",
        *KERNELS.glob("*"),
        *PACKAGE.glob("*.pyx"),
    ]
    read = [path for path in files if path.is_file()]
    assert read
    for path in read:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            code = re.split(r"#(?!pragma)|//", line)[0]
            for flag in FORBIDDEN_FLAGS:
                assert flag not in code, f"{path.name}:{number}: {flag}"


def test_import_changes_no_floating_point_mode():
    """Denormals are not flushed, before or after a call of every family, on the main thread or another."""
    code = """
import threading
import numpy as np
import fastxent as fx
assert np.float32(1e-40) * np.float32(1) != 0
assert np.float64(1e-310) * np.float64(1) != 0
z = np.random.default_rng(0).standard_normal((400_000, 4), np.float32)
fx.softmax_cross_entropy_with_grad(z, np.zeros(len(z), int), num_threads=2)
fx.sigmoid_cross_entropy_with_grad(z, (z > 0), num_threads=2)
results = []
def check():
    results.append(bool(np.float32(1e-40) * np.float32(1) and np.float64(1e-310) * np.float64(1)))
check()
worker = threading.Thread(target=check)
worker.start()
worker.join()
assert np.array_equal(np.full(64, 1e-40, np.float32) * np.float32(1), np.full(64, 1e-40, np.float32))
print(results)
"""
    assert printed(code) == "[True, True]"


def extension_file():
    spec = importlib.util.find_spec("fastxent._core")
    return Path(spec.origin)


@pytest.fixture(scope="module")
def objdump():
    tool = shutil.which("objdump")
    if tool is None:
        pytest.skip("objdump is not installed")
    return tool


@pytest.mark.compiled
def test_no_shared_kernel_symbols(objdump):
    """The linker merges equal weak symbols, and AVX-512 bodies end up in the baseline: so ours are none."""
    done = subprocess.run([objdump, "-tC", extension_file()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    weak = []
    for line in done.stdout.splitlines():
        match = re.match(r"^[0-9a-f]+ (.{7}) (\S+)\s+[0-9a-f]+\s+(?:\.hidden )?(.*)$", line)
        if match and ("w" in match[1] or "u" in match[1]) and match[2] not in ("*UND*", "*ABS*"):
            weak.append(match[3])
    kernels = [name for name in weak if re.search(r"\b(avx512|avx2|baseline)::|\bfx::", name)]
    assert kernels == []


def test_instruction_set_sources_use_nothing_of_the_standard_library():
    """Templates of std:: are weak symbols wherever they are used: kernels take C headers and builtins."""
    if not KERNELS.is_dir():
        pytest.skip("the kernel sources are not in an installed package")
    todo, seen = sorted(KERNELS.glob("isa_*.cpp")), set()
    assert todo
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        code = re.sub(r"//[^\n]*", "", path.read_text(encoding="utf-8"))
        assert "std::" not in code, path.name
        for header in re.findall(r"#\s*include\s*<(.*?)>", code):
            assert header.endswith(".h"), f"{path.name} includes <{header}>"
        todo += [KERNELS / name for name in re.findall(r'#\s*include\s*"(.*?)"', code)]


@pytest.mark.compiled
def test_vector_code_stays_in_its_namespace(objdump):
    """zmm and mask registers only in avx512 functions, ymm and VEX only there and in avx2 ones."""
    done = subprocess.run(
        [objdump, "-d", "--no-show-raw-insn", "-C", extension_file()],
        capture_output=True,
        text=True,
        check=False,
    )
    if "x86-64" not in done.stdout[:300]:
        pytest.skip("not an x86-64 extension")
    function, wrong, seen = "", set(), set()
    for line in done.stdout.splitlines():
        if match := re.match(r"^[0-9a-f]+ <(.*)>:$", line):
            function = match[1]
            continue
        wide = re.search(r"%zmm|%k[1-7]\b", line)
        vex = wide or re.search(r"%ymm|\tv[a-z]", line)
        if not vex:
            continue
        owner = "avx512" if "avx512" in function else "avx2" if "avx2" in function else None
        seen.add(owner)
        if owner is None or (wide and owner != "avx512"):
            wrong.add(function)
    assert wrong == set()
    assert "avx512" in seen or "avx2" in seen, "no vector code found: is the symbol table stripped?"


# Instruction sets -----------------------------------------------------------------------------------------


@pytest.mark.compiled
def test_unknown_instruction_set():
    """A clear ImportError that names the variable and what came, and no silent fallback to NumPy."""
    done = run_python("import fastxent", FASTXENT_ISA="abacus")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError")
    assert "FASTXENT_ISA" in last
    assert "abacus" in last


def other_instruction_sets():
    """Names that FASTXENT_ISA takes on this machine, without the one that this process runs on."""
    if importlib.util.find_spec("fastxent._core") is None:
        return []
    from fastxent import _core

    info = _core.info()
    return [isa for isa in info["instruction_sets"] if isa != info["instruction_set"]]


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize("isa", other_instruction_sets())
def test_every_instruction_set_is_exact(isa):
    """The ulp and edge tests on every instruction set that this machine has, each in its own process."""
    tests = Path(__file__).parent
    files = [
        str(tests / f"test_{name}.py")
        for name in ("accuracy", "softmax", "sigmoid", "binary", "edges", "losses")
    ]
    files += [
        str(tests / f"test_{name}.py") for name in ("divergence", "binary_family", "family", "large_layer")
    ]
    # What happens before a kernel is called needs no second run.
    select = (
        "(cpu or large_layer) and not (bad_arguments or bad_out or layouts or int_counts or four_gigabytes)"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider", "-k", select, *files],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "FASTXENT_ISA": isa},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.compiled
def test_describe_names_the_instruction_set(capsys):
    from fastxent import _backend, _core

    info = _core.info()
    assert info["instruction_set"] in info["instruction_sets"]
    assert info["instruction_set"] in str(_backend.describe())
    fx.show_versions()
    assert info["instruction_set"] in capsys.readouterr().out
