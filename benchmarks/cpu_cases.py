"""The grid of ``python -m benchmarks cpu``, and the presets that cut it to size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.measure.cases import CELLS, Case, Limits, Preset, Shape, grid, over_length

SECTIONS = ("layers", "dtypes", "lengths", "memory", "accuracy", "import")

SHAPES: tuple[Shape, ...] = (
    (100, 1, 64),
    (100, 1, 256),
    (100, 8, 256),
    (100, 32, 128),
    (100, 32, 512),
    (200, 64, 512),
)
QUICK_SHAPES: tuple[Shape, ...] = ((100, 1, 64), (100, 8, 256), (100, 32, 128))
SWEPT = (50, 100, 200, 400)
DTYPES_SHAPES: tuple[Shape, ...] = (
    (100, 1, 64),
    (50, 1, 512),
    (50, 1, 1024),
    (100, 8, 256),
    (100, 32, 128),
    (50, 32, 512),
)
ACCURACY_SHAPES: tuple[Shape, ...] = ((100, 8, 256),)


def sections(
    layers: Sequence[Case],
    dtypes: Sequence[Case],
    lengths: Sequence[Case],
    memory: Sequence[Case],
    accuracy: Sequence[Case],
) -> dict[str, Sequence[Case]]:
    """The cases of each section; importing the package has no case."""
    return {
        "layers": layers,
        "dtypes": dtypes,
        "lengths": lengths,
        "memory": memory,
        "accuracy": accuracy,
    }


PRESETS: Mapping[str, Preset] = {
    "quick": Preset(
        cases=sections(
            grid(CELLS, QUICK_SHAPES, ("fp32",)),
            grid(("lstm",), ((100, 8, 256),), ("fp32",)),
            grid(("lstm",), over_length((50, 100, 200), 8, 256), ("fp32",)),
            grid(("lstm",), ((100, 32, 256),), ("fp32",), ("training",)),
            grid(("lstm",), ACCURACY_SHAPES, ("fp32", "bf16"), ("training",)),
        ),
        limits=Limits(seconds=0.4, min_rounds=5, max_rounds=100, min_sample=0.002),
        import_pairs=2,
    ),
    "standard": Preset(
        cases=sections(
            grid(CELLS, SHAPES, ("fp32",)),
            grid(CELLS, DTYPES_SHAPES, ("fp32",)),
            [
                *grid(("rnn",), ((100, 8, 256), (100, 32, 512)), ("fp32",)),
                *grid(("gru", "lstm"), (*over_length(SWEPT, 8, 256), (100, 32, 512)), ("fp32",)),
            ],
            grid(CELLS, ((200, 64, 512),), ("fp32",), ("training",)),
            grid(CELLS, ACCURACY_SHAPES, ("fp32", "bf16", "fp64"), ("training",)),
        ),
        limits=Limits(seconds=2.0, min_rounds=5, max_rounds=300, min_sample=0.002),
        memory_pairs=2,
        import_pairs=7,
        accuracy_draws=3,
    ),
    "full": Preset(
        cases=sections(
            grid(CELLS, SHAPES, ("fp32", "fp64", "bf16")),
            grid(CELLS, (*DTYPES_SHAPES, (200, 64, 512)), ("fp32",)),
            grid(
                CELLS,
                (*over_length((25, *SWEPT, 800), 8, 256), *over_length(SWEPT, 32, 512)),
                ("fp32",),
            ),
            grid(CELLS, ((100, 32, 512), (200, 64, 512)), ("fp32",), ("training",)),
            grid(CELLS, SHAPES, ("fp32", "bf16", "fp64"), ("training",)),
        ),
        limits=Limits(seconds=15.0, min_rounds=15, max_rounds=1000, min_sample=0.002),
        memory_pairs=5,
        import_pairs=15,
        accuracy_draws=5,
    ),
}
