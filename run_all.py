"""Run a study: every notebook of its plan, in order, from training to the report.

Complete jobs are skipped, interrupted ones resumed. A run whose parameters changed, or that was made under another
NUMERICS, is trained again, and its records are kept in `superseded/`. Chapters that read records are executed every
time. Exit status: 0 if every job of the plan is complete, 1 if not, or if what was trained again does not agree with
its records, 2 for a wrong argument or parameter file, 130 if interrupted and 75 if ended by SIGTERM: both after a
checkpoint, and the same command goes on from there. So it does after 75 for a scheduler that was lost.
"""

import argparse
import logging
import os
import signal
import sys
import time

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hybridlib.study import progress, reproduce, sweeps
from hybridlib.study.alone import CannotTrain, beside, interrupt_at_signals
from hybridlib.study.arguments import DEVICES, count, device
from hybridlib.study.cluster.blocks import NoCluster
from hybridlib.study.execute import check, forget, job_state, why_again
from hybridlib.study.parameters import OUTPUTS, PARAMS, ROOT, ParameterError, load_study, read_yaml
from hybridlib.study.pipeline import Pipeline, known_times, reach
from hybridlib.study.plan import STAGES, Job, estimated_s, plan
from hybridlib.study.progress_line import duration, replace_unknown_characters, use_utf8
from hybridlib.study.records import RunFolder
from hybridlib.study.storage import InUse, locked

RESUMABLE = os.EX_TEMPFAIL  # 75, in sysexits.h: try again later
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return what `argv`, or the command line, asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, names = parser.add_argument, dict(nargs="+", action="extend", default=[])
    add("--study", default="cpu", metavar="NAME|FILE", help="a study in params/, or a .yaml file (default: cpu)")
    only = f"these stages alone, of: {', '.join(STAGES)}; their chapters are executed again even if up to date"
    add("--only", nargs="+", action="extend", choices=STAGES, metavar="STAGE", help=only)
    add("--arms", **names, metavar="ARM", help="train these arms alone")
    add("--data", **names, metavar="DATA", help="train on these data sources alone")
    add("--seeds", **names, type=int, metavar="SEED", help="train with these seeds alone")
    full = "also what the study's plan marks `full: true`, and the sweeps of params/research/, these on the CPU"
    add("--full", action="store_true", help=full)
    add("--dry-run", action="store_true", help="print the plan and stop")
    add("--force", action="store_true", help="delete what these jobs made before, records included, and start afresh")
    keep_going = "after a failed job go on with the others; the report says what is missing"
    add("--keep-going", action="store_true", help=keep_going)
    where = "where to train; auto: a GPU if there is one. Records made elsewhere are kept, and named"
    add("--device", default="auto", type=device, metavar=DEVICES, help=where)
    whose = "train on the workers of this Dask cluster: the address of its scheduler, or its scheduler file"
    add("--scheduler", metavar="ADDRESS|FILE", help=whose)
    again = (
        "first train baseline and hybrid of the first seed again, beside their records, and say whether the same comes"
        " out; exit status 1 if not"
    )
    add("--reproduce", action="store_true", help=again)
    verify = "only that, for N complete runs chosen at random (default: 2)"
    add("--verify", nargs="?", const=2, type=count, metavar="N", help=verify)
    add("--choice", type=int, metavar="SEED", help="of --verify: choose as the start did that printed this number")
    args = parser.parse_args(argv)
    if args.choice is not None and args.verify is None:
        parser.error("--choice belongs to --verify, which chooses by it")
    for name in ("only", "arms", "data", "seeds", "scheduler", "reproduce"):
        if args.verify is not None and getattr(args, name):
            parser.error(f"--{name} does not go with --verify, which chooses among all complete runs, and trains here")
    return args


def main(argv: list[str] | None = None) -> int:
    """Plan, and unless it is a dry run execute, what `argv` asks for; return the exit status."""
    args = arguments(argv)
    replace_unknown_characters()
    try:
        study = load_study(args.study)
        if left_out := sorted({*(args.only or ())} & {*study.leave_out}):
            raise ValueError(f"--only {left_out[0]}: study {study.study} has no such stage: its leave_out names it")
        jobs = plan(study, args.study, args.only or STAGES, args.arms, args.data, args.seeds, args.full, args.device)
        if (args.arms or args.data or args.seeds) and not any(job.run for job in jobs):
            left = "" if args.full else "; it may be left to --full"
            raise ValueError(f"{study.study} has nothing to train in these stages of --arms, --data and --seeds{left}")
        check(jobs)
        read_yaml(PARAMS / "criteria.yaml")  # which the first chapter judges, and every plan depends on
        if any(job.stage == "research" for job in jobs):
            sweeps.trials(study)
        again = reproduce.pair(study) if args.reproduce else []
    except ValueError as error:  # ParameterError is one
        return refuse(error, 2)
    try:
        if args.verify is None:
            print_plan(jobs, study.study, args)
            if again:
                console.print(f"Before it, --reproduce trains {' and '.join(run.id for run in again)} again.")
        if args.dry_run:
            return 0
        if args.scheduler:
            reach(args.scheduler)
        interrupt_at_signals()
        with locked(OUTPUTS / study.study, "executes its plan"):
            return run(jobs, Pipeline(study, args.study, console, args.full, args.device), args)
    except InUse as error:
        return refuse(f"{error}: wait for it, or stop it.", 1)
    except (CannotTrain, ParameterError, OSError) as error:  # StorageError and NoCluster are
        return refuse(error, 1)
    except KeyboardInterrupt as interrupt:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # the cell that was cut off would report it, too
        console.print("Stopped. The same command goes on from here.")
        return RESUMABLE if interrupt.args == (signal.SIGTERM,) else 130


