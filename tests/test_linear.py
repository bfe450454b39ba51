"""Cross-entropy of X W + b: against the oracle on whole logits, whatever the blocks, threads, layout or sparsity."""

import tracemalloc

import numpy as np
import pytest
from reference import softmax
from scipy import sparse
from threadpoolctl import threadpool_info

from fastxent import _backend, linear
from fastxent.linear import linear_cross_entropy, linear_cross_entropy_with_grad
from fastxent.losses import SoftmaxCrossEntropy


def problem(n=37, d=5, k=4, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)).astype(dtype)
    W = rng.standard_normal((d, k)).astype(dtype)
    b = rng.standard_normal(k).astype(dtype)
    return X, W, b, rng.integers(0, k, n)


def whole(X, W, b, targets, **options):
    """Oracle: logits in float64, then the reference on them, then the chain rule."""
    X, W = np.asarray(X, np.float64), np.asarray(W, np.float64)
    out = softmax(X @ W + (0 if b is None else np.asarray(b, np.float64)), targets, **options)
    return out.loss, out.grad @ W.T, X.T @ out.grad, out.grad.sum(axis=0)


def tolerance(dtype):
    return {"rtol": 2e-5, "atol": 2e-6} if dtype == "float32" else {"rtol": 1e-11, "atol": 1e-13}


OPTIONS = [
    {},
    {"reduction": "sum"},
    {"reduction": "none"},
    {"reduction": "mean_rows", "sample_weight": np.linspace(0, 3, 37)},
    {"reduction": "mean_all", "ignore_index": 2},
    {"class_weight": np.array([0.5, 2.0, 0.0, 1.0]), "sample_weight": np.linspace(0, 3, 37)},
    {"label_smoothing": 0.2, "smoothing": "exclude_target", "temperature": 1.7},
    {"label_smoothing": 0.1, "z_loss": 0.01, "logit_bias": np.array([0.1, -0.2, 0.0, 1.0])},
    {"base": 2, "ignore_index": 1},
    {"reduction": "none", "base": 2, "sample_weight": np.linspace(0, 3, 37)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
def test_options_against_oracle(options, soft, backend, dtype):
    X, W, b, y = problem(dtype=dtype)
    if soft:
        if "ignore_index" in options:
            options = {key: value for key, value in options.items() if key != "ignore_index"}
        y = np.random.default_rng(1).dirichlet(np.ones(4), 37).astype(dtype)
    expected = whole(X, W, b, y, **options)
    got = linear_cross_entropy_with_grad(X, W, y, b, backend=backend, **options)
    for name, a, e in zip(("loss", "dX", "dW", "db"), got, expected, strict=True):
        np.testing.assert_allclose(a, e, **tolerance(dtype), err_msg=name)
    np.testing.assert_array_equal(linear_cross_entropy(X, W, y, b, backend=backend, **options), got[0])
    assert got[1].dtype == got[2].dtype == got[3].dtype == np.dtype(dtype)


@pytest.mark.parametrize("n", [0, 1, 511, 512, 513, 1300])
def test_any_number_of_rows_around_the_block_size(n, backend):
    X, W, b, y = problem(n=n)
    expected = whole(X, W, b, y, reduction="sum")
    got = linear_cross_entropy_with_grad(X, W, y, b, reduction="sum", backend=backend)
    for a, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-11)


def test_same_bits_for_any_number_of_threads(backend, dtype):
    # 9000 x 60 x 8 multiplications are above the threshold for threads, in 16 segments.
    X, W, b, y = problem(n=9000, d=60, k=8, dtype=dtype)
    one, *others = (
        linear_cross_entropy_with_grad(X, W, y, b, num_threads=t, backend=backend) for t in (1, 2, 3, 5)
    )
    assert X.size * 8 > linear._SERIAL_WORK
    for other in others:
        for a, e in zip(other, one, strict=True):
            np.testing.assert_array_equal(a, e)


def test_gradient_is_the_numerical_derivative():
    X, W, b, y = problem(n=600)
    options = {
        "label_smoothing": 0.1,
        "z_loss": 0.05,
        "temperature": 1.3,
        "sample_weight": np.linspace(0, 2, 600),
    }
    _, dX, dW, db = linear_cross_entropy_with_grad(X, W, y, b, **options)
    rng = np.random.default_rng(3)
    tX, tW, tb = rng.standard_normal(X.shape), rng.standard_normal(W.shape), rng.standard_normal(b.shape)
    h = 1e-5
    plus = linear_cross_entropy(X + h * tX, W + h * tW, y, b + h * tb, **options)
    minus = linear_cross_entropy(X - h * tX, W - h * tW, y, b - h * tb, **options)
    slope = np.vdot(dX, tX) + np.vdot(dW, tW) + np.vdot(db, tb)
    assert (plus - minus) / (2 * h) == pytest.approx(slope, rel=1e-8)


def test_bias_of_any_stride(backend):
    X, W, b, y = problem()
    for bias in (b[::-1], np.repeat(b, 3)[::3], np.broadcast_to(b[1], b.shape)):
        expected = whole(X, W, bias, y)
        got = linear_cross_entropy_with_grad(X, W, y, bias, backend=backend)
        for a, e in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, e, **tolerance("float64"))


