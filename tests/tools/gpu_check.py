"""Everything that only a machine with a GPU can show, in one command: ``make gpu-check``.

The parts run one after the other, each in a process of its own with a time cap; one that fails or
hangs does not stop the rest. What they find lies in one flat folder:

    log.txt           all output          tests.jsonl   the tests, a line each as they end
    device.json       device, versions    micro.json    latencies of the chip
    cuda.json         the benchmarks' preset quick, for `python -m benchmarks report`
    summary.json      what became of each part; rewritten after each

Exit status: 0 if all parts that ran are well, 1 if some failed, 2 if nothing could be run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_OUT = ROOT / "build" / "gpu-check"

NOT_RUN = 77  # exit status of a part for which this machine lacks something
NOTE = "note: "  # a part's last line that begins so stands in the summary
SANITIZER_ERRORS = 99
SECONDS_TO_END = 10
SECONDS_OF_A_SANITIZER = 40
NO_GPU = "gpu-check needs a GPU that torch can use, and here there is none"


@dataclass(frozen=True)
class Part:
    name: str
    seconds: float  # killed after this
    command: tuple[str, ...]  # OUT in it stands for the output folder


@dataclass
class Result:
    name: str
    status: str  # ok, failed, timed out, not run
    seconds: float
    cap: float
    exit_status: int | None
    note: str


# ---- the runner


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a part and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # A process that the driver holds does not end; the next part says what the device still does.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(SECONDS_TO_END)


def run_part(part: Part, out: Path) -> Result:
    log_path = out / "log.txt"
    with log_path.open("ab") as log:
        log.write(f"\n==== {part.name}\n".encode())
        log.flush()
        begin = log.tell()
        start = time.monotonic()
        command = [str(out) if word == "OUT" else word for word in part.command]
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True
        )
        exit_status: int | None = None
        try:
            exit_status = process.wait(part.seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            kill_group(process)
        seconds = time.monotonic() - start
    with log_path.open("rb") as log:
        log.seek(begin)
        output = log.read().decode(errors="replace")
    notes = [line[len(NOTE) :] for line in output.splitlines() if line.startswith(NOTE)]
    note = notes[-1] if notes else ""
    if exit_status is None:
        status = "timed out"
        note = f"killed after {part.seconds:g} s" + (f"; {note}" if note else "")
    else:
        status = {0: "ok", NOT_RUN: "not run"}.get(exit_status, "failed")
    if status in ("failed", "timed out"):
        print("\n".join(output.splitlines()[-30:]))
    return Result(part.name, status, round(seconds, 2), part.seconds, exit_status, note)


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all: a reader never sees half a file."""
    partial = path.with_suffix(".partial")
    with partial.open("w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def run_parts(parts: Sequence[Part], out: Path, commit: str | None) -> int:
    """Run them all; returns the exit status."""
    out.mkdir(parents=True, exist_ok=True)
    for name in OUTPUTS:
        (out / name).unlink(missing_ok=True)
    results: list[Result] = []
    for part in parts:
        print(f"{part.name} ...", flush=True)
        results.append(run_part(part, out))
        write_json(
            out / "summary.json",
            {
                "commit": commit,
                "complete": len(results) == len(parts),
                "parts": [asdict(result) for result in results],
            },
        )
    print(f"\n{'part':<12} {'result':<10} {'seconds':>8}  note")
    for result in results:
        print(f"{result.name:<12} {result.status:<10} {result.seconds:>8.1f}  {result.note}")
    print(f"\nin {out}: " + ", ".join(sorted(p.name for p in out.iterdir() if p.name in OUTPUTS)))
    return 1 if any(result.status in ("failed", "timed out") for result in results) else 0


def find_commit() -> str | None:
    """The commit of the tree, with a mark if the tree differs from it; None without history."""
    try:
        command = ["git", "-C", str(ROOT)]
        head = subprocess.check_output(
            [*command, "rev-parse", "HEAD"], text=True, stderr=subprocess.DEVNULL
        )
        changes = subprocess.check_output(
            [*command, "status", "--porcelain", "--untracked-files=no"], text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + (" with changes" if changes.strip() else "")


def has_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


# ---- what the parts do, each in its own process


def architecture() -> tuple[int, int]:
    import torch

    return torch.cuda.get_device_capability()


def say(line: str) -> None:
    print(line, flush=True)


def run(command: Sequence[str], seconds: float | None = None, **environment: str) -> int:
    """Runs a command, its output in this one's; returns its exit status, 124 if it took longer."""
    say("$ " + " ".join(command))
    try:
        return subprocess.run(
            command, cwd=ROOT, env={**os.environ, **environment}, timeout=seconds
        ).returncode
    except subprocess.TimeoutExpired:
        say(f"killed after {seconds:g} s")
        return 124


def output_of(command: Sequence[str]) -> str | None:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=15, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.draw", "power.limit")
SETTINGS = ("driver_version", "temperature.gpu", "pstate", "ecc.mode.current", "mig.mode.current")


def part_device(out: Path) -> int:
    import torch

    from benchmarks.measure.clocks import query

    properties = torch.cuda.get_device_properties(0)
    idle = query(CLOCKS)
    left = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(2000):  # queued; still running while the clocks are read
        left @ left
    loaded = query(CLOCKS)
    torch.cuda.synchronize()
    nvcc = output_of(["nvcc", "--version"])
    report = {
        "device": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "settings": query(SETTINGS),
        "clocks_idle": idle,
        "clocks_loaded": loaded,
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nvcc": nvcc.splitlines()[-1] if nvcc else None,
        "cxx": (output_of(["c++", "--version"]) or "").split("\n")[0] or None,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": len(os.sched_getaffinity(0)),
    }
    write_json(out / "device.json", report)
    say(json.dumps(report, indent=1))
    say(f"{NOTE}{properties.name}, {properties.multi_processor_count} SMs")
    return 0


def part_build(out: Path) -> int:
    major, minor = architecture()
    arch = f"{major}.{minor}" + ("a" if major == 9 else "")
    if shutil.which("nvcc") is None:
        say("nvcc is not on the PATH")
        return 1
    status = run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        BIRNN_BUILD_CUDA="1",
        TORCH_CUDA_ARCH_LIST=arch,
        MAX_JOBS=str(len(os.sched_getaffinity(0))),
    )
    if status == 0:
        status = run([sys.executable, "-m", "birnn_cuda"])
    say(f"{NOTE}for {arch}")
    return status


def compile_programs(sources: Sequence[Path]) -> list[Path] | None:
    """Compiles each for this device, all at once. None if one fails."""
    from benchmarks.measure import nvcc

    includes = [ROOT / "tests" / folder for folder in ("emulator", "kernels")]
    return nvcc.compile_programs(sources, architecture(), includes)


def kernel_tests() -> list[Path]:
    folder = ROOT / "tests" / "kernels"
    return [folder / f"{name}.cu" for name in ("conformance", "litmus", "defects")]


def run_cases(program: Path, mode: Sequence[str]) -> list[str]:
    """Runs a program; where it fails each of its cases alone. Returns the names of those that fail.

    A case that hangs, or after which the device answers no more, hides those behind it.
    """
    if run([str(program), *mode], 15) == 0:
        return []
    names = (output_of([str(program), *mode, "list"]) or "").split()
    failed = [name for name in names if run([str(program), *mode, name], 4) != 0]
    return [f"{program.name}: {name}" for name in failed] or [program.name]


def part_conformance(out: Path) -> int:
    programs = compile_programs(kernel_tests())
    if programs is None:
        say(f"{NOTE}does not compile")
        return 1
    failed: list[str] = []
    for program in programs:
        failed += run_cases(program, ["clean"] if program.name == "defects" else [])
        say(NOTE + (f"failed: {', '.join(failed)}" if failed else f"{program.name} is well"))
    if not failed:
        say(f"{NOTE}all cases ok")
    return 1 if failed else 0


# Side by side. Those of each kernel by name say most about what is wrong.
GPU_TESTS = (
    ("layers/test_cuda_kernels.py",),
    ("layers/test_cuda.py",),
    (
        "layers/test_cuda_sequences.py",
        "benchmarks/test_benchmarks_cuda.py",
        "benchmarks/test_benchmarks_tune.py",
    ),
)


def part_tests(out: Path) -> int:
    from gpu_progress import run_tests

    groups = [[f"tests/{file}" for file in files] for files in GPU_TESTS]
    seconds = CAPS["tests"] - 2 * SECONDS_TO_END
    # One seed for all their processes, also for those that are started again.
    seed = f"--seed={random.SystemRandom().randrange(2**31)}"
    found = run_tests(groups, out / "tests.jsonl", seconds, ["-m", "gpu", seed])
    bad = ("failed", "hung", "out of time")
    for name, result in found.items():
        if result["outcome"] in bad:
            say(f"{result['outcome']}: {name}")
    counts = Counter(result["outcome"] for result in found.values())
    say(f"inputs: {seed}")
    say(NOTE + (", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "none ran"))
    # All skipped has shown nothing.
    return 0 if counts["passed"] and not any(counts[outcome] for outcome in bad) else 1


def layer_calls() -> int:
    """Small calls of the layers on the device, for the sanitizers: every kernel and cell, both
    passes."""
    import torch

    import birnn_cuda
    from birnn_cuda import ops

    lengths = torch.tensor([4, 0, 2, 1, 4], device="cuda")

    def call(layer: torch.nn.Module, dtype: torch.dtype) -> None:
        on_device = layer.to("cuda", dtype)
        size = (4, 5, layer.input_size)
        input = torch.randn(size, device="cuda", dtype=dtype, requires_grad=True)
        for output, _ in (on_device(input), on_device(input, lengths=lengths)):
            output.float().square().sum().backward()
        torch.cuda.synchronize()

    kernels = ["block", "grid", "stepwise"]
    if architecture()[0] >= 9:
        kernels.insert(1, "cluster")
    for kernel in kernels:
        # Each kernel that a sanitizer sees first it has to rewrite, which takes long.
        with ops.forced_kernel(kernel):
            call(birnn_cuda.RNN(7, 33, bidirectional=True), torch.bfloat16)
            call(birnn_cuda.GRU(7, 33, bidirectional=True), torch.float32)
            call(birnn_cuda.LSTM(7, 33, bidirectional=True), torch.float16)
        say(f"{kernel}: done")
    call(birnn_cuda.LSTM(7, 17, proj_size=5, bidirectional=True), torch.float32)
    say("layer calls done")
    return 0


def part_sanitizer(out: Path) -> int:
    from benchmarks.measure.nvcc import PROGRAMS

    tool = shutil.which("compute-sanitizer")
    if tool is None:
        say(f"{NOTE}compute-sanitizer is not on the PATH")
        return NOT_RUN
    program = PROGRAMS / "conformance"
    if not program.exists() and compile_programs(kernel_tests()[:1]) is None:
        return 1
    calls = [sys.executable, str(Path(__file__).resolve()), "--child", "layer-calls"]
    verdicts: list[str] = []
    bad = ran = 0
    end = time.monotonic() + CAPS["sanitizer"] - SECONDS_TO_END
    memcheck = ["--tool", "memcheck", "--report-api-errors", "no"]
    racecheck = ["--tool", "racecheck"]  # of shared memory
    for name, options, command in (
        ("memcheck conformance", memcheck, [str(program)]),
        ("memcheck layers", memcheck, calls),
        ("racecheck conformance", racecheck, [str(program)]),
        ("racecheck layers", racecheck, calls),
    ):
        full = [tool, *options, "--error-exitcode", str(SANITIZER_ERRORS), "--print-limit", "20"]
        full += command
        say("$ " + " ".join(full))
        seconds = min(SECONDS_OF_A_SANITIZER, end - time.monotonic())
        text_path = PROGRAMS / "sanitizer.txt"
        with text_path.open("wb") as text_file:
            try:
                status = subprocess.run(
                    full,
                    cwd=ROOT,
                    env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
                    stdout=text_file,
                    stderr=subprocess.STDOUT,
                    timeout=max(seconds, 1),
                ).returncode
            except subprocess.TimeoutExpired:
                status = 124
        text = text_path.read_text(errors="replace")
        say(text)
        if "Device not supported" in text:
            verdict = "refuses the device"
        elif status == 0:
            verdict, ran = "clean", ran + 1
        elif status == 124:  # says nothing of the kernels
            verdict = "took too long"
        elif status == SANITIZER_ERRORS:
            verdict, bad = "errors", bad + 1
        else:
            verdict, bad = f"exit status {status}", bad + 1
        verdicts.append(f"{name}: {verdict}")
        say(NOTE + "; ".join(verdicts))
    if bad:
        return 1
    return 0 if ran else NOT_RUN


def part_micro(out: Path) -> int:
    path = out / "micro.json"
    status = run([sys.executable, "-m", "benchmarks", "micro", "--out", str(path)])
    if path.exists():
        report = json.loads(path.read_text())
        errors = report["errors"]
        say(NOTE + ("; ".join(errors) if errors else f"{len(report['results'])} figures"))
    return status


def part_cuda(out: Path) -> int:
    path = out / "cuda.json"
    command = [sys.executable, "-m", "benchmarks", "cuda", "--preset", "quick"]
    status = run([*command, "--out", str(path)])
    if path.exists():
        from benchmarks.measure.results import Results
        from benchmarks.report import metrics

        results = Results.load(path)
        means = [line.strip() for line in metrics.geometric_means(results)]
        say(NOTE + "; ".join([f"{len(results.entries)} entries", *means]))
    return status


CHILDREN: dict[str, Callable[[Path], int]] = {
    "device": part_device,
    "build": part_build,
    "conformance": part_conformance,
    "tests": part_tests,
    "sanitizer": part_sanitizer,
    "micro": part_micro,
    "cuda": part_cuda,
}
CAPS = {
    "device": 20,
    "build": 140,
    "conformance": 50,
    "tests": 115,
    "sanitizer": 85,
    "micro": 40,
    "cuda": 85,
}
PARTS = [
    Part(name, CAPS[name], (sys.executable, str(Path(__file__).resolve()), "--child", name, "OUT"))
    for name in CHILDREN
]
OUTPUTS = (
    "log.txt",
    "summary.json",
    "device.json",
    "tests.jsonl",
    "micro.json",
    "cuda.json",
)


# ---- the command line


def chosen_parts(text: str) -> list[Part]:
    """Parts by name, separated by commas or spaces, in the order in which they always run."""
    names = text.replace(",", " ").split()
    valid = [part.name for part in PARTS]
    unknown = [name for name in names if name not in valid]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"no part named {', '.join(unknown)}; the parts are {', '.join(valid)}"
        )
    return [part for part in PARTS if part.name in names] if names else PARTS


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["--child"]:
        sys.path.insert(0, str(ROOT))
        if arguments[1] == "layer-calls":
            return layer_calls()
        return CHILDREN[arguments[1]](Path(arguments[2]))
    parser = argparse.ArgumentParser(
        prog="gpu_check.py", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of the results")
    parser.add_argument(
        "--parts", type=chosen_parts, default=PARTS, help=f"some of {' '.join(CHILDREN)}"
    )
    parser.add_argument("--commit", default=None, help="the commit, where there is no git history")
    options = parser.parse_args(arguments)
    if not has_gpu():
        print(NO_GPU + ".", file=sys.stderr)
        return 2
    return run_parts(options.parts, options.out.resolve(), options.commit or find_commit())


if __name__ == "__main__":
    sys.exit(main())
