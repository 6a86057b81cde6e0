"""int8 layers for inference on the CPU: weights in 8 bits, everything else as it was.

Each row of a weight matrix (an output of the product) is rounded to integers from -127 to 127 and
a scale. Each row that a product reads (x of one step of one sequence, h of one) is rounded the same
way when it is there, by its own largest number, so that no sequence, and no padding, has a part in
the scale of another. Sums are int32; biases, cell and states are float32.
"""

from __future__ import annotations

import logging
import operator
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from . import ops
from .layers import GRU, LSTM, RNN
from .recurrent import Recurrent, States, Wanted
from .regularisers import zoneout_of
from .variants import cell_of, variant_of

__all__ = ["QuantizedGRU", "QuantizedLSTM", "QuantizedRNN", "dequantize_layer", "quantize"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_logger = logging.getLogger(__name__)


class _Quantized(Recurrent):
    """What the three int8 layers share.

    Their buffers stand where the parameters stood: ``weight_*`` int8 in the same shapes, each with
    its ``weight_*_scale``, float32, one for each row; ``bias_*`` in float32.
    """

    @property
    def _flat_weights(self) -> list[Any]:
        # The scales stand for the weights where torch asks for the dtype of the layer.
        return [
            getattr(self, f"{name}_scale" if name.startswith("weight") else name)
            for name in self._flat_weights_names
        ]

    @_flat_weights.setter
    def _flat_weights(self, weights: list[Any]) -> None:
        pass

    def _init_flat_weights(self) -> None:
        pass

    def reset_parameters(self) -> None:
        """Raise: an int8 layer has weights only from the layer that it is made of."""
        raise RuntimeError(f"{self._get_name()} has no parameters to reset: quantize a layer")

    def _weights_of(self, layer: int) -> tuple[list[Tensor], list[Tensor]]:
        """Of each direction weights, in the order of the op, and the scales of its matrices."""
        per_direction = len(self._all_weights[0])
        num_directions = 2 if self.bidirectional else 1
        names = self._flat_weights_names[layer * num_directions * per_direction :]
        names = names[: num_directions * per_direction]
        matrices = [name for name in names if name.startswith("weight")]
        return (
            [getattr(self, name) for name in names],
            [getattr(self, f"{name}_scale") for name in matrices],
        )

    _op_checks = False  # any dtype is made float32 before

    def _packed_weights(
        self, layer: int, weights: list[Tensor], scales: list[Tensor]
    ) -> Tensor | None:
        """A layer's matrices as the kernels read them, packed when they are not those of before.

        None where a graph is recorded, which must not hold them, and where torch counts no changes
        of a tensor: each call packs for itself then.
        """
        if (
            torch.compiler.is_compiling()
            or torch.jit.is_tracing()  # type: ignore[attr-defined]
            or is_in_torch_dispatch_mode()
            or any(weight.is_inference() for weight in weights)
        ):
            return None
        # By layer: the weights, the version of each when they were packed, and what came of it. An
        # entry is replaced, not changed: another thread may be reading it.
        kept = self.__dict__.setdefault("_kept_packed", {})
        versions = [weight._version for weight in weights]
        if layer in kept:
            packed_weights, packed_versions, packed = kept[layer]
            if versions == packed_versions and all(map(operator.is_, weights, packed_weights)):
                return cast(Tensor, packed)
        num_directions = 2 if self.bidirectional else 1
        packed = ops.pack_quantized(weights, scales, cell_of(self.mode), num_directions)
        kept[layer] = weights, versions, packed
        return cast(Tensor, packed)

    def __getstate__(self) -> dict[str, Any]:
        # Copies and files go without what another processor may read in another order.
        state: dict[str, Any] = super().__getstate__()
        state.pop("_kept_packed", None)
        return state

    def _run_layers(
        self,
        input: Tensor,
        states: States | None,
        lengths: Tensor | None,
        batch_sizes: Tensor | None,
        wanted: Wanted,
        checks_kinds: bool = True,
        resets: Tensor | None = None,
    ) -> tuple[tuple[Tensor, ...], States]:
        if self.training:
            raise RuntimeError(
                f"{self._get_name()} is for inference: call eval() first. To train, keep the layer "
                "that it was made of"
            )
        if torch.is_grad_enabled() and (
            input.requires_grad or any(state.requires_grad for state in states or ())
        ):
            raise RuntimeError(
                f"{self._get_name()} has no gradient, but its input requires one: run it under "
                "torch.no_grad(), or detach the input"
            )
        first_weight = self._flat_weights[0]
        if input.device.type != "cpu" or first_weight.device.type != "cpu":
            device = input.device if input.device.type != "cpu" else first_weight.device
            raise RuntimeError(
                f"{self._get_name()} runs on the CPU only, got {device}: move it and its input to "
                "the CPU, or run the layer that it was made of, which also runs in float16 and "
                "bfloat16 on a GPU"
            )
        input = input.float()  # another dtype under autocast
        states = None if states is None else tuple(state.float() for state in states)
        num_directions = 2 if self.bidirectional else 1
        output, h_n, c_n = input, [], []
        outputs: list[Tensor] = []
        cell_states: list[Tensor] = []
        for layer in range(self.num_layers):
            layer_states: tuple[Tensor | None, ...] = (None, None)
            if states is not None:
                here = slice(layer * num_directions, (layer + 1) * num_directions)
                layer_states = (*(state[here] for state in states), None)
            is_wanted = wanted.all_layers or layer == self.num_layers - 1
            source = output
            weights, scales = self._weights_of(layer)
            output, h, c, reserve = ops.quantized_forward(
                source,
                layer_states[0],
                layer_states[1],
                weights,
                scales,
                lengths,
                batch_sizes,
                cell_of(self.mode),
                num_directions,
                wanted.cell_states and is_wanted,
                resets,
                self._packed_weights(layer, weights, scales),
            )
            if is_wanted:
                outputs.append(output)
                if wanted.cell_states:
                    cell_states.append(ops.cell_states(source, c, reserve, lengths, batch_sizes))
            h_n.append(h)
            c_n.append(c)
        final = (h_n, c_n) if self.mode == "LSTM" else (h_n,)
        return (*outputs, *cell_states), tuple(s[0] if len(s) == 1 else torch.cat(s) for s in final)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dtype=int8"


class QuantizedRNN(_Quantized, RNN):
    """An :class:`RNN` with int8 weights, for inference on the CPU: see :func:`quantize`."""


class QuantizedGRU(_Quantized, GRU):
    """A :class:`GRU` with int8 weights, for inference on the CPU: see :func:`quantize`."""


class QuantizedLSTM(_Quantized, LSTM):
    """An :class:`LSTM` with int8 weights, for inference on the CPU: see :func:`quantize`."""


_QUANTIZED: dict[type[nn.Module], type[nn.Module]] = {
    RNN: QuantizedRNN,
    GRU: QuantizedGRU,
    LSTM: QuantizedLSTM,
    nn.RNN: QuantizedRNN,
    nn.GRU: QuantizedGRU,
    nn.LSTM: QuantizedLSTM,
}


def quantize(model: ModuleT) -> ModuleT:
    """Make every recurrent layer of ``model`` an int8 layer for inference on the CPU.

    This package's layers and ``torch.nn``'s ``RNN``, ``GRU`` and ``LSTM`` become
    :class:`QuantizedRNN`, :class:`QuantizedGRU` and :class:`QuantizedLSTM`, in place, as
    :func:`replace_rnns` does it: the modules stay the objects they are and are called as before
    (``lengths=``, ``resets=``, packed and nested sequences, states, ``proj_size``, two
    directions). Input, output and states are float32. Weights are rounded to 8 bits, with a scale
    for each row of a matrix; so is each row that they are multiplied by, by itself: what comes of a
    sequence depends neither on its neighbours nor on padding. Other modules stay as they are.

    An int8 layer has buffers instead of parameters: a quarter of the bytes, the same names in the
    state dict, and ``*_scale`` beside each ``weight_*``. To load one, quantize a new layer and load
    the state dict into it. Its weights are packed for the kernels by the first call, and again when
    PyTorch has counted a change of one (``load_state_dict``, any operation in place, a new tensor):
    what is written past PyTorch (through ``.data``, a NumPy array, another process) needs
    ``weight.add_(0)`` to be seen. It is compiled like any other; :func:`to_torch` makes it
    ``torch.nn``'s float32 layer with the rounded weights, whose results differ by the rounding of x
    and h alone: the way to ONNX is :func:`replace_rnns` of that.

    What is quantized already is left as it is; so is, with a WARNING of the logger
    ``birnn_cuda.quantized``, a subclass of a layer, or one with a ``forward`` of its own.

    Args:
        model: any module on the CPU in eval mode; may itself be a recurrent layer.

    Returns:
        ``model``, changed in place: ``quantize(copy.deepcopy(model))`` leaves ``model`` as it is.

    Raises:
        ValueError: a layer with ``layer_norm``, ``zoneout``, ``reset_after=False`` or
            ``peepholes``, in training mode, on a device other
            than the CPU, or with weights that are not finite. Nothing is changed then.
    """
    found = []
    for name, module in model.named_modules():
        label = f"{name or 'the module itself'} ({type(module).__qualname__})"
        if isinstance(module, _Quantized):
            continue
        if type(module) not in _QUANTIZED:
            if isinstance(module, nn.RNNBase):
                _logger.warning("left alone: %s: a subclass may behave differently", label)
            continue
        if "forward" in module.__dict__:
            _logger.warning("left alone: %s: its forward was replaced on the instance", label)
            continue
        if getattr(module, "layer_norm", False):
            raise ValueError(
                f"{label} has layer_norm=True, which an int8 layer does not have: run it as it is, "
                "or quantize a layer trained without"
            )
        if variant := variant_of(module):
            raise ValueError(
                f"{label} has {variant}, which an int8 layer does not have: run it as it is"
            )
        if zoneout := zoneout_of(module):
            raise ValueError(
                f"{label} has zoneout={zoneout}, which an int8 layer does not have: run it in "
                "bfloat16, or quantize a layer trained with zoneout=0"
            )
        if module.training:
            raise ValueError(f"{label} is in training mode, but int8 is for inference: call eval()")
        for parameter, value in module.named_parameters(recurse=False):
            if value.device.type != "cpu":
                raise ValueError(
                    f"{label} is on {value.device}, but int8 layers run on the CPU: call cpu()"
                )
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"{parameter} of {label} has values that are not finite")
        found.append(module)
    for module in found:
        _quantize_layer(module)
    return model


