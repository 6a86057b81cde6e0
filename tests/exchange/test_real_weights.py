"""Networks that people published, out of their packages, beside the packages' own code.

Long, for `make exchange`, which fetches the packages.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import os
import pickle
import sys
import time
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from rounding import check
from test_keras_files import by_keras_2
from torch import Tensor

import birnn_cuda
from birnn_cuda import load_dynet, load_onnx

os.environ.setdefault("KERAS_BACKEND", "torch")

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]


def folder_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None, f"{package} is not installed"
    return Path(spec.origin).parent


def report(package: str, theirs: float, ours: float) -> None:
    print(f"{package}: its own code {theirs * 1e3:.2f} ms, birnn_cuda {ours * 1e3:.2f} ms")


def timed(function, *args):
    """What it returns, and the shortest of five times, in seconds."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        result = function(*args)
        times.append(time.perf_counter() - start)
    return result, min(times)


def test_g2pm():
    """Pinyin of Chinese: an LSTM of two directions under torch's names, run by numpy."""
    g2pm = importlib.import_module("g2pM").G2pM()
    weights = pickle.loads((folder_of("g2pM") / "np_ckpt.pkl").read_bytes())
    prefix = "lstm."
    sizes = g2pm.weight_ih.shape[1], g2pm.weight_hh.shape[1]
    layer = birnn_cuda.LSTM(*sizes, bidirectional=True)
    layer.load_state_dict(
        {
            name.removeprefix(prefix): torch.from_numpy(value)
            for name, value in weights.items()
            if name.startswith(prefix)
        }
    )
    lengths = [9, 3, 6]
    ids = np.zeros((3, 9), np.int32)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(1, len(g2pm.embeddings), (length,)).numpy()
    read: list[Tensor] = []
    logits = g2pm.fc_layer

    def fc_layer(hidden):
        read.append(hidden)
        return logits(hidden)

    g2pm.fc_layer = fc_layer
    steps = [8, 0, 4]
    _, theirs = timed(g2pm.predict, ids, steps)
    x = torch.from_numpy(g2pm.embeddings[ids]).float().transpose(0, 1)
    (output, _), ours = timed(lambda: layer(x, lengths=torch.tensor(lengths)))
    chosen = output[torch.tensor(steps), torch.arange(3)]
    check(chosen, torch.from_numpy(read[0]), 1e-5)
    report("g2pM", theirs, ours)


def test_nagisa():
    """Japanese words: DyNet's LSTMs, whose forget bias is in no file, run by compiled code."""
    loader = importlib.import_module("nagisa.dynet_loader")
    network = importlib.import_module("nagisa.np_model")
    folder = folder_of("nagisa") / "data"
    hp = importlib.import_module("nagisa_utils").load_data(str(folder / "nagisa_v001.hp"))
    parameters = loader.map_nagisa_params(
        loader.load_dynet_text_model(str(folder / "nagisa_v001.model")), hp
    )
    for name in ("ws_lstms", "pos_lstms", "char_lstms"):
        layers = [
            [[half[key] for key in ("Wx", "Wh", "b")] for half in pair] for pair in parameters[name]
        ]
        ours = load_dynet(layers)
        theirs = network._BiRNN(parameters[name])
        x = torch.randn(23, ours.input_size)
        wanted, their_time = timed(theirs.transduce, x.numpy())
        (output, _), our_time = timed(ours, x)
        check(output, torch.from_numpy(wanted), 1e-5, what=name)
        without, _ = load_dynet(layers, forget_bias_add=0.0)(x)
        assert (without - output).abs().max() > 1e-3
        report(f"nagisa, {name}", their_time, our_time)


def with_outputs(model, names):
    """An ONNX model that also gives those values of its graph."""
    onnx = importlib.import_module("onnx")
    for name in names:
        if name not in {value.name for value in model.graph.output}:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    return importlib.import_module("onnxruntime").InferenceSession(model.SerializeToString())


