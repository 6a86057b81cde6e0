"""The cases of properties.py: a layer and a call of it, as hypothesis draws them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from case_options import MOST_STEPS, NONE, Options, options
from conftest import CELLS, VARIANTS
from hypothesis import strategies as st

STRIDES = ("contiguous", "transposed", "sliced", "expanded")
# A norm of few numbers that hardly differ magnifies their rounding.
SMALLEST_NORM = 4
FORMS = ("padded", "lengths", "packed", "nested", "unbatched", "unbatched_length")


@dataclass(frozen=True)
class Case:
    """A layer and a call of it."""

    cell: str
    dtype: torch.dtype
    form: str  # of the input, one of FORMS
    seq_len: int
    batch_size: int
    input_size: int
    hidden_size: int
    lengths: tuple[int, ...]  # all seq_len where the form has none
    num_layers: int = 1
    bidirectional: bool = True
    bias: bool = True
    batch_first: bool = False
    lengths_dtype: torch.dtype = torch.int64
    sorted_lengths: bool = False  # packed: enforce_sorted
    with_states: bool = False
    recompute: bool = False
    input_strides: str = "contiguous"
    state_strides: str = "contiguous"
    cotangent_strides: str = "contiguous"
    grad_operands: tuple[bool, ...] = (True, True, True)  # input, hx, cx
    grad_weights: tuple[bool, ...] = (True,)  # in turn
    used_outputs: tuple[bool, ...] = (True, True, True)  # output, h_n, c_n
    threads: int = 1
    options: Options = NONE
    seed: int = 0

    @property
    def is_unbatched(self) -> bool:
        return self.form.startswith("unbatched")

    @property
    def has_lengths(self) -> bool:
        return self.form in ("lengths", "packed", "nested", "unbatched_length")


def sizes(largest: int, *special: int) -> st.SearchStrategy[int]:
    """1 to `largest`, and more often those at which kernels change what they do."""
    return st.integers(1, largest) | st.sampled_from(special or (1,))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any case that torch.nn can answer as well, some that it can only sequence by sequence, and
    some of options that it does not have."""
    form = draw(st.sampled_from(FORMS))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
    cell = draw(st.sampled_from((*CELLS, *VARIANTS)))
    # Of few numbers can it be asked that none lies near relu's kink.
    small = cell == "relu"
    seq_len = draw(sizes(5) if small else sizes(9, 1, 2, 5, 40))
    batch_size = draw(sizes(5) if small else sizes(20, 1, 2, 3, 9, 17, 33))
    hidden_size = draw(sizes(17, 1, 8, 16) if small else sizes(40, 1, 7, 8, 15, 16, 17, 33, 64))
    is_16_bit = dtype in (torch.float16, torch.bfloat16)
    # What a layer rounds to 16 bits moves the preactivations of the next across relu's kink.
    num_layers = 1 if cell == "relu" and is_16_bit else draw(st.integers(1, 3))
    flags = st.booleans()
    bidirectional = draw(flags)
    of_case = draw(options(cell, form, num_layers, is_16_bit))
    if not of_case.is_torchs or cell in VARIANTS:
        steps = seq_len * num_layers * (2 if bidirectional else 1)
        batch_size = min(batch_size, max(1, MOST_STEPS // steps))
    if of_case.layer_norm:
        hidden_size = max(hidden_size, SMALLEST_NORM)
    if form.startswith("unbatched"):
        batch_size = 1
    shortest = 1 if form in ("packed", "unbatched_length") else 0
    lengths = [seq_len] * batch_size
    if form in ("lengths", "packed", "nested", "unbatched_length"):
        one = st.integers(shortest, seq_len)
        lengths = draw(st.lists(one, min_size=batch_size, max_size=batch_size))
        if max(lengths) == 0:
            lengths[0] = seq_len
    smallest = 2 if cell == "lstm_proj" else 1
    used = draw(st.tuples(flags, flags, flags).filter(any))
    if not cell.startswith("lstm"):
        used = (used[0], used[1] or not used[0], False)
    return Case(
        cell=cell,
        dtype=dtype,
        form=form,
        seq_len=seq_len,
        batch_size=batch_size,
        input_size=draw(sizes(40, 1, 7, 8, 16, 33)),
        hidden_size=max(smallest, hidden_size),
        lengths=tuple(lengths),
        num_layers=num_layers,
        bidirectional=bidirectional,
        bias=draw(flags) or (cell == "relu" and is_16_bit),  # see check
        batch_first=draw(flags),
        lengths_dtype=draw(st.sampled_from([torch.int64, torch.int32])),
        sorted_lengths=draw(flags),
        with_states=draw(flags),
        recompute=draw(flags),
        input_strides=draw(st.sampled_from(STRIDES)),
        state_strides=draw(st.sampled_from(STRIDES)),
        cotangent_strides=draw(st.sampled_from(STRIDES)),
        grad_operands=draw(st.tuples(flags, flags, flags)),
        grad_weights=tuple(draw(st.lists(flags, min_size=1, max_size=5))),
        used_outputs=used,
        threads=draw(st.sampled_from([1, 1, 1, 3])),
        options=of_case,
        seed=draw(st.integers(0, 2**31 - 1)),
    )


# Both directions of one layer, all strides plain, every gradient asked for: for tests that choose
# cell and sizes themselves.
PLAIN = Case(
    cell="lstm",
    dtype=torch.float32,
    form="lengths",
    seq_len=3,
    batch_size=1,
    input_size=1,
    hidden_size=2,
    lengths=(),
    with_states=True,
)
