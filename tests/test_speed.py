"""Timing in turns: what is counted, that contenders do the same work, and that a slow minute cancels out."""

import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from chapter import run_chapter

from hybridlib.benchmark import contenders, machine, measure, tokens
from hybridlib.benchmark.contenders import HuggingFace, Hybrid, SameParts, Workload
from hybridlib.benchmark.machine import subnormal_slowdown
from hybridlib.benchmark.measure import in_steps_of, numbers, offload_share
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


def test_tokens_are_timed_in_one_precision_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = []

    def alone(do, runs: list[Run], *more) -> pd.DataFrame:
        timed.append((runs[0].model.n_embd, runs[0].precision))
        return pd.DataFrame([dict(round=0, arm=runs[0].arm, computed_step_s=1.0)])

    monkeypatch.setattr(tokens, "alone", alone)
    monkeypatch.setattr(tokens, "OUTPUTS", tmp_path)
    assert tokens.main(["--study", "gpt2-small"]) == tokens.main(["--study", "cpu"]) == 0
    assert timed == [(768, "fp32")] * 5 + [(128, "fp32")] * 5 + [(768, "bf16")] * 3


RUN = Run(
    study="tiny", arm="hybrid", data="markov", seed=5, steps=640, batch_size=4, seq_len=16, log_every=5, eval_every=8,
    eval_batches=2, snapshot_every=12, threads=1, source=dict(kind="markov"),
    model=dict(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=48),
    schedule=dict(warmup=4, full=4, predict=8, correct=4), predictor=dict(name="spectral"),
)  # fmt: skip
PLAIN = RUN.model_copy(update=dict(arm="baseline", schedule=None, predictor=None))
CPU = torch.device("cpu")
SOURCE = open_source(RUN.source, RUN.model.vocab_size, RUN.batch_size, RUN.seq_len)
WORK, PLAIN_WORK = (Workload(run, SOURCE, CPU) for run in (RUN, PLAIN))


def test_what_is_timed_does_the_same_work() -> None:
    loop, trainer = SameParts(PLAIN_WORK, 6), Hybrid(PLAIN_WORK, 6)
    assert len(loop()) == len(trainer()) == 6
    for one, other in zip(loop.model.parameters(), trainer.trainer.objective.model.parameters()):
        assert torch.equal(one, other)


def test_a_block_of_the_hybrid_is_whole_cycles_and_prices_its_predicted_steps(monkeypatch) -> None:
    hybrid = Hybrid(WORK, 16)
    seconds = lambda work, device: (2.0 if hybrid.trainer.state.real else 0.5, work())[0]  # noqa: E731
    monkeypatch.setattr(contenders, "timed", seconds)
    assert hybrid.nominal_steps == 2 * 16
    first, second = hybrid(), hybrid()
    assert len(first) == len(second) == 2 * 8, "Warmup stands in for a Correct in the first block"
    assert hybrid.predicted == [0.25, 0.25] and hybrid.nominal_s == [1.25, 1.25]
    assert len(hybrid.records.steps()) == 64


def test_the_hugging_face_trainer_trains_on_the_same_rows() -> None:
    contender = HuggingFace(PLAIN_WORK, 3)
    rows = [contender.rows[i] for i in range(len(contender.rows))]
    batches = torch.cat([SOURCE.batch(PLAIN.seed, step)[0] for step in range(4)])
    assert all(torch.equal(torch.stack([row[key] for row in rows]), batches) for key in ("input_ids", "labels"))
    before = [w.clone() for w in contender.model.parameters()]
    assert len(contender()) == 3
    assert all(not torch.equal(a, b) for a, b in zip(before, contender.model.parameters()) if a.ndim == 2)


def test_a_product_with_subnormal_elements_is_timed_against_one_without(monkeypatch) -> None:
    shares = []

    def seconds(work, device: torch.device) -> float:
        (matrix,) = work.__defaults__
        shares.append(float(((matrix != 0) & (matrix.abs() < torch.finfo(matrix.dtype).tiny)).double().mean()))
        return 6.0 if shares[-1] else 2.0

    assert subnormal_slowdown(CPU, side=64, every=8, repeats=3) > 0
    monkeypatch.setattr(machine, "timed", seconds)
    assert subnormal_slowdown(CPU, side=64, every=8, repeats=3) == 3.0 and shares == [1 / 8, 0.0] * 4


def test_a_summary_without_measurements_has_empty_cells_and_with_them_the_quartiles(fake_study, monkeypatch) -> None:
    assert run_chapter("12_speed", fake_study, monkeypatch).shown["speed_ratios"].empty
    found = numbers({"hybrid_overhead": Spread(1.01, 1.0, 1.02)})
    frame = run_chapter("12_speed", fake_study, monkeypatch, ratios=found).table("speed_ratios", "ratio")
    assert frame.here["a computed step of hybrid over a bare loop's with the same parts"] == "1.01 [1, 1.02]"


def test_a_cost_in_steps_of_another_has_the_same_seconds() -> None:
    plain = dict(step_s=Spread(1.0, 0.9, 1.2))
    lean = dict(step_s=Spread(0.5, 0.4, 0.6), predicted_step_cost=Spread(0.16, 0.12, 0.2))
    assert in_steps_of(plain, lean) == Spread(0.08, 0.06, 0.1)


def test_offloading_is_timed_with_the_state_at_home_and_leaves_it_as_it_was(monkeypatch) -> None:
    lean = Hybrid(Workload(RUN.model_copy(update=dict(memory="offload")), SOURCE, CPU), 8)
    lean()
    while lean.trainer.state.phase != "predict" or not lean.trainer.offload.away:
        lean._step()
    away = []

    def seconds(work, device: torch.device) -> float:
        away.append(bool(lean.trainer.offload.away))
        work()
        return 1.0

    monkeypatch.setattr(measure, "timed", seconds)
    lean.nominal_s = [0.25]  # so a cycle of 16 takes 4 s
    assert offload_share(lean) == Spread(0.5, 0.5, 0.5) and away == [False, True] * 3
    assert all(state["exp_avg"].numel() for state in lean.trainer.optimizer.state.values())


def test_what_works_alone_ends_with_the_process_that_waits_for_it(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    shell = ["sh", "-c", f"touch '{begun}'; exec sleep 600"]  # which the worker becomes
    work = f"import os; from hybridlib.benchmark.side_by_side import alone; alone(os.execvp, 'sh', {shell!r})"
    with subprocess.Popen([sys.executable, "-c", work], stderr=subprocess.DEVNULL) as process:
        until_s = time.monotonic() + 60
        while not begun.exists() and time.monotonic() < until_s:
            time.sleep(0.1)
        below = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    _, left = psutil.wait_procs(below, timeout=30)
    assert begun.exists() and below and not left
