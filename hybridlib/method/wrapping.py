"""What makes an optimizer that wraps another one pass for it: with schedulers, scalers, accelerate, a Trainer."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

Moments = Literal["keep", "decay", "reset"]
SCHEDULED = "lr", "betas", "momentum"  # what schedulers of learning rates set


class WrappingOptimizer(Optimizer):
    """An optimizer whose parameter groups, state and defaults are those of the one that it wraps, after loading too.

    Its state dictionary is the wrapped optimizer's, with a subclass's `extra_state` beside it under `hybrid`.

    Args:
        optimizer: the one to wrap; any `torch.optim.Optimizer`.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.__dict__ |= hookless()
        self.optimizer = optimizer
        self._patch_step_function()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, param_groups: list[dict[str, Any]]) -> None:
        self.optimizer.param_groups = param_groups

    @property
    def state(self) -> Any:
        return self.optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.optimizer.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        return self.optimizer.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.optimizer.defaults = defaults

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Free all gradients, or fill them with zeros if not `set_to_none`."""
        self.optimizer.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add `param_group`, its `params` and their settings, to the wrapped optimizer."""
        self.optimizer.add_param_group(param_group)

    def extra_state(self, materialize: bool) -> dict[str, Any]:
        """Return what the wrapped optimizer's state lacks; `materialize` as for `state_dict`."""
        raise NotImplementedError

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Go on from `extra`, which `extra_state` returned."""
        raise NotImplementedError

    def state_dict(self, materialize: bool = True) -> dict[str, Any]:
        """Return all that the next steps depend on.

        Args:
            materialize: False leaves what is kept off the device there, as `StoredTensor`s to be read one by one.
        """
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        found = {**self.optimizer.state_dict(), "hybrid": self.extra_state(materialize)}
        for hook in self._optimizer_state_dict_post_hooks.values():
            found = found if (changed := hook(self, found)) is None else changed
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`; a state dictionary of the wrapped optimizer alone is taken as well."""
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = state_dict if (changed := hook(self, state_dict)) is None else changed
        extra = state_dict.pop("hybrid", None)
        self.optimizer.load_state_dict(state_dict)
        if extra is not None:
            self.load_extra_state(extra)
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def load_wrapped(self, state_dict: dict[str, Any]) -> None:
        """Load the wrapped optimizer's part of `state_dict`; what schedulers set, by the clock, stays as it is."""
        scheduled = [{key: group[key] for key in SCHEDULED if key in group} for group in self.param_groups]
        self.optimizer.load_state_dict({key: value for key, value in state_dict.items() if key != "hybrid"})
        for group, now in zip(self.param_groups, scheduled):
            group.update(now)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy takes: no hooks, as for any optimizer, and no `step` that a scheduler put in its place."""
        return {key: value for key, value in vars(self).items() if key not in ("step", *hookless())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= hookless() | state
        self._patch_step_function()


def hookless() -> dict[str, Any]:
    """Return what every optimizer carries besides groups, state and defaults: its hooks, none yet."""
    plain = Optimizer([torch.empty(0)], {})
    return {key: value for key, value in vars(plain).items() if key not in ("param_groups", "state", "defaults")}


def wrapped(optimizer: Any) -> list[Any]:
    """Return `optimizer` and those that it wraps, the outermost first."""
    return [optimizer, *wrapped(inner)] if (inner := getattr(optimizer, "optimizer", None)) is not None else [optimizer]


def states_of(optimizer: Any) -> list[dict[Any, dict[str, Any]]]:
    """Return the states of `optimizer` and of those that it wraps, each by parameter; a shared one once."""
    return list({id(part.state): part.state for part in wrapped(optimizer)}.values())


def forget_moments(optimizer: Optimizer, moments: Moments) -> None:
    """Do to the state of `optimizer` what `moments` says: "keep" it, "decay" first moments by half, or "reset" it."""
    if moments == "reset":
        wrapped(optimizer)[-1].state.clear()  # a wrapper, as Lookahead, keeps weights in its own
    for state in states_of(optimizer) if moments == "decay" else ():
        for kept in state.values():
            for key in {"exp_avg", "momentum_buffer"} & kept.keys():
                kept[key].mul_(0.5)


@torch.no_grad()
def unscaled(optimizer: Optimizer) -> bool:
    """Divide the gradients of `optimizer` by what a GradScaler left to it; return whether they are finite."""
    if getattr(optimizer, "found_inf", False):
        return False
    if (scale := getattr(optimizer, "grad_scale", None)) is not None:
        for weight in (w for group in optimizer.param_groups for w in group["params"] if w.grad is not None):
            weight.grad.mul_(1 / scale.to(weight.grad.device))
    return True


def replayed(closure: Callable[[], Any], found: Any, optimizer: Optimizer) -> Callable[[], Any]:
    """Return `closure` with its first evaluation already made, whose result was `found`.

    It is made again where the weights of `optimizer` have been moved since, as SAM does before it asks.
    """
    made, weights = [found], [weight for group in optimizer.param_groups for weight in group["params"]]
    versions = [weight._version for weight in weights]

    def again() -> Any:
        unmoved = versions == [weight._version for weight in weights]
        return made.pop() if made and unmoved else closure()

    return again


def mean_over_ranks(loss: Tensor | float) -> float:
    """Return `loss`, a scalar in nats, averaged over all ranks, so that each rank decides alike."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return float(loss.detach() if isinstance(loss, Tensor) else loss)
    total = loss.detach().double().clone() if isinstance(loss, Tensor) else torch.tensor(loss, dtype=torch.float64)
    if dist.get_backend() == "nccl":
        total = total.cuda()
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()
