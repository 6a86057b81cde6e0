"""What resets cost: rows of several sequences beside plain ones, and beside TorchRL's is_init."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.measure.cases import Case
from benchmarks.measure.problem import DTYPES
from benchmarks.measure.rows import Rows, resets_run
from benchmarks.peers import torchrl
from benchmarks.sections.contest import Entrant, contest
from benchmarks.sections.lengths import PLAIN
from benchmarks.sections.session import Session, contest_cost

SHARES = (0.0, 0.01, 0.1)  # of all steps


def named(name: str, share: float) -> str:
    """An entrant with a share of resets."""
    return f"{name} {share:.0%}"


OURS = [named("resets", share) for share in SHARES[1:]]


@dataclass(frozen=True)
class ResetsMeasurement:
    """One case, with each share of resets."""

    case: Case

    @property
    def key(self) -> str:
        return f"resets/{self.case.key}"

    def cost(self, session: Session) -> float:
        return contest_cost(self.case, session, entrants=2 * len(SHARES))

    def measure(self, session: Session) -> dict[str, Any]:
        seed, dtype = session.seed_of(self.key), DTYPES[self.case.dtype]
        reason = torchrl.absent() or torchrl.declines(self.case)
        ours = session.subject
        entrants: list[Entrant] = []
        for share in SHARES:
            rows = Rows.draw(self.case, seed, share)
            if share == 0:
                entrants.append(Entrant(PLAIN, partial(ours.build, rows), rows))
            else:
                run = partial(resets_run, ours.namespace(), rows, dtype)
                entrants.append(Entrant(named("resets", share), run, rows))
            if reason is None:
                peer = partial(torchrl.TorchRlRun, rows)
                entrants.append(Entrant(named(torchrl.NAME, share), peer, rows))
        return {
            "section": "resets",
            "unit": "seconds",
            "case": self.case.as_dict(),
            "seed": seed,
            "subjects": [PLAIN, *OURS],
            "control": None,
            "skipped": {} if reason is None else {torchrl.NAME: reason},
            **contest(
                entrants,
                session.preset.limits,
                random.Random(seed),
                required=PLAIN,
                stopwatch=session.stopwatch,
            ),
        }
