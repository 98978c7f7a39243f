"""The schema of an arm: everything by which two runs on the same data and seed may differ.

It knows no torch: a plan is made, and a bad file refused, before anything heavy is imported.
"""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from hybridlib.method.guards import MIN_LOSSES
from hybridlib.method.settings import defined_twice, instead, no_predictor, predictor_settings, problem


class Strict(BaseModel):
    """A mapping of a parameter file: no key that it does not know, no value of another type, no infinite number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known(cls, given: Any) -> Any:
        open_to_any = cls.model_config["extra"] != "forbid" or not isinstance(given, dict)
        if unknown := [] if open_to_any else [str(key) for key in given if key not in cls.model_fields]:
            said = {key: f"unknown key: {instead(key, cls.model_fields)}" for key in unknown}
            raise PydanticCustomError("unknown_keys", "unknown key {first}", dict(first=repr(unknown[0]), said=said))
        return given

    def refuse_idle(self, key: str, owners: dict[str, tuple[str, ...]]) -> Self:
        """Return it; raise `ValueError` for a setting that does nothing, because `key` has another value.

        `owners` gives, for values of `key`, the settings that belong to it alone. A default is no setting.
        """
        chosen, fields = getattr(self, key), type(self).model_fields
        for owner, names in owners.items():
            for name in names if chosen != owner else ():
                if (value := getattr(self, name)) != fields[name].default:
                    raise ValueError(f"{name} = {value!r} belongs to {key} {owner}, not {chosen}: leave it out")
        return self


class Schedule(Strict):
    """Lengths of the phases in nominal steps: `warmup` once, then cycles of `full`, `predict`, `correct`.

    With `predict` 0 nothing is skipped: that is for a predictor that looks ahead at every step. After the share `until`
    of the run no Predict begins, until its nominal end.
    """

    warmup: int = Field(default=10, ge=0)
    full: int = Field(ge=1)
    predict: int = Field(ge=0)
    correct: int = Field(ge=1)
    until: float = Field(default=1.0, gt=0, le=1)


class PredictorSettings(Strict):
    """A predictor: its `name`, its class's in snake case, and its settings, the arguments of the class."""

    model_config = ConfigDict(extra="allow")
    name: str

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _known(self) -> "PredictorSettings":
        known = predictor_settings()
        if self.name not in known:
            raise ValueError(no_predictor(self.name, known))
        if twice := defined_twice(self.name):
            raise ValueError(twice)
        for key, value in self.settings.items():
            if key in known[self.name] and (said := problem(value, known[self.name][key])):
                raise ValueError(f"predictor {self.name}: {key}: {value!r} {said}")
        for key in sorted(set(self.settings) - set(known[self.name])):
            raise ValueError(f"predictor {self.name} has no setting {key!r}: {instead(key, known[self.name])}")
        return self


class OptimizerSettings(Strict):
    """Adam at a constant learning rate and without weight decay, or a peer.

    `lr` is the learning rate after `lr_warmup_steps` steps of linear warm-up; over the last share `lr_decay` of the
    nominal steps it falls to zero. `beta1`, `beta2` and `eps` are Adam's, and SOAP's; `weight_decay` is decoupled from
    the gradient, so that Adam with it is AdamW. Muon has the rate `lr_matrices`, by default `lr`, and `momentum` for
    matrices; `slow_every` and `slow_share` are Lookahead's k and alpha; SOAP turns its bases every `turn_every` steps.
    """

    name: Literal["adam", "muon", "soap", "schedule_free", "lookahead"] = "adam"
    lr: float = Field(default=6e-4, gt=0)
    lr_matrices: float | None = Field(default=None, gt=0)
    momentum: float = Field(default=0.95, ge=0, lt=1)
    turn_every: int = Field(default=10, ge=1)
    weight_decay: float = Field(default=0.0, ge=0)
    lr_warmup_steps: int = Field(default=0, ge=0)
    lr_decay: float = Field(default=0.0, ge=0, le=1)
    slow_every: int = Field(default=5, ge=1)
    slow_share: float = Field(default=0.5, gt=0, le=1)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)

    @model_validator(mode="after")
    def _settings_belong_to_the_name(self) -> Self:
        if self.name == "schedule_free" and self.lr_decay:
            raise ValueError(f"lr_decay {self.lr_decay:g} does nothing: the rate of schedule_free does not fall")
        owned = dict(muon=("lr_matrices", "momentum"), soap=("turn_every",), lookahead=("slow_every", "slow_share"))
        return self.refuse_idle("name", owned)


