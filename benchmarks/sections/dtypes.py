"""Speed and error by dtype: fp32, bf16 and int8, this package beside torch.nn and onnxruntime.

The numbers are drawn in fp32, and the right answer is theirs in fp64: rounding weights and input to
what an entrant computes in is part of its error.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from benchmarks.measure.cases import Case
from benchmarks.measure.problem import Problem
from benchmarks.measure.timing import interleave
from benchmarks.peers.low_precision import builders
from benchmarks.peers.peer import SUBJECT
from benchmarks.sections.session import Session, contest_cost


@dataclass(frozen=True)
class DtypesMeasurement:
    """Every entrant in every dtype on one case of fp32."""

    case: Case

    @property
    def key(self) -> str:
        return f"dtypes/{self.case.key}"

    def cost(self, session: Session) -> float:
        return contest_cost(self.case, session, entrants=len(builders(self.case)))

    def measure(self, session: Session) -> dict[str, Any]:
        seed = session.seed_of(self.key)
        problem = Problem.random(self.case, seed, device=session.device)
        steps, errors, failed = {}, {}, {}
        for name, build in builders(self.case).items():
            try:
                run = build(problem)
                found = problem.errors(run.results(run.step()))
            except Exception as error:  # whatever a peer raises is its result
                failed[name] = f"{type(error).__name__}: {error}"
                continue
            steps[name] = run.step
            errors[name] = {tensor: [value] for tensor, value in found.items()}
        repeats, samples = interleave(
            steps, random.Random(seed), session.preset.limits, session.stopwatch.clock
        )
        return {
            "section": "dtypes",
            "unit": "seconds",
            "case": self.case.as_dict(),
            "seed": seed,
            "subjects": [name for name in steps if name.startswith(SUBJECT)],
            "control": None,
            "failed": failed,
            "errors": errors,
            "repeats": repeats,
            "samples": samples,
        }
