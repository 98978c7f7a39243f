"""The cache of corpora: damage is found and repaired, a full disk is reported, kills do no harm."""

import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hybridlib.study.parameters import ROOT
from hybridlib.study.run import Source
from hybridlib.study.storage import StorageError
from hybridlib.training import corpus
from hybridlib.training.corpus import Corpus, load_corpus

CHILD = """
import os, sys, time
from pathlib import Path
from hybridlib.study.run import Source
from hybridlib.training import corpus, tokenizer
corpus.CACHE = Path(sys.argv[2])
if sys.argv[3] == "slow":
    os.fsync = lambda file: time.sleep(60)
print(corpus.load_corpus(Source(kind="text", tokenizer_vocab=300, paths=[sys.argv[1]]), 300).sha256)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(corpus, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(" ".join(f"w{n}" for n in random.Random(0).choices(range(900), k=40_000)))
    return tmp_path / "text.txt"


def load(text: Path) -> Corpus:
    return load_corpus(Source(kind="text", tokenizer_vocab=300, paths=[str(text)]), 300)


def child(text: Path, cache: Path, pace: str = "") -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, text, cache, pace], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def folder_in_place(file: Path) -> None:
    file.unlink()
    file.mkdir()
    (file / "x").write_text("x")


def another(file: Path) -> None:
    with np.load(file) as saved:
        content = dict(saved)
    np.savez(file, **content | dict(key=np.array("another text")))


def link_to_nothing(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": lambda file: os.truncate(file, 5000),
    "empty": lambda file: os.truncate(file, 0),
    "noise": lambda file: file.write_bytes(random.Random(0).randbytes(9000)),
    "a bit": flip,
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "longer": lambda file: file.write_bytes(file.read_bytes()[:-30] + bytes(200_000)),
    "a pickle": lambda file: np.zeros(9).dump(file),
    "objects": lambda file: np.savez(file, train=np.array([{}], object), held_out=1, key="", sha256=""),
    "another corpus": another,
    "no streams": lambda file: np.savez(file, x=1),
    "a folder": folder_in_place,
    "a link to nothing": link_to_nothing,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_said_and_the_corpus_made_again(text: Path, cache: Path, kind: str) -> None:
    first = load(text)
    (file,) = cache.iterdir()
    DAMAGE[kind](file)
    with pytest.warns(UserWarning, match=f"{file.name}: this cached corpus is damaged"):
        again = load(text)
    assert again.sha256 == first.sha256 and list(cache.iterdir()) == [file] and file.is_file()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load(text)
    assert np.array_equal(found.train, first.train) and np.array_equal(found.held_out, first.held_out)


def test_a_sound_cache_is_used(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(text)
    monkeypatch.setattr(corpus, "tokenise", None)
    assert load(text).sha256 == first.sha256


def test_a_full_disk_is_said_and_leaves_nothing(text: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            StorageError, match=r"cache/.*npz: [\d,]+ bytes could not be written: No space left on device"
        ):
            load(text)
    assert not list(cache.iterdir())
    cache.rmdir()
    cache.write_text("a file, where a folder should be")
    with pytest.raises(StorageError, match="bytes could not be written"):
        load(text)


def test_two_first_starts_at_once_both_get_the_corpus(text: Path, cache: Path) -> None:
    starts = [child(text, cache) for _ in range(2)]
    said = {start.communicate()[0] for start in starts}
    assert said == {load(text).sha256 + "\n"} and not any(start.returncode for start in starts)
    assert [path.suffix for path in cache.iterdir()] == [".npz"]


def test_a_kill_while_writing_leaves_nothing_to_trip_over(text: Path, cache: Path, tmp_path: Path) -> None:
    for n in range(10):
        killed = child(text, cache, "slow")
        while len(list(cache.glob("*.part"))) <= n:
            assert killed.poll() is None
            time.sleep(0.01)
        time.sleep(0.002 * n)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        assert not list(cache.glob("*.npz"))
    parts = list(cache.glob("*.part"))
    for part in parts[1:]:
        os.utime(part, (0, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(text).sha256 == load(text).sha256
    assert sorted(path.suffix for path in cache.iterdir()) == [".npz", ".part"], (
        "a young part may be at work, old ones go"
    )
