"""A fixed corpus of losses and gradients, as hex floats.

``python tests/corpus.py`` writes data/numbers.json anew: on purpose, when results may move. test_numbers.py holds every
instruction set to it: within a bound on all of them, to the bit on the one that wrote it.

Inputs come from integer arithmetic alone and are exact in float32, so that no generator and no libm has a part in them.
"""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path

import numpy as np

import fastxent as fx
from fastxent import _core, information

PATH = Path(__file__).with_name("data") / "numbers.json"
WIDTHS = (1, 2, 3, 7, 10, 26, 127, 1000, 1003)
KEPT_ROWS = 3


def integers(n, k, stream, below):
    """(n, k) integers in [0, below), from the finalizer of splitmix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    x = np.arange(1, n * k + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(stream << 40)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(33)).astype(np.int64).reshape(n, k) % below


def corpus(dtype):
    """Name → (call, exact): (losses, gradient, …) in the dtype; whether each entry is held to its own ulp.

    Where a result is a difference of terms, it is held to the ulp of the largest entry of its row.
    """
    cases = {}

    def case(name, call, exact=False):
        cases[f"{name}, {dtype}"] = (call, exact)

    for k in WIDTHS:
        n = 9 if k < 100 else 4
        # margins of up to 64 in steps of 1/64; the last row is sure of its label
        z = ((integers(n, k, 1, 4096) - 2048) / 64).astype(dtype)
        y = integers(n, 1, 2, k)[:, 0]
        z[-1, y[-1]] = 90
        t = (integers(n, k, 3, 9) / 32).astype(dtype)
        v, w, bias = (
            (1 + integers(*shape, 8)).astype(dtype) / 4 for shape in ((1, n, 4), (1, k, 5), (1, k, 6))
        )
        v, w, bias = v[0], w[0], bias[0]
        bits = (integers(n, k, 7, 2)).astype(dtype)
        teacher = ((integers(n, k, 8, 256) - 128) / 16).astype(dtype)

        def softmax(targets, z=z, **options):
            losses = fx.softmax_cross_entropy(z, targets, reduction="none", **options)
            return losses, fx.softmax_cross_entropy_with_grad(z, targets, reduction="sum", **options)[1]

        def loss_of(loss, targets, z=z):
            return loss.loss(z, targets, reduction="none"), loss.loss_grad(z, targets, reduction="sum")[1]

        case(f"labels, {k}", lambda s=softmax, y=y: s(y), exact=True)
        case(f"soft targets, {k}", lambda s=softmax, t=t: s(t))
        every = {
            "sample_weight": v,
            "class_weight": w,
            "logit_bias": bias,
            "z_loss": 0.125,
            "temperature": 1.5,
        }
        case(f"every option, {k}", lambda s=softmax, y=y, o=every: s(y, label_smoothing=0.25, **o))
        if k > 1:
            exclude = {"label_smoothing": 0.25, "smoothing": "exclude_target"}
            case(f"exclude_target, {k}", lambda s=softmax, y=y, o=exclude: s(y, **o))
        for loss in (
            fx.FocalLoss(), fx.FocalLoss(gamma=0.5), fx.Poly1Loss(), fx.GeneralizedCrossEntropy(),
            fx.SymmetricCrossEntropy(), fx.BootstrappingLoss(), fx.BootstrappingLoss(hard=True), fx.JensenShannonLoss(),
        ):  # fmt: skip
            case(f"{loss}, {k}", lambda f=loss_of, loss=loss, y=y: f(loss, y))
        case(f"distillation, {k}", lambda f=loss_of, y=y, s=teacher: f(fx.DistillationLoss(), (y, s)))
        cut = k // 2

        def shards(z=z, y=y, cut=cut):
            state = fx.merge_lse([fx.partial_lse(z[:, :cut], y, 0), fx.partial_lse(z[:, cut:], y, cut)])
            return state.loss(reduction="none"), state.grad(z[:, cut:], y, cut, reduction="sum")

        case(f"shards, {k}", shards)
        if k > 127:
            continue
        case(f"sigmoid, {k}", lambda z=z, y=bits: (
            fx.sigmoid_cross_entropy(z, y, reduction="none"),
            fx.sigmoid_cross_entropy_with_grad(z, y, reduction="sum")[1],
        ), exact=True)  # fmt: skip
        for loss in (
            fx.SigmoidCrossEntropy(pos_weight=2.5, label_smoothing=0.25), fx.BinaryFocalLoss(), fx.AsymmetricLoss(),
            fx.GANDiscriminatorLoss(real_target=0.75), fx.GANGeneratorLoss(),
        ):  # fmt: skip
            case(f"{loss}, {k}", lambda f=loss_of, loss=loss, y=bits: f(loss, y))
        p = ((1 + integers(n, k, 9, 254)) / 256).astype(dtype)
        case(f"binary, {k}", lambda p=p, y=bits: (
            fx.binary_cross_entropy(p, y, reduction="none"),
            fx.binary_cross_entropy_with_grad(p, y, reduction="sum")[1],
        ), exact=True)  # fmt: skip
        for loss in (fx.DiceLoss(), fx.TverskyLoss(activation="softmax")):
            case(
                f"{loss}, {k}", lambda loss=loss, z=z, y=bits: tuple(map(np.atleast_2d, loss.loss_grad(z, y)))
            )
        q = ((1 + integers(n, k, 10, 16)) / 64).astype(dtype)
        case(f"entropy and divergence, {k}", lambda p=p, q=q: (
            information.entropy(p).astype(p.dtype), information.js_divergence(p, q).astype(p.dtype)[:, None]
        ))  # fmt: skip
    return cases


def linear(dtype):
    """The same of products, whose order of additions is the BLAS library's: never held to the bit."""
    cases = {}
    for k in (1, 3, 26, 1003):
        x = ((integers(40, 24, 11, 64) - 32) / 64).astype(dtype)
        head = ((integers(24, k, 12, 64) - 32) / 32).astype(dtype)
        y = integers(40, 1, 13, k)[:, 0]

        def call(x=x, head=head, y=y):
            _, dx, dw, _ = fx.linear_cross_entropy_with_grad(x, head, y, reduction="sum")
            return fx.linear_cross_entropy(x, head, y, reduction="none"), np.concatenate(
                [dx.ravel(), dw.ravel()]
            )[None]

        cases[f"linear, {k}, {dtype}"] = (call, False)
    return cases


