"""The peers of the benchmarks: that each is handed the layer itself, or says why it is not."""

from __future__ import annotations

import dataclasses
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from benchmark_support import tiny_case

from benchmarks.measure import cases, cuda_graph
from benchmarks.measure.problem import LayerRun, Problem
from benchmarks.peers import compiled as compiled_peer
from benchmarks.peers import flashrnn as flashrnn_peer
from benchmarks.peers import jax as jax_peer
from benchmarks.peers import onnxruntime as onnx_peer
from benchmarks.peers import openvino as openvino_peer
from benchmarks.peers.recurrences import layers_of


@pytest.mark.parametrize("cell", cases.CELLS)
@pytest.mark.parametrize("pass_name", cases.PASSES)
@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_loop_that_is_compiled_is_the_layer(
    cell: str, pass_name: str, bidirectional: bool
) -> None:
    case = dataclasses.replace(tiny_case(cell, pass_name), bidirectional=bidirectional)
    problem = Problem.random(case, random.getrandbits(32))
    layers = layers_of(compiled_peer.looped(compiled_peer.STEPS))
    run = LayerRun(layers, problem, torch.float32)
    assert problem.check(run.results(run.step())).reason is None


def documented_flashrnn(
    gates_x: torch.Tensor,  # [B, T, G, 1, H]
    weights: torch.Tensor,  # [G, 1, H, H]
    biases: torch.Tensor,  # [G', 1, H]
    function: str,
    backend: str,
    dtype: str,
) -> tuple[torch.Tensor, None]:
    """FlashRNN's cells as its documentation gives them, for one head. States [S, B, T, 1, H]."""
    assert backend == "cuda_fused" and dtype == "float32"
    batch_size, _, _, _, hidden_size = gates_x.shape
    h = gates_x.new_zeros(batch_size, 1, hidden_size)
    c, states = h, []
    for x in gates_x.unbind(1):
        recurrent = torch.einsum("gnhk,bnk->bgnh", weights, h)
        if function == "gru":
            n_hh = recurrent[:, 0] + biases[0]
            r = torch.sigmoid(x[:, 0] + recurrent[:, 1] + biases[1])
            z = torch.sigmoid(x[:, 1] + recurrent[:, 2] + biases[2])
            h = z * h + (1 - z) * torch.tanh(x[:, 2] + biases[3] + r * n_hh)
        elif function == "lstm":
            i, f, g, o = (x + recurrent + biases).unbind(1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        else:
            assert function == "elman"
            h = torch.tanh(x + recurrent + biases)[:, 0]
        states.append(torch.stack((h, c)))
    return torch.stack(states, 2), None


@pytest.mark.parametrize("cell", cases.CELLS)
@pytest.mark.parametrize("pass_name", cases.PASSES)
def test_flashrnn_is_handed_the_layer(
    cell: str, pass_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("flashrnn")
    module.flashrnn = documented_flashrnn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flashrnn", module)
    peer = flashrnn_peer.FlashRNNPeer()
    assert peer.absent() is None
    problem = Problem.random(tiny_case(cell, pass_name), random.getrandbits(32))
    run = peer.build(problem)
    assert problem.check(run.results(run.step())).reason is None


def test_jax_is_handed_and_hands_back_the_parameters_in_order() -> None:
    case = tiny_case()
    names = jax_peer.parameter_names(case)
    weights = ["weight_ih_l0", "weight_hh_l0", "weight_ih_l0_reverse", "weight_hh_l0_reverse"]
    assert names == weights + [name.replace("weight", "bias") for name in weights]
    # What results() makes of the arrays that the compiled function returns.
    problem = Problem.random(case, 3)
    answer = {name: tensor.float() for name, tensor in problem.answer.items()}
    run = object.__new__(jax_peer.JaxRun)
    run.case, run.names, run.device = case, names, torch.device("cpu")
    run.shapes = [problem.weights[name].shape for name in names]
    flat = torch.cat([answer[f"d_{name}"].flatten() for name in names])
    returned = [answer["output"].transpose(0, 1), answer["h_n"], answer["c_n"]]
    returned += [answer["d_input"].transpose(0, 1), flat]
    results = run.results([tensor.numpy() for tensor in returned])
    assert problem.check(results).reason is None
    assert set(results) == set(answer)


def test_peers_say_why_they_are_absent_or_decline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashrnn", None)
    assert "cannot be imported" in (flashrnn_peer.FlashRNNPeer().absent() or "")
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "cannot be imported" in (compiled_peer.CompiledLoopPeer().absent() or "")
    jax = SimpleNamespace(default_backend=lambda: "cpu")
    for name in ("jax", "jax.experimental", "jax.experimental.rnn"):
        monkeypatch.setitem(sys.modules, name, jax)  # type: ignore[arg-type]
    assert jax_peer.JaxPeer().absent() == "it runs on cpu only"
    assert jax_peer.JaxPeer().declines(tiny_case("gru", dtype="tf32")) is not None
    assert jax_peer.JaxPeer().declines(tiny_case("lstm", dtype="tf32")) is None
    onnx = onnx_peer.OnnxCudaPeer()
    assert onnx.declines(tiny_case()) == "inference only"
    assert onnx.declines(tiny_case(pass_name="inference", dtype="bf16")) is not None
    assert onnx.declines(tiny_case(pass_name="inference", dtype="fp16")) is None


@pytest.mark.parametrize("peer", [onnx_peer.OnnxPeer(), openvino_peer.OpenVinoPeer()])
@pytest.mark.parametrize("cell", cases.CELLS)
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_runtimes_of_onnx_compute_the_same_layers(
    peer: onnx_peer.OnnxPeer | openvino_peer.OpenVinoPeer,
    cell: str,
    bidirectional: bool,
    num_layers: int,
) -> None:
    if (reason := peer.absent()) is not None:
        pytest.skip(f"{peer.name} {reason}")
    case = dataclasses.replace(
        tiny_case(cell, "inference"), bidirectional=bidirectional, num_layers=num_layers
    )
    problem = Problem.random(case, seed=random.getrandbits(32))
    run = peer.build(problem)
    assert problem.check(run.results(run.step())).reason is None
    assert peer.declines(tiny_case(cell, "training")) == "inference only"
    assert "fp32" in (peer.declines(tiny_case(cell, "inference", dtype="bf16")) or "")


@pytest.mark.parametrize("bidirectional", [True, False])
def test_onnxruntime_writes_into_the_tensors_it_is_bound_to(
    bidirectional: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the run on CUDA but CUDA: its provider and device type are those of the CPU."""
    if (reason := onnx_peer.OnnxPeer().absent()) is not None:
        pytest.skip(f"onnxruntime {reason}")
    waits: list[tuple[str, str]] = []

    class Stream:
        cuda_stream = 1

        def __init__(self, name: str = "onnxruntime's") -> None:
            self.name = name

        def wait_stream(self, other: Any) -> None:
            waits.append((self.name, other.name))

    monkeypatch.setattr(onnx_peer, "CUDA_PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(onnx_peer, "CUDA_DEVICE", "cpu")
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream("torch's"))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    case = dataclasses.replace(tiny_case("lstm", "inference", "tf32"), bidirectional=bidirectional)
    problem = Problem.random(case, 11)
    run = onnx_peer.OnnxCudaRun(problem)
    assert problem.check(run.results(run.step())).reason is None
    assert waits == [("onnxruntime's", "torch's"), ("torch's", "onnxruntime's")]


def test_a_graph_is_captured_after_warming_up_on_its_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The order of things, on a torch.cuda that only writes it down."""
    order: list[str] = []
    streams = []

    class Stream:
        def __init__(self) -> None:
            streams.append(self)

        def wait_stream(self, other: Any) -> None:
            order.append("wait")

    class Graph:
        def replay(self) -> None:
            order.append("replay")

    @contextmanager
    def on(stream: Any) -> Iterator[None]:
        assert stream is streams[0]
        order.append("on")
        yield
        order.append("off")

    @contextmanager
    def captured(graph: Any, stream: Any) -> Iterator[None]:
        assert isinstance(graph, Graph) and stream is streams[0]
        order.append("capture")
        yield
        order.append("captured")

    for name, value in (
        ("Stream", Stream),
        ("current_stream", lambda: None),
        ("CUDAGraph", Graph),
        ("stream", on),
        ("graph", captured),
    ):
        monkeypatch.setattr(torch.cuda, name, value)
    steps = iter(range(9))

    class Run:
        def step(self) -> int:
            order.append("step")
            return next(steps)

        def results(self, returned: int) -> Any:
            return {"returned": returned}

    run = cuda_graph.GraphRun(Run())
    warm_up = ["wait", "on", *["step"] * cuda_graph.WARM_UPS, "off"]
    assert order == [*warm_up, "capture", "step", "captured"]
    # Every replay leaves its results in what the captured step returned.
    assert run.results(run.step()) == run.results(run.step()) == {"returned": cuda_graph.WARM_UPS}
    assert order[-2:] == ["replay", "replay"]