def test_silero_vad():
    """Voice activity: an LSTM on its own, and four inside branches, with no initialiser."""
    onnx = importlib.import_module("onnx")
    folder = folder_of("silero_vad") / "data"
    model = onnx.load(folder / "silero_vad_16k_sequence.onnx")
    (node,) = (node for node in model.graph.node if node.op_type == "LSTM")
    (imported,) = load_onnx(folder / "silero_vad_16k_sequence.onnx")
    session = with_outputs(model, [node.input[0], *node.output])
    feeds = {"input": torch.randn(31, 576).numpy() * 0.1}
    feeds.update({name: torch.randn(1, 1, 128).numpy() for name in "hc"})
    names = [node.input[0], *node.output]
    (x, y, h_n, c_n), theirs = timed(session.run, names, feeds)
    states = tuple(torch.from_numpy(feeds[name]) for name in "hc")
    (output, final), ours = timed(imported.layer, torch.from_numpy(x), states)
    for what, got, wanted in (
        ("output", output, y[:, 0]),
        ("h_n", final[0], h_n),
        ("c_n", final[1], c_n),
    ):
        check(got, torch.from_numpy(wanted), 1e-5, what=what)
    report("silero-vad (the package's time is that of its whole network)", theirs, ours)
    nested = load_onnx(folder / "silero_vad.onnx")
    assert len(nested) == 4 and all("_branch/" in each.name for each in nested)
    same = [
        all(map(torch.equal, each.layer.parameters(), imported.layer.parameters()))
        for each in nested
    ]
    assert sum(same) == 2  # one of the two networks, for each shape of its state


def test_ddddocr():
    """Characters in pictures: an LSTM in 8 bits, which is near to its dequantised weights."""
    onnx = importlib.import_module("onnx")
    path = folder_of("ddddocr") / "common_old.onnx"
    model = onnx.load(path)
    (node,) = (node for node in model.graph.node if node.op_type == "DynamicQuantizeLSTM")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (imported,) = load_onnx(path)
    assert any("dequantised" in str(warning.message) for warning in caught)
    session = with_outputs(model, [node.input[0], node.output[0]])
    picture = {"input1": torch.rand(1, 1, 64, 160).numpy()}
    (x, y), theirs = timed(session.run, [node.input[0], node.output[0]], picture)
    (output, _), ours = timed(imported.layer, torch.from_numpy(x))
    difference = output - torch.from_numpy(y).transpose(1, 2).flatten(2)
    assert difference.pow(2).mean().sqrt() < 0.02 * output.pow(2).mean().sqrt()
    report("ddddocr (the package's time is that of its whole network)", theirs, ours)


