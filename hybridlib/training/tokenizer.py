"""A byte-level BPE and its use on any amount of text, in time and memory that grow in step with the text."""

import re
from typing import Callable, Iterable, Iterator

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

# A text without spaces is one word to a tokenizer, and learning takes time quadratic in a word's length.
LONGEST_WORD = 256
# Learning takes about 100 bytes of memory for each byte of a distinct word. Where words repeat, this is a lot of text (40 MB
# of a dictionary hold 2.3 MB of distinct words); where they don't, as without spaces, it is a sample that takes a few seconds.
DISTINCT_BYTES = 5 << 19
CHUNK, TOGETHER = 1 << 12, 1 << 16  # characters handed over at once, one by one and side by side

# Words as Radford et al. (2019) have them, which is what `pre_tokenizers.ByteLevel` uses, with a longest length.
UP_TO = f"{{1,{LONGEST_WORD}}}"
WORD = Regex(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+".replace("+", UP_TO))
# The same, as nearly as `re` can say it, for counting.
NEARLY_WORD = re.compile(r"[^\W\d_]+|\d+|\s+|[^\w\s]+|_+".replace("+", UP_TO))
# A letter or digit and then something else: no word goes across, so the parts have the tokens that the whole has.
BETWEEN_WORDS = re.compile(r"(?<=[^\W_])\W")


def train_tokenizer(texts: Iterable[str], vocab: int) -> Tokenizer:
    """A byte-level BPE of `vocab` entries, of which 256 are the bytes (Radford et al. 2019, section 2.2).

    It learns from the texts in their order until it has met `DISTINCT_BYTES` of distinct words.
    """
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(WORD, "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(enough(chunk for text in texts for chunk in chunks(text)), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str], dtype: type, done: Callable[[int], None] = lambda chars: None) -> np.ndarray:
    """The tokens of the texts, one after the other; `done` is told the number of characters so far."""
    parts, chars = [np.empty(0, dtype)], 0
    for together in batches(chunk for text in texts for chunk in chunks(text)):
        parts += [np.array(encoding.ids, dtype) for encoding in tokenizer.encode_batch_fast(together)]
        chars += sum(map(len, together))
        done(chars)
    return np.concatenate(parts)


def chunks(text: str) -> Iterator[str]:
    """A text in parts of about `CHUNK` characters, cut between words wherever there is such a place."""
    start = 0
    while len(text) - start > CHUNK:
        place = BETWEEN_WORDS.search(text, start + CHUNK, start + 2 * CHUNK)
        end = place.start() if place else start + CHUNK
        yield text[start:end]
        start = end
    yield text[start:]


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts in lists of about `TOGETHER` characters each."""
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
    """The texts up to where their distinct words are `DISTINCT_BYTES` long together."""
    words: set[str] = set()
    size = 0
    for text in texts:
        yield text
        new = set(NEARLY_WORD.findall(text)) - words
        words |= new
        size += sum(map(learned_bytes, new))
        if size > DISTINCT_BYTES:
            return


def learned_bytes(word: str) -> int:
    """A word's length in bytes as the tokenizer writes them: those beyond ASCII take two."""
    return len(word) if word.isascii() else 2 * len(word.encode())
