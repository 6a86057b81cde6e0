"""The layers of the code: which folder may use which, in one table, and what only some may touch.

A row may use itself and what it names, and it names only rows above it: nothing runs back up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# By the name of a room: the files in it (globs), and the rooms that it may include.
Rooms = Mapping[str, tuple[Sequence[str], Sequence[str]]]

CSRC: Rooms = {
    "contract": (["*.h"], []),
    "cpu": (["cpu/*"], ["contract"]),
    "cuda contract": (["cuda/recurrence_cuda.h"], ["contract"]),
    "device": (["cuda/device/*"], []),
    "persistent": (["cuda/persistent/*"], ["contract", "cuda contract", "device"]),
    "warp": (["cuda/warp/*"], ["contract", "device", "persistent"]),
    "grid": (
        ["cuda/grid/*"],
        ["contract", "cuda contract", "device", "persistent", "warp"],
    ),
    "cluster": (
        ["cuda/cluster/*"],
        ["contract", "cuda contract", "device", "persistent", "warp"],
    ),
    "stepwise": (["cuda/stepwise/*"], ["contract", "cuda contract", "device"]),
    "instances": (["cuda/instances/*"], ["cluster", "grid"]),
    "plan": (
        ["cuda/plan/*"],
        ["contract", "cuda contract", "device", "persistent", "cluster", "grid", "stepwise"],
    ),
    "dispatch": (["cuda/dispatch.*", "cuda/streams.*"], ["cuda contract", "plan"]),
    "layer": (
        [
            "layer/layer.*",
            "layer/normalised.*",
            "layer/profile.h",
            "layer/autograd.*",
            "layer/cpu/*",
        ],
        ["contract", "cpu"],
    ),
    "layer cuda": (
        ["layer/cuda/*"],
        ["contract", "cuda contract", "plan", "dispatch", "layer"],
    ),
    "bindings": (["layer/bindings.cpp"], ["cpu", "plan", "layer", "layer cuda"]),
}

# Of the plan's includes from the folders of kernels: their sizes alone, plain host code.
SIZES = re.compile(r"^cuda/(cluster|grid|stepwise)/(\w+_)?sizes\.h$")

BENCHMARKS: Rooms = {
    "measure": (["measure/*.py"], []),
    "peers": (["peers/*.py"], ["measure"]),
    "sections": (["sections/*.py"], ["measure", "peers"]),
    "model": (["model/*.py"], ["measure", "peers", "sections"]),
    "report": (["report/*.py"], ["measure", "peers", "sections", "model"]),
    "steps": (["steps/*.py"], ["measure"]),
    "commands": (["*.py"], ["measure", "peers", "sections", "model", "report", "steps"]),
}

# Torch's headers, beside csrc/layer: its memory, threads, errors and matrix product.
TORCH_BELOW_THE_LAYER = {
    "cpu/gemm_cpu.cpp",
    "cpu/instruction_set.cpp",
    "cpu/kept_memory.cpp",
    "cpu/kept_memory.h",
    "cpu/recurrence_cpu.cpp",
}

# Beside csrc/cuda/device: what keeps a compiler from seeing through a value, XGETBV, and tiles,
# whose numbers GCC's intrinsics take as text alone: no template can compute them.
ASM_OF_THE_CPU = {"cpu/amx.cpp", "cpu/processor.h", "cpu/tiles.h", "cpu/vector.h"}

INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
IMPORT = re.compile(
    r"^\s*from benchmarks(?:\.([\w.]+))? import (?:\(([^)]*)\)|([^\n(]+))$", re.MULTILINE
)
TORCH_INCLUDE = re.compile(r'^\s*#\s*include\s*[<"](torch|ATen|c10|pybind11)/', re.MULTILINE)
ASM = re.compile(r"\b(asm|__asm__|__asm)\b")
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


def room_of(path: str, rooms: Rooms) -> str:
    matching = [name for name, (globs, _) in rooms.items() if any(is_in(path, g) for g in globs)]
    assert len(matching) == 1, f"{path} is in {matching or 'no room'}: see the table"
    return matching[0]


def is_in(path: str, glob: str) -> bool:
    """As a shell has it: a star matches no slash."""
    return re.fullmatch(re.escape(glob).replace(r"\*", "[^/]*"), path) is not None


def upward(uses: Mapping[str, Sequence[str]], rooms: Rooms) -> list[str]:
    """Of {file: the files that it uses}, what the table does not allow."""
    names = list(rooms)
    for name, (_, allowed) in rooms.items():
        above = names[: names.index(name)]
        assert set(allowed) <= set(above), f"{name} names what does not stand above it"
    return [
        f"{path} uses {used}"
        for path, all_used in uses.items()
        for used in all_used
        if (room := room_of(used, rooms)) != (own := room_of(path, rooms))
        and room not in rooms[own][1]
    ]


def sources() -> Iterator[tuple[str, str]]:
    for path in sorted((ROOT / "csrc").rglob("*.*")):
        if path.suffix in {".h", ".cuh", ".cu", ".cpp"}:
            yield path.relative_to(ROOT / "csrc").as_posix(), path.read_text()


def includes() -> dict[str, list[str]]:
    """Of each source, the headers of csrc that it includes."""
    return {
        name: [used for used in INCLUDE.findall(text) if (ROOT / "csrc" / used).exists()]
        for name, text in sources()
    }


def imports() -> dict[str, list[str]]:
    """Of each module of benchmarks, those that it imports."""
    folder = ROOT / "benchmarks"
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.py")):
        used = found.setdefault(path.relative_to(folder).as_posix(), [])
        for package, bracketed, plain in IMPORT.findall(path.read_text()):
            base = package.replace(".", "/")
            if (folder / f"{base}.py").exists():
                used.append(f"{base}.py")
                continue
            for name in (bracketed or plain).split(","):
                module = f"{base}/{name.split(' as ')[0].strip()}.py".lstrip("/")
                if (folder / module).exists():
                    used.append(module)
    return found


def test_no_include_runs_upwards() -> None:
    found = includes()
    assert sum(map(len, found.values())) > 100
    assert upward(found, CSRC) == []


def test_no_import_of_the_benchmarks_runs_upwards() -> None:
    found = imports()
    assert sum(map(len, found.values())) > 100
    assert upward(found, BENCHMARKS) == []


def test_what_runs_upwards_is_seen() -> None:
    wrong = {"cuda/warp/pairs.cuh": ["cuda/device/device.h", "cuda/cluster/forward.cuh"]}
    assert upward(wrong, CSRC) == ["cuda/warp/pairs.cuh uses cuda/cluster/forward.cuh"]


def test_the_plan_reads_of_kernels_their_sizes_alone() -> None:
    kernels = ("cuda/cluster/", "cuda/grid/", "cuda/stepwise/")
    found = [
        used
        for path, all_used in includes().items()
        if path.startswith("cuda/plan/")
        for used in all_used
        if used.startswith(kernels)
    ]
    assert found and [used for used in found if not SIZES.match(used)] == []


def test_every_include_is_written_from_csrc() -> None:
    """In one way: a quoted name that csrc does not hold is the emulator's header, or none."""
    wrong = [
        f'{name}: "{used}"'
        for name, text in sources()
        for used in INCLUDE.findall(text)
        if not (ROOT / "csrc" / used).exists() and used != "device_emulator.h"
    ]
    assert wrong == []


def test_torch_headers_stay_in_the_layer() -> None:
    users = {name for name, text in sources() if TORCH_INCLUDE.search(text)}
    assert len(users) > 8
    assert {name for name in users if not name.startswith("layer/")} == TORCH_BELOW_THE_LAYER


def test_asm_stands_in_one_folder() -> None:
    users = {name for name, text in sources() if ASM.search(COMMENT.sub("", text))}
    assert users == {"cuda/device/device_cuda.cuh"} | ASM_OF_THE_CPU


def test_kernels_reach_cuda_through_device_h_alone() -> None:
    """A kernel header that did not could not be emulated."""
    offenders = [
        name
        for name, text in sources()
        if name.endswith(".cuh")
        and not name.startswith("cuda/device/")
        and re.search(r"#\s*include\s*<cuda", text)
    ]
    assert offenders == []
