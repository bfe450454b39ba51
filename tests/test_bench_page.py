"""``fastxent bench``: what it does and keeps, and its page, parsed everywhere and opened where there is a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import asdict
from html.parser import HTMLParser

import numpy as np
import pytest

from fastxent import _bench, cli
from fastxent._bench import _cases, _suite

OURS = ("cpu", "numpy", "plain-numpy", "scipy", "sklearn")  # peers that need no compilation


@pytest.fixture
def light(monkeypatch):
    """Only the peers that start at once."""
    here = [name for name in _bench.installed() if name in OURS]
    monkeypatch.setattr(_cases, "installed", lambda: here)


def kernel(peer, copies, shape=(1024, 32768), mode="fused", dtype="float32", kind="softmax"):
    case = _bench.Case(kind, mode, *shape, dtype, peer)
    return {
        "what": "kernel", "name": case.name, **asdict(case), "threads": 2, "copies": copies, "copy_seconds": 0.006,
        "median": 0.006 * copies, "gb_per_s": 40.0, "max_error": 2e-7, "loss_error": 1e-7,
    }  # fmt: skip


@pytest.fixture
def document():
    """A full document with every kind of row, every peer, a failure, something left out, and hostile text."""
    shapes = [(8_000_000, 2), (1_600_000, 10), (512, 32_768), (128, 131_072)]
    rows = [
        kernel(peer, 1.1 * (1 + at) ** 1.3 * (1 + 0.1 * line), shape, mode, dtype)
        for mode in _bench.MODES
        for dtype in _bench.DTYPES
        for line, shape in enumerate(shapes)
        for at, peer in enumerate(_bench.PEERS)
    ]
    rows += [kernel(peer, 1.2, (16_777_216, 1), kind="bce") for peer in _bench.PEERS]
    rows += [{"what": "call", "peer": peer, "median": 7.8e-6} for peer in ("cpu", "torch")]
    rows += [{"what": "import", "statement": "import fastxent", "median": 0.08}]
    for fit in _bench.fits(("digits", "planted", "mnist")):
        told = {"group": fit.group, "model": fit.model, "library": fit.library, "log_loss": 0.25}
        rows.append({"what": "fit", **told, "threads": fit.threads, "median": 0.02 * len(fit.group)})
    return {
        "command": "fastxent bench --out 'a <b>&\"c'",
        "date": "2031-02-03T04:05:06+01:00",
        "seconds": 63.2,
        "machine": {
            **_bench.machine(), "cpu": "Analytical Engine </script><script>alert(1)</script>",
            "environment": {"OMP_NUM_THREADS": "2 & <more>"}, "gpus": [],
        },
        "rows": rows,
        "failed": [{"name": "softmax-fused", "library": "Numba", "reason": "ValueError: a < b & c"}],
        "skipped": [{"name": "bce-fused", "library": "PyTorch", "reason": "needs 99.0 GiB of memory"}],
        "interrupted": True,
    }  # fmt: skip


# The page -------------------------------------------------------------------------------------------------


class Outline(HTMLParser):
    """An HTML parser's view: elements that close, references to elsewhere, text."""

    VOID = ("meta", "link")

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.ids, self.outside = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href") and not value.startswith(("#", "data:")):
                self.outside.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(html):
    outline = Outline()
    outline.feed(html)
    outline.close()
    return outline


def test_the_page_is_html_and_xml_and_needs_nothing_else(document):
    html = _bench.page(document)
    outline = read(html)
    assert html.startswith("<!DOCTYPE html>\n")
    assert outline.open == []
    assert outline.outside == []
    assert "url(" not in html
    assert "@import" not in html
    assert len(outline.ids) == len(set(outline.ids))
    root = ET.fromstring(html.partition("\n")[2])
    assert [child.tag for child in root] == ["head", "body"]
    for link in root.iter("a"):
        assert link.get("href").removeprefix("#") in outline.ids


