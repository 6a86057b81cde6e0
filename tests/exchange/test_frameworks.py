"""Layers of Keras, Flax, JAX and MLX in and back out, each beside the real library.

At unequal lengths, with padding that is seen where it is read. Long, for `make exchange`, which
installs the libraries.
"""

from __future__ import annotations

import importlib
import os

import numpy as np
import pytest
import torch
from conftest import make_layer
from rounding import check

import birnn_cuda

os.environ.setdefault("KERAS_BACKEND", "torch")

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]

CELLS = ("tanh", "relu", "gru", "lstm")
B, T, INPUT, HIDDEN = 3, 6, 4, 5
LENGTHS = (6, 2, 4)
POISON = 1e4
INSIDE = torch.arange(T)[None] < torch.tensor(LENGTHS)[:, None]  # [B, T]


def batch():
    """[B, T, I], padding poisoned."""
    return torch.where(INSIDE[..., None], torch.randn(B, T, INPUT), POISON)


def run(layers, x):
    """Layers one above the other on [B, T, I]: the last output, zeros past the lengths."""
    for layer in layers:
        if layer.batch_first:
            x, _ = layer(x, lengths=torch.tensor(LENGTHS))
        else:
            x = layer(x.transpose(0, 1), lengths=torch.tensor(LENGTHS))[0].transpose(0, 1)
    return x.detach()


def assert_same(theirs, ours):
    """Inside the sequences: what stands past a sequence's end is each library's own affair."""
    theirs = torch.from_numpy(np.array(theirs))
    assert theirs.shape == ours.shape
    check(theirs[INSIDE], ours[INSIDE], 1e-5)


def randomise(arrays):
    """Every weight drawn anew, the biases with them, which libraries start at 0."""
    return [(torch.rand(np.shape(array)) - 0.5).numpy() for array in arrays]


# ---- Keras


def keras_layer(cell, bidirectional, input_size=INPUT, merge_mode="concat", **options):
    keras = importlib.import_module("keras")
    options = {"return_sequences": True, **options}
    if cell in ("tanh", "relu"):
        layer = keras.layers.SimpleRNN(HIDDEN, activation=cell, **options)
    else:
        layer = {"gru": keras.layers.GRU, "lstm": keras.layers.LSTM}[cell](HIDDEN, **options)
    layer = keras.layers.Bidirectional(layer, merge_mode=merge_mode) if bidirectional else layer
    layer.build((None, None, input_size))
    layer.set_weights(randomise(layer.get_weights()))
    return layer


def by_keras(layers, x):
    for layer in layers:
        x = layer(x, mask=INSIDE)
    return importlib.import_module("keras").ops.convert_to_numpy(x)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_keras_in(cell, bidirectional, use_bias):
    theirs = keras_layer(cell, bidirectional, use_bias=use_bias)
    ours = birnn_cuda.load_keras(theirs)
    assert ours.bias == use_bias and ours.bidirectional == bidirectional
    x = batch()
    assert_same(by_keras([theirs], x), run([ours], x))


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_keras_with_the_reset_gate_before_the_product(bidirectional, use_bias):
    theirs = keras_layer("gru", bidirectional, use_bias=use_bias, reset_after=False)
    ours = birnn_cuda.load_keras(theirs)
    assert not ours.reset_after and ours.bias == use_bias
    (back,) = birnn_cuda.to_keras(ours)
    halves = [back.forward_layer, back.backward_layer] if bidirectional else [back]
    assert not any(half.reset_after for half in halves)
    x = batch()
    wanted = run([ours], x)
    assert_same(by_keras([theirs], x), wanted)
    assert_same(by_keras([back], x), wanted)


