"""Text as users bring it: either a corpus whose two sides share nothing, or an error that names the file."""

import json
import os
import random
import shutil
import socket
import subprocess
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

from hybridlib.study.parameters import ROOT
from hybridlib.study.run import Source
from hybridlib.training import corpus, text_files, tokenizer
from hybridlib.training.corpus import Corpus, CorpusError, load_corpus, split
from hybridlib.training.text_files import read_texts, shown

COMMITTED = {json.loads(f.read_text())["corpus_sha256"] for f in ROOT.glob("outputs/cpu/runs/*-text-*/run.json")}
SMOKE = "371447d07a80b005fd65daff635437b8067026ac78b0820bad0e18b40b583841"
THIS_PYTHON = pytest.mark.skipif(sys.version_info[:3] != (3, 11, 7), reason="the committed corpus is the library of Python 3.11.7")


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
    return split(read_texts(list(paths)), pct)


@THIS_PYTHON
def test_the_standard_library_gives_the_corpus_that_runs_were_trained_on() -> None:
    assert {load_corpus(Source(kind="text", tokenizer_vocab=1024), 1024).sha256} == COMMITTED
    assert load_corpus(Source(kind="text", tokenizer_vocab=512, max_mb=2.0), 512).sha256 == SMOKE


@pytest.mark.parametrize("files", [8, 60])
def test_one_content_is_on_one_side_whatever_it_is_called(folder: Path, files: int) -> None:
    for i in range(files):
        for copy in range(4):
            (folder / f"{i}-{copy}.txt").write_text(prose(i))
    with pytest.warns(UserWarning, match=f"same text as another: {3 * files} "):
        train, held_out = sides(folder)
    assert train and held_out and not set(train) & set(held_out) and len(train) + len(held_out) == 4 * files


def test_equal_blocks_of_a_few_files_are_one_content(folder: Path) -> None:
    blocks = [prose(i, 30_000)[: 1 << 16] for i in range(6)]
    for name in "abcd":
        (folder / name).write_text("".join(random.Random(name).sample(blocks, 6)) + name)
    train, held_out = sides(folder)
    assert train and held_out and not set(train) & set(held_out)


def test_a_file_reached_twice_is_read_once(folder: Path) -> None:
    for i in range(45):
        (folder / f"{i}.txt").write_text(prose(i))
    (folder / "below").mkdir()
    (folder / "below" / "deep.txt").write_text(prose(99))
    (folder / "link.txt").symlink_to("0.txt")
    (folder / "again").symlink_to("below")
    (folder / "round").symlink_to(folder)
    (folder / "up").symlink_to("..")
    os.link(folder / "1.txt", folder / "hard.txt")
    with pytest.warns(UserWarning, match="reached twice, read once: "):
        texts = read_texts([folder, folder / "below", folder / "3.txt"])
    assert sorted(text for _, text in texts) == sorted([prose(i) for i in range(45)] + [prose(99)])


def test_a_link_to_a_folder_is_the_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text(prose(1))
    (folder / "there").symlink_to("../elsewhere")
    assert read_texts([folder]) == [("there/a.txt", prose(1))]
    assert read_texts([folder / "there"]) == [("a.txt", prose(1))]


@pytest.mark.parametrize("chars", [3_000, 30_000, 65_535, 65_537, 66_000, 131_080, 300_000])
def test_both_sides_of_one_file_get_enough_text(folder: Path, chars: int) -> None:
    (folder / "one.txt").write_text(prose(0, chars)[:chars])
    load(folder / "one.txt").require(100)


def test_advice_for_too_little_text_is_true(folder: Path) -> None:
    (folder / "one.txt").write_text(prose(0, 300))
    with pytest.raises(CorpusError, match=r"held-out part has \d+ of its \d+ tokens, a window needs 129") as error:
        load(folder / "one.txt").require(129)
    times, seq_len = (int(str(error.value).split(words)[1].split()[0]) for words in ("helps is about ", "seq_len of at most "))
    load(folder / "one.txt").require(seq_len + 1)
    (folder / "one.txt").write_text(prose(0, 300 * times))
    load(folder / "one.txt").require(129)


@pytest.mark.parametrize("character", ["a", "é", "字", "🙂"])
def test_one_large_file_is_cut_at_max_mb(folder: Path, character: str) -> None:
    (folder / "large.txt").write_text("x" + character * 400_000)
    ((_, text),) = read_texts([folder], max_mb=0.2)
    assert 200_000 - 4 < len(text.encode()) <= 200_000 and text == "x" + character * (len(text) - 1)


def test_many_small_files_stay_whole(folder: Path) -> None:
    for i in range(50):
        (folder / f"{i}.txt").write_text(f"{i:900}")
    texts = read_texts([folder], max_mb=0.01)
    assert len(texts) == 12 and {len(text) for _, text in texts} == {900}


def special(path: Path, kind: str) -> None:
    match kind:
        case "FIFO":
            os.mkfifo(path)
        case "socket":
            here = os.open(".", os.O_RDONLY)
            os.chdir(path.parent)  # a socket's path must be short
            try:
                socket.socket(socket.AF_UNIX).bind(path.name)
            finally:
                os.fchdir(here)
                os.close(here)
        case "broken link":
            path.symlink_to("nowhere")
        case "circle":
            path.symlink_to(path.name)


