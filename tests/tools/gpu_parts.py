"""What the parts of gpu-check do, each in a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpu_device import device, output_of
from gpu_runner import NOT_RUN, NOTE, ROOT, SECONDS_TO_END, on_the_wall, write_json

SECONDS_OF_A_CASE = 15.0  # what runs longer hangs
CASES_AT_ONCE = 8
SANITIZER_ERRORS = 99
SECONDS_OF_A_SANITIZER = 45.0
# Of the benchmarks: until the first entry, packages imported; then from one write to the next.
SECONDS_TO_THE_FIRST_ENTRY, SECONDS_OF_AN_ENTRY = 45.0, 20.0
MOST_HUNG_ENTRIES = 3
EXTENSION = "extension.tar.gz"
GIVEN_EXTENSION = "BIRNN_GPU_CHECK_EXTENSION"  # one of an earlier run


def say(line: str) -> None:
    print(line, flush=True)


def run(command: Sequence[str], **environment: str) -> int:
    """Runs a command, its output in this one's; returns its exit status."""
    say("$ " + " ".join(command))
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}).returncode


def part_device(out: Path) -> int:
    report = device().facts()
    write_json(out / "device.json", report)
    say(json.dumps(report, indent=1))
    say(f"{NOTE}{report['device']}, {report['multiprocessors']} SMs")
    return 0


# ---- the extension


def part_build(out: Path) -> int:
    machine = device()
    major, minor = machine.architecture(out)
    architecture = f"{major}.{minor}" + ("a" if major == 9 else "")
    if shutil.which("nvcc") is None:
        say(f"{NOTE}nvcc is not on the PATH")
        return 1
    key = machine.build_key(architecture)
    given = os.environ.get(GIVEN_EXTENSION, "")
    if given and unpack_extension(Path(given), key):
        if run(machine.check_command()) == 0:
            shutil.copyfile(given, out / EXTENSION)
            say(f"{NOTE}for {architecture}, as it was built before")
            return 0
        say("the extension of an earlier run does not load here")
    status = run(
        machine.build_command(),
        BIRNN_BUILD_CUDA="1",
        TORCH_CUDA_ARCH_LIST=architecture,
        MAX_JOBS=str(len(os.sched_getaffinity(0))),
    )
    if status == 0:
        status = run(machine.check_command())
    say(f"{NOTE}for {architecture}")
    if status == 0:
        pack_extension(out / EXTENSION, machine.extensions(), key)
    return status


def pack_extension(archive: Path, files: Sequence[Path], key: str) -> None:
    """What the build made, for a later run on the same sources."""
    partial = archive.with_suffix(".partial")
    note = ROOT / "build" / "extension-key"
    note.parent.mkdir(exist_ok=True)
    note.write_text(key)
    with tarfile.open(partial, "w:gz", compresslevel=6) as packed:
        packed.add(note, "key")
        for path in files:
            packed.add(path, path.name)
    partial.replace(archive)


def unpack_extension(archive: Path, key: str) -> bool:
    """Puts it in its place, if it is of these sources and tools."""
    try:
        with tarfile.open(archive) as packed:
            note = packed.extractfile("key")
            if note is None or note.read().decode() != key:
                say(f"{archive} is of other sources or tools")
                return False
            for member in packed.getmembers():
                content = packed.extractfile(member)
                if re.fullmatch(r"_C[\w.-]*\.so", member.name) and content is not None:
                    (ROOT / "birnn_cuda" / member.name).write_bytes(content.read())
    except (OSError, EOFError, KeyError, tarfile.TarError) as error:
        say(f"{archive} cannot be used: {error}")
        return False
    return True


# ---- programs of cases


def kernel_tests() -> list[Path]:
    folder = ROOT / "tests" / "kernels"
    return [folder / f"{name}.cu" for name in ("conformance", "litmus", "defects")]


def run_cases(programs: Sequence[tuple[Path, Sequence[str]]], record: Path) -> list[str]:
    """Runs each case of each program in a process of its own, so that one that hangs costs no
    other; a line of `record` for each as it ends. Returns the names of those that are not well."""
    lock = threading.Lock()
    bad: list[str] = []

    def run_case(program: Path, mode: Sequence[str], name: str) -> None:
        command = [str(program), *mode, name]
        began = time.monotonic()
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT
        ) as process:
            try:
                output, _ = process.communicate(timeout=on_the_wall(SECONDS_OF_A_CASE))
                outcome = "ok" if process.returncode == 0 else "failed"
            except subprocess.TimeoutExpired:
                process.kill()
                outcome, output = "hung", b""
        entry = {
            "case": f"{program.name}: {name}",
            "outcome": outcome,
            "seconds": round(time.monotonic() - began, 2),
            "exit_status": process.returncode,
            "output": output.decode(errors="replace")[-2000:],
        }
        with lock, record.open("a") as file:
            file.write(json.dumps(entry) + "\n")
            say(f"{entry['case']}: {outcome}, {entry['seconds']} s")
            if outcome != "ok":
                say(str(entry["output"]))
                bad.append(f"{entry['case']} {outcome}")
                say(NOTE + ", ".join(bad))

    with ThreadPoolExecutor(CASES_AT_ONCE) as pool:
        cases = [
            pool.submit(run_case, program, mode, name)
            for program, mode in programs
            for name in (output_of([str(program), *mode, "list"]) or "cannot-be-listed").split()
        ]
        for case in cases:
            case.result()
    return bad


