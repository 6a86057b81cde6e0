"""RNN, GRU and LSTM: stand where ``torch.nn.RNN``, ``GRU`` and ``LSTM`` stood.

Same constructors, parameters, initial weights, state dict, results and errors; the base class is
torch's own ``RNNBase``. What is added: ``lengths=`` for padded batches, nested tensors, the cell
states of every step, and gradients where torch has none on CUDA (in eval mode, of gradients, under
vmap).
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, overload

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence

from .functional import recurrent_layer
from .interop import ReportsTorchClass, check_weights, fx_node, warn_of_quantization
from .sequences import (
    check_lengths_form,
    check_nested_form,
    nested_to_padded,
    padded_to_nested,
)

__all__ = ["GRU", "LSTM", "RNN"]

States: TypeAlias = tuple[Tensor, ...]  # (hx,) or, for the LSTM, (hx, cx)

_CELL_OF_MODE = {"RNN_TANH": "tanh", "RNN_RELU": "relu", "GRU": "gru", "LSTM": "lstm"}

# The names torch's C++ errors give to dtypes.
_SCALAR_TYPE_NAMES = {
    torch.float32: "Float",
    torch.float64: "Double",
    torch.float16: "Half",
    torch.bfloat16: "BFloat16",
}


class _Recurrent(ReportsTorchClass, nn.RNNBase):
    """What the three layers share: everything but the constructor and the form of the states."""

    recompute_activations: bool = False

    # ---- RNNBase keeps a flat list of the weights in step with the parameters, for cuDNN. Here it
    # ---- is read from the parameters whenever asked for, so it cannot be stale. A list that was
    # ---- assigned (weights that are computed, as for dropping some of them) is used as torch does:
    # ---- until one of them is set by its name, or all are moved.

    @property
    def _flat_weights(self) -> list[Any]:
        assigned = self.__dict__.get("_assigned_weights")
        if assigned is not None:
            return list(assigned)
        # A plain parameter without the detour through Module.__getattr__; getattr finds what a
        # parametrization computes.
        plain = self._parameters
        return [
            plain[name] if name in plain else getattr(self, name, None)
            for name in self._flat_weights_names
        ]

    @_flat_weights.setter
    def _flat_weights(self, weights: list[Any]) -> None:
        assigned, names = list(weights), self._flat_weights_names
        if len(assigned) != len(names):
            raise ValueError(
                f"_flat_weights must hold {len(names)} tensors ({', '.join(names)}), "
                f"got {len(assigned)}"
            )
        self.__dict__.pop("_assigned_weights", None)
        if any(a is not b for a, b in zip(assigned, self._flat_weights, strict=True)):
            self.__dict__["_assigned_weights"] = assigned

    def _init_flat_weights(self) -> None:
        self._flat_weight_refs = [None] * len(self._flat_weights_names)
        self.__dict__.pop("_assigned_weights", None)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "qconfig":
            warn_of_quantization(self)
        # Past RNNBase, which would read every weight to put one of them into its list.
        nn.Module.__setattr__(self, name, value)
        assigned = self.__dict__.get("_assigned_weights")
        if assigned is not None and name in self._flat_weights_names:
            assigned[self._flat_weights_names.index(name)] = value

    def flatten_parameters(self) -> None:
        """Do nothing: the kernels read each weight where it lies."""

    def __prepare_scriptable__(self) -> Any:
        raise RuntimeError(
            f"torch.jit.script does not support birnn_cuda.{self._get_name()}. Use "
            "torch.export.export(model, args), or script torch's "
            "own layers: torch.jit.script(birnn_cuda.to_torch(model)), which changes the model in "
            "place, or a copy of it, if it can be copied: birnn_cuda.to_torch(copy.deepcopy(model))"
        )

    # ---- forward

    def _states(self, hx: Any) -> States:
        """The states of a user's ``hx``, not None."""
        return (hx,)

    def _check_states_dim(self, states: States, is_batched: bool) -> None:
        expected, kind = (3, "batched 3-D") if is_batched else (2, "unbatched 2-D")
        if states[0].dim() != expected:
            raise RuntimeError(
                f"For {kind} input, hx should also be {expected}-D "
                f"but got {states[0].dim()}-D tensor"
            )

    def _check_sizes(
        self, input: Tensor, states: States | None, batch_sizes: Tensor | None
    ) -> None:
        if states is None:
            self.check_input(input, batch_sizes)
        else:
            self.check_forward_args(input, states[0], batch_sizes)

    def _run(
        self,
        input: Tensor | PackedSequence,
        hx: Any,
        lengths: Tensor | None,
        with_cell_states: bool = False,
    ) -> tuple[Any, States, Any]:
        """Forward for all three: ``output``, the final states ``(h_n,)`` or ``(h_n, c_n)``, and in
        the form of ``output`` the cell states, None where they were not asked for."""
        try:
            return self._run_form(input, hx, lengths, with_cell_states)
        except AttributeError:
            check_weights(self._flat_weights_names, self._flat_weights)
            raise

    def _run_form(
        self,
        input: Tensor | PackedSequence,
        hx: Any,
        lengths: Tensor | None,
        with_cell_states: bool,
    ) -> tuple[Any, States, Any]:
        if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():  # type: ignore[attr-defined]
            raise RuntimeError(
                f"this exporter does not know birnn_cuda.{self._get_name()}: use "
                "birnn_cuda.onnx.export(model, args, path), or export a copy made of torch's own "
                "layers: torch.onnx.export(birnn_cuda.to_torch(copy.deepcopy(model)), args, file, "
                "dynamo=False, dynamic_axes=...)"
            )
        states = None if hx is None else self._states(hx)
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise ValueError("a PackedSequence carries its lengths: leave out lengths=")
            return self._run_packed(input, states, with_cell_states)
        num_dims = input.dim()
        if input.is_nested:
            if lengths is not None:
                raise ValueError("a NestedTensor carries its lengths: leave out lengths=")
            return self._run_nested(input, states, with_cell_states)

        if num_dims not in (2, 3):
            noun = " tensor" if self.mode.startswith("RNN") else ""
            raise ValueError(
                f"{self.mode.partition('_')[0]}: Expected input to be 2D or 3D, "
                f"got {num_dims}D{noun} instead"
            )
        is_batched = num_dims == 3
        batch_dim = 0 if self.batch_first else 1
        if states is not None:
            self._check_states_dim(states, is_batched)
        if not is_batched:
            input = input.unsqueeze(batch_dim)
            if states is not None:
                states = tuple(state.unsqueeze(1) for state in states)
        self._check_sizes(input, states, None)
        if lengths is not None:
            check_lengths_form(lengths, input.size(batch_dim), is_batched)
            lengths = lengths if is_batched else lengths.unsqueeze(0)
        if self.batch_first:
            input = input.transpose(0, 1)
        by_step, states = self._run_layers(input, states, lengths, None, with_cell_states)
        if self.batch_first:
            by_step = tuple(values.transpose(0, 1) for values in by_step)
        if not is_batched:
            by_step = tuple(values.squeeze(batch_dim) for values in by_step)
            states = tuple(state.squeeze(1) for state in states)
        return by_step[0], states, by_step[1] if with_cell_states else None

    def _run_packed(
        self, input: PackedSequence, states: States | None, with_cell_states: bool
    ) -> tuple[PackedSequence, States, PackedSequence | None]:
        data, batch_sizes, sorted_indices, unsorted_indices = input
        if states is not None:
            states = _permute(states, sorted_indices)
        self._check_sizes(data, states, batch_sizes)
        by_step, states = self._run_layers(data, states, None, batch_sizes, with_cell_states)
        output, *cell_states = (
            PackedSequence(values, batch_sizes, sorted_indices, unsorted_indices)
            for values in by_step
        )
        states = _permute(states, unsorted_indices)
        return output, states, cell_states[0] if with_cell_states else None

    def _run_nested(
        self, input: Tensor, states: States | None, with_cell_states: bool
    ) -> tuple[Tensor, States, Tensor | None]:
        check_nested_form(input)
        if states is not None:
            self._check_states_dim(states, is_batched=True)
        padded, lengths = nested_to_padded(input)
        if self.batch_first:  # what the checks of sizes expect
            self._check_sizes(padded.transpose(0, 1), states, None)
        else:
            self._check_sizes(padded, states, None)
        by_step, states = self._run_layers(padded, states, lengths, None, with_cell_states)
        output, *cell_states = (padded_to_nested(values, input) for values in by_step)
        return output, states, cell_states[0] if with_cell_states else None

    def _run_layers(
        self,
        input: Tensor,  # [T, B, I] or [N, I]
        states: States | None,  # [num_layers*D, B, P or H], [num_layers*D, B, H]
        lengths: Tensor | None,
        batch_sizes: Tensor | None,
        with_cell_states: bool,
    ) -> tuple[tuple[Tensor, ...], States]:
        """All layers, one above the other, with dropout between them.

        Returns the final states after the last layer's output and, if asked for, its cell states.
        """
        weights = self._flat_weights
        dtype = _autocast_dtype(input.device.type)
        if dtype is not None:
            input = _autocast(input, dtype)
            weights = [_autocast(weight, dtype) for weight in weights]
            states = None if states is None else tuple(_autocast(s, dtype) for s in states)
        _check_same_kind(input, "hidden", states or ())
        _check_same_kind(input, "parameter", weights)
        if batch_sizes is None and input.size(0) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")

        num_directions = 2 if self.bidirectional else 1
        num_weights = len(weights) // self.num_layers
        precision = _fp32_precision(input)
        output, h_n, c_n = input, [], []
        cell_states: list[Tensor] = []
        for layer in range(self.num_layers):
            if layer > 0 and self.dropout > 0 and self.training:
                output = dropout(output, self.dropout)
            layer_states: tuple[Tensor | None, ...] = (None, None)
            if states is not None:
                here = slice(layer * num_directions, (layer + 1) * num_directions)
                layer_states = (*(state[here] for state in states), None)
            output, h, c, *cell_states = recurrent_layer(
                output,
                layer_states[0],
                layer_states[1],
                weights[layer * num_weights : (layer + 1) * num_weights],
                lengths=lengths,
                batch_sizes=batch_sizes,
                cell=_CELL_OF_MODE[self.mode],
                num_directions=num_directions,
                precision=precision,
                with_cell_states=with_cell_states and layer == self.num_layers - 1,
                recompute_activations=self.recompute_activations,
            )
            h_n.append(h)
            c_n.append(c)
        final = (h_n, c_n) if self.mode == "LSTM" else (h_n,)
        return (output, *cell_states), tuple(s[0] if len(s) == 1 else torch.cat(s) for s in final)


