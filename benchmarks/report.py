"""Markdown tables from the JSON of pytest-benchmark.

pytest benchmarks --benchmark-only --benchmark-json=bench.json
python benchmarks/report.py bench.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastxent._bench import PEERS
from fastxent.plots import format_seconds

Row = dict[str, Any]


def report(document: dict[str, Any]) -> str:
    """All tables of one run, with the machine and the command above them.

    Parameters
    ----------
    document : dict
        What ``--benchmark-json`` wrote.
    """
    rows = [
        {**benchmark["extra_info"], "group": benchmark["group"], "median": benchmark["stats"]["median"]}
        for benchmark in document["benchmarks"]
    ]
    parts = [_machine(document, rows), *_kernel_tables(rows), *_other_tables(rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _machine(document: dict[str, Any], rows: list[Row]) -> str:
    machine = document["machine_info"]
    cpu = machine.get("cpu", {}).get("brand_raw") or machine.get("machine", "unknown")
    threads = sorted({row["threads"] for row in rows if "threads" in row})
    used = f"threads: {', '.join(map(str, threads))}; " if threads else ""
    return (
        f"{cpu}; {used}{machine['system']}; Python {machine['python_version']}; {document['datetime'][:10]}."
    )


def _kernel_tables(rows: list[Row]) -> Iterable[str]:
    """A table per kind, mode and dtype: shapes down, peers across, medians in copies of the logits."""
    timed = [row for row in rows if "copies" in row]
    for kind, mode, dtype in dict.fromkeys((r["kind"], r["mode"], r["dtype"]) for r in timed):
        chosen = [r for r in timed if (r["kind"], r["mode"], r["dtype"]) == (kind, mode, dtype)]
        peers = [peer for peer in PEERS if any(r["peer"] == peer for r in chosen)]
        what = "loss and gradient" if mode == "fused" else "loss only"
        yield (
            f"**{'Softmax' if kind == 'softmax' else 'Binary'} cross-entropy, {what}, {dtype}**: "
            "time in multiples of one copy of the logits, measured between the runs (less is better)."
        )
        body = []
        for shape in dict.fromkeys((r["rows"], r["classes"]) for r in chosen):
            line = {r["peer"]: r for r in chosen if (r["rows"], r["classes"]) == shape}
            best = min(r["copies"] for r in line.values())
            first = line.get("cpu", next(iter(line.values())))
            body.append(
                [
                    " × ".join(f"{n:,}" for n in (shape if kind == "softmax" else shape[:1])),
                    format_seconds(first["copy_seconds"]),
                    *(_multiple(line.get(peer), best) for peer in peers),
                    f"{first['gb_per_s']:.0f}",
                    f"{first['max_error']:.0e}" if mode == "fused" else f"{first['loss_error']:.0e}",
                ]
            )
        lead = next((peer for peer in peers if peer == "cpu"), peers[0])
        yield _table(["shape", "copy", *peers, f"GB/s ({lead})", f"max error ({lead})"], body)
    if timed:
        used = [peer for peer in PEERS if any(r["peer"] == peer for r in timed)]
        yield "\n".join(f"- `{peer}`: {PEERS[peer].note}" for peer in used)


def _multiple(row: Row | None, best: float) -> str:
    if row is None:
        return "-"
    text = f"{row['copies']:.1f}" if row["copies"] < 10 else f"{row['copies']:.0f}"
    return f"**{text}**" if row["copies"] == best else text


def _other_tables(rows: list[Row]) -> Iterable[str]:
    calls = [r for r in rows if r.get("kind") and "copies" not in r]
    if calls:
        yield "**One call, loss and gradient on 8 × 10, float32**"
        yield _table(["peer", "time"], [[f"`{r['peer']}`", format_seconds(r["median"])] for r in calls])
    imports = [r for r in rows if "statement" in r]
    if imports:
        yield "**A fresh interpreter**"
        yield _table(
            ["runs", "time"], [[f"`{r['statement']}`", format_seconds(r["median"])] for r in imports]
        )
    models = [r for r in rows if "model" in r]
    if models:
        yield "**Training, float32** (MLP: one hidden layer of 256, of 32 for the digits, Adam, per epoch)"
        body = []
        for group in dict.fromkeys(r["group"] for r in models):
            line = {r["library"]: r for r in models if r["group"] == group}
            ours, peer, torch = (
                line[name]["median"] / line[name].get("epochs", 1) if name in line else None
                for name in ("fastxent", "scikit-learn", "PyTorch")
            )
            quality = [
                f"{line[name].get('objective', line[name].get('log_loss')):.4f}" if name in line else "-"
                for name in ("fastxent", "scikit-learn")
            ]
            body.append(
                [
                    group,
                    *("-" if seconds is None else format_seconds(seconds) for seconds in (ours, peer, torch)),
                    *(
                        "-" if ours is None or other is None else f"{other / ours:.1f}×"
                        for other in (peer, torch)
                    ),
                    *quality,
                ]
            )
        head = ["problem", "fastxent", "scikit-learn", "PyTorch", "faster by", "than PyTorch"]
        yield _table([*head, "loss reached", "scikit-learn's"], body)


def _table(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/report.py FILE.json")
    print(report(json.loads(Path(sys.argv[1]).read_text())), end="")
