"""HDF5 files of Keras 3 beside Keras 3, and of Keras 2's cuDNN layers beside Keras 2's own
conversion of them, at unequal lengths with poisoned padding.

Long, for `make exchange`, which installs both.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from test_frameworks import HIDDEN, INPUT, assert_same, batch, by_keras, keras_layer, randomise, run

import birnn_cuda

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]

GATES = {"GRU": 3, "LSTM": 4}


def write(path, layers, configs=None):
    """A file as Keras 2 writes it: by layer the arrays, by name; with configs that of a model."""
    h5py = importlib.import_module("h5py")
    with h5py.File(path, "w") as file:
        group = file
        if configs is not None:
            config = {"class_name": "Sequential", "config": {"layers": configs}}
            file.attrs["model_config"] = json.dumps(config)
            group = file.create_group("model_weights")
        group.attrs["layer_names"] = [name.encode() for name in layers]
        for name, arrays in layers.items():
            layer = group.create_group(name)
            layer.attrs["weight_names"] = [path.encode() for path in arrays]
            for array, value in arrays.items():
                layer[array] = value


def by_keras_2(kind, arrays):
    """The function of Keras 2 that reads a cuDNN layer's weights into a plain layer, which needs
    nothing of the package (and of TensorFlow) around it."""
    spec = importlib.util.find_spec("tf_keras")
    path = Path(spec.origin).parent / "src" / "saving" / "legacy" / "hdf5_format.py"
    (function,) = (
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "_convert_rnn_weights"
    )
    names = {"np": np}
    exec(compile(ast.Module([function], []), path.name, "exec"), names)
    layer = type(kind, (), {"reset_after": True, "name": kind})()
    return names["_convert_rnn_weights"](layer, arrays)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("kind", GATES)
def test_cudnn_layers_of_keras_2(kind, bidirectional, whole, tmp_path):
    columns = GATES[kind] * HIDDEN
    shapes = [(INPUT, columns), (HIDDEN, columns), (2 * columns,)]
    halves = [randomise([np.empty(shape) for shape in shapes]) for _ in range(1 + bidirectional)]
    names = ["kernel:0", "recurrent_kernel:0", "bias:0"]
    prefixes = [f"rnn/{way}_layer/" for way in ("forward", "backward")][: len(halves)]
    if not bidirectional:
        prefixes = ["rnn/"]
    arrays = {
        prefix + name: value
        for prefix, half in zip(prefixes, halves, strict=True)
        for name, value in zip(names, half, strict=True)
    }
    config = {"class_name": f"CuDNN{kind}", "config": {"name": "rnn", "units": HIDDEN}}
    if bidirectional:
        config["config"]["name"] = "layer"
        config = {
            "class_name": "Bidirectional",
            "config": {"name": "rnn", "merge_mode": "ave", "layer": config},
        }
    write(tmp_path / "model.h5", {"rnn": arrays}, [config] if whole else None)
    theirs = keras_layer(
        kind.lower(), bidirectional, **({"merge_mode": "ave"} if bidirectional else {})
    )
    converted = [by_keras_2(kind, half) for half in halves]
    theirs.set_weights([array for half in converted for array in half])
    given = {"merge_mode": "ave"} if bidirectional and not whole else {}
    (imported,) = birnn_cuda.load_keras(tmp_path / "model.h5", **given)
    assert imported.name == "rnn" and imported.layer.bidirectional == bidirectional
    x = batch()
    assert_same(by_keras([theirs], x), run([imported.layer], x))


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".weights.h5"])
def test_files_of_keras_3(suffix, tmp_path):
    keras = importlib.import_module("keras")
    layers = [
        keras_layer("gru", True, merge_mode="sum"),
        keras_layer("tanh", False, name="plain", input_size=HIDDEN),
        keras_layer("lstm", True, input_size=HIDDEN),
        keras_layer("lstm", False, input_size=2 * HIDDEN, use_bias=False),
        keras_layer("gru", False, input_size=HIDDEN, reset_after=False),
    ]
    model = keras.Sequential([keras.Input((None, INPUT)), *layers])
    path = tmp_path / f"model{suffix}"
    alone = suffix == ".weights.h5"
    (model.save_weights if alone else model.save)(path)
    given = {"activation": "tanh", "recurrent_activation": "sigmoid"} if alone else {}
    found = birnn_cuda.load_keras(path, **given)
    if not alone:
        assert [each.name for each in found] == [layer.name for layer in layers]
        assert found[0].layer.merge_mode == "sum"
    else:  # in the order of their names, and of the merge nothing is kept
        order = ["bidirectional", "bidirectional_1", "gru", "lstm", "simple_rnn"]
        assert [each.name for each in found] == order
        found = [found[index] for index in (0, 4, 1, 3, 2)]
        found[0] = birnn_cuda.load_keras(path, **given, merge_mode="sum")[0]
    x = batch()
    assert_same(by_keras(layers, x), run([each.layer for each in found], x))


def arrays_of(kind, bias=None):
    columns = {"SimpleRNN": 1, **GATES}[kind] * HIDDEN
    shapes = {"kernel:0": (INPUT, columns), "recurrent_kernel:0": (HIDDEN, columns)}
    if bias is not None:
        shapes["bias:0"] = bias
    return {f"rnn/{name}": np.zeros(shape, "f") for name, shape in shapes.items()}


SIGMOID = {"recurrent_activation": "sigmoid"}


@pytest.mark.parametrize(
    ("kind", "bias", "given", "error", "text"),
    [
        ("LSTM", (4 * HIDDEN,), {}, ValueError, r'give .*\(recurrent_activation="sigmoid"'),
        ("SimpleRNN", (HIDDEN,), {}, ValueError, r'give .*\(activation="tanh"'),
        ("SimpleRNN", (HIDDEN,), {"activation": "elu"}, NotImplementedError, "activation is elu"),
        (
            "LSTM",
            (4 * HIDDEN,),
            {"recurrent_activation": "hard_sigmoid"},
            NotImplementedError,
            "recurrent_activation is hard_sigmoid",
        ),
        ("LSTM", (7 * HIDDEN,), SIGMOID, NotImplementedError, r"7\*H holds peepholes"),
        ("GRU", None, SIGMOID, NotImplementedError, "would tell reset_after"),
        ("GRU", (5,), SIGMOID, NotImplementedError, r"no bias of shape \(5,\)"),
    ],
)
def test_weights_alone_that_say_too_little_or_are_none_of_ours(
    kind, bias, given, error, text, tmp_path
):
    write(tmp_path / "weights.hdf5", {"rnn": arrays_of(kind, bias)})
    with pytest.raises(error, match=text):
        birnn_cuda.load_keras(tmp_path / "weights.hdf5", **given)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"recurrent_activation": "hard_sigmoid"}, "recurrent_activation is hard_sigmoid"),
        ({"go_backwards": True}, "go_backwards"),
    ],
)
def test_models_that_are_none_of_ours(options, text, tmp_path):
    config = {"class_name": "LSTM", "config": {"name": "rnn", **options}}
    write(tmp_path / "model.h5", {"rnn": arrays_of("LSTM", (4 * HIDDEN,))}, [config])
    with pytest.raises(NotImplementedError, match=text):
        birnn_cuda.load_keras(tmp_path / "model.h5")


def test_other_arrays_and_what_is_given_in_vain(tmp_path):
    path = tmp_path / "model.h5"
    write(path, {"rnn": {**arrays_of("LSTM"), "rnn/kernel:0": np.zeros((INPUT, 7), "f")}})
    with pytest.raises(NotImplementedError, match=r"shapes \[\(4, 7\), .* no SimpleRNN"):
        birnn_cuda.load_keras(path, **SIGMOID)
    write(path, {"dense": {"dense/kernel:0": np.zeros((3, 3), "f")}})
    with pytest.raises(ValueError, match="has no SimpleRNN"):
        birnn_cuda.load_keras(path)
    config = {"class_name": "LSTM", "config": {"name": "rnn"}}
    write(path, {"rnn": arrays_of("LSTM", (4 * HIDDEN,))}, [config])
    with pytest.raises(ValueError, match="the file says"):
        birnn_cuda.load_keras(path, **SIGMOID)
    with pytest.raises(ValueError, match="for a file of weights alone"):
        birnn_cuda.load_keras(keras_layer("lstm", False), **SIGMOID)
