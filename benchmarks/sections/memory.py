"""Peak memory of a training step, and what it keeps between forward and backward.

On CPU cores: what the process grows by, one process a sample. On CUDA: what torch's allocator
counts, in which every entrant here allocates.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.measure.cases import Case
from benchmarks.measure.child import ChildError, run_python
from benchmarks.measure.problem import Problem
from benchmarks.peers.peer import LayerPeer
from benchmarks.sections.session import Session, step_cost

SECONDS_PER_CHILD = 3.0
SECONDS_PER_CUDA_STEP = 0.2


@dataclass(frozen=True)
class MemoryMeasurement:
    """This package against torch.nn, alternately."""

    case: Case

    @property
    def key(self) -> str:
        return f"memory/{self.case.key}"

    def cost(self, session: Session) -> float:
        fixed = SECONDS_PER_CUDA_STEP if session.device == "cuda" else SECONDS_PER_CHILD
        step = step_cost(self.case, session.device)
        return 2 * session.preset.memory_pairs * (fixed + step)

    def measure(self, session: Session) -> dict[str, Any]:
        layers = (session.subject, session.torch_layer)
        samples: dict[str, list[int]] = {layer.name: [] for layer in layers}
        kept: dict[str, int] = {}
        failed: dict[str, str] = {}
        for _ in range(session.preset.memory_pairs):
            for layer in layers:
                if layer.name in failed:
                    continue
                try:
                    if session.device == "cuda":
                        peak, kept[layer.name] = cuda_bytes(layer, self.case, session)
                    else:
                        peak, kept[layer.name] = cpu_bytes(layer.name, self.case)
                    samples[layer.name].append(peak)
                except (ChildError, RuntimeError) as error:
                    failed[layer.name] = str(error).partition("\n")[0]
        return {
            "section": "memory",
            "unit": "bytes",
            "case": self.case.as_dict(),
            "subjects": [session.subject.name],
            "control": None,
            "failed": failed,
            "kept": kept,
            "samples": {name: taken for name, taken in samples.items() if name not in failed},
        }


def cpu_bytes(namespace: str, case: Case) -> tuple[int, int]:
    """By how much a training step raises the peak of a fresh process, and its forward half keeps.

    What is kept is less input, weights and the returned tensors: they exist in any case.
    """
    task = {"namespace": namespace, "case": case.as_dict(), "threads": torch.get_num_threads()}
    peak, kept = json.loads(run_python("-m", "benchmarks.sections.memory_child", json.dumps(task)))
    return peak, kept


def cuda_bytes(layer: LayerPeer, case: Case, session: Session) -> tuple[int, int]:
    """The same in this process, as torch's allocator counts.

    A first step lets the libraries allocate what they hold for ever.
    """
    run = layer.build(Problem.random(case, session.seed_of(f"memory/{case.key}"), device="cuda"))
    run.step()
    run.clear_gradients()
    peak, _ = growth(run.step, torch.cuda.max_memory_allocated)
    run.clear_gradients()
    kept, returned = growth(run.forward, torch.cuda.memory_allocated)
    return peak, kept - returned


def growth(call: Callable[[], Any], allocated: Callable[[], int]) -> tuple[int, int]:
    """Bytes by which `allocated` rises over a call, and the size of what the call returns."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    returned = call()
    torch.cuda.synchronize()
    return allocated() - before, tensor_bytes(returned)


def tensor_bytes(returned: Any) -> int:
    """The size of all tensors in what a layer returned."""
    if isinstance(returned, torch.Tensor):
        return returned.numel() * returned.element_size()
    return sum(map(tensor_bytes, returned))
