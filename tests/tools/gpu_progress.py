"""The tests on a GPU, so that one that hangs or breaks the device costs no other.

A kernel that waits for ever holds its process in the driver, and one that reads where it must not
leaves the process without a device: pytest alone would end there. So `run_tests` runs several side
by side, which take the tests in turn and leave a line for each, ends one where a test takes too
long, and starts it again behind that test. This file is also the plugin which that pytest loads.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from gpu_runner import on_the_wall

# In the environment of a pytest: the file of these lines, and which of the processes it is.
RECORD, GROUP = "BIRNN_GPU_PROGRESS", "BIRNN_GPU_GROUP"
DEVICE_LOST = 88  # exit status of a process whose device answers no more
PROCESSES = 6  # most of a test's time is the CPU's
SECONDS_OF_A_TEST = 15.0  # unless it has a mark: pytest.mark.seconds(60)
HUNG_TESTS_OF_A_FILE = 2  # the rest of a file is left out then
KEPT_LINES = 40  # of what a test says when it fails


def read(record: Path) -> list[dict[str, Any]]:
    if not record.exists():
        return []
    lines = record.read_text().split("\n")[:-1]  # what follows the last newline is not yet whole
    return [json.loads(line) for line in lines]


def claims_of(record: Path) -> Path:
    """A folder with a file for each test that some process has taken, which says who."""
    return record.with_name(record.name + ".claims")


def claim(record: Path, test: str, group: int) -> bool:
    """Takes a test, unless another process has; one's own can be taken again."""
    path = claims_of(record) / hashlib.sha256(test.encode()).hexdigest()[:24]
    try:
        with path.open("x") as file:
            file.write(str(group))
    except FileExistsError:
        return path.read_text() == str(group)
    return True


def append(record: Path, **entry: Any) -> None:
    """One write to its end: several processes have it open."""
    file = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, (json.dumps(entry) + "\n").encode())
    finally:
        os.close(file)


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

    def claimed(self, items: Sequence[pytest.Item]) -> Iterator[pytest.Item]:
        """One after the other, as they are asked for, those that fall to this process."""
        for item in items:
            if not claim(self.record, item.nodeid, self.group):
                continue
            entries = read(self.record)
            if item.nodeid in results(entries):
                continue  # before this process was started again
            reason = reason_to_leave_out(entries, item.nodeid, kernel_of(item))
            if reason:
                self.append(test=item.nodeid, outcome="left out", error=reason)
            else:
                yield item

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = self.claimed(session.items)
        item = next(items, None)
        while item is not None:
            following = next(items, None)  # pytest keeps the fixtures that both need
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            item = following
        return True

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.append(test=report.nodeid, outcome="failed", error=tail_of(report))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        mark = item.get_closest_marker("seconds")
        allowed = float(mark.args[0]) if mark else SECONDS_OF_A_TEST
        self.append(test=item.nodeid, kernel=kernel_of(item), since=time.time(), allowed=allowed)
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
    arguments: Sequence[str], record: Path, seconds: float, processes: int = PROCESSES
) -> dict[str, dict[str, Any]]:
    """Runs the tests that these arguments of pytest choose, for `seconds` at most, and returns what
    became of each."""
    deadline = time.monotonic() + on_the_wall(seconds)
    record.unlink(missing_ok=True)
    shutil.rmtree(claims_of(record), ignore_errors=True)
    claims_of(record).mkdir(parents=True)
    with ThreadPoolExecutor(processes) as pool:
        for one in [
            pool.submit(run_group, group, arguments, record, deadline) for group in range(processes)
        ]:
            one.result()
    shutil.rmtree(claims_of(record))
    return results(read(record))


def run_group(group: int, arguments: Sequence[str], record: Path, deadline: float) -> None:
    folder = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-p", "gpu_progress", "-p", "no:cacheprovider"]
    command += ["-v", "-ra", "--tb=short", "--continue-on-collection-errors", *arguments]
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    environment |= {RECORD: str(record), GROUP: str(group)}
    # A pool of compilers to each process would outnumber the cores.
    environment.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    while time.monotonic() < deadline:
        print("$ " + " ".join(command), flush=True)
        process = subprocess.Popen(command, cwd=folder.parents[1], env=environment)
        ended = wait(process, group, record, deadline)
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


def wait(process: subprocess.Popen[bytes], group: int, record: Path, deadline: float) -> str:
    """Waits for pytest, and ends it where a test hangs or the time is over; tells which."""
    while process.poll() is None:
        now = running(read(record), group)
        late = now is not None and time.time() - now["since"] > on_the_wall(now["allowed"])
        if late or time.monotonic() > deadline:
            process.kill()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                print("the process does not end", flush=True)
            return "hung" if late else "out of time"
        time.sleep(0.2)
    return ""
