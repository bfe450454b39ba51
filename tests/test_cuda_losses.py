"""Losses of regions and of adversaries, and `solve`, on a device, over memory that stands for one."""

from __future__ import annotations

import cuda_twin
import numpy as np
import pytest

import fastxent as fx
from fastxent import _backend, _device
from fastxent.losses import DiceLoss, TverskyLoss

get = cuda_twin.get
IMAGES = (2, 4, 3, 5)

REGIONS = [
    (DiceLoss(), (6,)),
    (DiceLoss(axis=(2, 3)), IMAGES),
    (DiceLoss(axis=(0, 2, 3), class_axis=1), IMAGES),
    (DiceLoss("softmax", axis=(0, 2, 3), class_axis=1, smooth=0.0), IMAGES),
    (TverskyLoss(0.3, 0.7, "softmax", (2, 3), class_axis=1, soft_labels=True), IMAGES),
    (TverskyLoss(0.3, 0.7, "none", (0, 3)), IMAGES),
    (TverskyLoss(0.3, 0.7, "softmax"), (7, 3)),
    (0.5 * DiceLoss("softmax") + fx.SoftmaxCrossEntropy(), (7, 3)),
]


def numbers(shape, seed=0):
    return np.random.default_rng(seed).random(shape)


@pytest.mark.parametrize(("loss", "shape"), REGIONS, ids=lambda x: repr(x)[:30])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_regions_are_those_in_memory(put, loss, shape, reduction, weighted):
    """Soft targets; weights of the rows of a softmax or of the elements; an array to write into."""
    summed = isinstance(loss, fx.losses.SumLoss)
    if summed and reduction == "none":
        pytest.skip("regions and rows have no shape in common")
    z, t = numbers(shape), numbers(shape, 1)
    softmax = summed or loss.activation == "softmax"
    axis = -1 if summed else loss.class_axis
    w = None
    if weighted:
        w = numbers(np.delete(shape, axis) if softmax else shape, 2)
    expected = loss.loss_grad(z, t, w, reduction)
    given = put(z), put(t), None if w is None else put(w), reduction
    out = put(z)
    for found in (loss.loss_grad(*given), loss.loss_grad(*given, out=out, check=False)):
        for ours, theirs in zip(found, expected, strict=True):
            assert get(ours).shape == np.shape(theirs)
            np.testing.assert_allclose(get(ours), theirs, rtol=1e-9, atol=1e-12)
    assert found[1] is out
    np.testing.assert_allclose(get(loss.loss(*given)), expected[0], rtol=1e-9)


def test_labels_of_regions_and_layouts(put):
    """Class indices become one-hot; classes last in memory; what is wrong is said."""
    loss = DiceLoss("softmax", axis=(0, 2, 3), class_axis=1)
    z, y = numbers(IMAGES), np.random.default_rng(1).integers(0, 4, (2, 3, 5))
    expected = loss.loss_grad(z, y)
    last = put(np.moveaxis(z, 1, 3))
    last = last.permute(0, 3, 1, 2) if hasattr(last, "permute") else last.transpose((0, 3, 1, 2))
    for given in (put(z), last):
        for ours, theirs in zip(loss.loss_grad(given, put(y)), expected, strict=True):
            np.testing.assert_allclose(get(ours), theirs, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="targets: expected labels from 0 to 3"):
        loss.loss(put(z), put(y + 1))
    with pytest.raises(ValueError, match=r"targets: expected numbers in \[0, 1\], got 1.5"):
        DiceLoss().loss(put(z), put(np.full(IMAGES, 1.5)))
    with pytest.raises(ValueError, match="sample_weight: expected non-negative numbers, got -1"):
        DiceLoss().loss(put(z), put(z), put(np.full(IMAGES, -1.0)))
    with pytest.raises(ValueError, match="targets: expected the shape of logits"):
        loss.loss(put(z), put(z[:1]))
    with pytest.raises(TypeError, match="targets: expected an array on the device"):
        loss.loss(put(z), y)
    with pytest.raises(TypeError, match="a region couples its rows"):
        loss.hvp(put(z), put(y), put(z))


