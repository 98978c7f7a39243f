"""Real text as tokens: files, a byte-level BPE trained on them, a cache of the result."""

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from hybridlib.config import Source
from hybridlib.studies import ROOT

CACHE = ROOT / ".cache" / "corpora"
STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))


class CorpusError(ValueError):
    """Text that can't be used: names the file and what would be right."""


@dataclass(frozen=True)
class Corpus:
    """Token streams of the training and the held-out files, uint16 or uint32; `sha256` is of both."""

    train: np.ndarray
    held_out: np.ndarray
    sha256: str
    origin: str

    def require(self, tokens: int) -> None:
        """Raises `CorpusError` if a split is too short for one window of that many tokens."""
        for name, stream in (("training", self.train), ("held-out", self.held_out)):
            if len(stream) < tokens:
                raise CorpusError(
                    f"{self.origin}: its {name} part has {len(stream)} tokens, a window needs {tokens}; "
                    "give more text, more files, or a larger held_out_pct"
                )


def load_corpus(source: Source, vocab_size: int) -> Corpus:
    """The corpus of a source, from the cache where text, tokenizer and split are the same. Off the clock."""
    texts = read_texts([ROOT / path for path in source.paths], source.max_mb)
    vocab, origin = source.tokenizer_vocab or vocab_size, ", ".join(source.paths) or "the standard library"
    key = hashlib.sha256(f"{tokenizers.__version__} {vocab} {source.held_out_pct}".encode())
    for name, text in texts:
        key.update(f"\0{name}\0{text}".encode())
    file = CACHE / f"{key.hexdigest()[:32]}.npz"
    if not file.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part.npz")
        np.savez(part, **dict(zip(("train", "held_out"), tokenise(texts, vocab, source.held_out_pct))))
        part.replace(file)
    with np.load(file) as both:
        train, held_out = both["train"], both["held_out"]
    sha256 = hashlib.sha256(train.tobytes() + b"|" + held_out.tobytes()).hexdigest()
    return Corpus(train, held_out, sha256, origin)


def read_texts(paths: list[Path], max_mb: float | None = None) -> list[tuple[str, str]]:
    """(name, text) of every file, in an order that depends on names alone, up to `max_mb` of them.

    Without paths: the standard library's source, where the few files that are deliberately not UTF-8 are left out.
    Raises `CorpusError` for a path that is missing, empty or not UTF-8 text.
    """
    own = bool(paths)
    files = [(file, base) for base in paths or [STANDARD_LIBRARY] for file in files_below(base, "*" if own else "*.py")]
    texts, size = [], 0
    for file, base in sorted(files, key=lambda pair: _digest(_name(*pair))):
        data = file.read_bytes()
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            if own:
                raise CorpusError(f"{file}: byte {error.start} is not UTF-8: a corpus must be plain UTF-8 text") from None
            continue
        if own and "\0" in text:
            raise CorpusError(f"{file}: holds zero bytes, so it is not text: a corpus must be plain UTF-8 text")
        texts.append((_name(file, base), text))
        size += len(data)
        if max_mb is not None and size >= max_mb * 1e6:
            break
    if own and not any(text.strip() for _, text in texts):
        raise CorpusError(f"{', '.join(map(str, paths))}: no text in it: give UTF-8 files or a folder of them")
    return texts


def files_below(base: Path, pattern: str) -> list[Path]:
    """The file itself, or the files of a folder; hidden ones, caches and installed packages left out."""
    if not base.exists():
        raise CorpusError(f"{base}: no such file or folder: paths must name UTF-8 text files or folders of them")
    skip = ("__pycache__", "site-packages", "dist-packages")
    below = (p for p in base.rglob(pattern) if p.is_file()) if base.is_dir() else [base]
    return [p for p in below if not any(s in skip or s.startswith(".") for s in p.relative_to(base).parts)]


def tokenise(texts: list[tuple[str, str]], vocab: int, held_out_pct: float) -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out token streams. The split is by file (by block of 64 KiB where there are few files)."""
    if len(texts) < 40:
        block = 1 << 16
        texts = [(f"{n}:{i}", t[i : i + block]) for n, t in texts for i in range(0, len(t), block)]
    held = [int(_digest(name)[:8], 16) % 10_000 < held_out_pct * 100 for name, _ in texts]
    if texts and not any(held):
        held[-1] = True
    train = [text for (_, text), out in zip(texts, held) if not out]
    tokenizer = train_tokenizer(train, vocab)
    dtype = np.uint16 if vocab <= 1 << 16 else np.uint32
    splits = train, [text for (_, text), out in zip(texts, held) if out]
    streams = ([np.array(e.ids, dtype) for e in tokenizer.encode_batch_fast(split)] for split in splits)
    train_stream, held_out_stream = (np.concatenate([*parts, np.empty(0, dtype)]) for parts in streams)
    return train_stream, held_out_stream


def train_tokenizer(texts: list[str], vocab: int) -> Tokenizer:
    """A byte-level BPE of `vocab` entries, of which 256 are the bytes (Radford et al. 2019, section 2.2)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _name(file: Path, base: Path) -> str:
    return str(file.relative_to(base)) if base.is_dir() else file.name


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
