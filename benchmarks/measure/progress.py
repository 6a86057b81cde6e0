"""The progress bar, by rich."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text


class TimeLeftColumn(ProgressColumn):
    """The time left: the estimate of what is to do, at the pace of what is done.

    rich's own needs many small advances to judge the pace by; entries are few and large.
    """

    def render(self, task: Task) -> Text:
        elapsed = task.elapsed or 0.0
        if task.completed > task.fields.get("seen", 0.0):
            task.fields.update(seen=task.completed, seen_at=elapsed)
        seen, seen_at = task.fields.get("seen", 0.0), task.fields.get("seen_at", 0.0)
        pace = seen_at / seen if seen else 1.0
        left = ((task.total or 0.0) - seen) * pace - (elapsed - seen_at)
        return Text(f"{timedelta(seconds=round(max(left, 0.0)))} left", style="progress.remaining")


class RichBar:
    """A bar that advances by the cost of an entry."""

    def __init__(self, progress: Progress, task: TaskID, finished: int) -> None:
        self.progress = progress
        self.task = task
        self.finished = finished

    def begin(self, key: str) -> None:
        self.progress.update(self.task, description=key)

    def finish(self, cost: float) -> None:
        self.finished += 1
        self.progress.update(self.task, advance=cost, finished=self.finished)


@contextlib.contextmanager
def rich_bar(console: Console, total: float, finished: int, entries: int) -> Iterator[RichBar]:
    """Show a bar while the block runs."""
    with Progress(
        TextColumn("{task.fields[finished]}/{task.fields[entries]}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeLeftColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task("", total=total, finished=finished, entries=entries)
        yield RichBar(progress, task, finished)
