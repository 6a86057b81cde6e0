"""One warp, walked through a kernel: which instructions it executes, and in which cycle.

In order, as the machine does it: an instruction is issued when the stall of the one before is over
and the scoreboards that it waits for are clear. Where lanes part, both ways are walked, one after
the other. A branch on what is not known is taken by every second lane, except into a slow path, one
that calls a function, which is left aside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.steps import latencies
from benchmarks.steps.operations import effect_of
from benchmarks.steps.program import Launch, Program, Shared
from benchmarks.steps.sass import NO_SCOREBOARD, Instruction
from benchmarks.steps.values import (
    LANES,
    Unsupported,
    Value,
    read_integer,
    read_predicate,
)

MOST_INSTRUCTIONS = 1_000_000  # of a warp: more is a loop that was not understood
ALL_LANES = (1 << LANES) - 1
EVERY_SECOND = 0x55555555


@dataclass
class Event:
    """Why a warp stopped."""

    kind: str  # sync, arrive, wait, end
    barrier: int = 0
    threads: int = 0


class Warp:
    """Registers, lanes and clock of a warp. `run` walks until it has to wait for somebody."""

    def __init__(self, program: Program, launch: Launch, shared: Shared, index: int) -> None:
        self.program, self.launch, self.shared, self.index = program, launch, shared, index
        # What is there before anything is written: the code keeps single bits of it.
        self.registers: list[Value] = [0] * 256
        self.uniforms: list[Value] = [0] * 64
        self.predicates: list[Value] = [False] * 8
        self.uniform_predicates: list[Value] = [False] * 8
        self.pc = 0
        self.active = self.alive = ALL_LANES
        self.waiting: list[tuple[int, int]] = []  # (where they go on, lanes)
        self.barriers: dict[str, int] = {}
        self.arrived: dict[str, tuple[int, int]] = {}  # (lanes, where they go on)
        self.calls: list[int] = []
        self.time = 0  # its own
        self.lag = 0  # what it has waited for others
        self.clear_at = [0] * 8
        self.counts = [0] * len(program.actions)
        self.waited = [0] * len(program.actions)
        self.events: list[tuple[str, int]] = []  # (poll or push, the clock)
        self._steps = self._walk()

    @property
    def clock(self) -> int:
        return self.time + self.lag

    def constant(self, at: int, size: int) -> int | None:
        data = self.launch.constants[at : at + size]
        return int.from_bytes(data, "little") if len(data) == size else 0

    def special(self, name: str) -> Value:
        threads = [self.index * LANES + lane for lane in range(LANES)]
        known: dict[str, Value] = {
            "SR_TID.X": threads,
            "SR_LANEID": list(range(LANES)),
            "SR_CTAID.X": 0,
            "SR_CTAID.Y": 0,
            "SR_CTAID.Z": 0,
            "SR_CgaCtaId": 0,
            "SR_CgaSize": self.launch.cluster,
            "SRZ": 0,
            "SR_SWINHI": 0x7F00,
        }
        if name not in known:
            raise Unsupported(name)
        return known[name]

    def write(self, targets: Sequence[tuple[str, int]], values: Sequence[Value], mask: int) -> None:
        """Of the lanes in mask; of a uniform register in any case."""
        files: dict[str, list[Value]] = {
            "R": self.registers,
            "UR": self.uniforms,
            "P": self.predicates,
            "UP": self.uniform_predicates,
        }
        for (kind, index), value in zip(targets, values, strict=True):
            file = files[kind]
            if mask == self.alive or kind[0] == "U":
                file[index] = value
                continue
            before = file[index]
            if before is None and value is None:
                continue
            old = before if type(before) is list else [before] * LANES
            new = value if type(value) is list else [value] * LANES
            file[index] = [new[i] if mask >> i & 1 else old[i] for i in range(LANES)]

    def run(self) -> Event:
        """Go on to the next event."""
        return next(self._steps)

    def _walk(self) -> Iterator[Event]:
        program = self.program
        instructions, actions, kinds = program.code.instructions, program.actions, program.kinds
        for _ in range(MOST_INSTRUCTIONS):
            i = self.pc
            ins = instructions[i]
            ready = self.time
            if ins.waits_for:
                for board in range(6):
                    if ins.waits_for >> board & 1 and self.clear_at[board] > ready:
                        ready = self.clear_at[board]
            self.waited[i] += ready - self.time
            self.time = ready
            self.counts[i] += 1
            mask, is_sure = self._mask(program.guards[i])
            kind = kinds[i]
            action = actions[i]
            self.pc = i + 1
            if action is not None:
                if mask:
                    action(self, mask)
                    self._set_scoreboards(i, ins)
                    if not is_sure:
                        self._forget(ins)
                    event = self._event_of(kind, ins)
                    if event is not None:
                        self.time += max(ins.stall, 1)
                        yield event
                        continue
                if kind == "DEPBAR":
                    self.time += latencies.DEPENDENCY_BARRIER
            elif kind == "BAR":
                self._set_scoreboards(i, ins)
                self.time += max(ins.stall, 1)
                if mask:
                    yield self._barrier(ins)
                continue
            else:
                taken = self._control(i, ins, kind, mask, is_sure)
                if self.alive == 0:
                    yield Event("end")
                    return
                self.time += latencies.TAKEN_BRANCH if taken else 0
            self.time += max(ins.stall, 1)
        at = instructions[self.pc]
        raise Unsupported(f"a loop without an end at {at.source}: {at.text}")

    def _mask(self, guard: Any) -> tuple[int, bool]:
        if guard is None:
            return self.active, True
        value = guard(self)
        if value is True or value is None:
            return self.active, value is True
        if value is False:
            return 0, True
        mask, is_sure = 0, True
        for lane in range(LANES):
            if self.active >> lane & 1 and value[lane] is not False:
                mask |= 1 << lane
                is_sure &= value[lane] is not None
        return mask, is_sure

    def _forget(self, ins: Instruction) -> None:
        """The results of what may not have been executed."""
        effect = effect_of(ins)
        if effect is not None:
            self.write(effect[0], [None] * len(effect[0]), self.active)

    def _set_scoreboards(self, i: int, ins: Instruction) -> None:
        latency = self.program.latency[i]
        if ins.sets_result != NO_SCOREBOARD:
            board = ins.sets_result
            self.clear_at[board] = max(self.clear_at[board], self.time + latency.result)
        if ins.sets_operands != NO_SCOREBOARD:
            board = ins.sets_operands
            self.clear_at[board] = max(self.clear_at[board], self.time + latency.operands)

    def _event_of(self, kind: str, ins: Instruction) -> Event | None:
        if kind == "SYNCS" and "TRYWAIT" in ins.operation:
            self.predicates[int(ins.operands[0][1:])] = True
            return Event("wait")
        if kind == "STAS" or (kind == "STG" and ".STRONG" in ins.operation):
            self.events.append(("push", self.clock))
        if kind == "LDG" and ".STRONG" in ins.operation:
            self.events.append(("poll", self.clock))
        return None

    def _barrier(self, ins: Instruction) -> Event:
        numbers = [read_integer(one)(self) for one in ins.operands]
        values = [one[0] if type(one) is list else one for one in numbers]
        if any(value is None for value in values):
            raise Unsupported(ins.text)
        # In a register, the number and the threads are packed in one.
        if ins.operands[0].startswith(("R", "UR")):
            packed = values[0]
            barrier, threads = packed & 15, packed >> 16 & 0xFFF
        else:
            barrier = values[0]
            threads = values[1] if len(values) > 1 else self.launch.threads
        kind = "arrive" if ins.operation.startswith("BAR.ARV") else "sync"
        return Event(kind, barrier, threads or self.launch.threads)

    # ---- control

    def _control(self, i: int, ins: Instruction, kind: str, mask: int, is_sure: bool) -> bool:
        """Whether a branch was taken."""
        if kind == "BRA":
            return self._branch(i, ins, mask, is_sure)
        if kind == "BSSY":
            self.barriers[ins.operands[0]] = self.active
        elif kind == "BSYNC":
            self._meet(ins.operands[0], i + 1)
        elif kind == "BREAK":
            self.barriers[ins.operands[0]] &= ~mask
        elif kind == "EXIT":
            self.alive &= ~mask
            self.active &= ~mask
            if self.active == 0:
                self._go_elsewhere()
        elif kind == "CALL":
            self.calls.append(i + 1)
            self.pc = self.program.target(ins)
            return True
        elif kind == "RET":
            self.pc = self.calls.pop()
            return True
        else:
            raise Unsupported(ins.text)
        return False

    def _branch(self, i: int, ins: Instruction, mask: int, is_sure: bool) -> bool:
        if ".DIV" in ins.operation:
            return False  # taken by a warp whose lanes have parted
        for operand in ins.operands[:-1]:
            also, known = self._mask(read_predicate(operand))
            mask, is_sure = mask & also, is_sure and known
        target = self.program.target(ins)
        if not is_sure:
            if self.program.is_slow_path(target):
                mask = 0
            elif not self.program.is_slow_path(i + 1):
                mask &= EVERY_SECOND
        if mask == 0:
            return False
        if mask == self.active:
            self.pc = target
            return True
        self.waiting.append((target, mask))
        self.active &= ~mask
        return False

    def _meet(self, barrier: str, after: int) -> None:
        lanes = self.arrived.get(barrier, (0, after))[0] | self.active
        self.arrived[barrier] = (lanes, after)
        if not self._release(barrier):
            self.active = 0
            self._go_elsewhere()

    def _release(self, barrier: str) -> bool:
        lanes, after = self.arrived[barrier]
        wanted = self.barriers[barrier] & self.alive
        if lanes & wanted != wanted or not lanes & self.alive:
            return False
        del self.arrived[barrier]
        self.active, self.pc = lanes & self.alive, after
        return True

    def _go_elsewhere(self) -> None:
        """These lanes are done here: others go on."""
        if self.alive == 0:
            return
        while self.waiting:
            self.pc, lanes = self.waiting.pop()
            self.active = lanes & self.alive
            if self.active:
                return
        for barrier in list(self.arrived):
            if self._release(barrier):
                return
        raise Unsupported("lanes that wait for each other")
