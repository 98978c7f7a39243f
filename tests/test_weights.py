"""Kept weights: those that the last evaluation judged, bit for bit, whatever befell the run; and no number for them."""

import contextlib
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from tiny import baseline, same_run, timeless

from hybridlib.study import progress
from hybridlib.study.parameters import load_study
from hybridlib.study.records import RunFolder
from hybridlib.study.run import Run, Source
from hybridlib.study.sweeps import trials
from hybridlib.training import corpus, weights
from hybridlib.training.checkpoint import CheckpointFile
from hybridlib.training.data import open_source
from hybridlib.training.experiment import train
from hybridlib.training.loss import held_out_loss
from hybridlib.training.models import weights_sha256
from hybridlib.training.weights import continuation, kept_model

KEEP = dict(keep_weights=True)


@pytest.fixture(autouse=True)
def own_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(progress, "OUTPUTS", tmp_path)
    return tmp_path


def judged_loss(run: Run) -> float:
    """The held-out loss of the weights that a run kept."""
    source = open_source(run.source, run.model.vocab_size, run.batch_size, run.seq_len)
    return held_out_loss(kept_model(run), [source.held_out(at) for at in range(run.eval_batches)])


def evaluated_loss(run: Run) -> float:
    return RunFolder(progress.run_folder(run)).evals().held_out_loss.iloc[-1]


@pytest.mark.parametrize("make", [baseline, tiny.run])
def test_they_are_the_final_weights_and_change_no_number(make) -> None:
    kept, plain = make(**KEEP), make(study="plain")
    facts = train(kept, "cpu")
    train(plain, "cpu")
    assert weights_sha256(kept_model(kept)) == facts["weights_sha256"]
    assert judged_loss(kept) == pytest.approx(evaluated_loss(kept), abs=1e-6)
    assert same_run(progress.run_folder(kept), progress.run_folder(plain))
    assert not progress.weights_path(plain).exists() and kept_model(plain) is None
    named = dict(kept_model(kept).named_parameters())
    there = load_file(progress.weights_path(kept))
    assert set(there) == set(named) and all(torch.equal(named[name], there[name]) for name in named)
    files = {file.name for file in progress.run_folder(kept).iterdir()}
    assert files == {"run.json", "steps.csv", "evals.csv", ".lock", "weights.safetensors"}


@pytest.mark.parametrize(
    "settings",
    [dict(read_out_steps=6), dict(optimizer=dict(name="schedule_free", lr=4e-3, lr_warmup_steps=10))],
    ids=["average", "schedule_free"],
)
def test_they_are_read_out_as_an_evaluation_does(settings: dict) -> None:
    run = baseline(**KEEP, **settings)
    facts = train(run, "cpu")
    assert weights_sha256(kept_model(run)) != facts["weights_sha256"], "what is trained on is another"
    assert judged_loss(run) == pytest.approx(evaluated_loss(run), abs=1e-6)


def test_an_extension_replaces_those_of_the_nominal_end() -> None:
    run = tiny.run(**KEEP, extend=2.0)
    train(run, "cpu")
    before = judged_loss(run)
    train(baseline(), "cpu")
    assert progress.run_state(run) == "extendable" and train(run, "cpu")["last_step"] > run.steps
    assert judged_loss(run) == pytest.approx(evaluated_loss(run), abs=1e-6) and judged_loss(run) < before


class Killed(BaseException):
    """Ends a run at once, where nothing may catch it."""


def kill_at_a_checkpoint(patch: pytest.MonkeyPatch) -> None:
    saves, save = [], CheckpointFile.save

    def until_the_third(file: CheckpointFile, *state: object) -> None:
        saves.append(1)
        if len(saves) == 3:
            raise Killed
        save(file, *state)

    patch.setattr(CheckpointFile, "save", until_the_third)


def kill_before_they_are_whole(patch: pytest.MonkeyPatch) -> None:
    def half(path: Path, state: dict) -> None:
        path.write_bytes(b"half")
        raise Killed

    patch.setattr(weights, "write", half)


