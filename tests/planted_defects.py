"""Defects planted in the text of a kernel, all in one build, of which one at a time is at work."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path

from test_stepwise import KERNELS, ROOT, build

CUDA = ROOT / "csrc" / "cuda"

# What the text says, and by the names of defects what it says instead. A statement (its code ends
# with a semicolon; a comment may follow) or an expression; a defect may change several places.
# Where that is not unique, text around <| and |> makes it so.
Places = Sequence[tuple[str, dict[str, str]]]


def names_of(places: Places) -> list[str]:
    return list(dict.fromkeys(name for _, changes in places for name in changes))


def plant(text: str, places: Places, numbers: dict[str, int]) -> str:
    for where, changes in places:
        found = where.replace("<|", "").replace("|>", "")
        assert text.count(found) == 1, f"{found!r} stands {text.count(found)} times in the kernel"
        before, old, after = ("", where, "")
        if "<|" in where:
            before, _, rest = where.partition("<|")
            old, _, after = rest.partition("|>")
        code, mark, comment = old.partition("  //")
        if code.endswith(";"):
            branches = [
                f"if (planted_defect == {numbers[name]}) {{ {new} }} else "
                for name, new in changes.items()
            ]
            new_text = f"{''.join(branches)}{{ {code} }}{mark}{comment}"
        else:
            choices = [
                f"planted_defect == {numbers[name]} ? ({new}) : " for name, new in changes.items()
            ]
            new_text = f"({''.join(choices)}({old}))"
        text = text.replace(found, before + new_text + after)
    return text


class DefectiveEmulator(build.Emulator):
    def __init__(self, path: Path, numbers: dict[str, int]) -> None:
        super().__init__(path)
        self.numbers = numbers

    def plant(self, name: str | None) -> None:
        """Puts the defect of this name to work, or none."""
        number = self.numbers[name] if name else 0
        ctypes.c_int.in_dll(self.library, "birnn_planted_defect").value = number


def build_defects(
    kernel: str,
    precision: str,
    places: Places,
    cells: Sequence[str],
    headers: Mapping[str, Places] | None = None,
) -> DefectiveEmulator:
    """The driver of `kernel` in one precision and one instance over a copy of its text with all
    defects, and of these headers that it includes, with theirs; `cells` alone, as Cell names them,
    to build fast."""
    headers = headers or {}
    folder = build.CACHE / "defects" / kernel
    (folder / "instances").mkdir(parents=True, exist_ok=True)
    everywhere = [*places, *(place for theirs in headers.values() for place in theirs)]
    numbers = {name: number for number, name in enumerate(names_of(everywhere), 1)}

    def copy(source: Path, text: str | None = None) -> None:
        target = folder / source.relative_to(CUDA if source.is_relative_to(CUDA) else KERNELS)
        text = source.read_text() if text is None else text
        if not target.exists() or target.read_text() != text:
            target.write_text(text)

    kernel_text = plant((CUDA / f"{kernel}.cuh").read_text(), places, numbers)
    variable = 'extern "C" { inline int birnn_planted_defect = 0; }\n'
    # The names of the headers, so that a build from before they were planted counts as old.
    reference = "static int& planted_defect = birnn_planted_defect;"
    reference += f"  // {' '.join([kernel, *headers])}\n"
    copy(
        CUDA / f"{kernel}.cuh",
        kernel_text.replace("#pragma once", f"#pragma once\n{variable}{reference}"),
    )
    for name, theirs in headers.items():
        copy(CUDA / name, plant((CUDA / name).read_text(), theirs, numbers))
    instances = (CUDA / "instances.h").read_text()
    for cell in {"kTanh", "kRelu", "kGru"} - set(cells):
        instances = instances.replace(f"<Cell, Cell::{cell}>", "<Cell, Cell::kLstm>")
    copy(CUDA / "instances.h", instances)
    for name in (f"{kernel}.cu", f"{kernel}_launch.cuh", f"instances/{kernel}_{precision}.cu"):
        copy(CUDA / name)
    driver = KERNELS / f"{kernel}_driver.cpp"
    copy(driver)
    defines = [f"{kernel.upper()}_{precision.upper()}_ALONE", "BIRNN_ONE_INSTANCE"]
    return DefectiveEmulator(build.shared_library(folder / driver.name, defines=defines), numbers)
