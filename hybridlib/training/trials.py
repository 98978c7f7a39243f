"""Train the trials of `params/research/<study>.yaml` that are not complete: `python -m hybridlib.training.trials`.

Trials run side by side, each on one thread, so that no core waits. Their losses can be compared, but not their times.
Those of a seed go to machines of one kind, because losses on another kind differ by rounding.
"""

import argparse
import multiprocessing
import sys

import distributed
from rich.console import Console
from rich.markup import escape

from hybridlib.study import arguments, progress
from hybridlib.study.alone import interrupt_at_signals
from hybridlib.study.cluster.blocks import Task, block_of
from hybridlib.study.cluster.connect import workers_of
from hybridlib.study.cluster.crew import Crew
from hybridlib.study.cluster.order import Orders
from hybridlib.study.parameters import load_study
from hybridlib.study.plan import training_s
from hybridlib.study.progress_line import replace_unknown_characters
from hybridlib.study.run import Run
from hybridlib.study.sweeps import chosen, path, runs, sweeps
from hybridlib.training.assemble import pick_device


def main(argv: list[str] | None = None) -> int:
    """Run the command with the arguments `argv`, by default the process's, and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m hybridlib.training.trials", description=__doc__)
    parser.add_argument("--study", default="cpu", metavar="NAME")
    parser.add_argument("--sweeps", nargs="+", default=[], metavar="SWEEP", help="these alone")
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count(), help="trials side by side")
    parser.add_argument("--device", default="cpu", type=arguments.device, metavar=arguments.DEVICES)
    parser.add_argument("--dry-run", action="store_true", help="print what is to be trained and stop")
    parser.add_argument("--scheduler", metavar="ADDRESS|FILE", help="train on the workers of this Dask cluster")
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
    todo = [run for run in every if progress.run_state(run) not in progress.WHOLE]
    print(f"{len(every)} trials, {len(todo)} to train, {args.scheduler or f'{args.workers} at a time'}")
    if args.dry_run:
        print("\n".join(f"{run.study}: {run.id}" for run in todo))
        return 0
    if not todo:
        return 0
    try:
        if not args.scheduler:
            pick_device(args.device, threads=1)  # one that is not there is named once, before anything starts
    except ValueError as error:
        print(error)
        return 1
    interrupt_at_signals()
    try:
        with workers_of(args.scheduler, min(args.workers, len(todo))) as client:
            return 1 if train_side_by_side(client, every, args.device) else 0
    except OSError as error:  # NoCluster and StorageError are
        print(error)
        return 1
    except KeyboardInterrupt:
        print("Stopped. The same command goes on from here.")
        return 130


def train_side_by_side(client: distributed.Client, every: list[Run], device: str = "cpu") -> int:
    """Train those of the runs `every` that are not complete on `device` of the workers of `client`, each in a process.

    Complete ones say which kind of machine the others of their seed need. Print and count those that fail. Raise
    `NoCluster`.
    """
    console, failed = Console(highlight=False, soft_wrap=True), []
    tasks = [Task(run, None, training_s(run, {})) for run in every]
    blocks = [block_of(task.run.id, [task], group=f"seed {task.run.seed}") for task in tasks]

    def ended(task: Task, message: str, seconds: float) -> bool:
        if message:
            failed.append(task)
            console.print(f"{escape(task.name)}: {escape(message)}")
        return True

    Crew(client, Orders(device), console).train(blocks, ended)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
