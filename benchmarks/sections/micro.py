"""``python -m benchmarks micro``: what the steps of a recurrence are made of, on this GPU.

Compiles micro.cu beside this file with nvcc and runs it: exchange inside a cluster and through L2,
barriers, how many clusters fit, whether two launches overlap, what the host takes to enqueue a
kernel and a library product (host_kernel_us and host_product_us of the plan's cost model). The
figures go to a JSON file, whose
name `report --micro` takes: they replace the published ones in the limit model. Without a GPU or
nvcc the exit status is 2.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
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
    report: dict[str, Any] = {"results": [], "errors": []}
    status = 0
    with subprocess.Popen([str(programs[0])], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        for line in program.stdout:
            try:
                add(report, json.loads(line))
            except ValueError:
                report["errors"].append(f"no JSON: {line.strip()[-2000:]}")
            save(arguments.out, report)  # what comes next may hang
        status = program.wait()
    if status and not report["errors"]:
        report["errors"].append(f"exit status {status}")
    if not report["errors"]:
        add(report, {"what": "host enqueues a product", "nanoseconds": product_nanoseconds()})
    save(arguments.out, report)
    if report["results"]:
        terminal.table(table(report))
    for error in report["errors"]:
        terminal.line(error, "red")
    terminal.line(f"results: {arguments.out}")
    return 1 if status or report["errors"] else 0


def add(report: dict[str, Any], line: Mapping[str, Any]) -> None:
    """One object that the program printed: a figure, an error, or what it ran on."""
    if "what" in line:
        report["results"].append(dict(line))
    elif "error" in line:
        report["errors"].append(line["error"])
    else:
        report.update(line)


def gemm_of_cublas(handle: int, a: int, b: int, c: int, size: int) -> Callable[[], int]:
    """cublasGemmEx for fp16 matrices of this size, as csrc calls it; what it returns."""
    assert torch.version.cuda is not None
    library = ctypes.CDLL(f"libcublas.so.{torch.version.cuda.split('.')[0]}")  # torch has loaded it
    one, zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
    half, compute_32f, default = 2, 68, -1  # CUDA_R_16F, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT
    matrix = [ctypes.c_void_p(pointer) for pointer in (a, b, c)]
    number = ctypes.c_int
    arguments = [
        ctypes.c_void_p(handle),
        *(number(0), number(0), number(size), number(size), number(size), ctypes.byref(one)),
        *(matrix[0], number(half), number(size), matrix[1], number(half), number(size)),
        *(ctypes.byref(zero), matrix[2], number(half), number(size)),
        *(number(compute_32f), number(default)),
    ]
    function = library.cublasGemmEx
    return lambda: int(function(*arguments))


def product_nanoseconds(size: int = 64, calls: int = 200, samples: int = 7) -> float:
    """What a host thread takes to enqueue a small library product: of a call from Python, less what
    the same call takes that is refused because it has no handle."""
    a, b, c = (torch.zeros(size, size, device="cuda", dtype=torch.float16) for _ in range(3))
    torch.mm(a, b, out=c)  # the handle and its workspace are there from now on
    pointers = (a.data_ptr(), b.data_ptr(), c.data_ptr(), size)
    times = []
    for handle, refused in ((torch.cuda.current_blas_handle(), False), (0, True)):
        call = gemm_of_cublas(handle, *pointers)
        taken = []
        for _ in range(samples):
            torch.cuda.synchronize()
            begin = time.perf_counter_ns()
            statuses = {call() != 0 for _ in range(calls)}
            taken.append((time.perf_counter_ns() - begin) / calls)
            if statuses != {refused}:
                raise ResultsError("cuBLAS did not answer as expected")
        times.append(statistics.median(taken))
    torch.cuda.synchronize()
    return round(times[0] - times[1])


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
