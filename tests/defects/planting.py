"""Defects planted in the text of a kernel, all in one build, of which one at a time is at work."""

from __future__ import annotations

import ctypes
import faulthandler
import itertools
import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from kernel_run import KERNELS

import build

CUDA = build.ROOT / "csrc" / "cuda"

# What the text says, and by the names of defects what it says instead. A statement (its code ends
# with a semicolon; a comment may follow) or an expression; a defect may change several places.
# Where that is not unique, text around <| and |> makes it so. Defects whose names begin with
# "access_" read what is not there, and use nothing of it: only AddressSanitizer sees them.
Places = Sequence[tuple[str, dict[str, str]]]


# By the name of a file: its places, and explanations of why there are no others (see `unplanted`).
Files = Mapping[str, tuple[Places, Mapping[str, str]]]


def names_in(files: Files) -> list[str]:
    return list(
        dict.fromkeys(name for places, _ in files.values() for _, by in places for name in by)
    )


def parts_of(where: str) -> tuple[str, str, str]:
    """What is replaced, between what stands before and after it."""
    if "<|" not in where:
        return "", where, ""
    before, _, rest = where.partition("<|")
    old, _, after = rest.partition("|>")
    return before, old, after


def plant(text: str, places: Places, numbers: Mapping[str, int]) -> str:
    edits = []
    for where, changes in places:
        before, old, after = parts_of(where)
        found = before + old + after
        assert text.count(found) == 1, f"{found!r} stands {text.count(found)} times in the kernel"
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
        start = text.index(found) + len(before)
        edits.append((start, start + len(old), new_text))
    for start, end, new_text in sorted(edits, reverse=True):
        text = text[:start] + new_text + text[end:]
    return text


# ---------------------------------------------------------------------------------------------
# What defects must be planted in: barriers, waits, shared memory, and conditions.

SITE = re.compile(
    r"\b\w*sync\w*(?:<[^>]*>)?\(|\bbar_arrive\(|\bmbarrier_\w+(?:<[^>]*>)?\(|\balloc<"
    r"|\bif \((?!constexpr)| (?:[<>]|[<>!=]=) | && | & 1\b"
)
# Not executed with the kernel, or what the compiler decides.
NO_SITE = re.compile(
    r"^\s*(#|//|template\b|static_assert\b|for \(|(\} else )?if constexpr\b|constexpr\b)"
)


def unplanted(text: str, places: Places, explained: Mapping[str, str]) -> list[str]:
    """The lines of a kernel that hold such a site, but neither a defect nor an explanation: text of
    which such lines are a part, and why there is no defect."""
    covered = set()
    for where in (*(where for where, _ in places), *explained):
        before, old, after = parts_of(where)
        found = before + old + after
        assert found in text, f"{found!r} does not stand in the kernel"
        for match in re.finditer(re.escape(found), text):
            first = text.count("\n", 0, match.start() + len(before))
            last = text.count("\n", 0, match.end() - len(after))
            covered.update(range(first, last + 1))
    return [
        f"{number + 1}: {line.strip()}"
        for number, line in enumerate(text.split("\n"))
        if number not in covered
        and not NO_SITE.match(line)
        and SITE.search(line.partition("//")[0])
    ]


def unplanted_in(files: Files) -> list[str]:
    return [
        f"{name}:{line}"
        for name, (places, explained) in files.items()
        for line in unplanted((CUDA / name).read_text(), places, explained)
    ]


# ---------------------------------------------------------------------------------------------
# Builds.


class DefectiveKernel(build.Emulator):
    """A driver over a kernel with defects, and the program of the same kernel under
    AddressSanitizer."""

    def __init__(self, folder: Path, kernel: str, numbers: Mapping[str, int]) -> None:
        driver = KERNELS / f"{kernel}_driver.cpp"
        defines = ["BIRNN_ONE_INSTANCE"]
        super().__init__(build.shared_library(driver, defines=defines, first_include=folder))
        self.folder = folder
        self.program_source = KERNELS / f"{kernel}_program.cpp"
        self.numbers = numbers

    def plant(self, name: str | None) -> None:
        """Puts the defect of this name to work, or none."""
        number = self.numbers[name] if name else 0
        by_front_end = {"cpp": "birnn_planted_defect", "ptx": "ptx_environment_registers"}
        ctypes.c_int.in_dll(self.library, by_front_end[build.front_end]).value = number

    def run_program(self, name: str | None) -> str:
        """What the sanitizer reports of the program with this defect, or none; empty: nothing."""
        defines = ["BIRNN_ONE_CELL=Cell::kLstm"]
        program = build.program(self.program_source, "address", defines, self.folder)
        number = self.numbers[name] if name else 0
        result = build.run(program, order="skew", planted_defect=number)
        return "" if result.returncode == 0 else result.stdout


