"""Runs a study: every notebook of its plan, in order, from training to the report.

Complete jobs are skipped, interrupted ones resumed; a run whose parameters changed, or that was made under another NUMERICS,
is trained again. Chapters that read records are executed every time. Exit status: 0 if every job of the plan is complete, 1
if not, or if what was trained again does not agree with its records, 2 for a wrong argument or parameter file, 130 if
interrupted and 75 if ended by SIGTERM: both after a checkpoint, and the same command goes on from there.
"""

import argparse
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time

from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hybridlib.study import execute, export, reproduce
from hybridlib.study.execute import Pipeline, known_times
from hybridlib.study.parameters import OUTPUTS, load_study
from hybridlib.study.plan import STAGES, Job, estimated_s, plan
from hybridlib.study.progress_line import ProgressLine, duration
from hybridlib.study.provenance import end_with
from hybridlib.study.records import RunFolder

RESUMABLE = os.EX_TEMPFAIL  # 75, in sysexits.h: try again later
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)


def device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda:\d+", name):
        raise argparse.ArgumentTypeError(f"{name!r} is none of auto, cpu, cuda:0, cuda:1, …")
    return name


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--study", default="cpu", metavar="NAME|FILE", help="a study in params/, or a .yaml file (default: cpu)")
    add(
        "--only",
        nargs="+",
        choices=STAGES,
        metavar="STAGE",
        help=f"these stages alone, of: {', '.join(STAGES)}; their chapters are executed again even if up to date",
    )
    add("--arms", nargs="+", default=[], metavar="ARM", help="train these arms alone")
    add("--data", nargs="+", default=[], metavar="DATA", help="train on these data sources alone")
    add("--seeds", nargs="+", default=[], type=int, metavar="SEED", help="train with these seeds alone")
    add(
        "--full",
        action="store_true",
        help="also what the study's plan marks `full: true`, and the sweeps of params/research/",
    )
    add("--dry-run", action="store_true", help="print the plan and stop")
    add("--force", action="store_true", help="delete what these jobs made before, records included, and start afresh")
    add(
        "--keep-going",
        action="store_true",
        help="after a failed job go on with the others; the report says what is missing",
    )
    add(
        "--device",
        default="auto",
        type=device,
        metavar="auto|cpu|cuda:N",
        help="where to train; auto: a GPU if there is one. "
        "Records made on another device are kept, and named; --force trains them again here",
    )
    add(
        "--reproduce",
        action="store_true",
        help="first train baseline and hybrid of the first seed again, beside their records, "
        "and say whether the same comes out; exit status 1 if not",
    )
    add(
        "--verify",
        nargs="?",
        const=2,
        type=int,
        metavar="N",
        help="only that, for N complete runs chosen at random (default: 2)",
    )
    add("--choice", type=int, metavar="SEED", help="of --verify: choose as the start did that printed this number")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    try:
        study = load_study(args.study)
        jobs = plan(study, args.study, args.only or STAGES, args.arms, args.data, args.seeds, args.full, args.device)
        execute.check(jobs)
        again = reproduce.pair(study) if args.reproduce else []
    except ValueError as error:  # ParameterError is one
        console.print(f"[red]{escape(str(error))}[/]")
        return 2
    if args.verify is None:
        print_plan(jobs, study.study, args)
        if again:
            console.print(f"Before it, --reproduce trains {' and '.join(run.id for run in again)} again.")
    if args.dry_run:
        return 0
    folder = OUTPUTS / study.study
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, stop)
    lock = FileLock(folder / ".lock")
    try:
        with lock.acquire(timeout=0):
            (folder / ".lock").write_text(f"process {os.getpid()}, started {time.strftime('%Y-%m-%d %H:%M:%S')}")
            return run(jobs, Pipeline(study, args.study, args.full), args)
    except Timeout:
        holder = (folder / ".lock").read_text()
        console.print(f"[red]{folder} is in use by another run_all.py ({holder}): wait for it, or stop it.[/]")
        return 1


def stop(number: int, frame: object) -> None:
    """A polite kill stops as cleanly as Ctrl-C."""
    raise KeyboardInterrupt(number)


def print_plan(jobs: list[Job], study: str, args: argparse.Namespace) -> None:
    known, total, stale = known_times(study), 0.0, {}
    table = Table(
        "", "stage", "job", "state", "estimate", title=f"Study {study}: {len(jobs)} jobs", title_justify="left"
    )
    for at, job in enumerate(jobs, start=1):
        state = execute.state(job, study)
        if todo := is_to_do(job, state, args):
            total += estimated_s(job, known)
        if state == "stale":
            stale.setdefault(execute.why_stale(job, study), []).append(job.name)
        said = (
            f"{state}, {on_device(job, args.device)}" if state == "complete" and on_device(job, args.device) else state
        )
        table.add_row(str(at), job.stage, job.name, said, duration(estimated_s(job, known)) if todo else "")
    console.print(table)
    for why, names in stale.items():
        console.print(escape(f"stale: {', '.join(names[:4])}{' …' * (len(names) > 4)}: {why}"))
    source = "from this study's records" if known else "a rough guess for two CPU cores"
    console.print(f"Estimated time: {duration(total)} ({source}).")


def is_to_do(job: Job, state: str, args: argparse.Namespace) -> bool:
    """Chapters that were asked for by `--only` are executed again: that is how one rebuilds their figures."""
    return args.force or state != "complete" or bool(args.only and not job.run)


