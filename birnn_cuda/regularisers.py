"""Regularisers of a recurrence: the options, what is wrong with them, and the masks they draw.

Recurrent dropout: Gal & Ghahramani 2016, arXiv 1512.05287 (there for dropout between layers by the
sequence, too). Zoneout: Krueger et al. 2017, arXiv 1606.01305.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from .sequences import padded_to_packed

__all__ = [
    "Regularisers",
    "by_state",
    "check_input_dropout_mask",
    "check_layer_norm",
    "check_probability",
    "check_zoneout",
    "draw_recurrent_mask",
    "drop_by_sequence",
    "zoneout_of",
    "zoneout_shares",
]


class Regularisers(NamedTuple):
    """What one layer's call is given: see :func:`functional.recurrent_layer`."""

    recurrent_mask: Tensor | None = None
    zoneout_h: Tensor | None = None
    zoneout_c: Tensor | None = None


def check_probability(name: str, value: Any) -> float:
    """``value`` as a float.

    Raises:
        TypeError: it is not a number.
        ValueError: it is not at least 0 and less than 1.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}: {value!r}")
    if not 0 <= value < 1:
        raise ValueError(
            f"{name} must be a probability of at least 0 (none) and less than 1, got {value}"
        )
    return float(value)


def check_input_dropout_mask(value: Any) -> str:
    """``value`` itself.

    Raises:
        ValueError: it is neither "element" nor "sequence".
    """
    if value not in ("element", "sequence"):
        raise ValueError(
            'input_dropout_mask must be "element" (as torch.nn) or "sequence" (one mask for all '
            f"steps of a sequence), got {value!r}"
        )
    return str(value)


def check_zoneout(value: Any, has_c: bool) -> float | tuple[float, float]:
    """``value``, as a float or a pair of floats.

    Raises:
        TypeError: it is neither a number nor a pair of numbers, or a pair for a cell without c.
        ValueError: one of them is not at least 0 and less than 1.
    """
    if not isinstance(value, tuple | list):
        return check_probability("zoneout", value)
    if not has_c:
        raise TypeError(
            f"zoneout must be a number where the state is h alone, got {value!r}: a pair, of h and "
            "of c, is for an LSTM"
        )
    if len(value) != 2:
        raise TypeError(
            "zoneout must be a number or a pair of them, of h and of c, got "
            f"{len(value)} values: {value!r}"
        )
    h, c = value
    return check_probability("zoneout[0]", h), check_probability("zoneout[1]", c)


def zoneout_of(module: Any) -> float | tuple[float, float]:
    """Of a layer of this package, if it is not 0; 0 of any other module."""
    zoneout: float | tuple[float, float] = getattr(module, "zoneout", 0.0)
    return zoneout if isinstance(module, nn.RNNBase) and max(by_state(zoneout)) > 0 else 0.0


def check_layer_norm(
    value: Any,
    mode: str,
    options: dict[str, Any],
    recurrent_dropout: float,
    zoneout: float | tuple[float, float],
) -> None:
    """Check ``layer_norm`` beside the options that it does not go with.

    Raises:
        TypeError: it is no bool.
        ValueError: it is True for an RNN, or beside projection, recurrent dropout or zoneout.
    """
    if not isinstance(value, bool):
        raise TypeError(f"layer_norm must be True or False, got {type(value).__name__}: {value!r}")
    if not value:
        return
    if mode not in ("GRU", "LSTM"):
        raise ValueError("layer_norm=True is for GRU and LSTM, got an RNN: use one of these")
    given = {
        "proj_size": options.get("proj_size", 0),
        "recurrent_dropout": recurrent_dropout,
        "zoneout": max(by_state(zoneout)),
    }
    for name, number in given.items():
        if number:
            raise ValueError(
                f"layer_norm=True does not go with {name}={number}: leave one of them out; dropout "
                "between layers and weight drop go with both"
            )


def by_state(zoneout: float | tuple[float, float]) -> tuple[float, float]:
    """The probabilities of h and of c."""
    return zoneout if isinstance(zoneout, tuple) else (zoneout, zoneout)


def draw_recurrent_mask(
    input: Tensor, num_directions: int, batch_size: int, state_size: int, probability: float
) -> Tensor:
    """``[D, B, P or H]`` in the dtype of ``input``: 0, or 1 / (1 - probability)."""
    return dropout(input.new_ones(num_directions, batch_size, state_size), probability)


def zoneout_shares(input: Tensor, features: int, probability: float, training: bool) -> Tensor:
    """The share of the state before in each new one.

    In training one that is drawn for each element of ``input.shape[:-1]`` and features, 0 or 1;
    otherwise their expectation, one row for all.
    """
    if not training:
        return input.new_full((*[1] * (input.dim() - 1), features), probability)
    return (torch.rand(*input.shape[:-1], features, device=input.device) < probability).to(
        input.dtype
    )


def drop_by_sequence(input: Tensor, batch_sizes: Tensor | None, probability: float) -> Tensor:
    """Dropout with one mask for all steps of a sequence.

    Args:
        input: ``[T, B, features]``, or packed ``[N, features]`` with ``batch_sizes``.
        batch_sizes: int64 ``[T]`` on the CPU, of a packed input.
        probability: of dropping an element.
    """
    if batch_sizes is None:
        return input * dropout(input.new_ones(1, *input.shape[1:]), probability)
    batch_size = int(batch_sizes[0])
    mask = dropout(input.new_ones(batch_size, input.size(1)), probability)
    sequence = torch.arange(batch_size).expand(batch_sizes.size(0), -1)
    return input * mask[padded_to_packed(sequence, batch_sizes).to(input.device)]
