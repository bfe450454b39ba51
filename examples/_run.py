"""Run the examples and keep their pictures: ``python examples/_run.py [--small] [--out DIR] [NAME ...]``."""

import argparse
import os
import runpy
import sys
import traceback
from pathlib import Path
from time import perf_counter

import matplotlib

HERE = Path(__file__).resolve().parent


def examples():
    """The example files, by name."""
    return sorted(HERE.glob("plot_*.py"))


def run(path, out=None):
    """Run one example and return its variables; every figure that it shows becomes a PNG in the folder `out`."""
    import matplotlib.pyplot as plt

    count = 0

    def show():
        nonlocal count
        for number in plt.get_fignums():
            count += 1
            if out is not None:
                plt.figure(number).savefig(out / f"{path.stem}_{count}.png", dpi=110)
            else:
                plt.figure(number).canvas.draw()
        plt.close("all")

    real_show, real_path = plt.show, list(sys.path)
    plt.show = show
    try:
        with matplotlib.rc_context():
            return runpy.run_path(str(path))
    finally:
        plt.close("all")
        plt.show, sys.path[:] = real_show, real_path


def main():
    parser = argparse.ArgumentParser(description="Run the examples and keep their pictures.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="part of a file name; all where none is given"
    )
    parser.add_argument("--small", action="store_true", help="the small setting of the tests")
    parser.add_argument(
        "--out", type=Path, default=Path("examples-out"), metavar="DIR", help="for the pictures"
    )
    arguments = parser.parse_args()
    if arguments.small:
        os.environ["FASTXENT_EXAMPLES"] = "small"
    matplotlib.use("Agg")
    arguments.out.mkdir(parents=True, exist_ok=True)
    chosen = [p for p in examples() if not arguments.names or any(name in p.stem for name in arguments.names)]
    if not chosen:
        parser.error(f"no example is named like {' or '.join(arguments.names)}")
    failed = []
    for path in chosen:
        print(f"== {path.stem}", flush=True)
        start = perf_counter()
        try:
            run(path, arguments.out)
        except Exception as error:
            missing = isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("fastxent")
            if missing:
                print(f"skipped: {error.name} is not installed")
            else:
                traceback.print_exc()
                failed.append(path.stem)
        print(f"-- {perf_counter() - start:.1f} s\n", flush=True)
    print(f"pictures: {arguments.out}")
    return f"failed: {', '.join(failed)}" if failed else 0


if __name__ == "__main__":
    sys.exit(main())
