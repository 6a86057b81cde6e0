"""What importing the package adds to importing torch: one process a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.measure.cases import Case
from benchmarks.measure.child import ChildError, run_python
from benchmarks.sections.session import Session

SECONDS_PER_CHILD = 2.0

PROGRAM = """
import time
start = time.perf_counter()
import {modules}
print(time.perf_counter() - start)
"""


@dataclass(frozen=True)
class ImportMeasurement:
    """`import torch` against `import torch, birnn_cuda`, alternately."""

    @property
    def key(self) -> str:
        return "import"

    @property
    def case(self) -> Case | None:
        return None

    def cost(self, session: Session) -> float:
        return 2 * (session.preset.import_pairs + 1) * SECONDS_PER_CHILD

    def measure(self, session: Session) -> dict[str, Any]:
        alone, both = "torch", f"torch, {session.subject.name}"
        samples: dict[str, list[float]] = {alone: [], both: []}
        failed: dict[str, str] = {}
        try:
            for _ in range(1 + session.preset.import_pairs):
                for modules in samples:
                    printed = run_python("-c", PROGRAM.format(modules=modules))
                    samples[modules].append(float(printed))
        except ChildError as error:
            failed[both] = str(error)
        return {
            "section": "import",
            "unit": "seconds",
            "subjects": [both],
            "control": alone,
            "failed": failed,
            # The first of each read the files from disk.
            "samples": {} if failed else {name: taken[1:] for name, taken in samples.items()},
        }
