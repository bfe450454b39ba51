"""From timed rows to tables and charts, which ``benchmarks/report.py`` prints as Markdown and `page` as HTML.

A row is a dictionary with ``what`` ("kernel", "call", "import" or "fit"), ``median`` seconds and what the case
was; `kernel_row` and `quality` make them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..plots import format_seconds
from ._cases import PEERS
from ._fits import LIBRARIES

Row = dict[str, Any]
MODE_WORDS = {"fused": "loss and gradient", "forward": "loss only"}
KIND_WORDS = {"softmax": "Softmax", "bce": "Binary"}


@dataclass(frozen=True)
class Table:
    """Cells as text; ``best`` has the places, (line, column), of the least time of a line."""

    title: str
    note: str
    head: list[str]
    body: list[list[str]]
    best: frozenset[tuple[int, int]] = frozenset()
    code: bool = False  # the first column is code
    legend: dict[str, str] = field(default_factory=dict)  # what the heads mean


@dataclass(frozen=True)
class Chart:
    """A value per line and series, on a logarithmic axis."""

    title: str
    axis: str
    lines: list[tuple[str, dict[str, float]]]
    seconds: bool = False  # values are seconds, else multiples


def tables(rows: list[Row]) -> list[Table]:
    """Every table of a run: what the peers cost beside us, kernels, single calls, imports, trainings."""
    return [*_summary(rows), *_kernels(rows), *_calls(rows), *_imports(rows), *_fits(rows)]


def charts(rows: list[Row]) -> dict[str, Chart]:
    """The charts of a run by the title of the table that has their numbers."""
    made = {}
    for kind, mode, dtype, chosen in _kernel_groups(rows):
        lines = [
            (_shape(kind, shape), {peer: row["copies"] for peer, row in line.items()})
            for shape, line in _lines(chosen)
        ]
        title = _kernel_title(kind, mode, dtype)
        made[title] = Chart(title, "time in copies of the logits (logarithmic; left is better)", lines)
    models = [row for row in rows if row["what"] == "fit"]
    if models:
        lines = [
            (group, {name: row["median"] / row.get("epochs", 1) for name, row in line.items()})
            for group, line in _fit_lines(models)
        ]
        made[FIT_TITLE] = Chart(FIT_TITLE, "time (logarithmic; left is better)", lines, seconds=True)
    return made


FIT_TITLE = "Training, float32"
CALL_TITLE = "One call, loss and gradient on 8 × 10, float32"
SUMMARY_TITLE = "Times of the others, in multiples of fastxent's"


def _kernel_title(kind: str, mode: str, dtype: str) -> str:
    return f"{KIND_WORDS[kind]} cross-entropy, {MODE_WORDS[mode]}, {dtype}"


def _kernel_groups(rows: list[Row]) -> Iterable[tuple[str, str, str, list[Row]]]:
    timed = [row for row in rows if row["what"] == "kernel"]
    for kind, mode, dtype in dict.fromkeys((r["kind"], r["mode"], r["dtype"]) for r in timed):
        chosen = [r for r in timed if (r["kind"], r["mode"], r["dtype"]) == (kind, mode, dtype)]
        yield kind, mode, dtype, chosen


def _lines(chosen: list[Row]) -> Iterable[tuple[tuple[int, int], dict[str, Row]]]:
    """The rows of one shape, by peer in the order of `PEERS`."""
    for shape in dict.fromkeys((r["rows"], r["classes"]) for r in chosen):
        line = {r["peer"]: r for r in chosen if (r["rows"], r["classes"]) == shape}
        yield shape, {peer: line[peer] for peer in PEERS if peer in line}


def _shape(kind: str, shape: tuple[int, int]) -> str:
    return " × ".join(f"{n:,}" for n in (shape if kind == "softmax" else shape[:1]))


def _summary(rows: list[Row]) -> Iterable[Table]:
    """Each peer's time over ours on the same shape: the geometric mean, and least and greatest."""
    body: list[tuple[str, dict[str, list[float]]]] = []
    for kind, mode, dtype, chosen in _kernel_groups(rows):
        ratios: dict[str, list[float]] = {}
        for _, line in _lines(chosen):
            for peer, row in line.items():
                if "cpu" in line and peer not in ("cpu", "numpy"):  # those are fastxent's own
                    ratios.setdefault(peer, []).append(row["copies"] / line["cpu"]["copies"])
        if ratios:
            body.append((_kernel_title(kind, mode, dtype), ratios))
    peers = [peer for peer in PEERS if any(peer in ratios for _, ratios in body)]
    if peers:
        yield Table(
            SUMMARY_TITLE,
            "geometric mean over the shapes, and from the least to the greatest (more than 1: fastxent is faster).",
            ["", *(PEERS[peer].label for peer in peers)],
            [[title, *(_spread(ratios.get(peer)) for peer in peers)] for title, ratios in body],
            legend=_legend(peers),
        )


