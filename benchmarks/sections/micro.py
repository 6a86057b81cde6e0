"""``python -m benchmarks micro``: what the steps of a recurrence are made of, on this GPU.

Compiles micro.cu beside this file with nvcc and runs it: exchange inside a cluster and through L2,
barriers, how many clusters fit, whether two launches overlap. The figures go to a JSON file, whose
name `report --micro` takes: they replace the published ones in the limit model. Without a GPU or
nvcc the exit status is 2.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure.nvcc import compile_programs
from benchmarks.measure.results import RESULTS_FOLDER, ResultsError
from benchmarks.measure.terminal import Table, Terminal

SOURCE = Path(__file__).parent / "micro.cu"
DEFAULT_OUT = RESULTS_FOLDER / "micro.json"
NO_GPU = "the microbenchmarks need a GPU that torch can use, and here there is none"
NO_NVCC = "the microbenchmarks need nvcc on the PATH, and here it is not"


def add_parser(commands: Any) -> None:
    """Declare the sub-command."""
    parser = commands.add_parser(
        "micro",
        help="measure the chip: exchange, barriers, clusters",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(execute=execute)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, metavar="FILE")


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Build, run, print; 1 if it does not compile, or an exchange went wrong."""
    if not torch.cuda.is_available():
        raise ResultsError(NO_GPU)
    if shutil.which("nvcc") is None:
        raise ResultsError(NO_NVCC)
    programs = compile_programs([SOURCE], torch.cuda.get_device_capability())
    if programs is None:
        terminal.line(f"{SOURCE.name} does not compile", "red")
        return 1
    done = subprocess.run([str(programs[0])], stdout=subprocess.PIPE, text=True, check=False)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        terminal.line(f"no JSON but exit status {done.returncode}: {done.stdout[-2000:]}", "red")
        return 1
    save(arguments.out, report)
    if report["results"]:
        terminal.table(table(report))
    for error in report["errors"]:
        terminal.line(error, "red")
    terminal.line(f"results: {arguments.out}")
    return done.returncode


def save(path: Path, report: Mapping[str, Any]) -> None:
    """Whole or not at all: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".writing")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(report, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def load(path: Path) -> dict[str, Any]:
    """Read a file, and refuse one that is damaged or something else."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultsError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ResultsError(f"{path} is truncated or damaged ({error})") from error
    if not isinstance(report, dict) or not isinstance(report.get("results"), list):
        raise ResultsError(f"{path} is not a file of python -m benchmarks micro")
    return report


def table(report: Mapping[str, Any]) -> Table:
    """All figures: what, under which circumstances, how long."""
    timings = ("clocks", "nanoseconds", "ratio", "count")
    shown = Table(
        f"Microbenchmarks of {report.get('device', 'an unnamed device')}",
        ["what", "circumstances", *timings],
        ["what", "circumstances"],
    )
    for result in report["results"]:
        others = [
            f"{name.replace('_', ' ')} {value}"
            for name, value in result.items()
            if name not in (*timings, "what")
        ]
        figures = [f"{result[name]:g}" if name in result else "-" for name in timings]
        shown.add(result["what"], ", ".join(others), *figures)
    return shown
