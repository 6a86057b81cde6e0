"""What another process on the same cores does to a layer: one that spins, and a second of its kind.

A layer whose threads meet at every step waits for the thread whose core is taken.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.measure.cases import Case
from benchmarks.measure.child import ChildError, Neighbour
from benchmarks.measure.problem import Problem
from benchmarks.measure.timing import calls_a_sample, turns, wall_seconds
from benchmarks.peers.peer import LayerPeer, is_subject
from benchmarks.sections import busy_child
from benchmarks.sections.contest import Entrant, checked
from benchmarks.sections.session import Session, step_cost

CHILD = ("-m", "benchmarks.sections.busy_child")
SPINNING = ", beside a process that spins"
SECOND = ", beside a second process of its own"
NEIGHBOURS = (SPINNING, SECOND)

SECONDS_TO_START = 4.0
SECONDS_TO_SETTLE = 0.01


@dataclass(frozen=True)
class BusyMeasurement:
    """This package and torch.nn on one case: alone and beside each neighbour, interleaved."""

    case: Case

    @property
    def key(self) -> str:
        return f"busy/{self.case.key}"

    def cost(self, session: Session) -> float:
        limits, step = session.preset.busy, step_cost(self.case, session.device)
        a_sample = 3 * max(limits.min_sample, step)
        return SECONDS_TO_START + limits.min_rounds * 2 * (1 + len(NEIGHBOURS)) * a_sample

    def measure(self, session: Session) -> dict[str, Any]:
        seed = session.seed_of(self.key)
        problem = Problem.random(self.case, seed)
        peers = [peer for peer in session.entrants if isinstance(peer, LayerPeer)]
        steps, verdicts = checked(
            [Entrant(peer.name, partial(peer.build, problem), problem) for peer in peers]
        )
        repeats = 0
        samples: dict[str, list[float]] = {}
        if session.subject.name in steps:
            try:
                repeats, samples = self.beside_neighbours(steps, session, seed)
            except ChildError as error:
                verdicts["failed"]["a neighbour"] = str(error)
        return {
            "section": "busy",
            "unit": "seconds",
            "case": self.case.as_dict(),
            "seed": seed,
            "subjects": [
                peer.name + neighbour
                for peer in peers
                if is_subject(peer.name)
                for neighbour in ("", *NEIGHBOURS)
            ],
            "control": None,  # what the machine does meanwhile is what is measured
            **verdicts,
            "repeats": repeats,
            "samples": samples,
        }

    def beside_neighbours(
        self, steps: Mapping[str, Callable[[], Any]], session: Session, seed: int
    ) -> tuple[int, dict[str, list[float]]]:
        """Calls a sample, and seconds a call: alone under an entrant's name, else with what is
        beside it. All neighbours live through all rounds, and rest when it is not their turn."""
        limits = session.preset.busy
        task = {
            "case": self.case.as_dict(),
            "threads": torch.get_num_threads(),
            "seed": seed,
        }
        with contextlib.ExitStack() as alive:
            spinning = alive.enter_context(Neighbour(*CHILD, busy_child.SPIN))
            neighbours = [spinning]
            beside: dict[str, tuple[Callable[[], Any], Neighbour | None]] = {}
            for name, step in steps.items():
                second = Neighbour(*CHILD, json.dumps({**task, "namespace": name}))
                neighbours.append(alive.enter_context(second))
                beside[name] = step, None
                beside[name + SPINNING] = step, spinning
                beside[name + SECOND] = step, second
            for neighbour in neighbours:  # begun all at once: each takes a second to import torch
                neighbour.rest_when_ready()
            repeats = calls_a_sample([wall_seconds(step, 1) for step in steps.values()], limits)
            samples: dict[str, list[float]] = {name: [] for name in beside}
            for name in turns(list(beside), random.Random(seed), limits):
                step, other = beside[name]
                with other.at_work() if other is not None else contextlib.nullcontext():
                    time.sleep(SECONDS_TO_SETTLE)
                    samples[name].append(wall_seconds(step, repeats))
        return repeats, samples
