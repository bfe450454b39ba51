"""The CUDA kernels as machine code, without a GPU or a driver: what their speed stands on.

A spilled register, a load of four bytes instead of sixteen or an instruction too many in the inner loop costs a part
of the memory's rate that no test of results would notice. The ceilings are what the kernels compile to today, with a
margin of a few registers; the budget at 4.3 TB/s is 15.6 instructions per 16-bit element read, 31 per float32.
"""

from __future__ import annotations

import importlib
import re

import pytest

numba_cuda = pytest.importorskip("numba.cuda", reason="numba-cuda is not installed")
if getattr(numba_cuda, "implementation", None) != "NVIDIA":
    pytest.skip("numba-cuda is not installed", allow_module_level=True)
pytest.importorskip("cuda.bindings.nvjitlink", reason="nvidia-nvjitlink is not installed")
cuda_sass = pytest.importorskip("cuda_sass", reason="cuda.bindings is not installed")

careful, elements, launch, softmax, totals = (
    importlib.import_module(f"fastxent._core_cuda.{name}")
    for name in ("careful", "elements", "launch", "softmax", "totals")
)
boost, curvature, divergence, general, partial_of_classes, region, solve = (
    importlib.import_module(f"fastxent._core_cuda.{name}")
    for name in ("boost", "curvature", "divergence", "general", "partial", "region", "solve")
)
STORAGES = launch.STORAGES

if cuda_sass.disassembler() is None:
    pytest.skip("nvdisasm is not installed", allow_module_level=True)

pytestmark = pytest.mark.sass
slow = pytest.mark.slow


def rows(make, dtype, *arguments, threads, label="int64"):
    return make(STORAGES[dtype], *arguments), launch._row_signature(dtype, label), threads


def split(dtype, saved):
    kernel = softmax.split_kernel(STORAGES[dtype], saved, True, 256)
    return kernel, launch._split_signature(dtype, "int64"), 256


def partial(dtype):
    return softmax.partial_kernel(STORAGES[dtype], False, 256), launch._partial_signature(dtype, "int64"), 256


def flat(dtype, family=0):
    kernel = elements.flat_kernel(STORAGES[dtype], STORAGES[dtype], True, family)
    return kernel, launch._flat_signature(dtype, dtype), 256


# kernel, ceiling of registers, 16-byte loads at least
VARIANTS = {
    "tile 10": (lambda t: rows(softmax.tile_kernel, t, 10, True, threads=256), 72, 2),
    "8 lanes": (lambda t: rows(softmax.resident_kernel, t, 2, 8, True, threads=256), 80, 2),
    "32 lanes": (lambda t: rows(softmax.resident_kernel, t, 4, 32, True, threads=256), 104, 4),
    "block": (lambda t: rows(softmax.resident_kernel, t, 4, 0, True, threads=512), 104, 4),
    "8 in a block": (lambda t: rows(softmax.resident_kernel, t, 8, 0, True, threads=512), 128, 8),
    "8 in a warp": (lambda t: rows(softmax.resident_kernel, t, 8, 32, True, threads=256), 112, 8),
    "stream": (lambda t: rows(softmax.stream_kernel, t, False, True, 512, threads=512), 72, 9),
    "partial": (partial, 72, 5),
    "split": (lambda t: split(t, False), 72, 5),
    "saved": (lambda t: split(t, True), 72, 5),
    "sigmoid": (flat, 96, 2),
    "binary focal": (lambda t: flat(t, 1), 96, 2),
}
NINE = [("stream", "float32"), ("stream", "bfloat16")]
REST = [
    (v, t)
    for v in VARIANTS
    for t in ("float32", "bfloat16")
    if (v, t) not in NINE and (v, t) != ("8 in a warp", "bfloat16")
] + [
    ("stream", "float16"),
    ("block", "float16"),
]
CASES = [pytest.param(*case, (9, 0)) for case in NINE]
CASES += [pytest.param(*case, (9, 0), marks=slow) for case in REST]
CASES += [pytest.param(v, "bfloat16", (8, 0), marks=slow) for v in ("stream", "block", "tile 10")]


@pytest.mark.parametrize(("variant", "dtype", "cc"), CASES)
def test_machine_code(variant, dtype, cc, tmp_path):
    """No spill, no local memory, 16-byte loads, no 64-bit division; few enough registers for two blocks at least."""
    make, registers, loads = VARIANTS[variant]
    function, signature, threads = make(dtype)
    code = cuda_sass.machine_code(function, signature, cc, tmp_path, threads)
    assert code.spills == 0
    assert code.stack == 0
    assert code.count("LDL", "STL") == 0
    assert code.registers <= registers + (16 if cc == (8, 0) else 0)
    assert re.search(r"ld\.global\.v4|ld\.global\.nc\.v4", code.ptx)
    assert code.count("LDG.E.128", "LDG.E.128.CONSTANT") >= loads
    assert not re.search(r"(?:div|rem)\.[su]64", code.ptx)
    if variant == "stream":
        per_vector = STORAGES[dtype].per_vector
        elements_of_loop = softmax.UNROLL * per_vector
        # the two sweeps: the loops of as many exponentials as elements (and one more, which rescales the sum)
        sums = [loop for loop in code.loops if loop["MUFU.EX2"] == elements_of_loop + 1]
        gradient = [loop for loop in code.loops if loop["MUFU.EX2"] == elements_of_loop and loop["STG.E.128"]]
        assert len(sums) == len(gradient) == 1
        ceiling = 6.0 if dtype == "float32" else 6.5
        for loop in sums + gradient:
            assert loop.total() / elements_of_loop <= ceiling
            assert loop["LDG.E.128"] == softmax.UNROLL


