"""Real text as token streams: read from files, split by content, tokenized by a BPE trained on the training part."""

import hashlib
import math
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from types import TracebackType
from typing import Self

import numpy as np
import tokenizers
from rich.console import Console
from tokenizers import Tokenizer

from hybridlib.study.parameters import ROOT
from hybridlib.study.progress_line import live_line
from hybridlib.study.run import Source
from hybridlib.training.text_files import CorpusError, digest, read_texts, shown
from hybridlib.training.tokenizer import encode, load_cached, save_cached, train_tokenizer

CACHE = ROOT / ".cache" / "corpora"
FORMAT = 2  # raise it when the same text gives other tokens or another split, so that no older cache is taken for them
FEW, BLOCK = 40, 1 << 16  # so few files are split in blocks of so many characters
LEAST_PCT = 10.0  # of a text that must be cut in two, on either side
QUIET_S = 2.0  # what is done sooner is not announced
PLAIN_EVERY_S = 30.0  # where there is no terminal to redraw a line on


class Activity:
    """Show on stderr, while its block runs, `label`, what `say` was last given, and the seconds so far.

    A terminal gets one line that is redrawn, anything else a line now and then.
    """

    def __init__(self, label: str) -> None:
        self.label, self.doing, self.started = label, "", time.monotonic()
        # Workers side by side share their parent's terminal, where their lines would overwrite one another.
        terminal = None if multiprocessing.parent_process() is None else False
        console = Console(stderr=True, highlight=False, soft_wrap=True, force_terminal=terminal)
        self._line = live_line(self._text, console, QUIET_S, PLAIN_EVERY_S)

    def say(self, doing: str) -> None:
        """Show `doing` from now on."""
        self.doing = doing

    def __enter__(self) -> Self:
        self._line.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._line.__exit__(kind, error, trace)

    def _text(self) -> str:
        return f"{self.label}: {self.doing}, {time.monotonic() - self.started:.0f} s"


@dataclass(frozen=True)
class Corpus:
    """Token streams of the training text, `train`, and of the held-out text, `held_out`: uint16 or uint32.

    `sha256` is the checksum of both, `origin` names where the text comes from in messages.
    """

    train: np.ndarray
    held_out: np.ndarray
    sha256: str
    origin: str

    def require(self, tokens: int) -> None:
        """Raise `CorpusError`, with advice, if either stream is shorter than one window of `tokens` tokens."""
        total = len(self.train) + len(self.held_out)
        for name, stream in (("training", self.train), ("held-out", self.held_out)):
            if len(stream) < tokens:
                times = math.ceil(1.2 * tokens / len(stream)) if len(stream) else 0
                advice = [f"about {times} times as much text" if times else "more text"]
                if len(stream) > 1:
                    advice.append(f"a seq_len of at most {len(stream) - 1}")
                if total > 20 * tokens:
                    advice.append(f"a {'larger' if stream is self.held_out else 'smaller'} held_out_pct")
                raise CorpusError(
                    f"{self.origin}: its {name} part has {len(stream):,} of its {total:,} tokens, a window needs "
                    f"{tokens} (seq_len and the target of the last): what helps is {', or '.join(advice)}"
                )


def load_corpus(source: Source, vocab_size: int) -> Corpus:
    """Return the corpus of the text `source`, from the cache if text, tokenizer and split are the same.

    The tokenizer has `vocab_size` entries unless the source sets its own. Raises `CorpusError` for unusable text.
    """
    vocab, origin = source.tokenizer_vocab or vocab_size, ", ".join(map(shown, source.paths)) or "the standard library"
    own = bool(source.paths)
    with Activity(f"corpus of {origin}") as activity:
        texts = read_texts([ROOT / path for path in source.paths], source.max_mb, activity.say)
        key = cache_key(texts, f"{FORMAT} {tokenizers.__version__} {vocab} {source.held_out_pct} {own}")
        file = CACHE / f"{key[:32]}.npz"
        if found := load_cached(file, key, checksum):
            return Corpus(*found, origin)
        train, held_out = tokenise(texts, vocab, source.held_out_pct, own, activity.say)
        sha256 = checksum(train, held_out)
        activity.say("writing it to the cache")
        save_cached(file, key, train, held_out, sha256)
    return Corpus(train, held_out, sha256, origin)


def tokenizer_of(source: Source, vocab_size: int) -> Tokenizer:
    """Return the tokenizer of the corpus that `source` and `vocab_size` give, to read its tokens as text.

    It is learned again from the training text, because the cache holds tokens alone. Raises `CorpusError`.
    """
    texts = read_texts([ROOT / path for path in source.paths], source.max_mb)
    train, _ = two_sides(texts, source.held_out_pct, by_content=bool(source.paths))
    return train_tokenizer(train, source.tokenizer_vocab or vocab_size)


