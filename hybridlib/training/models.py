"""GPT-2 from transformers, without dropout, and what its size predicts: parameters, FLOPs, bytes."""

import hashlib
import warnings
from typing import Any

import torch
from torch import Tensor, nn

# transformers loads tqdm's bars for notebooks; without ipywidgets they warn, and none is ever shown here.
warnings.filterwarnings("ignore", message="IProgress not found")

from transformers import GPT2Config, GPT2LMHeadModel  # noqa: E402
from transformers.pytorch_utils import Conv1D  # noqa: E402

from hybridlib.study.run import Model  # noqa: E402


def build(sizes: Model, seed: int) -> GPT2LMHeadModel:
    """Return a freshly initialised GPT-2; its weights are a function of `sizes` and `seed` alone."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=sizes.vocab_size,
        n_positions=sizes.block_size,
        n_embd=sizes.n_embd,
        n_layer=sizes.n_layer,
        n_head=sizes.n_head,
        activation_function="gelu_pytorch_tanh",  # gelu_new in one kernel
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )
    model = GPT2LMHeadModel(config)
    for module in model.modules():
        if isinstance(module, Conv1D):
            module.__class__ = LeanLinear
    return model


class LeanLinear(Conv1D):
    """GPT-2's linear layer, which under autocast keeps no copy of its weight in low precision for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, (..., in), times the weight plus the bias, (..., out)."""
        device = x.device.type
        if not torch.is_autocast_enabled(device):
            return super().forward(x)
        return LowPrecisionLinear.apply(x.to(torch.get_autocast_dtype(device)), self.weight, self.bias)


class LowPrecisionLinear(torch.autograd.Function):
    """The product of `x` with `weight`, (in, out), plus `bias`, in the type of `x`, which may be lower than theirs.

    What autocast computes, bit for bit; but it casts the weight once more in the backward pass instead of keeping it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Return the product, (..., out); `ctx` keeps `x` and the `weight` itself, `bias` only its type."""
        ctx.save_for_backward(x, weight)
        ctx.of_bias = bias.dtype
        with torch.autocast(x.device.type, enabled=False):
            flat = torch.addmm(bias.to(x.dtype), x.flatten(0, -2), weight.to(x.dtype))
        return flat.view(*x.shape[:-1], weight.shape[1])

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of `x`, weight and bias, given that of the product, `slope`; `ctx` is forward's."""
        x, weight = ctx.saved_tensors
        flat = slope.flatten(0, -2)
        of_x = (flat @ weight.to(slope.dtype).mT).view_as(x)
        return of_x, (x.flatten(0, -2).mT @ flat).to(weight.dtype), flat.sum(0).to(ctx.of_bias)


def weights_sha256(model: nn.Module) -> str:
    """Return the checksum of all weights of `model`, in order: equal if and only if they are bitwise equal."""
    digest = hashlib.sha256()
    for weight in model.parameters():
        digest.update(weight.detach().cpu().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def parameter_count(sizes: Model) -> int:
    """Return the number of parameters of `sizes`; the output head is the token embedding (Radford et al. 2019)."""
    d = sizes.n_embd
    layer_norms = 2 * 2 * d
    attention = d * 3 * d + 3 * d + d * d + d
    mlp = d * 4 * d + 4 * d + 4 * d * d + d
    return (sizes.vocab_size + sizes.block_size) * d + sizes.n_layer * (layer_norms + attention + mlp) + 2 * d


def flops_per_token(sizes: Model, seq_len: int) -> int:
    """Return the floating-point operations per token of one forward and backward pass of `sizes`.

    After Chowdhery et al. 2022, appendix B, on sequences of `seq_len` tokens: 6 for every
    parameter that enters a matrix product (the tied embedding does, as output head; positions and vectors do not), and
    12 x layers x width x sequence for attention's two products.
    """
    d = sizes.n_embd
    in_products = sizes.n_layer * 12 * d * d + sizes.vocab_size * d
    return 6 * in_products + 12 * sizes.n_layer * d * seq_len


def state_bytes(sizes: Model) -> dict[str, int]:
    """Return the bytes of what training a model of `sizes` keeps in float32: weights, gradients, Adam's two moments."""
    weights = 4 * parameter_count(sizes)
    return dict(weights=weights, gradients=weights, adam=2 * weights)


def activation_bytes(sizes: Model, batch_size: int, seq_len: int) -> int:
    """Return the bytes that autograd keeps from forward to backward in float32, by a count of its tensors.

    For a model of `sizes` on `batch_size` sequences of `seq_len` tokens. A layer keeps 16 widths a token: both
    norms' inputs and outputs (4), q, k, v (3), attention's output (1), the MLP's input to GELU and its output (8). The
    loss keeps three tensors of logits. After Korthikanti et al. 2022, section 4.
    """
    tokens = batch_size * seq_len
    return 4 * tokens * (sizes.n_layer * 16 * sizes.n_embd + 3 * sizes.vocab_size)
