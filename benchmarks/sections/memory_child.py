"""The child of the memory section: one training step, then print by how many bytes it grew.

Printed with it: how many bytes the forward half of a step keeps for the backward half.

The peak is the kernel's high-water mark of this very process, reset just before the step, less
what was resident then. Linux hands ru_maxrss from a parent down to its children, so there it
would be the parent's whenever the parent is the larger; it serves where there is no /proc.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import resource
import sys
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.measure.cases import Case
from benchmarks.measure.problem import DTYPES, LayerRun, Problem, make_layer

STATUS = Path("/proc/self/status")
RESET_PEAK = "5"  # written to clear_refs: see proc(5)


def peak_growth(namespace: str, case: Case) -> int:
    """Bytes by which one training step raises the peak of the process above its start."""
    layers = importlib.import_module(namespace)
    small = replace(case, seq_len=3, batch_size=2, input_size=8, hidden_size=8)
    _ready(layers, small).step()  # loads libraries, starts threads
    run = _ready(layers, case)
    gc.collect()
    if not STATUS.exists():
        before = _ru_maxrss()
        run.step()
        return _ru_maxrss() - before
    _return_freed_memory()
    Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    before = _status_bytes("VmRSS")
    run.step()
    return _status_bytes("VmHWM") - before


def kept_bytes(run: LayerRun) -> int:
    """Bytes that a step's forward half saves for backward: its reserve.

    Less input, parameters and the returned tensors, which exist in any case. Counted by storage:
    a view of something kept keeps all of it, once.
    """
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output, state = run.forward()
    states = state if isinstance(state, tuple) else (state,)
    exist = {tensor.untyped_storage().data_ptr() for tensor in (*run.leaves, output, *states)}
    return sum(size for address, size in saved.items() if address not in exist)


def _ready(layers: object, case: Case) -> LayerRun:
    dtype = DTYPES[case.dtype]
    steps = case.seq_len, case.batch_size
    problem = Problem(
        case,
        weights=make_layer(torch.nn, case, dtype).state_dict(),
        input=torch.randn(*steps, case.input_size, dtype=dtype),
        d_output=torch.randn(*steps, 2 * case.hidden_size, dtype=dtype),
        lengths=torch.full((case.batch_size,), case.seq_len),
    )
    return LayerRun(layers, problem, dtype)


def _return_freed_memory() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _status_bytes(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{STATUS} has no {field}")


def _ru_maxrss() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    case = Case(**task["case"])
    peak = peak_growth(task["namespace"], case)
    kept = kept_bytes(_ready(importlib.import_module(task["namespace"]), case))
    print(json.dumps([peak, kept]))
