"""``python -m benchmarks report FILE...``: results files as one HTML page with its pictures.

Writes index.html, which holds everything and needs no other file, and beside it each picture as
PNG, into --out (default: a folder named like the first file, with -report, beside it). Takes files
of both sub-commands that measure; needs matplotlib.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure.results import Results, ResultsError
from benchmarks.measure.terminal import Terminal
from benchmarks.model import limit_model
from benchmarks.peers.peer import import_failure
from benchmarks.sections import micro

PAGE = "index.html"


def add_parser(commands: Any) -> None:
    """Declare the sub-command."""
    parser = commands.add_parser(
        "report",
        help="draw results files: a page and pictures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(execute=execute)
    parser.add_argument("results", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the page goes")
    parser.add_argument(
        "--micro",
        type=Path,
        metavar="FILE",
        help="what `python -m benchmarks micro` measured: replaces constants of the limit model",
    )


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Read everything before anything is written."""
    reason = import_failure("matplotlib")
    if reason is not None:
        raise ResultsError(f"a report needs matplotlib, which {reason}")
    results = [Results.load(path) for path in arguments.results]
    constants = None
    if arguments.micro is not None:
        constants = limit_model.measured(micro.load(arguments.micro))
    first = arguments.results[0]
    out = arguments.out or first.with_name(f"{first.stem}-report")
    written = write(results, out, constants)
    terminal.line(f"{out / PAGE}: {len(written)} pictures")
    return 0


def write(
    results: Sequence[Results], out: Path, constants: limit_model.Constants | None = None
) -> list[Path]:
    """Draw, and write the page and the pictures; returns the pictures' paths."""
    from benchmarks.report import figures, page, pictures

    out.mkdir(parents=True, exist_ok=True)
    parts: list[str] = []
    written: list[Path] = []
    for index, each in enumerate(results):
        groups = []
        for group in pictures.groups_of(each, constants):
            files = {}
            for picture in group.pictures:
                prefix = f"{index + 1}-" if len(results) > 1 else ""
                path = out / f"{prefix}{picture.name}.png"
                path.write_bytes(figures.png(picture.figure))
                files[path] = picture.alt
            groups.append(page.Gallery(group.heading, group.text, files))
            written += files
        parts.append(page.part(each, groups, constants))
    (out / PAGE).write_text(page.document(parts), encoding="utf-8")
    return written