SOLVED = [
    fx.SoftmaxCrossEntropy(),
    fx.SoftmaxCrossEntropy(z_loss=0.1, temperature=1.5, logit_bias=(0.1, 0.0, -0.3, 0.2)),
    fx.FocalLoss(gamma=2.0),
    2.0 * fx.SoftmaxCrossEntropy() + fx.SigmoidCrossEntropy(),
    fx.SoftmaxCrossEntropy() + fx.JensenShannonLoss(),
    fx.SigmoidCrossEntropy(),
]


@pytest.mark.parametrize("loss", SOLVED, ids=lambda x: repr(x)[:40])
@pytest.mark.parametrize("weighted", [False, True])
def test_solutions_are_those_in_memory(put, loss, weighted):
    """Damping as a number and one per row; denominators that are sums of weights."""
    z, y, r = numbers((7, 4)) * 4, numbers((7, 4), 1), numbers((7, 4), 2)
    mixed = "Sigmoid" in repr(loss)  # whose weights are those of elements
    w = numbers(7, 3) if weighted and not mixed else None
    for lam in (0.5, numbers(7, 4) + 0.1):
        if loss.elementwise and np.ndim(lam):
            lam = np.broadcast_to(lam[:, None], z.shape)
        expected = loss.solve(z, y, r, lam, w)
        given = put(z), put(y), put(r), put(lam) if np.ndim(lam) else lam, None if w is None else put(w)
        np.testing.assert_allclose(get(loss.solve(*given)), expected, rtol=1e-8, atol=1e-10)
    with pytest.raises(ValueError, match="lam: expected"):
        loss.solve(put(z), put(y), put(r), 0.0)
    with pytest.raises(ValueError, match="r: expected the shape of logits"):
        loss.solve(put(z), put(y), put(r[:1]), 1.0)


GAN = [
    fx.losses.GANDiscriminatorLoss(),
    fx.losses.GANDiscriminatorLoss(0.9),
    fx.losses.GANGeneratorLoss(),
    fx.losses.GANGeneratorLoss("minimax"),
]


