"""The neighbour of the busy section: it spins on one core, or runs a layer again and again."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.measure.child import READY, end_with_parent

SPIN = "spin"


def layer_step(task: dict[str, Any]) -> Callable[[], Any]:
    """A step of the layer, on as many threads as the parent has."""
    import torch  # not in a process that only spins

    from benchmarks.measure.cases import Case
    from benchmarks.measure.problem import Problem
    from benchmarks.peers.peer import LayerPeer

    torch.set_num_threads(task["threads"])
    problem = Problem.random(Case(**task["case"]), task["seed"])
    step: Callable[[], Any] = LayerPeer(task["namespace"]).build(problem).step
    step()
    return step


def main(argument: str) -> None:
    end_with_parent()
    step = None if argument == SPIN else layer_step(json.loads(argument))
    print(READY, flush=True)
    while True:
        if step is not None:
            step()


if __name__ == "__main__":
    main(sys.argv[1])
