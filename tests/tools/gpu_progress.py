"""The tests on a GPU, so that one that hangs or breaks the device costs no other.

A kernel that waits for ever holds its process in the driver, and one that reads where it must not
leaves the process without a device: pytest alone would end there. So `run_tests` runs it in
processes that leave a line for each test, ends one where a test takes too long, and starts it again
behind that test. This file is also the plugin which that pytest loads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

# In the environment of a pytest: the file of these lines, and the group of tests that is its own.
RECORD, GROUP = "BIRNN_GPU_PROGRESS", "BIRNN_GPU_GROUP"
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


def running(entries: Sequence[dict[str, Any]], group: int) -> dict[str, Any] | None:
    """The line of the test that the process of a group is at."""
    own = [entry for entry in entries if entry.get("group") == group]
    return own[-1] if own and "outcome" not in own[-1] else None


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
    def __init__(self, record: Path, group: int) -> None:
        self.record, self.group = record, group

    def append(self, **entry: Any) -> None:
        append(self.record, group=self.group, **entry)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        entries = read(self.record)
        ended = results(entries)
        left = []
        for item in items:
            if item.nodeid in ended:
                continue
            reason = reason_to_leave_out(entries, item.nodeid, kernel_of(item))
            if reason:
                self.append(test=item.nodeid, outcome="left out", error=reason)
            else:
                left.append(item)
        items[:] = left

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.append(test=report.nodeid, outcome="failed", error=tail_of(report))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self.append(test=item.nodeid, kernel=kernel_of(item), since=time.time())
        self.outcome, self.error, self.seconds = "passed", "", 0.0
        value = yield
        lost = device_error() if self.outcome == "failed" else ""
        if lost:
            self.error += f"\nand after it the device answers no more: {lost}"
        self.append(
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
        config.pluginmanager.register(Progress(Path(os.environ[RECORD]), int(os.environ[GROUP])))


# ---- the runner


def run_tests(
    groups: Sequence[Sequence[str]],
    record: Path,
    seconds: float,
    options: Sequence[str] = (),
    seconds_of_a_test: float = SECONDS_OF_A_TEST,
) -> dict[str, dict[str, Any]]:
    """Runs the tests in these files, for `seconds` at most, and returns what became of each.

    The groups run side by side, each in a process of its own: most of their time is the CPU's.
    """
    deadline = time.monotonic() + seconds
    record.unlink(missing_ok=True)

    def run(group: int) -> None:
        run_group(group, [*options, *groups[group]], record, deadline, seconds_of_a_test)

    with ThreadPoolExecutor(len(groups)) as pool:
        list(pool.map(run, range(len(groups))))
    return results(read(record))


def run_group(
    group: int, arguments: Sequence[str], record: Path, deadline: float, seconds_of_a_test: float
) -> None:
    folder = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-p", "gpu_progress", "-p", "no:cacheprovider"]
    command += ["-v", "-ra", "--tb=short", "--continue-on-collection-errors", *arguments]
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    environment |= {RECORD: str(record), GROUP: str(group)}
    while time.monotonic() < deadline:
        print("$ " + " ".join(command), flush=True)
        process = subprocess.Popen(command, cwd=folder.parents[1], env=environment)
        ended = wait(process, group, record, deadline, seconds_of_a_test)
        now = running(read(record), group)
        if now is None:
            if ended or process.returncode not in (0, 1, 5, DEVICE_LOST):
                error = f"outside of a test, status {process.returncode}"
                append(record, group=group, test="pytest", outcome="failed", error=error)
                return  # it would end so again
            if process.returncode != DEVICE_LOST:
                return
            continue
        outcome = ended or "failed"
        error = f"ended after {time.time() - now['since']:.0f} s"
        if not ended:
            error = f"ended its process with status {process.returncode}"
        names = {key: now[key] for key in ("group", "test", "kernel")}
        append(record, **names, outcome=outcome, error=error)


def wait(
    process: subprocess.Popen[bytes],
    group: int,
    record: Path,
    deadline: float,
    seconds_of_a_test: float,
) -> str:
    """Waits for pytest, and ends it where a test hangs or the time is over; tells which."""
    while process.poll() is None:
        now = running(read(record), group)
        late = now is not None and time.time() - now["since"] > seconds_of_a_test
        if late or time.monotonic() > deadline:
            process.kill()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                print("the process does not end", flush=True)
            return "hung" if late else "out of time"
        time.sleep(0.2)
    return ""
