"""Fresh Python processes, for what a used one cannot tell: peak memory and import time."""

from __future__ import annotations

import os
import subprocess
import sys


class ChildError(Exception):
    """A child process failed."""


def run_python(*arguments: str) -> str:
    """Run this interpreter, with this process's import path, and return what it prints."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ChildError(lines[-1])
    return done.stdout
