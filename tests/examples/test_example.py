"""examples/segment_chinese.py: tags, scores, decoding, and training on a few sentences."""

# ruff: noqa: RUF001 (full-width punctuation is meant)

import argparse
import io
import itertools
import sys
import tarfile
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import chinese_corpus
import segment_chinese
import segmenter

SENTENCES = [
    "他 来到 北京 天安门 。",
    "我们 在 北京 工作 。",
    "她 喜欢 天安门 广场 ！",
    "同志们 在 广场 工作 ； 他 来到 广场 。",
    "中华人民共和国 在 北京",
]


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path)


def write_corpus(folder):
    """An archive like the real one, of few sentences."""
    lines = []
    for number in range(60):  # the numbers make the paragraphs differ, so that some are held out
        words = [*SENTENCES[number % len(SENTENCES)].split(), *str(number)]
        pairs = zip("".join(words), chinese_corpus.tags_of(words).lower(), strict=True)
        lines.append(" ".join(f"{character}/{tag}" for character, tag in pairs))
    return write_archive(folder / "corpus.tar.gz", "\n".join(lines))


def write_archive(path, text, member=chinese_corpus.MEMBER):
    data = text.encode()
    info = tarfile.TarInfo(member)
    info.size = len(data)
    with tarfile.open(path, "w:gz") as files:
        files.addfile(info, io.BytesIO(data))
    return path


def train(corpus, model, *options):
    small = ["--hidden-size", "16", "--embedding-size", "16", "--batch-characters", "64"]
    files = ["--corpus", str(corpus), "--model", str(model)]
    return segment_chinese.main(["train", "--device", "cpu", *small, *files, *options])


def segment(model, *text):
    return segment_chinese.main(["segment", "--model", str(model), "--device", "cpu", *text])


# ---- words and tags


@pytest.mark.parametrize("sentence", SENTENCES)
def test_words_survive_tagging(sentence):
    words = sentence.split()
    tags = chinese_corpus.tags_of(words)
    assert len(tags) == len("".join(words))
    assert chinese_corpus.words_of("".join(words), tags) == words


def test_tags():
    assert chinese_corpus.tags_of(["他", "来到", "天安门", "同志们好"]) == "SBEBMEBMME"
    assert chinese_corpus.words_of("", "") == []


def test_no_tags_lose_a_character():
    for tags in itertools.product("BMES", repeat=4):
        assert "".join(chinese_corpus.words_of("天安门前", "".join(tags))) == "天安门前"


def test_clauses():
    assert chinese_corpus.clauses("来了！他说：好。再见") == ["来了！", "他说：好。", "再见"]
    assert chinese_corpus.clauses("。。好") == ["。", "。", "好"]
    assert chinese_corpus.clauses("") == []


def test_parse():
    assert list(chinese_corpus.parse(["北/b 京/e 好/s\n", "\n"])) == [("北京好", "BES")]
    for line in ("北京", "北/x", "北京/b", "北//b"):
        with pytest.raises(chinese_corpus.CorpusError, match=r"line 1: .*北"):
            list(chinese_corpus.parse([line]))


def test_split_keeps_every_clause_and_puts_a_repeated_text_on_one_side():
    paragraphs = [
        chinese_corpus.Sentence(f"好。{i % 70}", "SS" + "S" * len(str(i % 70))) for i in range(140)
    ]
    train_set, held_out = chinese_corpus.split(paragraphs)
    assert len(train_set) + len(held_out) == 2 * len(paragraphs)
    numbers = [{s.text for s in side if s.text != "好。"} for side in (train_set, held_out)]
    assert numbers[1] and not numbers[0] & numbers[1]


# ---- score


def test_score_by_hand():
    # True: 他|来到|北京|天安门 ; found: 他|来|到|北京|天安|门. Right: 他, 北京: 2 of 6, 2 of 4.
    result = chinese_corpus.score([("SBEBEBME", "SSSBEBES")])
    assert result.precision == pytest.approx(2 / 6)
    assert result.recall == pytest.approx(2 / 4)
    assert result.f1 == pytest.approx(0.4)


