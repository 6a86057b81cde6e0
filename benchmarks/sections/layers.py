"""The main section: the layer against its peers, case by case."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.measure.cases import Case
from benchmarks.measure.flops import compulsory_bytes, flops
from benchmarks.measure.problem import Problem
from benchmarks.peers.peer import is_subject
from benchmarks.sections.contest import Entrant, contest
from benchmarks.sections.session import Session, contest_cost


@dataclass(frozen=True)
class LayerMeasurement:
    """This package, torch.nn and the other peers on one case."""

    case: Case

    @property
    def key(self) -> str:
        return f"layers/{self.case.key}"

    def cost(self, session: Session) -> float:
        takes_part = [session.absence(peer, self.case) is None for peer in session.entrants]
        return contest_cost(self.case, session, entrants=sum(takes_part))

    def measure(self, session: Session) -> dict[str, Any]:
        seed = session.seed_of(self.key)
        problem = Problem.random(self.case, seed, device=session.device)
        entrants = []
        skipped = {}
        for peer in session.entrants:
            reason = session.absence(peer, self.case)
            if reason is None:
                entrants.append(Entrant(peer.name, partial(peer.build, problem), problem))
            else:
                skipped[peer.name] = reason
        session.sample_gemm(self.case.dtype)
        timings = contest(
            entrants,
            session.preset.limits,
            random.Random(seed),
            required=session.subject.name,
            stopwatch=session.stopwatch,
        )
        session.sample_gemm(self.case.dtype)
        return {
            "section": "layers",
            "unit": "seconds",
            "case": self.case.as_dict(),
            "flops": flops(self.case),
            "bytes": compulsory_bytes(self.case),
            "seed": seed,
            "subjects": [peer.name for peer in session.entrants if is_subject(peer.name)],
            "control": session.torch_layer.name,
            "kernel": session.kernel_of(self.case) if session.kernel_of is not None else None,
            "skipped": skipped,
            **timings,
        }
