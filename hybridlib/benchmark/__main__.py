"""Measure how fast this machine trains, and write it down: `python -m hybridlib.benchmark`.

It needs the machine to itself. `outputs/<study>/results/speed.json` gets the ratios at the study's size and at GPT-2
Small's, the files `speed_*.csv` beside it what the ratios are made of.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from hybridlib.benchmark.machine import facts
from hybridlib.benchmark.measure import at_size, climb, grow
from hybridlib.benchmark.side_by_side import alone
from hybridlib.study import arguments
from hybridlib.study.parameters import OUTPUTS, load_study
from hybridlib.study.progress_line import replace_unknown_characters
from hybridlib.study.schema import Study
from hybridlib.study.storage import write_atomically
from hybridlib.training.assemble import pick_device

console = Console(highlight=False, soft_wrap=True)


def main(argv: list[str] | None = None) -> int:
    """Run the command with the arguments `argv`, by default the process's, and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m hybridlib.benchmark", description=__doc__.split("\n")[0])
    parser.add_argument("--study", default="cpu", metavar="NAME|FILE")
    parser.add_argument("--device", default="auto", type=arguments.device, metavar=arguments.DEVICES)
    parser.add_argument("--larger", default="gpt2-small", metavar="NAME|FILE", help="a study whose size to measure too")
    parser.add_argument("--rounds", type=arguments.count, help="blocks of each contender")
    args = parser.parse_args(argv)
    replace_unknown_characters()
    try:
        studies = [load_study(name) for name in dict.fromkeys((args.study, args.larger))]
        pick_device(args.device, 1)
        measure(studies, args)
    except (ValueError, OSError) as error:  # ParameterError, a device that is not there, a corpus, a full disk
        print(error, file=sys.stderr)
        return 2
    return 0


def measure(studies: list[Study], args: argparse.Namespace) -> None:
    """Measure the `studies`, the first and the larger, as `args` asks for it, and write what is found."""
    folder, tables = OUTPUTS / studies[0].study / "results", {}
    found = alone(facts, studies[0], args.device)
    for study in studies:
        ratios, parts = alone(at_size, study, args.device, args.rounds or study.timing.rounds, study.timing.real_steps)
        console.print(f"{study.study}: {json.dumps({k: v for k, v in ratios.items() if k != 'spread'})}")
        found |= ratios if study is studies[0] else {key_of(study): ratios}
        keep(folder, found, tables, study, parts)
    tables["scaling"] = [alone(grow, studies[0], args.device)]
    keep(folder, found, tables, studies[0], {})
    for study in studies:
        rounds = max((args.rounds or study.timing.rounds) // 2, 1)
        rungs = climb(study, args.device, rounds, study.timing.real_steps)
        keep(folder, found, tables, study, dict(ladder=rungs))
    console.print(ratio_table(found, studies))


def key_of(study: Study) -> str:
    """Return the key under which speed.json has the ratios at the size of the larger `study`."""
    return study.study.replace("-", "_")


def ratio_table(found: dict[str, Any], studies: list[Study]) -> Table:
    """Return the ratios in `found`, a column for each of `studies`, with their quartiles."""
    table = Table(title=f"Ratios on {found['device']}: medians and quartiles")
    for name in ("ratio", *(study.study for study in studies)):
        table.add_column(name)
    sizes = [found, *(found[key_of(study)] for study in studies[1:])]
    for name in found["spread"]:
        spreads = [size["spread"][name] for size in sizes]
        told = [f"{size[name]:g} [{s['low']:g}, {s['high']:g}]" for size, s in zip(sizes, spreads)]
        table.add_row(name, *told)
    return table


def keep(
    folder: Path, found: dict[str, Any], tables: dict[str, list], study: Study, parts: dict[str, pd.DataFrame]
) -> None:
    """Write `found` to speed.json in `folder`, and `tables`, with the `parts` of `study` added, to a file each.

    Called after each measurement, so that a kill loses only the one under way.
    """
    for name, table in parts.items():
        tables.setdefault(name, []).append(table.assign(study=study.study))
    write_atomically(folder / "speed.json", json.dumps(found, indent=1) + "\n")
    for name, frames in tables.items():
        write_atomically(folder / f"speed_{name}.csv", pd.concat(frames).to_csv(index=False))


if __name__ == "__main__":
    sys.exit(main())