@torch.inference_mode(False)  # of whose tensors torch counts no changes
@torch.no_grad()
def _quantize_layer(module: nn.Module) -> None:
    values = dict(module.named_parameters(recurse=False))
    module.__dict__.pop("_flat_weights", None)
    module.__class__ = _QUANTIZED[type(module)]
    for name, parameter in values.items():
        value = parameter.detach().float()
        delattr(module, name)
        if not name.startswith("weight"):
            module.register_buffer(name, value.clone())
            continue
        largest = value.abs().amax(1)
        scale = torch.where(largest > 0, largest / 127, 1.0)
        rounded = (value / scale.unsqueeze(1)).round().clamp(-127, 127)
        module.register_buffer(name, rounded.to(torch.int8))
        module.register_buffer(f"{name}_scale", scale)


def dequantize_layer(module: nn.Module, layer_class: type[nn.Module]) -> None:
    """Make an int8 layer one of ``layer_class``, in float32 with the rounded weights, in place."""
    names: list[str] = module._flat_weights_names  # type: ignore[assignment]
    values = {name: getattr(module, name) for name in names}
    for name in names:
        if name.startswith("weight"):
            values[name] = values[name].float() * getattr(module, f"{name}_scale").unsqueeze(1)
            delattr(module, f"{name}_scale")
        delattr(module, name)
    module.__class__ = layer_class
    module.__dict__.pop("_kept_packed", None)
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))
    module._init_flat_weights()  # type: ignore[operator]
