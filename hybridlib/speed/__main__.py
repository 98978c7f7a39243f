"""Measures how fast this machine trains, and writes it down: `python -m hybridlib.speed`.

Wants the machine to itself. `outputs/<study>/results/speed.json` holds the ratios at the study's size and at GPT-2 Small's,
the files `speed_*.csv` beside it what they are made of.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console

from hybridlib import provenance
from hybridlib.config import Study
from hybridlib.records import write_atomically
from hybridlib.speed import ladder, machine, scaling
from hybridlib.speed.alone import alone
from hybridlib.speed.measure import at_size
from hybridlib.speed.share import training_share
from hybridlib.studies import OUTPUTS, load_study
from hybridlib.training.assemble import device_name, pick_device
from hybridlib.training.data import open_source

# Study -> rounds in turns and real steps a block: enough for quartiles, in a few minutes each.
SIZES = {"cpu": (11, 16), "gpt2-small": (3, 4)}
console = Console(highlight=False)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m hybridlib.speed", description=__doc__.split("\n")[0])
    parser.add_argument("--study", default="cpu", metavar="NAME|FILE")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda:N")
    parser.add_argument("--larger", default="gpt2-small", metavar="NAME|FILE", help="a study whose size is measured as well")
    parser.add_argument("--rounds", type=int, help="how often each contender has its turn")
    args = parser.parse_args(argv)
    try:
        studies = [load_study(name) for name in (args.study, args.larger)]
    except ValueError as error:  # ParameterError is one
        print(error, file=sys.stderr)
        return 2
    folder, tables = OUTPUTS / studies[0].study / "results", {}
    folder.mkdir(parents=True, exist_ok=True)
    found = alone(facts, studies[0], args.device)
    for study in studies:
        rounds, steps = SIZES.get(study.study, (5, 8))
        ratios, parts = alone(size, study, args.device, args.rounds or rounds, steps)
        console.print(f"{study.study}: {json.dumps({k: v for k, v in ratios.items() if k != 'spread'})}")
        found |= ratios if study is studies[0] else {study.study.replace("-", "_"): ratios}
        keep(folder, found, tables, study, parts)
    tables["scaling"] = [alone(grow, studies[0], args.device)]
    for study in studies:
        rounds, steps = SIZES.get(study.study, (5, 8))
        rungs = ladder.climb(study, args.device, max((args.rounds or rounds) // 2, 1), steps)
        keep(folder, found, tables, study, dict(ladder=rungs))
    return 0


def keep(folder: Path, found: dict[str, Any], tables: dict[str, list], study: Study, parts: dict[str, pd.DataFrame]) -> None:
    """Writes what is known so far: a kill later on loses none of it."""
    for name, table in parts.items():
        tables.setdefault(name, []).append(table.assign(study=study.study))
    write_atomically(folder / "speed.json", json.dumps(found, indent=1) + "\n")
    for name, frames in tables.items():
        write_atomically(folder / f"speed_{name}.csv", pd.concat(frames).to_csv(index=False))


def size(study: Study, device_choice: str, rounds: int, steps: int) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """The ratios at a study's size, the times behind them, and a step's anatomy."""
    ratios, times = at_size(study, device_choice, rounds, steps)
    run = study.run("baseline", "text", study.pilot_seeds[0])
    source = open_source(run.source, run.model.vocab_size, run.batch_size, run.seq_len)
    return ratios, dict(times=times, anatomy=machine.anatomy(run, source, pick_device(device_choice, run.threads), 2 * steps))


def grow(study: Study, device_choice: str) -> pd.DataFrame:
    run = study.run("baseline", "text", study.pilot_seeds[0])
    device = pick_device(device_choice, run.threads)
    curves = scaling.by_parameters(run, device, 4), scaling.by_tokens(run, device, 4)
    return pd.concat(curve.assign(over=over) for curve, over in zip(curves, ("parameters", "tokens")))


def facts(study: Study, device_choice: str) -> dict[str, Any]:
    """What this machine can do at best, and which machine and code it was."""
    run = study.run("baseline", "text", study.pilot_seeds[0])
    device = pick_device(device_choice, run.threads)
    rates = {f"gemm_{name}_flops_per_s": machine.gemm_flops_per_s(device, dtype) for name, dtype in
             dict(fp32=torch.float32, bf16=torch.bfloat16).items()}
    share = dict(training_share=training_share(OUTPUTS / study.study))
    return rates | share | dict(copy_bytes_per_s=machine.copy_bytes_per_s(device), device=device_name(device, run.threads),
                        code=provenance.code(), versions=provenance.versions(), measured_at=provenance.now())


if __name__ == "__main__":
    sys.exit(main())
