"""Every block of Python in the documents runs as it stands, and every command names what exists."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed

from birnn_cuda.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = [*PAGES, ROOT / "examples" / "README.md"]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path: Path, language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(path.read_text()) if name == language]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture
def restored() -> Iterator[None]:
    """Puts back what a block may leave changed in the process."""
    level, handlers = logging.root.level, list(logging.root.handlers)
    yield
    logging.root.setLevel(level)
    logging.root.handlers[:] = handlers
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    torch._dynamo.reset()


# The blocks of the README stand alone each; those of a page follow one another.
PROGRAMS = [(README, number, [text]) for number, text in enumerate(blocks(README, "python"))]
PROGRAMS += [(page, 0, blocks(page, "python")) for page in PAGES[1:] if blocks(page, "python")]


def test_there_are_blocks() -> None:
    assert len(blocks(README, "python")) >= 3
    assert len(PROGRAMS) >= 10


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(
    ("path", "number", "program"), PROGRAMS, ids=[f"{p.name}-{n}" for p, n, _ in PROGRAMS]
)
def test_blocks_run(path: Path, number: int, program: list[str]) -> None:
    namespace = {"__name__": path.stem}
    for block in program:
        exec(compile(block, name_of(path), "exec"), namespace)


def commands(path: Path) -> Iterator[list[str]]:
    """The words of each command in the blocks marked console."""
    for block in blocks(path, "console"):
        lines = block.splitlines()
        with_output = any(line.startswith("$ ") for line in lines)
        for line in lines:
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words and (line.startswith("$ ") or not with_output):
                yield words


def exists(words: list[str]) -> bool:
    """Whether a command names a target, a program or a source that is there."""
    if words[0] == "make":
        return (
            re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE) is not None
        )
    if words[:3] == ["python", "-m", "birnn_cuda"]:
        return main(words[3:]) == 0
    if words[:3] == ["python", "-m", "benchmarks"]:
        return any((ROOT / "benchmarks").rglob(f"{words[3]}.py"))
    if words[:2] == ["pip", "install"]:
        return True
    if words[0] in ("python", "torchrun", "nvcc"):
        files = [word for word in words if word.endswith((".py", ".cu"))]
        return bool(files) and all((ROOT / file).exists() for file in files)
    return False


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_commands_name_what_exists(path: Path) -> None:
    assert [words for words in commands(path) if not exists(words)] == []


def test_a_command_that_names_nothing_is_seen() -> None:
    assert exists(["make", "test"]) and not exists(["make", "tests"])
    assert not exists(["python", "examples/absent.py"])
    assert not exists(["bazel", "build"])


def test_findings_are_listed_and_say_what_they_show() -> None:
    folder = ROOT / "findings"
    listed = re.findall(r"^\| \[?`(\w+)\.sh`", (folder / "README.md").read_text(), re.MULTILINE)
    scripts = sorted(folder.glob("*.sh"))
    assert sorted(listed) == [script.stem for script in scripts]
    for script in scripts:
        first, *lines = script.read_text().splitlines()
        assert first == "#!/usr/bin/env bash", script.name
        assert lines[0].startswith("# ") and "mktemp -d" in script.read_text(), script.name
        assert "==" in script.read_text(), f"{script.name} pins no version"


def test_drawings_are_used_and_have_words_for_those_who_do_not_see_them() -> None:
    text = "".join(page.read_text() for page in PAGES)
    drawings = sorted((ROOT / "docs" / "images").glob("*.svg"))
    assert drawings
    for drawing in drawings:
        assert f"images/{drawing.name}" in text, f"{drawing.name} is not shown"
        assert "<title>" in drawing.read_text() and "<desc>" in drawing.read_text()
