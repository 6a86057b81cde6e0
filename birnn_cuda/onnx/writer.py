"""Write a model with this package's layers as an ONNX file for a runtime."""

from __future__ import annotations

import importlib
import inspect
import operator
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..regularisers import zoneout_of
from .targets import Target, parts_of, target_of
from .translation import refuse_what_onnx_lacks, table

__all__ = ["export"]

_RECURRENT = ("RNN", "GRU", "LSTM")


def export(
    model: nn.Module,
    args: Sequence[Any],
    path: str | os.PathLike[str],
    *,
    kwargs: dict[str, Any] | None = None,
    target: str = "onnxruntime",
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> None:
    """Write ``model`` as an ONNX file, each of its recurrent layers one node.

    Numbers of steps and of sequences stay free: the file takes other ones than the example's.
    ``lengths=`` becomes the node's ``sequence_lens``, hx and cx its initial states; a sequence of
    length 0 keeps its initial state. Weights are stored in the order of ONNX.

    Args:
        model: in eval mode, with float32 parameters.
        args: the example's positional arguments. Use sizes of 2 and more: torch takes a dimension
            of 1 for one that is always 1.
        path: of the file.
        kwargs: the example's keyword arguments.
        target: the runtime that the file is for, "onnxruntime", "openvino", "opencv", "ncnn",
            "mnn" or "tract": they do not agree on what a file means, nor run all there is. The
            table in docs/exchange.md says which runs what.
        dynamic_shapes: as of :func:`torch.export.export`; None leaves every dimension free that
            the model leaves free.
        input_names, output_names: of the graph.

    Raises:
        NotImplementedError: the target does not run the model right, or ONNX has no such layer
            (``proj_size``, packed sequences, cell states of every step, ``zoneout``,
            ``layer_norm``); says which and why.
        ValueError: there is no such target, the model is in training mode, or the example is of one
            step where the target wants more.
        TypeError: parameters of a layer are not float32.
        ImportError: onnx or onnxscript is missing.

    Sources: ONNX operator schemas, RNN-14, GRU-14 and LSTM-14.
    """
    chosen = target_of(target)
    _check(model)
    kwargs = kwargs or {}
    if dynamic_shapes is None:
        dynamic_shapes = _all_free(model, args, kwargs)
    with torch.no_grad():
        program = torch.export.export(
            model, tuple(args), kwargs, dynamic_shapes=dynamic_shapes, strict=False
        )
    calls = _layers_of(program)
    for call in calls:  # before the exporter wraps what a translation raises
        _check_call(call, chosen)
    stated = _stated_steps(program, calls, chosen)
    onnx_program = torch.onnx.export(
        program,
        dynamo=True,
        custom_translation_table=table(chosen),
        input_names=input_names,
        output_names=output_names,
        verbose=False,
    )
    assert onnx_program is not None
    _finish(onnx_program.model, chosen, len(calls))
    for input, sizes in zip(onnx_program.model.graph.inputs, stated, strict=bool(stated)):
        for dim, size in sizes.items():
            input.shape[dim] = size
    onnx_program.save(os.fspath(path))


def _check(model: nn.Module) -> None:
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() before exporting it")
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase) and getattr(module, "layer_norm", False):
            raise NotImplementedError(
                f"{name or 'the layer'} has layer_norm=True: no node of ONNX normalises inside a "
                "recurrence. Export a model without it"
            )
        if zoneout := zoneout_of(module):
            raise NotImplementedError(
                f"{name or 'the layer'} has zoneout={zoneout}, whose expectation mixes each state "
                "with the one before: no node of ONNX does that. Export a model with zoneout=0"
            )


