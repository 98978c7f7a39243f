"""Broken disks and files: nothing damaged is ever used, and what cannot be written is said with path and bytes."""

import errno
import fcntl
import json
import multiprocessing
import os
import pickle
import random
import re
import resource
import signal
import subprocess
import time
import warnings
from pathlib import Path

import pytest
import torch
from field import wait_for
from rich.console import Console
from safetensors.torch import load_file
from tiny import run, same_run

from hybridlib.method.store import TensorStore
from hybridlib.study import chapters, execute, progress
from hybridlib.study.parameters import load_study
from hybridlib.study.plan import plan
from hybridlib.study.records import RunFolder
from hybridlib.study.storage import InUse, StorageError, locked, mark, part_of, write_atomically
from hybridlib.training import NUMERICS, experiment
from hybridlib.training import checkpoint as tensor_file
from hybridlib.training.checkpoint import CheckpointFile
from hybridlib.training.trainer import HybridTrainer

STEPS = 120


@pytest.fixture(autouse=True)
def own_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(progress, "OUTPUTS", tmp_path)
    return tmp_path


class PowerFailure(BaseException):
    """Ends a run at once, where nothing may catch it."""


def stopped(study: str, monkeypatch: pytest.MonkeyPatch, at_save: int = 5) -> Path:
    """The folder of a run that was stopped at its n-th checkpoint, just before it was made."""
    saves, save = [], CheckpointFile.save

    def failing(self: CheckpointFile, *state) -> None:
        saves.append(1)
        if len(saves) == at_save:
            raise PowerFailure
        save(self, *state)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFile, "save", failing)
        with pytest.raises(PowerFailure):
            experiment.train(run(study=study, steps=STEPS), "cpu")
    return progress.run_folder(run(study=study))


def finish(study: str) -> tuple[dict, list[str]]:
    """Trains the run to its end; its facts, and what it warned of."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        facts = experiment.train(run(study=study, steps=STEPS), "cpu")
    return facts, [
        str(w.message) for w in said if "going on from" in str(w.message) or "trained again" in str(w.message)
    ]


def regions(path: Path, chance: random.Random) -> list[int]:
    """A byte of every region of a file: its first and last, its header's ends, and a few between."""
    size, header = path.stat().st_size, int.from_bytes(path.read_bytes()[:8], "little")
    inner = [chance.randrange(8, 8 + header) for _ in range(8)] + [chance.randrange(8 + header, size) for _ in range(8)]
    return [0, 7, 8, 7 + header, 8 + header, size - 1, *inner]


def test_a_flipped_bit_or_a_cut_anywhere_is_found(tmp_path: Path, measured) -> None:
    path, chance = tmp_path / "x.safetensors", random.Random(0)
    tensor_file.write(path, {"a": torch.randn(9, 7), "b": torch.arange(5), "c": torch.randn(3).bfloat16(), "x": 1})
    sound, missed = path.read_bytes(), 0
    places = regions(path, chance)
    for place in places:
        for damaged in (
            sound[:place],
            sound[:place] + bytes([sound[place] ^ 1 << chance.randrange(8)]) + sound[place + 1 :],
        ):
            path.write_bytes(damaged)
            try:
                tensor_file.read(path)
                missed += 1
            except tensor_file.Damaged as error:
                assert str(path) in str(error)
    measured.add(damages=2 * len(places), damages_missed=missed)
    assert missed == 0


def test_what_is_written_is_read_back_and_is_a_safetensors_file(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(9, 7).T,
        "empty": torch.zeros(0),
        "one": torch.tensor(3),
        "c": torch.randn(3).bfloat16(),
    }
    facts = dict(x=[1, "ü"], pair=(None, {0: 2.5, "0": True}))
    tensor_file.write(tmp_path / "x.safetensors", tensors | dict(facts=facts))
    back = tensor_file.read(tmp_path / "x.safetensors")
    assert back.pop("facts") == facts and set(back) == set(tensors)
    for name, tensor in load_file(tmp_path / "x.safetensors").items():
        assert torch.equal(tensor, tensors[name]) and torch.equal(back[name], tensors[name])


