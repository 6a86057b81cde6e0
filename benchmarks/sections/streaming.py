"""Few steps a call, the states carried: how long a call takes, the usual one and the slow ones."""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.measure.cases import Case
from benchmarks.measure.streams import Stream, is_one_cell
from benchmarks.measure.timing import interleave_calls, percentile
from benchmarks.peers.peer import CELL, LayerPeer, StreamingPeer, is_subject
from benchmarks.sections.contest import Entrant, checked
from benchmarks.sections.session import Session, step_cost

SECONDS_TO_SET_UP = 0.1
PERCENTILES = {"p50": 50.0, "p99": 99.0}


@dataclass(frozen=True)
class StreamingMeasurement:
    """Every layer that carries states; and the cells' classes, where a call is one step of one."""

    case: Case

    @property
    def key(self) -> str:
        return f"streaming/{self.case.key}"

    def cost(self, session: Session) -> float:
        limits, step = session.preset.streaming, step_cost(self.case, session.device)
        return SECONDS_TO_SET_UP + max(limits.seconds, limits.min_rounds * 10 * step)

    def measure(self, session: Session) -> dict[str, Any]:
        seed = session.seed_of(self.key)
        stream = Stream.begin(self.case, seed)
        entrants, skipped = [], {}
        for peer in session.entrants:
            reason = session.absence(peer, self.case)
            if reason is not None:
                skipped[peer.name] = reason
                continue
            if isinstance(peer, StreamingPeer):
                entrants.append(Entrant(peer.name, partial(peer.build_stream, stream), stream))
            if isinstance(peer, LayerPeer) and is_one_cell(self.case):
                entrants.append(Entrant(peer.name + CELL, partial(peer.build_cell, stream), stream))
        steps, verdicts = checked(entrants)
        repeats = 0
        calls: dict[str, list[list[float]]] = {}
        if session.subject.name in steps:
            with torch.inference_mode():  # around the whole stream, not inside each call
                repeats, calls = interleave_calls(
                    steps, random.Random(seed), session.preset.streaming
                )
        return {
            "section": "streaming",
            "unit": "seconds",
            "case": self.case.as_dict(),
            "seed": seed,
            "subjects": [entrant.name for entrant in entrants if is_subject(entrant.name)],
            "control": session.torch_layer.name,
            "skipped": skipped,
            **verdicts,
            "repeats": repeats,
            # The median call of each round: what ratios are taken of.
            "samples": {
                name: [statistics.median(taken) for taken in rounds]
                for name, rounds in calls.items()
            },
            "calls": {name: summary(rounds) for name, rounds in calls.items()},
        }


def summary(rounds: list[list[float]]) -> dict[str, float]:
    """How many calls there were, and their percentiles in seconds."""
    every_call = [seconds for taken in rounds for seconds in taken]
    return {
        "count": len(every_call),
        **{name: percentile(every_call, percent) for name, percent in PERCENTILES.items()},
    }
