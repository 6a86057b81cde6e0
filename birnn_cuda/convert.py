"""Swap the recurrent layers of a model for this package's, and back."""

from __future__ import annotations

import logging
from typing import Any, TypeVar

import torch
from torch import nn

from .cells import GRUCell, LSTMCell, RNNCell
from .layers import GRU, LSTM, RNN
from .quantized import QuantizedGRU, QuantizedLSTM, QuantizedRNN, dequantize_layer
from .regularisers import zoneout_of
from .variants import variant_of

__all__ = ["replace_rnns", "to_torch"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.RNN: RNN,
    nn.GRU: GRU,
    nn.LSTM: LSTM,
    nn.RNNCell: RNNCell,
    nn.GRUCell: GRUCell,
    nn.LSTMCell: LSTMCell,
}
_TORCHS = {ours: torchs for torchs, ours in _OURS.items()}
_TORCHS |= {QuantizedRNN: nn.RNN, QuantizedGRU: nn.GRU, QuantizedLSTM: nn.LSTM}

_logger = logging.getLogger(__name__)


def replace_rnns(model: ModuleT) -> ModuleT:
    """Make every ``torch.nn.RNN``, ``GRU``, ``LSTM`` and cell of ``model`` one of this package.

    The modules stay the objects they are and change their class: parameters (and an optimizer's
    hold on them), tied weights, hooks, the training flag and every reference to a module are kept.
    ``isinstance(layer, torch.nn.LSTM)`` stays true of a swapped LSTM, as it is of each
    ``birnn_cuda.LSTM``; so for GRU and RNN.

    What was swapped is logged at level INFO by the logger ``birnn_cuda.convert``; with a WARNING
    what was left alone, and why: a subclass, whose behaviour need not be torch's own (a
    parametrized layer is one: swap before parametrizing); a layer with a ``forward`` of its own set
    on the instance; layers that ``torch.ao.quantization`` took first; scripted modules; or that
    there was nothing to swap. A cell does one step a call: a loop over one that has all its inputs
    beforehand is better a layer, which is a change to the model's own code.

    A model that makes itself anew when it is copied, saved or loaded comes back with torch's
    layers. ``any(isinstance(m, (birnn_cuda.RNN, birnn_cuda.GRU, birnn_cuda.LSTM)) for m in
    model.modules())`` tells; call ``replace_rnns`` again.

    Args:
        model: any module, on any device; may itself be a recurrent layer.

    Returns:
        ``model``, changed in place.
    """
    return _swap(model, _OURS)


def to_torch(model: ModuleT) -> ModuleT:
    """Make every layer of this package in ``model`` torch's own: undoes :func:`replace_rnns`.

    In place, as :func:`replace_rnns` does it; ``to_torch(copy.deepcopy(layer))`` leaves ``layer``
    as it is. A model that cannot be copied can be changed in place, used, and changed back. What
    torch's layers do not have is then no longer understood: ``lengths=``, ``resets=``, nested
    tensors, ``return_cell_states=``, ``return_all_layers=``. A layer of :func:`quantize` becomes a
    float32 one with the weights that 8 bits left; what it multiplies them by is no longer rounded.
    Recurrent dropout and masks by the sequence, which do nothing in eval mode, are forgotten.

    To ONNX goes :func:`birnn_cuda.onnx.export`, which needs no such copy.

    Args:
        model: any module, on any device; may itself be a recurrent layer.

    Returns:
        ``model``, changed in place.

    Raises:
        ValueError: a layer whose results torch's would not give: it has ``layer_norm``,
            ``reset_after=False``, ``peepholes``, ``zoneout`` or a ``merge_mode`` other than
            "concat", or it is in training mode and has ``recurrent_dropout``, or dropout with masks
            by the sequence. Nothing is changed then.
    """
    for name, module in model.named_modules():
        if type(module) not in _TORCHS:
            continue
        _refuse_regularisers(module, f"{name or 'the module itself'}")
        mode = getattr(module, "merge_mode", "concat")
        if mode != "concat":
            raise ValueError(
                f"{name or 'the module itself'} ({_qualified_name(type(module))}) has merge_mode="
                f"{mode!r}, which torch's layers do not have: they concatenate"
            )
    return _swap(model, _TORCHS)


