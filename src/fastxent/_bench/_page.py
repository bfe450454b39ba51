"""The report of `run_suite` as one HTML page: tables and SVG charts, no script, nothing from elsewhere.

The page is well-formed XML as well, so that any parser can check it. Series are told apart by colour and by
the form of their marks; every mark says its value when pointed at.
"""

from __future__ import annotations

import json
import math
import re
from html import escape
from typing import Any

from ..plots import format_seconds
from ._cases import PEERS
from ._fits import LIBRARIES
from ._tables import Chart, Table, charts, tables

# Okabe and Ito's palette, told apart with every common form of colour blindness, with grey and the text's colour
# in place of the yellow; forms tell in grey, too.
_COLORS = ("#0072B2", "#56B4E9", "#999999", "#009E73", "#E69F00", "#CC79A7", "#D55E00", "var(--ink)")
_FORMS = {
    "disc": '<circle cx="{x:.1f}" cy="{y:.1f}" r="6.5" {style}>{tip}</circle>',
    "square": '<rect x="{l:.1f}" y="{t:.1f}" width="10" height="10" {style}>{tip}</rect>',
    "up": '<path d="M{x:.1f} {t:.1f}l6 10.5h-12z" {style}>{tip}</path>',
    "down": '<path d="M{x:.1f} {b:.1f}l6 -10.5h-12z" {style}>{tip}</path>',
    "diamond": '<path d="M{x:.1f} {y:.1f}m0 -7l6.5 7l-6.5 7l-6.5 -7z" {style}>{tip}</path>',
    "ring": '<circle cx="{x:.1f}" cy="{y:.1f}" r="5" {ring}>{tip}</circle>',
    "box": '<rect x="{l:.1f}" y="{t:.1f}" width="10" height="10" {ring}>{tip}</rect>',
    "cross": '<path d="M{l:.1f} {t:.1f}l10 10m0 -10l-10 10" {ring}>{tip}</path>',
}
_STYLE = {name: look for name, look in zip(PEERS, zip(_COLORS, _FORMS, strict=True), strict=True)}
_STYLE |= {
    library: _STYLE[peer] for library, peer in zip(LIBRARIES, ("cpu", "sklearn", "torch"), strict=True)
}
_WIDTH, _LEFT, _RIGHT, _TOP = 860, 190, 30, 12

_CSS = """
:root { color-scheme: light dark; --ink: #1c1c1e; --soft: #5f6368; --line: #d9dce0; --back: #fff; --panel: #f6f7f9 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ea; --soft: #a3a7ad; --line: #3a3d42; --back: #17181a; --panel: #212327 }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 76rem; padding: 2rem 1.25rem 4rem; background: var(--back); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .25rem }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .25rem }
p { margin: .35rem 0 .8rem } p.note, figcaption { color: var(--soft) }
code { font: .88em ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem;
  overflow-x: auto }
.scroll { overflow-x: auto; margin: .5rem 0 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: bottom }
td { white-space: nowrap } th:first-child, td:first-child { text-align: left; padding-left: 0 }
td:first-child { white-space: normal; min-width: 8rem }
th { color: var(--soft); font-weight: 600 } td.best { font-weight: 700 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.25rem; margin: .75rem 0; font-size: .92rem }
dt { color: var(--soft) } dd { margin: 0; overflow-wrap: anywhere }
ul { padding-left: 1.2rem; font-size: .92rem }
figure { margin: .75rem 0 } svg { display: block; width: 100%; min-width: 34rem; height: auto }
svg text { fill: var(--ink); font-size: 13px } svg .soft { fill: var(--soft) } svg .grid { stroke: var(--line) }
.warning { border-left: 4px solid #D55E00; padding: .4rem .9rem; background: var(--panel) }
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb; --back: #fff; --panel: #f3f3f3 }
  @page { margin: 14mm }
  body { max-width: none; padding: 0; font-size: 10pt }
  h1 { font-size: 17pt } h2 { font-size: 12pt; margin-top: 1.2rem; break-after: avoid }
  figure, svg, tr, pre, dl { break-inside: avoid } p.note { break-after: avoid }
  .scroll { overflow: visible } svg { min-width: 0 } figcaption { display: none }
  table { font-size: 8pt; width: 100% } th, td { padding: .15rem .3rem } td { white-space: normal }
  pre { white-space: pre-wrap }
}
""".strip()


