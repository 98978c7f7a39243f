"""Text from the files and folders of users: each file is read once as UTF-8, refused by name, or named as left out."""

import codecs
import hashlib
import os
import stat
import sysconfig
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hybridlib.study.run import SKIPPED

STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))
Notes = dict[str, list[str]]  # remarks for the user, each with the files that it holds for


class CorpusError(ValueError):
    """Text cannot be used; the message names the file and says what would be right."""


def read_texts(
    paths: list[Path], max_mb: float | None = None, say: Callable[[str], None] = lambda doing: None
) -> list[tuple[str, str]]:
    """Return (name, text) of every file below `paths`, in an order that depends on names alone, up to `max_mb` MB.

    The file that reaches `max_mb` is cut there if it goes beyond by more than a tenth. A file that several paths or
    links lead to is read once. A byte order mark is not text. `say` gets the progress. Without paths, the text is the
    standard library's source, without the few files that are deliberately not UTF-8. Raises `CorpusError` for a path
    that is missing, unreadable, empty or not UTF-8 text.
    """
    own, notes = bool(paths), defaultdict(list)
    files = [file for base in paths or [STANDARD_LIBRARY] for file in files_below(os.fspath(base), own, notes)]
    texts, size, limit = [], 0, float("inf") if max_mb is None else max_mb * 1e6
    seen_files, seen_texts = set(), {}
    for path, name in sorted(files, key=lambda file: digest(file[1])):
        with in_words(path), open(path, "rb", opener=_at_once) as file:
            about = os.fstat(file.fileno())
            _require_file(path, about.st_mode)
            if own and (about.st_dev, about.st_ino) in seen_files:
                notes["reached twice, read once"].append(path)
                continue
            seen_files.add((about.st_dev, about.st_ino))
            whole = about.st_size <= limit - size + limit / 10
            data = file.read() if whole else file.read(max(1, int(limit - size)))
        text = decode_own(path, data, whole) if own else decode_standard(data, whole)
        if text is None:
            continue
        if own and text:  # a copy may have other line ends, and is then taken for the first
            same = digest(text.replace("\r\n", "\n").strip())
            if same in seen_texts:
                notes["with the same text as another"].append(path)
            text = seen_texts.setdefault(same, text)
        texts.append((name, text))
        size += len(data)
        say(f"reading, {len(texts):,} of {len(files):,} files")
        if size >= limit:
            break
    origin = ", ".join(map(shown, paths))
    if own and not any(text and not text.isspace() for _, text in texts):
        raise CorpusError(f"{origin}: no text in it: give UTF-8 files or a folder of them")
    if own and notes:
        said = (f"{what}: {len(which):,} (first {shown(min(which))})" for what, which in sorted(notes.items()))
        warnings.warn(f"{origin}: of its files, {'; '.join(said)}", stacklevel=2)
    return texts


def files_below(base: str, own: bool, notes: Notes) -> list[tuple[str, str]]:
    """Return (path, name) of the file `base`, or of the files in the folder `base` and below.

    Hidden files, caches and installed packages are left out, and of the standard library (not `own`) all but Python
    files. Links to folders are followed if the files are the user's `own`, each folder once. `notes` gets the rest.
    """
    try:
        with in_words(base):
            about = os.stat(base)
    except ValueError as error:  # CorpusError is one; so is what a path with a zero byte raises
        if os.path.lexists(base) or isinstance(error.__cause__, PermissionError):
            raise
        raise CorpusError(
            f"{shown(base)}: no such file or folder: paths must name UTF-8 text files or folders of them"
        ) from None
    if not stat.S_ISDIR(about.st_mode):
        _require_file(base, about.st_mode)
        return [(base, os.path.basename(base))]
    files, folders, links, seen = [], [""], [], set()
    while folders or links:
        under = folders.pop() if folders else links.pop(0)  # links last: a folder's own name has precedence
        folder = os.path.join(base, under)
        with in_words(folder):
            about = os.stat(folder)
            if (about.st_dev, about.st_ino) in seen:
                continue
            seen.add((about.st_dev, about.st_ino))
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        for entry in entries:
            name = os.path.join(under, entry.name)
            if entry.name in SKIPPED or entry.name.startswith("."):
                continue
            with in_words(entry.path):
                kind = _kind(entry)
            if kind == "file":
                if own or name.endswith(".py"):
                    files.append((entry.path, name))
            elif kind == "folder":
                folders.append(name)
            elif kind == "link to a folder" and own and not _leads_back(entry.path, folder):
                links.append(name)
            else:
                notes[f"left out as {kind}"].append(entry.path)
    return files


