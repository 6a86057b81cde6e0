"""What is measured: the grid of cases, the presets that cut it to size, and the filters.

A case is one bidirectional layer on one shape, in one dtype, for one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

CELLS = ("rnn", "gru", "lstm")  # rnn: tanh
PASSES = ("inference", "training")
SECTIONS = ("layers", "lengths", "memory", "import")

Shape = tuple[int, int, int]  # T, B, H; the input size is H

SHAPES: tuple[Shape, ...] = (
    (100, 1, 64),
    (100, 1, 256),
    (100, 8, 256),
    (100, 32, 128),
    (100, 32, 512),
    (200, 64, 512),
)


class FilterError(ValueError):
    """A filter names a value that no case has, or the filters together leave nothing."""


@dataclass(frozen=True)
class Case:
    """One layer, both directions, on one shape: the unit of the grid."""

    cell: str
    seq_len: int
    batch_size: int
    input_size: int
    hidden_size: int
    pass_name: str
    dtype: str = "fp32"

    @property
    def training(self) -> bool:
        return self.pass_name == "training"

    @property
    def key(self) -> str:
        """Its name in a results file."""
        shape = f"T{self.seq_len}-B{self.batch_size}-I{self.input_size}-H{self.hidden_size}"
        return f"{self.cell}/{shape}/{self.dtype}/{self.pass_name}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Preset:
    """How much is measured, and for how long.

    An entry is timed in rounds until ``seconds`` are spent, but never in fewer than ``min_rounds``
    or more than ``max_rounds``. A sample shorter than ``min_sample`` seconds is made of several
    calls.
    """

    shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...]
    length_shapes: tuple[Shape, ...]
    length_cells: tuple[str, ...]
    memory_shapes: tuple[Shape, ...]
    memory_cells: tuple[str, ...]
    memory_pairs: int
    import_pairs: int
    seconds: float
    min_rounds: int
    max_rounds: int
    min_sample: float = 0.002


PRESETS: Mapping[str, Preset] = {
    "quick": Preset(
        shapes=((100, 1, 64), (100, 8, 256), (100, 32, 128)),
        dtypes=("fp32",),
        length_shapes=((100, 8, 256),),
        length_cells=("lstm",),
        memory_shapes=((100, 32, 256),),
        memory_cells=("lstm",),
        memory_pairs=1,
        import_pairs=2,
        seconds=0.4,
        min_rounds=5,
        max_rounds=100,
    ),
    "standard": Preset(
        shapes=SHAPES,
        dtypes=("fp32",),
        length_shapes=((100, 8, 256), (100, 32, 512)),
        length_cells=CELLS,
        memory_shapes=((200, 64, 512),),
        memory_cells=CELLS,
        memory_pairs=2,
        import_pairs=7,
        seconds=3.0,
        min_rounds=5,
        max_rounds=300,
    ),
    "full": Preset(
        shapes=SHAPES,
        dtypes=("fp32", "fp64", "bf16"),
        length_shapes=((100, 8, 256), (100, 32, 512)),
        length_cells=CELLS,
        memory_shapes=((100, 32, 512), (200, 64, 512)),
        memory_cells=CELLS,
        memory_pairs=5,
        import_pairs=15,
        seconds=15.0,
        min_rounds=15,
        max_rounds=1000,
    ),
}


def grid(cells: Iterable[str], shapes: Iterable[Shape], dtypes: Sequence[str]) -> list[Case]:
    """Every cell on every shape in every dtype, inference then training."""
    shapes = tuple(shapes)
    return [
        Case(cell, seq_len, batch_size, hidden_size, hidden_size, pass_name, dtype)
        for dtype in dtypes
        for cell in cells
        for seq_len, batch_size, hidden_size in shapes
        for pass_name in PASSES
    ]


def cases_of(preset: Preset) -> dict[str, list[Case]]:
    """The cases of each section; importing the package has no case."""
    memory = grid(preset.memory_cells, preset.memory_shapes, ("fp32",))
    return {
        "layers": grid(CELLS, preset.shapes, preset.dtypes),
        "lengths": grid(preset.length_cells, preset.length_shapes, ("fp32",)),
        "memory": [case for case in memory if case.training],
    }


# What can be filtered on: the option's name, and where a case keeps the value.
FILTERS: Mapping[str, Callable[[Case], str]] = {
    "cell": lambda case: case.cell,
    "dtype": lambda case: case.dtype,
    "hidden": lambda case: str(case.hidden_size),
    "batch": lambda case: str(case.batch_size),
    "length": lambda case: str(case.seq_len),
    "pass": lambda case: case.pass_name,
}


def select(
    cases: Mapping[str, Sequence[Case]], wanted: Mapping[str, Sequence[str]]
) -> dict[str, list[Case]]:
    """The cases of each section that every filter lets through.

    ``wanted`` maps the name of a filter to the values it lets through. A value that no case has
    raises ``FilterError``, which lists those that exist; so does an empty selection.
    """
    everything = [case for section in cases.values() for case in section]
    for name, values in wanted.items():
        value_of = FILTERS[name]
        valid = list(dict.fromkeys(value_of(case) for case in everything))
        if all(value.isdigit() for value in valid):
            valid.sort(key=int)
        for value in values:
            if value not in valid:
                raise FilterError(f"--{name} {value}: valid values are {', '.join(valid)}")
    chosen = {
        section: [
            case
            for case in section_cases
            if all(FILTERS[name](case) in values for name, values in wanted.items())
        ]
        for section, section_cases in cases.items()
    }
    if not any(chosen.values()):
        filters = " ".join(f"--{name} {' '.join(values)}" for name, values in wanted.items())
        shapes = dict.fromkeys(
            f"(T={case.seq_len}, B={case.batch_size}, H={case.hidden_size})" for case in everything
        )
        raise FilterError(f"no case has {filters} together; the shapes are {', '.join(shapes)}")
    return chosen