def told(arrays):
    """What is kept of a result: its first rows' first, middle and last entries, and a checksum of all bits."""
    rows = [np.atleast_1d(a)[:KEPT_ROWS].reshape(min(len(np.atleast_1d(a)), KEPT_ROWS), -1) for a in arrays]
    places = [sorted({0, a.shape[1] // 2, a.shape[1] - 1}) for a in rows]
    numbers = [[[float(x).hex() for x in row[at]] for row in a] for a, at in zip(rows, places, strict=True)]
    # -0.0 and 0.0 are one number
    bits = 0
    for a in arrays:
        bits = zlib.crc32((np.ascontiguousarray(a) + 0.0).tobytes(), bits)
    return {"numbers": numbers, "bits": f"{bits:08x}"}


def compiler():
    """The compiler that built the kernels, as it signs its objects; None where it does not."""
    found = re.search(rb"GCC: \([^)]*\) [\d.]+|clang version [\d.]+", Path(_core.__file__).read_bytes())
    return found and found[0].decode()


def written():
    """The document."""
    cases = {}
    for dtype in ("float32", "float64"):
        for name, (call, _) in {**corpus(dtype), **linear(dtype)}.items():
            cases[name] = told(call())
    about = {"instruction_set": _core.info()["instruction_set"], "compiler": compiler()}
    return {**about, "cases": cases}


def text(document):
    """JSON with a line for each case, so that a difference shows which moved."""
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(case)}" for name, case in document["cases"].items())
    about = "".join(
        f"{json.dumps(name)}: {json.dumps(document[name])},\n" for name in document if name != "cases"
    )
    return f'{{\n{about}"cases": {{\n{lines}\n}}\n}}\n'


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(text(written()), encoding="utf-8")
