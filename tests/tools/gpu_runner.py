"""Runs the parts of gpu-check, side by side as far as they may be, and writes what becomes of each
while it does: whoever ends it at any moment finds all that was known by then.

Each part is a process group of its own with a time cap. All that it prints goes to log.txt, its
name before each line; the last line that begins with "note: " is what the summary says of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

ROOT = Path(__file__).resolve().parents[2]

NOT_RUN = 77  # exit status of a part for which this machine lacks something
NOTE = "note: "
SECONDS_TO_END = 10.0
INTERVAL = 0.05  # between looks at the parts
TAIL = 30  # lines of a part that fails, printed

# The tests let the clock of all caps run faster. Seconds of the clock in seconds of the wall.
CLOCK = "BIRNN_GPU_CHECK_CLOCK"


def on_the_wall(seconds: float) -> float:
    return seconds * float(os.environ.get(CLOCK, "1"))


@dataclass(frozen=True)
class Part:
    name: str
    seconds: float  # killed after this
    command: tuple[str, ...]  # OUT in it stands for the output folder
    after: tuple[str, ...] = ()  # parts that must have ended: it shares the device with no other
    needs: tuple[str, ...] = ()  # of those, parts that must be well


@dataclass
class Result:
    name: str
    status: str  # waiting, running; ok, failed, timed out, not run
    seconds: float = 0.0
    cap: float = 0.0
    exit_status: int | None = None
    note: str = ""
    begun: float | None = None  # seconds after the first part


BAD = ("failed", "timed out")
ENDED = ("ok", "not run", *BAD)


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all: a reader never sees half a file."""
    partial = path.with_suffix(".partial")
    with partial.open("w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a part and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # A process that the driver holds does not end; the next part says what the device still does.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(SECONDS_TO_END)


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """In a process group of its own, but in this session: what ends the session ends it too."""
    if sys.version_info >= (3, 11):
        return subprocess.Popen(command, process_group=0, **options)
    return subprocess.Popen(command, preexec_fn=os.setpgrp, **options)


@dataclass
class Running:
    part: Part
    process: subprocess.Popen[bytes]
    began: float
    lines: list[str] = field(default_factory=list)
    note: str = ""
    reader: threading.Thread | None = None

    def read(self, log: BinaryIO, lock: threading.Lock) -> None:
        """Copies what the part prints, until nothing can print any more."""
        assert self.process.stdout is not None
        for raw in self.process.stdout:
            line = raw.decode(errors="replace").rstrip()
            with lock:
                log.write(f"{self.part.name}| {line}\n".encode())
                log.flush()
            self.lines.append(line)
            if line.startswith(NOTE):
                self.note = line[len(NOTE) :]


class Runner:
    def __init__(self, parts: Sequence[Part], out: Path, commit: str | None) -> None:
        self.parts, self.out, self.commit = parts, out, commit
        self.results = {part.name: Result(part.name, "waiting", cap=part.seconds) for part in parts}
        self.running: list[Running] = []
        self.begin = time.monotonic()
        self.written: Any = None
        self.lock = threading.Lock()

    def run(self) -> int:
        """All parts; returns the exit status."""
        with (self.out / "log.txt").open("ab") as log:
            try:
                while any(result.status not in ENDED for result in self.results.values()):
                    self.start_what_can(log)
                    news = self.end_what_has()
                    self.write_summary()  # before anybody is told
                    for line in news:
                        print(line, flush=True)
                    time.sleep(INTERVAL)
            finally:
                for one in self.running:
                    kill_group(one.process)
        self.write_summary()
        return 1 if any(result.status in BAD for result in self.results.values()) else 0

    def start_what_can(self, log: BinaryIO) -> None:
        for part in self.parts:
            result = self.results[part.name]
            before = [self.results[name] for name in part.after if name in self.results]
            if result.status != "waiting" or any(one.status not in ENDED for one in before):
                continue
            lacking = [one for one in before if one.name in part.needs and one.status != "ok"]
            if lacking:
                result.status = "not run"
                result.note = "; ".join(f"{one.name} is {one.status}" for one in lacking)
                continue
            command = [str(self.out) if word == "OUT" else word for word in part.command]
            process = start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT)
            one = Running(part, process, time.monotonic())
            one.reader = threading.Thread(target=one.read, args=(log, self.lock), daemon=True)
            one.reader.start()
            result.status, result.begun = "running", round(one.began - self.begin, 2)
            self.running.append(one)
            print(f"{part.name} ...", flush=True)

    def end_what_has(self) -> list[str]:
        """Ends parts that are over or late; what there is to say of them."""
        news = []
        for one in list(self.running):
            result = self.results[one.part.name]
            seconds = time.monotonic() - one.began
            result.note, result.seconds = one.note, round(seconds, 2)
            exit_status = one.process.poll()
            late = exit_status is None and seconds > on_the_wall(one.part.seconds)
            if exit_status is None and not late:
                continue
            kill_group(one.process)
            assert one.reader is not None
            one.reader.join(1.0)
            self.running.remove(one)
            result.note, result.exit_status = one.note, exit_status
            if late:
                result.status = "timed out"
                note = f"killed after {one.part.seconds:g} s"
                result.note = f"{note}; {one.note}" if one.note else note
            else:
                result.status = {0: "ok", NOT_RUN: "not run"}.get(exit_status or 0, "failed")
            if result.status in BAD:
                news += one.lines[-TAIL:]
            news.append(f"{result.name}: {result.status}, {seconds:.1f} s. {result.note}")
        return news

    def write_summary(self) -> None:
        """As often as it says something new, seconds aside."""
        says = [(one.status, one.note) for one in self.results.values()]
        if says == self.written:
            return
        self.written = says
        write_json(
            self.out / "summary.json",
            {
                "commit": self.commit,
                "complete": all(one.status in ENDED for one in self.results.values()),
                "seconds": round(time.monotonic() - self.begin, 2),
                "parts": [asdict(one) for one in self.results.values()],
            },
        )


def run_parts(parts: Sequence[Part], out: Path, commit: str | None, outputs: Sequence[str]) -> int:
    """Run them all, and print what became of them; returns the exit status."""
    out.mkdir(parents=True, exist_ok=True)
    for name in outputs:
        (out / name).unlink(missing_ok=True)
    runner = Runner(parts, out, commit)
    status = runner.run()
    print(f"\n{'part':<12} {'result':<10} {'begun':>6} {'seconds':>8}  note")
    for one in runner.results.values():
        begun = "-" if one.begun is None else f"{one.begun:.1f}"
        print(f"{one.name:<12} {one.status:<10} {begun:>6} {one.seconds:>8.1f}  {one.note}")
    print(f"\nin {out}: " + ", ".join(sorted(p.name for p in out.iterdir() if p.name in outputs)))
    return status
