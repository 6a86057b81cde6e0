"""Machine code as nvdisasm prints it, with what ptxas wrote into each instruction: how long the
warp stalls, which scoreboards it waits for and sets, and the source line.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s+/\* 0x[0-9a-f]{16} \*/")
_UPPER = re.compile(r"^\s+/\* (0x[0-9a-f]{16}) \*/")
_LABEL = re.compile(r"^(\.L_x_\d+|[$\w]+):$")
_SOURCE = re.compile(r'//## File "([^"]*)", line (\d+)')
_SECTION = re.compile(r"^\s+\.section\s+\.text\.(\S+?),")
_GUARD = re.compile(r"^@(!?)(U?P(?:\d|T))\s+(.*)$")
NO_SCOREBOARD = 7


@dataclass
class Instruction:
    """One of them; scoreboards are numbered 0 to 5, NO_SCOREBOARD is none."""

    address: int
    text: str
    guard: tuple[bool, str] | None  # (is negated, the predicate)
    operation: str  # with its modifiers
    operands: list[str]
    stall: int
    sets_result: int
    sets_operands: int
    waits_for: int  # a bit for each scoreboard
    source: str  # file.cuh:line


@dataclass
class Code:
    """A kernel's instructions, and where its labels stand among them."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


def disassembler() -> str:
    """nvdisasm: of the package nvidia-cuda-nvdisasm, or else the toolkit's."""
    for cuda in sorted(Path(sysconfig.get_paths()["purelib"]).glob("nvidia/cu*/bin/nvdisasm")):
        return str(cuda)
    found = shutil.which("nvdisasm")
    if found is None:
        raise FileNotFoundError(
            "nvdisasm is neither in this environment nor on the PATH: "
            "pip install -r requirements/test.txt"
        )
    return found


def disassemble(cubin: Path) -> list[Code]:
    """All kernels of a cubin."""
    command = [disassembler(), "-c", "-hex", "-g", str(cubin)]
    return parse(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def parse(text: str) -> list[Code]:
    """What nvdisasm -c -hex -g prints."""
    codes: list[Code] = []
    source = ""
    pending: tuple[int, str] | None = None
    for line in text.splitlines():
        if section := _SECTION.match(line):
            codes.append(Code(section[1]))
        elif label := _LABEL.match(line):
            codes[-1].labels[label[1]] = len(codes[-1].instructions)
        elif place := _SOURCE.search(line):
            source = f"{Path(place[1]).name}:{place[2]}"
        elif first := _LINE.match(line):
            pending = (int(first[1], 16), first[2])
        elif pending and (upper := _UPPER.match(line)):
            codes[-1].instructions.append(_instruction(*pending, int(upper[1], 16), source))
            pending = None
    return codes


def _instruction(address: int, text: str, upper: int, source: str) -> Instruction:
    guard = None
    rest = text
    if match := _GUARD.match(text):
        guard, rest = (match[1] == "!", match[2]), match[3]
    operation, _, operands = rest.partition(" ")
    return Instruction(
        address=address,
        text=text,
        guard=guard,
        operation=operation,
        operands=[one.strip().replace(".reuse", "") for one in operands.split(",")]
        if operands.strip()
        else [],
        stall=upper >> 41 & 15,
        sets_result=upper >> 46 & 7,
        sets_operands=upper >> 49 & 7,
        waits_for=upper >> 52 & 63,
        source=source,
    )
