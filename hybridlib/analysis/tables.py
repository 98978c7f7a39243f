"""The study's tables: frames of written figures under headings that a reader understands, for `display.table`."""

import pandas as pd

from hybridlib.analysis.effects import effect
from hybridlib.analysis.load import BASELINE
from hybridlib.analysis.series import gradient_health
from hybridlib.analysis.wording import mean_sd, number
from hybridlib.records import PHASES


def by_arm(runs: pd.DataFrame):
    return runs.groupby(["data", "arm"], sort=False)


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean ± standard deviation over the seeds of each arm on each data source.

    Minutes for 1000 nominal steps follow from the throughput, so they are a projection where fewer were taken.
    """
    columns = {
        "real steps": ("real_steps", 1),
        "nominal tokens/s": ("nominal_tokens_per_s", 1),
        "trained tokens/s": ("trained_tokens_per_s", 1),
        "1000 steps (min)": ("minutes_per_1000", 1),
        "real step (ms)": ("real_step_median_s", 1000),
        "held-out loss (nats)": ("held_out_loss", 1),
        "above floor (nats)": ("excess", 1),
        "perplexity": ("perplexity", 1),
    }
    runs = runs.assign(
        excess=runs.reported_loss_nats.where(runs.kind == "markov"),
        minutes_per_1000=1000 * runs.batch_size * runs.seq_len / runs.nominal_tokens_per_s / 60,
    )
    rows = [
        {"data": data, "arm": arm, "seeds": len(part)}
        | {title: mean_sd(part[column] * factor) for title, (column, factor) in columns.items()}
        for (data, arm), part in by_arm(runs)
    ]
    return pd.DataFrame(rows, columns=["data", "arm", "seeds", *columns])


def percentiles(steps: pd.DataFrame) -> pd.DataFrame:
    """Mean, median, standard deviation, extremes and 5th and 95th percentiles over all real steps and seeds."""
    metrics = {
        "training loss (nats)": ("loss", 1),
        "step time (ms)": ("step_s", 1000),
        "peak memory (MB)": ("peak_mb", 1),
    }
    rows = []
    for (data, arm), part in by_arm(steps[steps.real == 1]):
        for title, (column, factor) in metrics.items():
            x = part[column].dropna() * factor
            found = dict(
                mean=x.mean(),
                median=x.median(),
                sd=x.std(),
                min=x.min(),
                max=x.max(),
                p5=x.quantile(0.05),
                p95=x.quantile(0.95),
            )
            rows.append({"data": data, "arm": arm, "of": title} | {k: number(v, 4) for k, v in found.items()})
    names = ["data", "arm", "of", "mean", "median", "sd", "min", "max", "p5", "p95"]
    return pd.DataFrame(rows, columns=names).rename(columns={"p5": "5%", "p95": "95%"})


def phases(runs: pd.DataFrame) -> pd.DataFrame:
    """Each scheduled arm's shares of the nominal steps; the brief's bands hold for the steps after Warmup."""
    rows = []
    for (data, arm), part in by_arm(runs[runs.phase_share_predict > 0]):
        shares = {p: part[f"phase_share_{p}"].mean() for p in PHASES}
        rest = 1.0 - shares["warmup"]
        rows.append(
            {"data": data, "arm": arm, "warmup": f"{100 * shares['warmup']:.1f} %"}
            | {p: f"{100 * shares[p] / rest:.1f} %" for p in PHASES[1:]}
            | {
                "jumps accepted": int(part.jumps_accepted.sum()),
                "rejected": int(part.jumps_rejected.sum()),
                "divergences": int(part.divergences.sum()),
            }
        )
    return pd.DataFrame(rows, columns=["data", "arm", *PHASES, "jumps accepted", "rejected", "divergences"])


def memory(runs: pd.DataFrame) -> pd.DataFrame:
    """Peak memory of each phase in MB above the process's floor, and of the run against the baseline's peak."""
    rows = []
    for (data, arm), part in by_arm(runs):
        row = {"data": data, "arm": arm} | {p: mean_sd(part[f"peak_mb_{p}"]) for p in (*PHASES, "run")}
        if arm != BASELINE:
            row |= {
                "run / baseline (%)": number(effect(runs, "peak_memory_pct", arm, data).value),
                "predict / baseline (%)": number(effect(runs, "predict_memory_pct", arm, data).value),
            }
        rows.append(row)
    return pd.DataFrame(
        rows, columns=["data", "arm", *PHASES, "run", "run / baseline (%)", "predict / baseline (%)"]
    ).fillna("–")


def gradients(steps: pd.DataFrame) -> pd.DataFrame:
    """Gradient norm's mean, standard deviation and shares of outliers, explosions and vanishing."""
    found = gradient_health(steps, BASELINE)
    titles = {
        "outliers_pct": "outliers (%)",
        "explosion_pct": "> 10 × baseline (%)",
        "vanishing_pct": "< 0.01 × baseline (%)",
    }
    return found.assign(**{c: found[c].map(number) for c in ("mean", "sd", *titles)}).rename(columns=titles)


def per_run(runs: pd.DataFrame) -> pd.DataFrame:
    """Every run on a row, for the appendix."""
    out = runs[
        ["data", "arm", "seed", "real_steps", "last_step", "divergences", "jumps_accepted", "jumps_rejected"]
    ].astype(str)
    for title, column in {
        "tokens/s": "nominal_tokens_per_s",
        "loss (nats)": "held_out_loss",
        "peak (MB)": "peak_mb_run",
        "train (s)": "train_s",
        "to target (s)": "time_to_target_s",
    }.items():
        out[title] = runs[column].map(lambda v: number(v, 4))
    return out.rename(
        columns={
            "real_steps": "real",
            "last_step": "last",
            "divergences": "div.",
            "jumps_accepted": "jumps",
            "jumps_rejected": "rej.",
        }
    )
