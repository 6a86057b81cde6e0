"""The network that tags characters, and how texts become batches for it.

    character, bigram embeddings -> dropout -> BiRNN -> a score for each of B, M, E, S -> best path

The features of a character are its own embedding and those of the two pairs it makes with its
neighbours. A pair is often a word or the seam between two, so that a network this small does well.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from chinese_corpus import TAGS, clauses, words_of
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

import birnn_cuda

CELLS = ("tanh", "relu", "gru", "lstm")
IGNORED = -100  # the tag of padding: what cross_entropy leaves out

# Characters 0 and 1: before the first and after the last of a text (and padding); unknown.
EDGE, UNKNOWN, NUM_SPECIAL = 0, 1, 2

# The corpus writes digits and Latin letters in full width; so are they looked up.
_FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}

# After B comes M or E, after M the same, after E or S comes B or S; a text begins with B or S and
# ends with E or S. Added to scores.
_NEVER = -1e9
_START = torch.tensor([0, _NEVER, _NEVER, 0])
_STEP = torch.tensor(
    [
        [_NEVER, 0, 0, _NEVER],
        [_NEVER, 0, 0, _NEVER],
        [0, _NEVER, _NEVER, 0],
        [0, _NEVER, _NEVER, 0],
    ]
)
_END = torch.tensor([_NEVER, _NEVER, 0, 0])


class ModelError(Exception):
    """A saved model is missing or cannot be read."""


class Encoded(NamedTuple):
    """A text as numbers; tags are empty where they are not known."""

    characters: Tensor  # [T]
    bigrams: Tensor  # [T + 1]: bigram t is of the characters t - 1 and t
    tags: Tensor  # [T] or [0]


class Batch(NamedTuple):
    """Texts side by side, time first, padded at the end."""

    characters: Tensor  # [T, B]
    bigrams: Tensor  # [T + 1, B]
    tags: Tensor  # [T, B], padded with IGNORED
    lengths: Tensor  # [B]

    @property
    def num_characters(self) -> int:
        return int(self.lengths.sum())


class Vocabulary:
    """Numbers for characters and bigrams.

    Args:
        characters: the known ones; the first gets the number NUM_SPECIAL.
        bigrams: int64 ``[N]``, sorted: ``first * num_characters + second`` of each known one,
            whose number is its index + 1; 0 is an unknown one.
    """

    def __init__(self, characters: str, bigrams: Tensor) -> None:
        self.characters = characters
        self.bigrams = bigrams
        self._numbers = {character: i for i, character in enumerate(characters, NUM_SPECIAL)}

    @classmethod
    def of(cls, texts: Sequence[str], min_count: int = 2) -> Vocabulary:
        """What occurs `min_count` times. The rest is how "unknown" learns its embedding."""
        counts = Counter(character for text in texts for character in text)
        known = "".join(sorted(c for c in counts if counts[c] >= min_count))
        vocabulary = cls(known, torch.empty(0, dtype=torch.int64))
        codes = [vocabulary._codes(vocabulary._lookup(text)) for text in texts]
        bigrams, bigram_counts = torch.cat(codes).unique(return_counts=True)
        vocabulary.bigrams = bigrams[bigram_counts >= min_count]
        return vocabulary

    @property
    def num_characters(self) -> int:
        return NUM_SPECIAL + len(self.characters)

    @property
    def num_bigrams(self) -> int:
        return 1 + len(self.bigrams)

    def encode(self, text: str, tags: str = "") -> Encoded:
        characters = self._lookup(text)
        codes = self._codes(characters)
        if len(self.bigrams):
            index = torch.searchsorted(self.bigrams, codes).clamp_(max=len(self.bigrams) - 1)
            bigrams = torch.where(self.bigrams[index] == codes, index + 1, 0)
        else:
            bigrams = torch.zeros_like(codes)
        return Encoded(characters[1:-1], bigrams, torch.tensor([TAGS.index(tag) for tag in tags]))

    def _lookup(self, text: str) -> Tensor:
        numbers = (self._numbers.get(character, UNKNOWN) for character in text)
        return torch.tensor([EDGE, *numbers, EDGE])

    def _codes(self, characters: Tensor) -> Tensor:
        return characters[:-1] * self.num_characters + characters[1:]


def bucket(
    lengths: Sequence[int], max_characters: int, generator: torch.Generator | None = None
) -> list[list[int]]:
    """Divide texts among batches of at most `max_characters` with their padding.

    Texts of about the same length go together, so that little of a batch is padding. With a
    generator they are shuffled: lengths are blurred by up to a tenth before they are sorted, and
    the batches come in random order.

    Returns:
        The indices of the texts of each batch.
    """
    keys = torch.tensor(lengths, dtype=torch.float64)
    if generator is not None:
        keys *= 1 + 0.1 * torch.rand(len(keys), generator=generator)
    batches: list[list[int]] = []
    longest = 0
    for index in keys.argsort(stable=True).tolist():
        longest = max(longest, lengths[index])
        if not batches or longest * (len(batches[-1]) + 1) > max_characters:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    if generator is not None:
        batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
    return batches


def collate(texts: Sequence[Encoded], device: torch.device) -> Batch:
    """Pad and stack; `lengths` stay on the CPU, from where either library takes them."""
    characters, bigrams, tags = (list(column) for column in zip(*texts, strict=True))
    return Batch(
        pad_sequence(characters, padding_value=EDGE).to(device),
        pad_sequence(bigrams).to(device),
        pad_sequence(tags, padding_value=IGNORED).to(device),
        torch.tensor([len(text) for text in characters]),
    )


class Segmenter(nn.Module):
    """Scores of the four tags for every character.

    Args:
        vocabulary: gives the sizes of the embedding tables.
        embedding_size: of a character and of a bigram.
        hidden_size: of each direction of the BiRNN.
        cell: one of `CELLS`.
        dropout: of the embeddings.
        tagger: the class of the recurrent network: BiRNN, or `TorchBiRNN` to compare with.
        sparse: whether the gradient of the bigrams' embeddings is a sparse tensor.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        embedding_size: int,
        hidden_size: int,
        cell: str,
        dropout: float,
        tagger: type[nn.Module] = birnn_cuda.BiRNN,
        sparse: bool = True,
    ) -> None:
        super().__init__()
        self.characters = nn.Embedding(vocabulary.num_characters, embedding_size)
        # A batch meets few of the bigrams: a sparse gradient has rows only for those.
        self.bigrams = nn.Embedding(vocabulary.num_bigrams, embedding_size, sparse=sparse)
        nn.init.normal_(self.bigrams.weight, std=0.1)
        self.dropout = nn.Dropout(dropout)
        self.tagger = tagger(3 * embedding_size, hidden_size, len(TAGS), cell)

    def forward(self, characters: Tensor, bigrams: Tensor, lengths: Tensor) -> Tensor:
        """``[T, B]``, ``[T + 1, B]``, ``[B]`` -> ``[T, B, 4]``."""
        pairs = self.bigrams(bigrams)
        features = self.features(characters, pairs[:-1], pairs[1:])
        scores: Tensor = self.tagger(features, lengths=lengths)
        return scores

    def features(self, characters: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Of characters ``[T, B]`` and the embeddings ``[T, B, E]`` of their two bigrams."""
        embedded: Tensor = self.characters(characters)
        features: Tensor = self.dropout(torch.cat((embedded, before, after), -1))
        return features


class TorchBiRNN(nn.Module):
    """The same network in torch.nn: from one seed, the same weights under the same names."""

    def __init__(self, input_size: int, hidden_size: int, output_size: int, cell: str) -> None:
        super().__init__()
        self.hidden: nn.RNNBase
        if cell in ("tanh", "relu"):
            self.hidden = nn.RNN(input_size, hidden_size, nonlinearity=cell, bidirectional=True)
        else:
            layer = {"gru": nn.GRU, "lstm": nn.LSTM}[cell]
            self.hidden = layer(input_size, hidden_size, bidirectional=True)
        self.output = nn.Linear(2 * hidden_size, output_size)

    def forward(self, input: Tensor, *, lengths: Tensor) -> Tensor:
        packed, _ = self.hidden(pack_padded_sequence(input, lengths, enforce_sorted=False))
        states, _ = pad_packed_sequence(packed, total_length=input.size(0))
        scores: Tensor = self.output(states)
        return scores


def best_path(scores: Tensor, lengths: Tensor) -> Tensor:
    """The sequence of tags that can stand together with the greatest sum of scores (Viterbi).

    Args:
        scores: ``[T, B, 4]``, on the CPU.
        lengths: ``[B]``, at least 1.

    Returns:
        ``[T, B]``; what stands past a text's end means nothing.
    """
    best = scores[0] + _START
    came_from = []
    for t in range(1, len(scores)):
        total, previous = (best.unsqueeze(2) + _STEP).max(1)
        inside = (t < lengths).unsqueeze(1)
        best = torch.where(inside, total + scores[t], best)
        came_from.append(torch.where(inside, previous, torch.arange(len(TAGS))))
    path = [(best + _END).argmax(1)]
    for previous in reversed(came_from):
        path.append(previous.gather(1, path[-1].unsqueeze(1)).squeeze(1))
    return torch.stack(path[::-1])


@torch.inference_mode()
def tag(
    model: Segmenter, vocabulary: Vocabulary, texts: Sequence[str], max_characters: int = 16384
) -> list[str]:
    """The tags of each text, none of them empty."""
    model.eval()
    device = model.characters.weight.device
    tags = [""] * len(texts)
    for indices in bucket([len(text) for text in texts], max_characters):
        batch = collate([vocabulary.encode(texts[i]) for i in indices], device)
        scores = model(batch.characters, batch.bigrams, batch.lengths)
        path = best_path(scores.float().cpu(), batch.lengths).t().tolist()
        for index, numbers in zip(indices, path, strict=True):
            tags[index] = "".join(TAGS[number] for number in numbers[: len(texts[index])])
    return tags


def segment(
    model: Segmenter, vocabulary: Vocabulary, lines: Iterable[str], block_size: int = 1000
) -> Iterator[list[str]]:
    """The words of each line; white space divides words and is dropped."""
    block: list[str] = []
    for line in lines:
        block.append(line)
        if len(block) == block_size:
            yield from _segment_block(model, vocabulary, block)
            block = []
    yield from _segment_block(model, vocabulary, block)


def _segment_block(
    model: Segmenter, vocabulary: Vocabulary, lines: Sequence[str]
) -> Iterator[list[str]]:
    pieces = [[c for piece in line.split() for c in clauses(piece)] for line in lines]
    flat = [clause for line in pieces for clause in line]
    wide = [clause.translate(_FULL_WIDTH) for clause in flat]
    words = iter(map(words_of, flat, tag(model, vocabulary, wide)))
    for line in pieces:
        yield [word for _ in line for word in next(words)]


def save(path: Path, model: Segmenter, vocabulary: Vocabulary, options: dict[str, Any]) -> None:
    """Write model and vocabulary; `options` are Segmenter's arguments after the vocabulary."""
    weights = {name: weight.cpu() for name, weight in model.state_dict().items()}
    content = {
        "options": options,
        "characters": vocabulary.characters,
        "bigrams": vocabulary.bigrams,
        "weights": weights,
    }
    torch.save(content, path)


def load(path: Path, device: torch.device) -> tuple[Segmenter, Vocabulary]:
    """What `save` wrote.

    Raises:
        ModelError: there is no such file, or another program wrote it.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        vocabulary = Vocabulary(content["characters"], content["bigrams"].cpu())
        model = Segmenter(vocabulary, **content["options"]).to(device)
        model.load_state_dict(content["weights"])
    except FileNotFoundError:
        raise ModelError(
            f"there is no model {path}: make one with "
            f"'python examples/segment_chinese.py train --model {path}'"
        ) from None
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"cannot read the model {path}: {reason}") from None
    except (KeyError, TypeError, AttributeError):
        raise ModelError(f"{path} is not a model that this program saved") from None
    return model, vocabulary
