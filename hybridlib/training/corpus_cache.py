"""Token streams on disk, whole or not there: a part is never seen under the final name, and damage is found on loading."""

import os
import shutil
import time
import warnings
from pathlib import Path
from typing import Callable

import numpy as np

from hybridlib.records import writing

STALE_S = 3600.0  # nobody writes that long


def load(file: Path, key: str, checksum: Callable[..., str]) -> tuple[np.ndarray, np.ndarray, str] | None:
    """The streams that were saved for the key and their checksum; None, in words where it is damage, where there are none."""
    if not os.path.lexists(file):
        return None
    try:
        with file.open("rb") as stored, np.load(stored) as saved:
            train, held_out, own, sha256 = saved["train"], saved["held_out"], str(saved["key"]), str(saved["sha256"])
        if own != key or sha256 != checksum(train, held_out):
            raise ValueError("its checksum is another")
    except Exception as error:  # a damaged archive raises nearly anything, MemoryError among it
        why = error or type(error).__name__
        warnings.warn(f"{file}: this cached corpus is damaged, so it is made again ({why})", stacklevel=3)
        return None
    return train, held_out, sha256


def save(file: Path, key: str, train: np.ndarray, held_out: np.ndarray, sha256: str) -> None:
    """Writes the streams so that a reader, or a kill at any moment, finds all of them or none. Raises `StorageError`."""
    part = file.with_name(f"{file.stem}.{os.getpid()}-{time.monotonic_ns()}.part")
    with writing(file, train.nbytes + held_out.nbytes):
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(file.parent)
        try:
            with part.open("xb") as out:
                np.savez(out, train=train, held_out=held_out, key=np.array(key), sha256=np.array(sha256))
                out.flush()
                os.fsync(out.fileno())
            if file.is_dir() and not file.is_symlink():
                shutil.rmtree(file)  # nothing of a user's: the name is a checksum's
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)


def remove_stale(folder: Path) -> None:
    """Removes what killed processes left half written; a part that is young may be another process's, at work."""
    for part in [*folder.glob("*.part"), *folder.glob("*.part.npz")]:
        try:
            if time.time() - part.stat().st_mtime > STALE_S:
                part.unlink()
        except OSError:
            pass  # another process was faster, or it is not ours
