"""The compiled extension (csrc/bindings.cpp). Its functions are those of the ops it registers."""

from typing import Any

from torch import Tensor

def forward(
    input: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: list[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    cell: str,
    num_directions: int,
    training: bool,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
def backward(
    d_output: Tensor | None,
    d_h_n: Tensor | None,
    d_c_n: Tensor | None,
    input: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: list[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    output: Tensor,
    reserve: Tensor,
    cell: str,
    num_directions: int,
    precision: str,
    needs_grad: list[bool],
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]: ...
def build_info() -> dict[str, Any]: ...
