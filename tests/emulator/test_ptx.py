"""The interpreter of PTX: programs that nvcc compiled, run by it under the emulator's schedules.

Conformance here says that what each intrinsic compiles to means what the emulator says it means.
The kernels' own tests run in this front end where $EMULATOR_FRONT_END is ptx. Long, for
`make test-ptx`: to build the interpreter takes as long as to test a kernel.
"""

from __future__ import annotations

import ctypes
import json
import re
import shutil
from pathlib import Path

import fuzz_ptx
import pytest
import test_emulator as emulated
from defects import device_header

import build

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed"),
]

KERNELS = emulated.KERNELS
EXAMPLE = build.PTX / "example.cu"


@pytest.fixture(autouse=True)
def front_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "front_end", "ptx")


# What catches a planted defect where that is not what catches it in C++: the addresses are checked
# by the instruction.
DEFECTS = {
    **emulated.DEFECTS,
    "missing_init_barrier": {"plain": r"FAILED: launch: st_async: peers may not have begun"},
    "wrong_rank": {"plain": r"st\.async.*: of a rank outside the cluster.* at defects\.cu:\d+"},
    "misaligned_push": {"plain": r"st\.async.*: misaligned address 0x\w+ at defects\.cu:\d+"},
    "shared_out_of_bounds": {
        "plain": r"st\.shared\.u32: outside of every shared array.* at defects\.cu:\d+"
    },
    "too_much_shared": {"plain": r"\d+ bytes of shared memory needed, \d+ in the launch"},
    "global_out_of_bounds": {
        "plain": emulated.WRONG,
        "address": r"ld\.global\.u32: out of bounds at defects\.cu:\d+",
    },
    "copy_out_of_bounds": {"address": r"cp\.async.*: out of bounds at defects\.cu:\d+"},
    "word_slot_reused": {"plain": emulated.WRONG},
}


@pytest.mark.parametrize("variant", build.VARIANTS)
@pytest.mark.parametrize(
    ("source", "arguments"), [("conformance.cu", ()), ("litmus.cu", ()), ("defects.cu", ("clean",))]
)
def test_clean(source: str, arguments: tuple[str, ...], variant: str) -> None:
    executable = build.program(KERNELS / source, variant)
    schedules = emulated.FEW_SCHEDULES if variant == "plain" else emulated.FEW_SCHEDULES[2:3]
    for seed, (order, landing) in enumerate(schedules, start=1):
        result = build.run(
            executable, *arguments, order=order, landing=landing, seed=seed, approximate=True
        )
        schedule = f"{source} {variant} {order} {landing} seed {seed}"
        assert result.returncode == 0, f"{schedule}\n{result.stdout[-6000:]}"
        assert "ok\n" in result.stdout, f"{schedule}: ran nothing"


# Where a race is: the line of the access or, in the name of the fiber that stands for a copy that
# lands later, the line that issued it. ThreadSanitizer cuts that name after 63 characters.
RACING_LINE = r"\w (?:at|from) defects\.cu:\d+.* \((?:defects\.ptx:\d+\)|[\w.:]*')"


@pytest.mark.parametrize(
    ("defect", "variant"),
    [(defect, variant) for defect, caught in DEFECTS.items() for variant in caught],
)
def test_defect_is_caught(defect: str, variant: str) -> None:
    executable = build.program(KERNELS / "defects.cu", variant)
    expected = DEFECTS[defect][variant]
    seen = []
    for order, landing in emulated.FEW_SCHEDULES:
        result = build.run(executable, defect, order=order, landing=landing)
        if result.returncode != 0 and re.search(expected, result.stdout):
            if expected == emulated.RACE:
                assert re.search(RACING_LINE, result.stdout), result.stdout
            return
        seen.append(f"{order} {landing}: status {result.returncode}\n{result.stdout[-1500:]}")
    pytest.fail(f"{defect} was not caught by {variant}\n" + "\n".join(seen))


HEADER = Path("cuda") / "device" / "device_cuda.cuh"


@pytest.mark.parametrize("name", device_header.DEFECTS)
def test_defect_of_the_device_header_is_caught(name: str, tmp_path: Path) -> None:
    defect = device_header.DEFECTS[name]
    folder = build.CACHE / "defects" / "device_header" / name
    header = folder / HEADER
    header.parent.mkdir(parents=True, exist_ok=True)
    text = device_header.plant((build.ROOT / "csrc" / HEADER).read_text(), defect)
    if not header.exists() or header.read_text() != text:
        header.write_text(text)
        for other in ("device.h", "device_types.h"):  # which the header lies beside
            shutil.copy(build.ROOT / "csrc" / HEADER.parent / other, header.parent / other)
    program = build.program(KERNELS / defect.source, defect.variant, first_include=folder)
    arguments = ("clean",) if defect.source == "defects.cu" else ()
    seen = []
    for order, landing in emulated.FEW_SCHEDULES:
        result = build.run(program, *arguments, order=order, landing=landing)
        if result.returncode != 0 and re.search(defect.report, result.stdout):
            return
        seen.append(f"{order} {landing}: status {result.returncode}\n{result.stdout[-1500:]}")
    pytest.fail(f"{name} was not caught\n" + "\n".join(seen))