def test_without_bias_and_without_dx():
    X, W, _, y = problem()
    loss, dX, dW, db = linear_cross_entropy_with_grad(X, W, y, need_dx=False)
    expected = whole(X, W, None, y)
    assert dX is None
    assert db is None
    assert loss == pytest.approx(expected[0], rel=1e-13)
    np.testing.assert_allclose(dW, expected[2], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csr_array], ids=["matrix", "array"])
@pytest.mark.parametrize("index", [np.int32, np.int64], ids=["int32", "int64"])
def test_sparse_is_dense(form, index, dtype):
    X, W, b, y = problem(n=2500, d=40, k=6, dtype=dtype)
    X[abs(X) < 1] = 0
    S = form(X)
    S = form((S.data, S.indices.astype(index), S.indptr.astype(index)), shape=S.shape)
    dense = linear_cross_entropy_with_grad(X, W, y, b, need_dx=False)
    got = linear_cross_entropy_with_grad(S, W, y, b, need_dx=False)
    assert got[1] is None
    for a, e in zip((got[0], *got[2:]), (dense[0], *dense[2:]), strict=True):
        np.testing.assert_allclose(a, e, **tolerance(dtype))


def test_sparse_in_many_segments_is_dense(monkeypatch):
    monkeypatch.setattr(linear, "_BLOCK_ELEMENTS", 600)
    X, W, b, y = problem(n=1013, d=3, k=6)
    rows = linear.SoftmaxRows(_backend.DEFAULT, y[:, None], 6)
    objective = linear.LinearObjective(sparse.csr_array(X), rows, X.dtype)
    assert len(objective.segments) == 16
    assert max(map(len, objective.segments)) > 0
    covered = [
        i for segment in objective.segments for block in segment for i in range(block.start, block.stop)
    ]
    assert covered == list(range(1013))
    expected = whole(X, W, b, y, reduction="sum")
    with linear.Team(objective) as team:
        loss, dW, db = objective.loss_grad(W, b, team)
    assert loss == pytest.approx(expected[0], rel=1e-12)
    np.testing.assert_allclose(dW, expected[2], rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(db, expected[3], rtol=1e-10, atol=1e-11)


def test_layouts_of_x_give_the_same():
    X, W, b, y = problem(n=1100, d=12)
    expected = linear_cross_entropy_with_grad(X, W, y, b)
    read_only = X.copy()
    read_only.flags.writeable = False
    strided = np.zeros((2200, 24))[::2, ::2]
    strided[...] = X
    layouts = {
        "F": np.asfortranarray(X),
        "read-only": read_only,
        "strided": strided,
        "negative": X[::-1][::-1],
    }
    for name, layout in layouts.items():
        got = linear_cross_entropy_with_grad(layout, W, y, b)
        for a, e in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-14, err_msg=name)


def test_half_precision_is_computed_in_float32():
    X, W, b, y = problem(n=700, dtype="float32")
    X = X.astype(np.float16)
    loss, dX, dW, _ = linear_cross_entropy_with_grad(X, W, y, b)
    expected = whole(X, W, b, y)
    assert (dX.dtype, dW.dtype) == (np.float16, np.float32)
    assert loss == pytest.approx(expected[0], rel=1e-6)
    np.testing.assert_allclose(dW, expected[2], rtol=2e-5, atol=2e-6)


def peak_memory(function):
    function()
    tracemalloc.start()
    function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_the_logits_are_never_whole():
    n, k = 100_000, 64
    X, W, b, y = problem(n=n, d=3, k=k, dtype="float32")
    objective = linear.LinearObjective(X, linear.SoftmaxRows(_backend.DEFAULT, y[:, None], k), X.dtype)
    with linear.Team(objective, 2) as team:
        assert peak_memory(lambda: objective.loss_grad(W, b, team)) < n * k * 4 / 4


