"""What the suite prints: lines, tables and a progress bar, through rich where it is installed.

A machine with a GPU need not have rich: there the same tables come as plain text.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO

try:
    import rich.box
    import rich.console
    import rich.measure
    import rich.table
except ImportError:
    HAS_RICH = False
else:
    HAS_RICH = True

WIDTH_WITHOUT_TERMINAL = 220


@dataclass
class Table:
    """A table of strings. ``left`` names the columns that are words, all others are numbers."""

    title: str
    columns: Sequence[str]
    left: Sequence[str] = ()
    rows: list[list[str]] = field(default_factory=list)
    rules: set[int] = field(default_factory=set)  # after which rows a line is drawn

    def add(self, *cells: str, end_section: bool = False) -> None:
        assert len(cells) == len(self.columns)
        self.rows.append(list(cells))
        if end_section:
            self.rules.add(len(self.rows) - 1)

    def markdown(self) -> list[str]:
        """Its lines in Markdown, without the title."""
        marks = ["---" if name in self.left else "--:" for name in self.columns]
        return [
            f"| {' | '.join(self.columns)} |",
            f"|{'|'.join(marks)}|",
            *(f"| {' | '.join(row)} |" for row in self.rows),
        ]

    def plain(self) -> list[str]:
        """Its lines as text, the columns aligned."""
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]

        def line(cells: Sequence[str]) -> str:
            padded = [
                cell.ljust(width) if name in self.left else cell.rjust(width)
                for name, cell, width in zip(self.columns, cells, widths, strict=True)
            ]
            return "  ".join(padded).rstrip()

        return [self.title, line(self.columns), *map(line, self.rows)]


class Bar(Protocol):
    """The progress of a run."""

    def begin(self, key: str) -> None: ...

    def finish(self, cost: float) -> None: ...


class Terminal:
    """Where a sub-command prints. Without rich, or not to a terminal, no colours and no bar."""

    def __init__(self, file: TextIO | None = None) -> None:
        self.file = file
        self.console: Any = None
        if HAS_RICH:
            self.console = rich.console.Console(file=file)
            if not self.console.is_terminal:
                self.console = rich.console.Console(file=file, width=WIDTH_WITHOUT_TERMINAL)

    def line(self, text: str, style: str | None = None) -> None:
        """Print a line as it stands."""
        if self.console is None:
            print(text, file=self.file or sys.stdout, flush=True)
        else:
            self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def table(self, table: Table) -> None:
        if self.console is None:
            for line in ("", *table.plain()):
                self.line(line)
            return
        shown = rich.table.Table(
            title=table.title,
            title_justify="left",
            box=rich.box.SIMPLE_HEAD,
            pad_edge=False,
        )
        for name, *cells in zip(table.columns, *table.rows, strict=True):
            words = [word for text in (name, *cells) for word in text.split()]
            shown.add_column(
                name,
                justify="left" if name in table.left else "right",
                min_width=max(map(len, words), default=0),
            )
        for index, row in enumerate(table.rows):
            shown.add_row(*row, end_section=index in table.rules)
        # In a terminal that is too narrow the lines go on below: no figure is cut.
        unbounded = self.console.options.update(max_width=10_000)
        least = rich.measure.Measurement.get(self.console, unbounded, shown).minimum
        self.console.width = max(self.console.width, least)
        self.console.print(shown, crop=False)

    @contextlib.contextmanager
    def progress(self, total: float, finished: int, entries: int) -> Iterator[Bar]:
        """A bar over entries of unequal cost, `finished` of which were done before."""
        if self.console is None or not self.console.is_terminal:
            yield LineBar(self, finished, entries)
            return
        from benchmarks.measure.progress import rich_bar

        with rich_bar(self.console, total, finished, entries) as bar:
            yield bar


class LineBar:
    """A line for each entry."""

    def __init__(self, terminal: Terminal, finished: int, entries: int) -> None:
        self.terminal = terminal
        self.finished = finished
        self.entries = entries
        self.key = ""

    def begin(self, key: str) -> None:
        self.key = key

    def finish(self, cost: float) -> None:
        self.finished += 1
        self.terminal.line(f"{self.finished}/{self.entries} {self.key}")
