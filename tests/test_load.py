"""Reading records: what is mixed is refused, what is missing or left out is named."""

import pandas as pd
import pytest

from hybridlib.analysis import load


@pytest.mark.parametrize(
    "facts, says",
    [
        (dict(device="cuda: other"), "the runs on text must have one device"),
        (dict(corpus_sha256="other"), "the runs on text must have one corpus_sha256"),
        (dict(predictor_sha256="other"), "the runs of hold on text must have one predictor_sha256"),
        (dict(code=dict(commit="c", dirty=False, training_sha256="other")), "the runs on text must have one training_sha256"),
    ],
)
def test_a_mixture_is_refused_and_named(fake_study, facts, says) -> None:
    fake_study.rewrite("hold", 3, **facts)
    with pytest.raises(ValueError, match=says) as refused:
        load.read(fake_study.name, fake_study.outputs)
    assert "hold-text-s3" in str(refused.value)


def test_runs_of_other_parameters_are_left_out_and_named(fake_study) -> None:
    fake_study.rewrite("hold", 3, parameters_sha256="of an older study")
    records = load.read(fake_study.name, fake_study.outputs)
    assert records.left_out == ["hold-text-s3"]
    assert records.missing.why.tolist() == ["made with other parameters than the study's"]


def test_data_sources_may_come_from_different_machines(fake_study) -> None:
    runs = load.read(fake_study.name, fake_study.outputs).runs
    elsewhere = runs.assign(data="uniform", device="cuda: other", training_sha256="other")
    load.refuse_mixture(pd.concat([runs, elsewhere]))
