"""RNN, GRU and LSTM: stand where ``torch.nn.RNN``, ``GRU`` and ``LSTM`` stood.

Same constructors, parameters, initial weights, state dict, results and errors; the base class is
torch's own ``RNNBase``. What is added: ``lengths=`` for padded batches, ``resets=`` for several
sequences in a row, nested tensors, the cell states of every step, dropout within the recurrence,
and gradients where torch has none on CUDA (in eval mode, of gradients, under vmap).
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .interop import fx_node
from .recurrent import OUTPUT_ALONE, Recurrent, States, Wanted

__all__ = ["GRU", "LSTM", "RNN"]


class _SingleState(Recurrent):
    """The layers whose whole state is h: RNN and GRU."""

    @overload
    def forward(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_all_layers: Literal[False] = False,
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: None = None,
        resets: None = None,
        return_all_layers: Literal[False] = False,
    ) -> tuple[PackedSequence, Tensor]: ...

    @overload
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_all_layers: Literal[True],
    ) -> tuple[Any, Tensor, tuple[Any, ...]]: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_all_layers: bool = False,
    ) -> tuple[Any, ...]:
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
            resets: bool ``[T, B]`` (``[B, T]`` with ``batch_first``, ``[T]`` for 2-D input), on the
                device of ``input``; only with a padded input. True where a new sequence begins
                inside its row: the forward direction enters such a step with zero states, and the
                reverse direction leaves it with zero states towards the step before, so that
                nothing of one sequence reaches another, in values or in gradients. ``hx`` enters
                the row at its ends, and so not where its first step is a reset (the reverse
                direction's: the row's last sequence); ``h_n`` is the state at the row's ends. See
                ``pack_rows``.
            return_all_layers: return the output of every layer of a stack as well. It costs nothing
                but that they stay in memory.

        Returns:
            ``output``, in the form of ``input``, with D*hidden_size features: the last layer's h
            of both directions at every step, zeros past ``lengths``; and ``h_n``, in the form of
            ``hx``: the state at each sequence's own end (for the reverse direction: its start).
            Merged by another ``merge_mode`` than "concat" it has hidden_size features; with None
            it is a pair of such, the forward direction's and the reverse one's, each in the form of
            ``input``. With ``return_all_layers`` a third element, a tuple of ``num_layers`` outputs
            in the form of ``output``: what each layer gives, before dropout; the last is
            ``output``.

        Raises:
            TypeError: ``lengths`` or ``resets`` is not a tensor, ``return_all_layers`` no bool.
            ValueError: number of dimensions of ``input``, its dtype, its layout if nested; dtype,
                dimensions or count of ``lengths``, and on the CPU a value outside [0, T] (on a
                device values are clamped: see ``check_lengths``); dtype, dimensions or sizes of
                ``resets``, and on the CPU one that is true past a sequence's end (on a device those
                are not read).
            RuntimeError: sizes, dtype or device of ``input`` or ``hx``; device of ``resets``.

        A batch without steps, or without sequences, gives an empty output and leaves the state as
        it is.

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
        if type(input) is not Tensor or hx is not None or lengths is not None or resets is not None:
            options = {
                "lengths": lengths,
                "resets": resets,
                "return_all_layers": return_all_layers,
            }
            node: tuple[Any, Any] | None = fx_node(self, input, hx, **options)
            if node is not None:
                return node
        if return_all_layers is False:
            (output,), (h_n,) = self._run(input, hx, lengths, resets)
            return output, h_n
        _check_flags(return_all_layers=return_all_layers)
        outputs, (h_n,) = self._run(input, hx, lengths, resets, Wanted(all_layers=True))
        return outputs[-1], h_n, outputs


class RNN(_SingleState):
    """RNN(input_size, hidden_size, num_layers=1, nonlinearity='tanh', bias=True,
    batch_first=False, dropout=0.0, bidirectional=False, device=None, dtype=None, *,
    recurrent_dropout=0.0, input_dropout_mask='element', zoneout=0.0,
    merge_mode='concat')

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
        recurrent_dropout: probability of dropping an element of h where it enters its product with
            ``weight_hh``, while training: one mask a sequence (with ``resets=`` a row), direction
            and call, the same at every step; what stays is divided by 1 - p. Not on the output.
        input_dropout_mask: "element": ``dropout`` draws a mask for each step, as torch. "sequence":
            one a sequence (with ``resets=`` a row), the same at every step.
        zoneout: probability with which a unit keeps its h from a step to the next, drawn for each
            unit and step while training; in evaluation h is the mean, ``p * h_{t-1} + (1 - p) *
            h_t``. While training the masks are kept for backward: H numbers of each step,
            sequence and direction, and as many again for an RNN.
        merge_mode: what a bidirectional layer's output holds of its two directions, as Keras'
            ``Bidirectional`` has it: "concat" (torch's: side by side), "sum", "mul" (the product),
            "ave" (the mean), or None, both. It merges what the last layer gives: within a stack
            each layer reads both directions of the one below, whatever it is, and parameters,
            states and cell states are the same.

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
    Signal Processing 45(11); Gal & Ghahramani 2016, arXiv 1512.05287 (recurrent dropout, masks by
    the sequence); Krueger et al. 2017, arXiv 1606.01305 (zoneout).
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
        *,
        recurrent_dropout: float = 0.0,
        input_dropout_mask: str = "element",
        zoneout: float = 0.0,
        merge_mode: str | None = "concat",
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
    bidirectional=False, device=None, dtype=None, *,
    recurrent_dropout=0.0, input_dropout_mask='element', zoneout=0.0, layer_norm=False,
    reset_after=True, merge_mode='concat')

    Gated recurrent unit, in place of :class:`torch.nn.GRU`; the reset gate applies after the
    recurrent product, as in cuDNN, unless ``reset_after`` says otherwise::

        r   = sigmoid(W_ir x_t + b_ir + W_hr h_{t-1} + b_hr)
        z   = sigmoid(W_iz x_t + b_iz + W_hz h_{t-1} + b_hz)
        n   = tanh(W_in x_t + b_in + r * (W_hn h_{t-1} + b_hn))
        h_t = (1 - z) * n + z * h_{t-1}

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as of
            :class:`RNN`.
        device, dtype, merge_mode: as of :class:`RNN`.
        recurrent_dropout, input_dropout_mask, zoneout: as of :class:`RNN`.
        layer_norm: normalise ``W_ih x`` and ``W_hh h``, each over all gates together, before the
            biases are added; computed in float32 or float64. Not beside recurrent dropout and
            zoneout. On a GPU it runs stepwise.
        reset_after: False applies the reset gate before the recurrent product, as Cho et al. wrote
            it and ONNX (``linear_before_reset=0``) and Keras (``reset_after=False``) have it:
            ``n = tanh(W_in x_t + b_in + W_hn (r * h_{t-1}) + b_hn)``. Same parameters. Each step
            then has two products, one after the other. float16 and bfloat16 are computed in
            float32 on a CPU; on a GPU it runs stepwise. Not beside layer_norm.

    Attributes:
        weight_ih_l{k}, weight_hh_l{k}, bias_ih_l{k}, bias_hh_l{k}: as of :class:`RNN`, with 3*H
            rows: gates r, z, n.
        norm_ih_l{k}.weight, norm_hh_l{k}.weight: ``[3*H]``, with layer_norm; initially ones.
        recompute_activations: as of :class:`RNN`.

    Raises:
        TypeError, ValueError: an option of the wrong type or out of range, as torch's own.

    Sources: Cho et al. 2014, arXiv 1406.1078; Schuster & Paliwal 1997, IEEE Transactions on
    Signal Processing 45(11); Ba, Kiros & Hinton 2016, arXiv 1607.06450 (layer_norm).
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
        *,
        recurrent_dropout: float = 0.0,
        input_dropout_mask: str = "element",
        zoneout: float = 0.0,
        layer_norm: bool = False,
        reset_after: bool = True,
        merge_mode: str | None = "concat",
    ) -> None: ...

    @overload
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _refuse_proj_size(kwargs)
        super().__init__("GRU", *args, **kwargs)


