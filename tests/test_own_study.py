"""A study of a stranger's own: sources, arms and seeds of any names and number. Every chapter says what can be judged.

The last tests train one, from a file outside `params/` to its report.
"""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from chapter import Executed, run_chapter
from command import finish
from conftest import FakeStudy

from hybridlib.analysis.load import read_records
from hybridlib.analysis.rules import read_rules
from hybridlib.analysis.verdicts import INCONCLUSIVE, PASS, judge_criteria
from hybridlib.study import export
from hybridlib.study.parameters import ROOT
from hybridlib.study.plan import READERS
from hybridlib.study.schema import CHAPTERS, STAGES

READING = ["00_question", *(CHAPTERS[stage] for stage in STAGES if stage in READERS)]
PROSE = dict(kind="text", tokenizer_vocab=512)
MINE = dict(
    like="hybrid",
    about="of our own",
    schedule=dict(warmup=2, full=2, predict=4, correct=2),
    predictor=dict(name="linear"),
)
HYBRID = dict(schedule=dict(warmup=4, full=3, predict=5, correct=1))


def study(folder: Path, arms: list[str], seeds: list[int], sources: dict | None = None, **changes) -> FakeStudy:
    """Return a study of these arms, seeds and sources with all its records."""
    sources = sources or dict(prose=PROSE)
    plan = dict(benchmark=[dict(arms=arms, data=list(sources))])
    own = dict(hybrid=HYBRID) | ({"mine": MINE} if "mine" in arms else {})
    known = sources | ({"unused": PROSE} if changes.get("judged_on") == "unused" else {})
    fake = FakeStudy(folder, sources=known, seeds=seeds, plan=plan, arms=own, **changes)
    for seed in seeds:
        for data in sources:
            for arm in arms:
                fake.write(arm, seed, data=data, floor_nats=1.0, corpus_sha256=data)
    return fake


ODD = dict(
    one_seed=dict(arms=["baseline", "hybrid", "hold", "sham"], seeds=[7]),
    no_baseline=dict(arms=["hybrid", "hold"], seeds=[7, 8]),
    no_control=dict(arms=["baseline", "hybrid", "memory_optimized"], seeds=[7, 8, 9]),
    baseline_alone=dict(arms=["baseline"], seeds=[7, 8]),
    control_alone=dict(arms=["hold"], seeds=[7]),
    elsewhere=dict(arms=["baseline", "hybrid"], seeds=[7], sources=dict(prose=PROSE), judged_on="unused"),
    no_hybrid=dict(arms=["baseline", "mine"], seeds=[7, 8]),
    several_sources=dict(
        arms=["baseline", "hybrid"],
        seeds=[7, 8],
        sources={"chain-4": dict(kind="markov"), "noise": dict(kind="uniform"), "prose_1": PROSE},
        judged_on="prose_1",
    ),
)
SAYS = dict(
    one_seed=["one seed (7): no interval and no p value", "over 1 seed,"],
    no_baseline=[
        "no `baseline`: no speedup, no change of loss, no time to target",
        "no `baseline` is planned on `prose`",
    ],
    no_control=["no `hold`: H2 cannot be judged", "no tests for C7"],
    baseline_alone=["no `hybrid`: C2, C3, C5, C6, H1 and H2 cannot be judged", "no `hybrid` is planned on `prose`"],
    control_alone=["no `baseline`: no speedup", "no `hybrid`: C2", "no `baseline` is planned on `prose`"],
    elsewhere=["no run at all: `judged_on` in the study's file would name another source"],
    no_hybrid=["no `hybrid`: C2, C3, C5, C6, H1 and H2 cannot be judged", "`mine` had"],
    several_sources=["judged on `prose_1`", "(kind markov)", "On `prose_1`, over 2 seeds"],
)


def executed(fake: FakeStudy, names: list[str]) -> dict[str, Executed]:
    with pytest.MonkeyPatch.context() as patched:
        return {name: run_chapter(name, fake, patched, draw=False) for name in names}


@pytest.mark.parametrize("kind", ODD)
def test_every_chapter_of_an_odd_study_runs_and_says_what_can_be_judged(tmp_path: Path, kind: str) -> None:
    chapters = executed(study(tmp_path, **ODD[kind]), READING)
    report = chapters["09_report"]
    shown = [one for one in report.shown.values() if one.kind == "text"]
    said = "\n".join([*(one.content for one in shown), *(chapter.said for chapter in chapters.values())])
    assert [part for part in SAYS[kind] if part not in said] == []
    assert not re.search(r"\bnan\b|\bNone\b|`text`|on text\b", said)
    tables = [one for one in report.shown.values() if one.kind == "table"]
    assert not [one.name for one in tables if re.search(r"\bnan\b|\bNone\b", str(one.content))]
    assert {"C9"}.isdisjoint(json.loads((report.folder / "results.json").read_text())["criteria"])