def refuse(why: object, status: int) -> int:
    """Print `why` the command ends; return its exit `status`."""
    console.print(f"[red]{escape(str(why))}[/]")
    return status


def print_plan(jobs: list[Job], study: str, args: argparse.Namespace) -> None:
    """Print `jobs`, the plan of `study`: what there is of each, and how long the rest takes as `args` asks for it."""
    known, total, again = known_times(study), 0.0, {}
    title = f"Study {study}: {len(jobs)} jobs"
    table, paths = Table("", "stage", "job", "state", "estimate", title=title, title_justify="left"), {}
    for at, job in enumerate(jobs, start=1):
        state, seconds = job_state(job, study), estimated_s(job, known)
        if todo := is_to_do(job, state, args):
            total += seconds
            paths |= dict.fromkeys(job.run.source.paths if job.run else ())
        if state in ("stale", "damaged"):
            again.setdefault((state, why_again(job, study)), []).append(job.name)
        elsewhere = on_device(job, args.device) if state == "complete" else ""
        forced = "deleted first" if args.force and state != "missing" else ""
        said = ", ".join(filter(None, [state, elsewhere, forced]))
        table.add_row(str(at), job.stage, job.name, said, duration(seconds) if todo else "")
    console.print(table)
    for (state, why), names in again.items():
        console.print(escape(f"{state}: {', '.join(names[:4])}{' …' * (len(names) > 4)}: {why}"))
    for path in filter(lambda path: not os.path.exists(ROOT / path), paths):
        console.print(f"[red]paths: {escape(repr(path))}: no such file or folder in {escape(str(ROOT))}[/]")
    source = "from this study's records" if known else "a rough guess for two CPU cores"
    console.print(f"Estimated time: {duration(total)} ({source}).")


def is_to_do(job: Job, state: str, args: argparse.Namespace) -> bool:
    """Return whether `job`, in this `state`, is executed: chapters that `args.only` names are, to rebuild figures."""
    return args.force or state != "complete" or bool(args.only and not job.run)


def on_device(job: Job, device: str) -> str:
    """Say where the complete run of `job` was made, if that is another kind of device than `device`."""
    facts = RunFolder(progress.run_folder(job.run)).facts if job.run and device != "auto" else None
    differs = facts and facts["device"].split(":")[0] != device.split(":", maxsplit=1)[0]
    return f"on {facts['device']}: kept, --force trains it on {device}" if differs else ""


def run(jobs: list[Job], pipeline: Pipeline, args: argparse.Namespace) -> int:
    """Execute what `args` asks for and those of `jobs` that are to do, in the `pipeline`; return the exit status."""
    study, started, agree = pipeline.study, time.monotonic(), True
    if args.force and args.verify is None:
        console.print(f"--force: what these {len(jobs)} jobs made before is deleted.")
        for job in jobs:
            forget(job, study.study)
    try:
        if args.verify is not None:
            return 0 if reproduce.verify(study, args.verify, args.choice, args.device, console) else 1
        if args.reproduce:
            agree = reproduce.reproduce(study, args.device, console)
        where = ["--scheduler", args.scheduler] if args.scheduler else []
        stages = {job.stage for job in jobs}  # without those that the study leaves out
        if args.full and "research" in stages and beside("training.trials", "--study", args.study, *where):
            console.print("[red]Some trials failed; the chapter of research names what is missing.[/]")
        if "speed" in stages and (args.full or args.only):
            console.print("Measuring speed: some minutes, with the machine to itself.")
            if beside("benchmark", "--study", args.study, "--device", args.device):
                console.print("[red]Speed could not be measured; its chapter says what is missing.[/]")
        if not go_through(jobs, pipeline, args):
            console.print("Stopped at the first failure; --keep-going goes on with the other jobs.")
    except NoCluster as error:
        pipeline.write()
        return refuse(error, RESUMABLE)
    except KeyboardInterrupt:
        pipeline.write()
        raise
    status = pipeline.conclude(jobs, time.monotonic() - started)
    return status if agree else refuse("What was trained again does not agree with its records: see above.", 1)


def go_through(jobs: list[Job], pipeline: Pipeline, args: argparse.Namespace) -> bool:
    """Execute those of `jobs` that are to do as `args` asks for it, in the `pipeline`; False if it stopped at one."""
    first = next((job for job in jobs if job.run), None)
    for at, job in enumerate(jobs, start=1):
        if job.run and args.scheduler:
            how = args.device, args.force, args.keep_going
            if job is first and not pipeline.train_elsewhere(args.scheduler, jobs, *how):
                return False
            continue
        if job.extends and not pipeline.went_well(job.run.id):
            continue
        todo = is_to_do(job, job_state(job, pipeline.study.study), args)
        if todo and not pipeline.attempt(job, f"[{at}/{len(jobs)}]") and not args.keep_going:
            return False
    return True


if __name__ == "__main__":
    use_utf8()
    sys.exit(main())
