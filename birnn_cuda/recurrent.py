"""What RNN, GRU and LSTM share: forms of input, checks, states, dropout, a layer after the other.

The errors are torch's own, by type and text, where it has one.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence

from .functional import recurrent_layer
from .interop import ReportsTorchClass, check_weights, warn_of_quantization
from .normalised import normalised_layer
from .ops import batch_size_of
from .regularisers import (
    Regularisers,
    by_state,
    check_input_dropout_mask,
    check_layer_norm,
    check_probability,
    check_zoneout,
    draw_recurrent_mask,
    drop_by_sequence,
    zoneout_shares,
)
from .sequences import (
    check_lengths_form,
    check_nested_form,
    check_resets_form,
    nested_to_padded,
    padded_to_nested,
)
from .variants import cell_of, check_variant

States: TypeAlias = tuple[Tensor, ...]  # (hx,) or, for the LSTM, (hx, cx)


class Wanted(NamedTuple):
    """What of every step a call returns: an output, of every layer or of the last, and its c."""

    cell_states: bool = False
    all_layers: bool = False


OUTPUT_ALONE = Wanted()

MERGE_MODES = ("concat", "sum", "mul", "ave", None)

# The names torch's C++ errors give to dtypes.
_SCALAR_TYPE_NAMES = {
    torch.float32: "Float",
    torch.float64: "Double",
    torch.float16: "Half",
    torch.bfloat16: "BFloat16",
}


def merge_directions(forward: Tensor, backward: Tensor, mode: str | None) -> tuple[Tensor, ...]:
    """One tensor that a ``merge_mode`` makes of the two directions', or both where it is None."""
    if mode == "concat":
        return (torch.cat((forward, backward), -1),)
    if mode == "sum":
        return (forward + backward,)
    if mode == "mul":
        return (forward * backward,)
    if mode == "ave":
        return ((forward + backward) / 2,)
    return forward, backward


