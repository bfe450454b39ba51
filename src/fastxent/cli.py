"""The command line: ``fastxent info``, ``fastxent demo`` and ``fastxent bench``.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 failed on the way, 2 the request or
its data cannot be used (one line says why).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

import numpy as np

from ._backend import describe, show_versions

FIGURE = "fastxent-demo.png"
PAGE, RECORD = "fastxent-bench.html", "fastxent-bench.json"


class InputError(Exception):
    """The user's request or data cannot be used; the message is one line for stderr."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    argv : list of str, default=None
        Arguments without the program's name; None takes ``sys.argv[1:]``.

    Raises
    ------
    SystemExit
        From argparse: code 0 after ``--help``, code 2 for arguments that do not parse.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return 2
    arguments.typed = shlex.join(["fastxent", *(sys.argv[1:] if argv is None else argv)])
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except InputError as error:
        print(f"fastxent {arguments.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"fastxent {arguments.command}: interrupted", file=sys.stderr)
        return 130  # 128 + SIGINT, as shells count it
    except BrokenPipeError:
        # The reader has gone (`fastxent demo | head -1`); Python would flush into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    teaching = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="fastxent",
        formatter_class=teaching,
        description="Cross-entropy, exact and at the speed of memory, and classifiers built on it.",
        epilog="""\
start here:
  fastxent info                     what is installed, which kernels this processor gets
  fastxent demo                     two classifiers beside scikit-learn's, on bundled data, in seconds
  fastxent bench --quick            the kernels beside every installed peer, as a page for a browser
  fastxent COMMAND --help           the options of a command, with examples

exit codes: 0 done; 1 failed on the way; 2 the request or its data cannot be used, one line on stderr says why.
Progress is drawn on terminals only. NO_COLOR=1 keeps colours away, OMP_NUM_THREADS=N sets the threads.""",
    )
    parser.add_argument("--version", action="version", version=f"fastxent {describe()['fastxent']}")
    commands = parser.add_subparsers(dest="command", metavar="info | demo | bench")

    info = commands.add_parser(
        "info",
        help="versions, instruction set, threads, backends and GPUs",
        formatter_class=teaching,
        description="What a bug report needs: versions, the instruction set in use, threads, backends, GPUs.",
        epilog="""\
examples:
  fastxent info
  fastxent info --json | python -m json.tool
  FASTXENT_ISA=avx2 fastxent info   the kernels for AVX2, on a processor that has more""",
    )
    info.add_argument("--json", action="store_true", help="print one JSON object")
    info.set_defaults(run=_info)

    demo = commands.add_parser(
        "demo",
        help="train two classifiers beside scikit-learn's and picture them",
        formatter_class=teaching,
        description="""\
Trains fastxent's LogisticRegression and MLPClassifier and scikit-learn's two with the same settings, prints a
table and draws a figure. Without --data: scikit-learn's bundled digits.""",
        epilog="""\
examples:
  fastxent demo
  fastxent demo --data mnist.npz
  fastxent demo --data customers.csv --target churned --out results
  fastxent demo --quick --json > demo.json""",
    )
    demo.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="a .csv table with a header and numeric features (needs --target), or an .npz with X and y, "
        "or with x_train, y_train, x_test and y_test (MNIST's)",
    )
    demo.add_argument("--target", metavar="NAME", help="the column of the .csv that holds the class labels")
    demo.add_argument(
        "--out",
        type=Path,
        default=Path(),
        metavar="DIR",
        help=f"folder for {FIGURE} (default: the current one)",
    )
    demo.add_argument("--quick", action="store_true", help="at most 2000 training rows and 5 epochs")
    demo.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    demo.set_defaults(run=_demo)

    bench = commands.add_parser(
        "bench",
        help="time everything beside every installed peer, as a page for a browser",
        formatter_class=teaching,
        description=f"""\
Times fastxent's kernels and classifiers beside every peer that is installed (NumPy, SciPy, scikit-learn; Numba
and PyTorch where they are) and writes {PAGE}, one file with tables, charts, this machine and the
versions, and {RECORD} with every number. Each answer is checked against float64 before it is
timed; the unit is a copy of the logits, timed between the runs. The whole suite takes some ten minutes on two
cores, as much again with MNIST, and 1.3 GiB of memory (what does not fit is left out and named); --quick takes a
minute or two. Ctrl-C keeps what was measured.""",
        epilog=f"""\
examples:
  fastxent bench --quick                            then open {PAGE}
  fastxent bench --shapes 4096x50257 1000000x20     rows x classes of your own
  fastxent bench --shapes 5000000 --quick           rows alone: binary cross-entropy
  FASTXENT_DATA=~/data fastxent bench --out results with MNIST, from ~/data/mnist.npz
  OMP_NUM_THREADS=1 fastxent bench --quick --json   every peer with one thread, numbers to stdout

A peer's failure stands in the page. The exit code is 1 only where a case of fastxent's own failed.""",
    )
    bench.add_argument(
        "--quick",
        action="store_true",
        help="loss and gradient in float32 only, on four shapes, trainings on the digits; with --shapes, on those",
    )
    bench.add_argument(
        "--shapes",
        nargs="+",
        type=_shape,
        metavar="SHAPE",
        help="ROWSxCLASSES, or ROWS for binary cross-entropy: the kernels on these alone",
    )
    bench.add_argument(
        "--out",
        type=Path,
        default=Path(),
        metavar="DIR",
        help=f"folder for {PAGE} and {RECORD} (default: the current one)",
    )
    bench.add_argument("--json", action="store_true", help=f"print what {RECORD} holds instead of the tables")
    bench.set_defaults(run=_bench)
    return parser