def test_variants_without_a_form_are_refused():
    gru = birnn_cuda.GRU(INPUT, HIDDEN, bidirectional=True, reset_after=False)
    lstm = birnn_cuda.LSTM(INPUT, HIDDEN, bidirectional=True, peepholes=True)
    writers = (birnn_cuda.to_flax, birnn_cuda.to_mlx, birnn_cuda.to_paddle)
    for layer, option, refusing in (
        (gru, "reset_after=False", writers),
        (lstm, "peepholes=True", (*writers, birnn_cuda.to_keras)),
    ):
        for write in refusing:
            with pytest.raises(NotImplementedError, match=f"a layer with {option} has no form"):
                write(layer)


@pytest.mark.parametrize("mode", ["sum", "mul", "ave", None])
@pytest.mark.parametrize("cell", CELLS)
def test_keras_merges_in_and_out(cell, mode):
    theirs = keras_layer(cell, True, merge_mode=mode)
    ours = birnn_cuda.load_keras(theirs)
    (back,) = birnn_cuda.to_keras(ours)
    assert ours.merge_mode == back.merge_mode == mode
    x = batch()
    output = ours(x, lengths=torch.tensor(LENGTHS))[0]
    for layer in (theirs, back):
        wanted = layer(x, mask=INSIDE)
        pairs = [(wanted, output)] if mode is not None else zip(wanted, output, strict=True)
        for want, got in pairs:
            assert_same(importlib.import_module("keras").ops.convert_to_numpy(want), got.detach())


def test_what_does_not_merge_elsewhere():
    ours = birnn_cuda.GRU(INPUT, HIDDEN, bidirectional=True, merge_mode="sum")
    for write in (birnn_cuda.to_flax, birnn_cuda.to_mlx, birnn_cuda.to_paddle):
        with pytest.raises(NotImplementedError, match="merge_mode='sum'"):
            write(ours)


@pytest.mark.parametrize("cell", CELLS)
def test_keras_out(cell):
    ours = make_layer(birnn_cuda, cell, INPUT, HIDDEN, num_layers=2, bidirectional=True)
    theirs = birnn_cuda.to_keras(ours)
    x = batch()
    assert len(theirs) == 2
    assert_same(by_keras(theirs, x), run([ours], x))


def test_a_keras_file(tmp_path):
    keras = importlib.import_module("keras")
    model = keras.Sequential(
        [
            keras.Input((None, INPUT)),
            keras_layer("gru", True),
            keras.layers.Dense(2),
            keras_layer_of_2(),
        ]
    )
    model.save(tmp_path / "model.keras")
    first, second = birnn_cuda.load_keras(tmp_path / "model.keras")
    x = batch()
    assert_same(by_keras([model.layers[0]], x), run([first.layer], x))
    assert second.layer.input_size == 2 and second.name == model.layers[2].name


def keras_layer_of_2():
    layer = importlib.import_module("keras").layers.LSTM(HIDDEN)
    layer.build((None, None, 2))
    return layer


@pytest.mark.parametrize(
    ("cell", "options", "reason"),
    [
        ("lstm", {"go_backwards": True}, "go_backwards"),
        ("lstm", {"activation": "softsign"}, "activation is softsign"),
        ("gru", {"recurrent_activation": "hard_sigmoid"}, "recurrent_activation is hard_sigmoid"),
    ],
)
def test_keras_layers_that_are_none_of_ours(cell, options, reason):
    with pytest.raises(NotImplementedError, match=reason):
        birnn_cuda.load_keras(keras_layer(cell, False, **options))


def test_keras_layers_that_are_not_built_or_not_recurrent():
    keras = importlib.import_module("keras")
    with pytest.raises(ValueError, match="no weights yet"):
        birnn_cuda.load_keras(keras.layers.LSTM(3))
    with pytest.raises(NotImplementedError, match="Dense"):
        birnn_cuda.load_keras(keras.layers.Dense(3))
    with pytest.raises(ValueError, match="no SimpleRNN, GRU or LSTM"):
        birnn_cuda.load_keras(keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)]))


# ---- Flax


