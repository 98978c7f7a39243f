"""Golden trajectories: what a run computes, feature by feature, held to the last digit.

`tests/golden/<feature>.csv` is the loss, gradient norm, event and held-out loss of every step of a tiny run as the code
computed them when `made_by.json` was written. On the machine and versions named there they must be equal to the last
digit, weights included; elsewhere they must agree to a relative 1e-5 (`LOOSER` names what rounding makes differ more).

A change of code that leaves them alone makes no record stale. When they differ: mend the change; or, if runs are meant
to compute something else from now on, raise `NUMERICS` in `hybridlib/training/__init__.py` and record them again:

    pytest tests/test_golden.py --record-golden
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tiny import HYBRID, TINY

from hybridlib.study import progress, provenance
from hybridlib.study.records import RunFolder
from hybridlib.study.run import Run
from hybridlib.training.experiment import train

GOLDEN = Path(__file__).parent / "golden"
MADE_BY = GOLDEN / "made_by.json"
COLUMNS = ["step", "phase", "real", "loss", "grad_norm", "tokens_trained", "event"]
MEND = (
    "mend the change, or raise NUMERICS in hybridlib/training/__init__.py and "
    "run `pytest tests/test_golden.py --record-golden`"
)

SCHEDULE = HYBRID["schedule"]
PLAIN = dict(arm="baseline", role="baseline")
KEEP = HYBRID | dict(memory="keep")
FAULTY = KEEP | dict(arm="faulty", steps=130)


def fault(kind: str, step: int, **settings: Any) -> dict[str, Any]:
    return FAULTY | dict(fault=dict(kind=kind, step=step, **settings))


def predictor(name: str, **settings: Any) -> dict[str, Any]:
    return KEEP | dict(predictor=dict(name=name, **settings))


FEATURES: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "plain_uniform": PLAIN | dict(data="uniform", source=dict(kind="uniform")),
    "plain_text": PLAIN
    | dict(data="text", source=dict(kind="text", tokenizer_vocab=300), model=TINY["model"] | dict(vocab_size=300)),
    "plain_bf16": PLAIN | dict(precision="bf16"),
    "plain_accumulation": PLAIN | dict(accumulation=2),
    "plain_average": PLAIN | dict(read_out_steps=6),
    "adam_scheduled": PLAIN | dict(optimizer=dict(lr=3e-3, lr_warmup_steps=9, lr_decay=0.5, beta1=0.8, beta2=0.95)),
    "adamw": PLAIN | dict(optimizer=dict(lr=3e-3, weight_decay=0.1), clip_norm=0.8),
    "soap": PLAIN | dict(optimizer=dict(name="soap", lr=3e-3, turn_every=3), clip_norm=0.8),
    "muon": PLAIN | dict(optimizer=dict(name="muon", lr=0.01, lr_matrices=0.004, lr_warmup_steps=5, lr_decay=0.4)),
    "schedule_free": PLAIN | dict(optimizer=dict(name="schedule_free", lr=4e-3, lr_warmup_steps=10)),
    "lookahead": PLAIN | dict(optimizer=dict(name="lookahead", lr=3e-3, slow_every=4)),
    "hold": predictor("hold"),
    "ema_nesterov": predictor("ema_nesterov", reach=2.0),
    "sham": predictor("sham", gain=0.5),
    "linear": predictor("linear", gain=0.5),
    "drift": predictor("drift", window=5, gain=0.5),
    "ridge": predictor("ridge", window=6),
    "dmd": predictor("dmd", window=6),
    "wnn": predictor("wnn", window=8, inputs=3, samples=20_000),
    "nesterov": predictor("nesterov", gain=1.0, momentum=0.5, fade=0.5, fade_from=0.5),
    "spectral": predictor("spectral", gain=2.0, momentum=0.6, fade=0.7, fade_from=0.6, vector_gain=1.4),
    "spectral_bf16": predictor("spectral", precision="bf16", embeddings=False, iterations=2, least=0.05),
    "spectral_leading": predictor("spectral", leading=1),
    "over_muon": predictor("nesterov", gain=0.7, momentum=0.3)
    | dict(optimizer=dict(name="muon", lr=0.01, lr_matrices=0.004)),
    "moments_decay": KEEP | dict(moments="decay"),
    "moments_reset": KEEP | dict(moments="reset"),
    "average": KEEP | dict(read_out_steps=4),
    "until": KEEP | dict(schedule=SCHEDULE | dict(until=0.6)),
    "accumulation": KEEP | dict(accumulation=4),
    "offload": HYBRID,
    "memory_optimized": HYBRID | dict(precision="bf16", accumulation=2),
    "lr_spike": fault("lr_spike", 110, factor=1000.0),
    "exploding_gradient": fault("exploding_gradient", 110),
    "vanishing_gradient": fault("vanishing_gradient", 110),
    "lr_spike_plain": PLAIN | dict(arm="faulty", steps=60, fault=dict(kind="lr_spike", step=40, factor=1000.0)),
    "nan_gradient": fault("nan_gradient", 21) | dict(accumulation=2),
    "inf_gradient": fault("inf_gradient", 21),
    "corrupt_batch": fault("corrupt_batch", 110),
    "wild_jump": fault("wild_jump", 39, factor=1e5),
    "out_of_memory": fault("out_of_memory", 18),
}
EXTENSION = KEEP | dict(extend=2.0, predictor=dict(name="hold"))
# Products in bf16 (Muon's own among them) round by instruction set; a spoilt run carries every rounding far.
BF16, SPOILT = (
    ("plain_bf16", "memory_optimized", "spectral_bf16", "muon", "over_muon"),
    ("lr_spike", "wild_jump"),
)
# SOAP turns into eigenbases of matrices whose rank a small batch leaves low: in what is left over, rounding alone
# chooses the basis. Measured between two processors: 0.6 % of a loss, 8 % of a gradient norm, the same events.
LOOSER = dict.fromkeys([*BF16, *SPOILT], 2e-3) | dict(soap=0.1)


@pytest.fixture(autouse=True)
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "OUTPUTS", tmp_path)


def trajectory(folder: Path) -> pd.DataFrame:
    """A run's steps beside its held-out losses."""
    records = RunFolder(folder)
    return records.steps()[COLUMNS].merge(records.evals()[["step", "held_out_loss"]], on="step", how="left")


