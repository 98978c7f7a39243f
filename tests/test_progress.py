"""When a record is what a run would compute today, and what is said when it is not."""

import json
from pathlib import Path

import pytest
from tiny import run

from hybridlib.study import progress
from hybridlib.study.parameters import OUTPUTS
from hybridlib.study.records import RunFolder
from hybridlib.study.run import Run
from hybridlib.training import NUMERICS


def facts(**changes) -> dict:
    """What a record of `tiny.run` holds, as it comes back from its file."""
    return json.loads(json.dumps(progress.identity(run()))) | changes


def parameters(**changes) -> dict:
    return facts()["parameters"] | changes


def test_a_record_is_judged_by_parameters_and_numerics_alone() -> None:
    assert progress.why_run_stale(run(), facts()) == ""
    assert not progress.why_run_stale(
        run(), facts(lock_sha256="of other packages", device="another", code=dict(commit="other"))
    )
    assert not progress.why_run_stale(run(study="elsewhere", about="other words", role="control"), facts())


def test_a_setting_newer_than_the_record_counts_as_at_its_default() -> None:
    older = {key: value for key, value in parameters().items() if key not in ("moments", "read_out_steps", "guards")}
    assert not progress.why_run_stale(run(), facts(parameters=older))
    assert (
        progress.why_run_stale(run(moments="reset"), facts(parameters=older))
        == "moments was 'keep', today's is 'reset'"
    )


def test_a_default_that_changed_since_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(Run):
        read_out_steps: int = 7

    today = Later(**{key: value for key, value in run().model_dump().items() if key != "read_out_steps"})
    monkeypatch.setattr(progress, "Run", Later)
    assert progress.why_run_stale(today, facts()) == "read_out_steps was 1, today's is 7"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(numerics=0), f"made under NUMERICS 0, today's is {NUMERICS}"),
        (dict(numerics=None), f"made under NUMERICS None, today's is {NUMERICS}"),
        (dict(parameters=parameters(steps=65)), "steps was 65, today's is 64"),
        (dict(parameters=parameters(steps=65, seq_len=8)), "steps was 65, today's is 64, and 1 more differ"),
        (dict(parameters=parameters(schedule=None, predictor=None)), "schedule was None, today's is {'warmup': 4"),
        (
            dict(parameters=parameters(predictor=dict(name="spectral", gain=2.5))),
            "predictor.gain was 2.5, today's is None",
        ),
        (
            dict(parameters=parameters(colour="blue")),
            "today's schema refuses its parameters: colour: unknown key",
        ),
        (
            dict(parameters=parameters(predictor=dict(name="oracle"))),
            "today's schema refuses its parameters: predictor: no predictor 'oracle'",
        ),
        (dict(parameters=None), "today's schema refuses its parameters"),
    ],
)
def test_one_sentence_says_why_a_record_is_stale(changes: dict, said: str) -> None:
    assert progress.why_run_stale(run(), facts(**changes)).startswith(said)


def test_records_that_are_committed_say_under_what_they_were_made() -> None:
    found = sorted(Path(OUTPUTS).rglob("run.json"))
    if not found:
        pytest.skip("no outputs are here")
    for path in found:
        assert not RunFolder(path.parent).damage()
        record = json.loads(path.read_text(encoding="utf-8"))
        assert record["numerics"] in range(NUMERICS + 1) and "lock_sha256" in record
        assert not {"parameters_sha256", "training_sha256", "predictor_sha256"} & {*record, *record["code"]}
