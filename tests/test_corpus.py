"""Text as users bring it: either a corpus whose two sides share nothing, or an error that names the file."""

import random
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from hybridlib.study.run import Source
from hybridlib.training import corpus, tokenizer
from hybridlib.training.corpus import Activity, Corpus, CorpusError, load_corpus, two_sides
from hybridlib.training.text_files import read_texts

CPU = "3509e49a127eda86f0e04d046e565334f8fca423772cef49a4537553995e5b26"  # of the runs under outputs/cpu
SMOKE = "371447d07a80b005fd65daff635437b8067026ac78b0820bad0e18b40b583841"
THIS_PYTHON = pytest.mark.skipif(
    sys.version_info[:3] != (3, 11, 7), reason="runs were trained on Python 3.11.7's library"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(corpus, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    return tmp_path / "text"


def load(*paths: Path, **settings: Any) -> Corpus:
    return load_corpus(Source(kind="text", tokenizer_vocab=300, paths=[str(path) for path in paths], **settings), 300)


def prose(seed: int, words: int = 400) -> str:
    return " ".join(f"w{word}" for word in random.Random(seed).choices(range(900), k=words))


def sides(*paths: Path, pct: float = 30.0) -> tuple[list[str], list[str]]:
    return two_sides(read_texts(list(paths)), pct)


@THIS_PYTHON
def test_the_standard_library_gives_the_corpus_that_runs_were_trained_on() -> None:
    assert load_corpus(Source(kind="text", tokenizer_vocab=1024), 1024).sha256 == CPU
    assert load_corpus(Source(kind="text", tokenizer_vocab=512, max_mb=2.0), 512).sha256 == SMOKE


@pytest.mark.parametrize("files", [8, 60])
def test_one_content_is_on_one_side_whatever_it_is_called(folder: Path, files: int) -> None:
    for i in range(files):
        for copy in range(4):
            (folder / f"{i}-{copy}.txt").write_text(prose(i))
    with pytest.warns(UserWarning, match=f"same text as another: {3 * files} "):
        train, held_out = sides(folder)
    assert train and held_out and not set(train) & set(held_out) and len(train) + len(held_out) == 4 * files


@pytest.mark.parametrize("chars", [30_000, 200_000])
def test_a_copy_with_other_line_ends_is_the_same_content(folder: Path, chars: int) -> None:
    text = prose(0, chars).replace(". ", ".\n").replace(" ", "\n", 50)
    for name, copy in dict(a=text, b=text.replace("\n", "\r\n"), c=text + "\n", d="\ufeff" + text).items():
        (folder / f"{name}.txt").write_bytes(copy.encode())
    with pytest.warns(UserWarning, match="same text as another: 3 "):
        train, held_out = sides(folder)
    assert (
        train
        and held_out
        and not {" ".join(one.split()) for one in train} & {" ".join(one.split()) for one in held_out}
    )
    assert not any(one.strip() in other for one in held_out for other in train)


def test_equal_blocks_of_a_few_files_are_one_content(folder: Path) -> None:
    blocks = [prose(i, 30_000)[: 1 << 16] for i in range(6)]
    for name in "abcd":
        (folder / name).write_text("".join(random.Random(name).sample(blocks, 6)) + name)
    train, held_out = sides(folder)
    assert train and held_out and not set(train) & set(held_out)


@pytest.mark.parametrize("chars", [3_000, 30_000, 65_535, 65_537, 66_000, 131_080, 300_000])
def test_both_sides_of_one_file_get_enough_text(folder: Path, chars: int) -> None:
    (folder / "one.txt").write_text(prose(0, chars)[:chars])
    load(folder / "one.txt").require(100)


def test_advice_for_too_little_text_is_true(folder: Path) -> None:
    (folder / "one.txt").write_text(prose(0, 300))
    with pytest.raises(CorpusError, match=r"held-out part has \d+ of its \d+ tokens, a window needs 129") as error:
        load(folder / "one.txt").require(129)
    times, seq_len = (
        int(str(error.value).split(words)[1].split()[0]) for words in ("helps is about ", "seq_len of at most ")
    )
    load(folder / "one.txt").require(seq_len + 1)
    (folder / "one.txt").write_text(prose(0, 300 * times))
    load(folder / "one.txt").require(129)


mixes = st.lists(
    st.tuples(
        st.sampled_from(["text", "text", "text", "bytes", "copy", "link", "folder link", "broken"]),
        st.integers(0, 3),
        st.one_of(
            st.text(max_size=30), st.sampled_from(["", "字" * 300, "ab" * 500, prose(1, 2000), prose(2, 20_000)])
        ),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=400, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(mix=mixes, copies=st.sampled_from([1, 1, 1, 8]), pct=st.sampled_from([0.5, 5.0, 50.0, 99.0]))
def test_any_mix_of_files_is_a_corpus_of_two_sides_or_refused_by_name(mix: list, copies: int, pct: float) -> None:
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i, (kind, which, text) in enumerate(mix * copies):
            (Path(place) / f"{which}").mkdir(exist_ok=True)
            path, earlier = Path(place) / f"{which}" / f"{i}-{kind}", sorted(Path(place).rglob("*-text"))
            match kind:
                case "text":
                    path.write_bytes(text.encode("utf-8", "replace"))
                case "bytes":
                    path.write_bytes(text.encode("utf-8", "replace")[::-1])
                case "copy" if earlier:
                    shutil.copy(earlier[-1], path)
                case "link" if earlier:
                    path.symlink_to(earlier[0])
                case "folder link":
                    path.symlink_to(Path(place) / "0")
                case "broken":
                    path.symlink_to("nowhere")
        try:
            texts = read_texts([Path(place), *Path(place).iterdir()])
            train, held_out = two_sides(texts, pct)
            assert not (set(train) & set(held_out)) - {""}
            assert sum(map(len, train + held_out)) == sum(len(text) for _, text in texts)
            if max(len(text) for _, text in texts) > 12:
                assert any(train) and any(held_out)
        except CorpusError as error:
            assert place in str(error)


def test_words_shorter_than_the_longest_are_cut_nowhere_else() -> None:
    """The library's own word pattern gives the same tokens, in one piece; and so do parts of a text."""
    draw = random.Random(0)
    kinds = ["don't", "字字", " ", "  \n", "été", "12", "_", "²", "--", "'s", "e\u0301", "\u3000", "🙂", "a" * 9]
    text = "".join(draw.choices(kinds, k=40_000))
    ours = tokenizer.train_tokenizer([text], 400)
    theirs = tokenizer.train_tokenizer([text], 400)
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert tokenizer.encode(ours, [text], np.uint16).tolist() == theirs.encode(text).ids
    assert "".join(tokenizer.chunks(text)) == text and ours.decode(theirs.encode(text).ids) == text


@pytest.mark.timed
@pytest.mark.parametrize("alphabet", ["ACGT", "".join(map(chr, range(0x4E00, 0x4F00))), " ", "ab c"])
def test_time_grows_in_step_with_the_text(alphabet: str) -> None:
    def seconds(chars: int) -> float:
        text = "".join(random.Random(0).choices(alphabet, k=chars))
        start = time.process_time()
        corpus.tokenise([("a", text)], 500, 5.0)
        return time.process_time() - start

    seconds(10_000)
    assert seconds(800_000) < 6 * seconds(200_000)


def test_only_what_takes_long_is_said(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    with Activity("quick"):
        pass
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(corpus, "PLAIN_EVERY_S", 0.05)
    with Activity("slow [text]") as slow:
        slow.say("tokenising, 7%")
        time.sleep(0.3)
    assert capfd.readouterr().err.startswith("slow [text]: tokenising, 7%, 0 s\n")
