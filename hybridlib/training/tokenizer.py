"""A byte-level BPE, trained and used in time and memory linear in the text, and a cache of the tokens."""

import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from hybridlib.study.storage import writing

# A text without spaces is one word to a tokenizer, and training takes time quadratic in a word's length.
LONGEST_WORD = 256
# Training takes memory for each byte of a distinct word. Where words repeat, this many bytes are a lot of text; where
# they do not, as without spaces, they are a sample that takes seconds.
DISTINCT_BYTES = 5 << 19
CHUNK, TOGETHER = 1 << 12, 1 << 16  # characters of a text, and of all texts, that are handed over at once

# Words as Radford et al. (2019) have them, which is what `pre_tokenizers.ByteLevel` uses, with a longest length.
UP_TO = f"{{1,{LONGEST_WORD}}}"
WORD = Regex(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+".replace("+", UP_TO))
# The same, as nearly as `re` can say it, for counting.
NEARLY_WORD = re.compile(r"[^\W\d_]+|\d+|\s+|[^\w\s]+|_+".replace("+", UP_TO))
# A letter or digit and then something else: no word goes across, so the parts have the tokens that the whole has.
BETWEEN_WORDS = re.compile(r"(?<=[^\W_])\W")


def train_tokenizer(texts: Iterable[str], vocab: int) -> Tokenizer:
    """Return a byte-level BPE of `vocab` entries, of which 256 are the bytes (Radford et al. 2019, section 2.2).

    It is trained on `texts`, in their order, up to `DISTINCT_BYTES` of distinct words.
    """
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(WORD, "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(enough(chunk for text in texts for chunk in chunks(text)), trainer)
    return tokenizer


def encode(
    tokenizer: Tokenizer, texts: list[str], dtype: type, done: Callable[[int], None] = lambda chars: None
) -> np.ndarray:
    """Return the tokens of all `texts` by `tokenizer`, as a `dtype`; `done` gets the number of characters so far."""
    parts, chars = [np.empty(0, dtype)], 0
    for together in batches(chunk for text in texts for chunk in chunks(text)):
        parts += [np.array(encoding.ids, dtype) for encoding in tokenizer.encode_batch_fast(together)]
        chars += sum(map(len, together))
        done(chars)
    return np.concatenate(parts)


def chunks(text: str) -> Iterator[str]:
    """Yield `text` in parts of about `CHUNK` characters, cut between words wherever possible."""
    start = 0
    while len(text) - start > CHUNK:
        place = BETWEEN_WORDS.search(text, start + CHUNK, start + 2 * CHUNK)
        end = place.start() if place else start + CHUNK
        yield text[start:end]
        start = end
    yield text[start:]


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield `texts` in lists of about `TOGETHER` characters each."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text) + 100  # an empty text takes room too
        if size >= TOGETHER:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def enough(texts: Iterable[str]) -> Iterator[str]:
    """Yield `texts` until their distinct words are `DISTINCT_BYTES` long together."""
    words: set[str] = set()
    size = 0
    for text in texts:
        yield text
        new = set(NEARLY_WORD.findall(text)) - words
        words |= new
        size += sum(len(word) if word.isascii() else 2 * len(word.encode()) for word in new)  # as BPE writes bytes
        if size > DISTINCT_BYTES:
            return


STALE_S = 3600.0  # nobody writes that long


def load_cached(file: Path, key: str, checksum: Callable[..., str]) -> tuple[np.ndarray, np.ndarray, str] | None:
    """Return the two token streams that `file` holds for `key`, and their checksum; None if there are none.

    `checksum` computes it from the streams. Warns of damage.
    """
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


def save_cached(file: Path, key: str, train: np.ndarray, held_out: np.ndarray, sha256: str) -> None:
    """Write the streams `train` and `held_out`, `key` and `sha256` to `file`, atomically. Raises `StorageError`."""
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
    """Delete from `folder` what killed processes left half written; a young part may belong to a process at work."""
    for part in [*folder.glob("*.part"), *folder.glob("*.part.npz")]:
        try:
            if time.time() - part.stat().st_mtime > STALE_S:
                part.unlink()
        except OSError:
            pass  # another process was faster, or it is not ours
