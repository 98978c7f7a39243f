"""The jobs of a study: notebooks with their parameters, in order. Nothing here runs one."""

import itertools
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hybridlib.study.run import Run
from hybridlib.study.schema import CHAPTERS, STAGES, Study

PIPELINE = "HYBRIDLIB_PIPELINE"  # names the chapter that the pipeline executes; not set where one is run by hand
MEASURING = ("functionality", "phases")  # their chapters compute on the device that training uses
# Their chapters read the records of all runs.
READERS = ("benchmark", "memory", "ablation", "stress", "speed", "research", "failures", "report")
TRAINING = "05_run"

# Floating-point operations a second of two recent server cores: 0.9 and 1.1 x 10^11 were measured for GPT-2 Small and
# for 1 M parameters, fp32. Only for an estimate before a study has records of its own.
CPU_FLOPS = 1e11
NOTEBOOK_S = 8.0  # start of a kernel and import of torch
CHAPTER_S = 15.0


@dataclass(frozen=True)
class Job:
    """One execution of a `notebook` with `parameters`, in a `stage` of the plan.

    `run` is set for training; `extends` marks a run's second job (see `plan`).
    """

    stage: str
    notebook: str
    parameters: dict[str, Any] = field(hash=False)
    run: Run | None = None
    extends: bool = False

    @property
    def name(self) -> str:
        """What the job is called in the plan and in what became of it."""
        return (f"{self.run.id} (extend)" if self.extends else self.run.id) if self.run else self.notebook


def plan(
    study: Study,
    name: str,
    only: Iterable[str] = STAGES,
    arms: Iterable[str] = (),
    data: Iterable[str] = (),
    seeds: Iterable[int] = (),
    full: bool = False,
    device: str = "auto",
) -> list[Job]:
    """Return every job of `study`, on `device`, in the order of execution.

    `name` is how the notebooks find the study: its name or its file. `only` names stages; `arms`, `data` and `seeds`
    choose runs, and empty ones mean all; `full` adds what the plan leaves to `--full`.

    Chapters that compute come first, then all training, then the chapters that read its records. Stage by stage,
    training goes seed by seed, within a seed in an order shuffled by it, so that drift of the machine favours no arm. A
    run that goes on until it reaches its baseline's final loss (`extend`) needs that baseline: where the order puts the
    baseline later, a second job at the end of the seed's block extends the run. What two stages train is the
    first one's job. Raise `ValueError` for a name that the study lacks.
    """
    wanted = {"arm": set(arms), "data": set(data), "seed": set(seeds)}
    every = [run for stage in study.plan for run in stage_runs(study, stage, full=True)]
    for what, values in wanted.items():
        known = sorted({getattr(run, what) for run in every})
        if unknown := sorted(values - set(known)):
            has = ", ".join(map(str, known))
            raise ValueError(f"the plan of {study.study} has no {what} {unknown[0]!r}; it has {has}")
    jobs = []
    for stage in filter((set(only) - set(study.leave_out)).__contains__, STAGES):
        runs = [run for run in stage_runs(study, stage, full) if run.id not in {job.run.id for job in jobs if job.run}]
        for seed in dict.fromkeys(run.seed for run in runs):
            block = [run for run in runs if run.seed == seed]
            random.Random(seed).shuffle(block)
            block = [r for r in block if all(not v or getattr(r, what) in v for what, v in wanted.items())]
            extended = [
                run
                for at, run in enumerate(block)
                if run.goes_on and any(later.role == "baseline" and later.data == run.data for later in block[at:])
            ]
            for run, extends in [(r, False) for r in block] + [(r, True) for r in extended]:
                given = dict(study=name, arm=run.arm, data=run.data, seed=run.seed, device=device)
                jobs.append(Job(stage, TRAINING, given, run, extends))
        chapter, given = CHAPTERS[stage], {"study": name} | ({"device": device} if stage in MEASURING else {})
        jobs.append(Job(stage, chapter, given | study.chapters.get(chapter, {})))
    return sorted(jobs, key=lambda job: 1 if job.run else 2 * (job.stage in READERS))


def stage_runs(study: Study, stage: str, full: bool) -> list[Run]:
    """Return the runs of a `stage` of `study`, each once; those of lines marked `full` only if `full` asks for them."""
    lines = [line for line in study.plan.get(stage, []) if full or not line.full]
    keys = [key for line in lines for key in itertools.product(line.seeds or study.seeds, line.data, line.arms)]
    return [study.run(arm, data, seed) for seed, data, arm in dict.fromkeys(keys)]


def estimated_s(job: Job, known: dict[tuple[str, str], float]) -> float:
    """Return the seconds that `job` may take; `known` maps (arm, data) to the seconds that a nominal token took."""
    if job.run is None:
        return CHAPTER_S
    return training_s(job.run, known, job.run.extend - 1 if job.extends else 1.0)


def training_s(run: Run, known: dict[tuple[str, str], float], share: float = 1.0) -> float:
    """Return the seconds that this `share` of the steps of `run` may take; `known` is as for `estimated_s`."""
    if (run.arm, run.data) in known:
        return NOTEBOOK_S + share * run.steps * run.batch_size * run.seq_len * known[run.arm, run.data]
    parameters = 12 * run.model.n_layer * run.model.n_embd**2 + run.model.vocab_size * run.model.n_embd
    cycle = run.schedule
    real = (cycle.full + cycle.correct) / (cycle.full + cycle.predict + cycle.correct) if cycle else 1.0
    return NOTEBOOK_S + share * run.steps * real * 6 * parameters * run.batch_size * run.seq_len / CPU_FLOPS
