"""The schema of a run: everything that its records depend on. `schema.py` has that of a study, which is made of runs.

Knows no torch, so that a plan can be made, and a bad file refused, before anything heavy is imported.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hybridlib.method.settings import broken_files, predictor_settings, problem

# Radford et al. 2019, table 2; `nano` is the study's own size for two CPU cores.
PRESETS = {
    "nano": dict(n_layer=4, n_head=4, n_embd=128, block_size=512, vocab_size=1024),
    "small": dict(n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50257),
    "medium": dict(n_layer=24, n_head=16, n_embd=1024, block_size=1024, vocab_size=50257),
}


FILE_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.,=+-]*$"  # what names a folder of records: it leads out of none


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Model(Strict):
    """A GPT-2: a preset's sizes, each of which may be overridden."""

    preset: Literal["nano", "small", "medium"] = "nano"
    n_layer: int = Field(ge=1)
    n_head: int = Field(ge=1)
    n_embd: int = Field(ge=1)
    block_size: int = Field(ge=2)
    vocab_size: int = Field(ge=2)

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        return PRESETS.get(str(given.get("preset", "nano")), {}) | given if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "Model":
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} must be a multiple of n_head {self.n_head}")
        return self


class Source(Strict):
    """Where batches come from; `paths` are files or folders of UTF-8 text, relative to the project's folder or absolute,
    and none means the standard library's source.

    `max_mb` stops reading text after that many megabytes, for a study that must start at once.
    """

    kind: Literal["uniform", "markov", "text"]
    tokenizer_vocab: int | None = Field(default=None, ge=257)
    paths: list[str] = []
    held_out_pct: float = Field(default=5.0, gt=0, lt=100)
    max_mb: float | None = Field(default=None, gt=0)  # of text, for a quick look
    successors: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _text_alone_has_a_tokenizer(self) -> "Source":
        if self.kind != "text" and (self.tokenizer_vocab is not None or self.paths or self.max_mb is not None):
            raise ValueError(f"tokenizer_vocab, paths and max_mb belong to kind text, not {self.kind}")
        return self


class Schedule(Strict):
    """Lengths of the phases in nominal steps: Warmup once, then cycles of Full, Predict, Correct.

    No Predict begins after the share `until` of the run.
    """

    warmup: int = Field(default=10, ge=0)
    full: int = Field(ge=1)
    predict: int = Field(ge=1)
    correct: int = Field(ge=1)
    until: float = Field(default=1.0, gt=0, le=1)