def _shape(text: str) -> tuple[int, ...]:
    """``"1024x32768"`` or ``"5000000"``, for argparse, whose message names option and text."""
    found = re.fullmatch(r"(\d{1,12})(?:[x×*](\d{1,9}))?", text)
    shape = tuple(int(number) for number in found.groups() if number) if found else ()
    if not shape or shape[0] < 1 or (len(shape) == 2 and shape[1] < 2):
        raise argparse.ArgumentTypeError(
            f"expected ROWSxCLASSES with 2 or more classes, such as 1024x32768, or ROWS alone, got {text!r}"
        )
    return shape


def _writable(folder: Path) -> None:
    """Make the folder if need be; raise where nothing can be written, before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"cannot write into {folder}: permission denied")


# ---- info


def _info(arguments: argparse.Namespace) -> int:
    gpus = _gpus()
    if arguments.json:
        print(json.dumps({**describe(), "gpus": gpus}, indent=2))
    else:
        show_versions()
        print(f"{'gpu':<22}{', '.join(gpus) if gpus else 'none'}")
    return 0


def _gpus() -> list[str]:
    """NVIDIA GPUs as the driver names them; asking the driver's own tool costs no CUDA context."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # the tool without a working driver
        return []
    return [line.strip() for line in answer.splitlines() if line.strip()]


# ---- demo: data


@dataclass
class Data:
    """A classification problem, split: float32 features on a scale that suits both models, any labels."""

    name: str
    X_train: np.ndarray
    y_train: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray


def load_data(path: Path | None, target: str | None = None) -> Data:
    """Read and check a data set, split it 3:1 where it comes whole, and scale its features.

    Bytes (images) are divided by 255, the bundled digits by 16; other features are standardized by the
    training part's mean and standard deviation.

    Parameters
    ----------
    path : Path or None
        ``.csv``, ``.npz``, or None for the digits of scikit-learn.
    target : str or None
        The label column of a ``.csv``.

    Raises
    ------
    InputError
        With one line that names what is wrong.
    """
    kind = "" if path is None else path.suffix.lower()
    if target is not None and kind != ".csv":
        raise InputError("--target names a column of a .csv file; give one with --data")
    if path is None:
        from sklearn.datasets import load_digits

        X, y = load_digits(return_X_y=True)
        return _split("digits", X / 16, y, standardize=False)
    if kind not in (".csv", ".npz"):
        raise InputError(f"--data must be a .csv or .npz file, got {path}")
    try:
        if kind == ".csv":
            X, y = _read_csv(path, target)
            return _split(path.stem, X, y, standardize=True)
        return _read_npz(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def _read_csv(path: Path, target: str | None) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            rows = csv.reader(file, delimiter=max(",;\t", key=first.count), strict=True)
            header = [name.strip() for name in next(rows, [])]
            if target is None or target not in header:
                said = (
                    "--target is needed for a .csv" if target is None else f"no column {target!r} in {path}"
                )
                raise InputError(f"{said}; its columns are: {_listing(header)}")
            at = header.index(target)
            features = [name for j, name in enumerate(header) if j != at]
            if not features:
                raise InputError(f"{path} has no feature column beside {target!r}")
            labels: list[str] = []
            values: list[list[float]] = []
            for row in rows:
                if not row:  # an empty line
                    continue
                if len(row) != len(header):
                    raise InputError(
                        f"line {rows.line_num} of {path} has {len(row)} fields, the header has {len(header)}"
                    )
                label = row.pop(at).strip()
                if not label:
                    raise InputError(f"column {target!r} of {path} is empty in line {rows.line_num}")
                labels.append(label)
                try:
                    values.append([float(text) for text in row])
                except ValueError:
                    raise InputError(_csv_problem(path, features, row, rows.line_num)) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path} as a table in UTF-8: {error}") from None
    X = np.array(values, dtype=np.float64).reshape(len(values), len(features))
    missing = ~np.isfinite(X)
    if missing.any():
        i, j = np.argwhere(missing)[0]
        raise InputError(
            f"column {features[j]!r} of {path} is {X[i, j]} in data row {i + 1}; features must be finite"
        )
    if all(re.fullmatch(r"[+-]?\d{1,18}", label) for label in labels):
        return X, np.array([int(label) for label in labels])
    return X, np.array(labels)


def _csv_problem(path: Path, features: list[str], row: list[str], line: int) -> str:
    """What is wrong with the first field of a row that is no number."""
    for name, text in zip(features, row, strict=True):
        if not text.strip():
            return f"column {name!r} of {path} is empty in line {line}; features must be numbers"
        try:
            float(text)
        except ValueError:
            shown = text if len(text) <= 30 else text[:27] + "..."
            return (
                f"column {name!r} of {path} holds text ({shown!r} in line {line}); features must be numbers"
            )
    raise AssertionError("called for a row of numbers")


def _read_npz(path: Path) -> Data:
    with path.open("rb") as file:  # says "no such file" or "permission denied" before anything else does
        if not zipfile.is_zipfile(file):
            raise InputError(f"{path} is not an .npz archive")
    whole, split = ("X", "y"), ("x_train", "y_train", "x_test", "y_test")
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = split if set(split) <= set(archive.files) else whole
            absent = [name for name in names if name not in archive.files]
            if absent:
                raise InputError(
                    f"{path} must hold X and y, or x_train, y_train, x_test and y_test; "
                    f"it holds: {_listing(archive.files)}"
                )
            arrays = [archive[name] for name in names]
    except (ValueError, EOFError, zipfile.BadZipFile, zipfile.zlib.error) as error:
        raise InputError(f"cannot read {path}: {str(error).splitlines()[0]}") from None
    checked: list[np.ndarray] = []
    for x_name, y_name, x, y in zip(names[::2], names[1::2], arrays[::2], arrays[1::2], strict=True):
        if x.dtype.kind not in "buif":
            raise InputError(f"{x_name} in {path} must be numbers, got dtype {x.dtype}")
        if x.ndim < 2 or y.ndim != 1 or len(x) != len(y) or not x.size:
            raise InputError(
                f"{x_name} in {path} must have shape (samples, features) and {y_name} shape (samples,), "
                f"got {x.shape} and {y.shape}"
            )
        if not np.isfinite(x).all():
            raise InputError(f"{x_name} in {path} holds NaN or infinite values; features must be finite")
        if y.dtype.kind not in "buifSU" or (y.dtype.kind == "f" and not np.array_equal(y, np.rint(y))):
            raise InputError(
                f"{y_name} in {path} must hold class labels (whole numbers or text), got {y.dtype}"
            )
        x = x.reshape(len(x), -1)
        checked += [
            x / np.float32(255) if x.dtype == np.uint8 else x,
            y.astype(int) if y.dtype.kind == "f" else y,
        ]
    standardize = arrays[0].dtype != np.uint8
    if names == whole:
        return _split(path.stem, *checked, standardize=standardize)
    X_train, y_train, X_test, y_test = checked
    if X_train.shape[1] != X_test.shape[1]:
        raise InputError(f"x_train in {path} has {X_train.shape[1]} features, x_test {X_test.shape[1]}")
    _check_classes(path.stem, y_train)
    unseen = np.setdiff1d(y_test, y_train)
    if len(unseen):
        raise InputError(f"y_test in {path} has a class that y_train lacks: {unseen[0]}")
    return _scaled(Data(path.stem, X_train, y_train, X_test, y_test), standardize)