@slow
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_general_kernels_compile(dtype, tmp_path):
    """The careful kernels, the elements of two axes and the sums: no spill."""
    storage = STORAGES[dtype]
    real = "float64" if dtype == "float64" else "float32"
    cases = [
        (careful.careful_kernel(storage, 32, False, True), launch._careful_signature(dtype, "int64"), 256),
        (careful.careful_kernel(storage, 0, True, True), launch._careful_signature(dtype, real), 256),
        (
            elements.strided_kernel(storage, STORAGES[real], True, "upper", False),
            launch._strided_signature(dtype, real),
            256,
        ),
        (totals.label_totals_kernel(), launch._totals_signature("int32", real), 512),
        (totals.soft_totals_kernel(), launch._totals_signature(real, real), 512),
        (totals.combine_kernel(STORAGES[real]), launch._combine_signature(real), 512),
        (totals.weight_totals_kernel(), launch._weights_signature(real), 256),
    ]
    for function, signature, threads in cases[: 4 if dtype == "float16" else None]:
        code = cuda_sass.machine_code(function, signature, (9, 0), tmp_path, threads)
        assert code.spills == 0
        assert code.count("LDL", "STL") == 0


def of_curvature(dtype, mode):
    real = "float64" if mode == "upper" or dtype == "float64" else "float32"
    kernel = curvature.curvature_kernel(STORAGES[dtype], STORAGES[real], 32, False, mode)
    return kernel, general._curvature_signature(dtype, "int64", real)


def of_divergence(dtype, family, teacher, mode):
    real = "float64" if dtype == "float64" else "float32"
    kernel = divergence.divergence_kernel(STORAGES[dtype], STORAGES[real], 32, teacher, family, mode)
    return kernel, general._divergence_signature(dtype, real)


# kernel and signature for a dtype, ceiling of registers
GENERAL = {
    "diagonal": (lambda t: of_curvature(t, "diagonal"), 112),
    "product": (lambda t: of_curvature(t, "product"), 120),
    "upper": (lambda t: of_curvature(t, "upper"), 120),
    "divergence": (lambda t: of_divergence(t, "jensen_shannon", "weights", "rows"), 128),
    "divergence product": (lambda t: of_divergence(t, "reverse_kl", "logits", "product"), 112),
    "boost": (lambda t: (boost.boost_kernel(STORAGES[t], 1), general._boost_signature(t)), 96),
    "state": (lambda t: (partial_of_classes.state_kernel(STORAGES[t], 0), general._state_signature(t)), 80),
    "shard": (lambda t: (partial_of_classes.grad_kernel(STORAGES[t], 0), general._shard_signature(t)), 80),
    "region sums": (
        lambda t: (
            region.sums_kernel(STORAGES[t], "softmax", True, True),
            general._region_sums_signature(t),
        ),
        80,
    ),
    "region gradient": (
        lambda t: (
            region.grad_kernel(STORAGES[t], 1, "softmax", True, True),
            general._region_grad_signature(t),
        ),
        96,
    ),
    "system": (
        lambda t: (
            solve.system_kernel(STORAGES[t], STORAGES["float32"], 32, True),
            general._system_signature(t, "float32"),
        ),
        112,
    ),
    "solve 1": (lambda t: (solve.solve_kernel(STORAGES[t], 32, 1), general._solve_signature(t)), 128),
    "solve 2": (lambda t: (solve.solve_kernel(STORAGES[t], 32, 2), general._solve_signature(t)), 168),
}
COMPILED = [pytest.param(name, "float32", marks=() if name == "shard" else slow) for name in GENERAL]
COMPILED += [pytest.param(name, "bfloat16", marks=slow) for name in ("diagonal", "divergence", "state")]


@pytest.mark.parametrize(("name", "dtype"), COMPILED)
def test_general_kernels_keep_their_registers(name, dtype, tmp_path):
    """Second derivatives, divergences, systems, shards and regions: no spill, no local memory, a block of 256 fits."""
    make, registers = GENERAL[name]
    code = cuda_sass.machine_code(*make(dtype), (9, 0), tmp_path, 256)
    assert code.spills == 0
    assert code.stack == 0
    assert code.count("LDL", "STL") == 0
    assert code.registers <= registers
