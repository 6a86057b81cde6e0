"""What each warp of a kernel executes in a step: PTX as nvcc makes it, run by an interpreter.

Beside the machine code that play.py reads: what is executed, not what stands there, and the bytes
by state space; but before ptxas. The kernels' test drivers are compiled for the interpreter
(tests/emulator/ptx) with every instance, and called as the plan divides a problem, for two numbers
of steps: a step is the difference. How often a warp asks in vain for what others bring is the
emulator's schedule, the same each time. Bytes are those of 32 lanes, also where fewer take part.
"""

from __future__ import annotations

import ctypes
import functools
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.steps.builds import ROOT, Call, Unavailable

FEW_STEPS, MORE_STEPS = 4, 6
# csrc/recurrence.h: the values of Cell and Element; num_gates, reserve_blocks, dgates_blocks.
CELLS = {"tanh": ("kTanh", 0, 1, 0, 1), "relu": ("kRelu", 1, 1, 0, 1)}
CELLS |= {"gru": ("kGru", 2, 3, 4, 4), "lstm": ("kLstm", 3, 4, 5, 4)}
ELEMENTS = {"fp16": (2, torch.float16), "bf16": (3, torch.bfloat16)}
ELEMENTS |= {"tf32": (1, torch.float32), "ieee": (1, torch.float32)}
# Of a direction, in the order of the drivers (tests/kernels/driver_arguments.h).
FORWARD = [
    "weight_hh",
    "weight_hr",
    "bias_ih",
    "bias_hh",
    "hx",
    "cx",
    "gates",
    "output",
    "hy",
    "cy",
    "resets",
]
BACKWARD = [
    "weight_hh",
    "weight_hr",
    "hx",
    "cx",
    "output",
    "reserve",
    "dy",
    "dc",
    "dgates",
    "dproj",
    "dhx",
    "dcx",
    "dbias_ih",
    "dbias_hh",
    "resets",
    "first_dgates",
]
REGULARISERS = ["recurrent_mask", "zoneout_h", "zoneout_c"]
ABSENT = {"weight_hr", "dproj", "dc", "zoneout_h", "zoneout_c"}


@dataclass
class Counted:
    """What some warps of the busiest block execute in a step, each of them."""

    warps: list[int]
    instructions: float
    classes: dict[str, float] = field(default_factory=dict)
    bytes_loaded: dict[str, float] = field(default_factory=dict)  # by state space, of 32 lanes
    bytes_stored: dict[str, float] = field(default_factory=dict)


@functools.cache
def _driver(kernel: str, cell: str) -> ctypes.CDLL:
    source = ROOT / "tests" / "kernels" / f"{kernel}_driver.cpp"
    command = [sys.executable, str(ROOT / "tests" / "emulator" / "build.py"), str(source)]
    command += ["--front-end", "ptx", "--shared", "-D", "BIRNN_ALL_INSTANCES"]
    command += ["-D", f"BIRNN_ONE_CELL=Cell::{CELLS[cell][0]}"]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode != 0:
        raise Unavailable(built.stderr[-4000:])
    library = ctypes.CDLL(built.stdout.strip())
    library.ptx_counts.restype = ctypes.c_char_p
    library.birnn_emulator_last_error.restype = ctypes.c_char_p
    return library


def _integers(*values: int) -> Any:
    return (ctypes.c_int64 * len(values))(*values)


def _launch(call: Call, steps: int, given: str) -> list[dict[str, Any]]:
    """Runs one direction of a call on small numbers; what each warp of the recurrence executed."""
    cell, precision, hidden, batch = call.problem
    _, cell_value, gates, reserve, dgates = CELLS[cell]
    element, dtype = ELEMENTS[precision]
    is_forward = call.kernel.endswith("forward")
    width = max(gates, reserve) * hidden
    # One size for all: the largest array is the weights, or a row of gates for each step.
    numbers = max(gates * hidden, batch) * hidden + steps * batch * max(width, dgates * hidden)
    absent = ABSENT | ({"resets"} if given != "resets" else set())
    absent |= {"recurrent_mask"} if given != "recurrent-dropout" else set()
    arrays: list[torch.Tensor] = []
    addresses: list[int | None] = []
    for name in (FORWARD if is_forward else BACKWARD) + REGULARISERS:
        if name in absent:
            addresses.append(None)
            continue
        carried = name in ("cy", "dhx", "dcx")  # in fp32
        array = torch.full((numbers,), 0.01, dtype=torch.float32 if carried else dtype)
        if name == "resets":
            array.zero_()
        arrays.append(array)
        addresses.append(array.data_ptr())
    pointers = (ctypes.c_void_p * len(addresses))(*addresses)
    strides = [width, hidden] if is_forward else [hidden, width, hidden, hidden, dgates * hidden]
    is_grid = call.kernel.startswith("grid")
    library = _driver(call.kernel, cell)
    library.birnn_emulator_configure(b"fifo", b"eager", ctypes.c_uint64(1), 0)
    library.ptx_count_launches(1)
    status = getattr(library, f"{call.kernel}_driver")(
        _integers(cell_value, element, steps, batch, hidden, 0),
        *([1] if is_grid else []),  # directions
        0,  # not backwards in time
        *([int(call.which == "training")] if is_forward else []),
        None,  # lengths
        pointers,
        _integers(*strides, 0, 0),
        _integers(*call.tiling, int(precision == "tf32")),
    )
    launches = json.loads(library.ptx_counts())
    library.ptx_count_launches(0)
    if status != 0:
        raise Unavailable(f"{call.kernel}: {library.birnn_emulator_last_error().decode()}")
    warps: list[dict[str, Any]] = next(
        one["warps"] for one in launches if f"{call.kernel}_kernel" in one["kernel"]
    )
    return warps


def _step_of(few: dict[str, Any], more: dict[str, Any]) -> Counted:
    def difference(key: str) -> dict[str, float]:
        names = few[key].keys() | more[key].keys()
        steps = {
            name: (more[key].get(name, 0) - few[key].get(name, 0)) / (MORE_STEPS - FEW_STEPS)
            for name in sorted(names)
        }
        return {name: count for name, count in steps.items() if count}

    instructions = (more["instructions"] - few["instructions"]) / (MORE_STEPS - FEW_STEPS)
    named = [difference(key) for key in ("classes", "bytes_loaded", "bytes_stored")]
    return Counted([few["warp"]], instructions, *named)


def count(call: Call, given: str) -> Sequence[Counted]:
    """The busiest block of a call, warps that execute the same together."""
    few, more = (_launch(call, steps, given) for steps in (FEW_STEPS, MORE_STEPS))
    blocks: dict[int, list[Counted]] = {}
    for one, other in zip(few, more, strict=True):
        blocks.setdefault(one["block"][0], []).append(_step_of(one, other))
    busiest = max(blocks.values(), key=lambda warps: max(warp.instructions for warp in warps))
    together: list[Counted] = []
    for warp in busiest:
        for group in together:
            alike = (group.classes, group.bytes_loaded, group.bytes_stored)
            if alike == (warp.classes, warp.bytes_loaded, warp.bytes_stored):
                group.warps += warp.warps
                break
        else:
            together.append(warp)
    return together
