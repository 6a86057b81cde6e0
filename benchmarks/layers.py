"""The main section: the layer against its peers, case by case."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.cases import Case, Preset
from benchmarks.contest import Entrant, contest
from benchmarks.flops import flops
from benchmarks.problem import Problem
from benchmarks.session import Session, contest_cost


@dataclass(frozen=True)
class LayerMeasurement:
    """This package, torch.nn and the other peers on one case."""

    case: Case

    @property
    def key(self) -> str:
        return f"layers/{self.case.key}"

    def cost(self, preset: Preset) -> float:
        return contest_cost(self.case, preset, entrants=2 if self.case.training else 3)

    def measure(self, session: Session) -> dict[str, Any]:
        seed = session.seed_of(self.key)
        problem = Problem.random(self.case, seed)
        entrants = []
        skipped = {}
        for peer in (session.subject, *session.peers):
            reason = peer.declines(self.case)
            if reason is None:
                entrants.append(Entrant(peer.name, partial(peer.build, problem), problem))
            else:
                skipped[peer.name] = reason
        subject = session.subject.name
        session.sample_gemm(self.case.dtype)
        timings = contest(entrants, session.preset, random.Random(seed), required=subject)
        session.sample_gemm(self.case.dtype)
        return {
            "section": "layers",
            "unit": "seconds",
            "case": self.case.as_dict(),
            "flops": flops(self.case),
            "seed": seed,
            "subjects": [subject],
            "control": session.torch_layer.name,
            "skipped": skipped,
            **timings,
        }
