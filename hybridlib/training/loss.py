"""The loss at the output head, a chunk of tokens at a time: all logits of a large batch are never held at once.

PyTorch's own `linear_cross_entropy` does the same, but returns the loss in the precision of the product: in bfloat16 that
is a step of 0.06 nats, too coarse to judge training by.
"""

from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 24  # of logits: 64 MB in float32


class LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of `hidden @ weight.T` against targets, its gradients found in the forward pass.

    Softmax less the one-hot target is all that the backward pass would need logits for, so each chunk's is used at once and
    forgotten (Wijmans et al. 2024, "Cut your losses in large-vocabulary language models", section 3). The same three
    products as the plain form, in the precision of autocast where that is on; exponentials and sums in float32.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """(tokens, width), (vocabulary, width), (tokens,) int64 -> a scalar in float32 or finer, in nats a token."""
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        finer = torch.promote_types(dtype, torch.float32)
        with torch.autocast(device, enabled=False):
            head, size, wanted = weight.to(dtype), max(CHUNK_ELEMENTS // len(weight), 1), any(ctx.needs_input_grad)
            total, of_hidden, of_weight = torch.zeros((), dtype=finer, device=hidden.device), [], None
            for part, wished in zip(hidden.to(dtype).split(size), targets[:, None].split(size)):
                log_p = torch.log_softmax(part @ head.T, -1, dtype=finer)
                total -= log_p.gather(-1, wished).sum()
                if wanted:
                    slope = log_p.exp_()  # now the softmax
                    slope = slope.scatter_add_(-1, wished, slope.new_full(wished.shape, -1.0)).to(dtype)
                    of_hidden.append(slope @ head)
                    mine = slope.T @ part
                    of_weight = mine if of_weight is None else of_weight.to(finer).add_(mine)
            if wanted:
                ctx.save_for_backward(torch.cat(of_hidden), of_weight)
                ctx.tokens, ctx.dtypes = len(hidden), (hidden.dtype, weight.dtype)
            return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None]:
        of_hidden, of_weight = (kept.to(dtype) for kept, dtype in zip(ctx.saved_tensors, ctx.dtypes))
        scale = slope / ctx.tokens
        return of_hidden.mul_(scale), of_weight.mul_(scale), None  # the kept ones are not needed again


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of an output head: `F.cross_entropy(hidden @ weight.T, targets)`, to rounding."""
    return LinearCrossEntropy.apply(hidden, weight, targets)