@pytest.mark.compiled
def test_the_public_function_needs_no_whole_matrix_either():
    n, k = 100_000, 64
    X, W, b, y = problem(n=n, d=3, k=k, dtype="float32")
    assert peak_memory(lambda: linear_cross_entropy(X, W, y, b, backend="cpu")) < n * k * 4 / 4


def test_all_rows_ignored():
    X, W, b, _ = problem()
    y = np.full(37, -100)
    loss, dX, dW, db = linear_cross_entropy_with_grad(X, W, y, b)
    assert loss == 0
    assert not dX.any()
    assert not dW.any()
    assert not db.any()
    assert np.isnan(linear_cross_entropy(X, W, y, b, empty="nan"))


def test_errors_name_the_argument():
    X, W, b, y = problem()
    with pytest.raises(ValueError, match=r"W: expected shape \(d, n_classes\)"):
        linear_cross_entropy(X, W.T, y)
    with pytest.raises(ValueError, match=r"bias: expected shape \(4,\)"):
        linear_cross_entropy(X, W, y, b[:3])
    with pytest.raises(ValueError, match="start at 1"):
        linear_cross_entropy(X, W, y + 1)
    with pytest.raises(ValueError, match="targets"):
        linear_cross_entropy(X, W, y[:-1])
    with pytest.raises(ValueError, match="need_dx"):
        linear_cross_entropy_with_grad(sparse.csr_matrix(X), W, y)
    with pytest.raises(TypeError, match="CSR"):
        linear_cross_entropy(sparse.csc_matrix(X), W, y)
    with pytest.raises(ValueError, match="num_threads"):
        linear_cross_entropy(X, W, y, num_threads=0)


def objectives(n=900, d=4, k=3):
    """Each kind of rows, its whole-logits twin in NumPy, and a point."""
    X, W, b, y = problem(n=n, d=d, k=k)
    v = np.linspace(0, 2, n)
    core = _backend.DEFAULT
    yield linear.SoftmaxRows(core, y[:, None], k, v[:, None], label_smoothing=0.1, z_loss=0.1), X, W, b
    yield linear.SigmoidRows(core, (y == 1).astype(float), v, label_smoothing=0.1), X, W[:, :1], b[:1]
    yield linear.LossRows(SoftmaxCrossEntropy(label_smoothing=0.1), y, k, v), X, W, b
    yield linear.LossRows(SoftmaxCrossEntropy(), np.minimum(y, 1), 2, v, binary=True), X, W[:, :1], b[:1]