class Guards(Strict):
    """Margins of the jump gate and the divergence monitor, fixed before any run.

    A jump that raises the loss by more than `jump_margin_nats` is undone. A loss is out of the ordinary when it lies
    more than `sigmas` deviations, and at least `floor_nats`, above the mean of the last `window_steps`; a gradient when
    its norm is `gradient_factor` times the usual one. After a jump the monitor waits `grace_steps`; `patience_steps`
    such steps in a row roll back.
    """

    jump_margin_nats: float = Field(default=4.0, gt=0)
    window_steps: int = Field(default=50, ge=MIN_LOSSES)
    sigmas: float = Field(default=6.0, gt=0)
    floor_nats: float = Field(default=0.5, gt=0)
    gradient_factor: float = Field(default=1000.0, gt=1)
    grace_steps: int = Field(default=3, ge=0)
    patience_steps: int = Field(default=3, ge=2)


class Fault(Strict):
    """A fault put in on purpose at the nominal step `step`.

    A learning rate or gradient `factor` times as large, a gradient `factor` times as small, a gradient that is infinite
    or not a number, a batch of noise, a jump `factor` times as far (at a step that begins Predict), memory for half of
    the batch alone.
    """

    kind: Literal[
        "lr_spike", "exploding_gradient", "vanishing_gradient", "nan_gradient", "inf_gradient", "corrupt_batch",
        "wild_jump", "out_of_memory",
    ]  # fmt: skip
    step: int = Field(ge=1)
    factor: float = Field(default=1e4, gt=1)


class Arm(Strict):
    """A configuration: everything by which two runs on the same data and seed may differ.

    `about` describes it and `role` says what it is compared as. Plain training has neither `schedule` nor `predictor`.
    A batch is split into `accumulation` micro-batches. `memory: offload` takes the optimizer's state off the device in
    Predict; `moments` says what becomes of it at a jump. Gradients whose norm is above `clip_norm` are scaled down to
    it. `compile` uses torch.compile, off the clock. A run is judged by the mean of its weights over the last
    `read_out_steps` computed steps. If it `goes_on`, then to at most `extend` times its nominal steps, until it reaches
    its baseline's final loss. `steps`, `batch_size` and `seq_len` override the study's.
    """

    about: str = ""
    role: Literal["baseline", "arm", "control", "peer", "ablation", "stress"] = "arm"
    schedule: Schedule | None = None
    predictor: PredictorSettings | None = None
    optimizer: OptimizerSettings = OptimizerSettings()
    precision: Literal["fp32", "bf16"] = "fp32"
    accumulation: int = Field(default=1, ge=1)
    memory: Literal["keep", "offload"] = "keep"
    moments: Literal["keep", "decay", "reset"] = "keep"
    clip_norm: float | None = Field(default=None, gt=0)
    compile: bool = False
    read_out_steps: int = Field(default=1, ge=1)
    guards: Guards = Guards()
    extend: float = Field(default=1.0, ge=1.0, le=2.0)
    fault: Fault | None = None
    steps: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    seq_len: int | None = Field(default=None, ge=2)

    @property
    def goes_on(self) -> bool:
        """Whether it may go on beyond its nominal steps; where its learning rate has fallen to zero it does not."""
        return self.extend > 1 and not self.optimizer.lr_decay

    @model_validator(mode="after")
    def _schedule_and_predictor_go_together(self) -> "Arm":
        if (self.schedule is None) != (self.predictor is None):
            raise ValueError("schedule and predictor go together: give both, or neither for plain training")
        return self