def page(document: dict[str, Any]) -> str:
    """The whole page.

    Parameters
    ----------
    document : dict
        What `run_suite` returned, or its JSON read again.

    Returns
    -------
    str
        HTML that needs no other file. The document itself is in it, in ``<script id="data">``.
    """
    rows, about = document["rows"], document["machine"]
    pictures = charts(rows)
    parts, explained = [_opening(document)], {}
    for table in tables(rows):
        parts.append(f'<section id="{_anchor(table.title)}"><h2>{escape(table.title)}</h2>')
        if table.note:
            parts.append(f'<p class="note">{escape(table.note[:1].upper() + table.note[1:])}</p>')
        if table.title in pictures:
            caption = "Point at a mark to read its value. The numbers are in the table below."
            parts.append(
                f'<figure><div class="scroll">{_svg(pictures[table.title])}</div>'
                f"<figcaption>{caption}</figcaption></figure>"
            )
        parts.append(_html_table(table))
        new = {name: note for name, note in table.legend.items() if name not in explained}
        if new:
            parts.append(_legend(new))
            explained |= new
        parts.append("</section>")
    parts += [_problems(document), _again(document), _data(document)]
    title = f"fastxent {escape(str(about['fastxent']))}: benchmark"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        # No icon: a browser would look for one beside the page.
        f'<link rel="icon" href="data:,"/>\n<title>{title}</title>\n<style>\n{_CSS}\n</style>\n</head>\n<body>\n'
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _opening(document: dict[str, Any]) -> str:
    about = document["machine"]
    caches = ", ".join(f"{level} {size}" for level, size in about["caches"].items())
    memory = "" if about["memory_gib"] is None else f", {about['memory_gib']} GiB of memory"
    facts = {
        "processor": f"{about['cpu']}; {about['cpus']} CPUs{memory}",
        "caches": caches or "unknown",
        "threads": f"{about['threads']} for every peer; kernels for {about['instruction_set']}",
        "system": f"{about['platform']}; Python {about['python']}",
        "GPUs": f"{', '.join(about.get('gpus', [])) or 'none'}; the suite runs on the processor",
        "versions": ", ".join(f"{name} {version}" for name, version in about["versions"].items()),
        "environment": ", ".join(f"{name}={value}" for name, value in about["environment"].items())
        or "nothing set",
        "taken": f"{document['date']}, in {format_seconds(max(document['seconds'], 1e-3))}",
    }
    listed = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    warned = ""
    if document["interrupted"]:
        warned += '<p class="warning">The run was interrupted: what follows is a part of it.</p>'
    if document["failed"]:
        warned += (
            f'<p class="warning">{len(document["failed"])} of the cases failed; '
            '<a href="#left-out">their reasons</a> are below.</p>'
        )
    return (
        f"<h1>Cross-entropy on this machine</h1>\n<p>fastxent {escape(str(about['fastxent']))} beside the libraries "
        "that are installed here. Every answer was checked against float64 before it was timed. The unit of the "
        "kernels is the fastest copy of their logits, timed between their runs: a loss with its gradient has to read "
        "the logits and to write as much, so about 1 is the floor, and 1.5 for the binary loss, which has as many "
        f"targets as logits.</p>\n{warned}<dl>{listed}</dl>"
    )


