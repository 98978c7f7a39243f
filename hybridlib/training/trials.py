"""Train the trials of `params/research/<study>.yaml` that are not complete: `python -m hybridlib.training.trials`.

Trials run side by side, each on one thread, so that no core waits. Their losses can be compared, but not their times.
On a GPU trials that are compared belong to one device: losses on another differ by rounding.
"""

import argparse
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed

from tqdm import tqdm

from hybridlib.study import progress
from hybridlib.study.parameters import load_study
from hybridlib.study.progress_line import replace_unknown_characters
from hybridlib.study.provenance import end_with
from hybridlib.study.run import Run
from hybridlib.study.sweeps import chosen, path, runs, sweeps
from hybridlib.training.experiment import train


def train_trial(run: Run, parent: int, device: str = "cpu") -> None:
    """Train the trial `run` on `device` in this process, which ends with the process `parent` that started it."""
    if end_with(parent):
        train(run, device)


def main(argv: list[str] | None = None) -> int:
    """Run the command with the arguments `argv`, by default the process's, and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m hybridlib.training.trials", description=__doc__)
    parser.add_argument("--study", default="cpu", metavar="NAME")
    parser.add_argument("--sweeps", nargs="+", default=[], metavar="SWEEP", help="these alone")
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count(), help="trials side by side")
    parser.add_argument("--device", default="cpu", metavar="auto|cpu|cuda:N")
    parser.add_argument("--dry-run", action="store_true", help="print what is to be trained and stop")
    args = parser.parse_args(argv)
    if args.workers < 1:
        parser.error(f"--workers {args.workers}: must be at least 1")
    replace_unknown_characters()
    try:
        study = load_study(args.study)
        asked = chosen(sweeps(study), args.sweeps, "sweep", path(study))
        every = [run for name, sweep in asked.items() for run in runs(study, name, sweep)]
    except ValueError as error:  # ParameterError is one
        print(error, file=sys.stderr)
        return 2
    todo = [run for run in every if progress.run_state(run) not in ("complete", "extendable")]
    print(f"{len(every)} trials, {len(todo)} to train, {args.workers} at a time")
    if args.dry_run:
        print("\n".join(f"{run.study}: {run.id}" for run in todo))
        return 0
    return 1 if train_side_by_side(todo, args.workers, args.device) else 0


def train_side_by_side(todo: list[Run], workers: int, device: str = "cpu") -> int:
    """Train the runs `todo` on `device`, `workers` at a time, each in a fresh process. Print and count those that
    fail."""
    failed, context = 0, multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1) as pool:
        waiting = {pool.submit(train_trial, run, os.getpid(), device): run for run in todo}
        for done in tqdm(as_completed(waiting), total=len(todo), unit="trial", disable=None):
            if error := done.exception():
                failed += 1
                tqdm.write(f"{waiting[done].study}: {waiting[done].id}: {error!r}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
