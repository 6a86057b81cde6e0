"""What the formats share: a layer made of weights in torch's order, and its weights as arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..layers import GRU, LSTM, RNN
from ..sequences import check_lengths_form
from ..variants import variant_of

__all__ = ["Imported", "Reversed", "Weights", "make_layer", "read_layers", "reorder"]

_GATES = {"tanh": 1, "relu": 1, "gru": 3, "lstm": 4, "gru_reset_before": 3, "lstm_peepholes": 4}

_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_ch")  # in the order of Weights


@dataclasses.dataclass
class Weights:
    """One direction of one layer, in torch's order of gates.

    Attributes:
        w_ih: ``[G*H, I]``.
        w_hh: ``[G*H, H]``.
        b_ih, b_hh: ``[G*H]``; both None in a layer without biases.
        w_ch: ``[3*H]``, the peepholes of an LSTM's i, f and o; None: it has none.
    """

    w_ih: Any
    w_hh: Any
    b_ih: Any = None
    b_hh: Any = None
    w_ch: Any = None

    def arrays(self) -> tuple[Any, ...]:
        """All of them, in this order."""
        return self.w_ih, self.w_hh, self.b_ih, self.b_hh, self.w_ch


@dataclasses.dataclass
class Imported:
    """A layer read out of a file.

    Attributes:
        name: what the file calls it.
        layer: an :class:`RNN`, :class:`GRU` or :class:`LSTM`, or a :class:`Reversed` one.
        hx: ``[D, B, H]``, the initial state that the file holds; None is zeros.
        cx: ``[D, B, H]``, that of an LSTM's cell; None is zeros.
    """

    name: str
    layer: nn.Module
    hx: Tensor | None = None
    cx: Tensor | None = None


class Reversed(nn.Module):
    """A layer of one direction that reads each sequence from its end to its start.

    Outputs stand at the step they belong to; padding past ``lengths`` is not read, and its outputs
    are zero: the second half of a bidirectional layer, alone.

    Args:
        layer: of one direction and one layer.

    Raises:
        ValueError: a layer of two directions or of several layers.
    """

    layer: RNN | GRU | LSTM

    def __init__(self, layer: RNN | GRU | LSTM) -> None:
        super().__init__()
        if layer.bidirectional or layer.num_layers != 1:
            raise ValueError("only a layer of one direction, alone, can be reversed")
        self.layer = layer

    def forward(self, input: Tensor, hx: Any = None, *, lengths: Tensor | None = None) -> Any:
        """Run the layer backwards.

        Args:
            input: ``[T, B, I]``, or ``[B, T, I]`` of a layer with ``batch_first``.
            hx: as of the layer.
            lengths: int64 or int32 ``[B]``; None is T for all.

        Returns:
            ``output`` in the form of ``input`` and the final states, those after the first step.

        Raises:
            ValueError: the input has not 3 dimensions, or as the layer does.
        """
        if input.dim() != 3:
            raise ValueError(f"Reversed takes 3-D input, got {input.dim()}-D")
        time = 1 if self.layer.batch_first else 0
        if lengths is None:
            output, final = self.layer(input.flip(time), hx)
            return output.flip(time), final
        check_lengths_form(lengths, input.size(1 - time))
        steps = torch.arange(input.size(time), device=input.device)[:, None]
        ends = lengths.to(input.device)[None]
        index = torch.where(steps < ends, ends - 1 - steps, steps)  # [T, B]
        index = (index.t() if time else index).unsqueeze(2)
        output, final = self.layer(
            input.gather(time, index.expand(-1, -1, input.size(2))), hx, lengths=lengths
        )
        return output.gather(time, index.expand(-1, -1, output.size(2))), final


def make_layer(
    cell: str,
    layers: Sequence[Sequence[Weights]],
    batch_first: bool = False,
    merge_mode: str | None = "concat",
) -> RNN | GRU | LSTM:
    """A layer that holds ``layers``: of each of its layers, the weights of each direction.

    In the dtype of the weights, on the CPU, in eval mode as read weights are for use.

    Raises:
        ValueError: shapes that do not fit together.
    """
    gates = _GATES[cell]
    first = layers[0][0]
    rows, input_size = np.shape(first.w_ih)
    hidden_size = rows // gates
    options: dict[str, Any] = {
        "num_layers": len(layers),
        "bias": first.b_ih is not None,
        "batch_first": batch_first,
        "bidirectional": len(layers[0]) == 2,
        "merge_mode": merge_mode,
        "dtype": torch.from_numpy(np.empty(0, np.asarray(first.w_ih).dtype)).dtype,
    }
    layer: RNN | GRU | LSTM
    if cell in ("gru", "gru_reset_before"):
        layer = GRU(input_size, hidden_size, reset_after=cell == "gru", **options)
    elif cell in ("lstm", "lstm_peepholes"):
        layer = LSTM(input_size, hidden_size, peepholes=cell == "lstm_peepholes", **options)
    else:
        layer = RNN(input_size, hidden_size, nonlinearity=cell, **options)
    state: dict[str, Tensor] = {}
    for index, directions in enumerate(layers):
        for suffix, weights in zip(("", "_reverse"), directions, strict=False):
            for name, value in zip(_NAMES, weights.arrays(), strict=True):
                if value is not None:
                    state[f"{name}_l{index}{suffix}"] = torch.from_numpy(np.array(value, order="C"))
    try:
        layer.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(f"the weights are not those of one layer: {error}") from error
    return layer.eval()


def read_layers(
    layer: nn.RNNBase, *, merges: bool = False, variants: Sequence[str] = ()
) -> list[list[Weights]]:
    """The weights of each layer and direction, as arrays; the inverse of :func:`make_layer`.

    Args:
        layer: of this package or of ``torch.nn``.
        merges: the caller writes down the layer's ``merge_mode`` as well.
        variants: the cells that the format has, "reset_after=False" or "peepholes=True".

    Raises:
        NotImplementedError: a layer with ``proj_size``, which no other format here has, with
            ``reset_after=False`` or ``peepholes=True`` that the format does not have, or with a
            ``merge_mode`` that nothing would say.
    """
    variant = variant_of(layer)
    if variant is not None and variant not in variants:
        raise NotImplementedError(
            f"a layer with {variant} has no form there: birnn_cuda.onnx.export writes one"
        )
    if layer.proj_size:
        raise NotImplementedError("a layer with proj_size has no form elsewhere")
    mode = getattr(layer, "merge_mode", "concat")
    if mode != "concat" and not merges:
        raise NotImplementedError(
            f"a layer with merge_mode={mode!r} has no form there: both directions are given side "
            "by side"
        )
    state = {name: value.detach().cpu().numpy() for name, value in layer.state_dict().items()}
    return [
        [
            Weights(*(state.get(f"{name}_l{index}{suffix}") for name in _NAMES))
            for suffix in (("", "_reverse") if layer.bidirectional else ("",))
        ]
        for index in range(layer.num_layers)
    ]


def reorder(array: Any, order: Sequence[int], axis: int = 0) -> Any:
    """``array`` with its ``len(order)`` equal blocks along ``axis`` as ``order`` says.

    Raises:
        ValueError: the axis is not that many equal blocks.
    """
    array = np.asarray(array)
    if array.shape[axis] % len(order):
        raise ValueError(
            f"an axis of {array.shape[axis]} is not {len(order)} gates: shape {array.shape}"
        )
    blocks = np.split(array, len(order), axis)
    return np.concatenate([blocks[index] for index in order], axis)