@pytest.mark.parametrize("loss", GAN, ids=repr)
@pytest.mark.parametrize("reduction", ["mean", "mean_rows", "mean_all", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_adversarial_losses_are_those_in_memory(put, loss, reduction, weighted):
    """Both groups, one of them empty, and curvature."""
    z, w = numbers(9) * 4 - 2, numbers(9, 1) if weighted else None
    for y in (np.array([1, 0, 0, 1, 1, 0, 1, 0, 0]), np.zeros(9, int)):
        expected = loss.loss_grad(z, y, w, reduction)
        given = put(z), put(y), None if w is None else put(w), reduction
        for ours, theirs in zip(loss.loss_grad(*given), expected, strict=True):
            np.testing.assert_allclose(get(ours), theirs, rtol=1e-9, atol=1e-12)
        expected, found = (loss.grad_hess(*each)[1] for each in ((z, y, w, reduction), given))
        np.testing.assert_allclose(get(found), expected, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="targets: expected 1 for real and 0 for generated"):
        loss.loss(put(z), put(np.full(9, 2)))


def test_subclasses_are_arrays_of_their_library(monkeypatch):
    """A subclass of PyTorch's tensors from another module is one of PyTorch's, not one of Numba's."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    cuda_twin.install(monkeypatch)

    class Picture(torch.Tensor):
        __module__ = "elsewhere"

    z, y = torch.randn(5, 4), torch.randint(0, 4, (5,))
    loss, grad = fx.softmax_cross_entropy_with_grad(z.as_subclass(Picture), y)
    assert isinstance(grad, torch.Tensor)
    assert torch.allclose(loss.as_subclass(torch.Tensor), torch.nn.functional.cross_entropy(z, y))


def test_arrays_of_another_library_or_device(monkeypatch):
    """Labels of another library come by DLPack; those on another device, and a foreign `out`, are errors."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    cuda_twin.install(monkeypatch)
    taken = []
    monkeypatch.setattr(torch, "from_dlpack", lambda x: (taken.append(x), torch.from_numpy(x.get()))[1])
    monkeypatch.setattr(cuda_twin.Array, "__dlpack__", lambda self, **options: None, raising=False)
    z, labels = torch.randn(5, 4), np.arange(5) % 4
    expected = torch.nn.functional.cross_entropy(z, torch.from_numpy(labels))
    y = cuda_twin.put(labels)
    assert torch.allclose(fx.softmax_cross_entropy(z, y), expected)
    assert taken == [y]
    with pytest.raises(
        ValueError, match="targets: expected an array on device cpu, as logits, got one on meta"
    ):
        fx.softmax_cross_entropy(z, torch.zeros(5, dtype=torch.int64, device="meta"))
    with pytest.raises(ValueError, match="sample_weight: expected an array on device cpu"):
        fx.softmax_cross_entropy(z, torch.from_numpy(labels), sample_weight=torch.zeros(5, device="meta"))
    with pytest.raises(TypeError, match="out: expected an array on the device and of the library of logits"):
        fx.softmax_cross_entropy_with_grad(z, torch.from_numpy(labels), out=cuda_twin.put(z.numpy()))


def test_a_number_for_all_classes_is_filled_in_on_the_device(monkeypatch):
    """A copy from memory would be waited for."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    cuda_twin.install(monkeypatch)
    cuda_twin.refuse_copies(monkeypatch)
    z, y = torch.randn(5, 4), torch.randint(0, 4, (5,))
    assert fx.FocalLoss(alpha=0.25).loss(z, y, check=False) > 0


def test_the_numbers_of_a_loss_object_are_copied_once(monkeypatch):
    """Class weights of a loss object: the second call finds them on the device."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    cuda_twin.install(monkeypatch)
    copied, given = [], cuda_twin.TorchInMemory.given
    monkeypatch.setattr(_device, "_constants", {})

    def noted(self, x, name, dtype):
        copied.extend([name] * (not isinstance(x, torch.Tensor)))
        return given(self, x, name, dtype)

    monkeypatch.setattr(cuda_twin.TorchInMemory, "given", noted)
    z, y = torch.randn(5, 3), torch.randint(0, 3, (5,))
    loss = fx.FocalLoss(alpha=(0.2, 0.3, 0.5), class_weight=(1.0, 2.0, 3.0))
    first, second = (loss.loss(z, y, check=False) for _ in range(2))
    assert sorted(copied) == ["alpha", "class_weight"]
    expected = loss.loss(z.double(), y)
    assert np.isclose(first, expected)
    assert np.isclose(second, expected)


@pytest.mark.parametrize("out", [False, True])
def test_calls_without_checks_are_repeated(put, monkeypatch, out):
    """With an array to write into as well; on arrays of another layout the call is decided anew."""
    from fastxent.losses import _repeated

    monkeypatch.setattr(_repeated, "_programs", {})
    launches = []
    for name, function in vars(_backend.choose("cuda").launch).items():
        if callable(function) and name in ("softmax_launch", "combine"):

            def launch(context, *rest, function=function, **options):
                if context.record is not None:
                    launches.append(function.__name__)
                return function(context, *rest, **options)

            monkeypatch.setattr(_backend.choose("cuda").launch, name, launch)
    made = []
    program = _repeated._Log.program

    def noted(self, results):
        made.append(self._whole)
        return program(self, results)

    monkeypatch.setattr(_repeated._Log, "program", noted)
    for n in (5, 6):
        z, y = put(numbers((n, 4))), put(np.arange(n) % 4)
        options = {"out": put(numbers((n, 4)))} if out else {}
        fx.softmax_cross_entropy_with_grad(z, y, check=False, ignore_index=None, **options)
    assert made == [True, True]
    assert launches == ["softmax_launch", "combine"] * 2