def kill_after_they_are_written(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RunFolder, "finish", lambda *given, **named: (_ for _ in ()).throw(Killed))


@pytest.mark.parametrize("kill", [kill_at_a_checkpoint, kill_before_they_are_whole, kill_after_they_are_written])
def test_a_killed_and_resumed_run_writes_the_same_bytes(kill) -> None:
    whole, killed = tiny.run(**KEEP, study="whole"), tiny.run(**KEEP, study="killed")
    train(whole, "cpu")
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
        kill(patch)
        train(killed, "cpu")
    assert progress.run_state(killed) == "partial"
    assert train(killed, "cpu")["resumed"] and progress.run_state(killed) == "complete"
    assert progress.weights_path(killed).read_bytes() == progress.weights_path(whole).read_bytes()


def test_records_are_the_same_runs_with_and_without_the_setting() -> None:
    run, kept = tiny.run(), tiny.run(**KEEP)
    assert Run.model_fields["keep_weights"].default is False
    then = progress.identity(run)["parameters"]
    older = {key: value for key, value in then.items() if key != "keep_weights"}
    for recorded in (then, older, progress.identity(kept)["parameters"]):
        assert not progress.other_parameters(run, recorded) and not progress.other_parameters(kept, recorded)


def test_trials_of_sweeps_and_searches_keep_none() -> None:
    study = load_study("cpu").model_copy(update=KEEP)
    assert study.run("hybrid", study.judged, 1).keep_weights and not any(run.keep_weights for run in trials(study))


@pytest.mark.parametrize("extend", [1.0, 2.0], ids=["without a checkpoint", "with one"])
def test_a_complete_run_without_them_is_trained_again_and_says_so(extend: float) -> None:
    run, kept = tiny.run(extend=extend), tiny.run(**KEEP, extend=extend)
    train(run, "cpu")
    assert progress.checkpoint_path(run).exists() == (extend > 1)
    assert progress.run_state(run) == "complete" and progress.run_state(kept) == "stale"
    assert progress.why_run_again(kept) == "keep_weights asks for weights.safetensors, which is not there"
    with pytest.warns(UserWarning) as said:
        facts = train(kept, "cpu")
    lines = " ".join(str(warning.message) for warning in said)
    assert "which is not there; the run is trained again" in lines and "superseded" in lines
    assert not facts["resumed"] and progress.run_state(kept) == progress.run_state(run) == "complete"
    assert weights_sha256(kept_model(kept)) == facts["weights_sha256"]
    aside = progress.run_folder(run).parents[1] / "superseded" / f"{run.id}.1"
    assert (aside / "run.json").exists()
    assert all(one.equals(other) for one, other in zip(timeless(aside), timeless(progress.run_folder(kept))))


def test_a_damaged_file_is_said_and_not_used() -> None:
    run = baseline(**KEEP)
    train(run, "cpu")
    file = progress.weights_path(run)
    sound = file.read_bytes()
    file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.warns(UserWarning, match=r"weights.safetensors is damaged: .*; once the file is deleted, the run is "):
        assert kept_model(run) is None


def test_two_models_draw_with_the_same_random_numbers() -> None:
    run = baseline(**KEEP)
    train(run, "cpu")
    prompts = torch.arange(12).view(3, 4)
    one, again, other = (continuation(kept_model(run), prompts, 8, seed) for seed in (0, 0, 1))
    assert one.shape == (3, 8) and torch.equal(one, again) and not torch.equal(one, other)
    assert one.max() < run.model.vocab_size and one.dtype == prompts.dtype


def test_tokens_are_read_by_the_tokenizer_that_made_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "CACHE", tmp_path / "cache")
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog — and says so.\n" * 2000)
    source = Source(kind="text", tokenizer_vocab=300, paths=[str(tmp_path / "text.txt")])
    tokens = corpus.load_corpus(source, 512)
    text = corpus.tokenizer_of(source, 512).decode([*tokens.train.tolist(), *tokens.held_out.tolist()])
    assert text == (tmp_path / "text.txt").read_text()