class Copies:
    """The sources of csrc/cuda that have defects, in a folder that is searched before csrc."""

    def __init__(self, kernel: str, files: Files) -> None:
        self.kernel = kernel
        self.folder = build.CACHE / "defects" / kernel
        self.numbers = {name: number for number, name in enumerate(names_in(files), 1)}
        self.written: set[Path] = set()
        self.write(
            "planted_defect.h",
            "#pragma once\n#include <cstdint>\n#include <cstdlib>\n"
            "inline int given_defect() {\n"
            '  const char* const number = std::getenv("PLANTED_DEFECT");\n'
            "  return number ? std::atoi(number) : 0;\n}\n"
            "#if defined(__CUDACC__)  // the interpreter of PTX has a register for it\n"
            'extern "C" uint32_t ptx_environment_registers[1];\n'
            "inline bool given = (ptx_environment_registers[0] = given_defect(), true);\n"
            "__host__ __device__ inline int planted_defect_now() {\n"
            "#if defined(__CUDA_ARCH__)\n"
            "  int number;\n"
            '  asm("mov.u32 %0, %%envreg0;" : "=r"(number));\n'
            "  return number;\n"
            "#else\n"
            "  return static_cast<int>(ptx_environment_registers[0]);\n"
            "#endif\n"
            "}\n"
            "#define planted_defect planted_defect_now()\n"
            "#else\n"
            'extern "C" { inline int birnn_planted_defect = given_defect(); }\n'
            "static int& planted_defect = birnn_planted_defect;\n"
            "#endif\n",
        )
        include = '#pragma once\n#include "cuda/planted_defect.h"'
        for name, (places, _) in files.items():
            text = (CUDA / name).read_text().replace("#pragma once", include)
            self.write(name, plant(text, places, self.numbers))

    def write(self, name: str, text: str) -> None:
        target = self.folder / "cuda" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        self.written.add(target)
        if not target.exists() or target.read_text() != text:
            target.write_text(text)

    def kernel_with_defects(self) -> DefectiveKernel:
        # What an earlier list of defects left here would still stand before csrc.
        for path in self.folder.rglob("*.*"):
            if path.is_file() and path not in self.written:
                path.unlink(missing_ok=True)
        return DefectiveKernel(self.folder, self.kernel, self.numbers)


def build_defects(
    kernel: str,
    files: Files,
    cells: Sequence[str] = ("kGru", "kLstm"),
    precisions: Sequence[str] = ("ieee", "fp16"),
) -> DefectiveKernel:
    """The driver of a persistent kernel, with defects in these files; in one instance and a few
    cells, as Cell names them, and precisions alone, to build fast."""
    copies = Copies(kernel, files)
    instances = (CUDA / "persistent" / "instances.h").read_text()
    for cell in {"kTanh", "kRelu", "kGru"} - set(cells):
        instances = instances.replace(f"<Cell, Cell::{cell}>", "<Cell, Cell::kLstm>")
    copies.write("persistent/instances.h", instances)
    for name in {"ieee", "tf32", "fp16", "bf16"} - set(precisions):
        text = (CUDA / "instances" / f"{kernel}_{name}.cu").read_text()
        call = r"Call& call(.*)launch_precision<\w+>\(call\)"
        copies.write(f"instances/{kernel}_{name}.cu", re.sub(call, r"Call&\1kNoInstance", text))
    return copies.kernel_with_defects()


def build_stepwise_defects(files: Files) -> DefectiveKernel:
    """The driver of stepwise, in fp32 alone, to build fast."""
    copies = Copies("stepwise", files)
    text = (copies.folder / "cuda" / "stepwise" / "stepwise.cu").read_text()
    for type_name in ("double", "Half", "BFloat16"):
        text = text.replace(f"_of_cell<{type_name}>", "_of_cell<float>")
    copies.write("stepwise/stepwise.cu", text)
    return copies.kernel_with_defects()


SCHEDULES = (("skew", "random"), ("shuffle", "late"), ("reverse", "eager"), ("skew", "late"))


# Of the sanitizers, and, of what nvcc compiled, the interpreter's own.
ACCESS_REPORT = "AddressSanitizer|runtime error|out of bounds|no address|outside of|misaligned"


def seed_inputs(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)


def assert_caught(
    kernel: DefectiveKernel,
    defect: str,
    cases: Sequence[tuple[Any, ...]],
    check: Callable[..., None],
) -> None:
    """By check(kernel, *case) in one of the cases under one of the schedules, or, of what is only
    accessed, by the sanitizers of a program. Inputs are the same in every run, as the schedules
    are: some defects show for some inputs only, and what was caught once is caught each time."""
    if defect.startswith("access_"):
        report = kernel.run_program(defect)
        assert re.search(ACCESS_REPORT, report), f"{defect} was not caught\n{report[-2000:]}"
        return

    def is_caught() -> bool:
        kernel.plant(defect)
        # First each case under one of the schedules, which is enough for most.
        first = zip(itertools.cycle(SCHEDULES), cases, strict=False)
        schedules = itertools.chain(first, itertools.product(SCHEDULES, cases))
        for seed, ((order, landing), case) in enumerate(schedules):
            kernel.configure(order=order, landing=landing, seed=seed)
            seed_inputs(seed)
            try:
                check(kernel, *case)
            except AssertionError:
                return True
        return False

    assert is_true_in_child(is_caught), f"{defect} was not caught"


def is_true_in_child(run: Callable[[], bool]) -> bool:
    """What run() returns in a process of its own, whose memory it may spoil; one that this kills
    counts as true."""
    child = os.fork()
    if child == 0:
        status = 2
        try:
            faulthandler.disable()
            torch.set_num_threads(1)  # a fork leaves the other threads behind
            status = 0 if run() else 1
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) < 2, "an error of the test itself"
    return os.WEXITSTATUS(status) == 0


def assert_well(
    kernel: DefectiveKernel,
    cases: Sequence[tuple[Any, ...]],
    check: Callable[..., None],
    with_program: bool = True,
) -> None:
    """Without a defect, by the same checks of the same inputs."""
    kernel.plant(None)
    kernel.configure(order="skew", landing="random")
    for seed, case in enumerate(cases):
        seed_inputs(seed)
        check(kernel, *case)
    if with_program:
        assert kernel.run_program(None) == ""