def linen_cell(name, cell):
    linen = importlib.import_module("flax.linen")
    jax = importlib.import_module("jax")
    if name == "SimpleCell":
        return linen.SimpleCell(
            HIDDEN, activation_fn=jax.nn.relu if cell == "relu" else jax.numpy.tanh
        )
    return getattr(linen, name)(HIDDEN)


LINEN = [("SimpleCell", "tanh"), ("GRUCell", "gru"), ("LSTMCell", "lstm")]
LINEN.append(("OptimizedLSTMCell", "lstm"))


def by_linen(name, cell, parameters, x):
    linen = importlib.import_module("flax.linen")
    halves = [linen.RNN(linen_cell(name, cell)) for _ in "ab"]
    both = linen.Bidirectional(*halves)
    made = both.init(importlib.import_module("jax").random.key(0), x.numpy())["params"]
    assert set(made) == {"forward_rnn", "backward_rnn"}, set(made)
    names = ("forward_rnn", "backward_rnn")
    variables = {"params": {n: {"cell": p} for n, p in zip(names, parameters, strict=True)}}
    return both.apply(variables, x.numpy(), seq_lengths=np.array(LENGTHS))


@pytest.mark.parametrize(("name", "cell"), LINEN)
def test_linen_in_and_out(name, cell):
    jax = importlib.import_module("jax")
    cells = []
    for seed in range(2):
        made = linen_cell(name, cell)
        carry = made.initialize_carry(jax.random.key(seed), (B, INPUT))
        variables = made.init(jax.random.key(seed), carry, np.zeros((B, INPUT), "f"))["params"]
        leaves, tree = jax.tree.flatten(variables)
        cells.append(jax.tree.unflatten(tree, randomise(leaves)))
    ours = birnn_cuda.load_flax(*cells)
    x = batch()
    assert_same(by_linen(name, cell, cells, x), run([ours], x))
    (back,) = birnn_cuda.to_flax(ours)
    assert_same(by_linen(name, cell, back, x), run([ours], x))


@pytest.mark.parametrize("name", ["SimpleCell", "GRUCell", "LSTMCell", "OptimizedLSTMCell"])
def test_nnx_in(name):
    nnx = importlib.import_module("flax.nnx")
    jax = importlib.import_module("jax")
    cells = []
    for seed in range(2):
        cell = getattr(nnx, name)(INPUT, HIDDEN, rngs=nnx.Rngs(seed))
        graph, state = nnx.split(cell)
        leaves, tree = jax.tree.flatten(state)
        drawn = [
            new if np.ndim(old) and np.issubdtype(np.asarray(old).dtype, np.floating) else old
            for old, new in (
                (old, randomise([old])[0] if not is_key(old) else old) for old in leaves
            )
        ]
        cells.append(nnx.merge(graph, jax.tree.unflatten(tree, drawn)))
    ours = birnn_cuda.load_flax(*cells)
    assert ours.bias_ih_l0.abs().sum() + ours.bias_hh_l0.abs().sum() > 0
    x = batch()
    both = nnx.Bidirectional(*(nnx.RNN(c) for c in cells), rngs=nnx.Rngs(0))
    assert_same(both(x.numpy(), seq_lengths=np.array(LENGTHS)), run([ours], x))


def is_key(value):
    jax = importlib.import_module("jax")
    return jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)


