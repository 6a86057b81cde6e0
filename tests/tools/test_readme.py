"""The figures that documents show are measured ones. (Their blocks of Python: test_docs.py.)"""

from pathlib import Path

import pytest

from benchmarks.measure.results import ResultsError
from benchmarks.report import readme


@pytest.mark.parametrize(("path", "figures"), readme.shown().items(), ids=["README", "benchmarks"])
def test_the_figures_are_those_of_the_results(path: Path, figures: str) -> None:
    text = path.read_text()
    assert readme.insert(text, figures) == text, (
        f"{path.name} does not show benchmarks/results: run python -m benchmarks readme"
    )


def test_a_readme_without_the_markers_is_refused() -> None:
    with pytest.raises(ResultsError, match="one is missing"):
        readme.insert("no markers", "table")