def _refuse_regularisers(module: nn.Module, name: str) -> None:
    option: Any = None
    if getattr(module, "layer_norm", False):
        option, remedy = "layer_norm=True", "use a layer without it"
    elif variant := variant_of(module):
        option, remedy = variant, "use a layer without it"
    elif zoneout := zoneout_of(module):
        option, remedy = f"zoneout={zoneout}", "use a layer with zoneout=0"
    elif isinstance(module, nn.RNNBase) and module.training:
        remedy = "call eval(), where it does nothing"
        if probability := getattr(module, "recurrent_dropout", 0.0):
            option = f"recurrent_dropout={probability}"
        elif module.dropout and module.input_dropout_mask == "sequence":
            option = f"dropout={module.dropout} with input_dropout_mask='sequence'"
    if option is not None:
        raise ValueError(f"{name} has {option}, which torch's layer does not have: {remedy}")


def _swap(model: ModuleT, classes: dict[type[nn.Module], type[nn.Module]]) -> ModuleT:
    found_any = False
    for name, module in model.named_modules():
        swapped = classes.get(type(module))
        label = f"{name or 'the module itself'} ({_qualified_name(type(module))})"
        reason = None
        if swapped is None:
            reason = _reason_to_leave(module, tuple(classes))
        elif "forward" in module.__dict__:
            reason = "its forward was replaced on the instance"
        found_any = found_any or reason is not None or swapped is not None
        if reason is not None:
            _logger.warning("left alone: %s: %s", label, reason)
        elif isinstance(module, QuantizedRNN | QuantizedGRU | QuantizedLSTM):
            if swapped is not None:
                dequantize_layer(module, swapped)
                _logger.info("swapped: %s for %s in float32", label, _qualified_name(swapped))
        elif swapped is not None:
            # The flat list of weights is an attribute of torch's layers and derived in ours.
            module.__dict__.pop("_flat_weights", None)
            module.__class__ = swapped
            if isinstance(module, nn.RNNBase):
                module._init_flat_weights()
            _logger.info("swapped: %s for %s", label, _qualified_name(swapped))
    if classes is _OURS and not found_any and not _has_any(model, tuple(_TORCHS)):
        _logger.warning("nothing to swap: no recurrent layer in %s", _qualified_name(type(model)))
    return model


def _has_any(model: nn.Module, classes: tuple[type[nn.Module], ...]) -> bool:
    return any(isinstance(module, classes) for module in model.modules())


def _reason_to_leave(module: nn.Module, classes: tuple[type[nn.Module], ...]) -> str | None:
    """Why a recurrent module that is of none of the classes stays as it is; None for any other."""
    cls = type(module)
    if classes == tuple(_OURS) and cls in _TORCHS:  # swapped already
        return None
    if issubclass(cls, classes):
        return "a subclass may behave differently"
    if classes != tuple(_OURS):
        return None
    if cls.__module__.startswith("torch.ao.nn") and cls.__name__.startswith(("LSTM", "GRU", "RNN")):
        return "it is quantized: call replace_rnns before quantize_dynamic"
    scripted = isinstance(module, torch.jit.ScriptModule)
    if scripted and getattr(module, "original_name", "") in {cls.__name__ for cls in _OURS}:
        return "it is scripted: call replace_rnns on the model that was scripted, and trace that"
    if issubclass(cls, nn.RNNBase | nn.RNNCellBase) and not issubclass(cls, tuple(_TORCHS)):
        return "not a class of torch.nn"
    return None


def _qualified_name(cls: type) -> str:
    """By which users know it: without the file in torch.nn or in this package."""
    module = cls.__module__
    for package in ("torch.nn", "birnn_cuda"):
        module = package if module.startswith(package + ".") else module
    return f"{module}.{cls.__qualname__}"
