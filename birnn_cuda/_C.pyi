"""The compiled extension (csrc/layer/bindings.cpp); its operators: see birnn_cuda.ops."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

def eager_layer(
    input: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    cell: str,
    num_directions: int,
    precision: str,
    with_cell_states: bool,
    recompute_activations: bool,
    resets: Tensor | None,
    recurrent_mask: Tensor | None,
    zoneout_h: Tensor | None,
    zoneout_c: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]: ...
def eager_cell(
    input: Tensor,
    hx: Tensor | None,
    cx: Tensor | None,
    weights: Sequence[Tensor],
    cell: str,
    precision: str,
) -> tuple[Tensor, Tensor]: ...
def set_python_functions(
    differentiable_backward: Callable[..., tuple[Tensor, ...]], cell_states: Callable[..., Tensor]
) -> None: ...
def build_info() -> dict[str, Any]: ...
def known_devices() -> list[dict[str, Any]]: ...
def device_limits(index: int) -> dict[str, Any]: ...  # in a build with CUDA
def plan(
    device: dict[str, Any],
    *,
    cell: str,
    dtype: str,
    seq_len: int,
    batch_size: int,
    input_size: int,
    hidden_size: int,
    proj_size: int = 0,
    num_directions: int = 2,
    precision: str = "ieee",
    training: bool = True,
    lengths: bool = False,
    resets: bool = False,
    recurrent_dropout: bool = False,
    zoneout: bool = False,
    captured: bool = False,
    kernel: str = "",
    forward: dict[str, Any] | None = None,
    backward: dict[str, Any] | None = None,
) -> dict[str, Any]: ...
def divisions(
    device: dict[str, Any],
    pass_: str,
    *,
    cell: str,
    dtype: str,
    seq_len: int,
    batch_size: int,
    input_size: int,
    hidden_size: int,
    num_directions: int = 2,
    precision: str = "ieee",
    captured: bool = False,
    constants: dict[str, float] = ...,
    resident_clusters: Sequence[Sequence[int]] | None = None,
) -> tuple[list[dict[str, Any]], int]: ...
def cost_constants() -> dict[str, float]: ...
def force(
    kernel: str = "",
    backward_parts: int = 0,
    forward: dict[str, Any] | None = None,
    backward: dict[str, Any] | None = None,
) -> None: ...
def forced() -> tuple[str, int, dict[str, Any] | None, dict[str, Any] | None]: ...
