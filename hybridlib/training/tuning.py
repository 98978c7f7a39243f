"""Tune arms on pilot seeds: `python -m hybridlib.training.tuning`, for the searches of `params/tuning/<study>.yaml`.

The first trials of a search are a Sobol sequence, so that they are spread evenly; each other one is proposed from the
trials before it by Optuna's tree-structured Parzen estimator (Bergstra et al. 2011, "Algorithms for hyper-parameter
optimization", section 4). A trial's seeds are trained side by side, each on one thread, here or on a cluster. What a
search proposes depends on its table alone, so one that was stopped goes on as if it had not been.
"""

import argparse
import math
import shutil
import sys
from typing import Any

import distributed
import optuna
import pandas as pd
from torch.quasirandom import SobolEngine

from hybridlib.study import arguments, progress
from hybridlib.study.alone import CannotTrain, interrupt_at_signals
from hybridlib.study.cluster.connect import workers_of
from hybridlib.study.parameters import load_study
from hybridlib.study.progress_line import replace_unknown_characters
from hybridlib.study.records import RunFolder
from hybridlib.study.schema import Study
from hybridlib.study.searches import (
    Range,
    Search,
    asked_of,
    at_an_edge,
    best,
    path,
    point_of,
    searches,
    table,
    trial,
    tried,
)  # fmt: skip
from hybridlib.study.storage import write_atomically
from hybridlib.study.sweeps import chosen
from hybridlib.training.trials import train_side_by_side


def main(argv: list[str] | None = None) -> int:
    """Run the command with the arguments `argv`, by default the process's; 1 where a best setting lies at an edge."""
    parser = argparse.ArgumentParser(prog="python -m hybridlib.training.tuning", description=__doc__.split("\n")[0])
    parser.add_argument("--study", default="cpu", metavar="NAME")
    parser.add_argument("--searches", nargs="+", default=[], metavar="SEARCH", help="these alone")
    parser.add_argument("--trials", type=arguments.count, help="stop a search after so many, in all")
    parser.add_argument("--device", default="cpu", type=arguments.device, metavar=arguments.DEVICES)
    parser.add_argument("--scheduler", metavar="ADDRESS|FILE", help="train on the workers of this Dask cluster")
    args = parser.parse_args(argv)
    replace_unknown_characters()
    interrupt_at_signals()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = load_study(args.study)
        asked = chosen(searches(study), args.searches, "search", path(study))
        edges = [
            f"{path(study)}: {name}: {said}"
            for name, search in asked.items()
            for said in tune(study, name, search, args.trials or search.trials, args.device, args.scheduler)
        ]
    except ValueError as error:  # ParameterError is one
        print(error, file=sys.stderr)
        return 2
    except (CannotTrain, OSError) as error:  # NoCluster and StorageError are OSErrors
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.")
        return 130
    print("\n".join(edges), file=sys.stderr, end="\n" * bool(edges))
    return 1 if edges else 0


def tune(
    study: Study, name: str, search: Search, trials: int, device: str = "cpu", scheduler: str | None = None
) -> list[str]:
    """Go on with the `search` of `study`, called `name`, up to `trials`; return where its best lies at an edge.

    Its runs are trained on `device`, of the workers of the Dask `scheduler` if there is one. Raises `CannotTrain`
    where one could not be, and `NoCluster`.
    """
    if len(rows := tried(study, name, search)) < trials:
        with workers_of(scheduler, len(search.seeds)) as client:
            while len(rows) < trials:
                rows = add_trial(client, study, name, search, rows, trials, device)
    found = best(rows, search)
    print(f"{name}: best {rows.loss.min():.4f} at {found}")
    return at_an_edge(found, search)


def add_trial(
    client: distributed.Client,
    study: Study,
    name: str,
    search: Search,
    rows: pd.DataFrame,
    trials: int,
    device: str,
) -> pd.DataFrame:
    """Train the trial of `search`, called `name`, of `study` that follows `rows`, and return them with it, as kept.

    The workers of `client` train its runs on `device`; there are to be `trials`. Raises `CannotTrain` where one could
    not be.
    """
    point = propose(search, rows)
    runs = trial(study, name, search, len(rows), point)
    todo = [run for run in runs if progress.run_state(run) != "complete"]
    if train_side_by_side(client, todo, device):
        raise CannotTrain(f"{name}: a run of trial {len(rows)} failed; its settings are {point}")
    losses = {f"loss_{run.seed}": loss_of(RunFolder(progress.run_folder(run)).facts) for run in runs}
    row = pd.DataFrame([dict(trial=len(rows)) | point | losses | dict(asked=asked_of(study, name, search))])
    kept = rows.drop(columns="loss")
    write_atomically(table(study, name), (pd.concat([kept, row]) if len(kept) else row).to_csv(index=False))
    shutil.rmtree(progress.run_folder(runs[0]).parents[1])  # the row is what is kept of it
    mean = sum(losses.values()) / len(losses)
    print(f"{name}: trial {len(rows) + 1} of {trials}: {mean:.4f} at {point}", flush=True)
    return tried(study, name, search)


def loss_of(facts: dict[str, Any]) -> float:
    """Return the held-out loss in nats of the run with these `facts`; if it learnt nothing, an untrained model's."""
    nothing, loss = math.log(facts["parameters"]["model"]["vocab_size"]), facts["summary"]["held_out_loss"]
    return min(loss, nothing) if math.isfinite(loss) else nothing


def propose(search: Search, rows: pd.DataFrame) -> dict[str, int | float]:
    """Return the settings of the next trial of `search` after `rows`, a function of these two alone."""
    if len(rows) < search.start:
        shares = SobolEngine(len(search.ranges), scramble=True, seed=0).draw(search.start)[len(rows)].tolist()
        return {place: span.at(share) for (place, span), share in zip(search.ranges.items(), shares)}
    spans = {place: distribution(span) for place, span in search.ranges.items()}
    sampler = optuna.samplers.TPESampler(seed=len(rows), n_startup_trials=0, multivariate=True)
    so_far = optuna.create_study(sampler=sampler)
    for _, row in rows.iterrows():
        so_far.add_trial(optuna.create_trial(params=point_of(row, search), distributions=spans, value=row.loss))
    return point_of(so_far.ask(spans).params, search)


def distribution(span: Range) -> optuna.distributions.BaseDistribution:
    """Return `span` as Optuna has it."""
    kind = optuna.distributions.IntDistribution if span.whole else optuna.distributions.FloatDistribution
    return kind(span.low, span.high, log=span.log)


if __name__ == "__main__":
    sys.exit(main())