def cache_key(texts: list[tuple[str, str]], settings: str) -> str:
    """Return a checksum of `settings` and of the (name, text) pairs `texts`, which are encoded a piece at a time."""
    key = hashlib.sha256(settings.encode())
    for name, text in texts:
        content = hashlib.sha256()
        for start in range(0, len(text), 1 << 20):
            content.update(text[start : start + (1 << 20)].encode())
        key.update(f"\0{digest(name)}{content.hexdigest()}".encode())
    return key.hexdigest()


def checksum(train: np.ndarray, held_out: np.ndarray) -> str:
    """Return the SHA-256 of the two token streams, `train` and `held_out`."""
    both = hashlib.sha256(train)
    both.update(b"|")
    both.update(held_out)
    return both.hexdigest()


def tokenise(
    texts: list[tuple[str, str]],
    vocab: int,
    held_out_pct: float,
    by_content: bool = True,
    say: Callable[[str], None] = lambda doing: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the training and the held-out token stream of `texts`, by a tokenizer trained on the training part alone.

    `vocab` is the tokenizer's size, `held_out_pct` and `by_content` are as for `split`, `say` gets the progress.
    """
    train, held_out = two_sides(texts, held_out_pct, by_content)
    total = sum(map(len, train)) + sum(map(len, held_out)) or 1
    say("learning a tokenizer")
    tokenizer = train_tokenizer(train, vocab)
    dtype = np.uint16 if vocab <= 1 << 16 else np.uint32
    first = encode(tokenizer, train, dtype, lambda chars: say(f"tokenising, {chars / total:.0%}"))
    before = sum(map(len, train))
    return first, encode(tokenizer, held_out, dtype, lambda chars: say(f"tokenising, {(before + chars) / total:.0%}"))


def two_sides(
    texts: list[tuple[str, str]], held_out_pct: float, by_content: bool = True
) -> tuple[list[str], list[str]]:
    """Split (name, text) pairs `texts` into training and held-out texts: by file, or by block where files are few.

    About `held_out_pct` percent are held out. A checksum of the name decides, and equal texts go where the first of
    them goes. Where that leaves a side nearly empty, the longest text is cut in two. Without `by_content` names alone
    decide, and equal texts may be on both sides: the split of the standard library that recorded runs were trained on.
    """
    if len(texts) < FEW:
        texts = [(f"{name}:{i}", text[i : i + BLOCK]) for name, text in texts for i in range(0, len(text), BLOCK)]
    keys = [text if by_content else name for name, text in texts]
    held: dict[str, bool] = {}
    for key, (name, _) in zip(keys, texts):
        held.setdefault(key, int(digest(name)[:8], 16) % 10_000 < held_out_pct * 100)
    if keys and not any(held.values()):
        held[keys[-1]] = True
    train = [text for key, (_, text) in zip(keys, texts) if not held[key]]
    held_out = [text for key, (_, text) in zip(keys, texts) if held[key]]
    return with_both_sides(train, held_out, held_out_pct) if by_content else (train, held_out)


def with_both_sides(train: list[str], held_out: list[str], held_out_pct: float) -> tuple[list[str], list[str]]:
    """Return `train` and `held_out`, neither with less than a quarter of its share.

    Where one is, the other's longest text is cut in two, and its end held out. The shares follow from `held_out_pct`.
    """
    sizes = [sum(map(len, side)) for side in (train, held_out)]
    shares = [100 - held_out_pct, held_out_pct]
    lacking = [size < share / 400 * sum(sizes) for size, share in zip(sizes, shares)]
    if not any(lacking):
        return train, held_out
    whole = held_out if lacking[0] else train
    longest = max(whole, key=len)
    copies = whole.count(longest)
    held_share = min(max(held_out_pct, LEAST_PCT), 100 - LEAST_PCT) / 100
    at = min(max(1, round(len(longest) * (1 - held_share))), len(longest) - 1)
    others, others_held = set(train) - {longest}, set(held_out) - {longest}
    for end in chain(range(at, len(longest)), range(at - 1, 0, -1)):
        start, rest = longest[:end], longest[end:]
        if start == rest or start in others_held or rest in others:
            continue
        if lacking[0]:
            return [*train, *[start] * copies], [rest if text == longest else text for text in held_out]
        return [start if text == longest else text for text in train], [*held_out, *[rest] * copies]
    return train, held_out
