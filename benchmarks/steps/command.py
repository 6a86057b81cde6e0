"""python -m benchmarks steps: the cycles of a step, by the machine code. Needs nvcc, and no GPU.

Compiles the instances that the plan picks on an H100, reads what ptxas made of them, and plays one
block through its step. Per shape and pass:

  serial   cycles that the busiest warp needs for a step if it never waits for anybody
  chain    from the wait for the exchange to the last push; a step takes about the longer of serial
           and chain + 265
  counts   with --counts: what each warp of a block executes in a step, by an interpreter of PTX:
           instructions by class, bytes of 32 lanes by state space
  waits    with --roles: instructions by class, and the five longest waits, by source line

Good to some 20 %, as long as no GPU has measured what latencies.py believes; repeatable to the
digit, and the same source of two revisions is judged by the same beliefs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measure.cases import FilterError
from benchmarks.measure.terminal import Terminal
from benchmarks.steps import builds, play, sass
from benchmarks.steps.builds import CACHE, ROOT, Call
from benchmarks.steps.program import Launch

TABLE = ROOT / "tests" / "kernels" / "steps.txt"
CELLS = ("rnn", "gru", "lstm")
PRECISIONS = ("fp16", "bf16", "tf32", "ieee")
MAIN_PRECISIONS = ("fp16", "bf16", "tf32")
HIDDEN_SIZES = (128, 256, 512)
BATCH_SIZES = (1, 8, 32)
WHICH = ("inference", "training", "backward")
NUM_WAITS = 5
STEPWISE = "stepwise"
HEADER = (
    "# Cycles of a step by the machine code (python -m benchmarks steps), nvcc 13.0 for sm_90a:\n"
    "# cell, precision, H, B, pass, kernel, blocks of a cluster, registers, serial, chain\n"
)

Problem = tuple[str, str, int, int]
Key = tuple[str, str, int, int, str]


class Played:
    """What a call's step comes to, and the instance's resources."""

    def __init__(self, call: Call, data: dict[str, Any]) -> None:
        self.call = call
        self.roles: list[dict[str, Any]] = data["roles"]
        self.chain: float | None = data["chain"]
        self.registers: int = data["registers"]
        self.spilled: int = data["spilled"]

    @property
    def serial(self) -> float:
        return float(max(role["serial"] for role in self.roles))

    def line(self) -> str:
        """Of the table."""
        cell, precision, hidden, batch = self.call.problem
        chain = "-" if self.chain is None else f"{self.chain:.1f}"
        return (
            f"{_shown(cell)} {precision} {hidden} {batch} {self.call.which} {self.call.kernel} "
            f"{self.call.cluster} {self.registers} {self.serial:.1f} {chain}"
        )


def _shown(cell: str) -> str:
    return "rnn" if cell == "tanh" else cell


def _key(call: Call) -> Key:
    return (*call.problem, call.which)


def play_all(
    tree: Path,
    problems: Sequence[Problem],
    which: Sequence[str],
    division: Sequence[int] | None = None,
    given: str = builds.GIVEN[0],
) -> dict[Key, Played]:
    """The steps of a tree; those that run stepwise are left out, as are divisions (calls_of's) that
    do not fit."""
    few = builds.calls_of(tree, problems, play.FEW_STEPS, division, given)
    more = builds.calls_of(tree, problems, play.MORE_STEPS, division, given)
    found = {}
    for short, long in zip(few, more, strict=True):
        if short.kernel != STEPWISE and short.which in which:
            found[_key(short)] = _played(tree, short, long)
    return found


def _played(tree: Path, short: Call, long: Call) -> Played:
    cubin = builds.compile_instance(tree, short)
    here = [path for path in sorted(Path(__file__).parent.glob("*.py")) if path.name in _PLAYER]
    key = builds.digest([*here, cubin], repr((short, long)))
    kept = CACHE / "played" / f"{key}.json"
    if not kept.exists():
        kernels = [code for code in sass.disassemble(cubin) if code.instructions]
        launches = [
            Launch.of(call.parameters, call.threads, call.blocks, call.cluster)
            for call in (short, long)
        ]
        step = play.play(kernels[0], *launches)
        registers, spilled = builds.resources(cubin)
        data = {**asdict(step), "registers": registers, "spilled": spilled}
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(data))
    return Played(short, json.loads(kept.read_text()))


_PLAYER = {path.name for path in Path(__file__).parent.glob("*.py")} - {"builds.py", "command.py"}


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


# ---- the command line


def add_parser(commands: Any) -> None:
    """Declare the sub-command."""
    parser = commands.add_parser(
        "steps",
        help="the cycles of a step by the machine code: needs nvcc, and no GPU",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(execute=execute)
    parser.add_argument("--cell", nargs="+", choices=CELLS, default=CELLS)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=MAIN_PRECISIONS)
    parser.add_argument("--hidden", nargs="+", type=int, default=HIDDEN_SIZES, metavar="H")
    parser.add_argument("--batch", nargs="+", type=int, default=BATCH_SIZES, metavar="B")
    parser.add_argument("--pass", nargs="+", choices=WHICH, default=WHICH, dest="which")
    parser.add_argument(
        "--division",
        nargs=3,
        type=int,
        metavar=("BLOCKS", "TILES", "K_SPLIT"),
        help="of a cluster, in place of the plan's",
    )
    parser.add_argument(
        "--given", choices=builds.GIVEN, default=builds.GIVEN[0], help="beside the other operands"
    )
    parser.add_argument("--roles", action="store_true", help="what the warps do, and wait for")
    parser.add_argument("--counts", action="store_true", help="what they execute, by running it")
    parser.add_argument("--against", metavar="REV", help="another revision, side by side")
    parser.add_argument("--table", action="store_true", help=f"write {TABLE.relative_to(ROOT)}")


def execute(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Print what was asked for, return the exit status."""
    problems = [
        ("tanh" if cell == "rnn" else cell, precision, hidden, batch)
        for precision, cell, hidden, batch in itertools.product(
            arguments.precision, arguments.cell, arguments.hidden, arguments.batch
        )
    ]
    try:
        tree = builds.tree_of(None)
        played = play_all(tree, problems, arguments.which, arguments.division, arguments.given)
        before = None
        if arguments.against is not None:
            before = play_all(
                builds.tree_of(arguments.against), problems, arguments.which, arguments.division
            )
    except (builds.Unavailable, FileNotFoundError) as error:
        raise FilterError(str(error)) from error
    if arguments.table:
        TABLE.write_text(HEADER + "".join(f"{one.line()}\n" for one in played.values()))
    if before is None:
        for one in played.values():
            terminal.line(one.line() + (f" spills {one.spilled}" if one.spilled else ""))
            if arguments.roles:
                _show_roles(one, terminal)
            if arguments.counts:
                _show_counts(one, arguments.given, terminal)
    else:
        _show_both(played, before, arguments, terminal)
    return 0


def _show_roles(one: Played, terminal: Terminal) -> None:
    for role in one.roles:
        warps = ",".join(map(str, role["warps"]))
        counts = ", ".join(f"{name} {count:g}" for name, count in role["instructions"].items())
        waits = ", ".join(f"{line} {cycles:g}" for line, cycles in role["waits"][:NUM_WAITS])
        terminal.line(f"    warps {warps}: {role['serial']:g} cycles; {counts}")
        terminal.line(f"        longest waits: {waits}")


def _show_counts(one: Played, given: str, terminal: Terminal) -> None:
    from benchmarks.steps import counts  # torch, for memory: reading machine code needs none

    def listed(numbers: dict[str, float]) -> str:
        return ", ".join(f"{name} {number:g}" for name, number in numbers.items()) or "none"

    for group in counts.count(one.call, given):
        warps = ",".join(map(str, group.warps))
        terminal.line(f"    warps {warps}: {group.instructions:g} of PTX; {listed(group.classes)}")
        terminal.line(
            f"        bytes loaded: {listed(group.bytes_loaded)}; "
            f"stored: {listed(group.bytes_stored)}"
        )


def _show_both(
    after: dict[Key, Played],
    before: dict[Key, Played],
    arguments: argparse.Namespace,
    terminal: Terminal,
) -> None:
    ratios: dict[Key, float] = {}
    for key, one in after.items():
        other = before.get(key)
        if other is None:
            terminal.line(f"{one.line()}: stepwise at {arguments.against}")
            continue
        ratios[key] = other.serial / one.serial
        cell, precision, hidden, batch, which = key
        chains = " -> ".join(
            "-" if chain is None else f"{chain:.0f}" for chain in (other.chain, one.chain)
        )
        terminal.line(
            f"{_shown(cell)} {precision} {hidden} {batch} {which}: serial {other.serial:.0f} -> "
            f"{one.serial:.0f}, {ratios[key]:.2f} times; chain {chains}; registers "
            f"{other.registers} -> {one.registers}"
            + (f", spills {one.spilled}" if one.spilled else "")
        )
        if arguments.roles:
            _show_roles(other, terminal)
            _show_roles(one, terminal)
    for which in arguments.which:
        some = [ratio for key, ratio in ratios.items() if key[-1] == which]
        if some:
            terminal.line(
                f"{which}: {geometric_mean(some):.3f} times in {len(some)} shapes, {min(some):.3f} "
                f"to {max(some):.3f}"
            )
    if ratios:
        terminal.line(
            f"all: {geometric_mean(ratios.values()):.3f} times, least {min(ratios.values()):.3f}"
        )
