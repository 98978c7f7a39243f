"""The figures in the README: written from `results.json`, never typed. `python -m hybridlib.analysis.readme` renews them."""

import json
import math
from typing import Any

import pandas as pd

from hybridlib.analysis.rules import read_rules
from hybridlib.analysis.statistics import Effect
from hybridlib.analysis.wording import estimate, number
from hybridlib.study.parameters import OUTPUTS, ROOT

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
ARMS = ("baseline", "hybrid", "memory_optimized", "hold", "sham")


def block(studies: list[dict[str, Any]]) -> str:
    """Return what every study found, from its `results.json`: its claim and its arms, then the verdicts of all side by side."""
    found = [f"**{results['study']}.** {claim(results)}\n\n{arms_table(results)}" for results in studies]
    return "\n\n".join([*found, verdicts_table(studies)])


def claim(results: dict[str, Any]) -> str:
    """Return the claim as measured."""
    hybrid = results["arms"]["text/hybrid"]
    nominal = results["arms"]["text/baseline"]["real_steps"]
    to_target = hybrid["time_to_target_ratio"]
    steady = hybrid["steady_speedup"]
    differs = abs(steady / hybrid["speedup"] - 1) > 0.03
    at_pace = f" ({number(steady)}× had every run kept the pace of its fastest tenth)" if differs else ""
    reached = f", and it reaches the baseline's final loss in 1/{number(to_target)} of the time" if to_target else ""
    return (
        f"Measured on {results['device']}: with {number(hybrid['real_steps'], 4)} of {number(nominal, 4)} steps computed, training "
        f"is **{number(hybrid['speedup'])}× as fast**{at_pace}, its held-out loss **{hybrid['delta_loss_pct']:+.2f}%** from the "
        f"baseline's{reached}."
    )


def arms_table(results: dict[str, Any]) -> str:
    rows = [
        {
            "arm": f"`{arm}`",
            "seeds": len(found["seeds"]),
            "computed steps": number(found["real_steps"], 4),
            "speedup": _or_dash(found["speedup"], "{:.2f}×"),
            "at a steady pace": _or_dash(found["steady_speedup"], "{:.2f}×"),
            "Δ loss": _or_dash(found["delta_loss_pct"], "{:+.2f}%"),
            "time to target": _or_dash(found["time_to_target_ratio"], "{:.2f}×"),
            "peak memory in Predict, MB": _or_dash(found["peak_mb"]["predict"], "{:.0f}"),
        }
        for arm in ARMS
        if (found := results["arms"].get(f"text/{arm}"))
    ]
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def verdicts_table(studies: list[dict[str, Any]]) -> str:
    """Return one row a criterion, one column a study: the verdict, and the value of the part that decides it."""
    rows = [
        {"": name, "asks": rule.about}
        | {results["study"]: verdict_cell(results["criteria"][name]) for results in studies}
        for name, rule in read_rules().criteria.items()
    ]
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def verdict_cell(found: dict[str, Any]) -> str:
    value, low, high = (math.nan if found[key] is None else found[key] for key in ("value", "low", "high"))
    measured = estimate(Effect(value, low, high, math.nan, 0), found["unit"] or "")
    return f"**{found['verdict']}** {measured}" if found["value"] is not None else f"**{found['verdict']}**"


def committed() -> list[dict[str, Any]]:
    """Return the results of every study that has a baseline and a hybrid on text: the default study's, then those of most seeds."""
    files = [path for path in OUTPUTS.glob("*/results.json") if path.parent.name != "smoke"]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    whole = [results for results in found if {"text/baseline", "text/hybrid"} <= set(results["arms"])]
    return sorted(whole, key=lambda of: (of["study"] != "cpu", -len(of["arms"]["text/hybrid"]["seeds"]), of["study"]))


def renewed(text: str, block: str) -> str:
    """Return the README with the block between its marks replaced."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}"


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(renewed(readme.read_text(encoding="utf-8"), block(committed())), encoding="utf-8")