def decode_standard(data: bytes, whole: bool) -> str | None:
    """Return the text of `data`, None if it is not UTF-8; if not `whole`, a character that is cut in two is dropped."""
    try:
        return codecs.utf_8_decode(data, "strict", whole)[0]
    except UnicodeDecodeError:
        return None


def decode_own(path: str, data: bytes, whole: bool) -> str:
    """Return the text of `data`, which a user's file `path` holds; if not `whole`, a character cut in two is dropped.

    Raises `CorpusError`.
    """
    start = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    try:
        text = codecs.utf_8_decode(memoryview(data)[start:], "strict", whole)[0]
    except UnicodeDecodeError as error:
        at = start + error.start
        raise CorpusError(
            f"{shown(path)}: byte {at} (0x{data[at]:02X}) is not UTF-8{_seems(data)}: a corpus must be plain UTF-8 text"
        ) from None
    if "\0" in text:
        raise CorpusError(
            f"{shown(path)}: holds zero bytes, so it is not text{_seems(data)}: a corpus must be plain UTF-8 text"
        )
    return text


def _seems(data: bytes) -> str:
    """Return what a file that is not UTF-8 seems to be, judged by its bytes."""
    start = data[:4096]
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "; it seems to be UTF-32"
    zeros = max(start[::2].count(0), start[1::2].count(0))  # in Latin text every other byte is one
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or zeros > len(start) / 4:
        return "; it seems to be UTF-16"
    if not any(byte < 32 and byte not in b"\t\n\r\f\v" for byte in start):
        return "; it seems to be Latin-1 or another encoding of one byte a character"
    return ""


def _kind(entry: os.DirEntry) -> str:
    try:
        mode = os.stat(entry.path).st_mode if entry.is_symlink() else entry.stat().st_mode
    except FileNotFoundError:
        return "broken link" if entry.is_symlink() else "gone meanwhile"
    except OSError as error:
        if entry.is_symlink() and not isinstance(error, PermissionError):
            return "broken link"  # links in a circle are
        raise
    if stat.S_ISDIR(mode):
        return "link to a folder" if entry.is_symlink() else "folder"
    return "file" if stat.S_ISREG(mode) else _special(mode)


def _special(mode: int) -> str:
    names = {stat.S_IFDIR: "folder", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
    return names.get(stat.S_IFMT(mode), "device")


def _require_file(path: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise CorpusError(
            f"{shown(path)}: is a {_special(mode)}, not a file: paths must name UTF-8 text files or folders of them"
        )


def _leads_back(link: str, folder: str) -> bool:
    """Return whether a link's target holds the folder that the link is in, so that following it would not end."""
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(link))


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a FIFO that took a file's place would block


@contextmanager
def in_words(path: str) -> Iterator[None]:
    """Turn the system's error for a file that cannot be read into a `CorpusError` that names `path`."""
    try:
        yield
    except MemoryError:
        raise CorpusError(
            f"{shown(path)}: is too large for this machine's memory: set max_mb, or give less text"
        ) from None
    except OSError as error:
        raise CorpusError(f"{shown(path)}: can't be read: {error.strerror or error}") from error


def shown(path: str | Path) -> str:
    """Return `path` as text that prints anywhere: what is no character, or moves a cursor, becomes an escape."""

    def one(c: str) -> str:
        return f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else ascii(c)[1:-1]

    return "".join(c if c.isprintable() else one(c) for c in str(path))


def digest(name: str) -> str:
    """Return the SHA-256 of `name`, which need not be UTF-8."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
