"""Every block of Python in README.md runs as it stands, and its figures are measured ones."""

import re
from pathlib import Path

import pytest

from benchmarks import readme
from benchmarks.results import Results, ResultsError

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_block_runs(block: str) -> None:
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_the_speed_table_is_that_of_the_results() -> None:
    assert readme.insert(README, readme.speed(Results.load(readme.SHOWN))) == README, (
        "the README's speed table differs from benchmarks/results/cpu.json: "
        "run python -m benchmarks readme"
    )


def test_a_readme_without_the_markers_is_refused() -> None:
    with pytest.raises(ResultsError, match="one is missing"):
        readme.insert("no markers", "table")
