"""What several tests need: a study of 40 steps made by formulas, and weights for predictors to move."""

import json
import math
import os
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from torch import Tensor

from hybridlib.method.predictors.base import Predictor, Weights
from hybridlib.study.parameters import load_study
from hybridlib.study.progress import summarise
from hybridlib.study.records import EvalRecord, RunFolder, StepRecord
from hybridlib.study.run import Run
from hybridlib.study.storage import write_atomically
from hybridlib.training import NUMERICS


def pytest_addoption(parser: pytest.Parser) -> None:
    """How much the tests of reliability try; `make crash-test` asks for more than a test run has time for."""
    add = parser.addoption
    add("--kills", type=int, default=16, help="kills of a run, at random moments")
    add("--pipeline-kills", type=int, default=2, help="kills of run_all.py and of its kernels")
    add("--cluster-kills", type=int, default=3, help="kills of workers, schedulers and clients of a cluster")
    add("--cluster-runs", type=int, default=100, help="made-up runs of a simulated cluster, 31 for each worker")
    add("--faults", type=int, default=1, help="seeds that each fault is tried with")
    add("--inputs", type=int, default=300, help="broken parameter files, notebooks and corpora")
    add("--damages", type=int, default=60, help="files cut or filled with noise")
    add("--seed", type=int, default=0, help="of all that is random in them")
    add("--record-golden", action="store_true", help="write tests/golden/ anew: only together with a higher NUMERICS")
    add("--record", type=Path, help="a folder for what was measured: reliability.json, cluster.json and their tables")


