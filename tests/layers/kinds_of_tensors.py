"""Every argument given as every kind of tensor: what came of each, as lines of JSON.

    python tests/layers/kinds_of_tensors.py

A program, since what it looks for ends the process. `test_kinds_of_tensors.py` judges the lines;
each is printed before its case runs as well, so that the last line names what ended the process.
"""

from __future__ import annotations

import contextlib
import copy
import faulthandler
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._pytree import tree_map

import birnn_cuda
from birnn_cuda.functional import recurrent_layer

T, B, INPUT, HIDDEN, PROJ = 4, 3, 5, 6, 2


# ---- kinds


class Wrapper(Tensor):
    """A subclass that holds another tensor and computes on what `restored` makes of it."""

    @staticmethod
    def __new__(cls, held: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            dtype=torch.float32 if held.dtype == torch.int8 else held.dtype,
            device=held.device,
            requires_grad=held.requires_grad,
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held.detach()

    __torch_function__ = torch._C._disabled_torch_function_impl

    def restored(self) -> Tensor:
        return self.held

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def restored(x: Any) -> Any:
            return x.restored() if isinstance(x, Wrapper) else x

        args, kwargs = tree_map(restored, args), tree_map(restored, kwargs or {})
        results = func(*args, **kwargs)
        if func is torch.ops.aten.detach.default:
            return cls(results)
        return results


class Dequantising(Wrapper):
    """Holds eighths as int8."""

    def __init__(self, held: Tensor) -> None:
        self.held = (held.detach() * 8).round().to(torch.int8)

    def restored(self) -> Tensor:
        return self.held.to(torch.float32) / 8


class TwoInOne(Wrapper):
    """Holds two halves of a sum."""

    def __init__(self, held: Tensor) -> None:
        self.halves = held.detach() / 2, held.detach() / 2

    def restored(self) -> Tensor:
        return self.halves[0] + self.halves[1]


class Named(Tensor):
    """A subclass without `__torch_dispatch__`."""


def distributed(x: Tensor) -> Tensor:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate

    mesh = init_device_mesh("cpu", (1,))
    return DTensor.from_local(x, mesh, [Replicate()])


def fake(x: Tensor) -> Tensor:
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode().from_tensor(x)


def negative(x: Tensor) -> Tensor:
    """The values of `x`, as the imaginary part of a conjugate: stored with the other sign."""
    view = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert view.is_neg()
    return view


def quantized(x: Tensor) -> Tensor:
    return torch.quantize_per_tensor(x, 0.01, 0, torch.qint8)


def nested(x: Tensor) -> Tensor:
    return torch.nested.nested_tensor(list(x.unbind()))


def jagged(x: Tensor) -> Tensor:
    return torch.nested.nested_tensor(list(x.unbind()), layout=torch.jagged)


KINDS: dict[str, Callable[[Tensor], Any]] = {
    "DTensor": distributed,
    "FakeTensor": fake,
    "functional": torch._to_functional_tensor,
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "sparse rows": lambda x: x.to_sparse_csr(),
    "quantized": quantized,
    "nested": nested,
    "jagged": jagged,
    "subclass": lambda x: x.as_subclass(Named),
    "wrapper": Wrapper,
    "dequantising": Dequantising,
    "two in one": TwoInOne,
    "negative": negative,
    "strided": lambda x: torch.stack((x, x), -1)[..., 0],
    "permuted": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "conjugate": lambda x: torch.complex(x, x).conj(),
    "zero-size": lambda x: x[:0],
    "zero": lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype),
    "integer": lambda x: x.to(torch.int64),
    "None": lambda x: None,
    "deleted": lambda x: "deleted",
}


# ---- calls


def eighths(*shape: int) -> Tensor:
    """Random multiples of 1/8, which every kind holds exactly."""
    return torch.randint(-8, 9, shape) / 8


def make_layer(cell: str) -> Any:
    """A small layer of eighths; its parameters are plain tensors that can be of any kind."""
    if cell == "lstm":
        layer: Any = birnn_cuda.LSTM(INPUT, HIDDEN, proj_size=PROJ, bidirectional=True)
    else:
        layer = birnn_cuda.GRU(INPUT, HIDDEN, bidirectional=True)
    for weight in layer.parameters():
        weight.data.copy_(eighths(*weight.shape))
    return layer


def flat(results: Any) -> list[Tensor]:
    if isinstance(results, PackedSequence):
        return [results.data]
    if isinstance(results, list | tuple):
        return [tensor for part in results for tensor in flat(part)]
    return [results]


def with_weight(layer: Any, name: str, value: Any, trains: bool) -> Any:
    """A copy of the layer, one of whose weights is `value`."""
    layer = copy.deepcopy(layer)
    layer.requires_grad_(trains)
    delattr(layer, name)
    if isinstance(value, str):
        return layer
    if isinstance(value, Tensor):
        with contextlib.suppress(Exception):  # a kind that can be no parameter: an attribute then
            value = nn.Parameter(value, requires_grad=trains)
    setattr(layer, name, value)
    return layer


