"""A stand-in for the GPU below gpu-check: everything takes as long as it is expected to on the
machine, and what is named in BIRNN_STAND_IN_HANGS hangs. All that gpu-check does itself is real:
its parts, processes, caps, records and files.

    python tests/tools/gpu_stand_in.py --within 200
    python tests/tools/gpu_stand_in.py --within 330 --hangs case:litmus_1 entry:3 test:one-7 ...

run gpu-check on it, in the time that a GPU would take (`make gpu-rehearsal`).
"""

from __future__ import annotations

import argparse
import os
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_device import Device
from gpu_runner import CLOCK, ROOT, on_the_wall

HANGS = "BIRNN_STAND_IN_HANGS"
SPEED = "BIRNN_STAND_IN_SPEED"  # how much faster all is than expected, caps and limits apart
FOLDER = Path(os.environ.get("BIRNN_STAND_IN_FOLDER", ROOT / "build" / "gpu-stand-in"))

# Seconds on a machine of 16 cores with one H200, counted from CPU seconds that were measured.
FIRST_IMPORT, IMPORT = 18.0, 4.0  # of torch from a cold disk, then from memory
BUILD = 47.0
COMPILE = 12.0  # conformance, litmus, defects, all at once
CASES, SECONDS_OF_A_CASE = 47, 0.6
MICRO = 15.0
ENTRIES, SECONDS_OF_AN_ENTRY = 30, 1.7
TESTS, SECONDS_OF_A_TEST = 200, 0.45  # 90 in one process
SANITIZER = 30.0


def hangs(what: str) -> bool:
    return what in os.environ.get(HANGS, "").split()


def take(seconds: float, what: str = "") -> None:
    """Some time of the clock, or for ever."""
    speed = float(os.environ.get(SPEED, "1"))
    time.sleep(10**6 if hangs(what) else on_the_wall(seconds) / speed)


def python(*arguments: str) -> list[str]:
    return [sys.executable, str(Path(__file__).resolve()), "--as", *arguments]


class StandIn(Device):
    def is_there(self) -> bool:
        return True

    def architecture(self, out: Path) -> tuple[int, int]:
        return 9, 0

    def facts(self) -> dict[str, Any]:
        take(FIRST_IMPORT, "device")
        return {"device": "stand-in", "compute_capability": "9.0", "multiprocessors": 132}

    def compile_programs(self, sources: Sequence[Path], out: Path) -> list[Path] | None:
        take(COMPILE)
        FOLDER.mkdir(parents=True, exist_ok=True)
        for source in sources:
            program = self.program(source.stem)
            words = " ".join(python("program", source.stem))
            program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
            program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return [self.program(source.stem) for source in sources]

    def program(self, name: str) -> Path:
        return FOLDER / name

    def build_key(self, architecture: str) -> str:
        return "stand-in"

    def build_command(self) -> list[str]:
        return python("build")

    def check_command(self) -> list[str]:
        return python("check")

    def extensions(self) -> list[Path]:
        FOLDER.mkdir(parents=True, exist_ok=True)
        extension = FOLDER / "_C.stand-in.so"
        extension.write_bytes(os.urandom(1 << 20))
        return [extension]

    def benchmarks(self, *arguments: str) -> list[str]:
        return python("benchmarks", *arguments)

    def tests(self) -> list[str]:
        """A suite of as many tests, in three files."""
        folder = FOLDER / "tests"
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("one", "two", "three"):
            (folder / f"test_{name}.py").write_text(
                "import gpu_stand_in as stand_in, pytest\n"
                "stand_in.take(stand_in.IMPORT / 3)\n"
                f"@pytest.mark.parametrize('i', range({TESTS // 3}))\n"
                "@pytest.mark.parametrize('kernel', ['block', 'cluster', 'grid', 'stepwise'][:1])\n"
                "def test_it(kernel, i):\n"
                f"    stand_in.take(stand_in.SECONDS_OF_A_TEST, f'test:{name}-{{i}}')\n"
            )
        return [str(folder), f"--rootdir={folder}", "--confcutdir", str(folder)]

    def sanitizer(self) -> str | None:
        tool = FOLDER / "compute-sanitizer"
        FOLDER.mkdir(parents=True, exist_ok=True)
        tool.write_text(f"#!/bin/sh\nexec {' '.join(python('sanitizer'))}\n")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        return str(tool)


# ---- what the commands do


def program(name: str, *arguments: str) -> int:
    """A third of the cases each."""
    names = [f"{name}_{i}" for i in range(CASES // 3)]
    if arguments[-1:] == ("list",):
        print("\n".join(names))
        return 0
    for case in names:
        if case in arguments:
            take(SECONDS_OF_A_CASE, f"case:{case}")
    return 0


def benchmarks(command: str, *arguments: str) -> int:
    from benchmarks.measure.results import Results
    from benchmarks.sections import micro

    path = Path(arguments[arguments.index("--out") + 1])
    if command == "micro":
        report: dict[str, Any] = {"device": "stand-in", "results": [], "errors": []}
        for i in range(10):
            take(MICRO / 10, f"micro:{i}")
            report["results"].append({"what": f"figure {i}", "count": i})
            micro.save(path, report)
        return 0
    take(IMPORT)
    resumed = "--resume" in arguments
    results = Results.load(path) if resumed else new_results(path)
    for i in range(ENTRIES):
        if results.is_done(f"entry {i}"):
            continue
        results.begin(f"entry {i}")
        take(SECONDS_OF_AN_ENTRY, f"entry:{i}")
        results.add({"key": f"entry {i}", "section": "stand-in"})
    results.finish()
    return 0


def new_results(path: Path) -> Any:
    from benchmarks.measure.results import REQUIRED, Results

    header: dict[str, Any] = {name: {} for name in REQUIRED if name not in ("gemm", "entries")}
    return Results.create(path, "cuda", header)


def act(words: Sequence[str]) -> int:
    sys.path.insert(0, str(ROOT))
    what, *arguments = words
    if what == "program":
        return program(*arguments)
    if what == "benchmarks":
        return benchmarks(*arguments)
    take({"build": BUILD, "check": IMPORT, "sanitizer": SANITIZER}[what], what)
    return 0


def environment(clock: float, hanging: Sequence[str], speed: float = 1.0) -> dict[str, str]:
    """Of a gpu-check that runs on the stand-in."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    names = {"BIRNN_GPU_CHECK_DEVICE": "gpu_stand_in", CLOCK: str(clock), "PYTHONPATH": path}
    return {**os.environ, **names, HANGS: " ".join(hanging), SPEED: str(speed)}


def main() -> int:
    if sys.argv[1:2] == ["--as"]:
        return act(sys.argv[2:])
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--within", type=float, required=True, help="seconds, or it is too slow")
    parser.add_argument("--hangs", nargs="*", default=[], help="case:NAME, micro:I, entry:I, ...")
    parser.add_argument("--out", type=Path, default=FOLDER / "out")
    options = parser.parse_args()
    began = time.monotonic()
    check = [sys.executable, str(Path(__file__).with_name("gpu_check.py"))]
    subprocess.run([*check, "--out", str(options.out)], env=environment(1.0, options.hangs))
    seconds = time.monotonic() - began
    print(f"{seconds:.1f} s, to be at most {options.within:g}")
    return int(seconds > options.within)


if __name__ == "__main__":
    sys.exit(main())
