"""What a measurement is about: the case, the preset that bounds a run, and the filters.

A case is one layer on one shape, in one dtype, for one pass. The grids of the presets stand in
``cpu_cases.py`` and ``cuda_cases.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

CELLS = ("rnn", "gru", "lstm")  # rnn: tanh
PASSES = ("inference", "training")
PRESET_NAMES = ("quick", "standard", "full")

Shape = tuple[int, int, int]  # T, B, H; the input size is H


class FilterError(ValueError):
    """A filter names a value that no case has, or the filters together leave nothing."""


@dataclass(frozen=True)
class Case:
    """One layer on one shape: the unit of the grid.

    ``dtype`` names the format and how it is multiplied: tf32 is fp32 whose products may be rounded
    to TF32, as CUDA's libraries do by default; fp32 is fp32 throughout.
    """

    cell: str
    seq_len: int
    batch_size: int
    input_size: int
    hidden_size: int
    pass_name: str
    dtype: str = "fp32"
    bidirectional: bool = True
    num_layers: int = 1

    @property
    def training(self) -> bool:
        return self.pass_name == "training"

    @property
    def num_directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def is_square(self) -> bool:
        """One layer of both directions whose input is as wide as it is: of what B and H say all."""
        return self.bidirectional and self.num_layers == 1 and self.input_size == self.hidden_size

    @property
    def key(self) -> str:
        """Its name in a results file."""
        shape = f"T{self.seq_len}-B{self.batch_size}-I{self.input_size}-H{self.hidden_size}"
        directions = "" if self.bidirectional else "/one-direction"
        layers = "" if self.num_layers == 1 else f"/{self.num_layers}-layers"
        return f"{self.cell}/{shape}/{self.dtype}/{self.pass_name}{directions}{layers}"

    def one_direction(self) -> Case:
        return replace(self, bidirectional=False)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Limits:
    """How long an entry is timed.

    In rounds, until ``seconds`` are spent, but never in fewer than ``min_rounds`` or more than
    ``max_rounds``. A sample shorter than ``min_sample`` seconds is made of several calls.
    """

    seconds: float
    min_rounds: int
    max_rounds: int
    min_sample: float


@dataclass(frozen=True)
class Preset:
    """What is measured, by section, and for how long.

    ``streaming`` and ``busy`` are the limits of the sections of those names: the one times many
    short calls, the other in turns with other processes.

    Once ``budget`` seconds have passed no further entry is begun; None is no limit. Peers that
    compile a program for each case take part in those of ``compiled`` only; None is everywhere.
    """

    cases: Mapping[str, Sequence[Case]]
    limits: Limits
    memory_pairs: int = 1
    import_pairs: int = 0
    accuracy_draws: int = 1
    budget: float | None = None
    compiled: Sequence[Case] | None = None
    streaming: Limits = Limits(seconds=0.5, min_rounds=5, max_rounds=1000, min_sample=0.002)
    busy: Limits = Limits(seconds=0.0, min_rounds=5, max_rounds=5, min_sample=0.05)


def grid(
    cells: Iterable[str],
    shapes: Iterable[Shape],
    dtypes: Sequence[str],
    passes: Sequence[str] = PASSES,
) -> list[Case]:
    """Every cell on every shape in every dtype, inference then training."""
    shapes = tuple(shapes)
    return [
        Case(cell, seq_len, batch_size, hidden_size, hidden_size, pass_name, dtype)
        for dtype in dtypes
        for cell in cells
        for seq_len, batch_size, hidden_size in shapes
        for pass_name in passes
    ]


def over_length(lengths: Iterable[int], batch_size: int, hidden_size: int) -> tuple[Shape, ...]:
    """A sweep over T."""
    return tuple((seq_len, batch_size, hidden_size) for seq_len in lengths)


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
        check_values(name, values, valid)
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


def check_values(name: str, values: Iterable[str], valid: Iterable[str]) -> None:
    """Refuse a value of the option ``--name`` that is not among the valid ones."""
    valid = list(valid)
    for value in values:
        if value not in valid:
            raise FilterError(f"--{name} {value}: valid values are {', '.join(valid)}")
