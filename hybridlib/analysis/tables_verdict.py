"""Tables of the rules and of what they found: criteria, verdicts, thresholds, power, and the arms' settings."""

import numpy as np
import pandas as pd

from hybridlib.analysis import stats
from hybridlib.analysis.effects import METRICS, by_seed
from hybridlib.analysis.load import BASELINE, Records, planned
from hybridlib.analysis.rules import Measured, Rules
from hybridlib.analysis.wording import estimate, number, p_value, with_unit
from hybridlib.study import Study


def criteria(rules: Rules) -> pd.DataFrame:
    """The criteria as they are fixed: what each asks, of which arm on which data, and its thresholds."""
    rows = []
    for name, rule in rules.criteria.items():
        for part in rule.parts if isinstance(rule, Measured) else [None]:
            asked = (
                {"arm": part.arm, "data": part.data, "metric": METRICS[part.metric].label, "asked": part.text}
                if part
                else {
                    "arm": "–",
                    "data": "–",
                    "metric": "–",
                    "asked": "all" if rule.kind != "controls" else f"{rule.of} missed",
                }
            )
            graded = {"acceptable": part and part.acceptable, "exceeds at": part and part.exceeds}
            rows.append(
                {"criterion": name, "about": rule.about}
                | asked
                | {k: "–" if v is None else f"{v:g}" for k, v in graded.items()}
            )
    return pd.DataFrame(rows)


def verdicts(found: pd.DataFrame) -> pd.DataFrame:
    """The verdict table: value with interval, p and Holm's, one row a criterion."""
    rows = [
        {
            "criterion": v.criterion,
            "asks": v.about,
            "verdict": v.verdict,
            "grade": v.grade or "–",
            "value": estimate(stats.Effect(v.value, v.low, v.high, v.p, 0), v.unit),
            "p": p_value(v.p),
            "p, Holm": p_value(v.p_holm),
        }
        for v in found.itertuples()
    ]
    return pd.DataFrame(rows)


def thresholds(parts: pd.DataFrame) -> pd.DataFrame:
    """The brief's success thresholds: what is asked of each arm, what was measured, and the verdict."""
    shown = parts[parts.metric != "time_to_target"]
    arms = list(dict.fromkeys(shown.arm))
    rows = []
    for metric, part in shown.groupby("metric", sort=False):
        row = {"metric": METRICS[metric].label, BASELINE: "reference"} | dict.fromkeys(arms, "–")
        for p in part.itertuples():
            weaker = f" (acceptable {p.demand[0]} {p.acceptable:g})" if np.isfinite(p.acceptable) else ""
            row[p.arm] = f"{p.demand}{weaker}: {with_unit(p.value, p.unit)}, {p.verdict}"
        rows.append(row)
    return pd.DataFrame(rows)


def power(records: Records, rules: Rules) -> pd.DataFrame:
    """What the number of seeds can show for each tested part: the power against its own threshold or margin, at the
    spread that was measured, and the smallest difference that is found with power 0.8."""
    rows = []
    for name, rule in rules.criteria.items():
        for part in rule.parts if isinstance(rule, Measured) else ():
            values = by_seed(records.runs, part.metric, part.arm, part.data)
            ratio = METRICS[part.metric].form == "ratio"
            if (
                METRICS[part.metric].form not in ("ratio", "change")
                or len(values) < 2
                or (ratio and (values == 0).any())
            ):
                continue
            x = np.log(values) if ratio else values
            distance, sd = float(np.log(part.threshold)) if ratio else part.threshold, float(x.std())
            least = stats.detectable(sd, len(x), rules.alpha)
            rows.append(
                {
                    "criterion": name,
                    "arm": part.arm,
                    "metric": METRICS[part.metric].label,
                    "seeds": len(x),
                    "asked": part.text,
                    "sd over seeds": number(100 * sd if ratio else sd) + " %",
                    "power": number(
                        stats.power(distance, sd, len(x), rules.alpha, "two-sided" if ratio else "larger"), 2
                    ),
                    "detectable": f"{number(float(np.exp(least)))}×" if ratio else f"{number(least)} %",
                }
            )
    return pd.DataFrame(
        rows, columns=["criterion", "arm", "metric", "seeds", "asked", "sd over seeds", "power", "detectable"]
    )


def checks(records: Records, names: list[str]) -> pd.DataFrame:
    """The results of chapters' tests: test, what it asks, whether it passes, and the evidence."""
    columns = ["test", "about", "passed", "evidence"]
    found = pd.concat([records.results(name, columns) for name in names], ignore_index=True)[columns]
    return found.assign(passed=found.passed.map({True: "yes", False: "NO"}))


def settings(study: Study) -> pd.DataFrame:
    """What each arm of the plan does differently, as its parameters say."""
    rows = []
    for arm in dict.fromkeys(run.arm for _, run, _ in planned(study)):
        a = study.arms[arm]
        s, p = a.schedule, a.predictor
        rows.append(
            {
                "arm": arm,
                "role": a.role,
                "what it is": a.about,
                "precision": a.precision,
                "accumulation": a.accumulation,
                "memory": a.memory,
                "warmup, full / predict / correct": f"{s.warmup}, {s.full}/{s.predict}/{s.correct}" if s else "–",
                "predictor": p.name if p else "–",
            }
        )
    return pd.DataFrame(rows)
