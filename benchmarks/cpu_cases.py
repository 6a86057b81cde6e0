"""The grid of ``python -m benchmarks cpu``, and the presets that cut it to size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from benchmarks.measure.cases import CELLS, PASSES, Case, Limits, Preset, Shape, grid, over_length

SECTIONS = (
    *("layers", "dtypes", "lengths", "resets", "memory", "accuracy"),
    *("streaming", "busy", "import"),
)

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
# Of networks that people run: cell, T, B, I, H, directions, layers.
Network = tuple[str, int, int, int, int, int, int]
NETWORKS: tuple[Network, ...] = (
    ("lstm", 25, 32, 100, 300, 2, 1),  # a tagger's
    ("lstm", 10, 512, 50, 50, 2, 1),  # characters of a tagger's words
    ("lstm", 40, 32, 512, 256, 2, 2),  # lines of OCR (CRNN), together
    ("lstm", 80, 1, 512, 256, 2, 2),  # and alone
    ("lstm", 589, 8, 60, 128, 2, 4),  # speech (PyanNet)
    ("lstm", 255, 1, 512, 256, 2, 3),  # a separator of music (Open-Unmix)
    ("gru", 1000, 16, 10, 128, 2, 2),  # nanopore reads (medaka)
    ("lstm", 160, 4, 40, 256, 1, 3),  # a speaker encoder (GE2E)
    ("lstm", 160, 8, 256, 768, 1, 1),  # a large one's second layer
    ("lstm", 120, 8, 100, 1024, 1, 1),  # a language model
    ("gru", 50, 16, 2048, 128, 2, 1),  # wide features, few units
    ("lstm", 20, 8, 1024, 1024, 2, 1),
)
QUICK_NETWORKS = NETWORKS[:1]
RESETS_SHAPES: tuple[Shape, ...] = ((50, 8, 256), (100, 32, 128))
ACCURACY_SHAPES: tuple[Shape, ...] = ((100, 8, 256),)
BUSY = (("lstm", (50, 1, 1024)), ("lstm", (100, 8, 256)), ("gru", (100, 8, 256)))

# Of streams: T of a call, B, H, directions, layers.
STEPS_A_CALL = (1, 2, 4, 16)
STREAM_BATCHES = (1, 4)
STREAM_SIZES = (64, 128, 256, 512, 1024)


def streams(
    cells: Sequence[str],
    steps: Sequence[int] = STEPS_A_CALL,
    batches: Sequence[int] = (1,),
    sizes: Sequence[int] = STREAM_SIZES,
    directions: Sequence[int] = (1,),
    layers: Sequence[int] = (1,),
) -> Iterator[Case]:
    """Every combination, in inference."""
    for cell, d, n, t, b, h in product(cells, directions, layers, steps, batches, sizes):
        yield Case(cell, t, b, h, h, "inference", bidirectional=d == 2, num_layers=n)


def streams_of_a_preset(cells: Sequence[str]) -> Iterator[Case]:
    """From one small stream each way: T and H together, then B, directions and layers."""
    yield from streams(cells, sizes=(64, 256, 1024))
    yield from streams(cells, steps=(1,), sizes=(128, 512))
    yield from streams(cells, steps=(1, 16), batches=(4,), sizes=(64, 256, 1024))
    yield from streams(cells, steps=(4, 16), sizes=(64, 256, 1024), directions=(2,))
    yield from streams(cells, steps=(1,), sizes=(64, 256, 1024), layers=(3,))


def networks(chosen: Sequence[Network] = NETWORKS) -> list[Case]:
    """Inference, then training, in fp32."""
    return [
        Case(cell, t, b, i, h, pass_name, bidirectional=d == 2, num_layers=n)
        for cell, t, b, i, h, d, n in chosen
        for pass_name in PASSES
    ]


def beside_others(shapes: Sequence[tuple[str, Shape]], directions: Sequence[int]) -> list[Case]:
    """Of section busy."""
    return [
        Case(cell, t, b, h, h, "inference", bidirectional=d == 2)
        for cell, (t, b, h) in shapes
        for d in directions
    ]


def with_resets(
    cells: Sequence[str], shapes: Sequence[Shape], directions: Sequence[int]
) -> list[Case]:
    """Of section resets."""
    return [
        Case(cell, t, b, h, h, pass_name, bidirectional=d == 2)
        for cell in cells
        for t, b, h in shapes
        for d in directions
        for pass_name in PASSES
    ]


def sections(
    layers: Sequence[Case],
    dtypes: Sequence[Case],
    lengths: Sequence[Case],
    resets: Sequence[Case],
    memory: Sequence[Case],
    accuracy: Sequence[Case],
    streaming: Sequence[Case],
    busy: Sequence[Case],
) -> dict[str, Sequence[Case]]:
    """The cases of each section; importing the package has no case."""
    return {
        "layers": layers,
        "dtypes": dtypes,
        "lengths": lengths,
        "resets": resets,
        "memory": memory,
        "accuracy": accuracy,
        "streaming": streaming,
        "busy": busy,
    }


PRESETS: Mapping[str, Preset] = {
    "quick": Preset(
        cases=sections(
            grid(CELLS, QUICK_SHAPES, ("fp32",)) + networks(QUICK_NETWORKS),
            grid(("lstm",), ((100, 8, 256),), ("fp32",)),
            grid(("lstm",), over_length((50, 100, 200), 8, 256), ("fp32",)),
            with_resets(("lstm",), RESETS_SHAPES[:1], (1,)),
            grid(("lstm",), ((100, 32, 256),), ("fp32",), ("training",)),
            grid(("lstm",), ACCURACY_SHAPES, ("fp32", "bf16"), ("training",)),
            [
                *streams(("gru", "lstm"), steps=(1, 16), sizes=(64, 256)),
                *streams(("lstm",), steps=(4,), sizes=(256,), directions=(2,)),
                *streams(("lstm",), steps=(1,), sizes=(256,), layers=(3,)),
            ],
            beside_others(BUSY[1:2], (2,)),
        ),
        streaming=Limits(seconds=0.25, min_rounds=5, max_rounds=100, min_sample=0.002),
        busy=Limits(seconds=0.0, min_rounds=3, max_rounds=3, min_sample=0.05),
        limits=Limits(seconds=0.4, min_rounds=5, max_rounds=100, min_sample=0.002),
        import_pairs=2,
    ),
    "standard": Preset(
        cases=sections(
            grid(CELLS, SHAPES, ("fp32",)) + networks(),
            grid(CELLS, DTYPES_SHAPES, ("fp32",)),
            [
                *grid(("rnn",), ((100, 8, 256), (100, 32, 512)), ("fp32",)),
                *grid(("gru", "lstm"), (*over_length(SWEPT, 8, 256), (100, 32, 512)), ("fp32",)),
            ],
            with_resets(("gru", "lstm"), RESETS_SHAPES, (1, 2)),
            grid(CELLS, ((200, 64, 512),), ("fp32",), ("training",)),
            grid(CELLS, ACCURACY_SHAPES, ("fp32", "bf16", "fp64"), ("training",)),
            [*streams_of_a_preset(("gru", "lstm")), *streams(("rnn",), steps=(1,))],
            beside_others(BUSY, (2, 1)),
        ),
        streaming=Limits(seconds=0.7, min_rounds=5, max_rounds=300, min_sample=0.002),
        busy=Limits(seconds=5.0, min_rounds=5, max_rounds=50, min_sample=0.05),
        limits=Limits(seconds=2.0, min_rounds=5, max_rounds=300, min_sample=0.002),
        memory_pairs=2,
        import_pairs=7,
        accuracy_draws=3,
    ),
    "full": Preset(
        cases=sections(
            grid(CELLS, SHAPES, ("fp32", "fp64", "bf16")) + networks(),
            grid(CELLS, (*DTYPES_SHAPES, (200, 64, 512)), ("fp32",)),
            grid(
                CELLS,
                (*over_length((25, *SWEPT, 800), 8, 256), *over_length(SWEPT, 32, 512)),
                ("fp32",),
            ),
            with_resets(CELLS, (*RESETS_SHAPES, (200, 64, 512)), (1, 2)),
            grid(CELLS, ((100, 32, 512), (200, 64, 512)), ("fp32",), ("training",)),
            grid(CELLS, SHAPES, ("fp32", "bf16", "fp64"), ("training",)),
            list(
                streams(CELLS, batches=STREAM_BATCHES, directions=(1, 2), layers=(1, 3)),
            ),
            beside_others(BUSY, (2, 1)),
        ),
        streaming=Limits(seconds=5.0, min_rounds=15, max_rounds=1000, min_sample=0.002),
        busy=Limits(seconds=30.0, min_rounds=15, max_rounds=300, min_sample=0.2),
        limits=Limits(seconds=15.0, min_rounds=15, max_rounds=1000, min_sample=0.002),
        memory_pairs=5,
        import_pairs=15,
        accuracy_draws=5,
    ),
}
