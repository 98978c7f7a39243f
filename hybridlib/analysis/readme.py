"""The figures in the README: written from `results.json`, never typed. `python -m hybridlib.analysis.readme` renews them."""

import json
from typing import Any

import pandas as pd

from hybridlib.analysis.wording import number
from hybridlib.studies import OUTPUTS, ROOT

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
ARMS = ("baseline", "hybrid", "memory_optimized", "hold", "sham")


def figures(results: dict[str, Any]) -> str:
    """The claim as measured, the arms on text, and the verdicts, as Markdown."""
    arms = results["arms"]
    hybrid = arms["text/hybrid"]
    claim = (
        f"Measured on {results['device']}: with {number(hybrid['real_steps'], 4)} of 1000 steps computed, training is "
        f"**{number(hybrid['speedup'])}× as fast**, its held-out loss **{hybrid['delta_loss_pct']:+.2f}%** from the "
        f"baseline's, and it reaches the baseline's final loss in 1/{number(hybrid['time_to_target_ratio'])} of the time."
    )
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
        if (found := arms.get(f"text/{arm}"))
    ]
    verdicts = [
        {"": name, "verdict": f"**{c['verdict']}**", "why": c["why"].replace("|", "\\|")}
        for name, c in results["criteria"].items()
    ]
    tables = [pd.DataFrame(table).to_markdown(index=False, disable_numparse=True) for table in (rows, verdicts)]
    return "\n\n".join([claim, *tables])


def renewed(text: str, block: str) -> str:
    """The README with the block between its marks replaced."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}"


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    results = json.loads((OUTPUTS / "cpu" / "results.json").read_text(encoding="utf-8"))
    readme.write_text(renewed(readme.read_text(encoding="utf-8"), figures(results)), encoding="utf-8")