class Measured:
    """Keeps what tests of `what` measured, in `reliability.json` and in tables beside it, if asked to."""

    def __init__(self, folder: Path | None, what: str = "reliability") -> None:
        self.folder, self.what = folder, what

    def add(self, **facts: float) -> None:
        if self.folder:
            file = self.folder / f"{self.what}.json"
            try:
                before = dict(json.loads(file.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):  # there is none, or it is damaged
                before = {}
            write_atomically(file, json.dumps(before | facts, indent=1) + "\n")

    def table(self, name: str, rows: list[dict]) -> None:
        if self.folder:
            write_atomically(self.folder / f"{self.what}_{name}.csv", pd.DataFrame(rows).to_csv(index=False))


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    return Measured(request.config.getoption("record"))


@pytest.fixture
def measured_cluster(request: pytest.FixtureRequest) -> Measured:
    return Measured(request.config.getoption("record"), "cluster")


def pytest_configure() -> None:
    """Workers side by side take a core each."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


LONG = (  # minutes each, the longest first
    "test_end_to_end.py", "test_own_study.py", "test_faults.py", "test_killed_reports.py", "test_cluster_kills.py",
    "test_interrupted.py", "test_any_damage.py", "test_crash.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes last, for what fails fast should be seen first; but first where workers share the files."""
    place = {name: at for at, name in enumerate(LONG)}
    late = 1 if "PYTEST_XDIST_WORKER" in os.environ else -1
    items.sort(key=lambda item: late * place.get(item.path.name, len(LONG)))


torch.set_num_threads(1)  # tensors here are tiny, and others share the cores

ARMS = ["baseline", "hybrid", "memory_optimized", "hold", "sham"]
SEEDS = [1, 2, 3]
STUDY = dict(
    study="fake",
    about="made by formula",
    model=dict(preset="nano"),
    steps=40,
    batch_size=4,
    seq_len=16,
    seeds=SEEDS,
    sources=dict(text=dict(kind="text", tokenizer_vocab=512)),
    arms=dict(hybrid=dict(schedule=dict(warmup=4, full=3, predict=5, correct=1))),
    plan=dict(benchmark=[dict(arms=ARMS, data=["text"])]),
)
FACTS = dict(
    corpus_sha256="corpus",
    numerics=NUMERICS,
    floor_nats=None,
    device="cpu: by hand, 1 threads",
    versions={"python": "3.11"},
    started_at="2026-01-01T00:00:00+00:00",
    ended_at="2026-01-01T00:01:00+00:00",
    model_parameters=1000,
    memory_floor_mb=10.0,
    target_loss=None,
    code=dict(commit="c" * 40, dirty=False),
)


class FakeStudy:
    """Writes runs: a real step takes 0.1 s, a predicted one 0.01 s, other arms than the baseline 1 % less per seed; the
    held-out loss falls by 0.02 nats a step that counts: every step, but only real ones for the controls."""

    def __init__(self, folder: Path, **changes) -> None:
        self.outputs, self.file = folder / "outputs", folder / "fake.yaml"
        self.file.write_text(yaml.safe_dump(STUDY | changes, sort_keys=False))
        self.name, self.study = str(self.file), load_study(str(self.file))
        self.folder = self.outputs / "fake"

    def write(self, arm: str, seed: int, gap_nats: float = 0.0, data: str = "", **facts) -> None:
        run = self.study.run(arm, data or self.study.judged, seed)
        records = RunFolder(self.folder / "runs" / run.id)
        last = (
            run.steps
            if arm in ("baseline", "hybrid", "memory_optimized") or not run.goes_on
            else int(run.extend * run.steps)
        )
        spread, seconds, real_steps = 0.0 if arm == "baseline" else 0.01 * seed, 0.0, 0
        for step in range(1, last + 1):
            phase, first = phase_at(run, step)
            real = phase != "predict"
            real_steps += real
            step_s = (0.1 if real else 0.01) * (1 - spread)
            seconds += step_s if step > 3 else 0.0
            counted = real_steps if run.role == "control" else step
            loss = 6.0 - 0.02 * counted + gap_nats - 0.01 * spread
            known = real or first
            mb = 60.0 if run.memory == "offload" and not real else 100.0
            records.add(
                StepRecord(
                    step,
                    phase,
                    int(real),
                    loss if known else None,
                    math.exp(loss) if known else None,
                    1.0 if real else None,
                    64 * real_steps,
                    step_s,
                    0.8 * step_s if first else None,
                    mb,
                    100.0 if run.memory == "offload" and not real else 60.0 if run.schedule else 0.0,
                    "jump" if first else "",
                )
            )
            if step % 20 == 0:
                records.add(EvalRecord(step, real_steps, seconds, loss))
        records.flush()
        names = dict(study="fake", arm=arm, role=run.role, data=run.data, seed=seed, last_step=last)
        summary = summarise(records.steps(), records.evals(), run.steps, run.batch_size * run.seq_len)
        own = dict(parameters=run.model_dump(), summary=summary)
        records.finish(FACTS | names | own | facts)

    def rewrite(self, arm: str, seed: int, **changes) -> None:
        """Writes a run again, in place of the one that there is."""
        for file in (self.folder / "runs" / f"{arm}-{self.study.judged}-s{seed}").glob("*"):
            file.unlink()
        self.write(arm, seed, **changes)


def phase_at(run: Run, step: int) -> tuple[str, bool]:
    """The phase of a nominal step, and whether it is the first of a Predict phase."""
    s = run.schedule
    if s is None:
        return "full", False
    if step <= s.warmup:
        return "warmup", False
    at = (step - s.warmup - 1) % (s.full + s.predict + s.correct)
    return ("full" if at < s.full else "predict" if at < s.full + s.predict else "correct"), at == s.full


@pytest.fixture
def fake_study(tmp_path: Path) -> FakeStudy:
    """All five arms at three seeds, complete; `hybrid` and `memory_optimized` end level with the baseline."""
    fake = FakeStudy(tmp_path)
    for seed in SEEDS:
        for arm in ARMS:
            fake.write(arm, seed)
    return fake


def some_weights(seed: int = 0, dtype: torch.dtype = torch.float32) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "h.0.attn.weight": (6, 9),
        "h.1.attn.weight": (6, 9),
        "h.0.out.weight": (9, 4),
        "h.0.bias": (9,),
        "wte.weight": (12, 6),
    }
    return [(name, torch.randn(shape, generator=generator).to(dtype)) for name, shape in shapes.items()]


def walk(predictor: Predictor, weights: Weights, steps: int, seed: int = 1) -> None:
    """A Full phase: small random moves, observed."""
    generator = torch.Generator().manual_seed(seed)
    predictor.start(weights)
    for _ in range(steps):
        for _, weight in weights:
            weight.add_(0.01 * torch.randn(weight.shape, generator=generator).to(weight))
        predictor.observe(weights)


def values(weights: Weights) -> list[Tensor]:
    return [weight.clone() for _, weight in weights]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other))