class Predictor(Strict):
    """A predictor's name, which is its class's in snake case, and its settings, which are the class's arguments."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    name: str

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _known(self) -> "Predictor":
        known = predictor_settings()
        if self.name not in known:
            broken = "".join(f"; {said}" for said in broken_files())
            raise ValueError(f"no predictor {self.name!r}; there are {', '.join(sorted(known))}{broken}")
        for key, value in self.settings.items():
            if key in known[self.name] and (said := problem(value, known[self.name][key])):
                raise ValueError(f"predictor {self.name}: {key}: {value!r} {said}")
        if unknown := sorted(set(self.settings) - set(known[self.name])):
            allowed = ", ".join(sorted(known[self.name])) or "no settings"
            raise ValueError(f"predictor {self.name} has no setting {', '.join(unknown)}; it takes {allowed}")
        return self


class Optimizer(Strict):
    """Adam as in the brief: constant learning rate, no weight decay. Or a peer, with what it needs besides.

    `lr_decay` is the last share of the nominal steps, over which the rate falls to zero; `lr_matrices` is Muon's, and
    `slow_every` and `slow_share` are Lookahead's k and alpha.
    """

    name: Literal["adam", "muon", "schedule_free", "lookahead"] = "adam"
    lr: float = Field(default=6e-4, gt=0)
    lr_matrices: float | None = Field(default=None, gt=0)
    lr_warmup_steps: int = Field(default=0, ge=0)
    lr_decay: float = Field(default=0.0, ge=0, le=1)
    slow_every: int = Field(default=5, ge=1)
    slow_share: float = Field(default=0.5, gt=0, le=1)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)


class Guards(Strict):
    """Margins of the jump gate and the divergence monitor, fixed before any run."""

    jump_margin_nats: float = Field(default=4.0, gt=0)
    window_steps: int = Field(default=50, ge=2)
    sigmas: float = Field(default=6.0, gt=0)
    floor_nats: float = Field(default=0.5, gt=0)
    gradient_factor: float = Field(default=1000.0, gt=1)
    grace_steps: int = Field(default=3, ge=0)
    patience_steps: int = Field(default=3, ge=2)


class Fault(Strict):
    """A fault put in on purpose at one nominal step: a learning rate or gradient `factor` times as large, a gradient
    `factor` times as small, a gradient that is infinite or not a number, a batch of noise, a jump `factor` times
    as far (a step that begins Predict), memory for half of the batch alone.
    """

    kind: Literal[
        "lr_spike", "exploding_gradient", "vanishing_gradient", "nan_gradient", "inf_gradient", "corrupt_batch", "wild_jump",
        "out_of_memory",
    ]  # fmt: skip
    step: int = Field(ge=1)
    factor: float = Field(default=1e4, gt=1)


class Arm(Strict):
    """A configuration: everything by which two runs on the same data and seed may differ."""

    about: str = ""
    role: Literal["baseline", "arm", "control", "peer", "ablation", "stress"] = "arm"
    schedule: Schedule | None = None
    predictor: Predictor | None = None
    optimizer: Optimizer = Optimizer()
    precision: Literal["fp32", "bf16"] = "fp32"
    accumulation: int = Field(default=1, ge=1)
    memory: Literal["keep", "offload"] = "keep"
    moments: Literal["keep", "decay", "reset"] = "keep"
    compile: bool = False  # the model and its loss, by torch.compile, off the clock
    read_out_steps: int = Field(default=1, ge=1)
    guards: Guards = Guards()
    extend: float = Field(default=1.0, ge=1.0, le=2.0)
    fault: Fault | None = None
    steps: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    seq_len: int | None = Field(default=None, ge=2)

    @model_validator(mode="after")
    def _schedule_and_predictor_go_together(self) -> "Arm":
        if (self.schedule is None) != (self.predictor is None):
            raise ValueError("schedule and predictor go together: give both, or neither for plain training")
        return self


class Run(Arm):
    """One run, complete: an arm x a seed x a data source of a study. All that its records depend on is here."""

    study: str = Field(pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$")
    arm: str = Field(pattern=FILE_NAME)
    data: str = Field(pattern=FILE_NAME)
    seed: int = Field(ge=0)
    model: Model
    source: Source
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    seq_len: int = Field(ge=2)
    log_every: int
    eval_every: int
    eval_batches: int
    snapshot_every: int
    threads: int

    @model_validator(mode="after")
    def _fits(self) -> "Run":
        if self.batch_size % self.accumulation:
            raise ValueError(f"accumulation {self.accumulation} does not divide batch_size {self.batch_size}")
        if self.seq_len > self.model.block_size:
            raise ValueError(f"seq_len {self.seq_len} is longer than the model's block_size {self.model.block_size}")
        if self.source.kind == "markov" and 2 * self.source.successors > self.model.vocab_size:
            raise ValueError(
                f"successors {self.source.successors} must be at most half of vocab_size {self.model.vocab_size}"
            )
        if (vocab := self.source.tokenizer_vocab or 0) > self.model.vocab_size:
            raise ValueError(f"tokenizer_vocab {vocab} is larger than the model's vocab_size {self.model.vocab_size}")
        if self.schedule and self.schedule.warmup >= self.steps:
            raise ValueError(f"schedule.warmup {self.schedule.warmup} leaves nothing of the {self.steps} steps")
        return self

    @property
    def id(self) -> str:
        return f"{self.arm}-{self.data}-s{self.seed}"
