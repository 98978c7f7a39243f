"""Files as users have them: each is read once as UTF-8, or refused by name, or said to be left out."""

import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hybridlib.study.parameters import ROOT
from hybridlib.training import text_files
from hybridlib.training.text_files import CorpusError, read_texts, shown


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    return tmp_path / "text"


def prose(seed: int, words: int = 400) -> str:
    return " ".join(f"w{word}" for word in random.Random(seed).choices(range(900), k=words))


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
                with socket.socket(socket.AF_UNIX) as bound:
                    bound.bind(path.name)
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


@pytest.mark.parametrize(
    "path", ["/dev/null", "/dev/zero", "/dev/tty", "a\0b", "x" * 300, "\ud800", "", "/proc/self/mem"]
)
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
    work = (
        "from hybridlib.training.text_files import *; import sys\n"
        "try: read_texts([Path(sys.argv[1])])\nexcept CorpusError as e: print(e)"
    )
    for mode in ({}, dict(PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")):
        plain = os.environ | mode | dict(LC_ALL="C")
        said = subprocess.run([sys.executable, "-c", work, folder], env=plain, capture_output=True, cwd=ROOT)
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
    becomes = {
        "No such file": lambda path: None,
        "FIFO": os.mkfifo,
        "directory|folder": os.mkdir,
    }
    for said, become in becomes.items():
        shutil.rmtree(folder)
        folder.mkdir()
        for i in range(3):
            (folder / f"{i}.txt").write_text(prose(i))
        found = listing(str(folder), True, {})
        (folder / "1.txt").unlink()
        become(folder / "1.txt")
        monkeypatch.setattr(text_files, "files_below", lambda *_: found)
        with pytest.raises(CorpusError, match=rf"1\.txt: .*({said})"):
            read_texts([folder])
