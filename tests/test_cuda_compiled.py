"""The CUDA kernels as machine code, without a GPU or a driver: what their speed stands on.

A spilled register, a load of four bytes instead of sixteen or an instruction too many in the inner loop costs a part
of the memory's rate that no test of results would notice. The ceilings are what the kernels compile to today, with a
margin of a few registers; the budget at 4.3 TB/s is 15.6 instructions per 16-bit element read, 31 per float32.
"""

from __future__ import annotations

import importlib
import os
import re

import pytest

numba_cuda = pytest.importorskip("numba.cuda", reason="numba-cuda is not installed")
if getattr(numba_cuda, "implementation", None) != "NVIDIA":
    pytest.skip("numba-cuda is not installed", allow_module_level=True)
pytest.importorskip("cuda.bindings.nvjitlink", reason="nvidia-nvjitlink is not installed")
cuda_sass = pytest.importorskip("cuda_sass", reason="cuda.bindings is not installed")

careful, elements, launch, softmax, split_row, totals, vectors = (
    importlib.import_module(f"fastxent._core_cuda.{name}")
    for name in ("careful", "elements", "launch", "softmax", "split", "totals", "vectors")
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
    kernel = split_row.split_kernel(STORAGES[dtype], saved, True, 256)
    return kernel, launch._split_signature(dtype, "int64"), 256


def partial(dtype):
    return (
        split_row.partial_kernel(STORAGES[dtype], False, 256),
        launch._partial_signature(dtype, "int64"),
        256,
    )


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
QUICK = [("stream", "float32", (9, 0)), ("stream", "bfloat16", (9, 0)), ("shard", "float32", (9, 0))]
# The whole product takes a quarter of an hour; without it every kernel is compiled in two dtypes, for both chips.
ALL = os.environ.get("FASTXENT_KERNELS") == "all"


def chosen(kernels, dtypes, left_out):
    """(kernel, dtype, compute capability): float32 for 9.0, and one other dtype, in turn, for one of both."""
    for number, kernel in enumerate(kernels):
        known = [dtype for dtype in dtypes if not left_out(kernel, dtype)]
        others = [dtype for dtype in known if dtype != "float32"]
        some = [("float32", (9, 0))]
        if others:
            some.append((others[number % len(others)], (8 + number // 2 % 2, 0)))
        for dtype in known:
            for cc in ((8, 0), (9, 0)):
                case = kernel, dtype, cc
                if ALL or (dtype, cc) in some or case in QUICK:
                    name = f"{kernel}-{dtype}-{cc[0]}.{cc[1]}"
                    yield pytest.param(*case, marks=() if case in QUICK else slow, id=name)


# A warp holds 4 vectors of 16-bit words a lane.
CASES = chosen(
    VARIANTS, ("float32", "bfloat16", "float16"), lambda v, dtype: v == "8 in a warp" and dtype != "float32"
)


@pytest.mark.parametrize(("variant", "dtype", "cc"), CASES)
def test_machine_code(variant, dtype, cc, tmp_path):
    """No spill, no local memory, 16-byte loads, no 64-bit division; few enough registers for two blocks on 9.0."""
    make, registers, loads = VARIANTS[variant]
    function, signature, threads = make(dtype)
    code = cuda_sass.machine_code(function, signature, cc, tmp_path, threads)
    if (variant, cc) == ("8 in a block", (8, 0)):
        # four words are put aside, once a row of 64 to 128 KB: less than a second read of it would cost
        assert code.stack <= 16
        assert code.count("LDL", "STL") <= 12
    else:
        assert code.spills == 0
        assert code.stack == 0
        assert code.count("LDL", "STL") == 0
    # a row of 1024 float32 in a warp leaves a multiprocessor of 8.0 one block, with 32 KB on their way
    more = 0 if cc == (9, 0) else 56 if variant == "8 in a warp" else 24
    assert code.registers <= registers + more
    assert re.search(r"ld\.global\.v4|ld\.global\.nc\.v4", code.ptx)
    assert code.count("LDG.E.128", "LDG.E.128.CONSTANT") >= loads
    assert not re.search(r"(?:div|rem)\.[su]64", code.ptx)
    if variant == "stream":
        per_vector = STORAGES[dtype].per_vector
        elements_of_loop = vectors.UNROLL * per_vector
        # the two sweeps: the loops of as many exponentials as elements (and one more, which rescales the sum)
        sums = [loop for loop in code.loops if loop["MUFU.EX2"] == elements_of_loop + 1]
        gradient = [loop for loop in code.loops if loop["MUFU.EX2"] == elements_of_loop and loop["STG.E.128"]]
        assert len(sums) == len(gradient) == 1
        ceiling = 6.0 if dtype == "float32" else 6.5
        for loop in sums + gradient:
            assert loop.total() / elements_of_loop <= ceiling
            assert loop["LDG.E.128"] == vectors.UNROLL


@slow
@pytest.mark.parametrize(
    ("variant", "dtype"),
    [("8 in a warp", "float32"), ("block", "bfloat16"), ("stream", "float32"), ("tile 10", "float32")],
)
def test_what_a_launch_links(variant, dtype, tmp_path):
    """Numba links what nvJitLink optimizes, not PTX: no spill there either, as wide loads, loops as short."""
    make, registers, loads = VARIANTS[variant]
    function, signature, threads = make(dtype)
    code = cuda_sass.machine_code(function, signature, (9, 0), tmp_path, threads, lto=True)
    assert code.spills == 0
    assert code.count("LDL", "STL") == 0
    assert code.registers <= registers
    assert code.count("LDG.E.128", "LDG.E.128.CONSTANT") >= loads
    if variant == "stream":
        many = vectors.UNROLL * STORAGES[dtype].per_vector
        sweeps = [loop for loop in code.loops if loop["MUFU.EX2"] in (many, many + 1)]
        assert len(sweeps) == 2
        assert all(loop.total() / many <= 6.5 for loop in sweeps)


@slow
@pytest.mark.parametrize("cc", [(8, 0), (9, 0)])
@pytest.mark.parametrize("real", ["float32", "float64"])
def test_sums_compile(real, cc, tmp_path):
    """Denominators, weights and losses of regions: no spill, no local memory."""
    cases = [
        (totals.label_totals_kernel(), launch._totals_signature("int32", real), 512),
        (totals.soft_totals_kernel(), launch._totals_signature(real, real), 512),
        (totals.combine_kernel(STORAGES[real]), launch._combine_signature(real), 512),
        (totals.weight_totals_kernel(), launch._weights_signature(real), 256),
    ]
    if real == "float64":
        cases += [
            (region.total_kernel(), general._region_total_signature(), 256),
            (region.loss_kernel(), general._region_loss_signature(), 256),
        ]
    for function, signature, threads in cases:
        code = cuda_sass.machine_code(function, signature, cc, tmp_path, threads)
        assert code.spills == 0
        assert code.count("LDL", "STL") == 0


def of_curvature(dtype, mode, soft=False, plain=False, wide=False):
    real = "float64" if mode == "upper" or dtype == "float64" else "float32"
    kernel = curvature.curvature_kernel(STORAGES[dtype], STORAGES[real], 32, soft, mode, plain, wide)
    return kernel, general._curvature_signature(dtype, real if soft else "int64", real)


def of_divergence(dtype, family, teacher, mode):
    real = general.real_name(dtype)
    kernel = divergence.divergence_kernel(STORAGES[dtype], STORAGES[real], 32, teacher, family, mode)
    return kernel, general._divergence_signature(dtype, real)


def of_system(dtype):
    real = general.real_name(dtype)
    return solve.system_kernel(STORAGES[dtype], STORAGES[real], 32, True), general._system_signature(
        dtype, real
    )


def of_region(dtype, part):
    kernel = {
        "rows": lambda x: region.rows_kernel(x, 32),
        "sums": lambda x: region.sums_kernel(x, "softmax", True, True),
        "grad": lambda x: region.grad_kernel(x, 1, "softmax", True, True),
    }[part](STORAGES[dtype])
    return kernel, getattr(general, f"_region_{part}_signature")(dtype)


def of_elements(dtype, hess, probabilities):
    real = STORAGES[general.real_name(dtype)]
    kernel = elements.strided_kernel(STORAGES[dtype], real, True, hess, probabilities)
    return kernel, launch._strided_signature(dtype, real.name)


def of_careful(dtype, soft, plain=False, wide=False):
    target = general.real_name(dtype) if soft else "int64"
    kernel = careful.careful_kernel(STORAGES[dtype], 32, soft, True, plain, wide)
    return kernel, launch._careful_signature(dtype, target)


# kernel and signature for a dtype, ceilings of registers where the arithmetic is float32 and where it is float64
GENERAL = {
    "diagonal": (lambda t: of_curvature(t, "diagonal"), 112, 136),
    "product": (lambda t: of_curvature(t, "product"), 120, 136),
    "upper": (lambda t: of_curvature(t, "upper"), 120, 136),
    "divergence": (lambda t: of_divergence(t, "jensen_shannon", "weights", "rows"), 128, 128),
    "divergence product": (lambda t: of_divergence(t, "reverse_kl", "logits", "product"), 112, 112),
    "divergence upper": (lambda t: of_divergence(t, "forward_kl", "weights", "upper"), 112, 112),
    "divergence weights": (lambda t: of_divergence(t, "jensen_shannon", "logits", "weights"), 112, 112),
    "entropy": (lambda t: of_divergence(t, "entropy", "none", "rows"), 112, 112),
    "boost": (lambda t: (boost.boost_kernel(STORAGES[t], 1), general._boost_signature(t)), 96, 96),
    "state": (
        lambda t: (partial_of_classes.state_kernel(STORAGES[t], 0), general._state_signature(t)),
        80,
        96,
    ),
    "shard": (
        lambda t: (partial_of_classes.grad_kernel(STORAGES[t], 0), general._shard_signature(t)),
        80,
        80,
    ),
    "region rows": (lambda t: of_region(t, "rows"), 80, 80),
    "region sums": (lambda t: of_region(t, "sums"), 80, 88),
    "region gradient": (lambda t: of_region(t, "grad"), 96, 96),
    "system": (of_system, 112, 136),
    "solve 1": (lambda t: (solve.solve_kernel(STORAGES[t], 32, 1), general._solve_signature(t)), 128, 128),
    "solve 2": (lambda t: (solve.solve_kernel(STORAGES[t], 32, 2), general._solve_signature(t)), 168, 168),
    "careful": (lambda t: of_careful(t, False), 112, 144),
    "careful, soft": (lambda t: of_careful(t, True), 112, 144),
    "wide soft": (lambda t: of_careful(t, True, plain=True, wide=True), 96, 0),
    "wide focal": (lambda t: of_careful(t, True, wide=True), 128, 0),
    "wide diagonal": (lambda t: of_curvature(t, "diagonal", plain=True, wide=True), 96, 0),
    "wide product": (lambda t: of_curvature(t, "product", plain=True, wide=True), 96, 0),
    "wide product, focal": (lambda t: of_curvature(t, "product", soft=True, wide=True), 128, 0),
    "two axes": (lambda t: of_elements(t, "upper", False), 96, 96),
    "probabilities": (lambda t: of_elements(t, "exact", True), 96, 96),
}
# Boosters' margins are float32 or float64; rows of float64 have no vectors.
COMPILED = chosen(
    GENERAL,
    ("float32", "bfloat16", "float16", "float64"),
    lambda v, dtype: (v == "boost" and "16" in dtype) or (v.startswith("wide") and dtype == "float64"),
)


@pytest.mark.parametrize(("name", "dtype", "cc"), COMPILED)
def test_general_kernels_keep_their_registers(name, dtype, cc, tmp_path):
    """Kernels over rows of any strides: no spill, no local memory, no 64-bit division, a block of 256 threads fits."""
    make, *registers = GENERAL[name]
    code = cuda_sass.machine_code(*make(dtype), cc, tmp_path, 256)
    assert code.spills == 0
    assert code.stack == 0
    assert code.count("LDL", "STL") == 0
    assert not re.search(r"(?:div|rem)\.[su]64", code.ptx)
    more = 0 if cc == (9, 0) else 40
    assert code.registers <= registers[dtype == "float64"] + more
    if name.startswith("wide"):  # in every sweep over the logits, and in their copies that the compiler makes
        assert code.count("LDG.E.128", "LDG.E.128.CONSTANT") >= 5
        assert code.count("STG.E.128") >= 1
