"""The optimizers that a run wraps, their learning rate, and the average of the weights that the run is judged by."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from schedulefree import AdamWScheduleFree
from torch import Tensor, nn

from hybridlib.method.predictors.base import Weights, is_matrix
from hybridlib.method.wrapping import wrapped
from hybridlib.study.arm import OptimizerSettings


class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimizers as one; no two of the `parts` may hold the same parameter."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def step(self, closure: Any = None) -> Any:
        """Take a step of each part, after `closure`, which computes the gradients; return what it returns."""
        if closure is not None:
            with torch.enable_grad():
                closure = closure()
        for part in self.parts:
            part.step()
        return closure

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add the parameters of `param_group` to the last part."""
        if len(self.param_groups) < sum(len(part.param_groups) for part in self.parts):
            super().add_param_group(param_group)  # a part's own group, added by the constructor
        else:
            self.parts[-1].add_param_group(param_group)
            self.param_groups.append(self.parts[-1].param_groups[-1])

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | dict(parts=self.parts)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """Give each part its own groups, and all parts the one shared state: they have no key in common."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state


def make_optimizer(settings: OptimizerSettings, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer that `settings` describe over all parameters of `model`.

    `muon` (Jordan et al. 2024) updates the weight matrices at rate `lr_matrices`, its updates scaled to Adam's root
    mean square, and Adam the rest. `soap` is Vyas et al. 2024, Adam in Shampoo's eigenbases; a side of more than 10 000
    elements is not turned. `schedule_free` is Defazio et al. 2024, `lookahead` Zhang et al. 2019, over Adam. Weight
    decay is that of Loshchilov and Hutter 2019, on every parameter.
    """
    rates = dict(lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps)
    rates |= dict(weight_decay=settings.weight_decay)

    def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, **rates, decoupled_weight_decay=True, fused=True)

    every = list(model.parameters())
    match settings.name:
        case "muon":
            matrices = [weight for name, weight in model.named_parameters() if is_matrix(name, weight)]
            others = [weight for name, weight in model.named_parameters() if not is_matrix(name, weight)]
            own = dict(lr=settings.lr_matrices or settings.lr, momentum=settings.momentum)
            decay = settings.weight_decay
            muon = torch.optim.Muon(matrices, **own, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
            return CombinedOptimizer(muon, adam(others))
        case "schedule_free":
            optimizer = AdamWScheduleFree(every, **rates, warmup_steps=settings.lr_warmup_steps)
            optimizer.train()
            return optimizer
        case "soap":
            from pytorch_optimizer import SOAP  # here, because its hundred others take two seconds to load

            return SOAP(every, **rates, precondition_frequency=settings.turn_every)
        case "lookahead":
            from pytorch_optimizer import Lookahead

            return Lookahead(adam(every), k=settings.slow_every, alpha=settings.slow_share)
    return adam(every)


def set_learning_rate(optimizer: Any, settings: OptimizerSettings, step: int, total: int) -> None:
    """Set the rate of `optimizer` for nominal step `step` (from 1) of `total`: linear warm-up, linear decay to zero.

    The rate rises over `settings.lr_warmup_steps` steps and falls over the last share `settings.lr_decay` of them.
    Without either nothing is set; schedule-free warms up by itself.
    """
    if settings.name == "schedule_free" or not (settings.lr_warmup_steps or settings.lr_decay):
        return
    rise = min(1.0, step / settings.lr_warmup_steps) if settings.lr_warmup_steps else 1.0
    fall = min(1.0, (total - step + 1) / (settings.lr_decay * total)) if settings.lr_decay else 1.0
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * rise * max(fall, 0.0)


class WeightAverage:
    """The mean of the weights over the last computed steps, at most `steps` (at least 1), none from before a jump.

    The running mean, in float32 or finer, takes one copy of the weights; past `steps` it forgets exponentially. With
    `steps` 1 it keeps nothing. Schedule-free's own average is applied in any case.
    """

    def __init__(self, steps: int = 1) -> None:
        self.steps = steps
        self.mean: dict[str, Tensor] = {}
        self.taken = 0

    @torch.no_grad()
    def observe(self, weights: Weights) -> None:
        """Take `weights`, as they are after a computed step, into the mean."""
        if self.steps == 1:
            return
        self.taken += 1
        for name, weight in weights:
            value = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
            if name not in self.mean:  # the first of all, or unfrozen since
                self.mean[name] = value.clone()
            else:
                self.mean[name] = self.mean[name].to(value.device).lerp_(value, 1 / min(self.taken, self.steps))

    def forget(self) -> None:
        """Start anew, after a jump or a rollback."""
        self.taken = 0
        self.mean.clear()

    @contextmanager
    def applied(self, weights: Weights, optimizer: Any) -> Iterator[None]:
        """Put the mean into `weights`, and the wrapped `optimizer` into evaluation mode, until the block ends."""
        averaging = [part for part in wrapped(optimizer) if hasattr(part, "eval") and hasattr(part, "train")]
        for part in averaging:
            part.eval()  # moves weights, and `train` moves them back from where it put them
        trained = {name: weight.detach().clone() for name, weight in weights if name in self.mean}
        self._put(weights, self.mean)
        try:
            yield
        finally:
            self._put(weights, trained)
            for part in averaging:
                part.train()

    def state_dict(self) -> dict[str, Any]:
        """Return all that `load_state_dict` needs."""
        return dict(mean=dict(self.mean), taken=self.taken)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`, as `state_dict` returned it."""
        self.mean, self.taken = dict(state["mean"]), state["taken"]

    @staticmethod
    @torch.no_grad()
    def _put(weights: Weights, values: dict[str, Tensor]) -> None:
        for name, weight in weights:
            if name in values:
                weight.copy_(values[name])
