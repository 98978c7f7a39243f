"""What leaves the device comes back bit for bit, and while it is away the process is smaller."""

import gc
import os
import pickle
import subprocess
import sys
import tempfile
import warnings
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlib import HybridOptimizer, Nesterov, PhaseSchedule
from hybridlib.method.offload import OptimizerOffload
from hybridlib.method.store import TensorStore
from hybridlib.study.arm import OptimizerSettings
from hybridlib.training import checkpoint, states
from hybridlib.training.checkpoint import CheckpointFile, Snapshots
from hybridlib.training.meter import Meter, give_back
from hybridlib.training.objective import Objective
from hybridlib.training.optimizers import make_optimizer
from hybridlib.training.trainer import HybridTrainer

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


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.data())
def test_rows_are_read_and_written_as_slices_are(rows: int, columns: int, data: st.DataObject) -> None:
    store, whole = TensorStore(), torch.arange(rows * columns, dtype=torch.float32).view(rows, columns)
    store.put("before", torch.ones(3))
    store.put("x", whole)
    for _ in range(3):
        at = data.draw(st.integers(0, rows - 1))
        part = slice(at, data.draw(st.integers(at + 1, rows + 2)))
        assert torch.equal(store.get("x", rows=part), whole[part])
        whole[part] = -whole[part] - 1
        store.put("x", whole[part], part)
    assert torch.equal(store.get("x"), whole) and torch.equal(store.get("before"), torch.ones(3))


@on_linux
def test_counted_bytes_are_the_files_and_no_memory_of_the_process() -> None:
    before = Meter(torch.device("cpu")).floor_mb
    store, piece = TensorStore(), torch.ones(1_000_000)
    for at in range(40):
        store.put(f"x{at}", piece)
    size = os.fstat(store._file.fileno())
    assert store.nbytes == size.st_size == 160e6 and size.st_blocks * 512 >= 160e6
    assert Meter(torch.device("cpu")).floor_mb - before < 20
    assert not [line for line in Path("/proc/self/maps").read_text().splitlines() if f" {size.st_ino} " in line]


