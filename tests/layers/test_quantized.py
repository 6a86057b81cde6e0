"""int8 layers against an independent computation in float64 that rounds what they round."""

import copy
import io
import logging
import subprocess
import sys

import pytest
import rounding
import torch
from conftest import CELLS, call, make_layer, make_states, relative_error
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import birnn_cuda
from birnn_cuda import ops

# Beside the same integers, float32 errs by a hundredth of this.
TOLERANCE = 1e-5
# How near to the middle between two steps, in steps, a number of float32 may be rounded either way;
# and one that float32 has computed, h before its projection, of which the oracle knows float64's.
MIDDLE, MIDDLE_COMPUTED = 2e-5, 1e-3


def rounded_rows(x):
    """Rows to the nearest of 255 steps of their own largest number, found in float32; how far they
    are from the middle between two, in steps; and the steps."""
    low = x.float()
    largest = low.abs().amax(-1, keepdim=True)
    in_steps = torch.where(largest > 0, low * (127 / largest), 0.0)
    step = (largest / 127).double()
    return in_steps.round().double() * step, (in_steps - in_steps.floor() - 0.5).abs(), step


def rounded_weight(weight):
    scale = weight.detach().abs().amax(-1, keepdim=True) / 127
    return (weight.detach() / scale).round().double() * scale.double()


def oracle(layer, input, states, lengths, outputs):
    """What an int8 copy of `layer` must give, one sequence and step after the other, each from h as
    the copy has it: its outputs, those of all layers. Returned are the outputs of each layer, the
    final states, how far the outputs may be off, and how near a factor is to a middle."""
    nearest = 0.5

    def product(x, weight):
        nonlocal nearest
        rows, to_middle, _ = rounded_rows(x)
        nearest = min(nearest, to_middle.min().item())
        return rows @ weight.T

    below = input.double()
    num_directions = 2 if layer.bidirectional else 1
    lstm = layer.mode == "LSTM"
    finals, layers, all_slack = ([], []), [], []
    for k in range(layer.num_layers):
        per_direction, slack = [], torch.zeros_like(outputs[k], dtype=torch.float64)
        halves = outputs[k].double().chunk(num_directions, -1)
        for d, (own, off) in enumerate(zip(halves, slack.chunk(num_directions, -1), strict=True)):
            suffix = f"_l{k}" + ("_reverse" if d else "")
            w_ih, w_hh = (
                rounded_weight(getattr(layer, name + suffix)) for name in ("weight_ih", "weight_hh")
            )
            w_hr = rounded_weight(getattr(layer, f"weight_hr{suffix}")) if layer.proj_size else None
            index = k * num_directions + d
            rows = torch.zeros_like(own)
            h_n = states[0][index].double().clone()
            c_n = states[1][index].double().clone() if lstm else None
            for b, length in enumerate(lengths):
                before = h_n[b]
                c = c_n[b] if lstm else None
                for t in reversed(range(length)) if d else range(length):
                    a, q = product(below[t, b], w_ih), product(before, w_hh)
                    if layer.bias:
                        a = a + getattr(layer, f"bias_ih{suffix}").detach().double()
                        q = q + getattr(layer, f"bias_hh{suffix}").detach().double()
                    if lstm:
                        i, f, g, o = (a + q).chunk(4)
                        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                        h = o.sigmoid() * c.tanh()
                        if w_hr is not None:
                            h, to_middle, step = rounded_rows(h)
                            off[t, b] = (to_middle < MIDDLE_COMPUTED) * step @ w_hr.abs().T
                            h = h @ w_hr.T
                    elif layer.mode == "GRU":
                        (a_r, a_z, a_n), (q_r, q_z, q_n) = a.chunk(3), q.chunk(3)
                        n = (a_n + (a_r + q_r).sigmoid() * q_n).tanh()
                        z = (a_z + q_z).sigmoid()
                        h = (1 - z) * n + z * before
                    else:
                        h = (a + q).tanh() if layer.nonlinearity == "tanh" else (a + q).relu()
                    rows[t, b] = h
                    before = own[t, b]
                h_n[b] = before
                if lstm:
                    c_n[b] = c
            per_direction.append(rows)
            finals[0].append(h_n)
            finals[1].append(c_n)
        layers.append(torch.cat(per_direction, -1))
        all_slack.append(slack)
        below = outputs[k].double()
    finals = [torch.stack(each) for each in (finals if lstm else finals[:1])]
    return layers, finals, all_slack, nearest


