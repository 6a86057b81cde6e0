"""Every block of Python in README.md runs as it stands, and its figures are measured ones."""

import re
from pathlib import Path

import pytest

from benchmarks import readme
from benchmarks.results import ResultsError

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_block_runs(block: str) -> None:
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize(("path", "figures"), readme.shown().items(), ids=["README", "benchmarks"])
def test_the_figures_are_those_of_the_results(path: Path, figures: str) -> None:
    text = path.read_text()
    assert readme.insert(text, figures) == text, (
        f"{path.name} does not show benchmarks/results: run python -m benchmarks readme"
    )


def test_a_readme_without_the_markers_is_refused() -> None:
    with pytest.raises(ResultsError, match="one is missing"):
        readme.insert("no markers", "table")
