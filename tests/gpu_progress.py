"""The tests on a GPU, so that one that hangs or breaks the device costs no other.

A kernel that waits for ever holds its process in the driver, and one that reads where it must not
leaves the process without a device: pytest alone would end there. So `run_tests` runs it in a
process that leaves a line for each test, ends it where one test takes too long, and starts it again
behind that test. This file is also the plugin which that pytest loads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

RECORD = "BIRNN_GPU_PROGRESS"  # in the environment: the file of these lines
DEVICE_LOST = 88  # exit status of a process whose device answers no more
SECONDS_OF_A_TEST = 30.0
HUNG_TESTS_OF_A_FILE = 2  # the rest of a file is left out then
KEPT_LINES = 40  # of what a test says when it fails


def read(record: Path) -> list[dict[str, Any]]:
    if not record.exists():
        return []
    lines = record.read_text().split("\n")[:-1]  # what follows the last newline is not yet whole
    return [json.loads(line) for line in lines]


def append(record: Path, **entry: Any) -> None:
    with record.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def results(entries: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each test that has ended, or was ended, the last line."""
    return {entry["test"]: entry for entry in entries if "outcome" in entry}


def running(entries: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    return entries[-1] if entries and "outcome" not in entries[-1] else None


def reason_to_leave_out(entries: Sequence[dict[str, Any]], name: str, kernel: str | None) -> str:
    """Why a test is not worth its time after those that hung; empty where it is."""
    hung = [entry for entry in entries if entry.get("outcome") == "hung"]
    if kernel is not None and any(entry["kernel"] == kernel for entry in hung):
        return f"the kernel {kernel} hung before"
    file = name.split("::")[0]
    if sum(entry["test"].split("::")[0] == file for entry in hung) >= HUNG_TESTS_OF_A_FILE:
        return f"{HUNG_TESTS_OF_A_FILE} tests of {file} hung before"
    return ""


# ---- the plugin


def kernel_of(item: pytest.Item) -> str | None:
    """The kernel that a test asks for by a parameter of that name."""
    callspec = getattr(item, "callspec", None)
    kernel = callspec.params.get("kernel") if callspec else None
    return kernel if isinstance(kernel, str) else None


class Progress:
    def __init__(self, record: Path) -> None:
        self.record = record

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        entries = read(self.record)
        ended = results(entries)
        left = []
        for item in items:
            if item.nodeid in ended:
                continue
            reason = reason_to_leave_out(entries, item.nodeid, kernel_of(item))
            if reason:
                append(self.record, test=item.nodeid, outcome="left out", error=reason)
            else:
                left.append(item)
        items[:] = left

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            append(self.record, test=report.nodeid, outcome="failed", error=tail_of(report))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        append(self.record, test=item.nodeid, kernel=kernel_of(item), since=time.time())
        self.outcome, self.error, self.seconds = "passed", "", 0.0
        value = yield
        lost = device_error() if self.outcome == "failed" else ""
        if lost:
            self.error += f"\nand after it the device answers no more: {lost}"
        append(
            self.record,
            test=item.nodeid,
            outcome=self.outcome,
            seconds=round(self.seconds, 2),
            error=self.error,
        )
        if lost:
            sys.stdout.flush()
            os._exit(DEVICE_LOST)
        return value

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds += report.duration
        if report.failed:
            self.outcome = "failed"
            self.error += tail_of(report)
        elif report.skipped and self.outcome == "passed":
            self.outcome = "skipped"


def tail_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    return "\n".join(report.longreprtext.splitlines()[-KEPT_LINES:])


def device_error() -> str:
    """What torch says when it is asked whether the device still answers; empty if it does."""
    import torch

    if not torch.cuda.is_initialized():
        return ""
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


def pytest_configure(config: pytest.Config) -> None:
    if RECORD in os.environ:
        config.pluginmanager.register(Progress(Path(os.environ[RECORD])))


# ---- the runner


def run_tests(
    files: Sequence[str],
    record: Path,
    seconds: float,
    options: Sequence[str] = (),
    seconds_of_a_test: float = SECONDS_OF_A_TEST,
) -> dict[str, dict[str, Any]]:
    """Runs the tests in these files, for `seconds` at most, and returns what became of each."""
    deadline = time.monotonic() + seconds
    record.unlink(missing_ok=True)
    folder = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-p", "gpu_progress", "-p", "no:cacheprovider"]
    command += ["-v", "-ra", "--tb=short", "--continue-on-collection-errors", *options, *files]
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, RECORD: str(record), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    while time.monotonic() < deadline:
        print("$ " + " ".join(command), flush=True)
        process = subprocess.Popen(command, cwd=folder.parent, env=environment)
        hung = wait(process, record, deadline, seconds_of_a_test)
        entries = read(record)
        now = running(entries)
        if hung or process.returncode not in (0, 1, 2, 5, DEVICE_LOST):
            # Without a test that runs there is none to leave out, and it would end so again.
            if now is None:
                append(record, test="pytest", outcome="failed", error=f"{process.returncode}")
                break
            outcome = "hung" if hung else "failed"
            error = f"ended after {time.time() - now['since']:.0f} s"
            if not hung:
                error = f"ended its process with status {process.returncode}"
            append(record, test=now["test"], kernel=now["kernel"], outcome=outcome, error=error)
        elif process.returncode != DEVICE_LOST:
            break
    return results(read(record))


def wait(
    process: subprocess.Popen[bytes], record: Path, deadline: float, seconds_of_a_test: float
) -> bool:
    """Waits for pytest, and ends it where a test takes too long. Returns whether one did."""
    while process.poll() is None:
        now = running(read(record))
        late = now is not None and time.time() - now["since"] > seconds_of_a_test
        if late or time.monotonic() > deadline:
            process.kill()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                print("the process does not end", flush=True)
            return True
        time.sleep(0.2)
    return False
