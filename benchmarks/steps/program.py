"""A kernel made ready to be walked through: its arguments, its memory, what instructions do."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.steps import latencies
from benchmarks.steps.operations import effect_of
from benchmarks.steps.sass import Code, Instruction
from benchmarks.steps.values import (
    LANES,
    MASK,
    Unsupported,
    address,
    each,
    read_integer,
    read_predicate,
    register,
)

if TYPE_CHECKING:
    from benchmarks.steps.warp import Warp

PARAMETERS = 0x210  # where the parameters of a kernel begin among the constants
CLUSTER_SIZE = 0x188  # where the blocks of a cluster stand
WORKSPACE = 16 << 20  # where calls.cpp has it, behind all else


@dataclass
class Launch:
    """What a kernel is told: constants by their bytes, block 0 of the launch."""

    constants: bytes
    threads: int
    cluster: int

    @staticmethod
    def of(parameters: bytes, threads: int, blocks: int, cluster: int) -> Launch:
        constants = bytearray(PARAMETERS)
        struct.pack_into("<6I", constants, 0, threads, 1, 1, blocks, 1, 1)
        struct.pack_into("<I", constants, CLUSTER_SIZE, cluster)
        return Launch(bytes(constants) + parameters, threads, cluster)


class Shared:
    """A block's shared memory, by words."""

    def __init__(self) -> None:
        self.words: dict[int, int | None] = {}

    def load(self, at: int, size: int) -> int | None:
        word = self.words.get(at & ~3)
        if word is None:
            return None
        return word >> 8 * (at & 3) & (1 << 8 * size) - 1

    def store(self, at: int, size: int, value: int | None) -> None:
        if size == 4:
            self.words[at] = value
            return
        word, shift = self.words.get(at & ~3), 8 * (at & 3)
        if word is None or value is None:
            self.words[at & ~3] = None
            return
        mask = (1 << 8 * size) - 1 << shift
        self.words[at & ~3] = word & ~mask | value << shift & mask


Action = Callable[["Warp", int], None]


class Program:
    """A kernel made ready to be walked through."""

    def __init__(self, code: Code) -> None:
        self.code = code
        self.latency = [latencies.latency_of(ins.operation) for ins in code.instructions]
        self.guards = [
            read_predicate(("!" if ins.guard[0] else "") + ins.guard[1]) if ins.guard else None
            for ins in code.instructions
        ]
        self.actions = [self._action(i) for i in range(len(code.instructions))]
        self.kinds = [ins.operation.split(".")[0] for ins in code.instructions]
        self.boundaries = set(code.labels.values())

    def target(self, ins: Instruction) -> int:
        match = re.search(r"`\((.*)\)", ins.text)
        if match is None:
            raise Unsupported(ins.text)
        return self.code.labels[match[1]]

    def is_slow_path(self, at: int) -> bool:
        """Whether what begins here calls a function before it branches."""
        for i in range(at, len(self.code.instructions)):
            if self.kinds[i] == "CALL":
                return True
            if self.kinds[i] in ("BRA", "EXIT", "RET", "BSYNC") or (
                i > at and i in self.boundaries
            ):
                return False
        return False

    def _action(self, i: int) -> Action | None:
        ins = self.code.instructions[i]
        effect = effect_of(ins)
        if effect is not None:
            targets, compute = effect

            def act(warp: Warp, mask: int) -> None:
                warp.write(targets, compute(warp), mask)

            return act
        memory = _MEMORY.get(ins.operation.split(".")[0])
        return memory(ins) if memory else None


# ---- memory


def _size(operation: str) -> tuple[int, int]:
    """Bytes of an access and of its parts."""
    for word, size in ((".128", 16), (".64", 8), (".U8", 1), (".S8", 1), (".U16", 2), (".S16", 2)):
        if word in operation:
            return size, min(size, 4)
    return 4, 4