def layer_cases(cell: str, trains: bool) -> Iterator[tuple[str, Any, Callable[[Any], Any]]]:
    """The arguments of a layer's call: a name, the plain value, and the call with another."""
    layer = make_layer(cell).requires_grad_(trains)
    state_size = PROJ if cell == "lstm" else HIDDEN
    input, hx, cx = eighths(T, B, INPUT), eighths(2, B, state_size), eighths(2, B, HIDDEN)
    lengths = torch.tensor([4, 2, 3])
    packed = pack_padded_sequence(input, lengths, enforce_sorted=False)

    def hidden(hx: Any, cx: Any = cx) -> Any:
        return (hx, cx) if cell == "lstm" else hx

    yield "input", input, lambda x: layer(x, hidden(hx))
    yield "hx", hx, lambda x: layer(input, hidden(x))
    if cell == "lstm":
        yield "cx", cx, lambda x: layer(input, hidden(hx, x))
        yield "input, cell states", input, lambda x: layer(x, return_cell_states=True)
    yield "lengths", lengths, lambda x: layer(input, hidden(hx), lengths=x)
    yield "packed data", packed.data, lambda x: layer(PackedSequence(x, *packed[1:]), hidden(hx))
    yield (
        "batch_sizes",
        packed.batch_sizes,
        lambda x: layer(PackedSequence(packed.data, x, *packed[2:]), hidden(hx)),
    )
    for name, weight in list(layer.named_parameters())[: 5 if cell == "lstm" else 4]:
        yield (
            name,
            weight.detach(),
            lambda x, name=name: with_weight(layer, name, x, trains)(input, hidden(hx)),
        )


def operator_cases(cell: str) -> Iterator[tuple[str, Any, Callable[[Any], Any]]]:
    """The arguments of the two operators and of the function."""
    layer = make_layer(cell)
    weights = [weight.detach() for weight in layer.parameters()]
    state_size = PROJ if cell == "lstm" else HIDDEN
    operands = {
        "input": eighths(T, B, INPUT),
        "hx": eighths(2, B, state_size),
        "cx": eighths(2, B, HIDDEN) if cell == "lstm" else None,
        "weights": weights,
        "lengths": torch.tensor([4, 2, 3]),
        "batch_sizes": None,
    }
    ops = torch.ops.birnn_cuda
    output, h_n, c_n, reserve = ops.forward(*operands.values(), cell, 2, True, "ieee")
    gradients = {
        "d_output": eighths(*output.shape),
        "d_h_n": eighths(*h_n.shape),
        "d_c_n": eighths(*c_n.shape) if cell == "lstm" else None,
    }
    kept = {"output": output, "reserve": reserve}
    options = (cell, 2, "ieee", [True] * (3 + len(weights)))

    def replaced(tensors: dict[str, Any], name: str, value: Any) -> list[Any]:
        values = dict(tensors)
        name, _, index = name.partition(" ")
        if index:
            values[name] = [*values[name]]
            values[name][int(index)] = value
        else:
            values[name] = value
        return list(values.values())

    def each(tensors: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
        for name, value in tensors.items():
            if isinstance(value, list):
                yield from ((f"{name} {i}", weight) for i, weight in enumerate(value[:5]))
            elif value is not None:
                yield name, value

    def function(input: Tensor, hx: Any, cx: Any, weights: Any, lengths: Any, sizes: Any) -> Any:
        return recurrent_layer(
            input,
            hx,
            cx,
            weights,
            lengths=lengths,
            batch_sizes=sizes,
            cell=cell,
            num_directions=2,
        )

    for name, value in each(operands):
        yield (
            f"forward: {name}",
            value,
            lambda x, name=name: ops.forward(*replaced(operands, name, x), cell, 2, False, "ieee"),
        )
        yield (
            f"function: {name}",
            value,
            lambda x, name=name: function(*replaced(operands, name, x)),
        )
    everything = {**gradients, **operands, **kept}
    for name, value in each(everything):
        yield (
            f"backward: {name}",
            value,
            lambda x, name=name: ops.backward(*replaced(everything, name, x), *options),
        )


def outcome(call: Callable[[Any], Any], plain: Any, kind: str, trains: bool) -> dict[str, Any]:
    """What the call gives, beside what it gives for the plain tensor."""
    expected = flat(call(plain))
    if trains:
        sum(x.double().sum() for x in expected if x.requires_grad).backward()
    try:
        value = KINDS[kind](plain)
    except Exception as error:
        return {"no such tensor": str(error).splitlines()[0]}
    try:
        results = flat(call(value))
        differentiable = [x for x in results if x.requires_grad]
        if trains and differentiable:
            sum(x.sum() for x in differentiable).backward()
        results = [x.restored() if isinstance(x, Wrapper) else x for x in results]
        errors = []
        for result, right in zip(results, expected, strict=True):
            if result.shape != right.shape:
                return {"shape": str(tuple(result.shape)), "expected": str(tuple(right.shape))}
            if type(result) not in (Tensor, Named) or result.device.type == "meta":
                return {"type": f"{type(result).__name__} on {result.device}"}
            if result.numel():
                errors.append((result.detach() - right.detach()).abs().max().item())
        return {"error": max(errors), "type": type(results[0]).__name__}
    except Exception as error:
        return {"raised": type(error).__name__, "message": str(error)}


def main() -> None:
    faulthandler.enable()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    only = sys.argv[1:]
    for cell in ("lstm", "gru"):
        cases = [(False, case) for case in layer_cases(cell, False)]
        cases += [(True, case) for case in layer_cases(cell, True)]
        cases += [(False, case) for case in operator_cases(cell)]
        for trains, (argument, plain, call) in cases:
            for kind in KINDS:
                if only and [cell, argument, kind] != only:
                    continue
                if kind == "deleted" and not argument.startswith(("weight_", "bias_")):
                    continue
                case = {"cell": cell, "argument": argument, "kind": kind, "trains": trains}
                print(json.dumps(case), flush=True)
                print(json.dumps({**case, **outcome(call, plain, kind, trains)}), flush=True)


if __name__ == "__main__":
    main()
