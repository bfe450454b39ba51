"""The losses behind other libraries' doors, beside those libraries' own: markdown tables.

    python benchmarks/doors.py [--threads N]

Both sides of a row are timed in turns, in the same rounds (medians), since machines are noisy: read the ratios, not the
times. The results are compared before anything is timed.  Extra memory is what a training step adds at its peak to
what was there before, gradients included, each step in a process of its own.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional

import fastxent.torch as ft
from fastxent._backend import default_threads

PAUSE = 0.02  # seconds, in which the threads of the library before stop spinning


def row(*cells):
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def medians(calls, rounds, repeats=1):
    """Median seconds of each call, all called in turns."""
    times = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            times[name].append((time.perf_counter() - start) / repeats)
    return {name: statistics.median(values) for name, values in times.items()}


def step(loss_of, *leaves):
    """A call that runs forward and backward from fresh gradients and returns loss and gradients."""

    def run():
        for leaf in leaves:
            leaf.grad = None
        loss = loss_of()
        loss.backward()
        return [loss.detach(), *(leaf.grad for leaf in leaves)]

    return run


def compare(title, ours, theirs, rounds, repeats=1, truth=None):
    """One row: PyTorch's time, ours, and the ratio. `truth`, PyTorch's answer unless given, is what ours is held to."""
    for a, b in zip(ours(), (truth or theirs)(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    t = medians({"ours": ours, "theirs": theirs}, rounds, repeats)
    unit, factor = ("µs", 1e6) if t["theirs"] < 1e-3 else ("ms", 1e3)
    times = (f"{t[name] * factor:.3g} {unit}" for name in ("theirs", "ours"))
    row(title, *times, f"{t['theirs'] / t['ours']:.2f}")


def softmax(shape, rounds, repeats=1, dtype=torch.float32):
    z = (3 * torch.randn(shape)).to(dtype).requires_grad_()
    y = torch.randint(0, shape[1], (shape[0], *shape[2:]))
    ours, theirs = (step(lambda f=f: f(z, y), z) for f in (ft.cross_entropy, functional.cross_entropy))
    name = " × ".join(map(str, shape))
    # PyTorch rounds the logarithms of bfloat16 before their mean, some ulp from the truth: its float32, rounded once.
    truth = step(lambda: functional.cross_entropy(z.float(), y).to(dtype), z)
    compare(f"cross_entropy {name} {str(dtype).removeprefix('torch.')}", ours, theirs, rounds, repeats, truth)


def binary(n, rounds):
    z, y = torch.randn(n, requires_grad=True), torch.rand(n)
    both = (ft.binary_cross_entropy_with_logits, functional.binary_cross_entropy_with_logits)
    compare(f"binary_cross_entropy_with_logits {n}", *(step(lambda f=f: f(z, y), z) for f in both), rounds)


TOKENS, HIDDEN, VOCABULARY = 2048, 512, 50257


def head(which):
    """A training step of a language model's head: loss, gradients of hidden states and of the layer."""
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    weight = (torch.randn(VOCABULARY, HIDDEN) * 0.05).requires_grad_()
    y = torch.randint(0, VOCABULARY, (TOKENS,))
    if which == "ours":
        return step(lambda: ft.linear_cross_entropy(hidden, weight, y), hidden, weight)
    return step(lambda: functional.cross_entropy(functional.linear(hidden, weight), y), hidden, weight)


def peak_of_head(which):
    """MiB that a step adds at its peak, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--peak", which],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    return float(done.stdout)


def print_peak(which):
    run = head(which)
    torch.mm(
        torch.ones(64, 64), torch.ones(64, 64)
    )  # what the libraries of threads and of products need once
    before = memory("VmRSS")
    run()
    print(max(memory("VmHWM") - before, 0))


def memory(which):
    """MiB of this process: now (VmRSS), or at most so far (VmHWM).  Linux's getrusage begins with the parent's peak."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(rf"{which}:\s*(\d+) kB", status).group(1)) / 1024


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--only", default="", help="rows whose title has this word")
    parser.add_argument("--peak", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    if arguments.peak:
        return print_peak(arguments.peak)
    torch.manual_seed(0)
    print(f"PyTorch {torch.__version__}, forward and backward, {arguments.threads} threads\n")
    row("", "PyTorch", "fastxent.torch", "ratio")
    row("---", "---", "---", "---")
    rows = {
        "small": lambda: softmax((8, 10), 15, 200),
        "narrow": lambda: softmax((1_000_000, 10), 7),
        "wide": lambda: softmax((8192, 32768), 3),
        "middle": lambda: softmax((1024, 32768), 5),
        "image": lambda: softmax((4, 21, 512, 512), 5),
        "bfloat16": lambda: softmax((4096, 1000), 5, dtype=torch.bfloat16),
        "binary": lambda: binary(10_000_000, 5),
        "head": lambda: compare(
            f"LM head: {TOKENS} tokens, {HIDDEN} → {VOCABULARY}", head("ours"), head("theirs"), 3
        ),
    }
    for name, run in rows.items():
        if arguments.only in name:
            run()
    if arguments.only in "head":
        theirs, ours = peak_of_head("theirs"), peak_of_head("ours")
        own = (TOKENS + VOCABULARY) * HIDDEN * 4 / 2**20
        print(
            f"\nExtra memory of the LM head's step: PyTorch {theirs:.0f} MiB, here {ours:.0f} MiB; {own:.0f} MiB of it "
            f"are the gradients themselves. Beyond them: {theirs - own:.0f} and {ours - own:.0f} MiB"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