def on_device(job: Job, device: str) -> str:
    """Says where a complete run was made, if that is another kind of device than the one asked for."""
    facts = RunFolder(execute.executed(job, "").parent).facts if job.run and device != "auto" else None
    differs = facts and facts["device"].split(":")[0] != device.split(":", maxsplit=1)[0]
    return f"on {facts['device']}: kept, --force trains it on {device}" if differs else ""


def run(jobs: list[Job], pipeline: Pipeline, args: argparse.Namespace) -> int:
    """Executes what is to do; returns the exit status."""
    study, started, agree = pipeline.study.study, time.monotonic(), True
    if args.force and args.verify is None:
        for job in jobs:
            execute.forget(job, study)
    try:
        if args.verify is not None:
            return 0 if reproduce.verify(pipeline.study, args.verify, args.choice, args.device, console) else 1
        if args.reproduce:
            agree = reproduce.reproduce(pipeline.study, args.device, console)
        if args.full and "research" in (args.only or STAGES) and train_sweeps(args.study):
            console.print("[red]Some trials failed; the chapter of research names what is missing.[/]")
        if "speed" in (args.only or (STAGES if args.full else ())) and measure_speed(args):
            console.print("[red]Speed could not be measured; its chapter says what is missing.[/]")
        for at, job in enumerate(jobs, start=1):
            if job.extends and not pipeline.went_well(job.run.id):
                continue
            todo = is_to_do(job, execute.state(job, study), args)
            if todo and not attempt(job, f"[{at}/{len(jobs)}]", pipeline) and not args.keep_going:
                console.print("Stopped at the first failure; --keep-going goes on with the other jobs.")
                break
    except KeyboardInterrupt as interrupt:
        logging.getLogger("asyncio").setLevel(
            logging.CRITICAL
        )  # the cell that was cut off would report its kernel's death
        pipeline.write()
        console.print("Stopped. The same command goes on from here.")
        return RESUMABLE if interrupt.args == (signal.SIGTERM,) else 130
    except reproduce.CannotTrain as error:
        console.print(f"[red]{escape(str(error))}[/]")
        return 1
    status = conclude(jobs, pipeline, time.monotonic() - started)
    if not agree:
        console.print("[red]What was trained again does not agree with its records: see above.[/]")
    return status if agree else 1


def train_sweeps(study: str) -> int:
    """The sweeps around the study, in processes of their own; their exit status."""
    return beside([sys.executable, "-m", "hybridlib.training.trials", "--study", study])


def measure_speed(args: argparse.Namespace) -> int:
    """Times this machine, in processes of their own, with nothing beside them; the exit status."""
    console.print("Measuring speed: some minutes, with the machine to itself.")
    command = [sys.executable, "-m", "hybridlib.benchmark", "--study", args.study, "--device", args.device]
    return beside(command)


def beside(command: list[str]) -> int:
    """Runs a command in a process that ends with this one; its exit status."""
    me = os.getpid()
    return subprocess.run(command, preexec_fn=lambda: end_with(me)).returncode


def attempt(job: Job, label: str, pipeline: Pipeline) -> bool:
    """Executes one job; says, and records, how it went."""
    study, started = pipeline.study.study, time.monotonic()
    try:
        with ProgressLine(job, label, console):
            if job.stage == "report":
                pipeline.write(STAGES[:-1])  # the report judges the pipeline: all of it but itself
            execute.execute(job, study)
            warnings = export.export(OUTPUTS / study, execute.executed(job, study)) if job.stage == "report" else []
        status, message = "complete", ""
    except (execute.JobFailed, export.ExportFailed) as error:
        status, message, warnings = "failed", str(error), []
    seconds = time.monotonic() - started
    pipeline.add(job, status, seconds, message)
    console.print(f"{label} {job.stage}: {job.name}: {status}, {duration(seconds)}")
    for line in filter(None, [message, *warnings]):
        console.print(f"[red]{escape(line)}[/]")
    return status == "complete"


def conclude(jobs: list[Job], pipeline: Pipeline, seconds: float) -> int:
    """Writes the pipeline's outcome, prints the verdicts, and returns the exit status."""
    outcome = pipeline.write().set_index("job")
    folder = OUTPUTS / pipeline.study.study
    if (folder / "results.json").exists():
        console.print(verdicts(json.loads((folder / "results.json").read_text())))
    for name in ("report.pdf", "report.html", export.MARKDOWN):
        if (folder / name).exists():
            console.print(str(folder / name))
    for job in jobs:
        execute.tidy(job, pipeline.study.study)
    wrong = [job for job in jobs if outcome.status[job.name] != "complete"]
    for job in wrong:
        console.print(f"[red]{outcome.status[job.name]}: {job.name}[/]")
    console.print(f"{len(jobs) - len(wrong)} of {len(jobs)} jobs complete, {duration(seconds)}.")
    return 1 if wrong else 0


def verdicts(results: dict) -> Table:
    table = Table("", "verdict", "value", "why", title="Verdicts", title_justify="left")
    colours = {"PASS": "green", "FAIL": "red"}
    for name, c in results["criteria"].items():
        number = "" if c.get("value") is None else f"{c['value']:.4g} {c.get('unit') or ''}".strip()
        colour = colours.get(c["verdict"], "yellow")
        table.add_row(name, f"[{colour}]{c['verdict']}[/]", number, escape(str(c.get("why", ""))))
    return table


if __name__ == "__main__":
    sys.exit(main())