def test_score_counts_over_all_texts():
    assert chinese_corpus.score([("BE", "BE"), ("S", "S")]) == (1, 1)
    assert chinese_corpus.score([("BE", "SS"), ("SS", "SS")]) == (2 / 4, 2 / 3)
    assert chinese_corpus.score([("BE", "SS")]).f1 == 0


# ---- vocabulary, batches, decoding


def test_vocabulary():
    vocabulary = segmenter.Vocabulary.of(["北京北京", "南京"])
    assert vocabulary.characters == "京北"
    encoded = vocabulary.encode("北京南", "BES")
    assert encoded.characters.tolist() == [3, 2, segmenter.UNKNOWN]
    known = encoded.bigrams > 0  # edge-北 occurs once, 北京 twice, 京南 and 南-edge never
    assert known.tolist() == [False, True, False, False]
    assert encoded.tags.tolist() == [0, 2, 3]
    assert vocabulary.encode("好").bigrams.tolist() == [0, 0]


@pytest.mark.parametrize("seed", [None, 0])
def test_every_text_is_in_one_batch_of_bounded_size(seed):
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    lengths = [7, 1, 30, 7, 2, 100, 5, 6, 7, 1]
    batches = segmenter.bucket(lengths, 32, generator)
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
    for batch in batches:  # a text longer than a batch may be stands alone
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 32


def test_best_path_is_the_best_of_all_valid_ones():
    lengths = torch.tensor([4, 1, 3])
    scores = torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(0))
    found = segmenter.best_path(scores, lengths)
    for text, length in enumerate(lengths.tolist()):
        valid = {
            chinese_corpus.tags_of("x" * size for size in sizes)
            for count in range(1, length + 1)
            for sizes in itertools.product(range(1, length + 1), repeat=count)
            if sum(sizes) == length
        }
        paths = [[segmenter.TAGS.index(tag) for tag in tags] for tags in valid]
        best = max(paths, key=lambda p: sum(scores[t, text, tag] for t, tag in enumerate(p)))
        assert found[:length, text].tolist() == best


# ---- the commands


@pytest.mark.parametrize("cell", segmenter.CELLS)
def test_train_save_load_segment(cell, corpus, tmp_path, capsys):
    model = tmp_path / "deep" / "model.pt"
    assert train(corpus, model, "--cell", cell, "--epochs", "10", "--learning-rate", "0.02") == 0
    report = capsys.readouterr().out
    assert "losses of the first 50 batches" in report and "times as fast" in report
    assert model.with_suffix(".png").read_bytes().startswith(b"\x89PNG")

    assert segment(model, "他来到北京天安门。", "我们 在北京") == 0
    assert capsys.readouterr().out == "他 来到 北京 天安门 。\n我们 在 北京\n"


def test_a_seed_repeats(corpus, tmp_path):
    weights = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        options = ("--epochs", "1", "--compare-batches", "0", "--seed", seed)
        assert train(corpus, tmp_path / name, *options) == 0
        weights.append(torch.load(tmp_path / name, weights_only=True)["weights"])
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not torch.equal(weights[0]["tagger.output.weight"], weights[2]["tagger.output.weight"])


def test_losses_that_differ_fail(corpus, tmp_path, monkeypatch, capsys):
    class Other(segmenter.TorchBiRNN):
        def forward(self, input, *, lengths):
            return 1.1 * super().forward(input, lengths=lengths)

    monkeypatch.setattr(segment_chinese, "TorchBiRNN", Other)
    assert train(corpus, tmp_path / "model", "--epochs", "1") == 1
    assert "MORE THAN" in capsys.readouterr().out


def test_standard_input(corpus, tmp_path, monkeypatch, capsys):
    train(corpus, tmp_path / "model", "--epochs", "1", "--compare-batches", "0")
    capsys.readouterr()

    monkeypatch.setattr(sys, "stdin", io.StringIO("他来到北京\n\n 2024 好?\n"))
    assert segment(tmp_path / "model", "--separator", "/") == 0
    lines = capsys.readouterr().out.split("\n")
    kept = ["".join(line.split("/")) for line in lines]
    assert kept == ["他来到北京", "", "2024好?", ""]

    for nothing in ("", "\n  \n"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(nothing))
        assert segment(tmp_path / "model") == segment_chinese.REFUSED
        assert "the text is empty" in capsys.readouterr().err
    assert segment(tmp_path / "model", "") == segment_chinese.REFUSED