@pytest.mark.parametrize("kind", ["FIFO", "socket", "broken link", "circle"])
def test_what_is_no_file_is_left_out_in_words_or_refused_by_name(folder: Path, kind: str) -> None:
    (folder / "sound.txt").write_text(prose(0))
    special(folder / "odd", kind)
    with pytest.warns(UserWarning, match=f"left out as {kind.replace('circle', 'broken link')}: 1 .first .*odd"):
        assert read_texts([folder]) == [("sound.txt", prose(0))]
    with pytest.raises(CorpusError, match="odd: "):
        read_texts([folder / "odd"])


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "/dev/tty", "a\0b", "x" * 300, "\ud800", "", "/proc/self/mem"])
def test_a_path_that_is_no_text_is_refused(path: str, folder: Path) -> None:
    with pytest.raises(CorpusError):
        read_texts([folder / path])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("häßlich".encode("latin-1"), r"byte 1 \(0xE4\) is not UTF-8; it seems to be Latin-1"),
        ("hello".encode("utf-16"), r"byte 0 \(0xFF\) is not UTF-8; it seems to be UTF-16"),
        ("hello".encode("utf-16-le"), "holds zero bytes, so it is not text; it seems to be UTF-16"),
        ("hello".encode("utf-32"), "it seems to be UTF-32"),
        (b"\xef\xbb\xbfab\xff", r"byte 5 \(0xFF\)"),
        (b"long text and\0", "holds zero bytes"),
        (b"cut \xe5\xad", "byte 4"),
        (b"\xef\xbb\xbf", "no text in it"),
        (b" \n\r\n", "no text in it"),
    ],
)
def test_what_is_not_utf_8_is_named_with_what_it_may_be(folder: Path, data: bytes, message: str) -> None:
    (folder / "odd.txt").write_bytes(data)
    with pytest.raises(CorpusError, match=message) as error:
        read_texts([folder / "odd.txt"])
    assert str(folder / "odd.txt") in str(error.value)


def test_a_mark_is_no_text_and_line_ends_are_kept(folder: Path) -> None:
    (folder / "a.txt").write_bytes("\ufeffone\r\ntwo\rthree\n".encode())
    assert read_texts([folder]) == [("a.txt", "one\r\ntwo\rthree\n")]


def test_a_name_that_is_not_utf_8_can_be_used_and_printed(folder: Path) -> None:
    name = os.fsdecode(b"caf\xe9 \x1b[1m.txt")
    (folder / name).write_text(prose(0))
    assert read_texts([folder]) == [(name, prose(0))]
    (folder / name).write_bytes(b"\xff")
    work = "import sys; from hybridlib.training.text_files import *\ntry: read_texts([Path(sys.argv[1])])\nexcept CorpusError as e: print(e)"
    for mode in ({}, dict(PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")):
        said = subprocess.run([sys.executable, "-c", work, folder], env=os.environ | mode | dict(LC_ALL="C"), capture_output=True, cwd=ROOT)
        assert b"caf\\xe9 \\x1b[1m.txt: byte 0 (0xFF)" in said.stdout and not said.stderr


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_may_not_be_read_is_named(what: str) -> None:
    base = Path(tempfile.mkdtemp())
    try:
        base.chmod(0o755)
        (base / "inner").mkdir()
        (base / "inner" / "mine.txt").write_text(prose(0))
        (locked := base / "inner" / "mine.txt" if what == "file" else base / "inner").chmod(0)
        if (child := os.fork()) == 0:
            if os.getuid() == 0:
                os.setuid(65534)  # root may read everything
            try:
                read_texts([base])
            except CorpusError as error:
                os._exit(0 if f"{shown(locked)}: can't be read: Permission denied" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        (base / "inner").chmod(0o755)
        shutil.rmtree(base)


def test_a_file_that_vanishes_or_becomes_a_pipe_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = text_files.files_below
    for change, said in ((Path.unlink, "No such file"), (lambda p: (p.unlink(), os.mkfifo(p)), "FIFO"), (lambda p: (p.unlink(), p.mkdir()), "directory|folder")):
        shutil.rmtree(folder)
        folder.mkdir()
        for i in range(3):
            (folder / f"{i}.txt").write_text(prose(i))
        found = listing(str(folder), True, {})
        change(folder / "1.txt")
        monkeypatch.setattr(text_files, "files_below", lambda *_: found)
        with pytest.raises(CorpusError, match=rf"1\.txt: .*({said})"):
            read_texts([folder])


mixes = st.lists(
    st.tuples(
        st.sampled_from(["text", "text", "text", "bytes", "copy", "link", "folder link", "broken"]),
        st.integers(0, 3),
        st.one_of(st.text(max_size=30), st.sampled_from(["", "字" * 300, "ab" * 500, prose(1, 2000), prose(2, 20_000)])),
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
            train, held_out = split(texts, pct)
            assert not (set(train) & set(held_out)) - {""}
            assert sum(map(len, train + held_out)) == sum(len(text) for _, text in texts)
            if max(len(text) for _, text in texts) > 12:
                assert any(train) and any(held_out)
        except CorpusError as error:
            assert place in str(error)


def test_words_shorter_than_the_longest_are_cut_nowhere_else() -> None:
    """The library's own word pattern gives the same tokens, in one piece; and so do parts of a text."""
    draw = random.Random(0)
    text = "".join(draw.choices(["don't", "字字", " ", "  \n", "été", "12", "_", "²", "--", "'s", "e\u0301", "\u3000", "🙂", "a" * 9], k=40_000))
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
