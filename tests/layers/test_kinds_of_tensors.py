"""Every argument, of every kind of tensor: a right result or a clear error, and the process lives.

`kinds_of_tensors.py` makes the calls, in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "kinds_of_tensors.py"

# Kinds that hold values which an operator can read: given for a tensor of numbers, they are right.
READABLE = {
    *("subclass", "wrapper", "dequantising", "two in one", "negative"),
    *("strided", "permuted"),  # their lengths and batch sizes too, but for wrappers
}

# What says nothing to who gave the tensor. (Of an input or a state that is None, torch's own layers
# say that it has no dim; functional tensors outside of their mode are an assertion of torch.)
UNCLEAR = ("'str' object", "null", "vector::", "has no attribute 'device'")


@pytest.fixture(scope="module")
def outcomes() -> list[dict[str, object]]:
    run = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True)
    lines = run.stdout.splitlines()
    assert run.returncode == 0, (
        f"died at {lines[-1] if lines else 'the start'}: {run.stderr[-2000:]}"
    )
    every_other = [json.loads(line) for line in lines[1::2]]
    assert len(lines) == 2 * len(every_other)
    return every_other


def test_there_are_all(outcomes):
    assert len({(o["cell"], o["argument"], o["kind"], o["trains"]) for o in outcomes}) > 1500
    came = [o for o in outcomes if "error" in o]
    assert {o["kind"] for o in came} >= READABLE


def test_what_is_given_back_is_right(outcomes):
    """Of the kinds that hold the same values; zeros, no tensor and no rows are other values."""
    same = [o for o in outcomes if o["kind"] not in ("zero", "None", "zero-size", "jagged")]
    eighths = [o for o in same if o["argument"] not in ("backward: output", "backward: reserve")]
    same = eighths + [o for o in same if o not in eighths and o["kind"] != "dequantising"]
    assert [o for o in same if "shape" in o or o.get("error", 0) > 1e-5] == []


def test_what_can_be_read_is_taken(outcomes):
    """Wrappers of numbers hold no lengths."""

    def is_refused(o):
        has_numbers = not o["argument"].endswith(("lengths", "batch_sizes"))
        return o["kind"] in READABLE and "raised" in o and has_numbers

    assert [o for o in outcomes if is_refused(o)] == []


def test_errors_are_clear(outcomes):
    def is_unclear(o):
        return "raised" in o and any(text in o["message"] for text in UNCLEAR)

    assert [o for o in outcomes if is_unclear(o)] == []
