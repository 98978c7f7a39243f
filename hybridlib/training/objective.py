"""What a step minimizes: the loss of a batch, computed with its gradients in micro-batches and in a given precision."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from hybridlib.method.predictors.base import Weights
from hybridlib.training.meter import give_back, ran_out_of_memory


class Objective:
    """The loss of `model`, any module, on a batch.

    `loss_fn` takes the model and a batch and returns the mean loss over the batch, a scalar, in nats for a language
    model. A batch is computed in `accumulation` (at least 1) micro-batches, in `precision` "fp32", or "bf16" for
    automatic mixed precision. It is a tensor, or a mapping or sequence of tensors, nested too, with the examples on the
    first axis; what is no tensor, or has another length than the first one, goes to every micro-batch unchanged.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[nn.Module, Any], Tensor],
        accumulation: int = 1,
        precision: str = "fp32",
    ) -> None:
        self.model, self.loss_fn, self.accumulation, self.precision = model, loss_fn, accumulation, precision
        kept = set(model.state_dict(keep_vars=True))
        places = ((f"{above}.{name}".lstrip("."), module, name) for above, module in model.named_modules()
                  for name in module._buffers)  # fmt: skip
        self._buffers = [place for place in places if place[0] in kept]
        self.device = next(model.parameters()).device

    @property
    def buffers(self) -> Weights:
        """Return the model's buffers that are in its state dictionary, as they are now: those that training changes."""
        return [(full, module._buffers[name]) for full, module, name in self._buffers]

    def backward(self, batch: Any) -> float:
        """Return the mean loss over `batch`, and add its gradients to those of the parameters."""
        size, total = size_of(batch), torch.zeros((), device=self.device)
        for micro in micro_batches(batch, self.accumulation):  # fewer where the batch is smaller
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                loss = self.loss_fn(self.model, micro) * (size_of(micro) / size)
            loss.backward()
            total += loss.detach()
        return float(total)

    def backward_within_memory(self, batch: Any, zero_grad: Callable[[], None]) -> tuple[float, int]:
        """Do as `backward` on `batch`; if memory runs out, halve the micro-batch, from then on, and try again.

        Return the loss and the number of halvings. `zero_grad` frees the gradients of a failed try. Raises
        `torch.OutOfMemoryError` if memory does not suffice for a micro-batch of one.
        """
        halved = 0
        while True:
            try:
                return self.backward(batch), halved
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                if not ran_out_of_memory(error):
                    raise
                if self.accumulation >= size_of(batch):
                    raise torch.OutOfMemoryError(f"no memory for a micro-batch of one sequence: {error}") from None
            zero_grad()  # not above: there the traceback still holds the activations
            give_back()
            self.accumulation *= 2
            halved += 1

    def set_buffers(self, values: list[Tensor]) -> None:
        """Copy `values` into the buffers, one each, in the order of `buffers`."""
        for (_, buffer), value in zip(self.buffers, values, strict=True):
            buffer.copy_(value)

    def weights(self, held: Weights) -> Weights:
        """Return `held`, the named parameters that an optimizer holds, and those that the model has besides."""
        moved, names = {weight for _, weight in held}, {name for name, _ in held}
        others = [(name, weight) for name, weight in self.model.named_parameters() if weight not in moved]
        return [*held, *((f".{name}" if name in names else name, weight) for name, weight in others)]

    @torch.no_grad()
    def put(self, state: dict[str, Any], held: Weights) -> None:
        """Copy the `weights` and `buffers` of `state` into the model; `held` is as for `weights`."""
        for name, weight in self.weights(held):
            weight.copy_(state["weights"][name])
        self.set_buffers(list(state["buffers"].values()))


def tensors_of(batch: Any) -> Iterator[Tensor]:
    """Yield every tensor in `batch`, in order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, (Mapping, list, tuple)):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from tensors_of(part)


def first_tensor(batch: Any) -> Tensor:
    """Return the first tensor of `batch` that has an axis. Raises `ValueError` if there is none."""
    for tensor in tensors_of(batch):
        if tensor.ndim:
            return tensor
    raise ValueError(f"a batch must hold a tensor, with the batch on its first axis; this is {type(batch).__name__}")


def size_of(batch: Any) -> int:
    """Return the number of examples in `batch`: the length of its first tensor."""
    return len(first_tensor(batch))


def mapped(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a batch of the form of `batch`, each tensor replaced by what `change` returns for it."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        changed = {name: mapped(part, change) for name, part in batch.items()}
        if not isinstance(batch, MutableMapping):
            return changed
        alike = copy(batch)  # a tokenizer's batch is read by attribute
        alike.update(changed)
        return alike
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(mapped(part, change) for part in batch))
    return type(batch)(mapped(part, change) for part in batch) if isinstance(batch, (list, tuple)) else batch


def micro_batches(batch: Any, parts: int) -> list[Any]:
    """Return `batch` as at most `parts` micro-batches, as even as `torch.chunk` makes them."""
    sizes = [len(chunk) for chunk in first_tensor(batch).chunk(parts)]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    whole = lambda t: t.ndim == 0 or len(t) != ends[-1]  # noqa: E731
    return [mapped(batch, lambda t, a=end - size, b=end: t if whole(t) else t[a:b]) for size, end in zip(sizes, ends)]


def norm_of_gradients(weights: Weights) -> float:
    """Return the global 2-norm of the gradients that `weights` have."""
    gradients = [weight.grad for _, weight in weights if weight.grad is not None]
    return float(torch.nn.utils.get_total_norm([g.coalesce().values() if g.is_sparse else g for g in gradients]))


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of the generators that a step on `device` may draw from, as dropout does."""
    state = dict(cpu=torch.get_rng_state())
    return state | (dict(cuda=torch.cuda.get_rng_state(device)) if device.type == "cuda" else {})


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Put back `state`, as `random_state` returned it for `device`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
