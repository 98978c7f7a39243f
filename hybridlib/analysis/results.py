"""What a study found, for programs and for the README: `results.json`, `results/*.csv`, and the README's figures.

`python -m hybridlib.analysis.results` writes the README's figures anew, from what the reports of all studies saved.
"""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from hybridlib.analysis.effects import effect
from hybridlib.analysis.load import BASELINE, Records, devices, facts_of
from hybridlib.analysis.rules import read_rules
from hybridlib.analysis.show import Show, keep_file
from hybridlib.analysis.statistics import Effect
from hybridlib.analysis.wording import estimate
from hybridlib.study.parameters import OUTPUTS, ROOT, known_studies, load_study
from hybridlib.study.records import PHASES
from hybridlib.study.storage import write_atomically
from hybridlib.training import NUMERICS

MARKS = "<!-- {name}: begin -->\n", "\n<!-- {name}: end -->"  # around each of the README's computed blocks


def write_results(records: Records, verdicts: pd.DataFrame, parts: pd.DataFrame) -> dict[str, Any]:
    """Return the content of `results.json`, and keep it together with the frames `verdicts`, `parts` and the `records`.

    What is infinite, or was not measured, is null, and a `why` says which.
    """
    runs, keys = records.runs, ("verdict", "value", "low", "high", "unit", "p", "why")
    pairs = runs[["data", "arm"]].drop_duplicates().itertuples(index=False)
    content = dict(
        study=records.study.study,
        commit=", ".join(sorted(set(runs.commit))) or None,
        device=devices(runs[runs.role != "stress"]) or None,
        numerics=int(runs.numerics.max()) if len(runs) else None,
        criteria={row.criterion: {key: _finite(getattr(row, key)) for key in keys} for row in verdicts.itertuples()},
        arms={f"{data}/{arm}": _arm_results(runs, arm, data) for data, arm in pairs},
    )
    keep_file(records.folder / "results.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    for name, frame in dict(criteria=verdicts, criteria_parts=parts, runs=runs, missing=records.missing).items():
        keep_frame(records.folder, name, frame)
    return content


def keep_frame(study_folder: Path, name: str, frame: pd.DataFrame) -> None:
    """Keep `frame` as `results/<name>.csv` in `study_folder`; like `keep_file`, only under the pipeline."""
    keep_file(study_folder / "results" / f"{name}.csv", frame.to_csv(index=False))


class Evidence:
    """The results of a chapter's tests, kept as `results/<name>.csv` in `study_folder`, which begins anew."""

    def __init__(self, study_folder: Path, name: str) -> None:
        self.folder, self.name, self.rows = study_folder, name, []
        keep_file(study_folder / "results" / f"{name}.csv", None)  # a run that is gone leaves no result behind

    def add(self, test: str, about: str, passed: bool, evidence: str) -> pd.DataFrame:
        """Keep that `test`, which is `about` something, `passed` or not, with its `evidence`; return the row."""
        self.rows.append(dict(test=test, about=about, passed=bool(passed), evidence=evidence))
        keep_frame(self.folder, self.name, pd.DataFrame(self.rows))
        return pd.DataFrame(self.rows[-1:])

    def table(self) -> pd.DataFrame:
        """Return the results as a table, with yes and NO for what passed."""
        found = pd.DataFrame(self.rows, columns=["test", "about", "passed", "evidence"])
        return found.assign(passed=found.passed.map({True: "yes", False: "NO"}))


def _arm_results(runs: pd.DataFrame, arm: str, data: str) -> dict[str, Any]:
    """Return one arm on one data source: ratios to the baseline, means over seeds, totals of events."""
    mine = runs[(runs.arm == arm) & (runs.data == data)]
    out, why = dict(seeds=sorted(int(s) for s in mine.seed), real_steps=_finite(mine.real_steps.mean())), []
    for metric in ("speedup", "steady_speedup", "delta_loss_pct", "delta_perplexity_pct", "time_to_target"):
        key, found = metric.replace("target", "target_ratio"), effect(runs, metric, arm, data)
        unreached = metric == "time_to_target" and found.value == 0
        out[key] = None if unreached else _finite(found.value)
        if unreached:
            why.append(f"{key}: most seeds never reached the baseline's final held-out loss")
        elif out[key] is None:
            why.append(f"{key}: no pair with a {BASELINE} run of the same seed and shape, or not extended")
    out["peak_mb"] = {p: _finite(mine[f"peak_mb_{p}"].mean()) for p in (*PHASES, "run")}
    out |= {key: int(mine[key].sum()) for key in ("divergences", "jumps_accepted", "jumps_rejected")}
    return out | ({"why": "; ".join(why)} if why else {})


def _finite(value: Any) -> Any:
    if isinstance(value, str):
        return value
    return round(float(value), 10) if value is not None and math.isfinite(value) else None


def committed() -> dict[str, dict[str, Any]]:
    """Return the results of each study in params/ but smoke: the default study's, then those of most seeds."""
    found = {name: facts_of(OUTPUTS / name / "results.json") for name in known_studies() if name != "smoke"}
    seeds = {name: [len(arm["seeds"]) for arm in of["arms"].values()] for name, of in found.items() if of.get("arms")}
    return {name: found[name] for name in sorted(seeds, key=lambda name: (name != "cpu", -max(seeds[name]), name))}


def readme_figures(studies: dict[str, dict[str, Any]]) -> str:
    """Return what `studies` (of `committed`) found: for each its report's abstract and arms, then all verdicts."""
    told = []
    for name, of in studies.items():
        saved = [Show(OUTPUTS / name).saved(part) for part in ("abstract", "headline")]
        told += [f"**{name}.** " * (it.kind == "text") + it.displayed().bundle["text/markdown"] for it in saved if it]
        if (made := of.get("numerics")) != NUMERICS:
            told.append(f"*Made under {'an older NUMERICS' if made is None else f'NUMERICS {made}'}; now {NUMERICS}.*")
    rows = [
        {"": name, "asks": rule.about} | {study: _cell(of["criteria"].get(name)) for study, of in studies.items()}
        for name, rule in read_rules().criteria.items()
        if any(name in of["criteria"] for of in studies.values())
    ]
    return "\n\n".join([*told, pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)])


