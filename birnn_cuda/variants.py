"""Cells that other frameworks have and torch.nn has not: their options, names and errors.

A GRU with the reset gate before the product, as Cho et al. 2014 wrote it (arXiv 1406.1078), and an
LSTM with peepholes (Gers, Schraudolph & Schmidhuber 2002, JMLR 3; diagonal: Graves 2013, arXiv
1308.0850). Their equations are in ``csrc/cells.h`` and :mod:`birnn_cuda.reference`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["cell_of", "check_variant", "variant_of"]

_CELL_OF_MODE = {"RNN_TANH": "tanh", "RNN_RELU": "relu", "GRU": "gru", "LSTM": "lstm"}


def cell_of(mode: str, reset_after: bool = True, peepholes: bool = False) -> str:
    """The name that the operators know a cell by."""
    if not reset_after:
        return "gru_reset_before"
    return "lstm_peepholes" if peepholes else _CELL_OF_MODE[mode]


def check_variant(
    mode: str, reset_after: Any, peepholes: Any, proj_size: int, layer_norm: bool
) -> None:
    """Check ``reset_after`` and ``peepholes`` beside what they do not go with.

    Raises:
        TypeError: one of them is no bool.
        ValueError: it is of another cell, or beside ``proj_size`` or ``layer_norm``.
    """
    for name, value in (("reset_after", reset_after), ("peepholes", peepholes)):
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, got {type(value).__name__}: {value!r}")
    kind = {"GRU": "a GRU", "LSTM": "an LSTM"}.get(mode, "an RNN")
    if not reset_after and mode != "GRU":
        raise ValueError(f"reset_after=False is of a GRU, got {kind}, which has no reset gate")
    if peepholes and mode != "LSTM":
        raise ValueError(f"peepholes=True is of an LSTM, got {kind}: it has no cell state")
    option = "peepholes=True" if peepholes else "" if reset_after else "reset_after=False"
    for name, other in (("proj_size", proj_size), ("layer_norm", layer_norm)):
        if option and other:
            raise ValueError(
                f"{option} does not go with {name}={other}: leave one of them out; dropout, "
                "recurrent dropout and zoneout go with it"
            )


def variant_of(module: nn.Module) -> str | None:
    """The option that makes a layer a cell that torch.nn does not have; None: there is none."""
    if not isinstance(module, nn.RNNBase):
        return None
    if not getattr(module, "reset_after", True):
        return "reset_after=False"
    return "peepholes=True" if getattr(module, "peepholes", False) else None