class LSTM(Recurrent):
    """LSTM(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, proj_size=0, device=None, dtype=None, *,
    recurrent_dropout=0.0, input_dropout_mask='element', zoneout=0.0, layer_norm=False,
    peepholes=False, merge_mode='concat')

    Long short-term memory, in place of :class:`torch.nn.LSTM`::

        i, f, o = sigmoid(W_i. x_t + b_i. + W_h. h_{t-1} + b_h.)
        g       = tanh(W_ig x_t + b_ig + W_hg h_{t-1} + b_hg)
        c_t     = f * c_{t-1} + i * g
        h_t     = o * tanh(c_t)            or, with proj_size, W_hr (o * tanh(c_t))

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as of
            :class:`RNN`.
        device, dtype, merge_mode: as of :class:`RNN`.
        recurrent_dropout, input_dropout_mask: as of :class:`RNN`.
        zoneout: as of :class:`RNN`, of h and of c; a pair ``(h, c)`` gives each its own. h comes of
            c before that is mixed. Kept for backward: P or H, and 2*H.
        layer_norm: as of :class:`GRU`, and h comes of a normalised c: ``o * tanh(norm_c(c_t))``.
            Not beside proj_size.
        peepholes: the gates read the cell state of their own unit, through a weight each:
            ``i, f = sigmoid(... + w_c. * c_{t-1})`` and ``o = sigmoid(... + w_co * c_t)``, as in
            ONNX (P), Kaldi and madmom. float16 and bfloat16 are computed in float32 on a CPU; on a
            GPU it runs stepwise. Not beside proj_size or layer_norm.
        proj_size: features of h, P, when it is projected; 0: it is not, and h has H.

    Attributes:
        weight_ih_l{k}, weight_hh_l{k}, bias_ih_l{k}, bias_hh_l{k}: as of :class:`RNN`, with 4*H
            rows: gates i, f, g, o; with proj_size ``weight_hh`` is ``[4*H, P]``, and in above
            layer 0 is D*P.
        norm_ih_l{k}.weight, norm_hh_l{k}.weight, norm_c_l{k}.weight, norm_c_l{k}.bias: ``[4*H]``
            twice and ``[H]`` twice, with layer_norm; initially ones, the bias zeros.
        recompute_activations: as of :class:`RNN`.
        weight_hr_l{k}: ``[P, H]``, with proj_size.
        weight_ch_l{k}: ``[3*H]``, with peepholes: w_ci, w_cf, w_co. Initially uniform in
            +-1/sqrt(H).

    Raises:
        TypeError, ValueError: an option of the wrong type or out of range, as torch's own.

    Sources: Hochreiter & Schmidhuber 1997, Neural Computation 9(8); Gers, Schmidhuber & Cummins
    2000, Neural Computation 12(10); Sak, Senior & Beaufays 2014, arXiv 1402.1128 (projection);
    Ba, Kiros & Hinton 2016, arXiv 1607.06450 (layer_norm); Gers, Schraudolph & Schmidhuber 2002,
    JMLR 3, and Graves 2013, arXiv 1308.0850 (peepholes); Schuster & Paliwal 1997, IEEE
    Transactions on Signal Processing 45(11).
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
        *,
        recurrent_dropout: float = 0.0,
        input_dropout_mask: str = "element",
        zoneout: float | tuple[float, float] = 0.0,
        layer_norm: bool = False,
        peepholes: bool = False,
        merge_mode: str | None = "concat",
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
        resets: Tensor | None = None,
        return_cell_states: Literal[False] = False,
        return_all_layers: Literal[False] = False,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: None = None,
        resets: None = None,
        return_cell_states: Literal[False] = False,
        return_all_layers: Literal[False] = False,
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]: ...

    @overload
    def forward(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_cell_states: Literal[True],
        return_all_layers: Literal[False] = False,
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: None = None,
        resets: None = None,
        return_cell_states: Literal[True],
        return_all_layers: Literal[False] = False,
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor], PackedSequence]: ...

    @overload
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_cell_states: bool = False,
        return_all_layers: Literal[True],
    ) -> tuple[Any, ...]: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_cell_states: bool = False,
        return_all_layers: bool = False,
    ) -> tuple[Any, ...]:
        """Run the layer.

        Args:
            input: as of :meth:`RNN.forward`.
            hx: the pair of ``hx [num_layers*D, B, P or H]`` and ``cx [num_layers*D, B, H]``,
                without B for 2-D input. None is zeros. Any strides.
            lengths, resets: as of :meth:`RNN.forward`.
            return_cell_states: return the cell state of every step as well. In training it costs
                one copy of ``[T, B, D*H]``; without gradients also the memory that training keeps
                (5*H values a step, sequence and direction), for as long as the call runs.
            return_all_layers: as of :meth:`RNN.forward`.

        Returns:
            ``output`` with D*(P or H) features, and the pair ``(h_n, c_n)`` in the form of
            ``hx``; otherwise as of :meth:`RNN.forward`. With ``return_cell_states`` a third
            element in the form of ``output``, with D*H features: the last layer's c of both
            directions after every step, zeros past ``lengths``. Gradients flow through it, second
            ones too. With ``return_all_layers`` a last element, the tuple of every layer's output;
            the cell states are then a tuple of every layer's, too.

        Raises:
            TypeError, ValueError, RuntimeError: as of :meth:`RNN.forward`.

        How long sequences are given in chunks: see :meth:`RNN.forward`; here
        ``state = tuple(s.detach() for s in state)``.
        """
        if type(input) is not Tensor or hx is not None or lengths is not None or resets is not None:
            options: dict[str, Any] = {
                "lengths": lengths,
                "resets": resets,
                "return_cell_states": return_cell_states,
                "return_all_layers": return_all_layers,
            }
            node: tuple[Any, ...] | None = fx_node(self, input, hx, **options)
            if node is not None:
                return node
        wanted = OUTPUT_ALONE
        if return_cell_states is not False or return_all_layers is not False:
            _check_flags(return_cell_states=return_cell_states, return_all_layers=return_all_layers)
            wanted = Wanted(return_cell_states, return_all_layers)
        by_step, (h_n, c_n) = self._run(input, hx, lengths, resets, wanted)
        if not return_all_layers:
            output, *cell_states = by_step
            return output, (h_n, c_n), *cell_states
        outputs, cells = by_step[: self.num_layers], by_step[self.num_layers :]
        return outputs[-1], (h_n, c_n), *([cells] if return_cell_states else []), outputs

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


def _check_flags(**flags: Any) -> None:
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, got {type(value).__name__}")


def _refuse_proj_size(kwargs: dict[str, Any]) -> None:
    if "proj_size" in kwargs:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
