"""The networks of published packages that `replace_in_packages.py` compares, and batches for them.

Each is built by its package's own class, with the sizes of the package's own published model or
its defaults; its weights are random from a seed, but for those that lie in the package itself. Of
a package only the module of the network is imported: what else it asks for at its import (audio and
image files, servers, command lines) is stood in for, see `StandIns`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module, metadata
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Case(NamedTuple):
    """A network of a package, and a batch for it."""

    package: str
    network: str
    build: Callable[[], nn.Module]
    make_inputs: Callable[[], tuple[Any, ...]]
    weights: str = "random"


class StandIns(MetaPathFinder, Loader):
    """Modules of these names, and below them, whose every attribute is a class that does nothing.

    They take the place of what a package imports and its network does not use. A network that does
    use one fails by it, or differs.
    """

    def __init__(self, *names: str) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if any(name == known or name.startswith(known + ".") for known in self.names):
            return ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *args, **options: None})


def network_module(name: str, *stood_in_for: str) -> Any:
    """The module of a network, imported without what it does not use."""
    finder = StandIns(*stood_in_for)
    sys.meta_path.insert(0, finder)
    try:
        return import_module(name)
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n, module in sys.modules.items() if isinstance(module, _StandIn)]:
            del sys.modules[name]  # another package may want the real one


def version_of(distribution: str) -> str:
    """As in ``medaka 2.2.2``."""
    return f"{distribution} {metadata.version(distribution)}"


def describe_torchvision() -> None:
    """Where torch is a build for CPUs, torchvision's compiled operators cannot be loaded.

    No network here calls one, but torchvision's import describes one of them, so it must be there.
    """
    try:
        import_module("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        _libraries.append(library)
        for name in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
            del sys.modules[name]


_libraries: list[Any] = []  # what a library defines goes with it


def without_zeros(network: nn.Module) -> nn.Module:
    """Matrices that begin as zeros are made random: no gradient would go through them."""
    for parameter in network.parameters():
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network


def read_counts(batch: int, steps: int) -> Tensor:
    """``[batch, steps, 10]``: how many of the reads at each place say each base, or none.

    Four bases and a deletion in two directions of reading, divided by the number of reads; one
    read in twenty is wrong. On input like that which it was trained for the network forgets what
    it does not need; on white noise its states are chaotic, and every rounding error grows.
    """
    truth = torch.randint(4, (batch, steps, 1))
    reads = torch.where(
        torch.rand(batch, steps, 40) < 0.95, truth, torch.randint(5, (batch, steps, 40))
    )
    reads = reads + 5 * torch.randint(2, reads.shape)
    return nn.functional.one_hot(reads, 10).float().mean(2)


def consensus() -> Case:
    """Medaka polishes DNA: a bidirectional GRU over counts of bases, with the weights it ships."""
    module = network_module(
        "medaka.architectures.gru",
        *("edlib", "h5py", "intervaltree", "mappy", "ont_fast5_api", "parasail", "pyabpoa"),
        *("requests", "spoa", "tensordict", "toml", "wurlitzer"),
    )
    stored = import_module("medaka.datastore").ModelStoreTGZ
    name = "r1041_e82_400bps_hac_v6.0.0"
    path = Path(module.__file__).parents[1] / "data" / f"{name}_model_pt.tar.gz"

    def build() -> nn.Module:
        network: nn.Module = stored(str(path)).load_model()
        return network.train()

    return Case(
        version_of("medaka"),
        "GRUModel(256, 2 layers)",
        build,
        lambda: (read_counts(4, 500),),
        name,
    )


def diarization() -> Case:
    """Who speaks when: learned filters of the sound, then a bidirectional LSTM of two layers."""
    module = network_module(
        "pyannote.audio.models.segmentation.PyanNet",
        *("huggingface_hub", "pandas", "pyannote.audio.telemetry", "pyannote.metrics"),
        *("pyannote.pipeline", "torch_audiomentations", "torchaudio", "torchcodec", "torchvision"),
    )
    task = import_module("pyannote.audio.core.task")

    def build() -> nn.Module:
        network: Any = module.PyanNet()
        network.specifications = task.Specifications(
            problem=task.Problem.MULTI_LABEL_CLASSIFICATION,
            resolution=task.Resolution.FRAME,
            duration=10.0,
            classes=["one", "two", "three"],
        )
        network.build()
        built: nn.Module = network
        return built

    return Case(
        version_of("pyannote-audio"), "PyanNet()", build, lambda: (torch.randn(2, 1, 80000),)
    )


def document_words() -> Case:
    """Words of documents: VGG-16, then a bidirectional LSTM of two layers."""
    describe_torchvision()
    module = network_module(
        "doctr.models.recognition.crnn.pytorch",
        *("anyascii", "cv2", "h5py", "huggingface_hub", "langdetect", "pyclipper", "pypdfium2"),
        *("rapidfuzz", "shapely", "validators"),
    )
    return Case(
        version_of("python-doctr"),
        "crnn_vgg16_bn()",
        lambda: module.crnn_vgg16_bn(pretrained=False, pretrained_backbone=False, exportable=True),
        lambda: (torch.rand(4, 3, 32, 128), ["word"] * 4),
    )


def scene_words() -> Case:
    """Words in pictures: VGG, then two bidirectional LSTMs with a product after each."""
    module = network_module(
        "easyocr.model.vgg_model", "easyocr.easyocr", "easyocr.recognition", "torchvision"
    )
    return Case(
        version_of("easyocr"),
        "vgg_model.Model(1, 256, 256, 97)",
        lambda: module.Model(1, 256, 256, 97),
        lambda: (torch.rand(4, 1, 64, 400), None),
    )


def unmixing() -> Case:
    """Voices out of music: a bidirectional LSTM of three layers over spectra."""
    network = network_module("openunmix.model", "torchaudio").OpenUnmix
    return Case(
        version_of("openunmix"),
        "OpenUnmix(2049, 2, 512, 3 layers)",
        lambda: network(2049, 2, 512, 3, max_bin=1487),
        lambda: (torch.rand(2, 2, 2049, 100),),
    )


def music_separation() -> Case:
    """Hybrid Demucs: convolutions of sound and spectra, with LSTMs over chunks of 200 steps."""
    network = network_module("demucs.hdemucs").HDemucs
    return Case(
        version_of("demucs"),
        "HDemucs(4 sources, channels=24)",
        lambda: network(["drums", "bass", "other", "vocals"], channels=24),
        lambda: (torch.randn(1, 2, 44100),),
    )


def tagging() -> Case:
    """Parts of speech: an LSTM over the characters of words, then bidirectional ones over words."""
    module = network_module(
        "stanza.models.pos.model",
        *("emoji", "huggingface_hub", "peft", "stanza.pipeline", "stanza.resources", "udtools"),
    )
    options = {
        **{"hidden_dim": 200, "char_hidden_dim": 400, "deep_biaff_hidden_dim": 400},
        **{"composite_deep_biaff_hidden_dim": 100, "word_emb_dim": 75, "char_emb_dim": 100},
        **{"tag_emb_dim": 50, "transformed_dim": 125, "num_layers": 2, "char_num_layers": 1},
        **{"word_dropout": 0.33, "dropout": 0.5, "rec_dropout": 0, "char_rec_dropout": 0},
        **{"char": True, "pretrain": False},
    }
    sizes = {"word": 2000, "char": 80, "upos": 18, "xpos": 40, "feats": 30}
    vocabulary = {name: range(size) for name, size in sizes.items()}

    def make_inputs() -> tuple[Any, ...]:
        sentences = sorted(torch.randint(8, 31, (16,)).tolist(), reverse=True)
        num_words = sum(sentences)
        words = sorted(torch.randint(1, 13, (num_words,)).tolist(), reverse=True)
        shape = len(sentences), sentences[0]
        return (
            torch.randint(4, sizes["word"], shape),
            torch.zeros(shape, dtype=torch.bool),
            torch.randint(4, sizes["char"], (num_words, words[0])),
            torch.zeros(num_words, words[0], dtype=torch.bool),
            [torch.randint(1, sizes[name], shape) for name in ("upos", "xpos", "feats")],
            None,
            torch.randperm(num_words).tolist(),
            sentences,
            words,
            None,
        )

    return Case(
        version_of("stanza"),
        "pos Tagger(200, 2 layers)",
        lambda: without_zeros(module.Tagger(options, vocabulary)),
        make_inputs,
    )


class SpeechEncoders(nn.Module):
    """What kokoro makes of a text and a voice before it speaks: durations, pitch, loudness."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.text = module.TextEncoder(channels=512, kernel_size=5, depth=3, n_symbols=178)
        self.prosody = module.ProsodyPredictor(style_dim=128, d_hid=512, nlayers=3)

    def forward(self, symbols: Tensor, lengths: Tensor, voice: Tensor) -> tuple[Tensor, ...]:
        padding = torch.arange(symbols.size(1)) >= lengths.cpu().unsqueeze(1)
        padding = padding.to(symbols.device)
        text = self.text(symbols, lengths, padding)  # [B, 512, T]
        alignment = torch.eye(symbols.size(1), dtype=text.dtype, device=text.device)
        alignment = alignment.repeat_interleave(2, dim=1)  # two frames to a symbol
        durations, frames = self.prosody(text, voice, lengths, alignment, padding)
        pitch, loudness = self.prosody.F0Ntrain(frames, voice)
        return durations, pitch, loudness