def part_conformance(out: Path) -> int:
    programs = device().compile_programs(kernel_tests(), out)
    if programs is None:
        say(f"{NOTE}does not compile")
        return 1
    modes = [(program, ["clean"] if program.name == "defects" else []) for program in programs]
    if run_cases(modes, out / "conformance.jsonl"):
        return 1
    say(f"{NOTE}all cases ok")
    return 0


# ---- the tests


def part_tests(out: Path, seconds: float) -> int:
    from gpu_progress import run_tests

    found = run_tests(device().tests(), out / "tests.jsonl", seconds - 2 * SECONDS_TO_END)
    bad = ("failed", "hung", "out of time")
    for name, result in found.items():
        if result["outcome"] in bad:
            say(f"{result['outcome']}: {name}")
    counts = Counter(result["outcome"] for result in found.values())
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
    if torch.cuda.get_device_capability()[0] >= 9:
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


def sanitize(runs: Sequence[tuple[str, Sequence[str], Sequence[str]]]) -> int:
    """Runs commands under compute-sanitizer, all at once: name, options, command of each."""
    tool = device().sanitizer()
    if tool is None:
        say(f"{NOTE}compute-sanitizer is not on the PATH")
        return NOT_RUN
    verdicts: dict[str, str] = {}

    def run_one(name: str, options: Sequence[str], command: Sequence[str]) -> None:
        full = [tool, *options, "--error-exitcode", str(SANITIZER_ERRORS), "--print-limit", "20"]
        say("$ " + " ".join([*full, *command]))
        environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        with subprocess.Popen(
            [*full, *command],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            try:
                output, _ = process.communicate(timeout=on_the_wall(SECONDS_OF_A_SANITIZER))
                text = output.decode(errors="replace")
                verdict = {0: "clean", SANITIZER_ERRORS: "errors"}.get(
                    process.returncode, f"exit status {process.returncode}"
                )
            except subprocess.TimeoutExpired:
                process.kill()
                text, verdict = "", "took too long"  # says nothing of the kernels
        say(text)
        verdicts[name] = "refuses the device" if "Device not supported" in text else verdict
        say(NOTE + "; ".join(f"{name}: {verdict}" for name, verdict in sorted(verdicts.items())))

    with ThreadPoolExecutor(len(runs)) as pool:
        for one in [pool.submit(run_one, *arguments) for arguments in runs]:
            one.result()
    harmless = ("clean", "refuses the device", "took too long")
    if any(verdict not in harmless for verdict in verdicts.values()):
        return 1
    return 0 if "clean" in verdicts.values() else NOT_RUN


MEMCHECK = ("--tool", "memcheck", "--report-api-errors", "no")
RACECHECK = ("--tool", "racecheck")  # of shared memory


def part_sanitizer(out: Path) -> int:
    machine = device()
    program = machine.program("conformance")
    if not program.exists() and machine.compile_programs(kernel_tests()[:1], out) is None:
        return 1
    command = [str(program)]
    return sanitize([("memcheck", MEMCHECK, command), ("racecheck", RACECHECK, command)])


def part_sanitized_layers(out: Path) -> int:
    check = str(Path(__file__).with_name("gpu_check.py"))
    calls = [sys.executable, check, "--child", "layer-calls"]
    return sanitize([("memcheck", MEMCHECK, calls), ("racecheck", RACECHECK, calls)])


# ---- what is measured


def part_micro(out: Path) -> int:
    path = out / "micro.json"
    status = run(device().benchmarks("micro", "--out", str(path)))
    if path.exists():
        report = json.loads(path.read_text())
        errors = report["errors"]
        say(NOTE + ("; ".join(errors) if errors else f"{len(report['results'])} figures"))
    return status


def measure(command: Sequence[str], path: Path) -> int | None:
    """Runs a benchmark for as long as it writes its file; its exit status, None if it hung."""
    say("$ " + " ".join(command))
    process = subprocess.Popen(command, cwd=ROOT)
    latest, entries = time.monotonic(), -1
    while process.poll() is None:
        found = len(json.loads(path.read_text())["entries"]) if path.exists() else -1
        if found != entries:
            latest, entries = time.monotonic(), found
        limit = SECONDS_OF_AN_ENTRY if entries > 0 else SECONDS_TO_THE_FIRST_ENTRY
        if time.monotonic() - latest > on_the_wall(limit):
            process.kill()
            process.wait(SECONDS_TO_END)
            return None
        time.sleep(0.1)
    return process.returncode


def part_cuda(out: Path) -> int:
    path = out / "cuda.json"
    arguments = ["cuda", "--out", str(path)]
    status: int | None = None
    hung = 0
    while status is None and hung <= MOST_HUNG_ENTRIES:
        how = ["--resume"] if path.exists() else ["--preset", "quick"]
        status = measure(device().benchmarks(*arguments, *how), path)
        hung += status is None
        say(f"{NOTE}{notes_of(path)}" + (f"; {hung} hung" if hung else ""))
    return status or int(hung > 0)


def notes_of(path: Path) -> str:
    if not path.exists():
        return "nothing was measured"
    from benchmarks.measure.results import Results
    from benchmarks.report import metrics

    results = Results.load(path)
    means = [line.strip() for line in metrics.geometric_means(results)]
    return "; ".join([f"{len(results.entries)} entries", *means])


CHILDREN: dict[str, Callable[[Path], int]] = {
    "device": part_device,
    "build": part_build,
    "conformance": part_conformance,
    "micro": part_micro,
    "cuda": part_cuda,
    "sanitizer": part_sanitizer,
    "sanitized-layers": part_sanitized_layers,
}
