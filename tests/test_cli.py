"""The command line: as a function, as a process in a pipe, and on a terminal."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from fresh import printed

import fastxent
from fastxent import cli

PNG = b"\x89PNG\r\n\x1a\n"
TABLE_ROWS = [
    ("LogisticRegression", "fastxent"),
    ("LogisticRegression", "scikit-learn"),
    ("MLPClassifier", "fastxent"),
    ("MLPClassifier", "scikit-learn"),
]


def run(*arguments, **options):
    """``fastxent ...`` in a process of its own, its output in pipes."""
    code = "import sys; from fastxent.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, **{"capture_output": True, "text": True, "encoding": "utf-8", "timeout": 300, **options}
    )


def table_of(text):
    """The rows of the printed table, by (model, library)."""
    rows = [line.split() for line in text.splitlines()]
    return {(row[0], row[1]): row[2:] for row in rows if tuple(row[:2]) in TABLE_ROWS}


@pytest.fixture(scope="module")
def blobs():
    """Two well-separated classes, 120 rows."""
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    return (rng.standard_normal((120, 3)) + 4 * y[:, None]).round(3), y


@pytest.fixture
def csv_file(tmp_path, blobs):
    """The blobs as a table with labels in words between the features."""
    X, y = blobs
    lines = ["a,kind,b,c", *(f"{x[0]},{('cat', 'dog')[k]},{x[1]},{x[2]}" for x, k in zip(X, y, strict=True))]
    path = tmp_path / "pets.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


class TestInfo:
    def test_text(self, capsys):
        assert cli.main(["info"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        for word in (fastxent.__version__, "numpy", "scikit-learn", "backends", "cpu", "gpu"):
            assert word in out

    def test_json(self, capsys):
        assert cli.main(["info", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["versions"]["numpy"] == np.__version__
        assert "numpy" in told["backends"]
        assert isinstance(told["gpus"], list)

    def test_gpus_are_what_the_driver_says(self, tmp_path, monkeypatch, capsys):
        tool = tmp_path / "nvidia-smi"
        tool.write_text("#!/bin/sh\necho 'Imaginary 9000, 24576 MiB, 600.1'\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        cli.main(["info"])
        assert "Imaginary 9000" in capsys.readouterr().out

    def test_a_driver_that_fails_is_no_gpu(self, tmp_path, monkeypatch, capsys):
        tool = tmp_path / "nvidia-smi"
        tool.write_text("#!/bin/sh\necho 'no devices were found'\nexit 9\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        cli.main(["info", "--json"])
        assert json.loads(capsys.readouterr().out)["gpus"] == []


class TestDemo:
    def test_digits_in_a_pipe(self, tmp_path):
        pytest.importorskip("matplotlib")
        done = run("demo", "--quick", "--out", tmp_path / "new" / "folder")
        assert (done.returncode, done.stderr) == (0, "")
        assert "\x1b" not in done.stdout
        assert "\r" not in done.stdout
        rows = table_of(done.stdout)
        assert list(rows) == TABLE_ROWS
        for accuracy, loss, *_ in rows.values():
            assert float(accuracy) > 0.9
            assert 0 < float(loss) < 0.5
        picture = tmp_path / "new" / "folder" / cli.FIGURE
        assert str(picture) in done.stdout
        assert picture.read_bytes().startswith(PNG)
        assert 30_000 < picture.stat().st_size < 1_000_000

    def test_csv_with_words_for_labels(self, csv_file, tmp_path, capsys):
        assert cli.main(["demo", "--data", str(csv_file), "--target", "kind", "--out", str(tmp_path)]) == 0
        out = capsys.readouterr().out
        assert "pets: 90 training and 30 test rows, 3 features, 2 classes" in out
        assert all(float(row[0]) > 0.95 for row in table_of(out).values())

    @pytest.mark.skipif(os.name == "nt", reason="the pipe is POSIX")
    def test_the_reader_of_the_pipe_leaves(self):
        script = f'"{sys.executable}" -c "from fastxent.cli import main; main()" info | head -n 0'
        done = subprocess.run(script, shell=True, capture_output=True, text=True, timeout=60)
        assert "Traceback" not in done.stderr
        assert "BrokenPipe" not in done.stderr

    def test_without_matplotlib_the_table_is_still_printed(self, csv_file, tmp_path, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        assert cli.main(["demo", "--data", str(csv_file), "--target", "kind", "--out", str(tmp_path)]) == 0
        out, err = capsys.readouterr()
        assert len(table_of(out)) == 4
        assert err == "no figure: matplotlib is missing (pip install 'fastxent[plots]')\n"
        assert not (tmp_path / cli.FIGURE).exists()

    def test_an_interrupt_says_so(self, monkeypatch, capsys):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(cli, "load_data", interrupt)
        assert cli.main(["demo"]) == 130
        assert capsys.readouterr().err == "fastxent demo: interrupted\n"


class TestData:
    def test_npz_that_is_split(self, tmp_path):
        """Images are flattened and bytes become [0, 1]; the split is taken as it is."""
        x = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2) * 10
        y = np.array([0, 1, 0, 1, 0, 1])
        np.savez(tmp_path / "m.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
        data = cli.load_data(tmp_path / "m.npz")
        np.testing.assert_array_equal(data.X_train, (x.reshape(6, 4) / np.float32(255)))
        assert data.X_train.dtype == np.float32
        assert len(data.y_test) == 2

    def test_npz_that_is_whole(self, tmp_path, blobs):
        X, y = blobs
        np.savez(tmp_path / "b.npz", X=X * 1000, y=np.where(y, "dog", "cat"))
        data = cli.load_data(tmp_path / "b.npz")
        assert (len(data.y_train), len(data.y_test)) == (90, 30)
        np.testing.assert_allclose(data.X_train.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(data.X_train.std(axis=0), 1, rtol=1e-5)

    def test_the_test_part_is_scaled_by_the_training_part(self, tmp_path):
        x = np.arange(8.0)[:, None]
        np.savez(
            tmp_path / "s.npz", x_train=x, y_train=np.arange(8) % 2, x_test=x + 8, y_test=np.arange(8) % 2
        )
        data = cli.load_data(tmp_path / "s.npz")
        np.testing.assert_allclose(data.X_test, data.X_train + 8 / np.std(x), rtol=1e-6)

    @pytest.mark.parametrize("separator", [",", ";", "\t"])
    def test_csv_separators_and_integer_labels(self, tmp_path, separator):
        lines = ["\ufeffu,v,label", *(f"{i},{-i},{i % 2}" for i in range(20))]
        path = tmp_path / "t.csv"
        path.write_text("\n".join(lines).replace(",", separator), encoding="utf-8")
        data = cli.load_data(path, "label")
        assert data.X_train.shape == (15, 2)
        assert data.y_train.dtype.kind == "i"

    def test_quick_keeps_every_class(self):
        y = np.repeat([0, 1, 2], [3000, 900, 100])
        data = cli._first_rows(cli.Data("d", np.zeros((4000, 1)), y, np.zeros((1, 1)), y[:1]), 2000)
        np.testing.assert_array_equal(np.bincount(data.y_train), [1500, 450, 50])


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


_X, _y = np.arange(20.0).reshape(10, 2), np.arange(10) % 2
_PAIRS = "a,y\n" + "".join(f"{i},{i % 2}\n" for i in range(10))
BAD_INPUT = {
    "text features": (
        "t.csv",
        b"a,b,y\n1,blue,0\n2,red,1\n",
        "y",
        "column 'b' of * holds text ('blue' in line 2)",
    ),
    "empty feature": ("t.csv", b"a,b,y\n1,2,0\n2,,1\n", "y", "column 'b' of * is empty in line 3"),
    "nan feature": ("t.csv", b"a,b,y\n1,2,0\n2,nan,1\n", "y", "column 'b' of * is nan in data row 2"),
    "empty label": ("t.csv", b"a,y\n1,0\n2,\n", "y", "column 'y' of * is empty in line 3"),
    "ragged row": ("t.csv", b"a,b,y\n1,2,0\n2,1\n", "y", "line 3 of * has 2 fields, the header has 3"),
    "missing column": ("t.csv", _PAIRS.encode(), "price", "no column 'price' in *; its columns are: a, y"),
    "no target": ("t.csv", _PAIRS.encode(), None, "--target is needed for a .csv; its columns are: a, y"),
    "no features": ("t.csv", b"y\n0\n1\n", "y", "has no feature column beside 'y'"),
    "one class only": ("t.csv", b"a,y\n1,0\n2,0\n3,0\n", "y", "t has one class only (0)"),
    "header only": ("t.csv", b"a,y\n", "y", "t has no rows"),
    "empty file": ("t.csv", b"", "y", "no column 'y' in *; its columns are: none"),
    "single row of a class": ("t.csv", b"a,y\n1,0\n2,0\n3,0\n4,1\n", "y", "class 1 of t has a single row"),
    "regression target": (
        "t.csv",
        b"a,y\n" + b"".join(b"%d,%d.5\n" % (i, i) for i in range(9)),
        "y",
        "the target of t has 9 different values in 9 rows: is it a class label?",
    ),
    "not text": ("t.csv", b"a,y\n\xff\xfe\x00,1\n", "y", "cannot read * as a table in UTF-8"),
    "open quote": ("t.csv", b'a,y\n"1,0\n', "y", "cannot read * as a table in UTF-8"),
    "not an archive": ("t.npz", b"hello", None, "is not an .npz archive"),
    "truncated": ("t.npz", npz(X=_X, y=_y)[:-40], None, "is not an .npz archive"),
    "other names": (
        "t.npz",
        npz(data=_X, y=_y),
        None,
        "must hold X and y, or x_train, y_train, x_test and y_test",
    ),
    "pickled": (
        "t.npz",
        npz(X=np.array([[{}]]), y=_y),
        None,
        "cannot read *: Object arrays cannot be loaded",
    ),
    "text matrix": ("t.npz", npz(X=_X.astype(str), y=_y), None, "X in * must be numbers, got dtype <U"),
    "nan matrix": ("t.npz", npz(X=_X * np.nan, y=_y), None, "X in * holds NaN or infinite values"),
    "lengths": ("t.npz", npz(X=_X, y=_y[:-1]), None, "got (10, 2) and (9,)"),
    "vector": ("t.npz", npz(X=_X[:, 0], y=_y), None, "got (10,) and (10,)"),
    "continuous labels": ("t.npz", npz(X=_X, y=_y + 0.5), None, "y in * must hold class labels"),
    "widths": (
        "t.npz",
        npz(x_train=_X, y_train=_y, x_test=_X[:, :1], y_test=_y),
        None,
        "x_train in * has 2 features, x_test 1",
    ),
    "unseen class": (
        "t.npz",
        npz(x_train=_X, y_train=_y, x_test=_X, y_test=_y + 1),
        None,
        "y_test in * has a class that y_train lacks: 2",
    ),
    "target of an npz": ("t.npz", npz(X=_X, y=_y), "y", "--target names a column of a .csv file"),
    "other suffix": ("t.parquet", b"", None, "--data must be a .csv or .npz file"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_code_2(case, tmp_path, capsys):
    file, content, target, message = BAD_INPUT[case]
    path = tmp_path / file
    path.write_bytes(content)
    options = [] if target is None else ["--target", target]
    assert cli.main(["demo", "--data", str(path), "--out", str(tmp_path / "out"), *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastxent demo: error: ")
    assert err.count("\n") == 1
    for part in message.split("*"):
        assert part in err


@pytest.mark.parametrize("suffix", [".csv", ".npz"])
def test_a_missing_file_in_a_process(tmp_path, suffix):
    path = tmp_path / f"absent{suffix}"
    done = run("demo", "--data", path, *(["--target", "y"] if suffix == ".csv" else []))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"fastxent demo: error: cannot read {path}: No such file or directory\n"


def test_a_folder_is_no_table(tmp_path, capsys):
    (tmp_path / "d.csv").mkdir()
    assert cli.main(["demo", "--data", str(tmp_path / "d.csv"), "--target", "y"]) == 2
    assert "Is a directory" in capsys.readouterr().err


def test_an_output_folder_that_cannot_be(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["demo", "--out", str(tmp_path / "file")]) == 2
    assert "cannot write into" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["train"], ["demo", "--epochs", "3"]])
def test_arguments_that_do_not_parse(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "usage: fastxent" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "taught"),
    [
        (["--help"], ("fastxent bench --quick", "exit codes: 0 done; 1 failed", "NO_COLOR")),
        (["info", "--help"], ("fastxent info --json",)),
        (["demo", "--help"], ("fastxent demo --data mnist.npz", "--target churned")),
        (["bench", "--help"], ("fastxent bench --shapes 4096x50257", "ROWSxCLASSES", "fastxent-bench.html")),
    ],
)
def test_help_teaches(arguments, taught, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in taught:
        assert words in text


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"fastxent {fastxent.__version__}\n"


def test_demo_in_json(csv_file, tmp_path, capsys):
    arguments = [
        "demo",
        "--data",
        str(csv_file),
        "--target",
        "kind",
        "--out",
        str(tmp_path),
        "--quick",
        "--json",
    ]
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert [(r["model"], r["library"]) for r in told["results"]] == TABLE_ROWS
    assert (told["training_rows"], told["test_rows"], told["features"], told["classes"]) == (90, 30, 3, 2)
    assert all(0.9 < r["accuracy"] <= 1 and r["median"] > 0 for r in told["results"])
    if told["figure"] is None:
        assert "matplotlib is missing" in err
    else:
        assert (tmp_path / cli.FIGURE).read_bytes().startswith(PNG)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


class TestTerminal:
    @pytest.fixture(autouse=True)
    def _environment(self, monkeypatch):
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)

    def draw(self):
        stream = Terminal()
        with cli.Progress(2, stream) as progress:
            progress.step("first")
            progress.step("second")
            progress._closed.wait(0.5)  # two ticks
        return stream.getvalue()

    def test_the_bar_moves_and_is_wiped_out(self):
        text = self.draw()
        assert "1/2" in text
        assert "second" in text
        assert "\x1b[36m━━━━━━━━━━\x1b[0m──────────" in text
        assert text.endswith("\r")
        assert text.rstrip("\r").rsplit("\r", 1)[1].strip() == ""

    def test_no_color(self, monkeypatch):
        monkeypatch.setenv("NO_COLOR", "1")
        assert "\x1b" not in self.draw()
        assert cli._paint("text", "1", Terminal()) == "text"

    def test_dumb_terminal(self, monkeypatch):
        monkeypatch.setenv("TERM", "dumb")
        assert self.draw() == ""

    def test_no_bar_in_a_pipe(self):
        stream = io.StringIO()
        with cli.Progress(1, stream) as progress:
            progress.step("first")
            progress._closed.wait(0.3)
        assert stream.getvalue() == ""

    def test_our_rows_stand_out(self):
        result = cli.Result("MLPClassifier", "fastxent", None, 2, [1.0, 3.0, 2.0], 0.9, 0.3, np.empty(0))
        peer = cli.Result("MLPClassifier", "scikit-learn", None, 2, [5.0], 0.9, 0.3, np.empty(0))
        text = cli.table([result, peer], Terminal())
        assert text.count("\x1b[1m") == 1
        assert table_of(text.replace("\x1b[1m", "").replace("\x1b[0m", ""))["MLPClassifier", "fastxent"] == [
            "0.9000", "0.3000", "2", "2.00", "s", "2.50×",
        ]  # fmt: skip


def test_the_command_is_installed():
    """The entry point of the distribution leads to `main`."""
    from importlib.metadata import entry_points

    (point,) = entry_points(group="console_scripts", name="fastxent")
    assert point.load() is cli.main


def test_importing_the_command_line_is_light():
    heavy = [name for name in ("sklearn", "matplotlib", "torch", "numba") if importlib.util.find_spec(name)]
    code = f"import sys, fastxent.cli; print([m for m in {heavy} if m in sys.modules])"
    assert printed(code) == "[]"


def test_no_command_shows_where_to_start(capsys):
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "start here:" in err