def speech() -> Case:
    """The encoders of a speaking voice: six bidirectional LSTMs, five of them over packed texts."""
    module = network_module(
        "kokoro.modules",
        *("huggingface_hub", "kokoro.model", "kokoro.pipeline", "misaki", "transformers"),
    )
    return Case(
        version_of("kokoro"),
        "TextEncoder, ProsodyPredictor",
        lambda: SpeechEncoders(module),
        lambda: (
            torch.randint(178, (4, 80)),
            torch.tensor([80, 41, 66, 23]),
            torch.randn(4, 128),
        ),
    )


def speech_enhancement() -> Case:
    """Demucs for speech: convolutions around a bidirectional LSTM of two layers, time first."""
    network = import_module("denoiser.demucs").Demucs
    return Case(
        version_of("denoiser"),
        "Demucs(hidden=24, causal=False)",
        lambda: network(hidden=24, causal=False),
        lambda: (torch.randn(4, 1, 16000),),
    )


def translation() -> Case:
    """The encoder of a translation network: a bidirectional GRU over packed sentences."""
    network = import_module("joeynmt.encoders").RecurrentEncoder

    def make_inputs() -> tuple[Any, ...]:
        lengths = torch.randint(5, 51, (32,)).sort(descending=True).values
        lengths[0] = 50
        mask = torch.arange(50) < lengths.unsqueeze(1)
        return torch.randn(32, 50, 128), lengths, mask.unsqueeze(1)

    return Case(
        version_of("joeynmt"),
        "RecurrentEncoder('gru', 128, 2 layers)",
        lambda: network(rnn_type="gru", hidden_size=128, emb_size=128, num_layers=2, dropout=0.1),
        make_inputs,
    )


def graphs() -> Case:
    """Jumping knowledge: for each node a bidirectional LSTM over what the layers made of it."""
    network = import_module("torch_geometric.nn").GCN
    return Case(
        version_of("torch-geometric"),
        "GCN(64, 64, 4 layers, jk='lstm')",
        lambda: network(64, 64, 4, out_channels=8, jk="lstm"),
        lambda: (torch.randn(2000, 64), torch.randint(0, 2000, (2, 8000))),
    )


CASES: dict[str, Callable[[], Case]] = {
    "medaka": consensus,
    "pyannote": diarization,
    "doctr": document_words,
    "easyocr": scene_words,
    "openunmix": unmixing,
    "demucs": music_separation,
    "denoiser": speech_enhancement,
    "stanza": tagging,
    "kokoro": speech,
    "joeynmt": translation,
    "torch-geometric": graphs,
}
