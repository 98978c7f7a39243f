"""The schema of a run: everything that its records depend on."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from hybridlib.study.arm import Arm, Strict

# Radford et al. 2019, table 2; `nano` is the study's own size for two CPU cores.
PRESETS = {
    "nano": dict(n_layer=4, n_head=4, n_embd=128, block_size=512, vocab_size=1024),
    "small": dict(n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50257),
    "medium": dict(n_layer=24, n_head=16, n_embd=1024, block_size=1024, vocab_size=50257),
}

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,=+-]*$", max_length=100)]  # leads out of no folder
UNTIMED_STEPS = 3  # a run's first steps are off the clock: lazy initialisation, allocation, caches
SKIPPED = ("__pycache__", "site-packages", "dist-packages")  # not read in folders of text; nor is what is hidden
LEAST_VOCAB = 257  # of a byte-level tokenizer: all bytes, and one more
HELD_OUT_SEED = 0x4E1D  # takes a seed's place for held-out batches, which are the same for every run


def _draws_no_held_out_batch(seed: int) -> int:
    if seed == HELD_OUT_SEED:
        raise ValueError(f"seed {seed} draws the held-out batches: choose another")
    return seed


Seed = Annotated[int, Field(ge=0, lt=2**63), AfterValidator(_draws_no_held_out_batch)]  # what torch takes as a seed


class Model(Strict):
    """A GPT-2: the sizes of a `preset`, each of which may be overridden.

    `n_layer` blocks of `n_head` heads and `n_embd` channels, a context of `block_size` tokens, `vocab_size` tokens.
    """

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
    """Where batches come from: independent tokens (`uniform`), a Markov chain (`markov`), or `text`.

    A Markov chain gives each token `successors` that may follow it. Text is read from `paths`, files or folders of
    UTF-8 text, absolute or relative to the project's folder; none means the standard library's source. `max_mb` stops
    reading after that many megabytes. `held_out_pct` percent of it is never trained on. `tokenizer_vocab` is the size
    of the tokenizer's vocabulary, by default the model's.
    """

    kind: Literal["uniform", "markov", "text"]
    tokenizer_vocab: int | None = Field(default=None, ge=LEAST_VOCAB)
    paths: list[Annotated[str, Field(min_length=1)]] = []
    held_out_pct: float = Field(default=5.0, gt=0, lt=100)
    max_mb: float | None = Field(default=None, gt=0)
    successors: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _settings_belong_to_the_kind(self) -> Self:
        text = ("tokenizer_vocab", "paths", "held_out_pct", "max_mb")
        return self.refuse_idle("kind", dict(text=text, markov=("successors",)))


class Shape(Strict):
    """How long a run is, how large its batches are, and how often it records.

    `steps` counts nominal steps, `batch_size` sequences and `seq_len` tokens. Every `log_every` steps a run writes its
    rows, every `eval_every` it evaluates `eval_batches` held-out batches, every `snapshot_every` it makes a checkpoint.
    It uses `threads` CPU threads. With `keep_weights` it keeps, in its folder, the weights that its last evaluation
    judged; no number in its records depends on that.
    """

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    seq_len: int = Field(ge=2)
    log_every: int = Field(default=10, ge=1)
    eval_every: int = Field(default=20, ge=1)
    eval_batches: int = Field(default=16, ge=1)
    snapshot_every: int = Field(default=80, ge=1)
    threads: int = Field(default=2, ge=1, le=1024)
    keep_weights: bool = False


class Run(Shape, Arm):
    """One run of a `study`: an `arm` with a `seed` on a `data` source. All that its records depend on is here."""

    study: str = Field(pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$", max_length=200)
    arm: FileName
    data: FileName
    seed: Seed
    model: Model
    source: Source

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
        if self.source.kind == "text" and self.model.vocab_size < LEAST_VOCAB:
            raise ValueError(f"vocab_size {self.model.vocab_size} is too small for text: at least {LEAST_VOCAB}")
        if self.schedule and self.schedule.warmup >= self.steps:
            raise ValueError(f"schedule.warmup {self.schedule.warmup} leaves nothing of the {self.steps} steps")
        if self.steps <= UNTIMED_STEPS:
            raise ValueError(f"steps {self.steps} leaves nothing to time: the first {UNTIMED_STEPS} are off the clock")
        if self.fault and self.fault.step > self.steps:
            raise ValueError(f"fault.step {self.fault.step} lies beyond the {self.steps} steps: it would never happen")
        return self

    @property
    def most_steps(self) -> int:
        """The nominal steps after which it ends even if it has not reached its target."""
        return int(self.extend * self.steps) if self.goes_on else self.steps

    @property
    def id(self) -> str:
        """Return the name of the run's folder."""
        return f"{self.arm}-{self.data}-s{self.seed}"
