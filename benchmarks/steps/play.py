"""One block of a kernel, played: the cycles of a step, and where they go.

A warp's own time is what it would take if nobody ever kept it waiting: its serial cycles. Warps
meet at the barriers of the block. At a cluster's mbarrier all go on together, later than any of
them comes, so that the chain from wait to last push is that of a block that is on time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

from benchmarks.steps.program import Launch, Program, Shared
from benchmarks.steps.sass import Code
from benchmarks.steps.warp import Event, Warp

# An exchange so long that no warp comes too late to the next wait.
LATE = 100_000
FEW_STEPS, MORE_STEPS = 6, 8  # their difference is two steps of a loop that has found its pace


class Deadlock(Exception):
    """Warps that wait for each other for ever."""


@dataclass
class Role:
    """Warps that do the same in a step, of the block's."""

    warps: list[int]
    serial: float  # cycles a step
    instructions: dict[str, float]  # a step, by class
    waits: list[tuple[str, float]]  # (source line, cycles a step), longest first
    operations: dict[str, float]


@dataclass
class Step:
    """A step of a block."""

    roles: list[Role]
    chain: float | None  # from the wait to the last push; None without an exchange

    @property
    def serial(self) -> float:
        return max(role.serial for role in self.roles)


CLASSES = (
    ("matrix", ("HMMA",)),
    ("shared", ("LDS", "STS", "LDSM", "LDGSTS")),
    ("global", ("LDG", "STG", "LD", "ST")),
    ("exchange", ("STAS", "SYNCS", "BAR")),
    ("function", ("MUFU",)),
    ("float", ("FADD", "FMUL", "FFMA", "FSEL", "FSETP", "FMNMX", "HADD2", "F2F", "F2FP", "FCHK")),
    ("branch", ("BRA", "BSSY", "BSYNC", "EXIT", "CALL", "RET", "BREAK", "WARPSYNC")),
    ("constant", ("LDC", "ULDC", "S2R", "S2UR", "CS2R")),
    ("idle", ("NOP", "YIELD", "DEPBAR", "LDGDEPBAR")),
)
_CLASS = {kind: name for name, kinds in CLASSES for kind in kinds}
OTHER_CLASS = "integer"


class _Block:
    def __init__(self, program: Program, launch: Launch) -> None:
        shared = Shared()
        self.warps = [Warp(program, launch, shared, i) for i in range(launch.threads // 32)]
        self.chains: list[int] = []
        self._play()

    def _play(self) -> None:
        stopped: dict[int, Event] = {}
        arrivals: dict[int, list[tuple[int, int, bool]]] = {}  # barrier: (warp, clock, it waits)
        ready = list(range(len(self.warps)))
        last_release = 0
        while True:
            while ready:
                index = ready.pop(0)
                warp = self.warps[index]
                event = warp.run()
                if event.kind in ("sync", "arrive"):
                    waits = event.kind == "sync"
                    meeting = arrivals.setdefault(event.barrier, [])
                    meeting.append((index, warp.clock, waits))
                    if not waits:
                        ready.append(index)
                    if len(meeting) * 32 == event.threads:
                        latest = max(clock for _, clock, _ in meeting)
                        for other, _, was_waiting in arrivals.pop(event.barrier):
                            if was_waiting:
                                self._delay(other, latest)
                                ready.append(other)
                else:
                    stopped[index] = event
            waiting = [index for index, event in stopped.items() if event.kind == "wait"]
            if not waiting:
                break
            pushes = [clock for warp in self.warps for kind, clock in warp.events if kind == "push"]
            release = max([last_release, *pushes]) + LATE
            if pushes and last_release and max(pushes) > last_release:
                self.chains.append(max(pushes) - last_release)
            last_release = release
            for index in waiting:
                del stopped[index]
                self._delay(index, release)
            ready = sorted(waiting)
        if arrivals or len(stopped) < len(self.warps):
            raise Deadlock(f"{self.warps[0].program.code.name}: at barriers {sorted(arrivals)}")

    def _delay(self, index: int, until: int) -> None:
        warp = self.warps[index]
        warp.lag += max(0, until - warp.clock)


def _poll_chains(warps: list[Warp]) -> list[int]:
    """From the first poll of a step to its last push, where blocks poll."""
    chains = []
    for warp in warps:
        began: int | None = None
        pushed: int | None = None
        for kind, clock in warp.events:
            if kind == "poll":
                if pushed is not None and began is not None:
                    chains.append(pushed - began)
                    began = None
                pushed = None
                began = clock if began is None else began
            elif began is not None:
                pushed = clock
    return chains


def play(code: Code, few: Launch, more: Launch) -> Step:
    """A step, as what MORE_STEPS take beyond FEW_STEPS."""
    program = Program(code)
    first, second = _Block(program, few), _Block(program, more)
    steps = MORE_STEPS - FEW_STEPS
    roles: dict[tuple[int, ...], Role] = {}
    for before, after in zip(first.warps, second.warps, strict=True):
        counts = tuple(b - a for a, b in zip(before.counts, after.counts, strict=True))
        waited = [b - a for a, b in zip(before.waited, after.waited, strict=True)]
        serial = float(Fraction(after.time - before.time, steps))
        key = (after.time - before.time, *counts)
        if key in roles:
            roles[key].warps.append(after.index)
            continue
        classes: Counter[str] = Counter()
        operations: Counter[str] = Counter()
        lines: Counter[str] = Counter()
        for ins, kind, count, wait in zip(
            code.instructions, program.kinds, counts, waited, strict=True
        ):
            classes[_CLASS.get(kind, OTHER_CLASS)] += count
            operations[kind] += count
            lines[ins.source] += wait
        roles[key] = Role(
            warps=[after.index],
            serial=serial,
            instructions={name: count / steps for name, count in sorted(classes.items()) if count},
            waits=[
                (line, wait / steps)
                for line, wait in sorted(lines.items(), key=lambda one: (-one[1], one[0]))
                if wait > 0
            ],
            operations={name: count / steps for name, count in operations.items() if count},
        )
    chain = None
    if second.chains:
        chain = sum(second.chains[3:5]) / 2
    elif polls := _poll_chains(second.warps):
        chain = float(max(polls))
    return Step(list(roles.values()), chain)
