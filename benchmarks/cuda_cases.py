"""The grid of ``python -m benchmarks cuda``, and the presets that cut it to size.

The presets list what matters most first: when the budget ends a run early, it ends the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product

from benchmarks.measure.cases import CELLS, PASSES, Case, Limits, Preset, Shape, grid, over_length

SECTIONS = ("layers", "concurrency", "lengths", "memory", "accuracy")

HIDDEN_SIZES = (128, 256, 512, 1024)
BATCH_SIZES = (1, 8, 32, 128)
SEQ_LEN = 256
SWEPT = (64, 256, 1024)  # T, for what unequal lengths cost
DTYPES = ("fp16", "tf32", "bf16", "fp32")

# H and B as on a chessboard, one colour: every row and column of the grid twice.
CHESSBOARD = tuple(
    (hidden_size, batch_size)
    for (row, hidden_size), (column, batch_size) in product(
        enumerate(HIDDEN_SIZES), enumerate(BATCH_SIZES)
    )
    if (row + column) % 2 == 1
)
DIAGONAL = ((128, 1), (256, 32), (512, 8), (1024, 128))

# The one layer for which cuDNN has a persistent kernel in torch, and published times exist: fp16,
# one direction.
PERSISTENT = tuple(
    Case("lstm", 1024, 16, 768, 768, pass_name, "fp16", bidirectional=False) for pass_name in PASSES
)


def shapes(sizes: Iterable[tuple[int, int]], seq_len: int = SEQ_LEN) -> tuple[Shape, ...]:
    """(T, B, H) of (H, B)."""
    return tuple((seq_len, batch_size, hidden_size) for hidden_size, batch_size in sizes)


def longer_and_shorter(cells: Sequence[str], dtypes: Sequence[str]) -> list[Case]:
    """What the time grows like with T; the grid itself holds T=256."""
    return grid(cells, over_length((64, 1024), 32, 256), dtypes)


EVERYTHING = shapes(product(HIDDEN_SIZES, BATCH_SIZES))
# Where the peers take part that need up to minutes to compile themselves for a case.
COMPILED = (
    *grid(CELLS, shapes([(256, 32)]), ("fp16",)),
    *grid(("lstm",), shapes([(256, 32)]), ("tf32",)),
)

PRESETS: Mapping[str, Preset] = {
    "quick": Preset(
        cases={
            "layers": [
                *grid(("lstm",), shapes([(256, 32), (128, 1)]), ("fp16", "tf32")),
                *grid(("gru", "rnn"), shapes([(256, 32)]), ("fp16",)),
                *PERSISTENT,
                *grid(("lstm",), shapes([(512, 32), (1024, 8)]), ("fp16",)),
                *grid(("lstm",), shapes([(256, 32)]), ("bf16", "fp32")),
                *grid(("gru", "rnn"), shapes([(1024, 32)]), ("fp16",)),
            ],
            "concurrency": grid(("lstm", "gru"), shapes([(256, 32)]), ("fp16",), ("inference",)),
            "lengths": grid(("lstm",), over_length(SWEPT, 32, 256), ("fp16",), ("inference",)),
            "memory": grid(("lstm",), shapes([(256, 32)]), ("fp16",), ("training",)),
            "accuracy": grid(("lstm",), shapes([(256, 32)]), DTYPES, ("training",)),
        },
        limits=Limits(seconds=0.2, min_rounds=5, max_rounds=30, min_sample=0.0005),
        budget=50.0,
        compiled=(),
    ),
    "standard": Preset(
        cases={
            "layers": [
                *grid(("lstm",), EVERYTHING, ("fp16", "tf32")),
                *grid(("gru", "rnn"), shapes(CHESSBOARD), ("fp16", "tf32")),
                *PERSISTENT,
                *grid(("lstm",), shapes(DIAGONAL), ("bf16", "fp32")),
                *longer_and_shorter(("lstm",), ("fp16",)),
            ],
            "concurrency": grid(CELLS, shapes([(256, 32)]), ("fp16", "tf32")),
            "lengths": [
                *grid(("lstm", "gru"), over_length(SWEPT, 32, 256), ("fp16",)),
                *grid(("rnn",), shapes([(256, 32)]), ("fp16",)),
            ],
            "memory": grid(CELLS, shapes([(256, 32), (1024, 128)]), ("fp16",), ("training",)),
            "accuracy": grid(CELLS, shapes([(256, 32)]), DTYPES, ("training",)),
        },
        limits=Limits(seconds=1.0, min_rounds=5, max_rounds=100, min_sample=0.0005),
        accuracy_draws=3,
        budget=570.0,
        compiled=COMPILED,
    ),
    "full": Preset(
        cases={
            "layers": [
                *grid(CELLS, EVERYTHING, DTYPES),
                *PERSISTENT,
                *longer_and_shorter(CELLS, DTYPES),
            ],
            "concurrency": grid(CELLS, shapes([(256, 32), (512, 32)]), DTYPES),
            "lengths": grid(
                CELLS,
                (*over_length(SWEPT, 32, 256), *over_length(SWEPT, 128, 512)),
                ("fp16", "tf32"),
            ),
            "memory": grid(CELLS, EVERYTHING, ("fp16", "tf32"), ("training",)),
            "accuracy": grid(CELLS, shapes(DIAGONAL), DTYPES, ("training",)),
        },
        limits=Limits(seconds=4.0, min_rounds=10, max_rounds=300, min_sample=0.001),
        accuracy_draws=5,
    ),
}