def quantized(layer):
    return birnn_cuda.quantize(copy.deepcopy(layer).eval())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "sizes", [(4, 3, 5, 7, 1), (3, 17, 33, 20, 2), (2, 35, 70, 66, 1), (5, 1, 64, 130, 1)], ids=str
)
@pytest.mark.parametrize("cell", CELLS)
def test_values(cell, sizes, bias):
    for _ in range(50):  # until nothing is in a middle: one or two
        nearest, compare = drawn_values(cell, sizes, bias)
        if nearest > MIDDLE:
            return compare()
    raise AssertionError("50 times a number was in the middle between two steps")


def drawn_values(cell, sizes, bias):
    seq_len, batch_size, input_size, hidden_size, num_layers = sizes
    options = {"bidirectional": True, "num_layers": num_layers, "bias": bias}
    layer = make_layer(birnn_cuda, cell, input_size, hidden_size, **options)
    input = torch.randn(seq_len, batch_size, input_size)
    states = [2 * state for state in make_states(layer, batch_size, torch.float32)]
    lengths = torch.randint(0, seq_len + 1, (batch_size,))
    lengths[0] = seq_len
    hx = tuple(states) if layer.mode == "LSTM" else states[0]
    output, final, outputs = quantized(layer)(input, hx, lengths=lengths, return_all_layers=True)
    layers, finals, slack, nearest = oracle(layer, input, states, lengths.tolist(), outputs)

    def compare():
        assert torch.equal(output, outputs[-1])
        for actual, exact, off in zip(outputs, layers, slack, strict=True):
            beyond = ((actual - exact).abs() - off).clamp(min=0)
            rounding.check(exact + beyond, exact, TOLERANCE)
        for actual, exact in zip(final if layer.mode == "LSTM" else [final], finals, strict=True):
            rounding.check(actual, exact, TOLERANCE)

    return nearest, compare


@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_depends_on_nothing_beside_it(cell):
    layer = quantized(make_layer(birnn_cuda, cell, 9, 37, bidirectional=True))
    input = torch.randn(6, 21, 9)
    lengths = torch.randint(1, 7, (21,))
    states = make_states(layer, 21, torch.float32)
    before = call(layer, input, states, lengths=lengths)
    changed = input.clone()
    changed[:, 4] *= 1000  # a loud neighbour
    for b, length in enumerate(lengths.tolist()):
        changed[length:, b] = 100  # padding
    after = call(layer, changed, states, lengths=lengths)
    others = [b for b in range(21) if b != 4]
    assert all(torch.equal(x[:, others], y[:, others]) for x, y in zip(before, after, strict=True))
    alone = call(layer, input[: lengths[2], 2:3], [state[:, 2:3] for state in states])
    assert torch.equal(alone[0], before[0][: lengths[2], 2:3])
    packed = pack_padded_sequence(input, lengths, enforce_sorted=False)
    hx = tuple(states) if layer.mode == "LSTM" else states[0]
    assert torch.equal(pad_packed_sequence(layer(packed, hx)[0], total_length=6)[0], before[0])


def test_threads():
    layer = quantized(birnn_cuda.LSTM(20, 40, bidirectional=True))
    input = torch.randn(5, 37, 20)
    expected = call(layer, input)
    torch.set_num_threads(3)
    try:
        actual = call(layer, input)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_row(value):
    layer = quantized(birnn_cuda.GRU(5, 12))
    input = torch.randn(4, 3, 5)
    expected = layer(input)[0]
    input[2, 1, 3] = value
    output = layer(input)[0]
    assert output[2:, 1].isnan().all()
    assert torch.equal(output[:2], expected[:2]) and torch.equal(output[:, ::2], expected[:, ::2])


