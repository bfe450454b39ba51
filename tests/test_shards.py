"""Partial rows that merge: exact in the tail, and the same as whole rows for any split of the classes."""

from __future__ import annotations

import itertools
import pickle

import ml_dtypes
import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import fastxent as fx
from fastxent import _backend, merge_lse, partial_lse
from fastxent.shards import LSEState


@pytest.fixture(scope="module", autouse=True)
def kernels(backend):
    """Every test of this module runs on each backend."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_backend, "DEFAULT", _backend.choose(backend))
        yield


INF, NAN = np.inf, np.nan
TAIL = 4.248354255291589e-18  # log1p(exp(-40)) in mpmath


def cut(z, y, cuts):
    """(shard, labels, offset) of the column ranges between cuts."""
    ends = [0, *cuts, z.shape[-1]]
    return [(z[..., a:b], y, a) for a, b in itertools.pairwise(ends)]


def merged(parts):
    return merge_lse([partial_lse(*part) for part in parts])


def whole_grad(state, parts, **options):
    return np.concatenate([state.grad(*part, **options) for part in parts], axis=-1)


def unit(dtype):
    return float(np.finfo(dtype).eps)


def assert_same(parts, z, y, **options):
    """Loss, lse and gradient of the merged state against the oracle in 60 digits."""
    state = merged(parts)
    dtype = state.dtype
    truth = reference.softmax(z, y, exact=True, **options)
    assert_ulp(state.loss(**options), truth.loss, dtype, 6)
    grad = whole_grad(state, parts, **options)
    assert grad.dtype == z.dtype
    exact_label = not options.get("label_smoothing") and not options.get("z_loss")
    for actual, expected, scale in zip(grad.ravel(), truth.grad.ravel(), truth.scale.ravel(), strict=True):
        size = abs(float(expected)) if exact_label else max(abs(float(scale)), abs(float(expected)))
        assert (
            abs(float(actual) - float(expected))
            <= 6 * unit(dtype) * size + np.finfo(dtype).smallest_subnormal
        )


def assert_ulp(actual, expected, dtype, ulp):
    expected = np.asarray(expected, float)
    bound = ulp * unit(dtype) * np.abs(expected) + np.finfo(dtype).smallest_subnormal
    assert (np.abs(np.asarray(actual, float) - expected) <= bound).all(), (actual, expected)


# The tail -------------------------------------------------------------------------------------------------


@pytest.fixture
def tail_off(backend):
    """Rounding of the tail in compiled kernels: a quotient of two exponentials, each to 0.67 ulp, and its own half."""
    return 2 * np.spacing(TAIL) if backend == "cpu" else 0.0


@pytest.mark.parametrize("cuts", [[], [1], [0, 1], [1, 1], [0, 0, 1, 2, 2]])
def test_margin_of_forty(cuts, tail_off):
    parts = cut(np.array([[40.0, 0.0]]), [0], cuts)
    state = merged(parts)
    assert abs(state.loss() - TAIL) <= tail_off
    np.testing.assert_allclose(whole_grad(state, parts), [[-TAIL, TAIL]], rtol=0, atol=tail_off)
    # what log S + m - x_y gives
    assert float(state.lse[0]) - 40.0 == 0


def test_offset_does_not_matter():
    parts = cut(np.array([[1e15 + 40.0, 1e15]]), [0], [1])
    assert merged(parts).loss() == TAIL


# Any split ------------------------------------------------------------------------------------------------


@st.composite
def problems(draw):
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    n, k = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    dtype = draw(st.sampled_from(["float32", "float64"]))
    z = rng.normal(0, draw(st.sampled_from([1, 30, 300])), (n, k)) + draw(st.sampled_from([0, 1e4, -1e4]))
    y = rng.integers(0, k, n)
    cuts = sorted(draw(st.lists(st.integers(0, k), max_size=4)))
    if draw(st.booleans()):  # a label on a boundary
        cuts = sorted([*cuts, int(y[0])])
    return z.astype(dtype), y, cuts, rng


@given(problems(), st.sampled_from([0.0, 0.1, 1.0]), st.sampled_from([0.0, 1e-3]), st.booleans())
def test_any_split_is_the_whole(problem, label_smoothing, z_loss, weighted):
    z, y, cuts, rng = problem
    options = {"label_smoothing": label_smoothing, "z_loss": z_loss}
    if weighted:
        options["sample_weight"] = rng.integers(0, 3, len(y)).astype(float)
    assert_same(cut(z, y, cuts), z, y, reduction="sum", **options)


@pytest.mark.parametrize("weight", [1.0, 1e6])
def test_the_rounding_of_a_subnormal_is_not_multiplied(weight):
    z = np.array([[9821.5, 10189.25, 10311.75, 10309.25, 10545.25]])
    options = {"z_loss": 1e-3, "sample_weight": np.array([weight])}
    assert_same(cut(z, np.array([2]), []), z, np.array([2]), reduction="sum", **options)


@given(problems(), st.randoms(use_true_random=False))
def test_any_order_and_grouping(problem, random):
    z, y, cuts, _ = problem
    parts = cut(z, y, cuts)
    expected = merged(parts)
    states = [partial_lse(*part) for part in parts]
    while len(states) > 1:
        random.shuffle(states)
        states[:2] = [merge_lse(states[:2])]
    assert states[0].columns == expected.columns
    for name in ("m", "t", "labels", "owned"):
        assert_ulp(getattr(states[0], name), getattr(expected, name), "float64", 4 * len(parts))
    for name in ("r", "Z"):
        assert_ulp(getattr(states[0], name), getattr(expected, name), "float64", 4 * len(parts))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "mean_rows", "mean_all"])
@pytest.mark.parametrize("weighted", [False, True])
def test_reductions_and_ignored_rows(reduction, weighted, dtype):
    rng = np.random.default_rng(5)
    z = rng.normal(size=(3, 4, 7)).astype(dtype)
    y = rng.integers(0, 7, (3, 4))
    y[1, :2] = -100
    options = {"reduction": reduction, "label_smoothing": 0.2}
    if weighted:
        options["sample_weight"] = rng.integers(0, 3, (3, 4)).astype(float)
    parts = cut(z, y, [2, 2, 6])
    state = merged(parts)
    loss, grad = fx.softmax_cross_entropy_with_grad(z, y, backend="numpy", **options)
    np.testing.assert_allclose(state.loss(**options), loss, rtol=20 * unit(dtype))
    actual = whole_grad(state, parts, **options)
    np.testing.assert_allclose(actual, grad, rtol=0, atol=20 * unit(dtype))
    assert (actual[1, :2] == 0).all()
    if reduction == "none":
        assert state.loss(**options).dtype == dtype
        assert state.loss(**options).shape == (3, 4)
    else:
        assert isinstance(state.loss(**options), float)


def test_smoothing_uses_the_global_number_of_classes():
    """Spreading over the columns of a shard, as some frameworks do, answers another number."""
    z = np.array([[3.0, -1.0, 0.5, 2.0, -4.0]])
    state = merged(cut(z, [0], [1]))
    expected = fx.softmax_cross_entropy(z, [0], label_smoothing=0.3)
    assert state.loss(label_smoothing=0.3) == pytest.approx(expected, rel=1e-15)
    assert abs(expected - fx.softmax_cross_entropy(z, [0], label_smoothing=0.3 * 4 / 5)) > 0.1


def test_many_shards_stay_exact():
    """One column per shard, 300 of them, in one merge and one by one."""
    rng = np.random.default_rng(7)
    z = np.sort(rng.normal(0, 40, (2, 300)), axis=1)
    y = np.array([299, 0])
    parts = cut(z, y, list(range(1, 300)))
    truth = reference.softmax(z, y, reduction="none", exact=True)
    assert_ulp(merged(parts).loss(reduction="none"), truth.loss, "float64", 4)
    one = partial_lse(*parts[0])
    for part in parts[1:]:
        one = merge_lse([one, partial_lse(*part)])
    assert_ulp(one.loss(reduction="none"), truth.loss, "float64", 16)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision(dtype):
    z = np.random.default_rng(0).normal(size=(3, 5)).astype(dtype)
    parts = cut(z, np.array([0, 3, 4]), [2])
    state = merged(parts)
    assert state.dtype == "float32"
    loss, grad = fx.softmax_cross_entropy_with_grad(z, [0, 3, 4])
    assert state.loss() == pytest.approx(loss, rel=1e-6)
    ours = whole_grad(state, parts)
    assert ours.dtype == dtype
    assert_array_equal(ours.astype(float), grad.astype(float))


# Edges ----------------------------------------------------------------------------------------------------

EDGES = {
    "one +inf at the label": ([INF, 1.0, 2.0], 0),
    "one +inf elsewhere": ([1.0, INF, 2.0], 0),
    "two +inf": ([INF, 1.0, INF], 0),
    "-inf elsewhere": ([-INF, 1.0, 2.0], 1),
    "-inf at the label": ([-INF, 1.0, 2.0], 0),
    "a shard of -inf": ([1.0, -INF, -INF], 0),
    "a shard of -inf with the label": ([1.0, -INF, -INF], 2),
    "all -inf": ([-INF, -INF, -INF], 1),
    "NaN": ([1.0, NAN, 2.0], 0),
    "NaN and +inf": ([INF, NAN, 2.0], 0),
    "equal": ([2.0, 2.0, 2.0], 1),
}


@pytest.mark.parametrize("cuts", [[], [0], [1], [2], [1, 2], [1, 1, 3]])
@pytest.mark.parametrize("name", sorted(EDGES))
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2, 1.0])
def test_edges_are_those_of_whole_rows(name, cuts, label_smoothing, dtype):
    row, label = EDGES[name]
    z = np.array([row, [0.0, 1.0, 2.0]], dtype)
    y = np.array([label, 2])
    options = {"label_smoothing": label_smoothing, "reduction": "none"}
    parts = cut(z, y, cuts)
    state = merged(parts)
    expected, grad = fx.softmax_cross_entropy_with_grad(z, y, backend="numpy", **options)
    np.testing.assert_allclose(state.loss(**options), expected, rtol=4 * unit(dtype))
    _, lse = fx.softmax_cross_entropy_forward(z, y, backend="numpy", **options)
    np.testing.assert_allclose(state.lse, lse, rtol=4 * unit(dtype))
    np.testing.assert_allclose(whole_grad(state, parts, **options), grad, rtol=0, atol=4 * unit(dtype))


@pytest.mark.parametrize("where", [0, 1, 2])
def test_nan_sticks_and_stays_in_its_row(where):
    z = np.zeros((2, 3))
    z[0, where] = NAN
    for cuts in ([1], [1, 2], [0, 3]):
        state = merged(cut(z, np.array([0, 0]), cuts))
        loss = state.loss(reduction="none")
        assert np.isnan(loss[0])
        assert loss[1] == pytest.approx(np.log(3))
        state = merged(cut(z, np.array([-100, 0]), cuts))
        assert state.loss() == pytest.approx(np.log(3))


def test_empty_shards_change_nothing():
    z = np.array([[1.0, 3.0], [0.5, -2.0]])
    y = np.array([1, 0])
    plain = merged(cut(z, y, [1]))
    padded = merged([(np.empty((2, 0)), y, 0), *cut(z, y, [1]), (np.empty((2, 0)), y, 2)])
    for name in ("m", "r", "t", "Z", "owned", "columns"):
        assert_array_equal(getattr(plain, name), getattr(padded, name))
    assert plain.grad(np.empty((2, 0)), y, 2).shape == (2, 0)
    assert (partial_lse(np.empty((2, 0)), y, 0).lse == -INF).all()


def test_no_rows_and_nothing_counted():
    y = np.empty(0, int)
    state = partial_lse(np.empty((0, 3)), y, 0)
    assert state.loss() == 0.0
    assert state.grad(np.empty((0, 3)), y, 0).shape == (0, 3)
    z = np.array([[1.0, NAN]])
    state = partial_lse(z, [-100], 0)
    assert state.loss() == 0.0
    assert state.grad(z, [-100], 0).tolist() == [[0.0, 0.0]]


def test_one_row_without_an_axis(tail_off):
    state = merge_lse([partial_lse([40.0], 0, 0), partial_lse([0.0], 0, 1)])
    assert abs(state.loss() - TAIL) <= tail_off
    assert abs(state.grad([0.0], 0, 1)[0] - TAIL) <= tail_off


def test_gradient_is_the_derivative():
    rng = np.random.default_rng(11)
    z, y = rng.normal(size=(3, 5)), np.array([0, 4, 2])
    options = {"label_smoothing": 0.1, "z_loss": 0.01, "sample_weight": np.array([1.0, 2.0, -0.5])}
    grad = whole_grad(merged(cut(z, y, [2])), cut(z, y, [2]), **options)
    step = 1e-6
    for at in np.ndindex(z.shape):
        values = []
        for sign in (1, -1):
            moved = z.copy()
            moved[at] += sign * step
            values.append(merged(cut(moved, y, [3])).loss(**options))
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(grad[at], abs=1e-8)


# Travel and mistakes --------------------------------------------------------------------------------------


def test_states_pickle_and_are_small():
    z = np.random.default_rng(0).normal(size=(100, 5000)).astype("float32")
    y = np.arange(100)
    state = partial_lse(z, y, 0)
    data = pickle.dumps(state)
    assert len(data) < 100 * 48 + 2000
    again = pickle.loads(data)
    assert isinstance(again, LSEState)
    assert again.loss() == state.loss()
    assert again.columns == ((0, 5000),)


def test_inputs_are_not_kept_or_changed():
    z, y = np.array([[1.0, 2.0]]), np.array([0])
    state = partial_lse(z, y, 0)
    before = state.loss()
    z += 5
    y += 1
    assert state.loss() == before


def test_missing_and_repeated_columns():
    z, y = np.zeros((2, 6)), np.array([0, 5])
    a, b, c = (partial_lse(*part) for part in cut(z, y, [2, 4]))
    with pytest.raises(ValueError, match="all columns from 0 on, has only 0 to 1, 4 to 5"):
        merge_lse([a, c]).loss()
    with pytest.raises(ValueError, match="has only 2 to 5"):
        merge_lse([b, c]).loss()
    with pytest.raises(ValueError, match="has only none"):
        partial_lse(np.zeros((2, 0)), y, 0).loss()
    with pytest.raises(ValueError, match="every column once, got 0 to 1 and 0 to 5"):
        merge_lse([a, merge_lse([a, b, c])])
    with pytest.raises(ValueError, match=r"targets\[1\] = 5 is not a class.*0 to 3; are states missing"):
        merge_lse([a, b]).loss()
    assert np.isnan(merge_lse([a, b]).loss(check=False, reduction="none")).tolist() == [False, True]
    with pytest.raises(ValueError, match="a shard of this state, got columns 4 to 5"):
        merge_lse([a, b]).grad(z[:, 4:], y, 4, check=False)


@pytest.mark.parametrize("label", [3, -1, -101])
def test_bad_labels(label):
    y = np.array([0, label])
    parts = cut(np.zeros((2, 3)), y, [1])
    with pytest.raises(ValueError, match=rf"targets\[1\] = {label} is not a class"):
        merged(parts).loss()
    with pytest.raises(ValueError, match="is not a class"):
        merged(parts).grad(*parts[0])


def test_wrong_arguments():
    z, y = np.zeros((2, 3)), np.array([0, 1])
    state = partial_lse(z, y, 0)
    with pytest.raises(ValueError, match="at least one"):
        merge_lse([])
    with pytest.raises(TypeError, match=r"states\[1\]: expected LSEState, got int"):
        merge_lse([state, 3])
    with pytest.raises(ValueError, match="other labels"):
        merge_lse([state, partial_lse(z, y + 1, 3)])
    with pytest.raises(ValueError, match="class_offset: expected at least 0"):
        partial_lse(z, y, -1)
    with pytest.raises(TypeError, match="class_offset: expected an integer"):
        partial_lse(z, y, 1.5)
    with pytest.raises(TypeError, match="integer or bool labels"):
        partial_lse(z, [0.0, 1.0], 0)
    with pytest.raises(ValueError, match="expected labels of shape"):
        partial_lse(z, [0], 0)
    with pytest.raises(ValueError, match="labels that this state was made with"):
        state.grad(z, y + 1, 0)
    for options in (
        {"label_smoothing": 2.0},
        {"z_loss": -1.0},
        {"reduction": "max"},
        {"sample_weight": [NAN, 1]},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            state.loss(**options)