def test_every_number_is_shown_and_pointed_at(document):
    root = ET.fromstring(_bench.page(document).partition("\n")[2])
    drawings = list(root.iter("svg"))
    kinds = {(row["kind"], row["mode"], row["dtype"]) for row in document["rows"] if row["what"] == "kernel"}
    assert len(drawings) == len(kinds) + 1  # and the trainings
    told = {title.text for svg in drawings for title in svg.iter("title")}
    assert "PyTorch, 512 × 32,768: 16.6 copies" in told  # 1.1 · 7^1.3 · 1.2
    tables = list(root.iter("table"))
    assert len(tables) == len(kinds) + 4
    for table in tables:
        widths = {len(line) for line in table.iter("tr")}
        assert len(widths) == 1
    page = " ".join(root.itertext())
    for text in (
        "Analytical Engine </script>",
        "fastxent bench --out 'a <b>&\"c'",
        "ValueError: a < b & c",
        "needs 99.0 GiB of memory",
        "interrupted",
        "2031-02-03",
    ):
        assert text in page


def test_the_page_carries_its_numbers(document):
    html = _bench.page(document)
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html)
    assert json.loads(text) == document


def test_marks_lie_within_the_picture(document):
    root = ET.fromstring(_bench.page(document).partition("\n")[2])
    for svg in root.iter("svg"):
        width, height = map(float, svg.get("viewBox").split()[2:])
        for mark in svg.iter():
            if "cx" in mark.attrib:
                assert 0 <= float(mark.get("cx")) <= width
                assert 0 <= float(mark.get("cy")) <= height


@pytest.mark.parametrize("values", [(1.0,), (1.0, 1.0), (0.02, 0.021), (1e-7, 3e4), (9.99, 10.0)])
def test_any_range_of_values_can_be_drawn(values):
    peers = list(_bench.PEERS)
    rows = [kernel(peer, copies) for peer, copies in zip(peers, values, strict=False)]
    (chart,) = _bench.charts(rows).values()
    svg = ET.fromstring(_bench._page._svg(chart))
    width = float(svg.get("viewBox").split()[2])
    told = {title.text for title in svg.iter("title")}
    assert told >= {f"{_bench.PEERS[peer].label}, 1,024 × 32,768: {copies:.3g} copies"
                    for peer, copies in zip(peers, values, strict=False)}  # fmt: skip
    grid = [
        (float(line.get("x1")), float(line.get("x2")))
        for line in svg.iter("line")
        if line.get("class") == "grid"
    ]
    ticks = [start for start, end in grid if start == end]
    ends = [(start, end) for start, end in grid if start != end]
    assert len(ticks) >= 2  # of one value too
    assert len(ends) == 1
    assert all(0 < ends[0][0] <= tick <= ends[0][1] < width for tick in ticks)


def test_an_empty_run_is_a_page(document):
    html = _bench.page({**document, "rows": [], "failed": [], "skipped": [], "interrupted": False})
    assert read(html).seen.count("svg") == 0
    assert "What is missing" not in html


BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)

# What only a browser knows: sizes and overlaps once fonts are chosen. Written into the title, which --dump-dom shows.
PROBE = """<script>
addEventListener("load", () => {
  const clash = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
  const found = {svgs: 0, empty: 0, clashes: [], outside: [], wide: document.documentElement.scrollWidth - innerWidth};
  for (const svg of document.querySelectorAll("svg")) {
    found.svgs++;
    const frame = svg.getBoundingClientRect();
    if (frame.width < 300 || frame.height < 50) found.empty++;
    const boxes = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
    boxes.forEach(([text, box], i) => {
      const inside = box.left > frame.left - 1 && box.right < frame.right + 1 && box.bottom < frame.bottom + 1;
      if (!inside) found.outside.push(text);
      for (const [other, second] of boxes.slice(0, i)) if (clash(box, second)) found.clashes.push(text + "|" + other);
    });
  }
  document.title = "PROBE" + JSON.stringify(found) + "EBORP";
});
</script></head>"""


