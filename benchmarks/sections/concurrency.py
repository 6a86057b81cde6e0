"""Whether two directions run at once: a layer of two against the same layer of one."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.measure.cases import Case
from benchmarks.measure.problem import Problem
from benchmarks.peers.peer import CapturedPeer, LayerPeer, is_subject
from benchmarks.sections.contest import Entrant, contest
from benchmarks.sections.session import Session, contest_cost

TWO = ", two directions"
ONE = ", one direction"


@dataclass(frozen=True)
class ConcurrencyMeasurement:
    """One case in both directions and in one, eager and captured; time 1 if the second is free."""

    case: Case

    @property
    def key(self) -> str:
        return f"concurrency/{self.case.key}"

    def cost(self, session: Session) -> float:
        return contest_cost(self.case, session, entrants=8)

    def measure(self, session: Session) -> dict[str, Any]:
        seed = session.seed_of(self.key)
        problems = {
            TWO: Problem.random(self.case, seed, device=session.device),
            ONE: Problem.random(self.case.one_direction(), seed, device=session.device),
        }
        peers = [peer for peer in session.entrants if isinstance(peer, (LayerPeer, CapturedPeer))]
        entrants = [
            Entrant(peer.name + directions, partial(peer.build, problem), problem)
            for peer in peers
            for directions, problem in problems.items()
        ]
        return {
            "section": "concurrency",
            "unit": "seconds",
            "case": self.case.as_dict(),
            "seed": seed,
            "subjects": [
                peer.name + directions
                for peer in peers
                if is_subject(peer.name)
                for directions in problems
            ],
            "control": None,
            **contest(
                entrants,
                session.preset.limits,
                random.Random(seed),
                required=session.subject.name + TWO,
                stopwatch=session.stopwatch,
            ),
        }
