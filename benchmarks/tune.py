"""``python -m benchmarks tune``: what the plan should choose on this GPU.

For each shape and pass the divisions that the plan chooses from are timed, the recurrence alone,
and its choice is set beside the fastest. ``python -m benchmarks fit FILE`` makes new constants for
the plan's cost model of it, on any machine. Without a GPU that torch can use the exit status is 2.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks import cuda
from benchmarks.cuda_cases import CHESSBOARD, DIAGONAL, DTYPES, EVERYTHING, shapes
from benchmarks.measure.cases import Case, Limits, Preset, grid
from benchmarks.measure.results import Results
from benchmarks.peers.peer import Peer
from benchmarks.sections.divisions import of_cases
from benchmarks.sections.session import Measurement, Session

CELLS = ("lstm", "gru", "rnn")
INPUT_SIZE = 16  # few: the projection is not the subject


def cases(cells: Sequence[str], sizes: Sequence[Any], dtypes: Sequence[str]) -> list[Case]:
    return [
        replace(case, input_size=INPUT_SIZE) for case in grid(cells, sizes, dtypes, ("training",))
    ]


PRESETS: Mapping[str, Preset] = {
    "quick": Preset(
        cases={"divisions": cases(("lstm",), shapes(DIAGONAL), ("fp16",))},
        limits=Limits(seconds=0.0, min_rounds=3, max_rounds=3, min_sample=0.0005),
        budget=50.0,
        compiled=(),
    ),
    "standard": Preset(
        cases={
            "divisions": [
                *cases(("lstm",), EVERYTHING, ("fp16", "tf32")),
                *cases(("gru", "rnn"), shapes(CHESSBOARD), ("fp16", "tf32")),
                *cases(("lstm",), shapes(DIAGONAL), ("fp32",)),
            ]
        },
        limits=Limits(seconds=0.0, min_rounds=5, max_rounds=5, min_sample=0.0005),
        budget=400.0,
        compiled=(),
    ),
    "full": Preset(
        cases={"divisions": cases(CELLS, EVERYTHING, DTYPES)},
        limits=Limits(seconds=0.5, min_rounds=7, max_rounds=50, min_sample=0.001),
        compiled=(),
    ),
}


class TuneCommand(cuda.CudaCommand):
    name = "tune"
    help = "time the ways of dividing a pass that the plan chooses from"
    description = __doc__ or ""
    budgets = "quick (under 1 minute), standard (under 7; the default) or full"
    sections = ("divisions",)
    presets = PRESETS

    def all_peers(self) -> list[Peer]:
        return []

    def measurements(
        self, cases: Mapping[str, Sequence[Case]], sections: Sequence[str], filtered: bool
    ) -> list[Measurement]:
        return [*of_cases(case for chosen in cases.values() for case in chosen)]

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "limits": dict(cuda.limits_of_this_gpu())}

    @contextlib.contextmanager
    def session(self, results: Results, peers: Sequence[Peer]) -> Iterator[Session]:
        with super().session(results, peers) as session:
            session.gpu_limits = results.data["limits"]
            yield session


COMMAND = TuneCommand()
