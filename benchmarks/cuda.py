"""``python -m benchmarks cuda``: the layer on a GPU, against cuDNN and every peer that is there.

Each entrant is called eagerly, and this package and torch.nn captured in a CUDA graph as well: the
first shows what a user gets who changes nothing, the second the kernels alone. Without a GPU that
torch can use the exit status is 2.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from benchmarks.command import MeasuringCommand
from benchmarks.cuda_cases import PRESETS, SECTIONS
from benchmarks.measure.cases import Case
from benchmarks.measure.clocks import SETTINGS, query, recording, sampling_command
from benchmarks.measure.device_clock import cuda_stopwatch
from benchmarks.measure.results import Results
from benchmarks.model.limit_model import PUBLISHED
from benchmarks.peers.compiled import CompiledLoopPeer
from benchmarks.peers.flashrnn import FlashRNNPeer
from benchmarks.peers.jax import JaxPeer
from benchmarks.peers.onnxruntime import OnnxCudaPeer
from benchmarks.peers.peer import CapturedPeer, PackedPeer, Peer
from benchmarks.sections.accuracy import AccuracyMeasurement
from benchmarks.sections.concurrency import ConcurrencyMeasurement
from benchmarks.sections.divisions import plan_arguments
from benchmarks.sections.layers import LayerMeasurement
from benchmarks.sections.lengths import LengthsMeasurement
from benchmarks.sections.memory import MemoryMeasurement
from benchmarks.sections.session import Measurement, Session

NO_GPU = "this needs a GPU that torch can use, and here there is none"

MEASUREMENTS: Mapping[str, type[Any]] = {
    "layers": LayerMeasurement,
    "concurrency": ConcurrencyMeasurement,
    "lengths": LengthsMeasurement,
    "memory": MemoryMeasurement,
    "accuracy": AccuracyMeasurement,
}


class CudaCommand(MeasuringCommand):
    name = "cuda"
    help = "measure on a GPU, against cuDNN and other peers"
    description = __doc__ or ""
    budgets = "quick (under 1 minute), standard (under 10; the default) or full"
    sections: Sequence[str] = SECTIONS
    presets = PRESETS
    device = "cuda"

    def all_peers(self) -> list[Peer]:
        return [
            CapturedPeer(self.subject()),
            self.torch_layer(),
            CapturedPeer(self.torch_layer()),
            PackedPeer(self.torch_layer()),
            OnnxCudaPeer(),
            CompiledLoopPeer(),
            FlashRNNPeer(),
            JaxPeer(),
        ]

    def measurements(
        self, cases: Mapping[str, Sequence[Case]], sections: Sequence[str], filtered: bool
    ) -> list[Measurement]:
        return [MEASUREMENTS[name](case) for name, chosen in cases.items() for case in chosen]

    def refusal(self) -> str | None:
        return None if torch.cuda.is_available() else NO_GPU

    def facts(self) -> dict[str, Any]:
        return {"device": device_facts(), "limit_model": asdict(PUBLISHED)}

    @contextlib.contextmanager
    def session(self, results: Results, peers: Sequence[Peer]) -> Iterator[Session]:
        with super().session(results, peers) as session:
            session.device = self.device
            session.stopwatch = cuda_stopwatch()
            session.kernel_of = partial(planned_kernel, limits_of_this_gpu())
            with recording(sampling_command(device_name())) as session.clocks:
                yield session


def limits_of_this_gpu() -> dict[str, Any]:
    from birnn_cuda.__main__ import limits_of_this_gpu

    return limits_of_this_gpu()


def planned_kernel(limits: Mapping[str, Any], case: Case) -> str:
    """Which of this package's kernels run the recurrence of a case on the GPU of these limits: one
    name, or that of forward and that of backward; and those of a graph, where they are others."""
    from birnn_cuda import ops

    def kernels(captured: bool) -> str:
        arguments = {**plan_arguments(case), "captured": captured}
        plan = ops.plan(dict(limits), **arguments, training=case.training)
        names = [plan[side]["kernel"] for side in ("forward", "backward") if plan[side] is not None]
        return ", ".join(dict.fromkeys(names))

    try:
        eager, captured = kernels(False), kernels(True)
    except ValueError:  # none on this GPU: the layer raises the same, and is reported
        return "none"
    return eager if eager == captured else f"{eager}; in a graph {captured}"


def device_name() -> str:
    """The current device as nvidia-smi knows it, which counts those that torch does not see."""
    return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"


def device_facts() -> dict[str, Any]:
    """The GPU, its driver and its clocks, as far as torch and nvidia-smi tell."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    answers = query(list(SETTINGS.values()), device_name())
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **{name: answers.get(field) for name, field in SETTINGS.items()},
    }


COMMAND = CudaCommand()
