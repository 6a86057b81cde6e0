"""How far each entrant is from the fp64 answer, tensor by tensor. Nothing is timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.measure.cases import Case
from benchmarks.measure.problem import Problem
from benchmarks.peers.peer import CapturedPeer, PackedPeer, is_subject
from benchmarks.sections.session import Session, step_cost


@dataclass(frozen=True)
class AccuracyMeasurement:
    """The relative error of output, states and gradients, over a few draws of the numbers."""

    case: Case

    @property
    def key(self) -> str:
        return f"accuracy/{self.case.key}"

    def cost(self, session: Session) -> float:
        draws = session.preset.accuracy_draws
        return draws * (0.05 + 10 * step_cost(self.case, session.device))

    def measure(self, session: Session) -> dict[str, Any]:
        errors: dict[str, dict[str, list[float]]] = {}
        failed: dict[str, str] = {}
        peers = [
            peer
            for peer in session.entrants
            # These compute by the very kernels of another entrant.
            if not isinstance(peer, (CapturedPeer, PackedPeer))
            and session.absence(peer, self.case) is None
        ]
        for draw in range(session.preset.accuracy_draws):
            problem = Problem.random(
                self.case, session.seed_of(f"{self.key} {draw}"), device=session.device
            )
            try:
                problem.solve()
            except torch.OutOfMemoryError as error:
                failed["the fp64 answer"] = str(error).partition("\n")[0]
                break
            for peer in peers:
                if peer.name in failed:
                    continue
                try:
                    run = peer.build(problem)
                    results = run.results(run.step())
                    reason = problem.check(results).reason
                    found = problem.errors(results) if reason is None else {}
                except Exception as error:  # whatever a peer raises is its result
                    reason, found = f"{type(error).__name__}: {error}", {}
                if reason is not None:
                    failed[peer.name] = reason
                for tensor, value in found.items():
                    errors.setdefault(peer.name, {}).setdefault(tensor, []).append(value)
        return {
            "section": "accuracy",
            "unit": "relative error",
            "case": self.case.as_dict(),
            "subjects": [peer.name for peer in peers if is_subject(peer.name)],
            "control": None,
            "failed": failed,
            "errors": errors,
            "samples": {},
        }