def test_flax_cells_that_are_none_of_ours():
    nnx = importlib.import_module("flax.nnx")
    jax = importlib.import_module("jax")
    with pytest.raises(NotImplementedError, match="residual"):
        birnn_cuda.load_flax(nnx.SimpleCell(HIDDEN, HIDDEN, residual=True, rngs=nnx.Rngs(0)))
    cell = nnx.LSTMCell(INPUT, HIDDEN, activation_fn=jax.nn.gelu, rngs=nnx.Rngs(0))
    with pytest.raises(NotImplementedError, match="activation_fn is gelu"):
        birnn_cuda.load_flax(cell)
    with pytest.raises(NotImplementedError, match=r"\['wf', 'wi'\]"):
        birnn_cuda.load_flax({"wf": {}, "wi": {}})


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_flat_vector_of_jax(bidirectional):
    jax = importlib.import_module("jax")
    rnn = importlib.import_module("jax.experimental.rnn")
    directions = 2 if bidirectional else 1
    weights = rnn.init_lstm_weight(jax.random.key(0), INPUT, HIDDEN, 2, bidirectional)
    ours = birnn_cuda.load_jax(weights, INPUT, HIDDEN, 2, bidirectional)
    x = batch()
    zeros = np.zeros((2 * directions, B, HIDDEN), "f")
    parts = rnn.unpack_lstm_weights(weights, INPUT, HIDDEN, 2, bidirectional)
    y, h_n, c_n = rnn.lstm_ref(
        x.numpy(),
        zeros,
        zeros,
        *parts,
        seq_lengths=np.array(LENGTHS, "i"),
        input_size=INPUT,
        hidden_size=HIDDEN,
        num_layers=2,
        dropout=0.0,
        bidirectional=bidirectional,
    )
    output, final = ours(x, lengths=torch.tensor(LENGTHS))
    for theirs, mine in zip((y, h_n, c_n), (output, *final), strict=True):
        check(torch.from_numpy(np.array(theirs)), mine, 1e-5)
    with pytest.raises(ValueError, match="vector of"):
        birnn_cuda.load_jax(weights[:-1], INPUT, HIDDEN, 2, bidirectional)


# ---- MLX, which knows no lengths: each sequence alone


def by_mlx(layers, x):
    """Layers of MLX, of each its directions, on each sequence of [B, T, I] alone."""
    mx = importlib.import_module("mlx.core")
    rows = []
    for b, length in enumerate(LENGTHS):
        row = x[b : b + 1, :length].numpy()
        for directions in layers:
            halves = []
            for index, layer in enumerate(directions):
                result = layer(mx.array(np.flip(row, 1).copy() if index else row))
                half = np.array(result[0] if isinstance(result, tuple) else result)
                halves.append(half[:, ::-1] if index else half)
            row = np.concatenate(halves, -1)
        rows.append(np.pad(row[0], ((0, T - length), (0, 0))))
    return np.stack(rows)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_mlx_in_and_out(cell, bias):
    nn = importlib.import_module("mlx.nn")
    mx = importlib.import_module("mlx.core")
    halves = []
    for _ in range(2):
        if cell in ("tanh", "relu"):
            layer = nn.RNN(
                INPUT, HIDDEN, bias=bias, nonlinearity=nn.relu if cell == "relu" else None
            )
        else:
            layer = getattr(nn, cell.upper())(INPUT, HIDDEN, bias=bias)
        for name, value in layer.parameters().items():
            layer[name] = mx.array(randomise([value])[0])
        halves.append(layer)
    x = batch()
    ours = birnn_cuda.load_mlx(*halves)
    assert ours.bias == bias
    assert_same(by_mlx([halves], x), run([ours], x))
    deep = make_layer(birnn_cuda, cell, INPUT, HIDDEN, num_layers=2, bidirectional=True, bias=bias)
    assert_same(by_mlx(birnn_cuda.to_mlx(deep), x), run([deep], x))


def test_mlx_layers_that_are_none_of_ours():
    nn = importlib.import_module("mlx.nn")
    with pytest.raises(NotImplementedError, match="nonlinearity is gelu"):
        birnn_cuda.load_mlx(nn.RNN(INPUT, HIDDEN, nonlinearity=nn.gelu))
    with pytest.raises(NotImplementedError, match="Linear"):
        birnn_cuda.load_mlx(nn.Linear(INPUT, HIDDEN))
    with pytest.raises(ValueError, match="two cells"):
        birnn_cuda.load_mlx(nn.GRU(INPUT, HIDDEN), nn.LSTM(INPUT, HIDDEN))