def test_unreadable_models(tmp_path, capsys):
    assert segment(tmp_path / "absent.pt", "好") == segment_chinese.REFUSED
    assert "there is no model" in capsys.readouterr().err

    (tmp_path / "text.pt").write_text("not a model")
    assert segment(tmp_path / "text.pt", "好") == segment_chinese.REFUSED
    assert "cannot read the model" in capsys.readouterr().err

    (tmp_path / "empty.pt").touch()
    assert segment(tmp_path / "empty.pt", "好") == segment_chinese.REFUSED
    assert "cannot read the model" in capsys.readouterr().err

    torch.save([1, 2], tmp_path / "list.pt")
    assert segment(tmp_path / "list.pt", "好") == segment_chinese.REFUSED
    assert "not a model" in capsys.readouterr().err

    torch.save(argparse.Namespace(), tmp_path / "object.pt")  # what weights_only refuses
    assert segment(tmp_path / "object.pt", "好") == segment_chinese.REFUSED
    assert "cannot read the model" in capsys.readouterr().err


def test_unreadable_corpora(tmp_path, capsys):
    assert train(tmp_path / "absent", tmp_path / "model") == segment_chinese.REFUSED
    assert "No such file" in capsys.readouterr().err

    (tmp_path / "text").write_text("not an archive")
    other = write_archive(tmp_path / "other", "", "other.txt")
    for path in (tmp_path / "text", other):
        assert train(path, tmp_path / "model") == segment_chinese.REFUSED
        assert "is not the source archive" in capsys.readouterr().err

    small = write_archive(tmp_path / "small", "好/s")
    assert train(small, tmp_path / "model") == segment_chinese.REFUSED
    assert "too few" in capsys.readouterr().err


def test_a_model_that_cannot_be_saved_is_refused_before_training(corpus, tmp_path, capsys):
    assert train(corpus, tmp_path) == segment_chinese.REFUSED
    assert train(corpus, tmp_path / "model.png") == segment_chinese.REFUSED
    (tmp_path / "file").touch()
    assert train(corpus, tmp_path / "file" / "model.pt") == segment_chinese.REFUSED
    assert capsys.readouterr().err.count("error: ") == 3


def test_download_errors_say_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(chinese_corpus, "FOLDER", tmp_path)
    monkeypatch.setattr(chinese_corpus.sys, "executable", "false")  # for pip without a network
    monkeypatch.setattr(segment_chinese, "MODEL", tmp_path / "model")
    assert segment_chinese.main(["train"]) == segment_chinese.REFUSED
    message = capsys.readouterr().err
    assert "cannot download the corpus" in message and f"into {tmp_path}" in message

    (tmp_path / chinese_corpus.ARCHIVE).write_text("half of it")
    assert segment_chinese.main(["train"]) == segment_chinese.REFUSED
    assert "wrong SHA-256" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["cut"],
        ["train", "--unknown"],
        ["train", "--cell", "rnn"],
        ["train", "--epochs", "0"],
        ["train", "--hidden-size", "many"],
        ["train", "--dropout", "1"],
        ["train", "--learning-rate", "nan"],
        ["train", "--seed", "-1"],
        ["train", "--device", "abacus"],
        ["train", "text"],
    ],
)
def test_bad_options(arguments, capsys):
    with pytest.raises(SystemExit) as refused:
        segment_chinese.main(arguments)
    assert refused.value.code == segment_chinese.REFUSED
    assert "error: " in capsys.readouterr().err


def test_help(capsys):
    for arguments in (["--help"], ["train", "--help"], ["segment", "--help"]):
        with pytest.raises(SystemExit) as done:
            segment_chinese.main(arguments)
        assert done.value.code == 0
        assert "usage: " in capsys.readouterr().out