def test_tensors_whose_names_would_read_alike_are_kept_apart(tmp_path: Path) -> None:
    state = {
        "a.b": torch.ones(1),
        "a": {"b": torch.zeros(1), 0: torch.full((1,), 2.0), "0": torch.full((1,), 3.0)},
        "": torch.ones(2),
    }
    tensor_file.write(tmp_path / "x.safetensors", state)
    for back in (tensor_file.read(tmp_path / "x.safetensors"), tensor_file.copied(state)):
        found = [back["a.b"], *back["a"].values(), back[""]]
        assert [tensor.tolist() for tensor in found] == [[1.0], [0.0], [2.0], [3.0], [1.0, 1.0]]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(monkeypatch) -> None:
    whole = run(study="whole", steps=STEPS)
    experiment.train(whole, "cpu")
    for study, hurt, resumed in (
        ("newest", ["checkpoint"], True),
        ("both", ["checkpoint", "checkpoint.previous"], False),
    ):
        folder = stopped(study, monkeypatch)
        for name in hurt:
            file = folder / f"{name}.safetensors"
            sound = file.read_bytes()
            file.write_bytes(sound[:-40] + bytes(byte ^ 1 for byte in sound[-40:]))
        facts, said = finish(study)
        assert facts["resumed"] == resumed and len(said) == len(hurt), said
        assert all(f"{name}.safetensors is damaged" in line for name, line in zip(hurt, said))
        assert same_run(folder, progress.run_folder(whole))