def _registers(text: str, count: int) -> list[tuple[str, int]]:
    first = register(text)
    return [(first[0], first[1] + i) for i in range(count)] if first else []


def _load_shared(ins: Instruction) -> Action:
    size, part = _size(ins.operation)
    targets = _registers(ins.operands[0], max(size // 4, 1))
    where = address(ins.operands[1])

    def act(warp: Warp, mask: int) -> None:
        at = where(warp)
        values = [
            each(lambda a, i=i: warp.shared.load(a + 4 * i, part), at) for i in range(len(targets))
        ]
        warp.write(targets, values, mask)

    return act


def _store_shared(ins: Instruction) -> Action:
    size, part = _size(ins.operation)
    where = address(ins.operands[0])
    values = [read_integer(ins.operands[1], 0)]
    if size > 4:
        first = register(ins.operands[1])
        values = [
            read_integer(f"{first[0]}{first[1] + i}" if first else "RZ") for i in range(size // 4)
        ]

    def act(warp: Warp, mask: int) -> None:
        at = where(warp)
        for i, read in enumerate(values):
            value = read(warp)
            if at is None:
                warp.shared.words.clear()
                return
            for lane in range(LANES):
                if mask >> lane & 1:
                    to = at[lane] if type(at) is list else at
                    what = value[lane] if type(value) is list else value
                    if to is not None:
                        warp.shared.store(to + 4 * i, part, what)
                    if type(at) is not list and type(value) is not list:
                        break

    return act


def _copy_to_shared(ins: Instruction) -> Action:
    where = address(ins.operands[0])
    words = max(_size(ins.operation)[0] // 4, 1)

    def act(warp: Warp, mask: int) -> None:
        at = where(warp)
        if at is None:
            return
        for lane in range(LANES):
            if mask >> lane & 1:
                to = at[lane] if type(at) is list else at
                for i in range(words):
                    warp.shared.words[to + 4 * i] = None

    return act


def _load_global(ins: Instruction) -> Action:
    """What a poll finds is there: all bits are set in an epoch that nobody waits for. In the
    workspace they are too: if resets are given, each sequence begins anew at every step."""
    targets = _registers(ins.operands[0], max(_size(ins.operation)[0] // 4, 1))
    match = re.search(r"\[(U?R[^\]]*)\]$", ins.operands[-1])  # desc[UR4][R2.64+0x10]
    where = address(match[1]) if match else lambda warp: None
    is_poll = ".STRONG" in ins.operation

    def act(warp: Warp, mask: int) -> None:
        at = where(warp)
        lanes = at if type(at) is list else [at] * LANES
        reached = [lanes[i] for i in range(LANES) if mask >> i & 1]
        is_workspace = all(lane is not None and lane >= WORKSPACE for lane in reached)
        value = MASK if is_poll or is_workspace else None
        warp.write(targets, [value] * len(targets), mask)

    return act


def _nothing(ins: Instruction) -> Action:
    return lambda warp, mask: None


_MEMORY: dict[str, Callable[[Instruction], Action]] = {
    "LDS": _load_shared,
    "STS": _store_shared,
    "LDGSTS": _copy_to_shared,
    **dict.fromkeys(("LDG", "LD", "LDL"), _load_global),
    **dict.fromkeys(
        (
            "STG",
            "ST",
            "STL",
            "STAS",
            "NOP",
            "YIELD",
            "MEMBAR",
            "FENCE",
            "ERRBAR",
            "CGAERRBAR",
            "CCTL",
            "CCTLL",
            "LDGDEPBAR",
            "DEPBAR",
            "UCGABAR_ARV",
            "UCGABAR_WAIT",
            "SYNCS",
            "RED",
            "ENDCOLLECTIVE",
            "PREFETCH",
            "NANOSLEEP",
            "BPT",
            "WARPSYNC",
            "UBLKPF",
            "ACQBULK",
        ),
        _nothing,
    ),
}
