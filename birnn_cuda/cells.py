"""RNNCell, GRUCell and LSTMCell: stand where ``torch.nn``'s stood, one step of a layer a call.

Same constructors, parameters, initial weights, state dict, results and errors; each is a subclass
of torch's own. A step of one or a few sequences reads its weights where they lie: see
``csrc/cpu/in_place.h``. Whoever has all steps at hand gives them to a layer in one call.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from torch import Tensor, nn

from .functional import recurrent_cell
from .interop import check_weights, fx_node
from .recurrent import autocast, autocast_dtype, check_same_kind, fp32_precision, is_plain

__all__ = ["GRUCell", "LSTMCell", "RNNCell"]

States: TypeAlias = tuple[Tensor, ...]  # (hx,) or, for the LSTM, (hx, cx), as the caller gave them

_WEIGHTS = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]


class _Cell(nn.RNNCellBase):
    """What the three cells share."""

    def _step(self, cell: str, input: Tensor, states: States | None) -> States:
        """The states after one step: ``(h,)`` or ``(h, c)``."""
        if input.dim() not in (1, 2):
            raise ValueError(
                f"{self._get_name()}: Expected input to be 1D or 2D, got {input.dim()}D instead"
            )
        names = _WEIGHTS if self.bias else _WEIGHTS[:2]
        parameters = self._parameters  # a plain one without the detour through Module.__getattr__
        weights: list[Any] = [
            parameters[name] if name in parameters else getattr(self, name, None) for name in names
        ]
        dtype = autocast_dtype(input.device.type)
        if dtype is not None:
            check_weights(names, weights)
            input = autocast(input, dtype)
            weights = [autocast(weight, dtype) for weight in weights]
            states = None if states is None else tuple(autocast(s, dtype) for s in states)

        def check() -> None:
            check_weights(names, weights)
            check_same_kind(input, "hidden", states or ())
            check_same_kind(input, "parameter", weights)

        checks_first = not is_plain(input)  # as of a layer: see Recurrent._run_form
        if checks_first:
            check()
        try:
            h, c = recurrent_cell(
                input,
                None if states is None else states[0],
                None if states is None or cell != "lstm" else states[1],
                weights,
                cell=cell,
                precision=fp32_precision(input),
            )
        except (RuntimeError, TypeError):
            if not checks_first:
                check()
            raise
        return (h, c) if cell == "lstm" else (h,)

    def _check_state(self, hx: Tensor, name: str = "hidden") -> None:
        if hx.dim() not in (1, 2):
            raise ValueError(
                f"{self._get_name()}: Expected {name} to be 1D or 2D, got {hx.dim()}D instead"
            )

    def __prepare_scriptable__(self) -> Any:
        raise RuntimeError(
            f"torch.jit.script does not support birnn_cuda.{self._get_name()}: use "
            "torch.export.export or torch.jit.trace, or script torch's own cells: "
            "torch.jit.script(birnn_cuda.to_torch(model))"
        )


class RNNCell(_Cell, nn.RNNCell):
    """RNNCell(input_size, hidden_size, bias=True, nonlinearity='tanh', device=None, dtype=None)

    One step of :class:`birnn_cuda.RNN`, in place of :class:`torch.nn.RNNCell`.

    Args:
        input_size, hidden_size, bias, nonlinearity, device, dtype: as of torch's.

    Attributes:
        weight_ih, weight_hh, bias_ih, bias_hh: ``[H, I]``, ``[H, H]``, ``[H]``, ``[H]``.

    Source: Elman 1990, Cognitive Science 14(2).
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Make one step.

        Args:
            input: ``[B, I]`` or ``[I]``, in the dtype of the weights (fp32, fp64, fp16, bf16),
                except under autocast. Any strides.
            hx: ``[B, H]`` or ``[H]``, as ``input``; None is zeros.

        Returns:
            The state after the step, in the form of ``hx``.

        Raises:
            ValueError: number of dimensions.
            RuntimeError: sizes, dtype or device that do not fit; an unknown nonlinearity.
        """
        node: Tensor | None = fx_node(self, input, hx)
        if node is not None:
            return node
        if hx is not None:
            self._check_state(hx)
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return self._step(self.nonlinearity, input, None if hx is None else (hx,))[0]


class GRUCell(_Cell, nn.GRUCell):
    """GRUCell(input_size, hidden_size, bias=True, device=None, dtype=None)

    One step of :class:`birnn_cuda.GRU`, in place of :class:`torch.nn.GRUCell`.

    Args:
        input_size, hidden_size, bias, device, dtype: as of torch's.

    Attributes:
        weight_ih, weight_hh, bias_ih, bias_hh: ``[3*H, I]``, ``[3*H, H]``, ``[3*H]``, ``[3*H]``;
            gates r, z, n.

    Source: Cho et al. 2014, arXiv 1406.1078.
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Make one step: as :meth:`RNNCell.forward`."""
        node: Tensor | None = fx_node(self, input, hx)
        if node is not None:
            return node
        if hx is not None:
            self._check_state(hx)
        return self._step("gru", input, None if hx is None else (hx,))[0]


class LSTMCell(_Cell, nn.LSTMCell):
    """LSTMCell(input_size, hidden_size, bias=True, device=None, dtype=None)

    One step of :class:`birnn_cuda.LSTM`, in place of :class:`torch.nn.LSTMCell`.

    Args:
        input_size, hidden_size, bias, device, dtype: as of torch's.

    Attributes:
        weight_ih, weight_hh, bias_ih, bias_hh: ``[4*H, I]``, ``[4*H, H]``, ``[4*H]``, ``[4*H]``;
            gates i, f, g, o.

    Sources: Hochreiter & Schmidhuber 1997, Neural Computation 9(8); Gers, Schmidhuber & Cummins
    2000, Neural Computation 12(10).
    """

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Make one step.

        Args:
            input: as of :meth:`RNNCell.forward`.
            hx: the pair of ``hx`` and ``cx``, ``[B, H]`` or ``[H]`` each; None is zeros.

        Returns:
            The pair of h and c after the step, in the form of ``hx``.

        Raises:
            ValueError, RuntimeError: as of :meth:`RNNCell.forward`.
        """
        node: tuple[Tensor, Tensor] | None = fx_node(self, input, hx)
        if node is not None:
            return node
        if hx is not None:
            for index, state in enumerate(hx):
                self._check_state(state, f"hx[{index}]")
            if len(hx) != 2:
                raise RuntimeError(f"LSTMCell expects two states, hx and cx, got {len(hx)}")
        h, c = self._step("lstm", input, hx)
        return h, c
