"""All that gpu-check asks of a GPU and of the compilers for it. The tests put a stand-in in its
place, which takes as long and hangs where it is told to."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_runner import ROOT

CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.draw", "power.limit")
SETTINGS = ("driver_version", "temperature.gpu", "pstate", "ecc.mode.current", "mig.mode.current")
STAND_IN = "BIRNN_GPU_CHECK_DEVICE"  # a module whose class StandIn takes the place of Device

GPU_TESTS = (
    "layers/test_cuda_kernels.py",
    "layers/test_cuda.py",
    "layers/test_cuda_lengths.py",
    "layers/test_cuda_streams.py",
    "layers/test_cuda_graphs.py",
    "layers/test_cuda_ops.py",
    "layers/test_cuda_sequences.py",
    "layers/test_cuda_layer_norm.py",
    "benchmarks/test_benchmarks_cuda.py",
    "benchmarks/test_benchmarks_tune.py",
)


def output_of(command: Sequence[str], seconds: float = 15) -> str | None:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


class Device:
    def is_there(self) -> bool:
        """Whether there may be one. Torch knows, but takes long to say so the first time: the part
        of that name asks it, beside the build."""
        nodes = [*Path("/dev").glob("nvidia*"), *Path("/dev").glob("dxg")]
        return bool(nodes) or shutil.which("nvidia-smi") is not None

    def architecture(self, out: Path) -> tuple[int, int]:
        """Compute capability: as the part device found it, or else torch's answer."""
        if (out / "device.json").exists():
            major, minor = json.loads((out / "device.json").read_text())[
                "compute_capability"
            ].split(".")
            return int(major), int(minor)
        import torch

        return torch.cuda.get_device_capability()

    def facts(self) -> dict[str, Any]:
        """The device, its clocks idle and busy, and the versions of what runs on it."""
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
        return {
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

    def compile_programs(self, sources: Sequence[Path], out: Path) -> list[Path] | None:
        """Compiles each for this device, all at once. None if one fails."""
        from benchmarks.measure import nvcc

        includes = [ROOT / "tests" / folder for folder in ("emulator", "kernels")]
        return nvcc.compile_programs(sources, self.architecture(out), includes)

    def program(self, name: str) -> Path:
        """Where compile_programs puts one."""
        from benchmarks.measure import nvcc

        return nvcc.PROGRAMS / name

    # ---- the extension

    def build_command(self) -> list[str]:
        return [sys.executable, "setup.py", "build_ext", "--inplace"]

    def check_command(self) -> list[str]:
        return [sys.executable, "-m", "birnn_cuda"]

    def extensions(self) -> list[Path]:
        """What the build has put into the package."""
        return sorted((ROOT / "birnn_cuda").glob("_C*.so"))

    def build_key(self, architecture: str) -> str:
        """The same for builds of the same sources by the same tools."""
        digest = hashlib.sha256()
        files = [path for path in sorted((ROOT / "csrc").rglob("*")) if path.is_file()]
        for path in [ROOT / "setup.py", *files]:
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        tools = [
            architecture,
            importlib.metadata.version("torch"),
            sys.version,
            output_of(["nvcc", "--version"]),
            output_of(["c++", "--version"]),
        ]
        digest.update(json.dumps(tools).encode())
        return digest.hexdigest()

    # ---- commands

    def benchmarks(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "benchmarks", *arguments]

    def tests(self) -> list[str]:
        """Files and options of pytest."""
        # One seed for all processes, also for those that are started again.
        seed = f"--seed={random.SystemRandom().randrange(2**31)}"
        print(f"inputs: {seed}", flush=True)
        return [*(f"tests/{file}" for file in GPU_TESTS), "-m", "gpu", seed]

    def sanitizer(self) -> str | None:
        return shutil.which("compute-sanitizer")


def device() -> Device:
    module = os.environ.get(STAND_IN)
    return importlib.import_module(module).StandIn() if module else Device()