def test_one_seed_has_no_interval_anywhere(tmp_path: Path) -> None:
    report = executed(study(tmp_path, **ODD["one_seed"]), ["06_benchmark", "09_report"])["09_report"]
    for name in ("headline", "speed_tests", "quality_changes"):
        assert not re.search(r"\d \[", str(report.shown[name].content)), name
    assert set(report.shown["speed_tests"].frame["p, paired"]) == {"–"}
    assert "One seed: there is no interval and no p value." in report.said


@pytest.mark.parametrize("judged_on", ["prose", "chain"])
def test_criteria_are_judged_on_the_source_that_the_study_names(tmp_path: Path, judged_on: str) -> None:
    fake = study(
        tmp_path, ["baseline", "hybrid"], [7, 8], dict(prose=PROSE, chain=dict(kind="markov")), judged_on=judged_on
    )
    for seed in (7, 8):
        for file in (fake.folder / "runs" / f"hybrid-chain-s{seed}").glob("*"):
            file.unlink()
        fake.write("hybrid", seed, gap_nats=3.0 + 0.01 * seed, data="chain", floor_nats=1.0, corpus_sha256="chain")
    judged = judge_criteria(read_records(fake.name, fake.outputs), read_rules()).set_index("criterion")
    assert judged.verdict["C3"] == (PASS if judged_on == "prose" else "FAIL"), judged.why["C3"]
    assert f"on {judged_on}: " in judged.why["C3"] and "% is asked for" in judged.why["C3"]


def test_without_a_baseline_the_reason_is_said_of_each_criterion_that_compares(tmp_path: Path) -> None:
    fake = study(tmp_path, **ODD["no_baseline"])
    judged = judge_criteria(read_records(fake.name, fake.outputs), read_rules()).set_index("criterion")
    assert set(judged.verdict[["C2", "C3", "C5", "H1"]]) == {INCONCLUSIVE}
    assert "no baseline is planned on prose, so there is nothing to compare it with" in judged.why["C2"]
    assert "no baseline" not in judged.why["C6"], "divergences are counted, not compared"


# --- trained and typeset

OWN = dict(
    study="mine",
    about="English prose of our own",
    model=dict(preset="nano", n_layer=1, n_head=2, n_embd=32, block_size=64, vocab_size=400),
    sources=dict(prose=dict(kind="text", tokenizer_vocab=300), letters=dict(kind="markov", successors=2)),
    steps=44,
    batch_size=3,
    seq_len=24,
    eval_every=11,
    eval_batches=2,
    snapshot_every=20,
    threads=1,
    seeds=[5, 6],
    arms=dict(hybrid=dict(schedule=dict(warmup=8, full=4, predict=6, correct=2))),
    plan=dict(benchmark=[dict(arms=["baseline", "hybrid", "hold"], data=["prose"])]),
    chapters={"03_predictors": dict(starts=[20], max_horizon=8, cycles=1)},
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, str]:
    """The folder of a study that a stranger wrote, after one start, and what the command printed."""
    folder = tmp_path_factory.mktemp("a stranger's")
    (folder / "corpus").mkdir()
    (folder / "corpus" / "prose.txt").write_text((ROOT / "README.md").read_text(encoding="utf-8") * 3)
    OWN["sources"]["prose"]["paths"] = [str(folder / "corpus")]
    (folder / "mine.yaml").write_text(yaml.safe_dump(OWN, sort_keys=False))
    status, said = finish(folder / "outputs", "--study", str(folder / "mine.yaml"))
    assert status == 0, said[-3000:]
    return folder / "outputs" / "mine", said


def test_a_study_outside_params_is_trained_and_typeset(trained) -> None:
    folder, said = trained
    assert "Traceback" not in said and re.search(r"\b(\d+) of \1 jobs complete", said)
    done = subprocess.run(["pdftotext", "-layout", str(folder / "report.pdf"), "-"], capture_output=True, text=True)
    assert "On prose, over 2 seeds, hybrid had" in " ".join(done.stdout.split())
    assert (folder / "report.html").is_file() and (folder / export.MARKDOWN).is_file()


def test_its_report_answers_on_its_own_source(trained) -> None:
    folder, _ = trained
    results = json.loads((folder / "results.json").read_text())
    assert set(results["arms"]) == {f"prose/{arm}" for arm in ("baseline", "hybrid", "hold")}
    assert not [name for name, found in results["criteria"].items() if "on text" in found["why"]]
    whys = {name: results["criteria"][name]["why"] for name in ("C2", "C3", "C5", "C6")}
    judged = [name for name, why in whys.items() if "on prose: " in why and "is asked for" in why]
    assert "C2" in judged and "C5" in judged, "they have an estimate"
    assert results["criteria"]["C1"]["verdict"] == results["criteria"]["C8"]["verdict"] == PASS


def test_its_report_borrows_nothing(trained) -> None:
    folder, _ = trained
    text = (folder / export.MARKDOWN).read_text(encoding="utf-8")
    assert "C9" not in json.loads((folder / "results.json").read_text())["criteria"]
    assert not re.findall(r"gpt2-|was not made", text)
    assert "no `sham`: H2 cannot be judged" in text
