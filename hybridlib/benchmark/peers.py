"""How many steps of each arm take the time of another one: `python -m hybridlib.benchmark.peers`.

It times the arms that the sweeps `worth_of_*` compare, and needs the machine to itself. `results/speed_peers.csv` of
the study gets a row a round and arm; `equal_steps` makes of it the lengths of the sweeps `worth_of_*_in_equal_time`.
"""

import argparse
import sys

import pandas as pd

from hybridlib.benchmark.contenders import Hybrid, Workload, cycle_steps
from hybridlib.benchmark.side_by_side import alone, in_turns
from hybridlib.study import arguments
from hybridlib.study.parameters import OUTPUTS, ParameterError, load_study
from hybridlib.study.run import Run
from hybridlib.study.schema import Study
from hybridlib.study.storage import write_atomically
from hybridlib.study.sweeps import COMPARED, path, sweeps
from hybridlib.training.assemble import pick_device, subnormals_as_zero


def main(argv: list[str] | None = None) -> int:
    """Run the command with the arguments `argv`, by default the process's, and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m hybridlib.benchmark.peers", description=__doc__.split("\n")[0])
    parser.add_argument("--study", default="cpu", metavar="NAME|FILE")
    parser.add_argument("--device", default="auto", type=arguments.device, metavar=arguments.DEVICES)
    parser.add_argument("--rounds", type=arguments.count, help="blocks of each arm")
    parser.add_argument("--to", default="hybrid_tuned", metavar="ARM", help="whose time the others have")
    args = parser.parse_args(argv)
    try:
        study = load_study(args.study)
        arms = compared(study)
        if args.to not in arms:
            raise ParameterError(f"{path(study)}: no sweep {COMPARED}* compares an arm {args.to!r}: {', '.join(arms)}")
        pick_device(args.device, 1)
        found = alone(measure, study, arms, args.device, args.rounds or study.timing.rounds, study.timing.real_steps)
        write_atomically(OUTPUTS / study.study / "results" / "speed_peers.csv", found.to_csv(index=False))
    except (ValueError, OSError) as error:  # ParameterError, a device that is not there, a corpus, a full disk
        print(error, file=sys.stderr)
        return 2
    print(f"Steps in the time of {args.to}: {equal_steps(found, args.to)}")
    return 0


def compared(study: Study) -> list[str]:
    """Return the arms that the sweeps around `study` compare, each once."""
    asked = [sweep for name, sweep in sweeps(study).items() if name.startswith(COMPARED)]
    return list(dict.fromkeys(trial.get("arm", sweep.arm) for sweep in asked for trial in sweep.trials().values()))


def measure(study: Study, arms: list[str], device_choice: str, rounds: int, steps: int) -> pd.DataFrame:
    """Return what a nominal step of each of `arms` of `study` takes, jumps included: a row a round and arm.

    Columns `round, arm, steps, nominal_step_s`, where `steps` are those of `whole`. The arms take turns, `rounds`
    blocks of `steps` computed steps each; `device_choice` is the name given to `pick_device`.
    """
    runs = {arm: study.timed_run(arm) for arm in arms}
    contenders = {arm: Hybrid(Workload.of(run, device_choice), steps) for arm, run in runs.items()}
    with subnormals_as_zero():
        in_turns(contenders, rounds)
    rows = [
        dict(round=at, arm=arm, steps=whole(runs[arm]), nominal_step_s=seconds)
        for arm, contender in contenders.items()
        for at, seconds in enumerate(contender.nominal_s[1:])  # the first block is not counted
    ]
    return pd.DataFrame(rows)


def whole(run: Run) -> float:
    """Return how many nominal steps of whole cycles take as long as those of `run`: in Warmup every step is computed.

    A predicted step is taken to cost nothing here, which makes it at most some thousandths too many.
    """
    if (cycle := run.schedule) is None:
        return run.steps
    return run.steps + cycle.warmup * (cycle_steps(run) / (cycle.full + cycle.correct) - 1)


def equal_steps(found: pd.DataFrame, arm: str) -> dict[str, int]:
    """Return for each arm of `found`, as `measure` returns it, the steps that take as long as all steps of `arm`."""
    step_s, steps = found.groupby("arm").nominal_step_s.median(), found.groupby("arm").steps.first()
    return {other: round(step_s[arm] * steps[arm] / step_s[other]) for other in step_s.index}


if __name__ == "__main__":
    sys.exit(main())
