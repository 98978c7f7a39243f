"""Files that are whole or not there, whatever is killed or full, and folders that one process works in at a time."""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

Mark = tuple[int, str]  # a file's length in bytes, and the sha256 of its content so far


PART = re.compile(
    r"\.(\d+)\.part(\.ipynb)?$"
)  # ends the name of what the process of this number has not yet written whole
CHECKPOINTS = "checkpoint.*"  # of a run, and what a kill left of one half written


class StorageError(OSError):
    """A file that could not be written; the message names it, the bytes to be written and the bytes free."""


class InUse(RuntimeError):
    """A folder in which another process works; the message names both."""


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Hold the lock of `folder`, which says that this process is `doing` something there; a dead process holds none.

    Raise `InUse` while another process holds it, and `StorageError`.
    """
    file = folder / ".lock"
    with writing(file):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            holder = " ".join(file.read_text(encoding="utf-8", errors="replace").split())
            holder = holder or "a process that has just started"
            raise InUse(f"{folder} is in use: {holder}") from None
    try:
        with writing(file):
            if not isinstance(lock, SoftFileLock):  # on a disk that has no flock: the file says then who is alive
                said = f"process {os.getpid()} {doing} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
                file.write_text(said, encoding="utf-8")
            remove_parts(folder)
        yield
    finally:
        lock.release()


def part_of(path: Path) -> Path:
    """Return the file in which this process writes `path` until it is whole."""
    return path.with_name(f"{path.name}.{os.getpid()}.part")


def remove_parts(folder: Path) -> None:
    """Delete what processes that have ended left half written in `folder` and below it."""
    for file in folder.rglob("*.part*"):
        if (found := PART.search(file.name)) and not is_at_work(int(found[1])):
            file.unlink(missing_ok=True)


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints in the `folder` of a run."""
    for file in folder.glob(CHECKPOINTS):
        file.unlink(missing_ok=True)


def is_at_work(process: int) -> bool:
    """Return whether another process has the number `process`."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace the file `path` by one with `content`: a reader, or a kill, finds the old or the new, never a part.

    A missing folder is made. Text is written as UTF-8, what has no place there as JSON and Python escape it. Raise
    `StorageError`; the old content is still there then.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    part = part_of(path)
    with writing(path, len(data)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def mark(file: Path, length: int | None = None) -> Mark:
    """Return length and sha256 of `file`, or of its first `length` bytes; (0, of nothing) where there is none."""
    content = file.read_bytes()[:length] if file.exists() else b""
    return len(content), hashlib.sha256(content).hexdigest()


@contextmanager
def writing(path: Path, nbytes: int | None = None) -> Iterator[None]:
    """Turn an `OSError` while `nbytes` bytes are written to `path` into a `StorageError` that a user can act on."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        odd = [above for above in path.parents if os.path.lexists(above) and not os.path.isdir(above)]
        why = f"{error.strerror or error}{f' ({odd[-1]} is no folder)' if odd else ''}"
        there = next((folder for folder in (path, *path.parents) if os.path.isdir(folder)), Path("."))
        size = "it" if nbytes is None else f"{nbytes:,} bytes"
        free = f"{shutil.disk_usage(there).free:,} bytes are free there"
        raise StorageError(f"{path}: {size} could not be written: {why}; {free}") from None
