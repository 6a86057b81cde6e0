"""What unequal lengths cost over T: each way to hand sequences over, against a plain batch."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmarks.measure.cases import Case
from benchmarks.measure.problem import Problem
from benchmarks.measure.results import Entry
from benchmarks.sections.contest import Entrant, contest
from benchmarks.sections.session import Session, contest_cost

PLAIN = "plain"
FULL = "lengths full"
RANDOM = "lengths random"
PACKED = "packed random"
TORCH_PLAIN = "torch plain"
TORCH_PACKED = "torch packed random"
VARIANTS = (PLAIN, FULL, RANDOM, PACKED, TORCH_PLAIN, TORCH_PACKED)


@dataclass(frozen=True)
class LengthsMeasurement:
    """One case, with its sequences handed over in every way."""

    case: Case

    @property
    def key(self) -> str:
        return f"lengths/{self.case.key}"

    def cost(self, session: Session) -> float:
        return contest_cost(self.case, session, entrants=len(VARIANTS))

    def measure(self, session: Session) -> dict[str, Any]:
        seed = session.seed_of(self.key)
        equal = Problem.random(self.case, seed, device=session.device)
        unequal = Problem.random(self.case, seed, equal_lengths=False, device=session.device)
        ours, torch_layer = session.subject.build, session.torch_layer.build
        entrants = [
            Entrant(PLAIN, partial(ours, equal), equal),
            Entrant(FULL, partial(ours, equal, "lengths"), equal),
            Entrant(RANDOM, partial(ours, unequal, "lengths"), unequal),
            Entrant(PACKED, partial(ours, unequal, "packed"), unequal),
            Entrant(TORCH_PLAIN, partial(torch_layer, equal), equal),
            Entrant(TORCH_PACKED, partial(torch_layer, unequal, "packed"), unequal),
        ]
        return {
            "section": "lengths",
            "unit": "seconds",
            "case": self.case.as_dict(),
            "seed": seed,
            "lengths": unequal.lengths.tolist(),
            "subjects": [PLAIN, FULL, RANDOM, PACKED],
            "control": TORCH_PACKED,
            **contest(
                entrants,
                session.preset.limits,
                random.Random(seed),
                required=PLAIN,
                stopwatch=session.stopwatch,
            ),
        }


def sweeps(entries: Iterable[Entry]) -> list[list[Entry]]:
    """The entries that differ in T alone, from the shortest to the longest, sweep by sweep."""
    found: dict[Case, list[Entry]] = {}
    for entry in entries:
        found.setdefault(replace(Case(**entry["case"]), seq_len=0), []).append(entry)
    return [sorted(sweep, key=lambda entry: entry["case"]["seq_len"]) for sweep in found.values()]


def filled(entry: Entry) -> float:
    """The share of the padded batch that is no padding, where the lengths are unequal."""
    case = entry["case"]
    return float(sum(entry["lengths"]) / (case["seq_len"] * case["batch_size"]))
