"""The kernels of a source tree: what its plan chooses, and the instances compiled, kept by content.

A tree is this one, or that of another revision, taken out of git into build/steps.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "steps"
CALLS = Path(__file__).with_name("calls.cpp")
ARCHITECTURE = "sm_90a"
GIVEN = ("nothing", "resets", "recurrent-dropout")
HOST_SOURCES = {"cost_model.cpp", "division.cpp", "plan.cpp", "request.cpp", "residency.cpp"}


class Unavailable(Exception):
    """What this machine lacks, or git does not know."""


@dataclass(frozen=True)
class Call:
    """A kernel as the plan has it launched."""

    problem: tuple[str, str, int, int]  # cell, precision, H, B
    which: str  # inference, training, backward
    kernel: str  # stepwise, or cluster_forward ...
    space: str = ""  # its namespace
    instance: str = ""  # its template arguments
    threads: int = 0
    blocks: int = 0
    cluster: int = 0
    tiling: tuple[int, ...] = ()
    parameters: bytes = b""


def tree_of(revision: str | None) -> Path:
    """Where the sources of a revision are; None: this tree."""
    if revision is None:
        return ROOT
    found = subprocess.run(
        ["git", "rev-parse", "--verify", f"{revision}^{{commit}}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if found.returncode != 0:
        raise Unavailable(f"git knows no revision {revision}")
    commit = found.stdout.strip()
    tree = CACHE / "trees" / commit[:16]
    if not tree.exists():
        archive = subprocess.run(
            ["git", "archive", commit, "csrc", "tests/emulator"],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
        partial = tree.with_name(tree.name + f".{os.getpid()}")
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(partial, filter="data")
        partial.rename(tree)
    return tree


def _cuda_sources(tree: Path) -> list[Path]:
    folder = tree / "csrc"
    names = sorted([*folder.glob("*.h"), *(folder / "cuda").rglob("*")])
    return [path for path in names if path.suffix in {".h", ".cuh", ".cu", ".cpp"}]


def digest(paths: Iterable[Path], *more: str) -> str:
    """Of the files' contents, and of what else matters."""
    digest = hashlib.sha256("\0".join(more).encode())
    for path in paths:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:20]


def calls_of(
    tree: Path,
    problems: Sequence[tuple[str, str, int, int]],
    steps: int,
    division: Sequence[int] | None = None,
    given: str = "nothing",
) -> list[Call]:
    """What the plan of a tree has launched for each problem; division: what it is asked for, blocks
    of a cluster, batch tiles and K split; given: one of GIVEN, beside the other operands."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise Unavailable("no C++ compiler: install g++ or set CXX")
    cuda = tree / "csrc" / "cuda"
    sources = _cuda_sources(tree)
    program = CACHE / f"calls-{digest([*sources, CALLS], compiler)}"
    if not program.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        units = [path for path in sources if path.name in HOST_SOURCES]
        launcher = re.compile(r"cuda/(cluster|grid)[_/](forward|backward)\.cu$")
        units += [path for path in sources if launcher.search(str(path))]
        command = [compiler, "-std=c++20", "-O1", "-w", "-fno-strict-aliasing"]
        command += [f"-I{path}" for path in (cuda, tree / "csrc", tree / "tests" / "emulator")]
        # A kernel's intrinsics are the emulator's, which is not linked: no kernel is instantiated.
        command += ["-Wl,--unresolved-symbols=ignore-all"]
        partial = program.with_suffix(f".{os.getpid()}")
        command += ["-x", "c++", str(CALLS), *map(str, units), "-o", str(partial)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise Unavailable(f"{' '.join(command)}\n{result.stderr[-4000:]}")
        partial.rename(program)
    words = [[*problem, steps, given, *(division or ())] for problem in problems]
    lines = "".join(" ".join(map(str, line)) + "\n" for line in words)
    result = subprocess.run([program], input=lines, capture_output=True, text=True)
    if result.returncode != 0:
        raise Unavailable(f"{program}: {result.stderr}")
    return [_call(line.split()) for line in result.stdout.splitlines()]


def _call(words: Sequence[str]) -> Call:
    cell, precision, hidden, batch, _, which, kernel, *rest = words
    problem = (cell, precision, int(hidden), int(batch))
    if not rest:
        return Call(problem, which, kernel)
    space, instance, threads, blocks, cluster, tiling, parameters = rest
    return Call(
        problem,
        which,
        kernel,
        space,
        instance,
        int(threads),
        int(blocks),
        int(cluster),
        tuple(map(int, tiling.split(","))),
        bytes.fromhex(parameters),
    )


def compile_instance(tree: Path, call: Call) -> Path:
    """The cubin of one template instance."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise Unavailable("nvcc is not installed")
    cuda = tree / "csrc" / "cuda"
    header = f"cuda/{call.kernel.replace('_', '/', 1)}.cuh"
    if not (tree / "csrc" / header).exists():
        header = f"cuda/{call.kernel}.cuh"
    text = (
        f'#include "{header}"\n'
        f"namespace birnn::cuda::{call.space} {{\n"
        f"template BIRNN_KERNEL void {call.kernel}_kernel<{call.instance}>(Arguments);\n}}\n"
    )
    headers = [path for path in _cuda_sources(tree) if path.suffix in {".h", ".cuh"}]
    used = _reachable(tree / "csrc" / header, headers)
    key = digest(used, text, nvcc, ARCHITECTURE)
    cubin = CACHE / "cubins" / f"{call.kernel}-{key}.cubin"
    if cubin.exists():
        return cubin
    cubin.parent.mkdir(parents=True, exist_ok=True)
    source = cubin.with_suffix(f".{os.getpid()}.cu")
    source.write_text(text)
    partial = cubin.with_suffix(f".{os.getpid()}")
    command = [nvcc, "-std=c++17", "-O3", "-lineinfo", f"-arch={ARCHITECTURE}", "-cubin"]
    command += [f"-I{tree / 'csrc'}", f"-I{cuda}", str(source), "-o", str(partial)]
    command += ["-Xptxas", "-v"]
    result = subprocess.run(command, capture_output=True, text=True)
    source.unlink()
    if result.returncode != 0:
        raise Unavailable(f"{' '.join(command)}\n{result.stderr[-4000:]}")
    cubin.with_suffix(".txt").write_text(result.stdout + result.stderr)
    partial.rename(cubin)
    return cubin


_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


def _reachable(header: Path, headers: Sequence[Path]) -> list[Path]:
    """The header and what it includes, by name: what an instance is made of."""
    by_name: dict[str, list[Path]] = {}
    for path in headers:
        by_name.setdefault(path.name, []).append(path)
    seen: set[Path] = set()
    todo = [header]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in _INCLUDE.findall(path.read_text()):
            todo += by_name.get(Path(name).name, [])
    return sorted(seen)


def resources(cubin: Path) -> tuple[int, int]:
    """Registers and spilled bytes of a compiled instance, by ptxas."""
    report = cubin.with_suffix(".txt").read_text()
    used = re.search(r"Used (\d+) registers", report)
    spilled = sum(int(count) for count in re.findall(r"(\d+) bytes (?:stack|spill)", report))
    return int(used[1]) if used else 0, spilled