def _html_table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in table.head)
    lines = []
    for i, line in enumerate(table.body):
        cells = []
        for j, text in enumerate(line):
            shown = f"<code>{escape(text)}</code>" if table.code and not j else escape(text)
            cells.append(f'<td class="best">{shown}</td>' if (i, j) in table.best else f"<td>{shown}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _legend(legend: dict[str, str]) -> str:
    entries = "".join(f"<li><b>{escape(name)}</b>: {escape(note)}</li>" for name, note in legend.items())
    return f"<ul>{entries}</ul>"


# ---- charts


def _mark(series: str, x: float, y: float, tip: str) -> str:
    color, form = _STYLE[series]
    style = f'fill="{color}" stroke="var(--back)" stroke-width="1.2"'
    ring = f'fill="none" stroke="{color}" stroke-width="2.6"'
    where = {"x": x, "y": y, "l": x - 5, "t": y - 5, "b": y + 5}
    return _FORMS[form].format(**where, style=style, ring=ring, tip=f"<title>{escape(tip)}</title>")


def _ticks(low: float, high: float) -> list[float]:
    """Numbers 1, 2 and 5 times a power of ten that span the values; only the powers where they are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    subs = (1, 2, 5) if len(powers) <= 3 else (1,)
    ticks = [sub * 10.0**power for power in powers for sub in subs]
    start = max((i for i, tick in enumerate(ticks) if tick <= low), default=0)
    stop = min((i for i, tick in enumerate(ticks) if tick >= high), default=len(ticks) - 1)
    ticks = ticks[start : stop + 1]
    return ticks if len(ticks) > 1 else [ticks[0] / 2, ticks[0], ticks[0] * 2]


def _svg(chart: Chart) -> str:
    """A line for each shape or problem and a mark for each peer or library, on a logarithmic axis."""
    values = [value for _, line in chart.lines for value in line.values()]
    ticks = _ticks(min(values), max(values))
    low, high = math.log(ticks[0]), math.log(ticks[-1])
    plot = _WIDTH - _LEFT - _RIGHT

    def place(value: float) -> float:
        return _LEFT + plot * (math.log(value) - low) / (high - low)

    def say(value: float) -> str:
        if chart.seconds:
            return format_seconds(value)
        return f"{value:.3g} copies"

    names = list(dict.fromkeys(name for _, line in chart.lines for name in line))
    names.sort(key=list(_STYLE).index)
    legend, top = _svg_legend(names)
    labels = [_wrapped(label) for label, _ in chart.lines]
    step = 15 + 17 * max(map(len, labels))
    bottom = top + step * len(chart.lines)
    height = bottom + 48
    drawn = []
    for tick in ticks:
        x = place(tick)
        text = format_seconds(tick).replace(".00", "").replace(".0 ", " ") if chart.seconds else f"{tick:g}"
        drawn.append(f'<line class="grid" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}"/>')
        drawn.append(f'<text class="soft" x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{text}</text>')
    axis = f'x="{_LEFT + plot / 2:.1f}" y="{bottom + 39}" text-anchor="middle"'
    drawn.append(f'<text class="soft" {axis}>{escape(chart.axis)}</text>')
    for number, (label, line) in enumerate(chart.lines):
        y = top + step * (number + 0.5)
        drawn.append(f'<line class="grid" x1="{_LEFT}" y1="{y}" x2="{_WIDTH - _RIGHT}" y2="{y}"/>')
        for at, text in enumerate(labels[number]):
            base = y + 4.5 + 17 * (at - (len(labels[number]) - 1) / 2)
            drawn.append(f'<text x="{_LEFT - 14}" y="{base:.1f}" text-anchor="end">{escape(text)}</text>')
        for name in reversed(sorted(line, key=list(_STYLE).index)):  # ours on top
            drawn.append(_mark(name, place(line[name]), y, f"{_title(name)}, {label}: {say(line[name])}"))
    title = f"{chart.title}: {chart.axis}"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"{''.join(legend)}{''.join(drawn)}</svg>"
    )


def _title(series: str) -> str:
    return PEERS[series].label if series in PEERS else series


def _wrapped(label: str, most: int = 24) -> list[str]:
    """A label in one line, or in two of about equal length."""
    commas = [at for at, character in enumerate(label) if character == "," and label[at + 1 : at + 2] == " "]
    if len(label) <= most or not commas:
        return [label]
    middle = min(commas, key=lambda at: abs(2 * at - len(label)))
    return [label[: middle + 1], label[middle + 2 :]]


def _svg_legend(names: list[str]) -> tuple[list[str], float]:
    """The marks with their names, in as many lines as they need, and where the plot may begin."""
    drawn, x, y = [], 8.0, _TOP + 6.0
    for name in names:
        text = _title(name)
        width = 39 + 7.4 * len(text)
        if x + width > _WIDTH and x > 8:
            x, y = 8.0, y + 24
        drawn.append(_mark(name, x + 7, y, text))
        drawn.append(f'<text x="{x + 20:.1f}" y="{y + 4.5:.1f}">{escape(text)}</text>')
        x += width
    return drawn, y + 20


# ---- the end of the page


def _problems(document: dict[str, Any]) -> str:
    listed = [
        f"<li><code>{escape(entry['name'])}</code> {word}: {escape(entry['reason'])}</li>"
        for word, entries in (("failed", document["failed"]), ("was left out", document["skipped"]))
        for entry in entries
    ]
    return (
        f'<section id="left-out"><h2>What is missing</h2><ul>{"".join(listed)}</ul></section>'
        if listed
        else ""
    )


def _again(document: dict[str, Any]) -> str:
    command = escape(document["command"])
    return (
        '<section id="again"><h2>The same again</h2><p>This page came from</p>'
        f"<pre><code>{command}</code></pre>"
        "<p>Close what else is running, and read ratios rather than times: they move by a third on a shared machine. "
        "Peers that are not installed are left out; <code>pip install torch numba</code> adds two of them. "
        "Your own sizes, rows × classes, and rows alone for the binary loss:</p>"
        "<pre><code>fastxent bench --shapes 4096x50257 1000000x20 5000000</code></pre>"
        "<p>MNIST takes part where <code>FASTXENT_DATA</code> names the folder of <code>mnist.npz</code>.</p></section>"
    )


def _data(document: dict[str, Any]) -> str:
    """The document for programs; & and < are written so that neither HTML nor XML sees markup."""
    text = json.dumps(document).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return f'<script type="application/json" id="data">{text}</script>'
