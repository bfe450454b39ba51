"""Markdown tables from the JSON of pytest-benchmark.

pytest benchmarks --benchmark-only --benchmark-json=bench.json
python benchmarks/report.py bench.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fastxent._bench import Table, tables


def report(document: dict[str, Any]) -> str:
    """All tables of one run, with the machine and the command above them.

    Parameters
    ----------
    document : dict
        What ``--benchmark-json`` wrote.
    """
    rows = [
        {**benchmark["extra_info"], "median": benchmark["stats"]["median"]}
        for benchmark in document["benchmarks"]
    ]
    parts = [_machine(document, rows), *map(_markdown, tables(rows))]
    return "\n\n".join(parts) + "\n"


def _machine(document: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    machine = document["machine_info"]
    cpu = machine.get("cpu", {}).get("brand_raw") or machine.get("machine", "unknown")
    threads = sorted({row["threads"] for row in rows if "threads" in row})
    used = f"threads: {', '.join(map(str, threads))}; " if threads else ""
    return (
        f"{cpu}; {used}{machine['system']}; Python {machine['python_version']}; {document['datetime'][:10]}."
    )


def _markdown(table: Table) -> str:
    lines = [table.head, ["---", *["---:"] * (len(table.head) - 1)]]
    for i, line in enumerate(table.body):
        cells = [f"**{text}**" if (i, j) in table.best else text for j, text in enumerate(line)]
        lines.append([f"`{cells[0]}`" if table.code else cells[0], *cells[1:]])
    title = f"**{table.title}**" + (f": {table.note}" if table.note else "")
    return title + "\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/report.py FILE.json")
    print(report(json.loads(Path(sys.argv[1]).read_text())), end="")