def _all_free(model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Every dimension of every tensor left to torch to find whether it is free."""

    def free(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return {dim: torch.export.Dim.AUTO for dim in range(value.dim())}
        if isinstance(value, list | tuple):
            return type(value)(map(free, value))
        if isinstance(value, dict):
            return {key: free(item) for key, item in value.items()}
        return None

    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    return {name: free(value) for name, value in bound.arguments.items()}


def _layers_of(program: torch.export.ExportedProgram) -> list[torch.fx.Node]:
    return [
        node
        for module in program.graph_module.modules()
        if isinstance(module, torch.fx.GraphModule)
        for node in module.graph.nodes
        if node.target is torch.ops.birnn_cuda.forward.default
    ]


def _check_call(call: torch.fx.Node, target: Target) -> None:
    """Refuse one layer's call where the file could not be right, naming what and why."""
    input, hx, _, weights, lengths, batch_sizes, cell, num_directions, *rest = call.args
    names = ("training", "precision", "resets", "recurrent_mask", "zoneout_h", "zoneout_c")
    options = {**dict(zip(names, rest, strict=False)), **call.kwargs}
    resets = options.get("resets")
    is_regularised = any(options.get(name) is not None for name in names[3:])
    dtype = input.meta["val"].dtype  # type: ignore[union-attr]
    if dtype != torch.float32:
        raise TypeError(
            f"a recurrent layer computes in {dtype}: export the model in float32, the one dtype "
            "that the runtimes' recurrent nodes share"
        )
    for user in call.users:
        if user.target is operator.getitem and user.args[1] == 3 and user.users:
            raise NotImplementedError(
                "ONNX's LSTM gives no cell states of every step: export the model without "
                "return_cell_states=True"
            )
    num_weights: Any = len(weights) // num_directions  # type: ignore[arg-type, operator]
    has_packed, has_resets = batch_sizes is not None, resets is not None
    refuse_what_onnx_lacks(cell, num_weights, has_packed, has_resets, is_regularised)  # type: ignore[arg-type]
    target.check(parts_of(cell, num_directions, lengths, hx))  # type: ignore[arg-type]


def _stated_steps(
    program: torch.export.ExportedProgram, calls: Sequence[torch.fx.Node], target: Target
) -> list[dict[int, int]]:
    """Of each input, the dimensions that the target wants stated, with the example's sizes.

    Raises:
        ValueError: the example has a single step, which is no better there than none stated.
    """
    symbols: set[Any] = set()
    for call in calls:
        if call.args[6] in target.states_steps:
            steps = call.args[0].meta["val"].shape[0]  # type: ignore[union-attr]
            symbols |= _symbols(steps)
            if _size(steps) < 2:
                raise ValueError(
                    f"target {target.name!r} takes a {call.args[6]} of an example of 2 steps or "
                    "more: give a longer one"
                )
    if not symbols:
        return []
    names = program.graph_signature.user_inputs
    values = [node.meta["val"] for node in program.graph.nodes if node.name in names]
    return [
        {dim: _size(size) for dim, size in enumerate(value.shape) if _symbols(size) & symbols}
        for value in values
        if isinstance(value, torch.Tensor)
    ]


def _symbols(size: int | torch.SymInt) -> set[Any]:
    return set(size.node.expr.free_symbols) if isinstance(size, torch.SymInt) else set()


def _size(size: int | torch.SymInt) -> int:
    """The example's."""
    return int(size.node.hint) if isinstance(size, torch.SymInt) else size


def _finish(model: Any, target: Target, num_layers: int) -> None:
    """Fold the weights, bring the nodes into the target's form, and say in the file what it is."""
    optimizer = importlib.import_module("onnxscript.optimizer")

    everything = 2**62
    optimizer.optimize(
        model, input_size_limit=everything, output_size_limit=everything, inline=False
    )
    nodes = [node for node in model.graph.all_nodes() if node.op_type in _RECURRENT]
    assert len(nodes) == num_layers, "a layer is not one node"
    for node in nodes:
        for operand in (*node.inputs[1:4], *node.inputs[7:8]):  # W, R, B, P
            assert operand is None or operand.const_value is not None, f"{operand} is not folded"
        if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
            target.check(["final states"])
        if target.lists_every_output:
            listed = len(node.outputs)
            node.resize_outputs(3 if node.op_type == "LSTM" else 2)
            for index, output in enumerate(node.outputs):
                if index >= listed or not output.name:
                    output.name = f"{node.name}_unused_{index}"
    if target.leaves_shapes_out:
        for node in model.graph.all_nodes():
            for value in node.outputs:
                value.shape = None
    model.graph.doc_string = (
        f"Written by birnn_cuda for {target.name}. Other runtimes may read its recurrent nodes "
        "otherwise: export once for each."
    )
