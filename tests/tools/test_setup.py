"""What setup.py decides before anything is compiled."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SETUP = Path(__file__).resolve().parents[2] / "setup.py"


@pytest.fixture(scope="module")
def functions() -> Any:
    """Of setup.py, with the constant that they read: setup.py itself would build."""
    wanted = {"DEFAULT_ARCHITECTURES", "default_architectures", "debug_flags"}
    tree = ast.parse(SETUP.read_text())
    parts = [
        node
        for node in tree.body
        if (isinstance(node, ast.FunctionDef) and node.name in wanted)
        or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in wanted)
    ]
    assert len(parts) == len(wanted)

    def fail(sentence: str) -> None:
        raise SystemExit(sentence)

    names: dict[str, Any] = {"re": re, "fail": fail}
    exec(compile(ast.Module(parts, type_ignores=[]), str(SETUP), "exec"), names)
    return SimpleNamespace(**{name: names[name] for name in wanted})


# What nvcc --list-gpu-arch prints, and what is compiled for then.
KNOWN = {
    "12.4": ((50, 60, 70, 75, 80, 86, 87, 89, 90), "8.0+PTX;9.0a"),
    "12.8": ((75, 80, 86, 87, 89, 90, 100, 101, 120), "8.0;9.0a;10.0;12.0+PTX"),
    "13.0": ((75, 80, 86, 87, 88, 89, 90, 100, 110, 103, 120, 121), "8.0;9.0a;10.0;12.0+PTX"),
    "silent": ((), "8.0;9.0a;10.0;12.0+PTX"),
}


@pytest.mark.parametrize("version", KNOWN)
def test_architectures_are_those_that_nvcc_knows(functions: Any, version: str) -> None:
    known, expected = KNOWN[version]
    report = "".join(f"compute_{number}\n" for number in known)
    assert functions.default_architectures(report) == expected


def test_an_nvcc_that_knows_none_of_them_is_named(functions: Any) -> None:
    with pytest.raises(SystemExit, match=r"none of 8\.0, 9\.0a, 10\.0, 12\.0"):
        functions.default_architectures("compute_30\ncompute_35\n")


@pytest.mark.parametrize("cflags", ["-g", "-fsanitize=address -g1", "-O1 -ggdb3", "-g0"])
def test_debug_information_that_the_caller_asks_for_is_kept(functions: Any, cflags: str) -> None:
    assert functions.debug_flags(cflags) == []


@pytest.mark.parametrize("cflags", ["", "-O1", "-fno-g --gcc-toolchain=/opt"])
def test_else_there_is_none(functions: Any, cflags: str) -> None:
    assert functions.debug_flags(cflags) == ["-g0"]