class Recurrent(ReportsTorchClass, nn.RNNBase):
    """What the three layers share: everything but their own options and the form of the states."""

    recompute_activations: bool = False
    recurrent_dropout: float = 0.0
    input_dropout_mask: str = "element"
    zoneout: float | tuple[float, float] = 0.0
    layer_norm: bool = False
    reset_after: bool = True
    peepholes: bool = False
    merge_mode: str | None = "concat"  # of a layer of torch's own that has changed its class, too
    _op_checks = True  # the operator refuses whatever does not fit

    def __init__(
        self,
        mode: str,
        *args: Any,
        recurrent_dropout: float = 0.0,
        input_dropout_mask: str = "element",
        zoneout: float | tuple[float, float] = 0.0,
        layer_norm: bool = False,
        reset_after: bool = True,
        peepholes: bool = False,
        merge_mode: str | None = "concat",
        **kwargs: Any,
    ) -> None:
        recurrent_dropout = check_probability("recurrent_dropout", recurrent_dropout)
        check_input_dropout_mask(input_dropout_mask)
        zoneout = check_zoneout(zoneout, has_c=mode == "LSTM")
        check_layer_norm(layer_norm, mode, kwargs, recurrent_dropout, zoneout)
        super().__init__(mode, *args, **kwargs)
        check_variant(mode, reset_after, peepholes, self.proj_size, layer_norm)
        if merge_mode not in MERGE_MODES:
            raise ValueError(f"merge_mode must be one of {MERGE_MODES}, got {merge_mode!r}")
        if merge_mode != "concat" and not self.bidirectional:
            raise ValueError(
                f"merge_mode={merge_mode!r} says what becomes of two directions, and there is one: "
                "give bidirectional=True, or leave it out"
            )
        self.merge_mode = merge_mode
        if layer_norm:
            self._add_norms()
        if peepholes:
            self._add_peepholes()
        self.recurrent_dropout = recurrent_dropout
        self.input_dropout_mask = input_dropout_mask
        self.zoneout = zoneout
        self.layer_norm = layer_norm
        self.reset_after = reset_after
        self.peepholes = peepholes

    def _add_peepholes(self) -> None:
        """Of each direction ``weight_ch``, the last of its weights."""
        weight, bound = self._flat_weights[0], self.hidden_size**-0.5
        for suffix, names in zip(self._suffixes(), self._all_weights, strict=True):
            values = weight.new_empty(3 * self.hidden_size).uniform_(-bound, bound)
            self.register_parameter(f"weight_ch_{suffix}", nn.Parameter(values))
            names.append(f"weight_ch_{suffix}")
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        in_order = {name: self._parameters[name] for name in self._flat_weights_names}
        self._parameters.clear()  # a direction's own after the other, as torch has weight_hr
        self._parameters.update(in_order)
        self._init_flat_weights()

    def _add_norms(self) -> None:
        weight, hidden_size = self._flat_weights[0], self.hidden_size
        options = {"device": weight.device, "dtype": weight.dtype}
        for suffix in self._suffixes():
            for name in ("norm_ih", "norm_hh"):  # bias_ih and bias_hh are added to what they give
                norm = nn.LayerNorm(weight.size(0), bias=False, **options)
                self.add_module(f"{name}_{suffix}", norm)
            if self.mode == "LSTM":
                self.add_module(f"norm_c_{suffix}", nn.LayerNorm(hidden_size, **options))

    def _suffixes(self) -> list[str]:
        directions = ("", "_reverse") if self.bidirectional else ("",)
        return [f"l{k}{direction}" for k in range(self.num_layers) for direction in directions]

    def _norms(self) -> list[Tensor]:
        """Of each layer and direction norm_ih, norm_hh and, of an LSTM, norm_c and its bias."""
        norms: list[Any] = []
        for suffix in self._suffixes():
            norms += [getattr(self, f"{name}_{suffix}").weight for name in ("norm_ih", "norm_hh")]
            if self.mode == "LSTM":
                norm = getattr(self, f"norm_c_{suffix}")
                norms += [norm.weight, norm.bias]
        return norms

    def reset_parameters(self) -> None:
        """Draw the weights anew: uniform in +-1/sqrt(H); norms begin as ones, their bias as 0."""
        super().reset_parameters()
        for module in self.children():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def extra_repr(self) -> str:
        text = super().extra_repr()
        for name in (
            *("recurrent_dropout", "input_dropout_mask", "zoneout", "layer_norm"),
            *("reset_after", "peepholes"),
        ):
            if (value := getattr(self, name)) != getattr(Recurrent, name):
                text += f", {name}={value}"
        if self.merge_mode != "concat":
            text += f", merge_mode={self.merge_mode!r}"
        return text

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
            "torch.export.export(model, args), or torch.jit.trace(model, args), or script torch's "
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

    def _check_kinds(self, input: Tensor, states: States | None, weights: list[Any]) -> None:
        check_same_kind(input, "hidden", states or ())
        check_same_kind(input, "parameter", weights)

    def _run(
        self,
        input: Tensor | PackedSequence,
        hx: Any,
        lengths: Tensor | None,
        resets: Tensor | None = None,
        wanted: Wanted = OUTPUT_ALONE,
    ) -> tuple[tuple[Any, ...], States]:
        """Forward for all three: what is wanted of every step, in the form of the input, and the
        final states ``(h_n,)`` or ``(h_n, c_n)``.

        Of every step: the outputs, of every layer from the first on or of the last alone; then, if
        they are wanted, the cell states of the same layers. Without a merge the last layer's output
        is a pair.
        """
        try:
            by_step, states = self._run_form(input, hx, lengths, resets, wanted)
        except (AttributeError, TypeError):
            check_weights(self._flat_weights_names, self._flat_weights)
            raise
        if self.merge_mode is not None:
            return by_step, states
        last = self._last_output(wanted)
        return (*by_step[:last], by_step[last : last + 2], *by_step[last + 2 :]), states

    def _last_output(self, wanted: Wanted) -> int:
        """Where the last layer's output stands among what is returned of every step."""
        return self.num_layers - 1 if wanted.all_layers else 0

    def _run_form(
        self,
        input: Tensor | PackedSequence,
        hx: Any,
        lengths: Tensor | None,
        resets: Tensor | None,
        wanted: Wanted,
    ) -> tuple[tuple[Any, ...], States]:
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
            _refuse_resets(resets, "a PackedSequence", "pad_packed_sequence(input)")
            return self._run_packed(input, states, wanted)
        num_dims = input.dim()
        if input.is_nested:
            if lengths is not None:
                raise ValueError("a NestedTensor carries its lengths: leave out lengths=")
            _refuse_resets(resets, "a NestedTensor", "input.to_padded_tensor(0.0)")
            return self._run_nested(input, states, wanted)

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
        if resets is not None:
            check_resets_form(resets, input, is_batched)
        if not is_batched:
            input = input.unsqueeze(batch_dim)
            resets = None if resets is None else resets.unsqueeze(batch_dim)
            if states is not None:
                states = tuple(state.unsqueeze(1) for state in states)
        # The operator's own checks are enough where it is called as it is; torch's, which say the
        # same in torch's words, take as long as a step of a small layer: they are left to errors.
        checks_first = self.num_layers > 1 or not self._op_checks or not is_plain(input)
        if checks_first:
            self._check_sizes(input, states, None)
        if lengths is not None:
            check_lengths_form(lengths, input.size(batch_dim), is_batched)
            lengths = lengths if is_batched else lengths.unsqueeze(0)
        by_time = input.transpose(0, 1) if self.batch_first else input
        if resets is not None and self.batch_first:
            resets = resets.transpose(0, 1)
        given = states
        try:
            by_step, states = self._run_merged(
                by_time, states, lengths, None, wanted, checks_first, resets
            )
        except RuntimeError:
            if not checks_first:
                self._check_sizes(input, given, None)
                self._check_kinds(input, given, self._flat_weights)
            raise
        if self.batch_first:
            by_step = tuple(values.transpose(0, 1) for values in by_step)
        if not is_batched:
            by_step = tuple(values.squeeze(batch_dim) for values in by_step)
            states = tuple(state.squeeze(1) for state in states)
        return by_step, states

    def _run_packed(
        self, input: PackedSequence, states: States | None, wanted: Wanted
    ) -> tuple[tuple[PackedSequence, ...], States]:
        data, batch_sizes, sorted_indices, unsorted_indices = input
        if states is not None:
            states = _permute(states, sorted_indices)
        self._check_sizes(data, states, batch_sizes)
        by_step, states = self._run_merged(data, states, None, batch_sizes, wanted)
        packed = tuple(
            PackedSequence(values, batch_sizes, sorted_indices, unsorted_indices)
            for values in by_step
        )
        return packed, _permute(states, unsorted_indices)

    def _run_nested(
        self, input: Tensor, states: States | None, wanted: Wanted
    ) -> tuple[tuple[Tensor, ...], States]:
        check_nested_form(input)
        if states is not None:
            self._check_states_dim(states, is_batched=True)
        padded, lengths = nested_to_padded(input)
        if self.batch_first:  # what the checks of sizes expect
            self._check_sizes(padded.transpose(0, 1), states, None)
        else:
            self._check_sizes(padded, states, None)
        by_step, states = self._run_merged(padded, states, lengths, None, wanted)
        return tuple(padded_to_nested(values, input) for values in by_step), states

    def _run_merged(
        self,
        input: Tensor,
        states: States | None,
        lengths: Any,
        batch_sizes: Any,
        wanted: Wanted,
        *rest: Any,
    ) -> tuple[tuple[Tensor, ...], States]:
        """As `_run_layers`, the last layer's output merged: in its place two, if `merge_mode` is
        None."""
        by_step, final = self._run_layers(input, states, lengths, batch_sizes, wanted, *rest)
        if self.merge_mode == "concat":
            return by_step, final
        last = self._last_output(wanted)
        forward, backward = by_step[last].chunk(2, -1)
        merged = merge_directions(forward, backward, self.merge_mode)
        return (*by_step[:last], *merged, *by_step[last + 1 :]), final

    def _run_layers(
        self,
        input: Tensor,  # [T, B, I] or [N, I]
        states: States | None,  # [num_layers*D, B, P or H], [num_layers*D, B, H]
        lengths: Tensor | None,
        batch_sizes: Tensor | None,
        wanted: Wanted,
        checks_kinds: bool = True,
        resets: Tensor | None = None,  # [T, B]
    ) -> tuple[tuple[Tensor, ...], States]:
        """All layers, one above the other, with dropout between them.

        Returns as `_run`.
        """
        weights = self._flat_weights
        dtype = autocast_dtype(input.device.type)
        if dtype is not None:
            input = autocast(input, dtype)
            weights = [autocast(weight, dtype) for weight in weights]
            states = None if states is None else tuple(autocast(s, dtype) for s in states)
        norms = self._norms() if self.layer_norm else []
        if dtype is not None:
            norms = [autocast(norm, dtype) for norm in norms]
        if checks_kinds:
            self._check_kinds(input, states, [*weights, *norms])

        num_directions = 2 if self.bidirectional else 1
        num_weights = len(weights) // self.num_layers
        precision = fp32_precision(input)
        output, h_n, c_n = input, [], []
        outputs: list[Tensor] = []
        cell_states: list[Tensor] = []
        for layer in range(self.num_layers):
            is_wanted = wanted.all_layers or layer == self.num_layers - 1
            if layer > 0 and self.dropout > 0 and self.training:
                if self.input_dropout_mask == "sequence":
                    output = drop_by_sequence(output, batch_sizes, self.dropout)
                else:
                    output = dropout(output, self.dropout)
            layer_states: tuple[Tensor | None, ...] = (None, None)
            if states is not None and self.num_layers == 1:
                layer_states = (*states, None)
            elif states is not None:
                here = slice(layer * num_directions, (layer + 1) * num_directions)
                layer_states = (*(state[here] for state in states), None)
            hx, cx = layer_states[:2]
            of_layer = weights[layer * num_weights : (layer + 1) * num_weights]
            options: dict[str, Any] = {
                "lengths": lengths,
                "batch_sizes": batch_sizes,
                "cell": cell_of(self.mode, self.reset_after, self.peepholes),
                "num_directions": num_directions,
                "with_cell_states": wanted.cell_states and is_wanted,
                "recompute_activations": self.recompute_activations,
                "resets": resets,
            }
            if self.layer_norm:
                count = len(norms) // self.num_layers
                own_norms = norms[layer * count : (layer + 1) * count]
                results = normalised_layer(
                    output, hx, cx, of_layer, own_norms, precision=precision, **options
                )
            else:
                if self.recurrent_dropout or self.zoneout:
                    drawn = self._draw_regularisers(output, hx, batch_sizes)
                    options |= drawn._asdict()
                results = recurrent_layer(output, hx, cx, of_layer, precision=precision, **options)
            output, h, c, *cells = results
            h_n.append(h)
            c_n.append(c)
            if is_wanted:
                outputs.append(output)
            cell_states += cells
        final = (h_n, c_n) if self.mode == "LSTM" else (h_n,)
        return (*outputs, *cell_states), tuple(s[0] if len(s) == 1 else torch.cat(s) for s in final)

    def _draw_regularisers(
        self, input: Tensor, hx: Tensor | None, batch_sizes: Tensor | None
    ) -> Regularisers:
        """Of one layer's call: masks by torch's generator, in this order."""
        num_directions = 2 if self.bidirectional else 1
        state_size = self.proj_size or self.hidden_size
        mask = zoneout_h = zoneout_c = None
        if self.recurrent_dropout > 0 and self.training:
            size = batch_size_of(input, hx, batch_sizes)
            mask = draw_recurrent_mask(
                input, num_directions, size, state_size, self.recurrent_dropout
            )
        of_h, of_c = by_state(self.zoneout)
        if of_h > 0:
            zoneout_h = zoneout_shares(input, num_directions * state_size, of_h, self.training)
        if of_c > 0 and self.mode == "LSTM":
            features = num_directions * self.hidden_size
            zoneout_c = zoneout_shares(input, features, of_c, self.training)
        return Regularisers(mask, zoneout_h, zoneout_c)