@pytest.mark.parametrize("case", range(4), ids=["softmax", "sigmoid", "loss object", "binary loss object"])
def test_derivatives_of_objectives(case):
    rows, X, W, b = list(objectives())[case]
    objective = linear.LinearObjective(X, rows, X.dtype)
    rng = np.random.default_rng(5)
    V, c = rng.standard_normal(W.shape), rng.standard_normal(b.shape)
    h = 1e-5
    with linear.Team(objective, 2) as team:
        total, dW, db = objective.loss_grad(W, b, team)
        assert objective.loss(W, b, team) == pytest.approx(total, rel=1e-14)
        plus, minus = (objective.loss_grad(W + s * V, b + s * c, team) for s in (h, -h))
        assert (plus[0] - minus[0]) / (2 * h) == pytest.approx(np.vdot(dW, V) + np.vdot(db, c), rel=1e-8)
        HW, Hb = objective.hvp(W, b, V, c, team)
        np.testing.assert_allclose(HW, (plus[1] - minus[1]) / (2 * h), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(Hb, (plus[2] - minus[2]) / (2 * h), rtol=1e-6, atol=1e-6)
        H = objective.hessian(W, b, team)
        np.testing.assert_allclose(H, H.T, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(
            H @ np.concatenate([V.ravel(), c]), np.concatenate([HW.ravel(), Hb]), rtol=1e-9
        )
        H = objective.hessian(W, None, team)
        HW, _ = objective.hvp(W, None, V, None, team)
        np.testing.assert_allclose(H @ V.ravel(), HW.ravel(), rtol=1e-9, atol=1e-9)


def test_hessian_of_plain_cross_entropy_by_factors_is_that_by_products(monkeypatch):
    X, W, b, y = problem(n=900, d=4, k=3)
    v = np.linspace(0, 2, 900)
    for weight in (None, v):
        column = None if weight is None else weight[:, None]
        rows = linear.SoftmaxRows(_backend.DEFAULT, y[:, None], 3, column, label_smoothing=0.1)
        objective = linear.LinearObjective(X, rows, X.dtype)
        assert rows.factored
        with linear.Team(objective) as team:
            H, without = objective.hessian(W, b, team), objective.hessian(W, None, team)
            diagonal = objective.curvature(W, b, team)
            with monkeypatch.context() as patch:
                patch.setattr(linear.SoftmaxRows, "factored", False)
                expected, expected_without = objective.hessian(W, b, team), objective.hessian(W, None, team)
        np.testing.assert_allclose(H, expected, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(without, expected_without, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(diagonal.ravel(), np.diagonal(expected), rtol=1e-9)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array], ids=["dense", "sparse"])
def test_squares_and_curvature_are_diagonals(form):
    X, W, b, y = problem(n=1300, d=6, k=1)
    v = np.linspace(0, 2, 1300)
    rows = linear.SigmoidRows(_backend.DEFAULT, (y == 0).astype(float), v)
    dense, any_form = (linear.LinearObjective(f(X), rows, X.dtype) for f in (np.asarray, form))
    with linear.Team(dense) as team:
        np.testing.assert_allclose(any_form.squares(), np.diagonal(dense.moment(team)), rtol=1e-11)
        H = dense.hessian(W, b, team)
        np.testing.assert_allclose(any_form.curvature(W, b, team)[:, 0], np.diagonal(H), rtol=1e-10)


def test_moment_of_some_rows_resembles_that_of_all():
    X, _, _, y = problem(n=20_000, d=6)
    rows = linear.SoftmaxRows(_backend.DEFAULT, y[:, None], 4)
    objective = linear.LinearObjective(X, rows, X.dtype)
    with linear.Team(objective) as team:
        some, every = objective.moment(team, 4000), objective.moment(team)
    assert some[6, 6] == every[6, 6] == 20_000
    np.testing.assert_allclose(some, every, atol=0.1 * 20_000)
    assert abs(some - every).max() > 0


def test_sigmoid_rows_are_softmax_rows_of_two_classes():
    X, W, b, y = problem(k=2)
    v = np.linspace(0, 2, 37)
    expected = whole(X, np.stack([0 * W[:, 0], W[:, 0]], 1), [0, b[0]], y, sample_weight=v, reduction="sum")
    objective = linear.LinearObjective(X, linear.SigmoidRows(_backend.DEFAULT, y.astype(float), v), X.dtype)
    with linear.Team(objective) as team:
        total, dW, db = objective.loss_grad(W[:, :1], b[:1], team)
    assert total == pytest.approx(expected[0], rel=1e-13)
    np.testing.assert_allclose(dW[:, 0], expected[2][:, 1], rtol=1e-11)
    np.testing.assert_allclose(db[0], expected[3][1], rtol=1e-11)


def test_sparse_hessian_and_moment(monkeypatch):
    X, W, b, y = problem(n=300)
    X[abs(X) < 0.5] = 0
    v = np.linspace(0, 2, 300)
    rows = linear.SoftmaxRows(_backend.DEFAULT, y[:, None], 4, v[:, None])
    dense, thin = (
        linear.LinearObjective(X, rows, X.dtype),
        linear.LinearObjective(sparse.csr_array(X), rows, X.dtype),
    )
    ones = np.column_stack([X, np.ones(300)])
    with linear.Team(dense) as team:
        np.testing.assert_allclose(
            thin.hessian(W, b, team), dense.hessian(W, b, team), rtol=1e-10, atol=1e-11
        )
        np.testing.assert_allclose(dense.moment(team), ones.T @ (v[:, None] * ones), rtol=1e-11, atol=1e-11)


def test_blas_threads_are_restored_by_the_last_one_out():
    def blas():
        return {lib["filepath"]: lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}

    before = blas()
    outer, inner = linear._single_threaded_blas, linear._single_threaded_blas
    outer.__enter__()
    inner.__enter__()
    outer.__exit__()
    assert set(blas().values()) == {1}
    inner.__exit__()
    assert blas() == before


@pytest.mark.compiled
def test_compiled_pass_is_taken_where_blas_reads_x_in_place_and_answers_as_numpy(monkeypatch, dtype):
    X, W, b, y = problem(n=1300, d=12, dtype=dtype)
    v = np.linspace(0, 2, 1300, dtype=dtype)
    taken = []
    original = linear._dense.linear_pass
    monkeypatch.setattr(linear._dense, "linear_pass", lambda *given: taken.append(1) or original(*given))
    wide = np.zeros((1300, 20), dtype)
    wide[:, 3:15] = X
    layouts = {"C": (X, 1), "F": (np.asfortranarray(X), 1), "columns of wider rows": (wide[:, 3:15], 1)}
    layouts |= {"every other": (np.repeat(X, 2, axis=1)[:, ::2], 0), "backwards": (X[::-1].copy()[::-1], 0)}
    options = {"sample_weight": v, "class_weight": [1, 2, 0.5, 1], "label_smoothing": 0.1, "temperature": 2.0}
    expected = whole(X, W, b, y, **options)
    for name, (layout, times) in layouts.items():
        taken.clear()
        loss, _, dW, db = linear_cross_entropy_with_grad(
            layout, W, y, b, need_dx=False, backend="cpu", **options
        )
        assert len(taken) == times, name
        np.testing.assert_allclose(loss, expected[0], rtol=1e-5 if dtype == "float32" else 1e-12)
        np.testing.assert_allclose(dW, expected[2], **tolerance(dtype))
        np.testing.assert_allclose(db, expected[3], **tolerance(dtype))


@pytest.mark.compiled
@pytest.mark.parametrize("k", [1, 2, 7, 8, 9, 16, 17, 31, 33, 63, 64, 65])
@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray], ids=["rows", "columns"])
def test_products_for_few_outputs(k, layout, dtype):
    # Widths around one to four vectors of every instruction set, heights around the tiles and the blocks.
    for n, d in ((1, 1), (3, 16), (33, 7), (530, 25)):
        X, W, b, y = problem(n=n, d=d, k=k, dtype=dtype, seed=k)
        expected = whole(X, W, b, y, reduction="sum")
        got = linear_cross_entropy_with_grad(layout(X), W, y, b, reduction="sum", backend="cpu")
        scale = np.sqrt(n * d)
        room = (2e-6 if dtype == "float32" else 4e-15) * scale
        for a, e in zip(got, expected, strict=True):
            np.testing.assert_allclose(
                a, e, rtol=10 * room, atol=room * (1 + np.abs(e).max()), err_msg=f"{n} {d}"
            )


