"""What prediction gains against the model's size: every recorded hybrid on like data, beside its baseline."""

import numpy as np
import pandas as pd

from hybridlib.analysis.load import BASELINE
from hybridlib.records import RunFolder
from hybridlib.studies import OUTPUTS

PLACES = ("*/runs/*", "*/research/carry_*/runs/*")  # runs of studies, and of the sweeps that ask what carries
LIKE = dict(steps=1000, tokens_per_step=256, tokenizer_vocab=1024)  # of the standard library's source
COLUMNS = ["parameters", "study", "seed", "arm", "delta_pct"]


def gains() -> pd.DataFrame:
    """One row a size, seed and arm (COLUMNS): the change of the final held-out loss in % of the baseline's, of the hybrid,
    and of `hold`, which is the baseline after as many computed steps."""
    found = {}
    for place in PLACES:
        for folder in map(RunFolder, sorted(OUTPUTS.glob(place))):
            if (facts := folder.facts) and facts["arm"] in (BASELINE, "hybrid") and likeness(facts) == LIKE:
                found[facts["study"], facts["seed"], facts["arm"]] = folder, facts
    rows = []
    for (study, seed, arm), (_, facts) in found.items():
        if arm == BASELINE or (study, seed, BASELINE) not in found:
            continue
        folder, plain = found[study, seed, BASELINE]
        evals, target = folder.evals(), plain["summary"]["held_out_loss"]
        held = np.interp(facts["summary"]["real_steps"], evals.real_steps, evals.held_out_loss)
        same = dict(parameters=facts["model_parameters"], study=study.rsplit("/")[-1], seed=seed)
        for name, loss in ((arm, facts["summary"]["held_out_loss"]), ("hold", held)):
            rows.append(same | dict(arm=name, delta_pct=100 * (loss / target - 1)))
    return pd.DataFrame(rows, columns=COLUMNS)


def likeness(facts: dict) -> dict:
    """What two runs must share to be compared by size alone."""
    given = facts["parameters"]
    source = given["source"]
    own_text = bool(source.get("paths")) or source["kind"] != "text"
    tokens = given["batch_size"] * given["seq_len"]
    return dict(steps=given["steps"], tokens_per_step=tokens, tokenizer_vocab=None if own_text else source["tokenizer_vocab"])