def test_what_was_gone_on_from_outlives_the_next_save(tmp_path: Path) -> None:
    """Each new file is in place before it is safe on the disk: a second failure must find the one that was sound."""

    def torn(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-5])

    for refuses in (False, True):
        path = tmp_path / f"{refuses}" / "checkpoint.safetensors"
        file = tensor_file.CheckpointFile(path, dict, {})
        for at in (1, 2):
            file.save(dict(at=at, weights=torch.ones(9)))
        if not refuses:
            torn(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert file.newest(lambda whole: whole["state"]["at"] == 1)["state"]["at"] == 1
            file.save(dict(at=3, weights=torch.ones(9)))
            assert file.load()["at"] == 3
            torn(path)
            assert file.load()["at"] == 1
        file.save(dict(at=4, weights=torch.ones(9)))
        file.save(dict(at=5, weights=torch.ones(9)))
        torn(path)
        with pytest.warns(UserWarning, match="is damaged"):
            assert tensor_file.CheckpointFile(path, dict, {}).newest(lambda whole: True)["state"]["at"] == 4


def test_a_damaged_csv_of_a_run_that_was_cut_off_gives_way_to_an_earlier_state(monkeypatch) -> None:
    whole = run(study="whole", steps=STEPS)
    experiment.train(whole, "cpu")
    for study, resumed in (("late", True), ("early", False)):
        folder = stopped(study, monkeypatch)
        # How many bytes a run wrote until then differs from run to run: it writes seconds.
        kept = tensor_file.read(folder / "checkpoint.previous.safetensors")["beside"]["steps.csv"][0]
        place = kept + 30 if resumed else 200
        content = bytearray((folder / "steps.csv").read_bytes())
        content[place] ^= 1
        (folder / "steps.csv").write_bytes(content)
        facts, said = finish(study)
        assert facts["resumed"] == resumed and "its CSV files are not as a checkpoint left them" in said[0]
        assert same_run(folder, progress.run_folder(whole))


@pytest.mark.parametrize("name", ["run.json", "steps.csv", "evals.csv"])
def test_a_complete_run_with_a_damaged_file_is_never_taken_for_complete(name: str) -> None:
    hurt = run(study="hurt", steps=STEPS)
    experiment.train(hurt, "cpu")
    file = progress.run_folder(hurt) / name
    sound, chance, damages = file.read_bytes(), random.Random(1), 0
    for place in [0, len(sound) - 2, *(chance.randrange(len(sound)) for _ in range(20))]:
        for content in (
            sound[:place],
            sound[:place] + bytes([sound[place] ^ 1 << chance.randrange(7)]) + sound[place + 1 :],
        ):
            file.write_bytes(content)
            if content != sound and not (name == "run.json" and same_json(content, sound)):
                damages += 1
                assert progress.run_state(hurt) == "damaged" and RunFolder(file.parent).facts is None
    assert damages > 30
    file.write_bytes(sound[: len(sound) // 2])
    facts, said = finish("hurt")
    assert f"{file} is damaged" in said[0] and progress.run_state(hurt) == "complete" and not facts["resumed"]


def same_json(one: bytes, other: bytes) -> bool:
    """A flip in white space changes no content."""
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


def contents(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, but for its lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def other_device(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(experiment, "device_name", lambda device, threads: "cpu: another model")
    return "a checkpoint does not fit: its device was cpu: .*, today's is cpu: another model; going on from an earlier"


def other_corpus(monkeypatch: pytest.MonkeyPatch) -> str:
    opened = experiment.open_source

    def changed(*given):
        source = opened(*given)
        source.sha256 = "of other text"
        return source

    monkeypatch.setattr(experiment, "open_source", changed)
    return "a checkpoint does not fit: its corpus_sha256 was .*, today's is of other text"


def other_numerics(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(progress, "NUMERICS", NUMERICS + 1)
    return f"a checkpoint does not fit: made under NUMERICS {NUMERICS}, today's is {NUMERICS + 1}"


def other_code(monkeypatch: pytest.MonkeyPatch) -> str:
    load = HybridTrainer.load_state_dict

    def newer(self: HybridTrainer, state: dict) -> None:
        load(self, state)
        _ = state["a part that older code did not have"]

    monkeypatch.setattr(HybridTrainer, "load_state_dict", newer)
    return "other code made its checkpoint .KeyError.'a part that older code did not have'..: starts afresh; what was"


@pytest.mark.parametrize("change", [other_device, other_corpus, other_numerics, other_code])
def test_a_checkpoint_that_does_not_fit_is_said_and_kept(change, monkeypatch) -> None:
    folder = stopped("kept", monkeypatch)
    before = contents(folder)
    assert {"checkpoint.safetensors", "checkpoint.previous.safetensors", "steps.csv"} <= set(before)
    why = change(monkeypatch)
    with pytest.warns(UserWarning) as said:
        facts = experiment.train(run(study="kept", steps=STEPS), "cpu")
    lines = [str(warning.message) for warning in said]
    aside = folder.parent.parent / "superseded" / f"{folder.name}.1"
    assert any(re.search(why, line) for line in lines), lines
    assert any(f"starts afresh; what was there is kept in {aside}" in line for line in lines), lines
    kept = contents(aside)  # all but rows after the checkpoint, which every start cuts off
    assert set(kept) == set(before) and all(before[name].startswith(kept[name]) for name in kept)
    assert kept["checkpoint.safetensors"] == before["checkpoint.safetensors"]
    assert not facts["resumed"] and progress.run_state(run(study="kept", steps=STEPS)) == "complete"


def test_memory_that_runs_out_is_no_fault_of_the_checkpoint(monkeypatch) -> None:
    folder = stopped("short", monkeypatch)
    before = contents(folder)

    def short(self: HybridTrainer, state: dict) -> None:
        raise torch.OutOfMemoryError("another process has it")

    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(HybridTrainer, "load_state_dict", short)
        experiment.train(run(study="short", steps=STEPS), "cpu")
    kept = contents(folder)
    assert kept["checkpoint.safetensors"] == before["checkpoint.safetensors"]
    assert finish("short")[0]["resumed"]


def test_the_code_of_a_record_is_what_was_there_when_it_began(monkeypatch) -> None:
    begun = progress.run_folder(run(study="begun", steps=STEPS)) / "steps.csv"

    def code() -> dict:
        return dict(commit="later" if begun.exists() else "first", dirty=False)

    monkeypatch.setattr(experiment.provenance, "code", code)
    assert finish("begun")[0]["code"]["commit"] == "first"


def test_records_of_other_parameters_are_said_and_kept_and_those_of_the_same_are_left_alone(monkeypatch) -> None:
    one, other = run(study="twice", steps=STEPS), run(study="twice", steps=STEPS, snapshot_every=11)
    experiment.train(one, "cpu")
    folder = progress.run_folder(one)
    before = contents(folder)
    assert experiment.train(one, "cpu") == RunFolder(folder).facts and contents(folder) == before
    for times in (1, 2):
        with pytest.warns(UserWarning, match="snapshot_every was 1[12], today's is 1[12]; the run is trained again"):
            experiment.train((other, one)[times - 1], "cpu")
        assert (folder.parent.parent / "superseded" / f"{folder.name}.{times}" / "run.json").exists()
    assert contents(folder.parent.parent / "superseded" / f"{folder.name}.1") == before


def test_what_an_early_kill_left_is_not_kept(monkeypatch) -> None:
    folder = stopped("early", monkeypatch, at_save=1)
    assert (folder / "steps.csv").exists() and not (folder / "checkpoint.safetensors").exists()
    (folder / "mine.txt").write_text("a user's")
    finish("early")
    assert (folder / "mine.txt").exists()
    assert not (folder.parent.parent / "superseded").exists()


def test_processes_that_write_one_file_at_once_leave_one_whole_content(tmp_path: Path) -> None:
    file, contents = tmp_path / "x.json", [letter * 100_000 for letter in "abcd"]
    writers = [
        multiprocessing.get_context("fork").Process(target=write_often, args=(file, content)) for content in contents
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert file.read_text() in contents and list(tmp_path.iterdir()) == [file]


def write_often(file: Path, content: str) -> None:
    for _ in range(30):
        write_atomically(file, content)


def test_a_name_that_is_no_utf8_can_be_written(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    write_atomically(tmp_path / "x.json", json.dumps({"path": name}, ensure_ascii=False))
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"path": name}


def test_what_dead_processes_left_half_written_goes_and_what_others_write_stays(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    alive, mine = os.getppid(), os.getpid()
    names = [f"x.json.{process}.part{more}" for process in (dead.pid, mine, alive) for more in ("", ".ipynb")]
    for name in [*names, "x.part", "my.parts.csv"]:
        (tmp_path / name).write_text("half")
    with locked(tmp_path, "looks"):
        left = {path.name for path in tmp_path.iterdir()} - {".lock"}
    assert left == {f"x.json.{alive}.part", f"x.json.{alive}.part.ipynb", "x.part", "my.parts.csv"}


def test_a_lock_names_its_holder_even_before_that_has_said_its_name(tmp_path: Path) -> None:
    with locked(tmp_path, "works"):
        with pytest.raises(InUse, match=f"{tmp_path} is in use: process {os.getpid()} works since 2"):
            with locked(tmp_path, "works"):
                pass
        (tmp_path / ".lock").write_text("")
        with pytest.raises(InUse, match="in use: a process that has just started"):
            with locked(tmp_path, "works"):
                pass
    with locked(tmp_path, "works"):
        pass


def test_on_a_disk_that_has_no_flock_a_killed_process_holds_nothing(tmp_path: Path, monkeypatch) -> None:
    def no_flock(*_given: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", no_flock)
    if (child := os.fork()) == 0:
        with locked(tmp_path, "works"):
            (tmp_path / "held").touch()
            time.sleep(60)
        os._exit(0)
    wait_for((tmp_path / "held").exists, "the child")
    with pytest.raises(InUse, match=f"{tmp_path} is in use: {child} "), locked(tmp_path, "works"):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with locked(tmp_path, "works"):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full, a device without room")
def test_a_full_disk_leaves_the_chapter_that_was_executed_before(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(chapters, "OUTPUTS", tmp_path)
    job = plan(load_study("smoke"), "smoke", only=["question"])[0]
    out = execute.executed(job, "smoke")
    out.parent.mkdir(parents=True)
    out.write_text("before")
    part_of(out).with_suffix(".part.ipynb").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=f"{out}: it could not be written: No space left on device; [\\d,]+ bytes"):
        execute.execute(job, "smoke", Console())
    assert [path.name for path in out.parent.iterdir()] == [out.name] and out.read_text() == "before"


def test_a_checkpoint_from_elsewhere_runs_no_code_and_leads_nowhere(monkeypatch, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    folder = stopped("trap", monkeypatch)
    for name in ("checkpoint", "checkpoint.previous"):
        (folder / f"{name}.safetensors").write_bytes(pickle.dumps(Trap()))
    facts, said = finish("trap")
    assert not facts["resumed"] and len(said) == 2 and not (tmp_path / "sprung").exists()


def in_a_child(work) -> int:
    """Does some work in a forked process; 0 if it raised nothing."""
    if not (child := os.fork()):
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error))
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_write_that_fails_says_path_and_bytes_and_earlier_results_stay(tmp_path: Path) -> None:
    file = CheckpointFile(tmp_path / "checkpoint.safetensors", dict, {})
    file.save({"x": torch.ones(10), "step": 1})

    def beyond_the_limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        with pytest.raises(
            StorageError, match=r"checkpoint.safetensors: 4,000,000 bytes could not be written: File too large; .* free"
        ):
            file.save({"x": torch.ones(1_000_000), "step": 2})
        with pytest.raises(OSError, match="4,000,000 bytes could not be written: .*; .* bytes are free there"):
            TensorStore(tmp_path).put("x", torch.ones(1_000_000))
        with pytest.raises(StorageError, match="x.json: 2,000,000 bytes"):
            write_atomically(tmp_path / "x.json", "y" * 2_000_000)

    write_atomically(tmp_path / "x.json", "before")
    assert in_a_child(beyond_the_limit) == 0
    assert file.load()["step"] == 1 and (tmp_path / "x.json").read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.safetensors", "x.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full, a device without room")
def test_a_full_disk_ends_a_run_with_one_clear_error_and_it_goes_on_when_there_is_room(monkeypatch) -> None:
    whole = run(study="whole", steps=STEPS)
    experiment.train(whole, "cpu")
    folder = stopped("full", monkeypatch)
    records, flush, full = folder / "steps.csv", RunFolder.flush, []

    def no_room(self: RunFolder) -> None:
        if sum(map(len, self._rows.values())) and not full:
            full.append(records.rename(records.with_suffix(".kept")))
            records.symlink_to("/dev/full")
        flush(self)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "flush", no_room)
        with pytest.raises(
            StorageError, match=r"steps.csv: [\d,]+ bytes could not be written: No space left on device; [\d,]+ bytes"
        ):
            experiment.train(run(study="full", steps=STEPS), "cpu")
    records.unlink()
    records.with_suffix(".kept").rename(records)
    facts, said = finish("full")
    assert facts["resumed"] and not said and same_run(folder, progress.run_folder(whole))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "outputs").write_text("a file, where a folder should be")
    monkeypatch.setattr(progress, "OUTPUTS", tmp_path / "outputs")
    with pytest.raises(
        StorageError, match="outputs/tiny/runs/hybrid-markov-s5/.lock: .* could not be written: Not a directory"
    ):
        experiment.train(run(), "cpu")


def test_marks_are_of_the_beginning_alone(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    assert mark(file) == mark(file, 0)
    file.write_text("one\n")
    before = mark(file)
    with file.open("a") as out:
        out.write("two\n")
    assert mark(file, 4) == before != mark(file)
