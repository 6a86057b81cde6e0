"""Swap the recurrent layers of a model for this package's, and back."""

from __future__ import annotations

import logging
from typing import TypeVar

from torch import nn

from .layers import GRU, LSTM, RNN

__all__ = ["replace_rnns", "to_torch"]

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_OURS: dict[type[nn.Module], type[nn.Module]] = {nn.RNN: RNN, nn.GRU: GRU, nn.LSTM: LSTM}
_TORCHS = {ours: torchs for torchs, ours in _OURS.items()}

_logger = logging.getLogger(__name__)


def replace_rnns(model: ModuleT) -> ModuleT:
    """Make every ``torch.nn.RNN``, ``GRU`` and ``LSTM`` of ``model`` one of this package.

    The modules stay the objects they are and change their class: parameters (and an optimizer's
    hold on them), tied weights, hooks, the training flag and every reference to a module are kept.
    What was swapped is logged at level INFO by the logger ``birnn_cuda.convert``. Left alone, with
    a WARNING, is a module whose behaviour is not torch's own: of a subclass (a parametrized layer
    is one: swap before parametrizing) or with a ``forward`` of its own set on the instance.

    Args:
        model: any module, on any device; may itself be a recurrent layer.

    Returns:
        ``model``, changed in place.
    """
    return _swap(model, _OURS)


def to_torch(model: ModuleT) -> ModuleT:
    """Make every layer of this package in ``model`` torch's own: undoes :func:`replace_rnns`.

    In place, as :func:`replace_rnns` does it; ``to_torch(copy.deepcopy(layer))`` leaves ``layer``
    as it is. What torch's layers do not have is then no longer understood: ``lengths=``, nested
    tensors, ``return_cell_states=``.

    It is the way to ONNX, for which torch knows its own layers only. With ``dynamo=False`` each
    becomes one node for every layer, right at any T and B; the default exporter fixes T::

        torch.onnx.export(
            to_torch(copy.deepcopy(model)), (input,), "model.onnx", dynamo=False,
            input_names=["input"], dynamic_axes={"input": {0: "T", 1: "B"}},
        )

    Args:
        model: any module, on any device; may itself be a recurrent layer.

    Returns:
        ``model``, changed in place.
    """
    return _swap(model, _TORCHS)


def _swap(model: ModuleT, classes: dict[type[nn.Module], type[nn.Module]]) -> ModuleT:
    for name, module in model.named_modules():
        swapped = classes.get(type(module))
        label = f"{name or 'the module itself'} ({_qualified_name(type(module))})"
        if swapped is None:
            if isinstance(module, tuple(classes)):
                _logger.warning("left alone: %s: a subclass may behave differently", label)
        elif "forward" in module.__dict__:
            _logger.warning("left alone: %s: its forward was replaced on the instance", label)
        else:
            # The flat list of weights is an attribute of torch's layers and derived in ours.
            module.__dict__.pop("_flat_weights", None)
            module.__class__ = swapped
            module._init_flat_weights()
            _logger.info("swapped: %s for %s", label, _qualified_name(swapped))
    return model


def _qualified_name(cls: type) -> str:
    package = cls.__module__.partition(".")[0]
    return f"{'torch.nn' if package == 'torch' else package}.{cls.__qualname__}"