def stand_in(monkeypatch, name, **contents):
    """A module under that name, for what a package imports and none of its recurrence needs."""
    module = types.ModuleType(name)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_g2p_en(monkeypatch):
    """Sounds of English words: an encoder and a decoder, GRUs under torch's names, run by numpy."""
    found = types.SimpleNamespace(find=lambda path: path)
    stand_in(monkeypatch, "nltk", pos_tag=None, data=found)
    stand_in(monkeypatch, "nltk.corpus", cmudict=types.SimpleNamespace(dict=dict))
    stand_in(monkeypatch, "nltk.tokenize", TweetTokenizer=lambda: types.SimpleNamespace(tokenize=0))
    stand_in(monkeypatch, "inflect", engine=lambda: None)
    g2p = importlib.import_module("g2p_en").G2p()

    def layer_of(part):
        layer = birnn_cuda.GRU(g2p.variables[f"{part}_w_ih"].shape[1], 256, batch_first=True)
        names = ("w_ih", "w_hh", "b_ih", "b_hh")
        arrays = [torch.from_numpy(g2p.variables[f"{part}_{name}"]) for name in names]
        layer.load_state_dict(dict(zip(layer.state_dict(), arrays, strict=True)))
        return layer.eval()

    encoder, decoder = layer_of("enc"), layer_of("dec")
    words = ["birnn", "activationist", "xyzzy", "schuster", "paliwal"]
    coded = [torch.from_numpy(g2p.encode(word))[0] for word in words]
    lengths = torch.tensor([len(code) for code in coded])
    padded = torch.nn.utils.rnn.pad_sequence(coded, batch_first=True, padding_value=1e4)
    weights = [g2p.variables[f"enc_{name}"] for name in ("w_ih", "w_hh", "b_ih", "b_hh")]

    def theirs():
        return [g2p.gru(code[None].numpy(), len(code), *weights)[0] for code in coded]

    wanted, their_time = timed(theirs)
    (output, h_n), our_time = timed(lambda: encoder(padded, lengths=lengths))
    for row, want in enumerate(wanted):
        got = output[row, : len(want)]
        check(got, torch.from_numpy(want), 1e-5, what=words[row])
    report("g2p_en's encoder", their_time, our_time)
    for row, word in enumerate(words):  # what its predict does, by the decoder, a step at a time
        sound, state, sounds = 2, h_n[:, row : row + 1], []
        for _ in range(20):
            step = torch.from_numpy(g2p.dec_emb[sound]).view(1, 1, -1)
            output, state = decoder(step, state)
            sound = int((output[0, 0].detach().numpy() @ g2p.fc_w.T + g2p.fc_b).argmax())
            if sound == 3:
                break
            sounds.append(g2p.idx2p[sound])
        assert sounds == g2p.predict(word), word


def test_resemblyzer(monkeypatch):
    """Voices: three LSTM layers of torch above each other, which replace_rnns swaps."""
    audio = ("preprocess_wav", "wav_to_mel_spectrogram", "trim_long_silences", "normalize_volume")
    stand_in(monkeypatch, "resemblyzer.audio", **dict.fromkeys(audio))
    theirs = importlib.import_module("resemblyzer").VoiceEncoder("cpu", verbose=False)
    ours = birnn_cuda.replace_rnns(copy.deepcopy(theirs))
    assert type(ours.lstm) is birnn_cuda.LSTM
    frames = torch.rand(4, 160, 40)
    with torch.no_grad():
        wanted, their_time = timed(theirs, frames)
        got, our_time = timed(ours, frames)
    check(got, wanted, 1e-5)
    report("resemblyzer (whole networks)", their_time, our_time)


def keras_lstm(x, kernel, recurrent_kernel, bias):
    """Every step of a Keras LSTM, ``[B, T, H]``: its layer's equations, in the numbers of x."""
    h = c = np.zeros((len(x), len(recurrent_kernel)), x.dtype)
    steps = []
    for t in range(x.shape[1]):
        gates = x[:, t] @ kernel + h @ recurrent_kernel + bias
        i, f, g, o = np.split(gates, 4, axis=1)
        i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
        c = f * c + i * np.tanh(g)
        h = o * np.tanh(c)
        steps.append(h)
    return np.stack(steps, axis=1)


# Forty letters each, as the network reads.
SENTENCES = (
    "Why does the sky look blue at noon, and ",
    "The best way to learn a language is to s",
    "What happened to the old house on the hi",
)


