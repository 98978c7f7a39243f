"""Sources: batches as pure functions, the chain's entropy rate, the corpus's split, and clear errors."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from hybridlib.study.run import Source
from hybridlib.training import corpus
from hybridlib.training.corpus import CorpusError, load_corpus, tokenise, train_tokenizer
from hybridlib.training.data import Markov, Uniform, open_source


@pytest.fixture
def text_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(corpus, "CACHE", tmp_path / "cache")
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(60):
        (folder / f"{i}.txt").write_text(" ".join(f"word{i % 7} and{j * i % 11}" for j in range(120)))
    return folder


def sources(folder: Path) -> list[Source]:
    text = Source(kind="text", tokenizer_vocab=300, paths=[str(folder)], held_out_pct=20.0)
    return [Source(kind="uniform"), Source(kind="markov"), text]


def test_a_batch_is_a_pure_function_of_seed_and_step(text_folder: Path) -> None:
    for source in sources(text_folder):
        one, other = (open_source(source, 300, 4, 16) for _ in range(2))
        other.batch(7, 99)
        for part, same in zip(one.batch(5, 3), other.batch(5, 3)):
            assert part.shape == (4, 16) and part.dtype == torch.int64 and torch.equal(part, same)
        assert not torch.equal(one.batch(5, 3)[0], one.batch(5, 4)[0])
        assert not torch.equal(one.batch(5, 3)[0], one.batch(6, 3)[0])
        assert one.sha256 == other.sha256


def test_targets_are_the_inputs_moved_by_one(text_folder: Path) -> None:
    for source in sources(text_folder):
        tokens, targets = open_source(source, 300, 4, 16).batch(0, 0)
        assert torch.equal(tokens[:, 1:], targets[:, :-1]) and targets.max() < 300


def test_markov_entropy_rate_matches_its_own_samples() -> None:
    chain = Markov(vocab_size=50, successors=4, batch_size=64, seq_len=256)
    pairs = Counter()
    for step in range(8):
        tokens, targets = chain.batch(0, step)
        pairs.update(zip(tokens.flatten().tolist(), targets.flatten().tolist()))
    totals = Counter()
    for (before, _), n in pairs.items():
        totals[before] += n
    empirical = -sum(n * math.log(n / totals[before]) for (before, _), n in pairs.items()) / sum(pairs.values())
    assert empirical == pytest.approx(chain.floor_nats, abs=0.02)
    assert all(len(set(row)) == 4 for row in chain.successors)


def test_uniform_floor_is_log_vocab() -> None:
    assert Uniform(1024, 1, 8).floor_nats == pytest.approx(math.log(1024))


def test_held_out_text_is_never_trained_on() -> None:
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    train, held_out = tokenise([(f"{c}.txt", c * 100) for c in letters], vocab=256, held_out_pct=20.0)
    assert not set(train) & set(held_out)
    assert len(train) + len(held_out) == 100 * len(letters)
    assert 100 <= len(held_out) < len(train)


@pytest.mark.parametrize("pct", [5.0, 20.0, 60.0])
def test_the_share_that_is_held_out_is_the_one_asked_for(pct: float) -> None:
    texts = [(f"{i}.txt", f"text {i}") for i in range(4000)]
    _, held_out = corpus.two_sides(texts, pct)
    assert len(held_out) / len(texts) == pytest.approx(pct / 100, abs=0.02)  # three standard deviations at most


def test_the_tokenizer_gives_back_every_byte(text_folder: Path) -> None:
    text = "def f(x):\n\treturn 'αβ≤≥σ ' + x  # 🙂\n"
    tokenizer = train_tokenizer([text * 20], 300)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_cache_gives_what_was_put_in_and_follows_the_text(text_folder: Path) -> None:
    source = sources(text_folder)[2]
    first, again = load_corpus(source, 300), load_corpus(source, 300)
    assert first.sha256 == again.sha256 and np.array_equal(first.train, again.train)
    (text_folder / "0.txt").write_text("something else entirely, " * 40)
    assert load_corpus(source, 300).sha256 != first.sha256


@pytest.mark.parametrize(
    "content, message",
    [(None, "no such file"), (b"", "no text"), (b"\xff\xfe\x00a", "not UTF-8"), (b"a\0b" * 9, "zero bytes")],
)
def test_text_that_cannot_be_used_is_refused_by_name(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "mine.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CorpusError, match=message) as error:
        load_corpus(Source(kind="text", tokenizer_vocab=300, paths=[str(file)]), 300)
    assert str(file) in str(error.value)


def test_too_little_text_says_how_much_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "CACHE", tmp_path / "cache")
    (tmp_path / "short.txt").write_text("hello")
    with pytest.raises(CorpusError, match="a window needs 17"):
        open_source(Source(kind="text", tokenizer_vocab=300, paths=[str(tmp_path / "short.txt")]), 300, 4, 16)


@pytest.mark.parametrize("successors", [90, 91, 512])
def test_a_chain_of_many_successors_is_drawn_at_once(successors: int) -> None:
    chain = Markov(1024, successors, 2, 8)
    rows = np.sort(chain.successors, axis=1)
    assert rows.shape == (1024, successors) and (np.diff(rows, axis=1) > 0).all() and rows.max() < 1024
