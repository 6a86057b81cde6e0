"""Peak memory of a training step: what the process grows by, one process a sample."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.cases import Case, Preset
from benchmarks.child import ChildError, run_python
from benchmarks.session import Session, contest_cost

SECONDS_PER_CHILD = 3.0


@dataclass(frozen=True)
class MemoryMeasurement:
    """This package against torch.nn, alternately."""

    case: Case

    @property
    def key(self) -> str:
        return f"memory/{self.case.key}"

    def cost(self, preset: Preset) -> float:
        step = contest_cost(self.case, preset, entrants=0) - preset.seconds
        return 2 * preset.memory_pairs * (SECONDS_PER_CHILD + step / 6)

    def measure(self, session: Session) -> dict[str, Any]:
        names = [session.subject.name, session.torch_layer.name]
        samples: dict[str, list[int]] = {name: [] for name in names}
        failed: dict[str, str] = {}
        for _ in range(session.preset.memory_pairs):
            for name in names:
                if name in failed:
                    continue
                try:
                    samples[name].append(peak_bytes(name, self.case))
                except ChildError as error:
                    failed[name] = str(error)
        return {
            "section": "memory",
            "unit": "bytes",
            "case": self.case.as_dict(),
            "subjects": names[:1],
            "control": None,
            "failed": failed,
            "samples": {name: taken for name, taken in samples.items() if name not in failed},
        }


def peak_bytes(namespace: str, case: Case) -> int:
    """By how much a training step raises the peak of a fresh process."""
    task = {"namespace": namespace, "case": case.as_dict(), "threads": torch.get_num_threads()}
    return int(run_python("-m", "benchmarks.memory_child", json.dumps(task)))