@pytest.mark.compiled
@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray], ids=["rows", "columns"])
@pytest.mark.parametrize("d", [1, 3, 8, 17, 40, 300])
def test_compiled_pass_for_one_logit_in_any_shape(d, layout, dtype):
    for n in (1, 7, 16, 1300):
        X, W, b, y = problem(n=n, d=d, k=2, dtype=dtype)
        rows = linear.SigmoidRows(_backend.choose("cpu"), y.astype(dtype))
        objective = linear.LinearObjective(layout(X), rows, X.dtype)
        with linear.Team(objective) as team:
            total, dW, db = objective.loss_grad(W[:, :1], b[:1], team)
        z = X.astype(float) @ W[:, 0].astype(float) + float(b[0])
        p = 1 / (1 + np.exp(-z))
        room = (3e-6 if dtype == "float32" else 1e-14) * np.sqrt(n * d)
        assert total == pytest.approx(np.logaddexp(0, z).sum() - z @ y, rel=room, abs=room)
        np.testing.assert_allclose(dW[:, 0], X.T.astype(float) @ (p - y), atol=5 * room)
        np.testing.assert_allclose(db[0], (p - y).sum(), atol=5 * room)


@pytest.mark.compiled
def test_compiled_pass_for_one_logit(dtype):
    X, W, b, y = problem(n=1300, d=12, k=2, dtype=dtype)
    v = np.linspace(0, 2, 1300, dtype=dtype)
    answers = {}
    for backend in ("numpy", "cpu"):
        rows = linear.SigmoidRows(_backend.choose(backend), y.astype(dtype), v, label_smoothing=0.1)
        objective = linear.LinearObjective(X, rows, X.dtype)
        with linear.Team(objective) as team:
            answers[backend] = objective.loss_grad(W[:, :1], b[:1], team)
    for a, e in zip(answers["cpu"], answers["numpy"], strict=True):
        np.testing.assert_allclose(
            a, e, rtol=1e-4 if dtype == "float32" else 1e-11, atol=1e-4 if dtype == "float32" else 1e-11
        )