def test_a_trainer_counts_what_it_keeps_off_the_device() -> None:
    """The predictor's two copies, one that undoes a jump while it may be undone, the moments while they are away."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 40), torch.nn.Tanh(), torch.nn.Linear(40, 1))
    schedule = PhaseSchedule(warmup=2, full=3, predict=4, correct=2, total=40)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    optimizer = HybridOptimizer(adam, model.named_parameters(), schedule, Nesterov())
    loss = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()  # noqa: E731
    trainer = HybridTrainer(optimizer, Objective(model, loss), offload=OptimizerOffload(optimizer))
    one = sum(weight.numel() * 4 for weight in model.parameters())
    copies = dict(warmup=0, full=2, predict=5, correct=2)
    for _ in range(40):
        batch = torch.randn(4, 6), torch.randn(4, 1)
        record = trainer.step(batch)
        assert round(record.stored_mb * 1e6) == one * copies[record.phase], record


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
    away.offload()
    assert sum(v.numel() for s in optimizer.state.values() for v in s.values() if v.ndim) == 0
    assert all(p.grad is None for p in model.parameters())
    away.restore()
    away.restore()
    after = [v for s in optimizer.state.values() for v in s.values()]
    assert len(after) == len(before) and all(torch.equal(a, b) for a, b in zip(after, before))


def test_matrices_that_an_optimizer_keeps_in_lists_leave_too() -> None:
    model = torch.nn.Linear(50, 40)
    optimizer = make_optimizer(OptimizerSettings(name="soap"), model)
    for _ in range(3):
        model(torch.randn(3, 50)).sum().backward()
        optimizer.step()

    def tensors() -> list[torch.Tensor]:
        values = [value for state in optimizer.state.values() for value in state.values()]
        inside = [each for value in values for each in (value if isinstance(value, list) else [value])]
        return [each for each in inside if isinstance(each, torch.Tensor) and each.ndim]

    before, away = [each.clone() for each in tensors()], OptimizerOffload(optimizer)
    assert sum(each.shape == (50, 50) for each in before) >= 2, "SOAP has a basis and a statistic of that side"
    away.offload()
    assert sum(each.numel() for each in tensors()) == 0
    away.restore()
    assert all(torch.equal(one, other) for one, other in zip(before, tensors(), strict=True))


def test_a_state_that_finds_no_room_half_way_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(50, 40)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(3, 50)).sum().backward()
    optimizer.step()
    before = [v.clone() for s in optimizer.state.values() for v in s.values()]
    away, put = OptimizerOffload(optimizer), TensorStore.put

    def put_but_three(store: TensorStore, *given: Any) -> None:
        if len(store.names()) == 3:
            raise OSError(28, "No space left on device")
        put(store, *given)

    monkeypatch.setattr(TensorStore, "put", put_but_three)
    with pytest.raises(OSError):
        away.offload()
    away.restore()
    after = [v for s in optimizer.state.values() for v in s.values()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_a_store_that_nobody_holds_closes_its_file_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    warnings.simplefilter("always")
    store = TensorStore()
    store.put("x", torch.ones(3))
    file = store._file
    del store
    gc.collect()
    assert file.closed and not recwarn.list


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


@on_linux
def test_a_checkpoint_of_what_lies_in_a_store_holds_a_piece_of_it_at_a_time(tmp_path: Path) -> None:
    store, meter = TensorStore(tmp_path), Meter(torch.device("cpu"))
    store.put("matrix", torch.randn(50, 1_000_000))  # 200 MB
    store.put("scalar", torch.tensor(3.0))
    give_back()
    meter.enter_phase()
    before = meter.peak_mb()
    checkpoint.write(tmp_path / "file", store.entries())
    assert meter.peak_mb() - before < 50
    found = checkpoint.read(tmp_path / "file")
    assert found.keys() == {"matrix", "scalar"}
    assert all(torch.equal(found[name], store.get(name)) for name in found)


@pytest.mark.parametrize("shape", [(), (0, 3), (1, 7), (9, 5), (40, 2, 3, 2)])
def test_pieces_of_a_tensor_are_all_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shape: tuple) -> None:
    monkeypatch.setattr(states, "PIECE_BYTES", 48)
    whole, store = torch.randn(shape), TensorStore(tmp_path)
    store.put("whole", whole)
    forms = [whole, store.entries()["whole"]]
    forms += [whole.contiguous(memory_format=torch.channels_last)] if whole.dim() == 4 else []
    for form in forms:
        found = list(states.pieces(form))
        assert torch.equal(torch.cat(found) if shape else found[0], whole)
        assert all(len(piece) == 1 or piece.nbytes <= 48 for piece in found if shape)


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


def test_a_kill_while_a_checkpoint_replaces_others_leaves_none_that_is_newer_than_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a rollback would go forward, to weights that the run has not come to."""
    file = CheckpointFile(tmp_path / "checkpoint.safetensors", dict, {})
    file.save(dict(step=50))
    file.stop(dict(step=100))
    unlink, replace = Path.unlink, Path.replace
    for name in ("unlink", "replace"):
        for kill_at in range(4):
            calls = []

            def dies(path: Path, *given: Any, of=dict(unlink=unlink, replace=replace)[name], **more: Any) -> Any:
                calls.append(path)
                if len(calls) > kill_at:
                    raise KeyboardInterrupt
                return of(path, *given, **more)

            with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
                patch.setattr(Path, name, dies)
                file.save(dict(step=120))
            again = CheckpointFile(file.path, dict, {})
            begun = again.newest(lambda saved: True)["state"]["step"]
            assert again.load()["step"] <= begun
            file.stop(dict(step=100 + kill_at))


TINY = """
import torch
from hybridlib.training.assemble import pick_device, subnormals_as_zero

pick_device("cpu", 2)
with subnormals_as_zero():
    weight = torch.full((3_000_000,), 1e-30)
    print(int((weight * 1e-9).view(torch.int32).count_nonzero()))  # 1e-39 is subnormal in float32
print(int((weight[:9] * 1e-9).view(torch.int32).count_nonzero()))
"""


def test_subnormal_numbers_are_zero_on_all_threads_that_start_afterwards() -> None:
    done = subprocess.run([sys.executable, "-c", TINY], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout.split() == ["0", "9"], done.stderr


def test_a_copy_of_a_store_lies_where_temporary_files_lie_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "first"))
    store = TensorStore()
    store.put("weights", torch.arange(6.0))
    kept = pickle.dumps(store)
    (tmp_path / "first").rmdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "second"))
    copy = pickle.loads(kept)
    assert copy.folder == tmp_path / "second" and torch.equal(copy.get("weights"), torch.arange(6.0))


def test_a_system_that_does_not_say_its_peak_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "Name: python\n")
    assert Meter(torch.device("cpu")).peak_mb() == 0
