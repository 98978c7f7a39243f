"""Seconds of a computed step against tokens a step: `python -m hybridlib.benchmark.tokens`.

Muon orthogonalizes at every step and the hybrid once a cycle, at a cost that no token adds to. How much that is of a
step's time depends on the batch. It needs the machine to itself; `results/speed_tokens.csv` of the study gets a row a
block, and keeps those of other devices, sizes and batches.
"""

import argparse
import sys

import pandas as pd

from hybridlib.benchmark.contenders import Hybrid, Workload, cycle_steps
from hybridlib.benchmark.side_by_side import alone, in_turns
from hybridlib.study import arguments
from hybridlib.study.parameters import OUTPUTS, load_study
from hybridlib.study.progress_line import replace_unknown_characters
from hybridlib.study.run import Run
from hybridlib.study.schema import Study
from hybridlib.study.storage import write_atomically
from hybridlib.training.assemble import device_name, pick_device, subnormals_as_zero

ARMS = ["baseline", "hybrid_tuned", "muon"]  # each size has its own; the larger one is measured in bf16
SEQ_LEN = 64
TOKENS = [64, 256, 1024, 4096, 16384]
FEW = 4  # computed steps a block; the hybrid takes a whole cycle


def main(argv: list[str] | None = None) -> int:
    """Run the command with the arguments `argv`, by default the process's, and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m hybridlib.benchmark.tokens", description=__doc__.split("\n")[0])
    parser.add_argument("--study", default="cpu", metavar="NAME|FILE")
    parser.add_argument("--device", default="auto", type=arguments.device, metavar=arguments.DEVICES)
    parser.add_argument("--larger", default="gpt2-small", metavar="NAME|FILE", help="a study whose size to measure too")
    parser.add_argument("--most", type=arguments.count, default=TOKENS[-1], help="tokens a step")
    parser.add_argument("--most-larger", type=arguments.count, default=1024, help="tokens a step at the larger size")
    parser.add_argument("--rounds", type=arguments.count, default=3, help="blocks of each arm")
    args = parser.parse_args(argv)
    replace_unknown_characters()
    try:
        study, larger = load_study(args.study), load_study(args.larger)
        runs = {(study.study, tokens): at(study, tokens, "fp32") for tokens in TOKENS if tokens <= args.most}
        few = [tokens for tokens in TOKENS if tokens <= args.most_larger and larger.study != study.study]
        runs |= {(larger.study, tokens): at(larger, tokens, "bf16") for tokens in few}
        device = device_name(pick_device(args.device, 1), study.timed_run(ARMS[0]).threads)
        file = OUTPUTS / study.study / "results" / "speed_tokens.csv"
        found = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["device", "study", "tokens"])
        for (size, tokens), mine in runs.items():
            new = alone(measure, mine, args.device, args.rounds).assign(device=device, study=size, tokens=tokens)
            print(f"{size}, {tokens} tokens: {new.groupby('arm').computed_step_s.median().to_dict()}", flush=True)
            earlier = (found.device == device) & (found.study == size) & (found.tokens == tokens)
            found = pd.concat([some for some in (found[~earlier], new) if len(some)])
            write_atomically(file, found.to_csv(index=False))
    except (ValueError, OSError) as error:  # ParameterError, a device that is not there, a corpus, a full disk
        print(error, file=sys.stderr)
        return 2
    return 0


def at(size: Study, tokens: int, precision: str) -> list[Run]:
    """Return the runs of ARMS as the study `size` has them, in `precision`, at so many `tokens` a step."""
    shape = dict(batch_size=tokens // SEQ_LEN, seq_len=SEQ_LEN, precision=precision)
    return [size.timed_run(arm).model_copy(update=shape) for arm in ARMS]


def measure(runs: list[Run], device_choice: str, rounds: int) -> pd.DataFrame:
    """Return what a computed step of each of `runs` takes, its share of the jumps included: a row a round and run.

    Columns `round, arm, computed_step_s`; the runs take turns, `rounds` blocks each, on the device that `device_choice`
    names.
    """
    contenders = {run.arm: Hybrid(Workload.of(run, device_choice), FEW) for run in runs}
    with subnormals_as_zero():
        in_turns(contenders, rounds)
    rows = []
    for run in runs:
        cycle = run.schedule
        share = (cycle.full + cycle.correct) / cycle_steps(run) if cycle else 1.0
        whole = contenders[run.arm].nominal_s[1:]  # the first block is not counted
        rows += [dict(round=at, arm=run.arm, computed_step_s=seconds / share) for at, seconds in enumerate(whole)]
    return pd.DataFrame(rows)


if __name__ == "__main__":
    sys.exit(main())