def test_the_example_of_the_readme() -> None:
    assert build.run(build.program(EXAMPLE)).stdout == "ok\n"


# ---------------------------------------------------------------------------------------------
# Texts with mistakes.

HEAD = ".version 9.0\n.target sm_90a\n.address_size 64\n"
KERNEL = """.visible .entry k(.param .u64 p)
{
.reg .b32 %r<3>;
.reg .b64 %rd<2>;
ld.param.u64 %rd1, [p];
add.s32 %r1, %r2, 1;
st.global.u32 [%rd1], %r1;
ret;
}
"""


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    before, build.front_end = build.front_end, "ptx"
    path = build.shared_library(EXAMPLE)
    build.front_end = before
    library = ctypes.CDLL(str(path))
    library.ptx_check.restype = library.ptx_counts.restype = ctypes.c_char_p
    return library


def check(library: ctypes.CDLL, text: str) -> str:
    result: bytes = library.ptx_check(b"k.ptx", text.encode())
    return result.decode()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (".version 9.0", ".version 9.7", r"k\.ptx:1: \.version 9\.7 is newer than the interpreter"),
        (".version 9.0", ".version nine", r"k\.ptx:1: \.version nine is no version"),
        (".version 9.0\n", "", r"k\.ptx:1: no \.version at the head"),
        ("size 64", "size 32", r"k\.ptx:3: addresses are not of 64 bits"),
        ("add.s32", "add.s33", r"k\.ptx:9: add\.s33: unknown opcode, or a modifier"),
        ("add.s32", "wgmma.s32", r"k\.ptx:9: wgmma\.s32: unknown opcode"),
        ("st.global", "st.global.sys", r"k\.ptx:10: st\.global\.sys\.u32: unknown opcode"),
        ("%r2, 1", "%r3, 1", r"k\.ptx:9: '%r3' is no register, constant or variable"),
        ("%r2, 1", "%r2", r"k\.ptx:9: add\.s32: 2 operands in place of 3"),
        ("ret;", "bra away;", r"k\.ptx:11: there is no label away"),
        ("ret;\n}\n", "ret;\n", r"k\.ptx:11: the file ends inside of function k"),
        ("[%rd1], %r1", "[p], %r1", r"k\.ptx:10: .*a parameter in another state space"),
        (".reg .b32 %r<3>", ".reg .b31 %r<3>", r"k\.ptx:6: registers of unknown type \.b31"),
        ("ret;", "call (p), away;", r"k\.ptx:11: call of away, which is no function"),
        ("ret;", '.pragma "x', r"k\.ptx:11: a string without an end"),
    ],
)
def test_a_mistake_is_named_with_its_line(
    library: ctypes.CDLL, old: str, new: str, message: str
) -> None:
    assert check(library, HEAD + KERNEL) == ""
    text = (HEAD + KERNEL).replace(old, new, 1)
    assert text != HEAD + KERNEL
    assert re.match(message, check(library, text)), check(library, text)


def test_a_text_that_is_cut_off_is_refused_wherever_it_ends(library: ctypes.CDLL) -> None:
    text = (HEAD + KERNEL).rstrip()
    first = text.index("{")
    for end in range(first, len(text) - 1):
        assert re.match(r"k\.ptx:\d+: ", check(library, text[:end])), text[:end]


# ---------------------------------------------------------------------------------------------


def test_counts(library: ctypes.CDLL) -> None:
    """saxpy, known by hand: 8 blocks of 4 warps, of which the last has none of the 1000 numbers
    but 8 in its first lanes."""
    library.ptx_count_launches(1)
    assert library.main() == 0
    launches = json.loads(library.ptx_counts())
    saxpy = next(one for one in launches if "saxpy" in one["kernel"])
    assert len(saxpy["warps"]) == 32
    for warp in saxpy["warps"]:
        assert warp["classes"]["load"] == 6, "four parameters, x and y"
        assert warp["bytes_loaded"]["global"] == 2 * 4 * 32
        assert warp["bytes_stored"]["global"] == 4 * 32
        assert warp["opcodes"]["fma.rn.f32"] == 1
    library.ptx_count_launches(0)
    assert json.loads(library.ptx_counts()) == []


def test_mutated_texts_are_answered_without_a_crash() -> None:
    """The same few in every run; `make fuzz-ptx` goes on with others."""
    result = fuzz_ptx.fuzz(300, seed=1)
    assert result.returncode == 0, result.stdout[-4000:]
    assert re.fullmatch(r"300 texts, \d+ run, \d+ launches\n", result.stdout)
