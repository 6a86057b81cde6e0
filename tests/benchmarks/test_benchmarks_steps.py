"""The player of machine code, on kernels of a few instructions."""

from __future__ import annotations

import pytest

from benchmarks.steps import latencies, play, sass
from benchmarks.steps.program import Launch, Program, Shared
from benchmarks.steps.values import Unsupported
from benchmarks.steps.warp import Warp

NAME = "_Z6kernelv"


def line(
    address: int, text: str, stall: int = 1, sets: int = 7, reads: int = 7, waits: int = 0
) -> str:
    """An instruction as nvdisasm prints it; its lower word does not count."""
    upper = stall << 41 | sets << 46 | reads << 49 | waits << 52
    return (
        f"        /*{address:04x}*/                   {text} ;   /* {0:#018x} */\n"
        f"                                              /* {upper:#018x} */\n"
    )


def kernel(*parts: str | tuple[str, dict[str, int]]) -> sass.Code:
    """Of instructions, or ".L_x_0:" for labels."""
    text = f'\t.section\t.text.{NAME},"ax",@progbits\n'
    text += '\t//## File "/somewhere/step.cuh", line 7\n'
    address = 0
    for part in parts:
        if isinstance(part, str) and part.endswith(":"):
            text += f"{part}\n"
            continue
        instruction, control = part if isinstance(part, tuple) else (part, {})
        text += line(address, instruction, **control)
        address += 16
    (code,) = sass.parse(text)
    return code


def walk(code: sass.Code, threads: int = 32, parameters: bytes = b"") -> Warp:
    warp = Warp(Program(code), Launch.of(parameters, threads, 1, 1), Shared(), 0)
    assert warp.run().kind == "end"
    return warp


def test_what_ptxas_wrote_is_read() -> None:
    code = kernel(
        ("@!P0 LDS.128 R4, [R2.reuse+0x10]", {"stall": 4, "sets": 2, "reads": 1, "waits": 0b101})
    )
    (one,) = code.instructions
    assert (one.operation, one.guard, one.operands) == (
        "LDS.128",
        (True, "P0"),
        ["R4", "[R2+0x10]"],
    )
    assert (one.stall, one.sets_result, one.sets_operands, one.waits_for) == (4, 2, 1, 0b101)
    assert (code.name, one.source) == (NAME, "step.cuh:7")


def test_a_loop_takes_its_stalls_and_its_waits() -> None:
    """Three rounds: a load, an addition that waits for it, a count, a branch."""
    code = kernel(
        ("MOV R0, 0x3", {"stall": 2}),
        ".L_x_0:",
        ("LDS R4, [R0]", {"stall": 1, "sets": 0}),
        ("FADD R5, R4, R5", {"stall": 4, "waits": 1}),
        ("IADD3 R0, R0, -0x1, RZ", {"stall": 5}),
        ("ISETP.NE.AND P0, PT, R0, RZ, PT", {"stall": 13}),
        ("@P0 BRA `(.L_x_0)", {"stall": 5}),
        ("EXIT", {"stall": 5}),
    )
    warp = walk(code)
    load = latencies.latency_of("LDS").result
    a_round = load + 4 + 5 + 13 + 5
    assert warp.time == 2 + 3 * a_round + 2 * latencies.TAKEN_BRANCH
    assert warp.counts == [1, 3, 3, 3, 3, 3, 1]
    assert warp.waited[2] == 3 * (load - 1)


def test_lanes_that_part_walk_both_ways_and_meet_again() -> None:
    code = kernel(
        "S2R R0, SR_TID.X",
        "ISETP.GE.AND P0, PT, R0, 0xa, PT",
        "BSSY B0, `(.L_x_1)",
        "@P0 BRA `(.L_x_0)",
        "MOV R1, 0x1",
        "BRA `(.L_x_1)",
        ".L_x_0:",
        "MOV R1, 0x2",
        ".L_x_1:",
        "BSYNC B0",
        "IADD3 R2, R1, R0, RZ",
        "EXIT",
    )
    warp = walk(code)
    assert warp.registers[1] == [1] * 10 + [2] * 22
    assert warp.registers[2] == [lane + (1 if lane < 10 else 2) for lane in range(32)]
    assert warp.counts == [1, 1, 1, 1, 1, 1, 1, 2, 1, 1]


def test_a_division_is_followed_through_floating_point() -> None:
    """x / 10 as ptxas writes it for numbers that it does not know."""
    for x, d in ((1000, 10), (7, 8), (65535, 255), (12345, 7)):
        code = kernel(
            f"MOV R2, {x:#x}",
            f"MOV R3, {d:#x}",
            "I2F.U32.RP R0, R3",
            "MUFU.RCP R0, R0",
            "VIADD R0, R0, 0xffffffe",
            "F2I.FTZ.U32.TRUNC.NTZ R1, R0",
            "IMAD.MOV.U32 R0, RZ, RZ, RZ",
            "IMAD R4, R1, R3, RZ",
            "IMAD.MOV R4, RZ, RZ, -R4",
            "IMAD.HI.U32 R1, R1, R4, R0",
            "IMAD.HI.U32 R1, R1, R2, RZ",
            "IMAD R5, R1, R3, RZ",
            "IMAD.IADD R5, R2, 0x1, -R5",
            "ISETP.GE.U32.AND P0, PT, R5, R3, PT",
            "@P0 IMAD.IADD R5, R5, 0x1, -R3",
            "@P0 VIADD R1, R1, 0x1",
            "ISETP.GE.U32.AND P1, PT, R5, R3, PT",
            "@P1 VIADD R1, R1, 0x1",
            "EXIT",
        )
        assert walk(code).registers[1] == x // d


