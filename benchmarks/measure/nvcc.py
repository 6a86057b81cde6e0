"""Programs of one CUDA source each, compiled for the GPU of this machine."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "build" / "gpu-programs"
SOURCES = ROOT / "csrc"


def command(architecture: tuple[int, int], includes: Sequence[Path] = ()) -> list[str]:
    """nvcc with the flags that all of them share."""
    major, minor = architecture
    suffix = "a" if major == 9 else ""  # the instructions of Hopper alone
    return [
        "nvcc",
        "-std=c++17",
        "-O3",
        "-lineinfo",
        f"-arch=sm_{major}{minor}{suffix}",
        *(f"-I{folder}" for folder in (SOURCES, *includes)),
    ]


def compile_programs(
    sources: Sequence[Path], architecture: tuple[int, int], includes: Sequence[Path] = ()
) -> list[Path] | None:
    """Compile them all at once, and return the programs; None if one fails or nvcc is missing."""
    if shutil.which("nvcc") is None:
        return None
    PROGRAMS.mkdir(parents=True, exist_ok=True)
    programs = [PROGRAMS / source.stem for source in sources]
    running = [
        subprocess.Popen([*command(architecture, includes), str(source), "-o", str(program)])
        for source, program in zip(sources, programs, strict=True)
    ]
    return programs if all([process.wait() == 0 for process in running]) else None
