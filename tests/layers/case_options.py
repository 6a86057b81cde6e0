"""What a case of properties.py asks for beyond torch's layer: resets, regularisers, norms.

Their oracles are those of the tests of each: segments.py, and step_by_step.py with the masks that
the layer draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from drawn_regularisers import drawn_by_hand
from hypothesis import strategies as st
from segments import call_by_segments, draw_resets
from step_by_step import call_step_by_step
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from birnn_cuda.variants import variant_of

# Steps of all sequences, directions and layers together: the oracles run them one by one.
MOST_STEPS = 120


@dataclass(frozen=True)
class Options:
    """Of the layer, but for resets: the pattern of the call's, by segments.draw_resets."""

    resets: str | None = None
    recurrent_dropout: float = 0.0
    zoneout: float | tuple[float, float] = 0.0
    dropout: float = 0.0  # between layers, by the sequence
    layer_norm: bool = False
    training: bool = True

    @property
    def regularises(self) -> bool:
        return bool(self.recurrent_dropout or self.zoneout or self.dropout or self.layer_norm)

    @property
    def is_torchs(self) -> bool:
        """Whether torch's layer can answer, in one call."""
        return self.resets is None and not self.regularises

    def of_layer(self) -> dict[str, Any]:
        """What our layer is built with, where torch's does not have it."""
        return {
            "recurrent_dropout": self.recurrent_dropout,
            "zoneout": self.zoneout,
            "dropout": self.dropout,
            "input_dropout_mask": "sequence",
            "layer_norm": self.layer_norm,
        }


NONE = Options()


@st.composite
def options(draw: st.DrawFn, cell: str, form: str, num_layers: int, is_16_bit: bool) -> Options:
    """Any that go together, and that the oracle of the case's dtype knows; mostly none."""
    kind = draw(st.sampled_from(["none"] * 3 + ["resets", "regularisers", "norm"]))
    if kind == "none" or (kind == "norm" and (cell not in ("gru", "lstm") or is_16_bit)):
        return NONE
    resets = None
    # A packed sequence and a nested one are one sequence each.
    if form not in ("packed", "nested") and (kind == "resets" or draw(st.booleans())):
        resets = draw(st.sampled_from(["rare", "mixed", "mixed", "first", "all", "none"]))
    if kind == "resets" or (cell == "relu" and form in ("packed", "nested")):  # see draw_operands
        return Options(resets)
    probability = st.sampled_from([0.0, 0.25, 0.5])
    # The model of rounding has no masks between layers.
    may_drop = num_layers > 1 and not is_16_bit
    dropout = draw(probability) if may_drop else 0.0
    training = draw(st.sampled_from([True, True, False]))
    if kind == "norm":
        return Options(resets, dropout=dropout, layer_norm=True, training=training)
    of_h = draw(probability)
    return Options(
        resets,
        recurrent_dropout=draw(probability),
        zoneout=(of_h, draw(probability)) if cell.startswith("lstm") else of_h,
        dropout=dropout,
        training=training,
    )


@dataclass(frozen=True)
class Drawn:
    """The tensors of a case's options."""

    resets: Tensor | None  # bool [T, B]
    input_masks: Sequence[Tensor] = ()
    regularisers: Sequence[Sequence[Tensor | None]] = ()

    def exact(self) -> Drawn:
        return Drawn(
            self.resets,
            [mask.double() for mask in self.input_masks],
            [[None if x is None else x.double() for x in own] for own in self.regularisers],
        )


def resets_of(options: Options, lengths: Tensor, seq_len: int) -> Tensor | None:
    """[T, B], none past an end."""
    if options.resets is None:
        return None
    resets = draw_resets(seq_len, lengths.numel(), options.resets)
    return resets & (torch.arange(seq_len).unsqueeze(1) < lengths)


def draw_as_layer(
    layer: Any,
    options: Options,
    form: str,
    input: Tensor,  # [T, B, I]
    lengths: Tensor,
    enforce_sorted: bool,
    resets: Tensor | None,
) -> Drawn:
    """What the layer's call will draw from here on; torch's generator is left as it was."""
    if not options.regularises:
        return Drawn(resets)
    given: Tensor | PackedSequence = input
    if form == "packed":
        given = pack_padded_sequence(input, lengths.cpu().long(), enforce_sorted=enforce_sorted)
    elif form == "nested":  # padded to the longest
        given = input[: int(lengths.max())]
    zoneout = options.zoneout
    of_h, of_c = zoneout if isinstance(zoneout, tuple) else (zoneout, zoneout)
    with torch.random.fork_rng([]):
        input_masks, regularisers = drawn_by_hand(
            layer, given, (options.recurrent_dropout, of_h, of_c), options.training
        )
    for own in regularisers:
        for index, shares in enumerate(own[1:], 1):
            if shares is not None and shares.size(0) > 1:
                missing = input.size(0) - shares.size(0)
                own[index] = pad(shares, (0, 0, 0, 0, 0, missing))
    return Drawn(resets, input_masks, regularisers)


def call_oracle(
    layer: Any,
    options: Options,
    input: Tensor,
    states: Sequence[Tensor],
    lengths: Sequence[int] | None,
    drawn: Drawn,
) -> list[Tensor]:
    """Output, zeros past the lengths, and final states; in the form that `layer` takes, in fp64."""
    drawn = drawn.exact()
    if not options.regularises and variant_of(layer) is None:
        assert drawn.resets is not None
        resets = drawn.resets.t() if layer.batch_first else drawn.resets
        return call_by_segments(layer, input, states, resets, lengths)
    by_time = input.transpose(0, 1) if layer.batch_first else input
    results = call_step_by_step(
        layer,
        by_time,
        states,
        drawn.regularisers or [(None, None, None)] * layer.num_layers,
        None if lengths is None else torch.tensor(lengths),
        drawn.resets,
        drawn.input_masks,
    )
    if layer.batch_first:
        results[0] = results[0].transpose(0, 1)
    return results[:3] if layer.mode == "LSTM" else results
