"""One seed a run: in all processes, with every failure, and at the end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import seeding

pytest_plugins = ("pytester",)

HOOKS = (Path(seeding.__file__)).read_text()
TESTS = """
import pytest
@pytest.mark.parametrize("index", range(6))
def test_one(request, worker_id, index):
    with open("seen.txt", "a") as file:
        file.write(f"{worker_id} {request.config.option.seed}\\n")
    assert index % 3
"""


def test_one_seed_in_all_processes(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(HOOKS)
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_subprocess("-q", "-n", "2", "--dist=each")
    result.assert_outcomes(failed=4, passed=8)
    seen = [line.split() for line in (pytester.path / "seen.txt").read_text().splitlines()]
    assert {worker for worker, _ in seen} == {"gw0", "gw1"}
    (seed,) = {seed for _, seed in seen}
    printed = re.findall(r"inputs: --seed=(\d+)", result.stdout.str())
    assert printed == [seed] * 5  # of each failure, and at the end


def test_a_given_seed_is_taken(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(HOOKS)
    pytester.makepyfile("def test_none(): pass")
    result = pytester.runpytest_inprocess("-q", "--seed=1234")
    assert "inputs: --seed=1234" in result.stdout.str()


def test_runs_differ(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(HOOKS)
    pytester.makepyfile("def test_none(): pass")
    outputs = [pytester.runpytest_inprocess("-q").stdout.str() for _ in range(2)]
    first, second = (re.findall(r"inputs: --seed=(\d+)", output) for output in outputs)
    assert first != second
