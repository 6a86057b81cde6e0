"""What each instruction does to a warp's registers; memory and control are the warp's own."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.steps.integers import (
    add3,
    compare_integers,
    logic,
    minimum,
    multiply_add,
    permute,
    predicate_logic,
    select,
    shift,
    shift_add,
)
from benchmarks.steps.sass import Instruction
from benchmarks.steps.values import (
    CONSTANT,
    LANES,
    MASK,
    Effect,
    Unsupported,
    Value,
    address,
    each,
    effect,
    is_predicate,
    predicate,
    read_integer,
    read_predicate,
    register,
    signed,
    unknown,
)

if TYPE_CHECKING:
    from benchmarks.steps.warp import Warp


def _shuffle(ins: Instruction) -> Effect:
    targets = [predicate(ins.operands[0]), register(ins.operands[1])]
    value, lane = read_integer(ins.operands[2]), read_integer(ins.operands[3])
    kind = ins.operation.split(".")[1]

    def compute(warp: Warp) -> Sequence[Value]:
        given, by = value(warp), lane(warp)
        if type(given) is not list or by is None:
            return [True if given is not None else None, given]
        steps = by if type(by) is list else [by] * LANES
        find = {
            "IDX": lambda own, step: step & 31,
            "BFLY": lambda own, step: own ^ step,
            "DOWN": lambda own, step: own + step if own + step < LANES else own,
            "UP": lambda own, step: own - step if own >= step else own,
        }[kind]
        lanes = [given[find(own, steps[own])] for own in range(LANES)]
        return [True, lanes[0] if lanes.count(lanes[0]) == LANES else lanes]

    return effect(targets, compute)


def _vote(ins: Instruction) -> Effect:
    operands = list(ins.operands)
    result = None if is_predicate(operands[0]) else register(operands.pop(0))
    target = predicate(operands.pop(0))
    given = read_predicate(operands[0])
    every = ins.operation.split(".")[1].startswith("ALL")

    def compute(warp: Warp) -> Sequence[Value]:
        value = given(warp)
        if value is None or (type(value) is list and None in value):
            return [None, None]
        lanes = value if type(value) is list else [value] * LANES
        ballot = sum(1 << i for i in range(LANES) if lanes[i] and warp.active >> i & 1)
        return [ballot, ballot == warp.active if every else ballot != 0]

    return effect([result, target], compute)


def _reduction(ins: Instruction) -> Effect:
    """REDUX.OR: of the lanes, into a uniform register."""
    if ins.operation != "REDUX.OR":
        return unknown([register(ins.operands[0])])
    read = read_integer(ins.operands[1])

    def compute(warp: Warp) -> Sequence[Value]:
        value = read(warp)
        lanes = value if type(value) is list else [value]
        known = [lane for lane in lanes if lane is not None]
        return [functools.reduce(operator.or_, known) if len(known) == len(lanes) else None]

    return effect([register(ins.operands[0])], compute)


def _move(ins: Instruction) -> Effect:
    read = read_integer(ins.operands[1])
    return effect([register(ins.operands[0])], lambda w: [read(w)])


def _to_uniform(ins: Instruction) -> Effect:
    """With a predicate: whether lanes are left whose values differ; addresses never do."""
    operands = list(ins.operands)
    differ = predicate(operands.pop(0)) if is_predicate(operands[0]) else None
    read = read_integer(operands[-1])

    def compute(warp: Warp) -> Sequence[Value]:
        value = read(warp)
        return [False, value[0] if type(value) is list else value]

    return effect([differ, register(operands[0])], compute)


def _special(ins: Instruction) -> Effect:
    name = ins.operands[1]
    first = register(ins.operands[0])
    if ins.operation.startswith("CS2R") and ".32" not in ins.operation:
        second = (first[0], first[1] + 1) if first else None
        return effect([first, second], lambda w: [w.special(name), 0])
    return effect([first], lambda w: [w.special(name)])


def _load_constant(ins: Instruction) -> Effect:
    first = register(ins.operands[0])
    match = CONSTANT.match(ins.operands[1])
    if match is None or first is None:
        raise Unsupported(ins.text)
    where = address(match[1])
    if ".64" in ins.operation:
        return effect(
            [first, (first[0], first[1] + 1)],
            lambda w: [each(lambda at, i=i: w.constant(at + 4 * i, 4), where(w)) for i in (0, 1)],
        )
    size = 1 if ".U8" in ins.operation else 2 if ".U16" in ins.operation else 4
    return effect([first], lambda w: [each(lambda at: w.constant(at, size), where(w))])


def _bits_of(function: Callable[[int], int]) -> Callable[[Instruction], Effect]:
    def build(ins: Instruction) -> Effect:
        read = read_integer(ins.operands[-1])
        return effect([register(ins.operands[0])], lambda w: [each(function, read(w))])

    return build


def _leading_one(ins: Instruction) -> Effect:
    """Its place, or with .SH how far it must be shifted to the left; of zero all bits."""
    shifts = ins.operation.endswith(".SH")

    def place(one: int) -> int:
        bit = one.bit_length() - 1
        return (31 - bit if shifts and bit >= 0 else bit) & MASK

    return _bits_of(place)(ins)


def _float(bits: int) -> Any:
    return np.uint32(bits).view(np.float32)


def _bits(value: Any) -> int:
    return int(np.float32(value).view(np.uint32))


def _round_up(value: int) -> int:
    nearest = np.float32(value)
    if int(nearest) < value:
        nearest = np.nextafter(nearest, np.float32(np.inf))
    return _bits(nearest)


def _reciprocal(bits: int) -> int:
    value = _float(bits)
    # Of a number whose reciprocal is finite; no other comes up in a division.
    return _bits(np.float32(1) / value) if abs(value) > np.float32(1e-37) else 0x7F800000


def _truncated(bits: int) -> int:
    value = float(_float(bits))
    return min(max(int(value), 0), MASK) if value == value and abs(value) != np.inf else MASK


def _to_float(ins: Instruction) -> Effect:
    if "RP" not in ins.operation:
        return unknown([register(ins.operands[0])])
    of = _round_up if "U32" in ins.operation else lambda one: _round_up(signed(one))
    return _bits_of(of)(ins)


def _special_function(ins: Instruction) -> Effect:
    if "RCP" in ins.operation:
        return _bits_of(_reciprocal)(ins)
    return unknown([register(ins.operands[0])])


def _to_integer(ins: Instruction) -> Effect:
    if "U32.TRUNC" in ins.operation:
        return _bits_of(_truncated)(ins)
    return unknown([register(ins.operands[0])])


def _predicates_to_register(ins: Instruction) -> Effect:
    """One that is not known counts as false: to say that none of them is known would be worse."""
    mask = int(ins.operands[-1], 16)
    chosen = [i for i in range(7) if mask >> i & 1]
    uniform = ins.operation.startswith("UP2UR")

    def pack(*predicates: bool) -> int:
        return sum(int(one) << i for i, one in zip(chosen, predicates, strict=True))

    def compute(warp: Warp) -> Sequence[Value]:
        values = [(warp.uniform_predicates if uniform else warp.predicates)[i] for i in chosen]
        known = [
            [bool(one) for one in value] if type(value) is list else bool(value) for value in values
        ]
        return [each(pack, *known)]

    return effect([register(ins.operands[0])], compute)


def _register_to_predicates(ins: Instruction) -> Effect:
    mask = int(ins.operands[-1], 16)
    read = read_integer(ins.operands[1])
    chosen = [i for i in range(7) if mask >> i & 1]
    return effect(
        [("UP" if ins.operation.startswith("UR2UP") else "P", i) for i in chosen],
        lambda w: [each(lambda one, i=i: bool(one >> i & 1), read(w)) for i in chosen],
    )


def _float_result(ins: Instruction) -> Effect:
    """Of floating point and matrices: registers whose contents nothing depends on."""
    first = ins.operands[0]
    if is_predicate(first):
        return unknown([predicate(one) for one in ins.operands[:2] if is_predicate(one)])
    target = register(first)
    if target is None:
        return unknown([])
    count = 4 if ins.operation.startswith(("HMMA", "LDSM")) else 1
    if ins.operation.startswith(("DADD", "DMUL", "DFMA")) or ".F64" in ins.operation:
        count = 2
    return unknown([(target[0], target[1] + i) for i in range(count)])


_BUILDERS: dict[str, Callable[[Instruction], Effect]] = {
    **dict.fromkeys(("IADD3", "UIADD3", "VIADD"), add3),
    **dict.fromkeys(("IMAD", "UIMAD"), multiply_add),
    **dict.fromkeys(("LEA", "ULEA"), shift_add),
    **dict.fromkeys(("LOP3", "ULOP3"), logic),
    **dict.fromkeys(("SHF", "USHF"), shift),
    **dict.fromkeys(("ISETP", "UISETP"), compare_integers),
    **dict.fromkeys(("PLOP3", "UPLOP3"), predicate_logic),
    **dict.fromkeys(("SEL", "USEL"), select),
    **dict.fromkeys(("VIMNMX", "VIMNMX3", "VIADDMNMX", "IMNMX"), minimum),
    **dict.fromkeys(("PRMT", "UPRMT"), permute),
    **dict.fromkeys(("MOV", "UMOV"), _move),
    **dict.fromkeys(("S2R", "S2UR", "CS2R"), _special),
    **dict.fromkeys(("LDC", "ULDC"), _load_constant),
    **dict.fromkeys(
        (
            "FADD",
            "FMUL",
            "FFMA",
            "FSEL",
            "FSETP",
            "FMNMX",
            "FCHK",
            "HADD2",
            "HMUL2",
            "HFMA2",
            "HSETP2",
            "HMNMX2",
            "F2F",
            "F2FP",
            "HMMA",
            "LDSM",
            "DADD",
            "DMUL",
            "DFMA",
            "FSET",
        ),
        _float_result,
    ),
    "IABS": _bits_of(lambda one: abs(signed(one)) & MASK),
    "POPC": _bits_of(lambda one: one.bit_count()),
    **dict.fromkeys(("FLO", "UFLO"), _leading_one),
    "BREV": _bits_of(lambda one: int(f"{one:032b}"[::-1], 2)),
    "I2F": _to_float,
    "I2FP": _to_float,
    "F2I": _to_integer,
    "MUFU": _special_function,
    "SHFL": _shuffle,
    "VOTE": _vote,
    "VOTEU": _vote,
    "REDUX": _reduction,
    "R2UR": _to_uniform,
    "P2R": _predicates_to_register,
    "R2P": _register_to_predicates,
    "UP2UR": _predicates_to_register,
    "UR2UP": _register_to_predicates,
}


def effect_of(ins: Instruction) -> Effect | None:
    """What it does to registers, or None if it belongs to memory or control."""
    build = _BUILDERS.get(ins.operation.split(".")[0])
    return build(ins) if build else None
