"""What leaves the device comes back bit for bit, and while it is away the process is smaller."""

import gc
import weakref
from pathlib import Path

import pytest
import torch

from hybridlib.method.offload import OptimizerOffload, TensorStore
from hybridlib.training.checkpoint import CheckpointFile, Snapshots
from hybridlib.training.meter import Meter, give_back

on_linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0,), (64, 1024)])
def test_a_store_gives_back_what_it_was_given(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    store, tensor = TensorStore(), (torch.randn(shape) * 100).to(dtype)
    store.put("x", tensor)
    kept = tensor.clone()
    tensor.add_(1)
    assert torch.equal(store.get("x"), kept) and store.get("x").dtype == dtype
    store.put("x", tensor)
    assert torch.equal(store.get("x"), tensor) and store.names() == ["x"]


def test_a_cleared_store_is_empty_and_usable() -> None:
    store = TensorStore()
    store.put("x", torch.ones(3))
    store.clear()
    assert "x" not in store
    store.put("y", torch.zeros(7))
    assert torch.equal(store.get("y"), torch.zeros(7))


def test_the_optimizers_state_comes_back_bit_for_bit() -> None:
    model = torch.nn.Linear(50, 40)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(3, 50)).sum().backward()
    optimizer.step()
    before = [v.clone() for s in optimizer.state.values() for v in s.values()]
    away = OptimizerOffload(optimizer)
    away.offload()
    assert sum(v.numel() for s in optimizer.state.values() for v in s.values() if v.ndim) == 0
    assert all(p.grad is None for p in model.parameters())
    away.restore()
    away.restore()
    after = [v for s in optimizer.state.values() for v in s.values()]
    assert len(after) == len(before) and all(torch.equal(a, b) for a, b in zip(after, before))


@on_linux
def test_memory_away_is_not_resident() -> None:
    weight = torch.nn.Parameter(torch.randn(40, 1_000_000))  # 160 MB; Adam keeps 320 MB
    optimizer = torch.optim.Adam([weight], fused=True)
    meter = Meter(torch.device("cpu"))
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    optimizer.zero_grad()
    give_back()
    meter.enter_phase()
    at_home = meter.peak_mb()
    away = OptimizerOffload(optimizer)
    away.offload()
    meter.enter_phase()
    assert at_home - meter.peak_mb() == pytest.approx(320, abs=20)


@on_linux
def test_a_phases_peak_is_its_own() -> None:
    meter = Meter(torch.device("cpu"))
    meter.enter_phase()
    big = torch.ones(30_000_000)
    peak = meter.peak_mb()
    del big
    give_back()
    meter.enter_phase()
    assert peak - meter.peak_mb() == pytest.approx(120, abs=15)


def test_a_checkpoint_that_was_written_keeps_no_tensor(tmp_path: Path) -> None:
    """Not even until garbage is collected: what left the device in Predict would still be there."""
    tensor = torch.ones(3)
    known = weakref.ref(tensor)
    gc.disable()
    try:
        CheckpointFile(tmp_path / "x.safetensors", dict, {}).save(dict(moments=[dict(of=tensor)]))
        Snapshots().save(dict(moments=[dict(of=tensor)]))
        del tensor
        assert known() is None
    finally:
        gc.enable()