def _cell(found: dict[str, Any] | None) -> str:
    """Return a criterion's verdict and the value of the part that decides it; a dash where the study has none."""
    if found is None:
        return "–"
    return f"**{found['verdict']}** {_measured(found)}" if found["value"] is not None else f"**{found['verdict']}**"


def _measured(found: dict[str, Any]) -> str:
    """Return a criterion's value and interval, as results.json has them, with its unit."""
    value, low, high = (math.nan if found[key] is None else found[key] for key in ("value", "low", "high"))
    return estimate(Effect(value, low, high, math.nan, 0), found["unit"] or "")


def readme_headline(studies: dict[str, dict[str, Any]]) -> str:
    """Return the README's first sentences: how fast the first of `studies` (of `committed`) had the loss of which
    baseline, and what its computed steps are worth in those of an optimizer that was tuned."""
    for name, of in studies.items():
        study, worth = load_study(name), Show(OUTPUTS / name).saved("worth_said")
        said = (
            "HybridTrainer replaces more than half of the training steps of GPT-2 by jumps without a gradient. With "
            f"{study.model.n_layer} layers of width {study.model.n_embd} and {study.batch_size * study.seq_len} tokens "
            f"a step, on {of['device']}, it has the held-out loss of the brief's baseline (Adam at a constant rate of "
            f"{study.arms[BASELINE].optimizer.lr:g}, untuned) {_measured(of['criteria']['H1'])} as fast."
        )
        return f"{said} {worth.content}".strip() if worth else said
    return ""


def renewed(text: str, **blocks: str) -> str:
    """Return the README's `text` with each of `blocks` between the marks of its name."""
    for name, block in blocks.items():
        begin, end = (mark.format(name=name) for mark in MARKS)
        before, rest = text.split(begin)
        text = f"{before}{begin}{block}{end}{rest.split(end)[1]}"
    return text


def readme_blocks() -> dict[str, str]:
    """Return the README's computed blocks, by name."""
    studies = committed()
    return dict(headline=readme_headline(studies), figures=readme_figures(studies))


if __name__ == "__main__":
    readme = ROOT / "README.md"
    write_atomically(readme, renewed(readme.read_text(encoding="utf-8"), **readme_blocks()))