class _SingleState(_Recurrent):
    """The layers whose whole state is h: RNN and GRU."""

    @overload
    def forward(
        self, input: Tensor, hx: Tensor | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(
        self, input: PackedSequence, hx: Tensor | None = None, *, lengths: None = None
    ) -> tuple[PackedSequence, Tensor]: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Run the layer.

        Args:
            input: ``[T, B, input_size]`` (``[B, T, input_size]`` with ``batch_first``),
                ``[T, input_size]``, a PackedSequence, sorted or not, or a NestedTensor of layout
                ``torch.jagged`` ``[B, ragged, input_size]`` (whatever ``batch_first`` says). In
                the dtype of the weights (fp32, fp64, fp16, bf16), except under autocast. Any
                strides.
            hx: ``[num_layers*D, B, hidden_size]``, without B for 2-D input, whatever
                ``batch_first`` says; D = 2 if bidirectional. None is zeros. Any strides.
            lengths: int64 or int32 ``[B]`` (no dimension for 2-D input), on any device, in any
                order, zeros allowed. Only with a padded input. Past the end of a sequence nothing
                of ``input`` is read.

        Returns:
            ``output``, in the form of ``input``, with D*hidden_size features: the last layer's h
            of both directions at every step, zeros past ``lengths``; and ``h_n``, in the form of
            ``hx``: the state at each sequence's own end (for the reverse direction: its start).

        Raises:
            TypeError: ``lengths`` is not a tensor.
            ValueError: number of dimensions of ``input``, its dtype, its layout if nested; dtype,
                dimensions or count of ``lengths``, and on the CPU a value outside [0, T] (on a
                device values are clamped: see ``check_lengths``).
            RuntimeError: sizes, dtype or device of ``input`` or ``hx``; no step.

        A sequence too long to be differentiated as a whole is given in chunks, each of which goes
        on from the state that the one before left. Detached, the state carries values but no
        gradient (truncated back-propagation through time)::

            state = None
            for chunk in input.split(chunk_size):  # [T, B, I], steps first
                output, state = layer(chunk, state)
                loss(output).backward()
                state = state.detach()

        With ``lengths`` a chunk that starts at step ``first`` is given ``lengths=(lengths -
        first).clamp(0, len(chunk))``: a sequence that has ended keeps its state. Only a forward
        direction has such a state: the reverse one starts at the end of what it is given, so a
        bidirectional layer reads whole sequences.
        """
        if type(input) is not Tensor or hx is not None or lengths is not None:
            node: tuple[Any, Any] | None = fx_node(self, input, hx, lengths=lengths)
            if node is not None:
                return node
        output, (h_n,), _ = self._run(input, hx, lengths)
        return output, h_n


class RNN(_SingleState):
    """RNN(input_size, hidden_size, num_layers=1, nonlinearity='tanh', bias=True,
    batch_first=False, dropout=0.0, bidirectional=False, device=None, dtype=None)

    Elman's recurrent layer, in place of :class:`torch.nn.RNN`::

        h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)      or relu

    Args:
        input_size: features of the input, I.
        hidden_size: features of the state, H.
        num_layers: layers above each other; each reads both directions of the one below.
        nonlinearity: "tanh" or "relu".
        bias: whether there are ``bias_ih`` and ``bias_hh``.
        batch_first: input and output are ``[B, T, ...]``; says nothing of hx and h_n.
        dropout: probability of dropping an element between two layers while training.
        bidirectional: a second direction walks from each sequence's end to its start.
        device, dtype: of the parameters.

    Attributes:
        weight_ih_l{k}, weight_hh_l{k}, bias_ih_l{k}, bias_hh_l{k}: ``[H, in]``, ``[H, H]``,
            ``[H]``, ``[H]`` of layer k, where in is I for k = 0 and D*H above; with the suffix
            ``_reverse`` those of the other direction. Initially uniform in +-1/sqrt(H).
        recompute_activations: False at first, and may be set at any time. True saves memory in
            training: the gates of every step (for an LSTM 5*H numbers, for a GRU 4*H, of each step,
            sequence and direction) are not kept for backward, which runs the layer once more. The
            gradients are the same, bit for bit. An RNN keeps nothing but its output anyway.

    Raises:
        TypeError, ValueError: an option of the wrong type or out of range, as torch's own.

    Sources: Elman 1990, Cognitive Science 14(2); Schuster & Paliwal 1997, IEEE Transactions on
    Signal Processing 45(11).
    """

    torch_class = nn.RNN

    @overload
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None: ...

    @overload
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _refuse_proj_size(kwargs)
        if len(args) > 3:
            nonlinearity, args = args[3], args[:3] + args[4:]
        else:
            nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        super().__init__(f"RNN_{nonlinearity.upper()}", *args, **kwargs)
        self.nonlinearity = nonlinearity


class GRU(_SingleState):
    """GRU(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, device=None, dtype=None)

    Gated recurrent unit, in place of :class:`torch.nn.GRU`; the reset gate applies after the
    recurrent product, as in cuDNN::

        r   = sigmoid(W_ir x_t + b_ir + W_hr h_{t-1} + b_hr)
        z   = sigmoid(W_iz x_t + b_iz + W_hz h_{t-1} + b_hz)
        n   = tanh(W_in x_t + b_in + r * (W_hn h_{t-1} + b_hn))
        h_t = (1 - z) * n + z * h_{t-1}

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as of
            :class:`RNN`.
        device, dtype: of the parameters.

    Attributes:
        weight_ih_l{k}, weight_hh_l{k}, bias_ih_l{k}, bias_hh_l{k}: as of :class:`RNN`, with 3*H
            rows: gates r, z, n.
        recompute_activations: as of :class:`RNN`.

    Raises:
        TypeError, ValueError: an option of the wrong type or out of range, as torch's own.

    Sources: Cho et al. 2014, arXiv 1406.1078; Schuster & Paliwal 1997, IEEE Transactions on
    Signal Processing 45(11).
    """

    torch_class = nn.GRU

    @overload
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None: ...

    @overload
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _refuse_proj_size(kwargs)
        super().__init__("GRU", *args, **kwargs)


class LSTM(_Recurrent):
    """LSTM(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, proj_size=0, device=None, dtype=None)

    Long short-term memory, in place of :class:`torch.nn.LSTM`::

        i, f, o = sigmoid(W_i. x_t + b_i. + W_h. h_{t-1} + b_h.)
        g       = tanh(W_ig x_t + b_ig + W_hg h_{t-1} + b_hg)
        c_t     = f * c_{t-1} + i * g
        h_t     = o * tanh(c_t)            or, with proj_size, W_hr (o * tanh(c_t))

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as of
            :class:`RNN`.
        device, dtype: of the parameters.
        proj_size: features of h, P, when it is projected; 0: it is not, and h has H.

    Attributes:
        weight_ih_l{k}, weight_hh_l{k}, bias_ih_l{k}, bias_hh_l{k}: as of :class:`RNN`, with 4*H
            rows: gates i, f, g, o; with proj_size ``weight_hh`` is ``[4*H, P]``, and in above
            layer 0 is D*P.
        recompute_activations: as of :class:`RNN`.
        weight_hr_l{k}: ``[P, H]``, with proj_size.

    Raises:
        TypeError, ValueError: an option of the wrong type or out of range, as torch's own.

    Sources: Hochreiter & Schmidhuber 1997, Neural Computation 9(8); Gers, Schmidhuber & Cummins
    2000, Neural Computation 12(10); Sak, Senior & Beaufays 2014, arXiv 1402.1128 (projection);
    Schuster & Paliwal 1997, IEEE Transactions on Signal Processing 45(11).
    """

    torch_class = nn.LSTM

    # RNNBase's own serve a single state only.
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]

    @overload
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None: ...

    @overload
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("LSTM", *args, **kwargs)

    @overload
    def forward(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        return_cell_states: Literal[False] = False,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: None = None,
        return_cell_states: Literal[False] = False,
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]: ...

    @overload
    def forward(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        return_cell_states: Literal[True],
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: None = None,
        return_cell_states: Literal[True],
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor], PackedSequence]: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        return_cell_states: bool = False,
    ) -> tuple[Any, ...]:
        """Run the layer.

        Args:
            input: as of :meth:`RNN.forward`.
            hx: the pair of ``hx [num_layers*D, B, P or H]`` and ``cx [num_layers*D, B, H]``,
                without B for 2-D input. None is zeros. Any strides.
            lengths: as of :meth:`RNN.forward`.
            return_cell_states: return the cell state of every step as well. In training it costs
                one copy of ``[T, B, D*H]``; without gradients also the memory that training keeps
                (5*H values a step, sequence and direction), for as long as the call runs.

        Returns:
            ``output`` with D*(P or H) features, and the pair ``(h_n, c_n)`` in the form of
            ``hx``; otherwise as of :meth:`RNN.forward`. With ``return_cell_states`` a third
            element in the form of ``output``, with D*H features: the last layer's c of both
            directions after every step, zeros past ``lengths``. Gradients flow through it, second
            ones too.

        Raises:
            TypeError, ValueError, RuntimeError: as of :meth:`RNN.forward`.

        How long sequences are given in chunks: see :meth:`RNN.forward`; here
        ``state = tuple(s.detach() for s in state)``.
        """
        if type(input) is not Tensor or hx is not None or lengths is not None:
            options: dict[str, Any] = {"lengths": lengths, "return_cell_states": return_cell_states}
            node: tuple[Any, ...] | None = fx_node(self, input, hx, **options)
            if node is not None:
                return node
        if not isinstance(return_cell_states, bool):
            raise TypeError(
                f"return_cell_states must be True or False, got {type(return_cell_states).__name__}"
            )
        output, (h_n, c_n), cell_states = self._run(input, hx, lengths, return_cell_states)
        if return_cell_states:
            return output, (h_n, c_n), cell_states
        return output, (h_n, c_n)

    def _states(self, hx: Any) -> States:
        if not isinstance(hx, Tensor) and len(hx) != 2:  # torch.nn's is an error of its operator
            raise RuntimeError(f"lstm expects two hidden states, got {len(hx)}")
        return hx[0], hx[1]

    def _check_states_dim(self, states: States, is_batched: bool) -> None:
        expected, kind = (3, "batched 3-D") if is_batched else (2, "unbatched 2-D")
        if any(state.dim() != expected for state in states):
            raise RuntimeError(
                f"For {kind} input, hx and cx should also be {expected}-D "
                f"but got ({states[0].dim()}-D, {states[1].dim()}-D) tensors"
            )

    def _check_sizes(
        self, input: Tensor, states: States | None, batch_sizes: Tensor | None
    ) -> None:
        if states is None:
            self.check_input(input, batch_sizes)
        else:
            self.check_forward_args(input, states, batch_sizes)  # type: ignore[arg-type, misc]


def _refuse_proj_size(kwargs: dict[str, Any]) -> None:
    if "proj_size" in kwargs:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")


def _permute(states: States, indices: Tensor | None) -> States:
    return states if indices is None else tuple(state.index_select(1, indices) for state in states)


def _autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype to compute in where autocast is on for this device type, else None."""
    if (
        torch._C._is_any_autocast_enabled()
        and torch.amp.is_autocast_available(device_type)
        and torch.is_autocast_enabled(device_type)
    ):
        return torch.get_autocast_dtype(device_type)
    return None


