"""The figures in the README: written from `results.json`, never typed. `python -m hybridlib.analysis.readme` renews them."""

import json
from typing import Any

import pandas as pd

from hybridlib.analysis.wording import number
from hybridlib.studies import OUTPUTS, ROOT

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
ARMS = ("baseline", "hybrid", "memory_optimized", "hold", "sham")


def block(studies: list[dict[str, Any]]) -> str:
    """What every study found, from its `results.json`: the first in full, of the others the claim and the arms."""
    first, *others = studies
    beside = [f"**{results['study']}.** {claim(results)}\n\n{arms_table(results)}\n\n{verdicts_line(results)}" for results in others]
    return "\n\n".join([claim(first), arms_table(first), verdicts_table(first), *beside])


def claim(results: dict[str, Any]) -> str:
    """The claim as measured."""
    hybrid = results["arms"]["text/hybrid"]
    nominal = results["arms"]["text/baseline"]["real_steps"]
    to_target = hybrid["time_to_target_ratio"]
    reached = f", and it reaches the baseline's final loss in 1/{number(to_target)} of the time" if to_target else ""
    return (
        f"Measured on {results['device']}: with {number(hybrid['real_steps'], 4)} of {number(nominal, 4)} steps computed, training "
        f"is **{number(hybrid['speedup'])}× as fast**, its held-out loss **{hybrid['delta_loss_pct']:+.2f}%** from the "
        f"baseline's{reached}."
    )


def arms_table(results: dict[str, Any]) -> str:
    rows = [
        {
            "arm": f"`{arm}`",
            "seeds": len(found["seeds"]),
            "computed steps": number(found["real_steps"], 4),
            "speedup": _or_dash(found["speedup"], "{:.2f}×"),
            "Δ loss": _or_dash(found["delta_loss_pct"], "{:+.2f}%"),
            "time to target": _or_dash(found["time_to_target_ratio"], "{:.2f}×"),
            "peak memory in Predict, MB": _or_dash(found["peak_mb"]["predict"], "{:.0f}"),
        }
        for arm in ARMS
        if (found := results["arms"].get(f"text/{arm}"))
    ]
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def verdicts_table(results: dict[str, Any]) -> str:
    rows = [
        {"": name, "verdict": f"**{c['verdict']}**", "why": c["why"].replace("|", "\\|")}
        for name, c in results["criteria"].items()
    ]
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def verdicts_line(results: dict[str, Any]) -> str:
    return "Verdicts: " + ", ".join(f"{name} {c['verdict']}" for name, c in results["criteria"].items()) + "."


def committed() -> list[dict[str, Any]]:
    """The results of every study that has a baseline and a hybrid on text, the default study's first."""
    files = sorted(OUTPUTS.glob("*/results.json"), key=lambda path: (path.parent.name != "cpu", path.parent.name))
    found = [json.loads(path.read_text(encoding="utf-8")) for path in files if path.parent.name != "smoke"]
    return [results for results in found if {"text/baseline", "text/hybrid"} <= set(results["arms"])]


def renewed(text: str, block: str) -> str:
    """The README with the block between its marks replaced."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}"


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(renewed(readme.read_text(encoding="utf-8"), block(committed())), encoding="utf-8")
