"""How many ulp off: losses and gradients of fastxent and of its peers against mpmath, as a markdown table.

    python benchmarks/accuracy.py [--only WORD]
    python benchmarks/accuracy.py --rare

The rows are those of tests/test_accuracy.py: 2 to 40 classes, margins of 0 to 700, offsets to 1e4, ties, labels that
are the largest logit and labels that are not. One ulp is the distance of the nearest numbers of the result's dtype at
the right value; "inf" is a result without any right digit where the right one is not 0, or one that overflowed.

--rare looks for the unlucky: millions of entries of float32 gradients, of logits that nearly agree, where roundings add
up to the most, against the same formula in float64.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

import fastxent as fx
from fastxent import _backend

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import reference
from test_accuracy import rows

SHAPES = ((400, 2), (240, 5), (120, 10), (40, 26), (40, 40))


def ours(backend):
    def compute(z, y):
        return fx.softmax_cross_entropy_with_grad(z, y, reduction="none", backend=backend)

    return compute


def textbook(z, y):
    """Log-sum-exp after the maximum is subtracted, and probabilities minus one-hot."""
    at = np.arange(len(z)), y
    shifted = z - z.max(axis=1, keepdims=True)
    e = np.exp(shifted)
    total = e.sum(axis=1, keepdims=True)
    grad = e / total
    grad[at] -= 1
    return np.log(total[:, 0]) - shifted[at], grad


def with_scipy(z, y):
    from scipy.special import log_softmax

    at = np.arange(len(z)), y
    log_p = log_softmax(z, axis=1)
    grad = np.exp(log_p)
    grad[at] -= 1
    return -log_p[at], grad


def with_sklearn(z, y):
    from sklearn._loss import HalfMultinomialLoss

    return HalfMultinomialLoss(n_classes=z.shape[1]).loss_gradient(y_true=y.astype(z.dtype), raw_prediction=z)


def with_torch(z, y):
    import torch

    logits = torch.from_numpy(z).requires_grad_()
    losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y), reduction="none")
    losses.sum().backward()
    return losses.detach().numpy(), logits.grad.numpy()


LIBRARIES = {
    "fastxent": ours("cpu"),
    "fastxent, backend='numpy'": ours("numpy"),
    "the textbook in NumPy": textbook,
    "SciPy, log_softmax": with_scipy,
    "scikit-learn's private loss": with_sklearn,
    "PyTorch": with_torch,
}


def worst(compute, dtype):
    """Largest errors of losses and gradient entries, in ulp, and the part of the losses off by more than 4."""
    of_loss = of_grad = 0.0
    off = count = 0
    for n_rows, n_classes in SHAPES:
        z, y = rows(dtype, n_rows, n_classes, seed=n_classes)
        truth = reference.softmax(z, y, reduction="sum", exact=True)
        with np.errstate(all="ignore"):
            losses, grad = compute(z, y)
        errors = reference.ulps(losses, truth.losses)
        off, count = off + int((errors > 4).sum()), count + len(errors)
        of_loss = max(of_loss, float(errors.max()))
        of_grad = max(of_grad, reference.worst(grad, truth.grad))
    return of_loss, of_grad, off / count


def rare(n_classes, spread, kind, entries=400_000):
    """ulp of float32 gradient entries, with soft targets of their larger term, as a flat array.

    Parameters
    ----------
    n_classes : int
    spread : float
        Standard deviation of the logits.
    kind : {"labels", "soft targets", "smoothed"}
    entries : int
    """
    rng = np.random.default_rng(n_classes)
    n = entries // n_classes
    z = (30 + rng.normal(0, spread, (n, n_classes))).astype(np.float32)
    y = rng.integers(0, n_classes, n)
    q = np.zeros((n, n_classes))
    options = {"label_smoothing": 0.25} if kind == "smoothed" else {}
    if kind == "labels":
        q[np.arange(n), y] = 1
    else:
        y = rng.dirichlet(np.ones(n_classes), n).astype(np.float32)
        smoothing = options.get("label_smoothing", 0.0)
        q = y.astype(np.float64) * (1 - smoothing) + smoothing / n_classes
    _, grad = fx.softmax_cross_entropy_with_grad(z, y, reduction="none", backend="cpu", **options)
    e = np.exp(z - z.max(axis=1, keepdims=True).astype(np.float64))
    p = e / e.sum(axis=1, keepdims=True)
    truth = p * q.sum(axis=1, keepdims=True, dtype=np.float64) - q
    scale = np.abs(truth) if kind == "labels" else np.maximum(p, q)
    return (np.abs(grad - truth) / np.spacing(scale.astype(np.float32))).ravel()


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="WORD", help="libraries whose names contain this")
    parser.add_argument("--rare", action="store_true", help="unlucky entries of float32 gradients instead")
    arguments = parser.parse_args()
    only = arguments.only
    isa = _backend.describe()["cpu"].get("instruction_set", "none")
    print(f"fastxent's kernels: {isa}\n")
    if arguments.rare:
        print("| targets | entries | largest, ulp | off by more than 4 ulp |")
        print("| --- | ---: | ---: | ---: |")
        for kind in ("labels", "soft targets", "smoothed"):
            found = [rare(k, spread, kind) for k in (2, 3, 5, 7, 10, 26, 100, 1000) for spread in (0.2, 1, 3)]
            errors = np.concatenate(found)
            print(
                f"| {kind} | {len(errors):,} | {errors.max():.1f} | {np.mean(errors > 4):.1e} |", flush=True
            )
        return 0
    print("| library | dtype | loss, ulp | gradient, ulp | losses off by more than 4 ulp |")
    print("| --- | --- | ---: | ---: | ---: |")
    for name, compute in LIBRARIES.items():
        if only.lower() not in name.lower():
            continue
        for dtype in ("float32", "float64"):
            try:
                of_loss, of_grad, share = worst(compute, dtype)
            except ImportError:
                continue
            cells = (f"{value:.1f}" if value < 100 else f"{value:.0e}" for value in (of_loss, of_grad))
            print(f"| {name} | {dtype} | {' | '.join(cells)} | {share:.0%} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