def _autocast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """As torch's autocast: fp64 is left alone."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)


def _check_same_kind(input: Tensor, name: str, tensors: tuple[Tensor, ...] | list[Tensor]) -> None:
    """Device and dtype of states and parameters; texts of torch's check_attributes (RNN.cpp)."""
    for tensor in tensors:
        if tensor.device != input.device:
            raise RuntimeError(
                f"Input and {name} tensors are not at the same device, found input tensor at "
                f"{input.device} and {name} tensor at {tensor.device}"
            )
        if tensor.dtype != input.dtype:
            found, expected = (
                _SCALAR_TYPE_NAMES.get(t.dtype, str(t.dtype)) for t in (tensor, input)
            )
            raise RuntimeError(
                f"Input and {name} tensors are not the same dtype, found input tensor with "
                f"{expected} and {name} tensor with {found}"
            )


def _fp32_precision(input: Tensor) -> str:
    """What fp32 means on CUDA, by torch's own switch for recurrent layers; default "tf32".

    Read for this op alone: the older ``cudnn.allow_tf32`` raises once any per-op switch is set.
    """
    if input.dtype == torch.float32 and input.is_cuda:
        switch: Any = torch.backends.cudnn.rnn
        return "tf32" if switch.fp32_precision == "tf32" else "ieee"
    return "ieee"
