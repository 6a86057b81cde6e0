"""The page of a report: HTML with its style and its pictures inside."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure.results import Results
from benchmarks.measure.terminal import Table
from benchmarks.model.limit_model import Constants
from benchmarks.report.figures import WIDTH_PIXELS
from benchmarks.report.metrics import describe, geometric_means
from benchmarks.report.table import failures, tables

TITLES = {"cpu": "birnn_cuda on CPU cores", "cuda": "birnn_cuda on a GPU"}

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 20px; background: #fff; color: #1d2733;
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 25px; line-height: 1.25; margin: 12px 0 8px; }
details + h1 { margin-top: 56px; }
h2 { font-size: 18px; margin: 34px 0 4px; border-top: 1px solid #d5dbe1; padding-top: 16px; }
p { margin: 4px 0 10px; max-width: 75ch; }
.facts { margin: 0; padding: 0; list-style: none; color: #53606d; font-size: 13px; }
.facts li { overflow-wrap: anywhere; }
.means { margin: 14px 0; padding: 12px 16px 12px 32px; background: #f2f6fa; border-radius: 6px; }
.failed { color: #a5200f; }
.gallery { display: grid; gap: 18px 20px;
           grid-template-columns: repeat(auto-fill, minmax(min(100%, %WIDTH%px), 1fr)); }
figure { margin: 0; break-inside: avoid; }
img { display: block; width: %WIDTH%px; max-width: 100%; height: auto; }
details { margin: 12px 0; }
summary { cursor: pointer; font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums;
        margin: 8px 0; }
th, td { padding: 3px 9px; text-align: right; white-space: nowrap;
         border-bottom: 1px solid #e6eaee; }
th { border-bottom: 1px solid #8a94a0; vertical-align: bottom; white-space: normal; }
.word { text-align: left; }
tr.rule td { border-bottom-color: #8a94a0; }
@media (max-width: 480px) { body { padding: 14px; } h1 { font-size: 21px; } }
@media print {
  @page { margin: 12mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .gallery { grid-template-columns: repeat(2, 1fr); }
  img { width: 100%; }
  h2 { break-after: avoid; }
  .wide { overflow: visible; }
  table { font-size: 6.5pt; }
  th, td { padding: 1px 3px; white-space: normal; }
  tr { break-inside: avoid; }
}
""".replace("%WIDTH%", str(WIDTH_PIXELS))

# Printed pages show the tables too.
SCRIPT = """
addEventListener("beforeprint", () =>
  document.querySelectorAll("details").forEach((part) => { part.open = true; }));
"""


@dataclass(frozen=True)
class Gallery:
    """Pictures under a heading: the path and the description of each."""

    heading: str
    text: str
    pictures: Mapping[Path, str]


def document(parts: Sequence[str]) -> str:
    """The whole page."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>birnn_cuda benchmarks</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + f"\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def part(results: Results, galleries: Sequence[Gallery], constants: Constants | None) -> str:
    """What the page shows of one results file."""
    lines = [f"<h1>{TITLES[results.device]}</h1>", '<ul class="facts">']
    facts = [f"{results.path.name}, {results.data['created']}", *describe(results)]
    if results.device == "cuda":
        source = constants.source if constants else results.data["limit_model"]["source"]
        facts.append(f"limit model: {source}")
    lines += [f"<li>{html.escape(fact)}</li>" for fact in facts]
    lines.append("</ul>")
    means = [f"<li>{html.escape(mean.strip())}</li>" for mean in geometric_means(results)]
    lines += ['<ul class="means">', *means, "</ul>"] if means else []
    lines += [f'<p class="failed">{html.escape(line)}</p>' for line in failures(results)]
    for gallery in galleries:
        lines.append(f"<h2>{html.escape(gallery.heading)}</h2>")
        lines.append(f"<p>{html.escape(gallery.text)}</p>")
        lines.append('<div class="gallery">')
        lines += [_figure(path, alt) for path, alt in gallery.pictures.items()]
        lines.append("</div>")
    lines.append("<h2>All figures</h2>")
    lines += [_table(table) for table in tables(results)]
    return "\n".join(lines)


def _figure(path: Path, alt: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<figure><img alt="{html.escape(alt)}" src="data:image/png;base64,{data}"></figure>'


def _table(table: Table) -> str:
    words = [' class="word"' if name in table.left else "" for name in table.columns]
    head = "".join(
        f"<th{word}>{html.escape(name)}</th>"
        for word, name in zip(words, table.columns, strict=True)
    )
    rows = []
    for index, row in enumerate(table.rows):
        cells = "".join(
            f"<td{word}>{html.escape(cell)}</td>" for word, cell in zip(words, row, strict=True)
        )
        rule = ' class="rule"' if index in table.rules else ""
        rows.append(f"<tr{rule}>{cells}</tr>")
    return (
        f"<details><summary>{html.escape(table.title)}</summary>\n"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>'
        + "\n".join(rows)
        + "</tbody></table></div></details>"
    )