def _listing(names: list[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "") or "none"


def _check_classes(name: str, y: np.ndarray) -> None:
    classes, count = np.unique(y, return_counts=True)
    if len(classes) < 2:
        only = f"one class only ({classes[0]!s})" if len(classes) else "no rows"
        raise InputError(f"{name} has {only}; a classifier needs two or more classes")
    if 2 * len(classes) > len(y):
        raise InputError(
            f"the target of {name} has {len(classes)} different values in {len(y)} rows: is it a class label?"
        )
    if count.min() < 2:
        raise InputError(
            f"class {classes[count.argmin()]!s} of {name} has a single row; every class needs two or more"
        )


def _split(name: str, X: np.ndarray, y: np.ndarray, *, standardize: bool) -> Data:
    from sklearn.model_selection import train_test_split

    _check_classes(name, y)
    test_size = max(len(y) // 4, len(np.unique(y)))  # stratified: at least one row of each class
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=test_size, random_state=0, stratify=y)
    return _scaled(Data(name, X_train, y_train, X_test, y_test), standardize)


def _scaled(data: Data, standardize: bool) -> Data:
    if standardize:
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler().fit(np.asarray(data.X_train, dtype=np.float64))
        data.X_train, data.X_test = (
            scaler.transform(np.asarray(x, np.float64)) for x in (data.X_train, data.X_test)
        )
    data.X_train, data.X_test = (
        np.ascontiguousarray(x, dtype=np.float32) for x in (data.X_train, data.X_test)
    )
    return data


# ---- demo: training


@dataclass
class Result:
    """One model of one library, trained and judged."""

    model: str
    library: str
    estimator: Any
    threads: int
    seconds: list[float]
    accuracy: float
    log_loss: float
    probability: np.ndarray = field(repr=False)

    @property
    def title(self) -> str:
        """Who and what, short enough for a legend."""
        return f"{self.library} {'logistic' if self.model == 'LogisticRegression' else 'MLP'}"

    @property
    def median(self) -> float:
        """Median seconds of a fit."""
        return float(np.median(self.seconds))

    def record(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "model": self.model,
            "library": self.library,
            "threads": self.threads,
            "seconds": self.seconds,
            "median": self.median,
            "accuracy": float(self.accuracy),
            "log_loss": float(self.log_loss),
        }


def _models(n_rows: int, quick: bool) -> dict[tuple[str, str], Any]:
    """The four estimators by (model, library); both libraries get the same settings."""
    from ._bench import estimators

    epochs = 5 if quick else 10 if n_rows > 10_000 else 40
    logistic = {"C": 1.0, "tol": 1e-4, "max_iter": 300}
    # A fixed number of epochs, so that both do the same work.
    mlp = {
        "hidden_layer_sizes": (256,),
        "solver": "adam",
        "batch_size": min(64, n_rows),
        "max_iter": epochs,
        "n_iter_no_change": epochs,
        "random_state": 0,
    }
    return estimators(logistic, mlp)


def train(data: Data, *, quick: bool = False, progress: Progress | None = None) -> list[Result]:
    """Fit the four models and judge them on the test part.

    Each estimator works with all threads or with one, whichever a trial of a few iterations finds faster: on
    small data scikit-learn's OpenMP and BLAS threads can wait for each other for most of a fit, which would
    flatter us. The libraries take turns, so that a noisy moment of the machine hits both; short fits are
    repeated, at most five times and for about two seconds, for the median.
    """
    from sklearn.base import clone
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import accuracy_score, log_loss

    from ._bench import num_threads

    models = _models(len(data.y_train), quick)
    seconds: dict[tuple[str, str], list[float]] = {}
    chosen: dict[tuple[str, str], int] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is fixed on purpose
        for model in dict.fromkeys(model for model, _ in models):
            pair = [key for key in models if key[0] == model]
            for key in pair:
                if progress is not None:
                    progress.step(f"{key[1]} {model}")
                trial = clone(models[key]).set_params(max_iter=1 if model == "MLPClassifier" else 5)
                _fit_seconds(trial, data, 1)  # loads code, so its time says nothing
                tried = {threads: _fit_seconds(trial, data, threads) for threads in (1, num_threads())}
                chosen[key] = min(tried, key=tried.__getitem__)
                seconds[key] = [_fit_seconds(models[key], data, chosen[key])]
            while sum(sum(seconds[key]) for key in pair) < 2 and len(seconds[pair[0]]) < 5:
                for key in pair:
                    seconds[key].append(_fit_seconds(models[key], data, chosen[key]))
    results = []
    for (model, library), estimator in models.items():
        probability = estimator.predict_proba(data.X_test)
        results.append(
            Result(
                model,
                library,
                estimator,
                chosen[model, library],
                seconds[model, library],
                accuracy_score(data.y_test, estimator.predict(data.X_test)),
                log_loss(data.y_test, probability, labels=estimator.classes_),
                probability,
            )
        )
    return results


def _fit_seconds(estimator: Any, data: Data, threads: int) -> float:
    """Seconds of one fit with so many threads, ours and those of BLAS and OpenMP."""
    from ._bench import limited

    with limited(estimator, threads):
        start = perf_counter()
        estimator.fit(data.X_train, data.y_train)
        return perf_counter() - start


def _loss_by_iteration(result: Result, data: Data) -> tuple[list[float], list[int]]:
    """Training log-loss of a logistic regression and of its first 1, 2, 4, ... 32 iterations.

    scikit-learn's keeps no loss curve, so fits cut short stand in for it, for both libraries alike.
    """
    from sklearn.base import clone
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import log_loss

    from ._bench import limited

    X, y = data.X_train, data.y_train
    last = int(np.max(result.estimator.n_iter_))
    iterations = [i for i in (1, 2, 4, 8, 16, 32) if i < last]
    with warnings.catch_warnings(), limited(result.estimator, result.threads):
        warnings.simplefilter("ignore", ConvergenceWarning)  # cut short on purpose
        stages = [clone(result.estimator).set_params(max_iter=i).fit(X, y) for i in iterations]
    losses = [
        log_loss(y, stage.predict_proba(X), labels=stage.classes_) for stage in (*stages, result.estimator)
    ]
    return losses, [*iterations, last]


# ---- demo: what it shows


class Progress:
    """A one-line progress bar on a terminal, nothing elsewhere.

    A thread redraws it a few times a second so that the clock moves during a fit; it holds the interpreter
    for microseconds and is there for both libraries alike.
    """

    def __init__(self, total: int, stream: TextIO) -> None:
        self._total, self._stream = total, stream
        self._done, self._text, self._width = -1, "", 0
        self._visible = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Progress:
        self._start = perf_counter()
        if self._visible:
            self._thread.start()
        return self

    def step(self, text: str) -> None:
        """One piece of work is done (none at the first call) and the next one begins."""
        with self._lock:
            self._done, self._text = self._done + 1, text

    def _tick(self) -> None:
        while not self._closed.wait(0.2):
            with self._lock:
                done, text = max(self._done, 0), self._text
            filled = round(20 * done / self._total)
            bar = _paint("━" * filled, "36", self._stream) + "─" * (20 - filled)
            elapsed = perf_counter() - self._start
            tail = f" {done}/{self._total}  {elapsed:5.1f} s  {text}"[
                : shutil.get_terminal_size().columns - 21
            ]
            self._stream.write(f"\r{bar}{tail:<{self._width}}")
            self._stream.flush()
            self._width = len(tail)

    def __exit__(self, *exception: object) -> None:
        if self._visible:
            self._closed.set()
            self._thread.join()
            self._stream.write("\r" + " " * (20 + self._width) + "\r")
            self._stream.flush()


def _paint(text: str, code: str, stream: TextIO) -> str:
    """Text in an ANSI colour on a terminal; plain in a pipe or where NO_COLOR is set (no-color.org)."""
    if not text or not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{code}m{text}\x1b[0m"


def table(results: list[Result], stream: TextIO) -> str:
    """The results in columns; the last one is scikit-learn's seconds over the row's own."""
    from .plots import format_seconds

    head = ["model", "library", "test accuracy", "log-loss", "threads", "time", "speed"]
    peer = {result.model: result.median for result in results if result.library == "scikit-learn"}
    rows = [
        [r.model, r.library, f"{r.accuracy:.4f}", f"{r.log_loss:.4f}", str(r.threads),
         format_seconds(r.median), f"{peer[r.model] / r.median:.2f}×"]
        for r in results
    ]  # fmt: skip
    head, *body = _columns([head, *rows], left=2)
    lines = [
        _paint(x, "1", stream) if row[1] == "fastxent" else x for row, x in zip(rows, body[1:], strict=True)
    ]
    return "\n".join([head, body[0], *lines])


def _columns(rows: list[list[str]], left: int) -> list[str]:
    """Lines of text with the columns below each other, a rule below the first; the ``left`` first ones flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            f"{text:{'<' if at < left else '>'}{w}}"
            for at, (text, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return [lines[0], "  ".join("─" * w for w in widths), *lines[1:]]


def figure(results: list[Result], data: Data, subtitle: str) -> Any:
    """Loss curves, reliability of the probabilities and times, side by side, as a matplotlib Figure."""
    from matplotlib.figure import Figure

    from .plots import COLORS, BenchmarkDisplay, LossCurveDisplay, ReliabilityDisplay

    canvas = Figure(figsize=(12.5, 9.5), dpi=110, layout="constrained")
    canvas.get_layout_engine().set(wspace=0.06, hspace=0.06)
    (curves, times), calibration = canvas.subplots(2, 2)
    reliability = dict(zip(("LogisticRegression", "MLPClassifier"), calibration, strict=True))
    # scikit-learn's line is broad and pale and ours thin on top of it: where the two agree, both are seen.
    for result in results:
        ours, mlp = result.library == "fastxent", result.model == "MLPClassifier"
        style = {
            "color": COLORS[0] if ours else COLORS[1],
            "linewidth": 1.8 if ours else 6,
            "alpha": 1 if ours else 0.55,
            "zorder": 3 if ours else 2,
        }
        dashes = (9 / style["linewidth"], 3.5 / style["linewidth"])  # matplotlib counts in line widths
        if mlp:
            curve = LossCurveDisplay(result.estimator.loss_curve_, name=result.title)
        else:
            curve = LossCurveDisplay(*_loss_by_iteration(result, data), name=result.title)
        curve.plot(curves, **style, linestyle="-" if mlp else (0, dashes))
        ReliabilityDisplay.from_predictions(
            data.y_test,
            result.probability,
            classes=result.estimator.classes_,
            n_bins=10 if len(data.y_test) > 2000 else 5,
            name=result.library,
            ax=reliability[result.model],
            markersize=4 if ours else 10,
            **style,
        )
    curves.set(xscale="log", xlabel="iteration (logistic) or epoch (MLP)", title="Loss while training")
    curves.xaxis.set_major_formatter("{x:g}")
    for model, ax in reliability.items():
        ax.set(title=f"{model}: do its probabilities come true?")
    pairs = {r.title: r.title.replace("fastxent", "scikit-learn") for r in results if r.library == "fastxent"}
    BenchmarkDisplay({r.title: r.seconds for r in results}, baseline=pairs).plot(times)
    times.set(title="Time to train", xlabel="seconds (shorter is better)")
    canvas.suptitle(subtitle)
    return canvas


def _demo(arguments: argparse.Namespace) -> int:
    data = load_data(arguments.data, arguments.target)
    _writable(arguments.out)
    target = arguments.out / FIGURE
    if arguments.quick:
        data = _first_rows(data, 2000)

    classes = len(np.unique(data.y_train))
    versions = describe()
    summary = (
        f"{data.name}: {len(data.y_train)} training and {len(data.y_test)} test rows, "
        f"{data.X_train.shape[1]} features, {classes} classes"
    )
    if not arguments.json:
        print(summary, flush=True)
    with Progress(4, sys.stderr) as progress:
        results = train(data, quick=arguments.quick, progress=progress)
    if not arguments.json:
        print(f"\n{table(results, sys.stdout)}")
        print("\nthreads: all or one, what is faster; speed: scikit-learn's time over this one's", flush=True)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("no figure: matplotlib is missing (pip install 'fastxent[plots]')", file=sys.stderr)
        drawn = False
    else:
        libraries = f"fastxent {versions['fastxent']}, scikit-learn {versions['versions']['scikit-learn']}"
        try:
            figure(results, data, f"{summary}\n{libraries}").savefig(target)
        except OSError as error:
            raise InputError(f"cannot write {target}: {error.strerror or error}") from None
        drawn = True
    if arguments.json:
        told = {
            "data": data.name,
            "training_rows": len(data.y_train),
            "test_rows": len(data.y_test),
            "features": data.X_train.shape[1],
            "classes": classes,
            "versions": versions["versions"] | {"fastxent": versions["fastxent"]},
            "results": [result.record() for result in results],
            "figure": str(target) if drawn else None,
        }
        print(json.dumps(told, indent=2))
    elif drawn:
        print(f"figure: {target}")
    return 0


def _first_rows(data: Data, most: int) -> Data:
    """At most so many training rows, with every class among them."""
    if len(data.y_train) <= most:
        return data
    from sklearn.model_selection import train_test_split

    keep, _ = train_test_split(
        np.arange(len(data.y_train)), train_size=most, random_state=0, stratify=data.y_train
    )
    return Data(data.name, data.X_train[keep], data.y_train[keep], data.X_test, data.y_test)


# ---- bench


def _bench(arguments: argparse.Namespace) -> int:
    from ._bench import page, run_suite, tasks

    _writable(arguments.out)
    todo = tasks(quick=arguments.quick, shapes=arguments.shapes)
    if not arguments.json:
        print(f"{len(todo)} cases: {', '.join(dict.fromkeys(task.library for task in todo))}", flush=True)
    with Progress(len(todo), sys.stderr) as progress:
        document = run_suite(todo, arguments.typed, progress.step)
    document["machine"]["gpus"] = _gpus()
    shown, recorded = arguments.out / PAGE, arguments.out / RECORD
    text = json.dumps(document, indent=1)
    try:
        recorded.write_text(text + "\n", encoding="utf-8")
        shown.write_text(page(document), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {error.filename}: {error.strerror or error}") from None
    if arguments.json:
        print(text)
    else:
        print(_bench_text(document, sys.stdout))
        print(f"\npage:    {shown}\nnumbers: {recorded}")
    for entry in document["failed"]:
        print(f"failed: {entry['name']}: {entry['reason']}", file=sys.stderr)
    if document["interrupted"]:
        print("fastxent bench: interrupted; the page holds what was measured", file=sys.stderr)
        return 130
    if len(document["skipped"]) == len(todo):
        print(
            f"fastxent bench: no case was timed: the first {document['skipped'][0]['reason']}",
            file=sys.stderr,
        )
        return 1
    return 1 if any(entry["library"].startswith("fastxent") for entry in document["failed"]) else 0


def _bench_text(document: dict[str, Any], stream: TextIO) -> str:
    """The tables of a run for a terminal, the fastest of a line in bold."""
    from ._bench import tables

    parts = []
    for made in tables(document["rows"]):
        head, rule, *lines = _columns([made.head, *made.body], left=1)
        bold = {line for line, column in made.best if made.head[column] == "fastxent"}
        lines = [_paint(line, "1", stream) if at in bold else line for at, line in enumerate(lines)]
        above = [_paint(made.title, "1", stream), *([made.note] if made.note else []), ""]
        parts.append("\n".join(["", *above, head, rule, *lines]))
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
