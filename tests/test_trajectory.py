"""Chapter 03's measures: the error of forecasts is on the right scale, and a predictor is exact where it must be."""

import pytest
import torch
from chapter import definitions

from hybridlib.method.predictors import make_predictor
from hybridlib.study.run import Run
from hybridlib.training.data import open_source

CHAPTER = definitions("03_predictors")
RUN = Run(
    study="t", arm="hybrid", data="markov", seed=1, steps=60, batch_size=4, seq_len=8, log_every=5, eval_every=5,
    eval_batches=1, snapshot_every=99, threads=1, source=dict(kind="markov"),
    model=dict(n_layer=1, n_head=2, n_embd=8, block_size=8, vocab_size=32),
    schedule=dict(warmup=2, full=3, predict=5, correct=2), predictor=dict(name="hold"),
)  # fmt: skip


def test_holding_still_has_error_one() -> None:
    points = [[torch.randn(3, 4), torch.randn(5)] for _ in range(20)]
    ratios = [CHAPTER["error_ratio"](["a", "b"], make_predictor("hold"), points, 4, 10, h) for h in (1, 5, 9)]
    assert ratios == pytest.approx([1.0, 1.0, 1.0])


def test_linear_has_no_error_on_a_line() -> None:
    points = [[torch.full((3, 4), 0.5 * k), torch.arange(5.0) * k] for k in range(20)]
    ratios = [CHAPTER["error_ratio"](["a", "b"], make_predictor("linear"), points, 4, 10, h) for h in (1, 5, 9)]
    assert ratios == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)


def test_hold_has_the_computed_loss_before_and_after_its_jump() -> None:
    source = open_source(RUN.source, 32, 4, 8)
    plain = CHAPTER["PlainTraining"](RUN, source, [source.held_out(0)])
    losses = CHAPTER["loss_after_correct"](RUN, plain, cycles=2)
    assert losses["loss_after_jump"] == losses["loss_before"]
    assert losses["loss_after_correct"] == losses["loss_computed"]
    known = dict(plain.losses)
    assert CHAPTER["loss_after_correct"](RUN, plain, cycles=2) == losses and plain.losses == known
    assert plain.loss_after(3) not in known.values() and len(plain.points) == plain.trainer.real_steps + 1


def test_a_trajectory_starts_at_the_seeds_weights_and_moves() -> None:
    source = open_source(RUN.source, 32, 4, 8)
    plain, again = CHAPTER["PlainTraining"](RUN, source, []), CHAPTER["PlainTraining"](RUN, source, [])
    third, first = plain.after(3), again.after(0)
    assert len(plain.points) == 4 and all(torch.equal(a, b) for a, b in zip(plain.points[0], first))
    assert not torch.equal(first[0], plain.points[1][0]) and plain.after(3) is third