def test_textgenrnn(monkeypatch):
    """Texts by the letter: two CuDNNLSTMs of Keras 2, run by the package's model on Keras 3, with
    what Keras 2 makes of their weights; the functions that Keras dropped are stood in for.

    Letters at random are read in fp64 alone: on them a rounding error grows, that of fp32 to 1e-4
    in 40 steps, in Keras's layers, in torch.nn's and in these alike. On English it does not.
    """
    keras = importlib.import_module("keras")
    ops = keras.ops
    dropped = types.SimpleNamespace(
        backend=keras.backend.backend,
        cast=ops.cast,
        dot=ops.matmul,
        epsilon=keras.backend.epsilon,
        exp=ops.exp,
        expand_dims=lambda x: ops.expand_dims(x, -1),
        floatx=keras.backend.floatx,
        max=ops.max,
        reshape=ops.reshape,
        shape=ops.shape,
        sum=ops.sum,
    )
    folder = folder_of("textgenrnn")
    contents = {"backend": dropped, "initializers": keras.initializers}
    stand_in(monkeypatch, "tensorflow", config=None)
    stand_in(monkeypatch, "tensorflow.keras", **contents)
    stand_in(monkeypatch, "tensorflow.keras.optimizers", Adam=lambda lr: "adam")
    monkeypatch.setitem(sys.modules, "tensorflow.keras.layers", keras.layers)
    monkeypatch.setitem(sys.modules, "tensorflow.keras.models", keras.models)
    stand_in(monkeypatch, "textgenrnn", __path__=[str(folder)])
    make = importlib.import_module("textgenrnn.model").textgenrnn_model
    sizes = {"max_length": 40, "dim_embeddings": 100, "rnn_layers": 2, "rnn_size": 128}
    weights = folder / "textgenrnn_weights.hdf5"
    vocabulary = json.loads((folder / "textgenrnn_vocab.json").read_text())
    names = ("rnn_1", "rnn_2")
    with importlib.import_module("h5py").File(weights) as file:
        arrays = {
            name: [np.asarray(group[path], np.float64) for path in group.attrs["weight_names"]]
            for name, group in file.items()
        }
    for name in names:  # in fp64, where the sum of the two biases is not rounded
        arrays[name] = by_keras_2("LSTM", arrays[name])

    def by_keras(text, dtype):
        """The embedded letters and what each of the LSTMs makes of them, and the time."""
        keras.config.set_dtype_policy(dtype)
        model = make(len(vocabulary) + 1, {**sizes, "rnn_bidirectional": False})
        for layer in model.layers:
            layer.set_weights(arrays[layer.name])
        inner = [model.get_layer(name).output for name in ("embedding", *names)]
        network = keras.Model(model.inputs, inner)
        return timed(lambda: [np.asarray(y.detach()) for y in network(text)])

    assert [each.name for each in birnn_cuda.load_keras(weights)] == list(names)
    english = torch.tensor([[vocabulary[letter] for letter in line] for line in SENTENCES])
    random = torch.randint(1, len(vocabulary) + 1, (3, 40))
    policy = keras.config.dtype_policy()
    try:
        runs = {
            key: by_keras(text, dtype)
            for key, text, dtype in (
                ("letters at random, fp64", random, "float64"),
                ("English, fp64", english, "float64"),
                ("English, fp32", english, "float32"),
            )
        }
    finally:
        keras.config.set_dtype_policy(policy)
    tolerances = (1e-9, 1e-12, 1e-5)
    for (what, (values, _)), tolerance in zip(runs.items(), tolerances, strict=True):
        x, *theirs = values
        layers = [
            each.layer.to(torch.from_numpy(x).dtype) for each in birnn_cuda.load_keras(weights)
        ]
        assert x.dtype == (np.float32 if "fp32" in what else np.float64)

        def run(x=x, layers=layers):
            below, _ = layers[0](torch.from_numpy(x))
            return below, layers[1](below)[0]

        ours, our_time = timed(run)
        below = x.astype(np.float64)
        for name, by_theirs, by_ours in zip(names, theirs, ours, strict=True):
            below = keras_lstm(below, *arrays[name])
            wanted = torch.from_numpy(below)
            check(by_ours, wanted, tolerance, what=f"{name}, {what}")
            check(torch.from_numpy(by_theirs), wanted, tolerance, what=f"Keras's {name}, {what}")
    _, their_time = runs["English, fp32"]
    label = "textgenrnn's LSTMs (the package's time is that with its embedding)"
    report(label, their_time, our_time)
