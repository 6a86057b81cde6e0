"""The figures that documents show are measured ones. (Their blocks of Python: test_docs.py.)"""

import html
import re
from pathlib import Path

import pytest

from benchmarks.measure.results import ResultsError
from benchmarks.report import overview, readme

SHOWN = readme.shown()


@pytest.mark.parametrize(("path", "figures"), SHOWN.items(), ids=[path.name for path in SHOWN])
def test_the_figures_are_those_of_the_results(path: Path, figures: str) -> None:
    text = path.read_text()
    assert readme.insert(text, figures) == text, (
        f"{path.name} does not show benchmarks/results: run python -m benchmarks readme"
    )


def test_a_readme_without_the_markers_is_refused() -> None:
    with pytest.raises(ResultsError, match="one is missing"):
        readme.insert("no markers", "table")


@pytest.mark.parametrize("theme", [theme.name for theme in overview.THEMES])
def test_the_picture_is_of_the_results(theme: str) -> None:
    """By its description: how a version of matplotlib draws them may differ."""
    text = html.unescape(readme.picture_path(theme).read_text(encoding="utf-8"))
    described = overview.description(readme.on_processors())
    assert described.count(" B=") >= 36
    assert described in text, "the picture is of other results: run python -m benchmarks readme"
    for path in (readme.README, readme.README_ZH):
        assert f"docs/images/{readme.picture_path(theme).name}" in path.read_text(encoding="utf-8")


def test_the_picture_has_a_point_for_each_result() -> None:
    shown = readme.on_processors()
    drawn = list(overview.points(shown))
    text = overview.svg(shown, overview.THEMES[0])
    # Each point is drawn by one use of its marker; ticks and the legend are none of them.
    colours = "|".join(overview.THEMES[0].cells)
    assert len(re.findall(rf"<use [^>]*fill: (?:{colours})", text)) == len(drawn) + 3


def test_both_readmes_hold_the_same_code_and_figures() -> None:
    english, chinese = (
        path.read_text(encoding="utf-8") for path in (readme.README, readme.README_ZH)
    )
    block = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
    assert block.findall(english) == block.findall(chinese)
    assert len(block.findall(english)) >= 6
    headings = re.compile(r"^#+ ", re.MULTILINE)
    code = re.compile(r"`[^`\n]+`")
    for pattern in (headings, re.compile(r"\]\((?!README|#)[^)]+\)")):
        assert pattern.findall(block.sub("", english)) == pattern.findall(block.sub("", chinese))
    one, other = (set(code.findall(block.sub("", text))) for text in (english, chinese))
    assert one == other
    figures = re.compile(r"\d+\.\d\d")
    begin, end = readme.BEGIN, readme.END
    tables = [text.partition(begin)[2].partition(end)[0] for text in (english, chinese)]
    assert figures.findall(tables[0]) == figures.findall(tables[1]) != []


def test_the_readme_can_be_read_in_one_sitting() -> None:
    for path in (readme.README, readme.README_ZH):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 200
