"""What the examples that put figures into the documentation share: whose they are, and where."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["processor", "write_between"]


def processor() -> str:
    """The name of this machine's processor, if the system tells."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "an unnamed processor"


def write_between(path: Path, begin: str, end: str, text: str) -> None:
    """Put the text between two marks of a page, on lines of its own.

    Raises:
        ValueError: the marks are not there.
    """
    head, found_begin, rest = path.read_text(encoding="utf-8").partition(begin)
    _, found_end, tail = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"{path} has no {begin} ... {end}")
    path.write_text(f"{head}{begin}\n{text}\n{end}{tail}", encoding="utf-8")
