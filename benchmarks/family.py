"""The losses beside plain cross-entropy with labels, on the same logits: a markdown table of ratios.

    python benchmarks/family.py [--only WORD]

What stands in one table was timed in turns, in the same rounds (medians of 9), since machines are noisy: read the
ratios, not the times.  Loss and gradient in one call, float32, mean, one thread unless `--threads` says otherwise;
the unit is that call of `SoftmaxCrossEntropy` with labels.
"""

import argparse
import sys

import numpy as np
from copies import header, logits_of, medians, rng, row, touched

import fastxent as fx
from fastxent.losses._divergence import Divergence

SHAPES = [(400000, 10), (40000, 100), (4000, 1000), (128, 32768)]
UNIT = "cross-entropy"


def table(title, n, k, calls):
    """One line per call, each in units of the plain loss and gradient."""
    times = medians(calls)
    header(f"{title}, {n} × {k}", "call", "ns per row", "× cross-entropy")
    for name, seconds in times.items():
        row(name, f"{seconds / n * 1e9:.1f}", f"{seconds / times[UNIT]:.2f}")


def problem(n, k):
    z, y, teacher = logits_of(n, k, "float32"), rng.integers(0, k, n), logits_of(n, k, "float32")
    soft = np.exp(teacher)
    soft /= soft.sum(axis=1, keepdims=True)
    return z, y, soft, teacher, touched(z)


def family(n, k, threads):
    """f(p_y): focal, poly-1, generalized and symmetric cross-entropy."""
    z, y, _, _, out = problem(n, k)
    losses = [fx.SoftmaxCrossEntropy(), *(fx.FocalLoss(gamma=g) for g in (0.5, 1.0, 1.5, 2.0, 3.0, 2.3))]
    losses += [fx.Poly1Loss(), fx.GeneralizedCrossEntropy(), fx.SymmetricCrossEntropy()]
    calls = {repr(f): lambda f=f: f.loss_grad(z, y, out=out, num_threads=threads) for f in losses}
    table("f(p) of the label", n, k, {UNIT: calls.pop("SoftmaxCrossEntropy()"), **calls})


def divergences(n, k, threads):
    """Divergences from a teacher, and the losses made of them."""
    z, y, soft, teacher, out = problem(n, k)
    given = {
        UNIT: (fx.SoftmaxCrossEntropy(), y),
        "cross-entropy, soft targets": (fx.SoftmaxCrossEntropy(), soft),
    }
    for kind in ("entropy", "forward_kl", "reverse_kl", "jensen_shannon"):
        given[f"{kind}, teacher's logits"] = Divergence(kind, softened=True), (y, teacher)
    given |= {"Jensen-Shannon, labels": (fx.JensenShannonLoss(), y)}
    given |= {"Jensen-Shannon, soft targets": (fx.JensenShannonLoss(), soft)}
    given |= {
        "bootstrapping": (fx.BootstrappingLoss(), y),
        "distillation": (fx.DistillationLoss(), (y, teacher)),
    }
    given |= {"distillation, reverse": (fx.DistillationLoss(reverse=True), (y, teacher))}
    calls = {
        name: lambda f=f, t=t: f.loss_grad(z, t, out=out, num_threads=threads)
        for name, (f, t) in given.items()
    }
    table("Divergences", n, k, calls)


def curvature(n, k, threads):
    """Hessian diagonals, their stand-ins, products and solutions."""
    z, y, soft, x, out = problem(n, k)
    plain, focal, rest = fx.SoftmaxCrossEntropy(), fx.FocalLoss(), {"num_threads": threads}
    both = plain + fx.DistillationLoss()
    calls = {
        UNIT: lambda: plain.loss_grad(z, y, out=out, **rest),
        "gradient and Hessian diagonal": lambda: plain.grad_hess(z, y, **rest),
        "the same, focal, 'upper', labels": lambda: focal.grad_hess(z, y, hessian="upper", **rest),
        "the same, focal, 'upper', soft targets": lambda: focal.grad_hess(z, soft, hessian="upper", **rest),
        "Hessian-vector product": lambda: plain.hvp(z, y, x, **rest),
        "solve": lambda: plain.solve(z, y, x, 0.1, **rest),
        "solve, focal": lambda: focal.solve(z, y, x, 0.1, **rest),
        "solve, focal, soft targets": lambda: focal.solve(z, soft, x, 0.1, **rest),
        "solve, cross-entropy + distillation": lambda: both.solve(z, (y, (y, x)), x, 0.1, **rest),
    }
    table("Curvature", n, k, calls)


def parts(n, k, threads):
    """Classes in two shards; regions."""
    z, y, soft, _, out = problem(n, k)
    half, rest = k // 2, {"num_threads": threads}
    shards = [(np.ascontiguousarray(z[:, :half]), y, 0), (np.ascontiguousarray(z[:, half:]), y, half)]

    def merged():
        state = fx.merge_lse([fx.partial_lse(*shard, **rest) for shard in shards])
        return state.loss(), [state.grad(*shard, **rest) for shard in shards]

    dice = fx.DiceLoss("softmax", axis=0)
    calls = {
        UNIT: lambda: fx.SoftmaxCrossEntropy().loss_grad(z, y, out=out, **rest),
        "partial_lse, merge_lse, loss, grad of two shards": merged,
        "dice over softmax, labels": lambda: dice.loss_grad(z, y, out=out, **rest),
        "dice over softmax, soft targets": lambda: dice.loss_grad(z, soft, out=out, **rest),
        "dice over sigmoid": lambda: fx.DiceLoss().loss_grad(z, soft, out=out, **rest),
    }
    table("Shards and regions", n, k, calls)


PARTS = {"family": family, "divergences": divergences, "curvature": curvature, "parts": parts}


def main():
    """Print the tables asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, help="one kind of table instead of all")
    parser.add_argument("--threads", type=int, default=1, help="threads of a call")
    chosen = parser.parse_args()
    for name, part in PARTS.items():
        if chosen.only in (None, name):
            for n, k in SHAPES:
                part(n, k, chosen.threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
