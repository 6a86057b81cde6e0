"""Other Python processes: fresh ones, for what a used one cannot tell; and neighbours."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

READY = "ready"
PR_SET_PDEATHSIG = 1  # prctl(2)


class ChildError(Exception):
    """A child process failed."""


def run_python(*arguments: str) -> str:
    """Run this interpreter, with this process's import path, and return what it prints."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ChildError(lines[-1])
    return done.stdout


class Neighbour:
    """A process that works beside this one when it is let to; it ends with the context.

    Its program prints ``READY`` once it has begun, then works until it is killed. While it is not
    let to, it is a stopped process (SIGSTOP), which takes no core.
    """

    def __init__(self, *arguments: str) -> None:
        self.arguments = arguments

    def __enter__(self) -> Neighbour:
        self.process = subprocess.Popen(
            [sys.executable, *self.arguments],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for this process, which then ends the other
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()  # which reaches a stopped one too
        self.process.communicate()

    def rest_when_ready(self) -> None:
        """Wait until it has begun, and stop it."""
        assert self.process.stdout is not None
        if self.process.stdout.readline().strip() != READY:
            _, errors = self.process.communicate()
            lines = errors.strip().splitlines() or [f"exit status {self.process.returncode}"]
            raise ChildError(lines[-1])
        self.process.send_signal(signal.SIGSTOP)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Let it work while the block runs."""
        self.process.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGSTOP)


def end_with_parent() -> None:
    """For a neighbour: let Linux end it with its parent, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _environment() -> dict[str, str]:
    """This process's, with its import path."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return {**os.environ, "PYTHONPATH": path}
