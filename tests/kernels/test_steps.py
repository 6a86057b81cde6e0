"""The cycles of a step, by the machine code, against the table of them: `make cuda` runs it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

# Last, so that an installed package goes before this tree's: `make cuda` runs in tests/.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks.steps import builds, command

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
TABLE = Path(__file__).with_name("steps.txt")


@needs_nvcc
@pytest.mark.long
def test_steps_take_what_the_table_says() -> None:
    """To the digit: what changes the machine code of a step changes the table, and says so.

    `python -m benchmarks steps --precision fp16 --hidden 256 --batch 32 --table` writes it.
    """
    lines = [line for line in TABLE.read_text().splitlines() if not line.startswith("#")]
    problems = []
    for line in lines:
        cell, precision, hidden, batch = line.split()[:4]
        problem = ("tanh" if cell == "rnn" else cell, precision, int(hidden), int(batch))
        if problem not in problems:
            problems.append(problem)
    played = command.play_all(builds.tree_of(None), problems, command.WHICH)
    assert [one.line() for one in played.values()] == lines
    assert {one.line(): one.spilled for one in played.values() if one.spilled} == {}


@needs_nvcc
@pytest.mark.long
def test_steps_have_no_fence_and_no_local_memory() -> None:
    problems = [("lstm", "fp16", 256, 32)]
    forbidden = {"LDL", "STL", "MEMBAR", "ERRBAR", "CCTL", "CGAERRBAR"}
    for one in command.play_all(builds.tree_of(None), problems, command.WHICH).values():
        for role in one.roles:
            assert forbidden.isdisjoint(role["operations"]), one.line()


@needs_nvcc
@pytest.mark.long
def test_counts_are_those_of_the_division() -> None:
    """Known by hand: a cluster of 8, 4 warps a block, each with 8 units of 8 sequences."""
    from benchmarks.steps import counts

    problems = [("lstm", "fp16", 256, 32)]
    played = command.play_all(builds.tree_of(None), problems, ["inference"])
    (one,) = played.values()
    assert one.call.tiling == (8, 1, 1) and one.call.threads == 4 * 32
    groups = counts.count(one.call, builds.GIVEN[0])
    assert sorted(warp for group in groups for warp in group.warps) == [0, 1, 2, 3]
    for group in groups:
        # Two row tiles, K of 256 in steps of 16; beside them 256 columns of h in matrices of 4 x 8.
        assert group.classes["matrix"] == 2 * 256 / 16 + 256 / 32
        h = 8 * 8 * 2
        assert group.bytes_stored["shared::cluster"] == 8 * h, "to all blocks, its own too"
