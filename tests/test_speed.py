"""Timing in turns: what is counted, in which order, that contenders do the same work, and that a slow minute cancels out."""

from pathlib import Path

import pytest
import torch
from chapter import run_chapter

from hybridlib.benchmark.contenders import HuggingFace, Hybrid, SameParts
from hybridlib.benchmark.machine import subnormal_slowdown, training_share
from hybridlib.benchmark.measure import numbers, offload_share
from hybridlib.benchmark.side_by_side import Spread, in_turns, ratio
from hybridlib.study.run import Run
from hybridlib.training.data import open_source


def test_a_drift_of_the_machine_cancels_in_a_ratio_and_the_first_round_is_not_kept() -> None:
    turn, taken = iter(range(99)), []

    def block(cost: float):
        def run() -> list[float]:
            slower = 1 + next(turn) // 2  # each round slower than the one before
            taken.append(cost)
            return [cost * slower, cost * slower, 1e9]  # a hiccup, which a median forgets

        return run

    times = in_turns({"a": block(2.0), "b": block(1.0)}, rounds=4)
    assert len(times) == 8 and len(taken) == 10
    found = ratio(times, "a", "b")
    assert (found.median, found.low, found.high) == (2.0, 2.0, 2.0)
    with pytest.raises(KeyError):
        ratio(times, "a", "c")


RUN = Run(
    study="tiny", arm="hybrid", data="markov", seed=5, steps=640, batch_size=4, seq_len=16, log_every=5, eval_every=8,
    eval_batches=2, snapshot_every=12, threads=1, model=dict(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=48),
    source=dict(kind="markov"), schedule=dict(warmup=4, full=4, predict=8, correct=4), predictor=dict(name="spectral"),
)  # fmt: skip
PLAIN = RUN.model_copy(update=dict(arm="baseline", schedule=None, predictor=None))
CPU = torch.device("cpu")
SOURCE = open_source(RUN.source, RUN.model.vocab_size, RUN.batch_size, RUN.seq_len)


def test_what_is_timed_does_the_same_work() -> None:
    loop, trainer = SameParts(PLAIN, SOURCE, CPU, 6), Hybrid(PLAIN, SOURCE, CPU, 6)
    assert len(loop()) == len(trainer()) == 6
    for one, other in zip(loop.model.parameters(), trainer.trainer.objective.model.parameters()):
        assert torch.equal(one, other)


def test_a_block_of_the_hybrid_is_whole_cycles_and_prices_its_predicted_steps() -> None:
    hybrid = Hybrid(RUN, SOURCE, CPU, 16)
    assert hybrid.nominal_steps == 2 * 16
    first, second = hybrid(), hybrid()
    assert len(first) == len(second) == 2 * 8, "Warmup stands in for a Correct in the first block"
    assert len(hybrid.predicted) == len(hybrid.nominal_s) == 2 and hybrid.predicted[1] > 0
    assert len(hybrid.records.steps()) == 64


def test_the_hugging_face_trainer_trains_on_the_same_rows() -> None:
    contender = HuggingFace(PLAIN, SOURCE, CPU, 3)
    before = [w.clone() for w in contender.model.parameters()]
    assert len(contender()) == 3
    assert all(not torch.equal(a, b) for a, b in zip(before, contender.model.parameters()) if a.ndim == 2)


def test_the_share_of_training_is_steps_over_jobs(tmp_path: Path) -> None:
    assert training_share(tmp_path) is None
    (tmp_path / "results").mkdir(), (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "results" / "pipeline.csv").write_text("job,seconds\na,8\nchapter,2\nmissing,\n")
    (tmp_path / "runs" / "a" / "steps.csv").write_text("step,step_s\n1,1.5\n2,2.5\n")
    assert training_share(tmp_path) == pytest.approx(0.4)
    (tmp_path / "runs" / "left to --full").mkdir()
    (tmp_path / "runs" / "left to --full" / "steps.csv").write_text("step,step_s\n1,9.0\n")
    assert training_share(tmp_path) == pytest.approx(0.4), "a run that the pipeline did not time adds no steps either"


def test_a_product_with_subnormal_elements_is_timed_against_one_without() -> None:
    assert 0.2 < subnormal_slowdown(CPU, side=64, every=8, repeats=3) < 1000


def test_a_summary_without_measurements_has_empty_cells_and_with_them_the_quartiles(fake_study, monkeypatch) -> None:
    assert run_chapter("12_speed", fake_study, monkeypatch).shown["speed_ratios"].empty
    found = numbers({"hybrid_overhead": Spread(1.01, 1.0, 1.02)})
    frame = run_chapter("12_speed", fake_study, monkeypatch, ratios=found).table("speed_ratios", "ratio")
    assert frame.here["a computed step of hybrid over a bare loop's with the same parts"] == "1.01 [1, 1.02]"


def test_offloading_is_timed_with_the_state_at_home_and_leaves_it_as_it_was() -> None:
    lean = Hybrid(RUN.model_copy(update=dict(memory="offload")), SOURCE, CPU, 8)
    lean()
    while lean.trainer.state.phase != "predict" or not lean.trainer.offload.away:
        lean._step()
    assert offload_share(lean).low > 0
    assert all(state["exp_avg"].numel() for state in lean.trainer.optimizer.state.values())
