"""BiRNN: the complete bidirectional recurrent network of Schuster & Paliwal (1997)."""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .layers import GRU, LSTM, RNN
from .recurrent import merge_directions
from .sequences import padding_mask

__all__ = ["BiRNN"]


class BiRNN(nn.Module):
    """Two hidden layers that read the input in opposite directions, and an output layer on both.

    The forward hidden layer reads the sequence from its start, the backward one from its end;
    nothing flows between them. The output layer reads both when both have read the whole sequence,
    so that an output depends on all of the input, past and future::

        forward_t  = cell(w1 x_t + w2 forward_{t-1})
        backward_t = cell(w3 x_t + w5 backward_{t+1})
        y_t        = w4 forward_t + w6 backward_t            (and a bias in each)

    The six weight matrices, and the parameters that hold them (those of the first hidden layer if
    there are several, the output layer reading the last):

    ====== =========================== ====================================
    matrix from -> to                  parameter
    ====== =========================== ====================================
    w1     input -> forward hidden     ``hidden.weight_ih_l0``
    w2     forward -> forward hidden   ``hidden.weight_hh_l0``
    w3     input -> backward hidden    ``hidden.weight_ih_l0_reverse``
    w4     forward hidden -> output    ``output.weight[:, :hidden_size]``
    w5     backward -> backward hidden ``hidden.weight_hh_l0_reverse``
    w6     backward hidden -> output   ``output.weight[:, hidden_size:]``
    ====== =========================== ====================================

    Each is also a property of that name, which reads (for w4 and w6: views) the parameter.

    Args:
        input_size: features of the input, I.
        hidden_size: features of each hidden layer, H.
        output_size: features of the output, O: classes, or values to predict.
        cell: "tanh", "relu", "gru" or "lstm".
        per_step: True: an output at every step (labelling). False: one for the whole sequence,
            from each direction's final state (classification): the forward layer's at the
            sequence's end, the backward layer's at its start.
        num_layers: pairs of hidden layers, each reading both directions of the one below.
        bias: whether the layers have biases.
        batch_first: input and output are ``[B, T, ...]``.
        dropout: probability of dropping an element between two hidden layers while training.
        recurrent_dropout, input_dropout_mask, zoneout, layer_norm: regularisers of the hidden
            layers, as of :class:`RNN`, :class:`GRU` and :class:`LSTM`.
        device, dtype: of the parameters.
        merge_mode: what the output layer reads of the last hidden layers, as of :class:`RNN`:
            "concat", both side by side; "sum", "mul" or "ave", and ``output.weight`` is
            ``[O, H]``.

    Attributes:
        hidden: the hidden layers, an :class:`RNN`, :class:`GRU` or :class:`LSTM`.
        output: the output layer, an :class:`torch.nn.Linear` from 2*H to O, or from H
            where they are merged.

    Raises:
        ValueError, TypeError: an unknown ``cell`` or ``merge_mode``, or what the hidden layers
            refuse.

    Source: M. Schuster, K. K. Paliwal, "Bidirectional recurrent neural networks", IEEE
    Transactions on Signal Processing 45(11), 1997, doi 10.1109/78.650093.
    """

    hidden: RNN | GRU | LSTM
    output: nn.Linear

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        cell: str = "tanh",
        *,
        per_step: bool = True,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        input_dropout_mask: str = "element",
        zoneout: float | tuple[float, float] = 0.0,
        layer_norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        merge_mode: str = "concat",
    ) -> None:
        super().__init__()
        self.cell = cell
        self.per_step = per_step
        if merge_mode is None:
            raise ValueError(
                "merge_mode must be 'concat', 'sum', 'mul' or 'ave', got None: the output layer "
                "reads one tensor"
            )
        options: dict[str, Any] = {
            "num_layers": num_layers,
            "bias": bias,
            "batch_first": batch_first,
            "dropout": dropout,
            "recurrent_dropout": recurrent_dropout,
            "input_dropout_mask": input_dropout_mask,
            "zoneout": zoneout,
            "layer_norm": layer_norm,
            "bidirectional": True,
            "device": device,
            "dtype": dtype,
            "merge_mode": merge_mode,
        }
        if cell in ("tanh", "relu"):
            self.hidden = RNN(input_size, hidden_size, nonlinearity=cell, **options)
        elif cell == "gru":
            self.hidden = GRU(input_size, hidden_size, **options)
        elif cell == "lstm":
            self.hidden = LSTM(input_size, hidden_size, **options)
        else:
            raise ValueError(f"cell must be 'tanh', 'relu', 'gru' or 'lstm', got {cell!r}")
        self.output = nn.Linear(
            hidden_size * (2 if merge_mode == "concat" else 1), output_size, bias, device, dtype
        )

    @overload
    def forward(
        self, input: Tensor, *, lengths: Tensor | None = None, resets: Tensor | None = None
    ) -> Tensor: ...

    @overload
    def forward(
        self, input: PackedSequence, *, lengths: None = None, resets: None = None
    ) -> PackedSequence | Tensor: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> Tensor | PackedSequence:
        """Run the network.

        Args:
            input: ``[T, B, I]`` (``[B, T, I]`` with ``batch_first``), ``[T, I]``, a
                PackedSequence, or a NestedTensor of layout ``torch.jagged`` ``[B, ragged, I]``.
            lengths: int64 or int32 ``[B]`` (no dimension for ``[T, I]``), for a padded input:
                the backward layer starts at each sequence's own end.
            resets: bool ``[T, B]`` as ``input`` lies, true where a sequence begins inside its row,
                as of :meth:`RNN.forward`; only with ``per_step``, for a row of several sequences
                has no one output (:func:`pack_rows` gives the final states of each).

        Returns:
            With ``per_step`` the outputs in the form of ``input``, O features a step, zeros past
            the lengths; otherwise ``[B, O]`` (``[O]`` for ``[T, I]``), in the order of the batch.

        Raises:
            ValueError, RuntimeError: as :meth:`RNN.forward`; ``resets`` without ``per_step``.
        """
        if resets is not None and not self.per_step:
            raise ValueError(
                "resets= puts several sequences into a row, but per_step=False gives one output a "
                "row: use per_step=True, or take the final states of each sequence from hidden() "
                "by what birnn_cuda.pack_rows returns"
            )
        # Without them the call is one that torch's own layers take as well (see `to_torch`).
        options = {"lengths": lengths, "resets": resets}
        options = {name: value for name, value in options.items() if value is not None}
        states, final = self.hidden(input, **options)
        if not self.per_step:
            h_n = final[0] if self.cell == "lstm" else final
            # Of torch's own layer, which `to_torch` makes of one that concatenates.
            mode = getattr(self.hidden, "merge_mode", "concat")
            return self._output(*merge_directions(h_n[-2], h_n[-1], mode))
        if isinstance(states, PackedSequence):
            return states._replace(data=self._output(states.data))
        output = self._output(states)
        if lengths is None:
            return output
        batch_first = self.hidden.batch_first and output.dim() == 3
        mask = padding_mask(lengths.to(output.device), output.size(1 if batch_first else 0))
        return torch.where((mask.t() if batch_first else mask).unsqueeze(-1), output, 0)

    def _output(self, states: Tensor) -> Tensor:
        scores: Tensor = self.output(states)
        return scores

    def _hidden_weight(self, name: str) -> Tensor:
        weight: Tensor = getattr(self.hidden, name)
        return weight

    def _output_weight(self, columns: slice) -> Tensor:
        mode = getattr(self.hidden, "merge_mode", "concat")
        if mode != "concat":
            raise RuntimeError(
                f"with merge_mode={mode!r} one matrix, output.weight, reads both directions: there "
                "are no w4 and w6"
            )
        return self.output.weight[:, columns]

    @property
    def w1(self) -> Tensor:
        """Input to forward hidden layer, ``[G*H, I]``: ``hidden.weight_ih_l0``."""
        return self._hidden_weight("weight_ih_l0")

    @property
    def w2(self) -> Tensor:
        """Forward hidden layer to itself, ``[G*H, H]``: ``hidden.weight_hh_l0``."""
        return self._hidden_weight("weight_hh_l0")

    @property
    def w3(self) -> Tensor:
        """Input to backward hidden layer, ``[G*H, I]``: ``hidden.weight_ih_l0_reverse``."""
        return self._hidden_weight("weight_ih_l0_reverse")

    @property
    def w4(self) -> Tensor:
        """Forward hidden layer to output, ``[O, H]``: the left half of ``output.weight``."""
        return self._output_weight(slice(None, self.hidden.hidden_size))

    @property
    def w5(self) -> Tensor:
        """Backward hidden layer to itself, ``[G*H, H]``: ``hidden.weight_hh_l0_reverse``."""
        return self._hidden_weight("weight_hh_l0_reverse")

    @property
    def w6(self) -> Tensor:
        """Backward hidden layer to output, ``[O, H]``: the right half of ``output.weight``."""
        return self._output_weight(slice(self.hidden.hidden_size, None))

    def extra_repr(self) -> str:
        return f"cell={self.cell!r}, per_step={self.per_step}"