def _legend(peers: Iterable[str]) -> dict[str, str]:
    return {PEERS[peer].label: PEERS[peer].note for peer in peers}


def _spread(values: list[float] | None) -> str:
    if not values:
        return "-"
    mean = math.exp(math.fsum(map(math.log, values)) / len(values))
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ({min(values):.1f} to {max(values):.1f})"


def _kernels(rows: list[Row]) -> Iterable[Table]:
    """A table per kind, mode and dtype: shapes down, peers across, medians in copies of the logits."""
    for kind, mode, dtype, chosen in _kernel_groups(rows):
        peers = [peer for peer in PEERS if any(r["peer"] == peer for r in chosen)]
        lead = PEERS["cpu" if "cpu" in peers else peers[0]].label
        body, best = [], set()
        for number, (shape, line) in enumerate(_lines(chosen)):
            least = min(r["copies"] for r in line.values())
            first = line.get("cpu", next(iter(line.values())))
            best |= {
                (number, 2 + at)
                for at, peer in enumerate(peers)
                if peer in line and line[peer]["copies"] == least
            }
            body.append(
                [
                    _shape(kind, shape),
                    format_seconds(first["copy_seconds"]),
                    *(_multiple(line.get(peer)) for peer in peers),
                    f"{first['gb_per_s']:.0f}",
                    f"{first['max_error']:.0e}" if mode == "fused" else f"{first['loss_error']:.0e}",
                ]
            )
        yield Table(
            _kernel_title(kind, mode, dtype),
            "time in multiples of one copy of the logits, measured between the runs (less is better).",
            [
                "shape",
                "copy",
                *(PEERS[peer].label for peer in peers),
                f"GB/s ({lead})",
                f"max error ({lead})",
            ],
            body,
            frozenset(best),
            legend=_legend(peers),
        )


def _multiple(row: Row | None) -> str:
    if row is None:
        return "-"
    return f"{row['copies']:.1f}" if row["copies"] < 10 else f"{row['copies']:.0f}"


def _calls(rows: list[Row]) -> Iterable[Table]:
    calls = [row for row in rows if row["what"] == "call"]
    if calls:
        body = [[PEERS[row["peer"]].label, format_seconds(row["median"])] for row in calls]
        yield Table(CALL_TITLE, "", ["", "time"], body, legend=_legend(row["peer"] for row in calls))


def _imports(rows: list[Row]) -> Iterable[Table]:
    imports = [row for row in rows if row["what"] == "import"]
    if imports:
        body = [[row["statement"], format_seconds(row["median"])] for row in imports]
        yield Table("A fresh interpreter", "", ["runs", "time"], body, code=True)


def _fit_lines(models: list[Row]) -> Iterable[tuple[str, dict[str, Row]]]:
    for group in dict.fromkeys(row["group"] for row in models):
        line = {row["library"]: row for row in models if row["group"] == group}
        yield group, {library: line[library] for library in LIBRARIES if library in line}


def _fits(rows: list[Row]) -> Iterable[Table]:
    models = [row for row in rows if row["what"] == "fit"]
    if not models:
        return
    body = []
    for group, line in _fit_lines(models):
        ours, peer, torch = (
            line[name]["median"] / line[name].get("epochs", 1) if name in line else None for name in LIBRARIES
        )
        reached = [
            f"{line[name].get('objective', line[name].get('log_loss')):.4f}" if name in line else "-"
            for name in LIBRARIES[:2]
        ]
        body.append(
            [
                group,
                *("-" if seconds is None else format_seconds(seconds) for seconds in (ours, peer, torch)),
                *(
                    "-" if ours is None or other is None else f"{other / ours:.1f}×"
                    for other in (peer, torch)
                ),
                *reached,
            ]
        )
    yield Table(
        FIT_TITLE,
        "MLP: one hidden layer of 256, of 32 for the digits, Adam, per epoch.",
        ["problem", *LIBRARIES, "faster by", "than PyTorch", "loss reached", "scikit-learn's"],
        body,
    )
