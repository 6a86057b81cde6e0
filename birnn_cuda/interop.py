"""What tools that know ``torch.nn.LSTM`` ask of a layer here: its class, one node, a word.

``isinstance(layer, torch.nn.LSTM)``, ``torch.fx.symbolic_trace`` and ``torch.ao.quantization``.
"""

from __future__ import annotations

import copyreg
import dis
import sys
import warnings
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy

__all__ = ["ReportsTorchClass", "fx_node", "warn_of_quantization"]


class ReportsTorchClass:
    """Instances are instances of ``torch_class`` too, though their class is not derived from it.

    It cannot be: Dynamo refuses every ``torch.nn.RNN``, ``GRU`` and ``LSTM``, subclasses included.
    But ``isinstance(layer, cls)`` asks ``layer.__class__`` where ``type(layer)`` alone does not
    decide, and that says ``torch_class`` to ``isinstance``. It says ``type(layer)``

    - to ``layer.__class__`` as written in Python: those who derive from it (parametrizations,
      FSDP), print it or compare it mean the real one;
    - to Dynamo where it decides what to refuse.
    """

    torch_class: type[nn.RNNBase]

    def _get_class(self) -> type:
        try:
            caller = sys._getframe(1)
        except ValueError:  # called from C alone
            return self.torch_class
        if _reads_attribute(caller) or caller.f_globals.get("__name__") == _REFUSES:
            return type(self)
        return self.torch_class

    def _set_class(self, cls: type) -> None:
        _set_real_class(self, cls)

    __class__ = property(_get_class, _set_class)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # pickle compares the class of what object.__reduce_ex__ gives with what isinstance is told.
        reduced: Any = object.__reduce_ex__(self, 2)
        _, _, *state = reduced
        return copyreg._reconstructor, (type(self), object, None), *state  # type: ignore[attr-defined]


_set_real_class = object.__dict__["__class__"].__set__

_REFUSES = "torch._dynamo.variables.builder"
_LOAD_ATTR, _CACHE = dis.opmap["LOAD_ATTR"], dis.opmap.get("CACHE")


def _reads_attribute(frame: Any) -> bool:
    """Whether the frame is at ``x.attribute``, and not at a call such as ``isinstance(...)``."""
    code: bytes = frame.f_code.co_code
    at: int = frame.f_lasti
    while at > 0 and code[at] == _CACHE:  # of the instruction before
        at -= 2
    return at >= 0 and code[at] == _LOAD_ATTR


def fx_node(layer: nn.Module, *arguments: Any, **options: Any) -> Any | None:
    """The call as one node, as torch.fx records those of ``torch.nn``; None if it is not traced.

    Raises:
        RuntimeError: the layer itself is what is traced.
    """
    proxy = _first_proxy(arguments)
    if proxy is None and options:
        proxy = _first_proxy(options.values())
    if proxy is None:
        return None
    tracer: Any = proxy.tracer
    target = tracer.path_of_module(layer)
    if not target:
        raise RuntimeError(
            f"torch.fx records a birnn_cuda.{type(layer).__name__} as one node of the module that "
            "holds it: trace that module, or torch.nn.Sequential(layer)"
        )
    options = {name: x for name, x in options.items() if x is not None and x is not False}
    return tracer.create_proxy("call_module", target, arguments, options)


def _first_proxy(arguments: Iterable[Any]) -> Proxy | None:
    for argument in arguments:
        for x in argument if type(argument) is tuple else (argument,):
            if isinstance(x, Proxy):
                return x
    return None


def warn_of_quantization(layer: nn.Module) -> None:
    """Say that ``torch.ao.quantization``, which has just visited the layer, leaves it as it is."""
    name = type(layer).__name__
    way = "birnn_cuda.quantize(model.eval()) makes its layers int8, for inference on the CPU"
    if name in ("LSTM", "GRU"):
        way += (
            "; torch.ao.quantization.quantize_dynamic(birnn_cuda.to_torch(copy.deepcopy(model)), "
            f"{{torch.nn.{name}}}) converts torch's own layers"
        )
    warnings.warn(
        f"torch.ao.quantization does not convert birnn_cuda.{name}, which stays as it is: {way}",
        stacklevel=3,
    )


def check_weights(names: list[str], weights: list[Any]) -> None:
    """Raise for a weight that is missing or no tensor."""
    for name, weight in zip(names, weights, strict=True):
        if not isinstance(weight, Tensor):
            found = "missing" if weight is None else f"a {type(weight).__name__}"
            raise RuntimeError(f"{name} must be a tensor, but it is {found}")
