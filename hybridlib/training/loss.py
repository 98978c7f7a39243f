"""GPT-2's loss, without all logits at once, and the gradient of the table that is its input and its output."""

from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Batch = tuple[Tensor, Tensor]  # input and target tokens, each (batch, seq) int64
CHUNK_ELEMENTS = 1 << 24  # of logits: 64 MB in float32
ROWS = 4096  # of the table's gradient that are added at once


def loss_fn(model: nn.Module, batch: Batch, in_place: bool = False) -> Tensor:
    """Return the mean cross-entropy of `model` in nats over all tokens of `batch`, a scalar in float32.

    With `in_place` the backward pass adds the table's gradient to `grad` itself, where it is used and where it is
    looked up. Autograd sees none of it, so no second and third tensor of the table's size exist beside the sum over
    micro-batches; hooks on the table do not run, and `torch.autograd.grad` cannot ask for its gradient.
    """
    tokens, targets = batch
    table = model.lm_head.weight
    if in_place and torch.is_grad_enabled():
        hidden = model.transformer(inputs_embeds=Lookup.apply(tokens, table)).last_hidden_state
    else:
        hidden = model.transformer(input_ids=tokens).last_hidden_state  # (batch, seq, width)
    return linear_cross_entropy(hidden.flatten(0, 1), table, targets.flatten(), in_place)


@torch.no_grad()
def held_out_loss(model: nn.Module, batches: list[Batch]) -> float:
    """Return the mean loss in nats of `model` over `batches`, in float32 whatever the run's precision."""
    return sum(float(loss_fn(model, batch)) for batch in batches) / len(batches)


def gradient_of(weight: Tensor) -> Tensor:
    """Return `weight.grad`; made first, of zeros, where there is none."""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


class Lookup(torch.autograd.Function):
    """The rows of a table that tokens name; the backward pass adds their gradients to the table's `grad` itself."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, table: Tensor) -> Tensor:
        """Return the rows of `table` (vocabulary, width) for `tokens`, int64 (...): (..., width); `ctx` keeps both."""
        ctx.save_for_backward(tokens)
        ctx.table = table  # itself: what is saved for the backward pass may be another tensor
        return nn.functional.embedding(tokens, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[None, None]:
        """Add `slope`, the gradient of the rows, to the table's; `ctx` is forward's."""
        (tokens,) = ctx.saved_tensors
        gradient_of(ctx.table).index_add_(0, tokens.flatten(), slope.flatten(0, -2))
        return None, None


class LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of `hidden @ weight.T` against targets, with its gradients computed in the forward pass.

    The backward pass needs logits only for softmax less the one-hot target, so each chunk's is used at once and dropped
    (Wijmans et al. 2024, "Cut your losses in large-vocabulary language models", section 3). The three products are
    those of the plain form, in autocast's precision if that is on; exponentials and sums are in float32.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, in_place: bool) -> Tensor:
        """Return the loss in nats a token, a scalar in float32 or finer.

        `hidden` is (tokens, width), `weight` (vocabulary, width), `targets` (tokens,) int64; `ctx` keeps the gradients,
        and the weight where its gradient is to be added `in_place`.
        """
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        finer = torch.promote_types(dtype, torch.float32)
        with torch.autocast(device, enabled=False):
            head, size, wanted = weight.to(dtype), max(CHUNK_ELEMENTS // len(weight), 1), any(ctx.needs_input_grad)
            later = in_place and len(hidden) < weight.shape[1]  # then the factors are smaller than their product
            total, of_hidden, factors, product = torch.zeros((), dtype=finer, device=hidden.device), [], [], None
            for part, wished in zip(hidden.to(dtype).split(size), targets[:, None].split(size)):
                log_p = torch.log_softmax(part @ head.T, -1, dtype=finer)
                total -= log_p.gather(-1, wished).sum()
                if wanted:
                    slope = log_p.exp_()  # now the softmax
                    slope = slope.scatter_add_(-1, wished, slope.new_full(wished.shape, -1.0)).to(dtype)
                    of_hidden.append(slope @ head)
                    if later:
                        factors.append((slope, part))
                    else:
                        product = plus(product, slope, part)
            if wanted:
                of_rows = product.__getitem__ if product is not None else partial(product_of_rows, factors)
                ctx.kept = [torch.cat(of_hidden), of_rows]
                ctx.tokens, ctx.dtypes = len(hidden), (hidden.dtype, weight.dtype)
                ctx.into = weight if in_place else None
            return total / len(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """Return the gradients that `ctx` kept, times `slope`, the gradient of the loss. It lets go of them: autograd
        adds another gradient of the weight to a tensor that nobody else holds, and to a copy of any other."""
        if not ctx.kept:
            raise RuntimeError("the loss has been differentiated before, and its gradients are gone: compute it again")
        scale, (of_hidden, of_rows) = slope / ctx.tokens, (ctx.kept.pop(0) for _ in range(2))
        of_weight = None
        if ctx.into is None:
            of_weight = of_rows(slice(None)).to(ctx.dtypes[1]).mul_(scale)
        else:
            gradient, alpha = gradient_of(ctx.into), float(scale)
            for at in range(0, len(gradient), ROWS):  # some rows at a time: their product, and what is cast, is a copy
                rows = slice(at, at + ROWS)
                gradient[rows].add_(of_rows(rows), alpha=alpha)
        return of_hidden.to(ctx.dtypes[0]).mul_(scale), of_weight, None, None


def plus(total: Tensor | None, slope: Tensor, part: Tensor) -> Tensor:
    """Return `total` and the product of `slope`, (tokens, vocabulary), transposed with `part`, (tokens, width)."""
    product = slope.T @ part
    return product if total is None else total.to(torch.promote_types(product.dtype, torch.float32)).add_(product)


def product_of_rows(factors: list[tuple[Tensor, Tensor]], rows: slice) -> Tensor:
    """Return these `rows` of the sum of the products of all `factors`, pairs as `plus` takes them: (rows, width)."""
    return reduce(lambda total, pair: plus(total, pair[0][:, rows], pair[1]), factors, None)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, in_place: bool = False) -> Tensor:
    """Return `F.cross_entropy(hidden @ weight.T, targets)` in nats, to rounding, without holding all logits at once.

    With `in_place` the weight's gradient is added to its `grad` by the backward pass itself, as `loss_fn` says.
    """
    return LinearCrossEntropy.apply(hidden, weight, targets, in_place)