@pytest.mark.slow
@pytest.mark.skipif(
    BROWSER is None, reason="no Chromium on PATH (on Debian and Ubuntu: apt-get install chromium)"
)
@pytest.mark.parametrize("width", [1200, 500])
def test_in_a_browser(document, width, tmp_path):
    """It opens without a message in the console; every chart is there, no text of a chart overlaps another's."""
    path, picture = tmp_path / "page.html", tmp_path / "page.png"
    path.write_text(_bench.page(document).replace("</head>", PROBE), encoding="utf-8")
    common = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2400", "--enable-logging=stderr",
    ]  # fmt: skip
    done = subprocess.run(
        [*common, "--virtual-time-budget=3000", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    found = json.loads(re.search("PROBE(.*?)EBORP", done.stdout)[1].replace("&amp;", "&"))
    assert found == {"svgs": 6, "empty": 0, "clashes": [], "outside": [], "wide": found["wide"]}
    assert found["wide"] <= 0
    subprocess.run(
        [*common, f"--screenshot={picture}", path.as_uri()], capture_output=True, timeout=120, check=True
    )
    image = pytest.importorskip("matplotlib.image").imread(picture)
    blue = np.abs(image[..., :3] - np.array([0, 0x72, 0xB2]) / 255).max(axis=-1) < 0.02
    assert blue.sum() > 100  # fastxent's marks


# The run --------------------------------------------------------------------------------------------------


def test_quick_is_a_part_of_the_suite():
    whole = {case.name for case in _bench.kernel_cases()}
    quick = _bench.kernel_cases(quick=True)
    assert {case.name for case in quick} < whole
    assert {(case.mode, case.dtype) for case in quick} == {("fused", "float32")}
    names = [task.name for task in _bench.tasks(quick=True)]
    assert len(set(names)) == len(names)
    assert {task.what for task in _bench.tasks(quick=True)} == {"kernel", "call", "import", "fit"}


def test_a_peer_that_fails_stops_nobody():
    def wrong():
        raise ArithmeticError("wrong answer\nwith details")

    def interrupt():
        raise KeyboardInterrupt

    def skipped():
        raise _suite.Skipped("needs 9 GiB")

    def task(name, run):
        return _suite.Task("import", name, "SciPy", run)

    steps = []
    todo = [
        task("wrong", wrong), task("skipped", skipped), task("right", lambda: {"what": "import", "median": 1.0}),
        task("interrupt", interrupt), task("never", wrong),
    ]  # fmt: skip
    document = _bench.run_suite(todo, "fastxent bench", steps.append)
    assert steps == ["wrong", "skipped", "right", "interrupt"]
    assert document["failed"] == [
        {"name": "wrong", "library": "SciPy", "reason": "ArithmeticError: wrong answer"}
    ]
    assert document["skipped"] == [{"name": "skipped", "library": "SciPy", "reason": "needs 9 GiB"}]
    assert document["rows"] == [{"name": "right", "what": "import", "median": 1.0}]
    assert document["interrupted"]


def test_memory_that_is_not_there_is_a_reason(monkeypatch):
    case = _bench.Case("softmax", "fused", 1000, 1000, "float32", "numpy")
    assert _bench.reason_to_skip(case) is None
    monkeypatch.setattr(_suite, "available_memory", lambda: 1e6)
    assert _bench.reason_to_skip(case) == "needs 0.0 GiB of memory"


def test_the_smallest_training_gives_a_row():
    fit = _bench.Fit("LogisticRegression", "fastxent", "digits", 1)
    row = _suite._time_fit(fit, lambda name: _bench.load_fit_data(name, small=True))
    assert row["accuracy"] > 0.9
    assert len(row["seconds"]) >= 3
    X, y = _bench.load_fit_data("digits", small=True)
    model = _bench.prepare_fit(fit, small=True).fit(X, (y + 1) % 10)
    with pytest.raises(ArithmeticError, match="learnt nothing"):
        _bench.quality(fit, model, X, y)


def test_mnist_without_its_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTXENT_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"FASTXENT_DATA to the folder of mnist\.npz"):
        _bench.load_fit_data("mnist")
    assert not [task for task in _bench.tasks() if "mnist" in task.name]


# The command ----------------------------------------------------------------------------------------------


def test_bench_writes_a_page_and_its_numbers(light, tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    assert cli.main(["bench", "--shapes", "67x7", "301", "--out", str(out)]) == 0
    text, err = capsys.readouterr()
    assert err == ""
    assert "Softmax cross-entropy, loss and gradient, float32" in text
    assert str(out / cli.PAGE) in text
    assert "\x1b" not in text
    document = json.loads((out / cli.RECORD).read_text())
    assert {row["name"] for row in document["rows"]} == {
        case.name for case in _bench.kernel_cases(shapes=[(67, 7), (301,)])
    }
    assert all(row["median"] > 0 and len(row["seconds"]) >= 3 for row in document["rows"])
    assert document["command"] == f"fastxent bench --shapes 67x7 301 --out {out}"
    assert read((out / cli.PAGE).read_text(encoding="utf-8")).seen.count("svg") == 2 * len(_bench.TIMED)


def test_json_is_all_of_stdout(light, tmp_path, capsys):
    assert cli.main(["bench", "--quick", "--shapes", "31", "--out", str(tmp_path), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out) == json.loads((tmp_path / cli.RECORD).read_text())


@pytest.mark.parametrize(("label", "code"), [("fastxent", 1), ("SciPy", 0)])
def test_only_our_own_failure_is_a_failure(label, code, tmp_path, monkeypatch, capsys):
    def fail():
        raise ArithmeticError("wrong answer")

    monkeypatch.setattr(_bench, "tasks", lambda **_: [_suite.Task("kernel", "the-case", label, fail)])
    assert cli.main(["bench", "--out", str(tmp_path)]) == code
    assert capsys.readouterr().err == "failed: the-case: ArithmeticError: wrong answer\n"
    assert "the-case" in (tmp_path / cli.PAGE).read_text(encoding="utf-8")


def test_ctrl_c_keeps_what_was_measured(tmp_path, monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(_bench, "tasks", lambda **_: [_suite.Task("kernel", "the-case", "SciPy", interrupt)])
    assert cli.main(["bench", "--out", str(tmp_path)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert "interrupted" in (tmp_path / cli.PAGE).read_text(encoding="utf-8")


@pytest.mark.parametrize("shape", ["10x", "x10", "0x5", "5x1", "-3", "1e6", "3.5x2", "", "5x2x2"])
def test_a_shape_that_is_none(shape, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "--shapes", shape])
    assert stop.value.code == 2
    assert "argument --shapes: expected" in capsys.readouterr().err


def test_a_shape_beyond_the_memory_is_said(tmp_path, capsys):
    assert cli.main(["bench", "--quick", "--shapes", "99999999x99999999", "--out", str(tmp_path)]) == 1
    assert re.search(r"no case was timed: the first needs \d+\.\d GiB of memory", capsys.readouterr().err)


def test_a_folder_that_cannot_be_is_said_before_anything_is_timed(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(_bench, "run_suite", None)
    assert cli.main(["bench", "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith("fastxent bench: error: cannot write into")


@pytest.mark.slow
def test_in_a_process_without_a_terminal(tmp_path):
    code = "import sys; from fastxent.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "bench", "--quick", "--shapes", "31x3", "--out", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "NO_COLOR": "1"}
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "\r" not in done.stdout
    assert (tmp_path / cli.PAGE).stat().st_size > 5_000
