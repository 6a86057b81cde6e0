"""Values of a warp's registers, as far as control flow can depend on them, and how operands name
them.

A value is an int of 32 bits where all lanes have the same, a list of 32 where they differ, or None
where it is not known: floating point, and what comes from global memory, never decides which way a
step goes. Only the divisions of integers, which go through floating point, are followed there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.steps.sass import Instruction

if TYPE_CHECKING:
    from benchmarks.steps.warp import Warp

LANES = 32
MASK = 0xFFFFFFFF
Value = Any  # int | list[int | None] | None; of predicates bool | list[bool | None] | None
Read = Callable[["Warp"], Value]
Destination = tuple[str, int]  # (a register file: R, UR, P, UP; an index)
Effect = tuple[list[Destination], Callable[["Warp"], Sequence[Value]]]

_REGISTER = re.compile(r"^(U?R)(\d+|Z)((?:\.\w+)*)$")
_PREDICATE = re.compile(r"^(!?)(U?P)(\d|T)$")
CONSTANT = re.compile(r"^c\[0x0\]\[(.+)\]$")


class Unsupported(Exception):
    """An instruction that the player does not know."""


def each(function: Callable[..., Any], *values: Value) -> Value:
    """function of each lane's values."""
    varies = False
    for value in values:
        if value is None:
            return None
        varies |= type(value) is list
    if not varies:
        return function(*values)
    columns = [value if type(value) is list else [value] * LANES for value in values]
    lanes = [None if None in one else function(*one) for one in zip(*columns, strict=True)]
    return lanes[0] if lanes.count(lanes[0]) == LANES else lanes


def signed(value: int) -> int:
    return value - (1 << 32) if value & 0x80000000 else value


def signed64(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def register(text: str) -> Destination | None:
    """The register that an operand names, or None for the one that is always zero."""
    match = _REGISTER.match(text)
    if match is None:
        raise Unsupported(text)
    return None if match[2] == "Z" else (match[1], int(match[2]))


def predicate(text: str) -> Destination | None:
    match = _PREDICATE.match(text)
    if match is None:
        raise Unsupported(text)
    return None if match[3] == "T" else (match[2], int(match[3]))


def is_predicate(text: str) -> bool:
    return _PREDICATE.match(text) is not None


def read_predicate(text: str) -> Read:
    match = _PREDICATE.match(text)
    if match is None:
        raise Unsupported(text)
    negated = match[1] == "!"
    if match[3] == "T":
        return lambda warp: not negated
    index, uniform = int(match[3]), match[2] == "UP"

    def read(warp: Warp) -> Value:
        value = (warp.uniform_predicates if uniform else warp.predicates)[index]
        return each(lambda one: not one, value) if negated else value

    return read


def address(text: str) -> Read:
    """The sum of registers and numbers in brackets."""
    parts = [part for part in re.split(r"\+", text.strip("[]")) if part]
    reads = [read_integer(part.split(".")[0]) for part in parts]

    def read(warp: Warp) -> Value:
        values = [one(warp) for one in reads]
        return each(lambda *all_of: sum(all_of) & MASK, *values)

    return read


def read_integer(text: str, high: int = 0) -> Read:
    """An operand, or with high = 1 the register after it: the upper half of 64 bits."""
    if text.startswith("-"):
        inner = read_integer(text[1:], high)
        return lambda warp: each(lambda one: -one & MASK, inner(warp))
    if text.startswith("~"):
        inner = read_integer(text[1:], high)
        return lambda warp: each(lambda one: ~one & MASK, inner(warp))
    if text.startswith("|"):
        inner = read_integer(text.strip("|"), high)
        return lambda warp: each(lambda one: abs(signed(one)), inner(warp))
    if constant := CONSTANT.match(text):
        where = address(constant[1])
        return lambda warp: each(lambda at: warp.constant(at + 4 * high, 4), where(warp))
    if match := _REGISTER.match(text):
        if match[2] == "Z":
            return lambda warp: 0
        index = int(match[2]) + high
        if any(part not in ("", "64", "X4", "X8", "X16", "U32") for part in match[3].split(".")):
            return lambda warp: None
        if match[1] == "UR":
            return lambda warp: warp.uniforms[index]
        return lambda warp: warp.registers[index]
    try:
        number = int(text, 16) if "0x" in text else None
    except ValueError:
        number = None
    if number is None:
        return lambda warp: None  # a floating-point number
    value = number & MASK if high == 0 else number >> 32 & MASK
    return lambda warp: value


def read_raw(text: str) -> Read:
    """As read_integer, but a negated number is ~x + 1 in 33 bits: its carry counts."""
    if text.startswith("-"):
        inner = read_integer(text[1:])
        return lambda warp: each(lambda one: (~one & MASK) + 1, inner(warp))
    return read_integer(text)


# ---- effects


def split(ins: Instruction) -> tuple[list[Destination | None], list[str]]:
    """Destinations, predicates that follow the first one among them; and the sources."""
    operands = ins.operands
    targets: list[Destination | None] = [register(operands[0])]
    at = 1
    while at < len(operands) and is_predicate(operands[at]) and operands[at][0] != "!":
        targets.append(predicate(operands[at]))
        at += 1
    return targets, operands[at:]


def effect(
    targets: Sequence[Destination | None], compute: Callable[[Warp], Sequence[Value]]
) -> Effect:
    kept = [(i, target) for i, target in enumerate(targets) if target is not None]

    def run(warp: Warp) -> Sequence[Value]:
        values = compute(warp)
        return [values[i] for i, _ in kept]

    return [target for _, target in kept], run


def unknown(targets: Sequence[Destination | None]) -> Effect:
    return effect(targets, lambda warp: [None] * len(targets))
