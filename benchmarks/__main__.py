"""``python -m benchmarks``: one sub-command a module."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from benchmarks import compare, cpu, readme
from benchmarks.cases import FilterError
from benchmarks.results import ResultsError

COMMANDS = (cpu, compare, readme)
REFUSED = 2
WIDTH_WITHOUT_TERMINAL = 140


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure birnn_cuda.")
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in COMMANDS:
        command.add_parser(commands)
    arguments = parser.parse_args(argv)
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_WITHOUT_TERMINAL)
    try:
        status: int = arguments.execute(arguments, console)
    except (FilterError, ResultsError) as error:
        print(f"python -m benchmarks: {error}", file=sys.stderr)
        return REFUSED
    return status


if __name__ == "__main__":
    sys.exit(main())