@pytest.mark.parametrize(
    ("instruction", "register", "value"),
    [
        ("IADD3 R1, P0, R2, R3, RZ", 1, 0xFFFFFFFF + 5 & 0xFFFFFFFF),
        ("LEA R1, R3, R3, 0x4", 1, 5 * 17),
        ("LOP3.LUT R1, R2, 0xf0, R3, 0xf8, !PT", 1, 0xFFFFFFFF),
        ("SHF.R.S32.HI R1, RZ, 0x4, R2", 1, 0xFFFFFFFF),
        ("SHF.R.U32.HI R1, RZ, 0x4, R2", 1, 0x0FFFFFFF),
        ("PRMT R1, R3, 0x5410, R2", 1, 0xFFFF0005),
        ("VIMNMX R1, R2, R3, PT", 1, 0xFFFFFFFF),
        ("VIMNMX R1, R2, R3, !PT", 1, 5),
        ("IMAD.WIDE R4, R2, 0x3, RZ", 5, 0xFFFFFFFF),
        ("IMAD.WIDE.U32 R4, R2, 0x3, RZ", 5, 2),
        ("LEA.HI.X.SX32 R1, R2, R3, 0x1, PT", 1, 5),
        ("LDC R1, c[0x0][0x214]", 1, 0x08070605),
        ("FLO.U32 R1, R3", 1, 2),
        ("FLO.U32.SH R1, R3", 1, 29),
        ("FLO.U32 R1, RZ", 1, 0xFFFFFFFF),
    ],
)
def test_integers_are_computed(instruction: str, register: int, value: int) -> None:
    code = kernel("MOV R2, 0xffffffff", "MOV R3, 0x5", instruction, "EXIT")
    assert walk(code, parameters=bytes(range(1, 9))).registers[register] == value


def test_lanes_are_reduced_and_the_workspace_is_full_of_bits() -> None:
    """Loaded by the lanes below 10, from there and from elsewhere."""
    code = kernel(
        "S2R R0, SR_TID.X",
        "ISETP.GE.AND P0, PT, R0, 0xa, PT",
        "MOV R1, RZ",
        "MOV R4, RZ",
        "REDUX.OR UR4, R0",
        "@!P0 IADD3 R2, R0, 0x1000000, RZ",
        "@!P0 LDG.E R1, desc[UR4][R2.64]",
        "@!P0 LDG.E R4, desc[UR4][R0.64]",
        "EXIT",
    )
    warp = walk(code)
    assert warp.uniforms[4] == 31
    assert warp.registers[1] == [0xFFFFFFFF] * 10 + [0] * 22
    assert warp.registers[4] == [None] * 10 + [0] * 22


def test_a_loop_without_an_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.steps.warp.MOST_INSTRUCTIONS", 1000)
    with pytest.raises(Unsupported, match="a loop without an end"):
        walk(kernel(".L_x_0:", "BRA `(.L_x_0)", "EXIT"))


def stepping(push_stall: int) -> sass.Code:
    """A loop whose warp waits for its cluster and pushes; c[0x210] counts the steps."""
    return kernel(
        "LDC R0, c[0x0][0x210]",
        ".L_x_0:",
        ("SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R1], R2", {"sets": 1}),
        ("@!P0 BRA `(.L_x_0)", {"stall": 5, "waits": 2}),
        ("STS [R3], R4", {"stall": push_stall}),
        ("STAS.128 [R6.64], R8", {"stall": 2}),
        ("IADD3 R0, R0, -0x1, RZ", {"stall": 5}),
        ("ISETP.NE.AND P1, PT, R0, RZ, PT", {"stall": 13}),
        ("@P1 BRA `(.L_x_0)", {"stall": 5}),
        ("EXIT", {"stall": 5}),
    )


@pytest.mark.parametrize("stall", [4, 9])
def test_a_step_is_what_more_steps_take_beyond_few(stall: int) -> None:
    launches = [
        Launch.of(steps.to_bytes(4, "little"), 64, 2, 2)
        for steps in (play.FEW_STEPS, play.MORE_STEPS)
    ]
    step = play.play(stepping(stall), *launches)
    (role,) = step.roles
    wait = latencies.latency_of("SYNCS").result
    assert role.warps == [0, 1]
    assert role.serial == wait + 5 + stall + 2 + 5 + 13 + 5 + latencies.TAKEN_BRANCH
    assert step.chain == wait - 1 + 5 + stall  # from the end of the wait's issue on
    assert role.waits == [("step.cuh:7", wait - 1)]
    assert role.instructions == {"branch": 2, "exchange": 2, "integer": 2, "shared": 1}


def test_warps_that_wait_for_nobody_who_comes_are_an_error() -> None:
    code = kernel("BAR.SYNC.DEFER_BLOCKING 0x1, 0x60", "EXIT")
    launch = Launch.of(b"", 64, 1, 1)
    with pytest.raises(play.Deadlock):
        play.play(code, launch, launch)
