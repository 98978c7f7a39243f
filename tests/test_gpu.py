"""What only a GPU shows: short runs of GPT-2 Small's arms, memory as the allocator counts it, pinned stores."""

import math
from pathlib import Path

import pytest
import torch
from conftest import some_weights, values, walk

from hybridlib.method.predictors import make_predictor, spectral
from hybridlib.method.store import TensorStore
from hybridlib.study import progress
from hybridlib.study.parameters import load_study
from hybridlib.study.records import RunFolder
from hybridlib.training.experiment import train

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine"),
]
ARMS = ["baseline", "hybrid", "memory_optimized", "hold", "sham", "hybrid_offload", "baseline_bf16"]
SHORT = dict(steps=90, extend=1.0, eval_every=45, eval_batches=2, snapshot_every=60)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """The `run.json` of a short run of each arm on text: of a chain of 50257 states so few steps learn nothing."""
    study, patched = load_study("gpt2-small"), pytest.MonkeyPatch()
    patched.setattr(progress, "OUTPUTS", tmp_path_factory.mktemp("outputs"))
    runs = {arm: study.run(arm, "text", 1000).model_copy(update=SHORT) for arm in ARMS}
    runs["again"] = runs["hybrid"].model_copy(update=dict(study="again"))
    yield {arm: train(run, "cuda:0") | dict(folder=progress.run_folder(run)) for arm, run in runs.items()}
    patched.undo()


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_trains(trained: dict[str, dict], arm: str) -> None:
    summary, records = trained[arm]["summary"], RunFolder(Path(trained[arm]["folder"]))
    evals = records.evals()
    assert len(records.steps()) == 90 and summary["divergences"] == 0 and math.isfinite(summary["held_out_loss"])
    assert arm == "sham" or evals.held_out_loss.iloc[-1] < math.log(50257)


def test_the_same_run_gives_the_same_bits(trained: dict[str, dict]) -> None:
    assert trained["again"]["weights_sha256"] == trained["hybrid"]["weights_sha256"]


def test_in_predict_the_optimizers_state_is_pinned_and_not_on_the_device(trained: dict[str, dict]) -> None:
    steps = {arm: RunFolder(Path(trained[arm]["folder"])).steps() for arm in ("hybrid", "hybrid_offload")}
    peaks = {arm: found[found.phase == "predict"].peak_mb.max() for arm, found in steps.items()}
    stored = {arm: found[found.phase == "predict"].stored_mb.max() for arm, found in steps.items()}
    moments_mb = 2 * 4 * trained["hybrid"]["model_parameters"] / 1e6
    assert peaks["hybrid"] - peaks["hybrid_offload"] == pytest.approx(moments_mb, rel=0.1)
    assert stored["hybrid_offload"] - stored["hybrid"] == pytest.approx(moments_mb, rel=0.01)


def test_a_stores_rows_lie_in_pinned_memory() -> None:
    store, table = TensorStore(), torch.arange(60.0, device="cuda").view(12, 5)
    store.put("table", table)
    store.put("table", -table[3:7], slice(3, 7))
    assert store._kept["table"].is_pinned() and store.nbytes == 240
    assert torch.equal(store.get("table", "cuda", slice(2, 8)), torch.cat([table[2:3], -table[3:7], table[7:8]]))


def test_what_a_checkpoint_gave_back_is_pinned_as_soon_as_the_device_writes_to_it() -> None:
    store, table = TensorStore(), torch.arange(60.0).view(12, 5)
    store.put("table", table)
    store.put("table", -table[3:7].cuda(), slice(3, 7))
    assert store._kept["table"].is_pinned() and store.nbytes == 240
    table[3:7] *= -1
    assert torch.equal(store.get("table"), table)


def test_a_table_moves_by_rows_as_it_does_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectral, "BLOCK_ELEMENTS", 64)
    landed = []
    for device in ("cpu", "cuda"):
        weights = [(name, weight.to(device)) for name, weight in some_weights()]
        predictor = make_predictor("spectral")
        walk(predictor, weights, 3)
        predictor.predict(weights, horizon=4, progress=0.5)
        landed.append(values(weights))
    for one, other in zip(*landed):
        torch.testing.assert_close(other.cpu(), one, rtol=1e-3, atol=1e-4)
