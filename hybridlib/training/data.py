"""Data sources: a batch is a pure function of seed and computed step, so no restart changes what is seen."""

import hashlib
import math
from typing import Protocol

import numpy as np
import torch

from hybridlib.study.run import HELD_OUT_SEED, Source
from hybridlib.training.corpus import load_corpus
from hybridlib.training.loss import Batch


class DataSource(Protocol):
    """What training needs of a source: batches, the lowest loss possible, None if it is unknown, and a checksum."""

    sha256: str
    floor_nats: float | None

    def batch(self, seed: int, step: int) -> Batch:
        """Return the batch of a run with `seed` at computed step `step`."""

    def held_out(self, index: int) -> Batch:
        """Return held-out batch `index`, the same for every run."""


def open_source(source: Source, vocab_size: int, batch_size: int, seq_len: int) -> DataSource:
    """Return what `source` describes, with tokens below `vocab_size`, in batches of (`batch_size`, `seq_len`).

    Raises `CorpusError` for text that cannot be used.
    """
    if source.kind == "uniform":
        return Uniform(vocab_size, batch_size, seq_len)
    if source.kind == "markov":
        return Markov(vocab_size, source.successors, batch_size, seq_len)
    return Text(source, vocab_size, batch_size, seq_len)


def as_batch(tokens: np.ndarray) -> Batch:
    """Return inputs and the targets that follow them, (batch, seq) int64 each, from (batch, seq + 1) `tokens`."""
    both = torch.from_numpy(tokens.astype(np.int64))
    return both[:, :-1].contiguous(), both[:, 1:].contiguous()


class Uniform:
    """Independent tokens, uniform below `vocab_size`: no loss below its logarithm can be learned, so no arm can fail.

    Batches are (`batch_size`, `seq_len`).
    """

    def __init__(self, vocab_size: int, batch_size: int, seq_len: int) -> None:
        self.vocab_size, self.shape = vocab_size, (batch_size, seq_len + 1)
        self.floor_nats = math.log(vocab_size)
        self.sha256 = hashlib.sha256(f"uniform {vocab_size}".encode()).hexdigest()

    def batch(self, seed: int, step: int) -> Batch:
        return as_batch(np.random.default_rng([seed, step]).integers(self.vocab_size, size=self.shape))

    def held_out(self, index: int) -> Batch:
        return self.batch(HELD_OUT_SEED, index)


class Markov:
    """A sparse first-order chain: each of `vocab_size` tokens has `successors`, drawn with Zipf weights 1/rank.

    Every token's successors have the same weights, so the entropy rate is the weights' entropy, whatever the stationary
    distribution is. Batches are (`batch_size`, `seq_len`).
    """

    def __init__(self, vocab_size: int, successors: int, batch_size: int, seq_len: int) -> None:
        self.successors = distinct_rows(np.random.default_rng(0), vocab_size, successors)
        weights = 1.0 / np.arange(1, successors + 1)
        self.weights = weights / weights.sum()
        self.vocab_size, self.batch_size, self.seq_len = vocab_size, batch_size, seq_len
        self.floor_nats = float(-(self.weights * np.log(self.weights)).sum())
        self.sha256 = hashlib.sha256(self.successors.astype(np.int64).tobytes()).hexdigest()

    def batch(self, seed: int, step: int) -> Batch:
        rng = np.random.default_rng([seed, step])
        ranks = rng.choice(len(self.weights), size=(self.seq_len, self.batch_size), p=self.weights)
        tokens = np.empty((self.seq_len + 1, self.batch_size), dtype=np.int64)
        tokens[0] = rng.integers(self.vocab_size, size=self.batch_size)
        for t, rank in enumerate(ranks):
            tokens[t + 1] = self.successors[tokens[t], rank]
        return as_batch(tokens.T)

    def held_out(self, index: int) -> Batch:
        return self.batch(HELD_OUT_SEED, index)


def distinct_rows(rng: np.random.Generator, vocab_size: int, successors: int) -> np.ndarray:
    """Return (`vocab_size`, `successors`) uniform tokens from `rng`, distinct within a row."""
    if successors**2 > 8 * vocab_size:  # drawn independently, a row would hardly ever be distinct
        return np.stack([rng.choice(vocab_size, successors, replace=False) for _ in range(vocab_size)])
    rows = rng.integers(vocab_size, size=(vocab_size, successors))
    while (again := (np.diff(np.sort(rows, axis=1)) == 0).any(axis=1)).any():
        rows[again] = rng.integers(vocab_size, size=(int(again.sum()), successors))
    return rows


class Text:
    """Windows, `batch_size` of `seq_len` tokens, at random places of the corpus that `source` and `vocab_size` give.

    Held-out windows come from text that training never sees.
    """

    floor_nats = None

    def __init__(self, source: Source, vocab_size: int, batch_size: int, seq_len: int) -> None:
        self.corpus, self.batch_size, self.seq_len = load_corpus(source, vocab_size), batch_size, seq_len
        self.corpus.require(seq_len + 1)
        self.sha256 = self.corpus.sha256

    def batch(self, seed: int, step: int) -> Batch:
        return self._windows(self.corpus.train, seed, step)

    def held_out(self, index: int) -> Batch:
        return self._windows(self.corpus.held_out, HELD_OUT_SEED, index)

    def _windows(self, tokens: np.ndarray, seed: int, step: int) -> Batch:
        starts = np.random.default_rng([seed, step]).integers(len(tokens) - self.seq_len, size=self.batch_size)
        return as_batch(np.stack([tokens[s : s + self.seq_len + 1] for s in starts]))
