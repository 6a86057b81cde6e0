"""Layers with recurrent dropout, zoneout, dropout by the sequence: what they draw, and refuse."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from conftest import (
    CELLS,
    assert_close,
    call,
    make_layer,
    make_states,
)
from drawn_regularisers import drawn_by_hand
from step_by_step import call_step_by_step
from torch import nn
from torch.func import functional_call, vmap
from torch.nn.utils.rnn import pack_padded_sequence

import birnn_cuda
from birnn_cuda import ops
from birnn_cuda.regularisers import drop_by_sequence
from birnn_cuda.sequences import packed_to_padded, padded_to_packed

BATCH_SIZES = torch.tensor([3, 2, 2, 2, 1, 1])
LENGTHS = torch.tensor([7, 0, 3, 1, 6])


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_layers_draw_by_torchs_generator(cell, batch_first):
    is_lstm = cell.startswith("lstm")
    options = {"recurrent_dropout": 0.3, "dropout": 0.4, "input_dropout_mask": "sequence"}
    options["zoneout"] = (0.1, 0.5) if is_lstm else 0.1
    options |= {"num_layers": 3, "bidirectional": True, "batch_first": batch_first}
    layer = make_layer(birnn_cuda, cell, 4, 6, dtype=torch.float64, **options)
    input, states = torch.randn(5, 3, 4).double(), make_states(layer, 3, torch.float64)
    lengths = torch.tensor([5, 2, 3])
    given = input.transpose(0, 1) if batch_first else input
    results = []
    for training in (True, False):
        layer.train(training)
        torch.manual_seed(3)
        output, *final = call(layer, given, states, lengths=lengths)
        torch.manual_seed(3)
        again = call(layer, given, states, lengths=lengths)[0]
        assert torch.equal(output, again)
        torch.manual_seed(3)
        masks, drawn = drawn_by_hand(layer, input, (0.3, 0.1, 0.5), training)
        expected = call_step_by_step(layer, input, states, drawn, lengths, None, masks)
        output = output.transpose(0, 1) if batch_first else output
        assert_close([output, *final], expected[: 1 + len(final)], 1e-12)
        results.append(output)
    assert not torch.allclose(*results)


@pytest.mark.parametrize("cell", ["tanh", "gru", "lstm"])
def test_a_packed_batch_has_the_masks_of_a_padded_one(cell):
    """But for zoneout, which draws as many as there are steps."""
    options = {"recurrent_dropout": 0.4, "dropout": 0.4, "input_dropout_mask": "sequence"}
    layer = make_layer(birnn_cuda, cell, 4, 6, num_layers=2, bidirectional=True, **options)
    input, lengths = torch.randn(5, 3, 4), torch.tensor([5, 4, 2])
    torch.manual_seed(5)
    padded, *final = call(layer, input, lengths=lengths)
    torch.manual_seed(5)
    packed, *packed_final = call(layer, pack_padded_sequence(input, lengths))
    batch_sizes = torch.tensor([3, 3, 2, 2, 1])
    assert_close([packed, *packed_final], [padded_to_packed(padded, batch_sizes), *final], 1e-6)
    layer.zoneout = 0.2
    call(layer, pack_padded_sequence(input, lengths))
    layer.eval()
    padded, *final = call(layer, input, lengths=lengths)
    packed, *packed_final = call(layer, pack_padded_sequence(input, lengths))
    assert_close([packed, *packed_final], [padded_to_packed(padded, batch_sizes), *final], 1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_dropout_does_nothing_in_eval_mode(cell):
    plain = make_layer(birnn_cuda, cell, 4, 6, num_layers=2, bidirectional=True)
    options = {"recurrent_dropout": 0.4, "dropout": 0.4, "input_dropout_mask": "sequence"}
    layer = make_layer(birnn_cuda, cell, 4, 6, num_layers=2, bidirectional=True, **options)
    layer.load_state_dict(plain.state_dict())
    input = torch.randn(5, 3, 4)
    results = call(plain, input), call(layer.eval(), input)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_masks_are_of_the_asked_probability():
    """Fresh ones in each call, independent in each sequence and direction."""
    layer = birnn_cuda.LSTM(2, 50, bidirectional=True, recurrent_dropout=0.3, zoneout=(0.1, 0.2))
    input = torch.randn(20, 40, 2)
    mask, of_h, of_c = layer._draw_regularisers(input, None, None)
    other, *_ = layer._draw_regularisers(input, None, None)
    assert mask.shape == (2, 40, 50) and of_h.shape == of_c.shape == (20, 40, 100)
    assert not torch.equal(mask, other)
    rows = mask.flatten(0, 1)
    assert len({tuple(row) for row in rows.tolist()}) == len(rows)
    assert mask.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]
    assert of_h.unique().tolist() == of_c.unique().tolist() == [0.0, 1.0]
    for found, p in ((mask.eq(0), 0.3), (of_h, 0.1), (of_c, 0.2)):
        deviation = (p * (1 - p) / found.numel()) ** 0.5
        assert abs(found.double().mean().item() - p) < 7 * deviation


def test_input_masks_are_the_same_at_every_step():
    input = torch.ones(6, 3, 40)
    packed = torch.ones(6 + 4 + 1, 40)
    for found in (
        drop_by_sequence(input, None, 0.5),
        packed_to_padded(drop_by_sequence(packed, BATCH_SIZES, 0.5), BATCH_SIZES),
    ):
        assert found[0].unique().tolist() == [0.0, 2.0]
        assert not torch.equal(found[0, 0], found[0, 1])
        for t in range(1, 6):
            there = found[t].any(1)
            assert torch.equal(found[t, there], found[0, there])


# ---- transforms


def test_vmap_draws_of_its_own():
    layer = birnn_cuda.LSTM(3, 8, recurrent_dropout=0.5, zoneout=0.3)
    input = torch.randn(3, 6, 2, 3)
    same = input[:1].expand_as(input)
    different = vmap(lambda x: layer(x)[0], randomness="different")(same)
    assert not torch.equal(different[0], different[1])
    alike = vmap(lambda x: layer(x)[0], randomness="same")(same)
    assert torch.equal(alike[0], alike[1])


@pytest.mark.usefixtures("forgets_compiled")
@pytest.mark.parametrize("cell", ["tanh", "gru", "lstm"])
def test_compile(cell):
    options = {"recurrent_dropout": 0.4, "dropout": 0.3, "input_dropout_mask": "sequence"}
    options |= {"zoneout": 0.2, "num_layers": 2, "bidirectional": True}
    layer = make_layer(birnn_cuda, cell, 3, 5, **options)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    input, results = torch.randn(7, 5, 3, requires_grad=True), []
    for function in (layer, compiled):
        torch.manual_seed(7)
        output, _ = function(input, lengths=LENGTHS)
        results.append([output, *torch.autograd.grad(output.square().sum(), [input])])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_export_and_trace():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            options = {"recurrent_dropout": 0.4, "zoneout": (0.2, 0.1), "bidirectional": True}
            self.rnn = birnn_cuda.LSTM(3, 5, num_layers=2, **options)

        def forward(self, input):
            return self.rnn(input)[0]

    model = Model().eval()
    example, other = torch.randn(7, 5, 3), torch.randn(4, 3, 3)
    sizes = {0: torch.export.Dim("T", min=2), 1: torch.export.Dim("B", min=2)}
    exported = torch.export.export(model, (example,), dynamic_shapes=(sizes,))
    traced = torch.jit.trace(model, (example,), check_trace=False)
    graph = torch.fx.symbolic_trace(model)
    for given in (example, other):
        expected = model(given)
        assert torch.equal(exported.module()(given), expected)
        assert torch.equal(traced(given), expected)
        assert torch.equal(graph(given), expected)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_autocast(cell):
    options = {"recurrent_dropout": 0.5, "zoneout": 0.25, "bidirectional": True}
    layer = make_layer(birnn_cuda, cell, 3, 5, **options)
    low = copy.deepcopy(layer).bfloat16()
    input = torch.randn(7, 5, 3)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        actual = call(layer, input)
    torch.manual_seed(1)
    expected = call(low, input.bfloat16())
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_functional_call_and_chunks_that_carry_the_state():
    """Each call draws its masks anew; in evaluation chunks are the whole."""
    layer = birnn_cuda.LSTM(3, 4, zoneout=(0.3, 0.2), recurrent_dropout=0.5)
    input = torch.randn(8, 2, 3)
    torch.manual_seed(0)
    expected = layer(input)[0]
    torch.manual_seed(0)
    assert torch.equal(
        functional_call(layer, dict(layer.named_parameters()), (input,))[0], expected
    )
    layer.eval()
    whole, last = layer(input)
    state, outputs = None, []
    for chunk in input.split(3):
        output, state = layer(chunk, state)
        outputs.append(output)
    assert_close([torch.cat(outputs), *state], [whole, *last], 1e-6)


# ---- forms, models, errors


def test_forms_of_input():
    """Unbatched, and nested."""
    layer = birnn_cuda.GRU(3, 4, bidirectional=True, recurrent_dropout=0.5, zoneout=0.3)
    input = torch.randn(6, 3)
    torch.manual_seed(1)
    alone = call(layer, input)
    torch.manual_seed(1)
    batched = call(layer, input.unsqueeze(1))
    assert torch.equal(alone[0], batched[0][:, 0])
    nested = torch.nested.nested_tensor([input, input[:2]], layout=torch.jagged)
    torch.manual_seed(2)
    outputs = layer(nested)[0].unbind()
    torch.manual_seed(2)
    padded = torch.stack([input, torch.cat([input[:2], torch.zeros(4, 3)])], 1)
    expected, _ = layer(padded, lengths=torch.tensor([6, 2]))
    assert torch.equal(outputs[0], expected[:, 0]) and torch.equal(outputs[1], expected[:2, 1])


@pytest.mark.parametrize("sizes", [(0, 3), (4, 0)], ids=str)
def test_nothing_at_all(sizes):
    layer = birnn_cuda.LSTM(4, 5, bidirectional=True, recurrent_dropout=0.5, zoneout=0.5)
    for layer.training in (True, False):
        input = torch.randn(*sizes, 4, requires_grad=True)
        output, _ = layer(input)
        assert output.shape == (*sizes, 10)
        output.sum().backward()


def test_the_module_shows_and_keeps_its_options():
    plain = birnn_cuda.LSTM(3, 4)
    layer = birnn_cuda.LSTM(3, 4, recurrent_dropout=0.25, zoneout=[0, 0.5])
    assert repr(plain) == "LSTM(3, 4)"
    assert repr(layer) == "LSTM(3, 4, recurrent_dropout=0.25, zoneout=(0.0, 0.5))"
    assert list(layer.state_dict()) == list(plain.state_dict())
    saved = io.BytesIO()
    torch.save(layer, saved)
    saved.seek(0)
    for same in (copy.deepcopy(layer), torch.load(saved, weights_only=False)):
        assert same.recurrent_dropout == 0.25 and same.zoneout == (0.0, 0.5)
    replaced = birnn_cuda.replace_rnns(nn.LSTM(3, 4))
    assert replaced.recurrent_dropout == replaced.zoneout == 0
    assert replaced.input_dropout_mask == "element"


def test_the_int8_layer():
    layer = birnn_cuda.GRU(3, 4, recurrent_dropout=0.5).eval()
    input = torch.randn(5, 2, 3)
    plain = birnn_cuda.GRU(3, 4).eval()
    plain.load_state_dict(layer.state_dict())
    with torch.no_grad():
        expected = birnn_cuda.quantize(plain)(input)[0]
        assert torch.equal(birnn_cuda.quantize(layer)(input)[0], expected)
    with pytest.raises(ValueError, match=r"has zoneout=0.25, which an int8 layer does not have"):
        birnn_cuda.quantize(birnn_cuda.GRU(3, 4, zoneout=0.25).eval())


def test_torchs_layers_have_none_of_it():
    sequential = nn.Sequential(birnn_cuda.GRU(3, 4, recurrent_dropout=0.5))
    with pytest.raises(ValueError, match=r"^0 has recurrent_dropout=0.5, which torch's .*eval\(\)"):
        birnn_cuda.to_torch(sequential)
    assert type(sequential[0]) is birnn_cuda.GRU
    options = {"num_layers": 2, "dropout": 0.5, "input_dropout_mask": "sequence"}
    with pytest.raises(ValueError, match=r"dropout=0.5 with input_dropout_mask='sequence'"):
        birnn_cuda.to_torch(birnn_cuda.GRU(3, 4, **options))
    with pytest.raises(ValueError, match=r"zoneout=\(0.0, 0.5\), which torch's layer does not"):
        birnn_cuda.to_torch(birnn_cuda.LSTM(3, 4, zoneout=(0, 0.5)).eval())
    input, layer = torch.randn(5, 2, 3), sequential.eval()[0]
    expected = layer(input)[0]
    assert_close([birnn_cuda.to_torch(sequential)[0](input)[0]], [expected], 1e-6)
    assert type(sequential[0]) is nn.GRU


def test_onnx(tmp_path):
    from birnn_cuda import onnx

    model = nn.Sequential(birnn_cuda.LSTM(3, 4, zoneout=(0.1, 0.0))).eval()
    with pytest.raises(NotImplementedError, match=r"0 has zoneout=\(0.1, 0.0\), whose expectation"):
        onnx.export(model, (torch.randn(3, 2, 3),), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"recurrent_dropout": 1.0},
            ValueError,
            "recurrent_dropout must be .* less than 1, got 1.0",
        ),
        ({"recurrent_dropout": -0.1}, ValueError, "recurrent_dropout must be .*got -0.1"),
        ({"recurrent_dropout": float("nan")}, ValueError, "recurrent_dropout must be .*got nan"),
        ({"recurrent_dropout": "0.5"}, TypeError, "must be a number, got str: '0.5'"),
        ({"recurrent_dropout": True}, TypeError, "must be a number, got bool: True"),
        ({"zoneout": 1}, ValueError, "zoneout must be a probability .*got 1"),
        ({"zoneout": None}, TypeError, "zoneout must be a number, got NoneType"),
        ({"zoneout": (0.1, 1.5)}, ValueError, r"zoneout\[1\] must be a probability .*got 1.5"),
        ({"zoneout": (0.1, 0.1, 0.1)}, TypeError, "of h and of c, got 3 values"),
        (
            {"input_dropout_mask": "step"},
            ValueError,
            'must be "element" .*or "sequence".*got \'step\'',
        ),
    ],
)
def test_errors(options, error, message):
    with pytest.raises(error, match=message):
        birnn_cuda.LSTM(3, 4, **options)


def test_errors_of_other_layers():
    for layer_class in (birnn_cuda.RNN, birnn_cuda.GRU):
        with pytest.raises(TypeError, match=r"where the state is h alone, got \(0.1, 0.1\)"):
            layer_class(3, 4, zoneout=(0.1, 0.1))
    layer = birnn_cuda.GRU(3, 4, recurrent_dropout=0.5)
    layer.recurrent_dropout = 1.5
    with pytest.raises(ValueError, match=r"between 0 and 1, but got 1\.5"):
        layer(torch.randn(2, 2, 3))


def test_errors_of_the_operator():
    layer = birnn_cuda.GRU(4, 5)
    options = (None, None, list(layer.parameters()), None, None, "gru", 1, False, "ieee", None)
    input = torch.randn(6, 3, 4)
    for masks, message in (
        ([torch.ones(1, 2, 5)], r"expected recurrent_mask of size \[1, 3, 5\], got \[1, 2, 5\]"),
        ([torch.ones(1, 3, 5).double()], "expected recurrent_mask of dtype Float .*got Double"),
        ([None, torch.ones(6, 2, 5)], r"expected zoneout_h of size \[6, 3, 5\], got \[6, 2, 5\]"),
        ([None, torch.ones(1, 1, 4)], r"expected zoneout_h of size \[1, 1, 5\], got \[1, 1, 4\]"),
        ([None, torch.ones(1, 5)], r"expected zoneout_h of size \[6, 3, 5\], got \[1, 5\]"),
        ([None, None, torch.ones(6, 3, 5)], "zoneout_c needs cell 'lstm', got 'gru'"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.forward(input, *options, *masks)


def test_plan():
    device = next(d for d in ops.known_devices() if d["name"] == "h100")
    sizes = dict(seq_len=64, batch_size=16, input_size=64, hidden_size=128)
    plan = ops.plan(device, cell="lstm", dtype="float16", zoneout=True, **sizes)
    without = ops.plan(device, cell="lstm", dtype="float16", **sizes)
    dropout = ops.plan(device, cell="lstm", dtype="float16", recurrent_dropout=True, **sizes)
    for name in ("forward", "backward"):
        assert plan[name]["kernel"] == "stepwise"
        assert "zoneout runs stepwise" in plan[name]["reason"]
        assert dropout[name]["kernel"] == without[name]["kernel"] != "stepwise"
    assert plan["reserve_bytes"] == without["reserve_bytes"] // 5 * 6


def test_the_command_line(capsys):
    from birnn_cuda.__main__ import main

    main(["plan", "--device", "h100", "--zoneout", "0.1"])
    assert "zoneout runs stepwise" in capsys.readouterr().out
    main(["plan", "--device", "h100", "--recurrent-dropout", "0.2"])
    assert "runs stepwise" not in capsys.readouterr().out
    main(["plan", "--device", "h100", "--recurrent-dropout", "0.2", "--inference"])
    assert "stepwise" not in capsys.readouterr().out.split("forward because")[0]
    with pytest.raises(SystemExit):
        main(["plan", "--zoneout", "1.0"])
    assert "must be at least 0 and less than 1, got 1.0" in capsys.readouterr().err
