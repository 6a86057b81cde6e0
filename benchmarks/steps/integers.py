"""Integer arithmetic and logic of machine code: what each operation does to registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from benchmarks.steps.sass import Instruction
from benchmarks.steps.values import (
    MASK,
    Destination,
    Effect,
    Value,
    each,
    effect,
    is_predicate,
    predicate,
    read_integer,
    read_predicate,
    read_raw,
    register,
    signed,
    signed64,
    split,
)

if TYPE_CHECKING:
    from benchmarks.steps.warp import Warp


def add3(ins: Instruction) -> Effect:
    targets, sources = split(ins)
    carries = [read_predicate(one) for one in sources if is_predicate(one)]
    numbers = [read_raw(one) for one in sources if not is_predicate(one)]
    with_carry = ".X" in ins.operation

    def compute(warp: Warp) -> Sequence[Value]:
        values = [one(warp) for one in numbers]
        if with_carry:
            values += [each(int, one(warp)) for one in carries]
        total = each(lambda *all_of: sum(all_of), *values)
        result = each(lambda one: one & MASK, total)
        return [
            result,
            each(lambda one: one >> 32 >= 1, total),
            each(lambda one: one >> 32 >= 2, total),
        ]

    return effect(targets, compute)


def multiply_add(ins: Instruction) -> Effect:
    targets, sources = split(ins)
    words = ins.operation.split(".")
    carries = [read_predicate(one) for one in sources if is_predicate(one)]
    numbers = [one for one in sources if not is_predicate(one)]
    a, b = read_integer(numbers[0]), read_integer(numbers[1])
    c = read_raw(numbers[2])
    c_high = read_integer(numbers[2], 1)
    unsigned = "U32" in words
    zero_product = "RZ" in numbers[:2] or "URZ" in numbers[:2]

    def product(warp: Warp) -> Value:
        if zero_product:
            return 0
        x, y = a(warp), b(warp)
        if x == 0 or y == 0:
            return 0
        if unsigned:
            return each(lambda p, q: p * q, x, y)
        return each(lambda p, q: signed(p) * signed(q), x, y)

    def both(warp: Warp) -> Value:
        low, high = c(warp), c_high(warp)
        return each(lambda p, q: p + (q << 32), low, high)

    if "WIDE" in words:

        def wide(warp: Warp) -> Sequence[Value]:
            extra = [each(int, one(warp)) for one in carries] if "X" in words else []
            total = each(lambda *all_of: sum(all_of), product(warp), both(warp), *extra)
            result = each(lambda one: one & (1 << 64) - 1, total)
            return [
                each(lambda one: one & MASK, result),
                each(lambda one: one >> 32, result),
                each(lambda one: one >> 64 != 0, total),
            ]

        first = targets[0]
        second = (first[0], first[1] + 1) if first else None
        return effect([first, second, *targets[1:]], wide)
    if "HI" in words:

        def upper(warp: Warp) -> Sequence[Value]:
            total = each(lambda p, q: (p + q) >> 32 & MASK, product(warp), both(warp))
            return [total, None]

        return effect(targets, upper)

    def lower(warp: Warp) -> Sequence[Value]:
        extra = [each(int, one(warp)) for one in carries] if "X" in words else []
        total = each(lambda *all_of: sum(all_of), product(warp), c(warp), *extra)
        return [each(lambda one: one & MASK, total), each(lambda one: one >> 32 & 1 == 1, total)]

    return effect(targets, lower)


def shift_add(ins: Instruction) -> Effect:
    targets, sources = split(ins)
    words = ins.operation.split(".")
    carries = [read_predicate(one) for one in sources if is_predicate(one)]
    numbers = [read_raw(one) for one in sources if not is_predicate(one)]
    high, wide = "HI" in words, "SX32" in words

    def compute(warp: Warp) -> Sequence[Value]:
        values = [one(warp) for one in numbers]
        shift = values[-1]
        a, b = values[0], values[1]
        if wide:
            part = each(lambda x, s: signed(x) >> (32 - s) & MASK, a, shift)
        elif high:
            part = each(
                lambda x, y, s: (y << 32 | x & MASK) >> (32 - s) & MASK, a, values[2], shift
            )
        else:
            part = each(lambda x, s: x << s & MASK, a, shift)
        extra = [each(int, one(warp)) for one in carries] if "X" in words else []
        total = each(lambda *all_of: sum(all_of), part, b, *extra)
        return [each(lambda one: one & MASK, total), each(lambda one: one >> 32 != 0, total)]

    return effect(targets, compute)


def logic(ins: Instruction) -> Effect:
    operands = list(ins.operands)
    targets: list[Destination | None] = []
    if is_predicate(operands[0]):
        targets.append(predicate(operands.pop(0)))
    else:
        targets.append(None)
    targets.append(register(operands.pop(0)))
    reads = [read_integer(one) for one in operands[:3]]
    table = int(operands[3], 16)

    def combine(a: int, b: int, c: int) -> int:
        result = 0
        for i in range(8):
            if table >> i & 1:
                result |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        return result & MASK

    def compute(warp: Warp) -> Sequence[Value]:
        values = [one(warp) for one in reads]
        # A bit that no unknown operand decides, of the all-zero and all-one tables alone.
        result = each(combine, *values)
        return [each(lambda one: one != 0, result), result]

    return effect(targets, compute)


def shift(ins: Instruction) -> Effect:
    targets, sources = split(ins)
    words = ins.operation.split(".")
    low, amount, high = (read_integer(one) for one in sources[:3])
    left, upper = words[1] == "L", "HI" in words
    is_signed = "S32" in words or "S64" in words

    def shifted(x: int, s: int, y: int) -> int:
        value = y << 32 | x
        if left:
            value <<= s
        else:
            value = (signed64(value) if is_signed else value) >> s
        return value >> 32 & MASK if upper else value & MASK

    return effect(targets, lambda warp: [each(shifted, low(warp), amount(warp), high(warp))])


_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b,
}
_COMBINE: dict[str, Callable[[bool, bool], bool]] = {
    "AND": lambda a, b: a and b,
    "OR": lambda a, b: a or b,
    "XOR": lambda a, b: a != b,
}


def compare_integers(ins: Instruction) -> Effect:
    words = ins.operation.split(".")
    compare = _COMPARE[words[1]]
    combine = next(_COMBINE[word] for word in words[2:] if word in _COMBINE)
    unsigned, extended = "U32" in words, "EX" in words
    targets = [predicate(one) for one in ins.operands[:2]]
    a, b = read_integer(ins.operands[2]), read_integer(ins.operands[3])
    given = read_predicate(ins.operands[4])
    lower = read_predicate(ins.operands[5]) if extended else None
    is_equality = words[1] in ("EQ", "NE")

    def one(x: int, y: int) -> bool:
        return compare(x, y) if unsigned or is_equality else compare(signed(x), signed(y))

    def long(x: int, y: int, of_lower: bool) -> bool:
        if is_equality:
            return (x == y and of_lower) if words[1] == "EQ" else (x != y or of_lower)
        return of_lower if x == y else one(x, y)

    def compute(warp: Warp) -> Sequence[Value]:
        if lower is None:
            found = each(one, a(warp), b(warp))
        else:
            found = each(long, a(warp), b(warp), lower(warp))
        also = given(warp)
        negated = each(lambda p: not p, found)
        return [_combined(combine, found, also), _combined(combine, negated, also)]

    return effect(targets, compute)


def _combined(combine: Callable[[bool, bool], bool], a: Value, b: Value) -> Value:
    """What either decides by itself is known although the other is not."""
    if combine is _COMBINE["AND"] and (a is False or b is False):
        return False
    if combine is _COMBINE["OR"] and (a is True or b is True):
        return True
    return each(combine, a, b)


def predicate_logic(ins: Instruction) -> Effect:
    targets = [predicate(one) for one in ins.operands[:2]]
    reads = [read_predicate(one) for one in ins.operands[2:5]]
    tables = [int(one, 16) for one in ins.operands[5:7]]

    def compute(warp: Warp) -> Sequence[Value]:
        values = [one(warp) for one in reads]
        results = []
        for table in tables:
            of = lambda a, b, c, table=table: bool(table >> (a << 2 | b << 1 | c) & 1)  # noqa: E731
            results.append(_table_of(of, values))
        return results

    return effect(targets, compute)


def _table_of(of: Callable[[int, int, int], bool], values: Sequence[Value]) -> Value:
    """of(values), known also where the unknown ones make no difference."""
    if None not in values:
        return each(lambda *bits: of(*(int(bit) for bit in bits)), *values)
    free = [i for i, value in enumerate(values) if value is None]
    results = []
    for bits in range(1 << len(free)):
        tried = list(values)
        for j, i in enumerate(free):
            tried[i] = bool(bits >> j & 1)
        results.append(each(lambda *all_of: of(*(int(bit) for bit in all_of)), *tried))
    return results[0] if all(one == results[0] for one in results) else None


def select(ins: Instruction) -> Effect:
    targets, sources = [register(ins.operands[0])], ins.operands[1:]
    a, b, which = read_integer(sources[0]), read_integer(sources[1]), read_predicate(sources[2])

    def compute(warp: Warp) -> Sequence[Value]:
        chosen = which(warp)
        if chosen is True or chosen is False:
            return [a(warp) if chosen else b(warp)]
        return [each(lambda p, x, y: x if p else y, chosen, a(warp), b(warp))]

    return effect(targets, compute)


def minimum(ins: Instruction) -> Effect:
    words = ins.operation.split(".")
    targets = [register(ins.operands[0])]
    reads = [read_integer(one) for one in ins.operands[1:-1]]
    smaller = read_predicate(ins.operands[-1])
    unsigned = "U32" in words
    adds = "VIADDMNMX" in words[0]

    def of(choose_least: bool, *values: int) -> int:
        numbers = [value if unsigned else signed(value) for value in values]
        if adds:
            total = values[0] + values[1] & MASK
            numbers = [total if unsigned else signed(total), numbers[2]]
        return (min(numbers) if choose_least else max(numbers)) & MASK

    return effect(targets, lambda w: [each(of, smaller(w), *(one(w) for one in reads))])


def permute(ins: Instruction) -> Effect:
    targets = [register(ins.operands[0])]
    a, selector, c = (read_integer(one) for one in ins.operands[1:4])

    def of(x: int, s: int, y: int) -> int:
        whole = y << 32 | x
        result = 0
        for i in range(4):
            nibble = s >> (4 * i) & 15
            byte = whole >> (8 * (nibble & 7)) & 255
            if nibble & 8:
                byte = 255 if byte & 128 else 0
            result |= byte << (8 * i)
        return result

    return effect(targets, lambda w: [each(of, a(w), selector(w), c(w))])