@pytest.mark.parametrize("cell", CELLS)
def test_forms(cell):
    layer = quantized(make_layer(birnn_cuda, cell, 6, 8, batch_first=True))
    input = torch.randn(3, 5, 6)
    output, final = layer(input)
    assert torch.equal(layer(input[1])[0], output[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(input)[0], output)
    if cell.startswith("lstm"):
        states = layer(input, return_cell_states=True)[2]
        assert torch.equal(states[:, -1], final[1][0])
    assert layer(input[:0])[0].shape == (0, 5, output.size(2))


@pytest.mark.parametrize("cell", CELLS)
def test_state_dict(cell, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    options = {"num_layers": 2, "bidirectional": True}
    layer = make_layer(birnn_cuda, cell, 6, 40, **options)
    own = quantized(layer)
    assert not list(own.parameters())
    size = {k: sum(v.nbytes for v in m.state_dict().values()) for k, m in ((1, layer), (2, own))}
    assert size[2] < 0.35 * size[1]
    input = torch.randn(3, 2, 6)
    file = io.BytesIO()
    torch.save(own.state_dict(), file)
    file.seek(0)
    safetensors.save_file(own.state_dict(), tmp_path / "layer.safetensors")
    for values in (
        torch.load(file, weights_only=True),
        safetensors.load_file(tmp_path / "layer.safetensors"),
    ):
        other = quantized(make_layer(birnn_cuda, cell, 6, 40, **options))
        other.load_state_dict(values)
        assert torch.equal(other(input)[0], own(input)[0])
    assert torch.equal(copy.deepcopy(own)(input)[0], own(input)[0])


@pytest.mark.parametrize("cell", CELLS)
def test_weights_are_packed_again_where_they_changed(cell, monkeypatch):
    counted = []
    pack = ops.pack_quantized
    monkeypatch.setattr(ops, "pack_quantized", lambda *a: counted.append(0) or pack(*a))
    options = {"num_layers": 2, "bidirectional": True}
    own, other = (quantized(make_layer(birnn_cuda, cell, 6, 40, **options)) for _ in range(2))
    input = torch.randn(3, 2, 6)

    def without_packing(layer):
        fresh = copy.deepcopy(layer)
        fresh._packed_weights = lambda *_: None
        return fresh(input)[0]

    def check(packings):
        counted.clear()
        output = own(input)[0]
        assert len(counted) == packings
        assert torch.equal(output, own(input)[0]) and torch.equal(output, without_packing(own))
        assert len(counted) == packings
        return output

    first = check(2)
    own.load_state_dict(other.state_dict())
    assert torch.equal(check(2), without_packing(other)) and not torch.equal(own(input)[0], first)
    own.weight_hh_l1_reverse[1] = 0
    check(1)
    own.weight_ih_l0 = other.weight_ih_l0.flip(0)
    check(1)
    assert "_kept_packed" not in copy.deepcopy(own).__dict__
    file = io.BytesIO()
    torch.save(own, file)
    assert file.getbuffer().nbytes < 2 * sum(v.nbytes for v in own.state_dict().values()) + 40000
    with torch.inference_mode():
        check(0)
        own = quantized(make_layer(birnn_cuda, cell, 6, 40, **options))
        check(2)
        own.weight_hh_l0 = own.weight_hh_l0.flip(0)  # nobody counts its changes
        own.weight_hh_l0[0] = 3
        check(0)
    assert "_kept_packed" not in birnn_cuda.to_torch(own).__dict__


@pytest.mark.parametrize("cell", ["gru", "lstm_proj"])
def test_compiled(cell):
    layer = quantized(make_layer(birnn_cuda, cell, 6, 8, bidirectional=True))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    input, lengths = torch.randn(4, 3, 6), torch.tensor([4, 0, 2])
    with torch.no_grad():
        output = compiled(input, lengths=lengths)[0]
        assert torch.equal(output, layer(input, lengths=lengths)[0])
        weights, scales = layer._weights_of(0)
        name = {"gru": "gru", "lstm_proj": "lstm"}[cell]
        arguments = (input, None, None, weights, scales, lengths, None, name, 2, False)
        torch.library.opcheck(
            torch.ops.birnn_cuda.quantized_forward.default,
            arguments,
            test_utils=("test_schema", "test_faketensor"),
        )


@pytest.mark.parametrize("cell", CELLS)
def test_to_torch_has_the_rounded_weights(cell):
    own = quantized(make_layer(birnn_cuda, cell, 6, 24, num_layers=2, bidirectional=True))
    input = torch.randn(5, 3, 6)
    output = own(input)[0]
    plain = birnn_cuda.to_torch(own)
    assert type(plain) in (nn.RNN, nn.GRU, nn.LSTM) and plain is own
    assert all(p.dtype == torch.float32 for p in plain.parameters())
    assert relative_error(output, plain(input)[0].detach()) < 0.03  # the rounding of x and h
    again = birnn_cuda.quantize(plain)
    # Rounding rounded weights changes nothing but the last bit of a scale, which tips few numbers.
    assert relative_error(again(input)[0], output) <= 3e-3


def test_a_whole_model():
    model = nn.ModuleDict(
        {
            "ours": birnn_cuda.LSTM(4, 8),
            "theirs": nn.GRU(8, 6, bidirectional=True),
            "net": birnn_cuda.BiRNN(12, 5, 3, cell="tanh"),
            "linear": nn.Linear(2, 2),
        }
    ).eval()
    assert birnn_cuda.quantize(model) is model
    classes = [
        type(module).__name__ for module in (model["ours"], model["theirs"], model["net"].hidden)
    ]
    assert classes == ["QuantizedLSTM", "QuantizedGRU", "QuantizedRNN"]
    assert type(model["linear"]) is nn.Linear
    before = {name: value.clone() for name, value in model.state_dict().items()}
    birnn_cuda.quantize(model)  # what is quantized stays
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    input = torch.randn(3, 2, 4)
    with torch.no_grad():
        scores = model["net"](model["theirs"](model["ours"](input)[0])[0])
    assert scores.shape == (3, 2, 3)


def test_what_is_left_alone(caplog):
    class Other(nn.LSTM):
        pass

    replaced = birnn_cuda.GRU(2, 3).eval()
    replaced.forward = lambda input: input
    with caplog.at_level(logging.WARNING):
        birnn_cuda.quantize(nn.ModuleList([Other(2, 3).eval(), replaced]).eval())
    assert type(replaced) is birnn_cuda.GRU
    assert "Other" in caplog.text and "forward was replaced" in caplog.text


def test_errors():
    model = nn.Sequential(birnn_cuda.GRU(2, 3).eval(), birnn_cuda.GRU(3, 4))
    with pytest.raises(ValueError, match=r"1 \(GRU\) is in training mode.*call eval\(\)"):
        birnn_cuda.quantize(model)
    assert type(model[0]) is birnn_cuda.GRU  # nothing is changed
    with pytest.raises(ValueError, match=r"on meta.*call cpu\(\)"):
        birnn_cuda.quantize(birnn_cuda.LSTM(2, 3, device="meta").eval())
    layer = birnn_cuda.LSTM(2, 3).eval()
    layer.weight_hh_l0.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"weight_hh_l0 of .* not finite"):
        birnn_cuda.quantize(layer)
    own = quantized(birnn_cuda.LSTM(2, 3))
    with pytest.raises(RuntimeError, match="no gradient"):
        own(torch.randn(1, 1, 2, requires_grad=True))
    with pytest.raises(RuntimeError, match="for inference"):
        own.train()(torch.randn(1, 1, 2))
    own.eval()
    with pytest.raises(ValueError, match="does not match weight dtype"):
        own(torch.randn(1, 1, 2).double())
    with pytest.raises(RuntimeError, match="CPU only, got meta"):
        own(torch.randn(1, 1, 2, device="meta"))
    with pytest.raises(RuntimeError, match="no parameters to reset"):
        own.reset_parameters()
    weights, scales = own._weights_of(0)
    run = torch.ops.birnn_cuda.quantized_forward
    input = torch.randn(1, 1, 2)
    for wrong_weights, wrong_scales, message in (
        (weights, [], "need scales"),
        (weights, scales[:1], "expected 2 scales, got 1"),
        (weights, [scales[0][:1], scales[1]], "the scale of weight_ih of size"),
        ([weights[0].float(), *weights[1:]], scales, "weight_ih of dtype int8"),
    ):
        with pytest.raises(RuntimeError, match=message):
            run(input, None, None, wrong_weights, wrong_scales, None, None, "lstm", 1, False)
        with pytest.raises(RuntimeError, match=message):
            ops.pack_quantized(wrong_weights, wrong_scales, "lstm", 1)
    packed = ops.pack_quantized(weights, scales, "lstm", 1)
    for wrong in (packed[1:], packed.view(torch.int8), packed[None]):
        with pytest.raises(RuntimeError, match="expected packed_weights"):
            run(input, None, None, weights, scales, None, None, "lstm", 1, False, None, wrong)


def test_error_is_no_more_than_that_of_quantize_dynamic():
    program = """
import torch, birnn_cuda, copy
from torch import nn
torch.manual_seed(int(__import__("sys").argv[1]))
for kind in ("LSTM", "GRU"):
    exact = getattr(nn, kind)(32, 48, bidirectional=True).double().eval()
    plain = copy.deepcopy(exact).float()
    input = torch.randn(20, 4, 32)
    theirs = torch.ao.quantization.quantize_dynamic(nn.Sequential(plain), {getattr(nn, kind)})[0]
    ours = birnn_cuda.quantize(copy.deepcopy(plain))
    expected = exact(input.double())[0]
    print(*[(float((layer(input)[0] - expected).norm())) for layer in (ours, theirs)])
"""
    seed = str(torch.initial_seed() % 2**31)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, seed],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for line in result.stdout.strip().splitlines():
        own, theirs = map(float, line.split())
        assert own <= theirs