def is_plain(input: Tensor) -> bool:
    """Whether the operator is called as it is: eagerly, on real memory, not under autocast."""
    return (
        type(input) is Tensor
        and not input.is_meta
        and not torch._C._is_any_autocast_enabled()
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def _refuse_resets(resets: Tensor | None, form: str, padded: str) -> None:
    if resets is not None:
        raise ValueError(
            f"resets= is for a padded input, got {form}, each of whose rows is one sequence: leave "
            f"it out, or give {padded} with lengths= and resets=; birnn_cuda.pack_rows puts "
            "sequences into rows"
        )


def _permute(states: States, indices: Tensor | None) -> States:
    return states if indices is None else tuple(state.index_select(1, indices) for state in states)


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype to compute in where autocast is on for this device type, else None."""
    if (
        torch._C._is_any_autocast_enabled()
        and torch.amp.is_autocast_available(device_type)
        and torch.is_autocast_enabled(device_type)
    ):
        return torch.get_autocast_dtype(device_type)
    return None


def autocast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """As torch's autocast: fp64 is left alone."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)


def check_same_kind(input: Tensor, name: str, tensors: tuple[Tensor, ...] | list[Tensor]) -> None:
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


def fp32_precision(input: Tensor) -> str:
    """What fp32 means on CUDA, by torch's own switch for recurrent layers; default "tf32".

    Read for this op alone: the older ``cudnn.allow_tf32`` raises once any per-op switch is set.
    """
    if input.dtype == torch.float32 and input.is_cuda:
        switch: Any = torch.backends.cudnn.rnn
        return "tf32" if switch.fp32_precision == "tf32" else "ieee"
    return "ieee"