def compute(feature: str, tmp_path: Path) -> tuple[pd.DataFrame, str]:
    """The feature's trajectory, and the hash of its final weights."""
    settings = FEATURES[feature]
    if settings.get("data") == "text":
        (tmp_path / "text.txt").write_text("".join(f"{n * n} squares {n}; a cube is {n**3}.\n" for n in range(6000)))
        settings = settings | dict(source=settings["source"] | dict(paths=[str(tmp_path / "text.txt")]))
    run = Run(**TINY | settings)
    facts = train(run, "cpu")
    return trajectory(progress.run_folder(run)), facts["weights_sha256"]


def extended(tmp_path: Path) -> tuple[pd.DataFrame, str]:
    """A run that goes on until it reaches its baseline's held-out loss, past its nominal end."""
    train(Run(**TINY | PLAIN), "cpu")
    run = Run(**TINY | EXTENSION)
    facts = train(run, "cpu")
    return trajectory(progress.run_folder(run)), facts["weights_sha256"]


COMPUTE: dict[str, Callable[[Path], tuple[pd.DataFrame, str]]] = {
    **{feature: (lambda path, feature=feature: compute(feature, path)) for feature in FEATURES},
    "extension": extended,
}


def processor_model() -> str:
    """The CPU as a compiler would tell it from others: name, family, model, stepping and instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
        facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        flags = hashlib.sha256(facts["flags"].encode()).hexdigest()[:12]
        return " ".join(
            [facts["model name"], *(facts[key] for key in ("cpu family", "model", "stepping")), f"flags {flags}"]
        )
    except (OSError, KeyError):
        return provenance.processor()


def machine() -> dict[str, Any]:
    """What the last digit may depend on besides the code."""
    kernels = torch.backends.cpu.get_cpu_capability()
    return dict(processor=processor_model(), kernels=kernels, versions=provenance.versions())


def test_torch_is_the_one_that_the_golden_runs_were_made_with() -> None:
    made, here = json.loads(MADE_BY.read_text())["versions"]["torch"], provenance.versions()["torch"]
    same = made.split(".")[:2] == here.split(".")[:2]
    assert same, (
        f"torch {here} is installed, golden trajectories were made by {made}: "
        "compare them, then raise NUMERICS or record again"
    )


@pytest.mark.parametrize("feature", COMPUTE)
def test_a_run_computes_what_it_computed(feature: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    found, weights = COMPUTE[feature](tmp_path)
    file = GOLDEN / f"{feature}.csv"
    if request.config.getoption("record_golden"):
        found.to_csv(file, index=False)
        (GOLDEN / f"{feature}.sha256").write_text(weights + "\n")
        MADE_BY.write_text(json.dumps(machine(), indent=1) + "\n")
        return
    golden = pd.read_csv(file, dtype={"event": str}).fillna({"event": ""})
    if json.loads(MADE_BY.read_text()) == machine():
        difference = found.compare(golden)
        assert difference.empty, f"{feature} computes something else: {MEND}\n{difference.head()}"
        assert weights == (GOLDEN / f"{feature}.sha256").read_text().strip(), f"{feature} ends on other weights: {MEND}"
    else:
        undone = golden.event.str.contains("rejected")  # its gradient moves nothing, and may overflow or not
        found, golden = (table.assign(grad_norm=table.grad_norm.mask(undone)) for table in (found, golden))
        try:
            pd.testing.assert_frame_equal(found, golden, rtol=LOOSER.get(feature, 1e-5), atol=1e-7, check_exact=False)
        except AssertionError as error:
            pytest.fail(f"{feature} computes something else: {MEND}\n{error}")
