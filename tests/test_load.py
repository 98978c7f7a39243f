"""Reading records: what is mixed is refused, what is missing or left out is named."""

import pandas as pd
import pytest

from hybridlib.analysis import load


@pytest.mark.parametrize(
    "facts, says",
    [
        (dict(device="cuda: other"), "the runs on text must have one device"),
        (dict(corpus_sha256="other"), "the runs on text must have one corpus_sha256"),
        (dict(numerics=0), "the runs on text must have one numerics"),
    ],
)
def test_a_mixture_is_refused_and_named(fake_study, facts, says) -> None:
    fake_study.rewrite("hold", 3, **facts)
    with pytest.raises(ValueError, match=says) as refused:
        load.read(fake_study.name, fake_study.outputs)
    assert "hold-text-s3" in str(refused.value)


def test_runs_of_other_parameters_are_left_out_and_named(fake_study) -> None:
    older = fake_study.study.run("hold", "text", 3).model_dump() | dict(eval_every=7)
    fake_study.rewrite("hold", 3, parameters=older)
    records = load.read(fake_study.name, fake_study.outputs)
    assert records.left_out == ["hold-text-s3"]
    assert records.missing.why.tolist() == ["made with other parameters than the study's"]


def test_data_sources_may_come_from_different_machines(fake_study) -> None:
    runs = load.read(fake_study.name, fake_study.outputs).runs
    elsewhere = runs.assign(data="uniform", device="cuda: other", numerics=0)
    load.refuse_mixture(pd.concat([runs, elsewhere]))
