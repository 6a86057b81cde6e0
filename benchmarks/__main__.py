"""Measure birnn_cuda against torch.nn and its other peers, and show what came out.

  quick look at this machine's CPU     python -m benchmarks cpu --preset quick
  the CPU, in about 20 minutes         python -m benchmarks cpu
  the GPU, in under 10 minutes         python -m benchmarks cuda
  one kind of layer only               python -m benchmarks cuda --cell gru --hidden 256 512
  continue what was interrupted        python -m benchmarks cuda --resume
  pictures of it                       python -m benchmarks report benchmarks/results/cuda-*.json
  what got slower                      python -m benchmarks compare before.json after.json
  what the plan should choose on a GPU python -m benchmarks tune, then fit
  the machine code of a step, no GPU   python -m benchmarks steps --against main

Each sub-command explains its options: python -m benchmarks cuda --help. What is measured, and why
it is fair, stands in benchmarks/README.md. Exit status: 0 if all is well, 1 if this package failed
a check or got slower, 2 if the question was wrong or this machine cannot answer it, 130 if
interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks import cpu, cuda, tune
from benchmarks.measure.cases import FilterError
from benchmarks.measure.results import ResultsError
from benchmarks.measure.terminal import Terminal
from benchmarks.model import fit
from benchmarks.report import compare, readme, report
from benchmarks.sections import micro
from benchmarks.steps import command as steps

COMMANDS = (cpu.COMMAND, cuda.COMMAND, micro, tune.COMMAND, fit, steps, report, compare, readme)
REFUSED = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in COMMANDS:
        command.add_parser(commands)
    arguments = parser.parse_args(argv)
    try:
        status: int = arguments.execute(arguments, Terminal())
    except (FilterError, ResultsError) as error:
        print(f"python -m benchmarks: {error}", file=sys.stderr)
        return REFUSED
    return status


if __name__ == "__main__":
    sys.exit(main())
