"""The fused loss at the output head against the plain one, forward and backward, in every chunking."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlib.study.run import Model
from hybridlib.training import loss as of_training
from hybridlib.training.loss import linear_cross_entropy, loss_fn
from hybridlib.training.models import build


def example(tokens: int, width: int, vocabulary: int, seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(vocabulary, (tokens,), generator=generator)


def gradients(value: torch.Tensor, *of: torch.Tensor) -> list[torch.Tensor]:
    return [value.detach(), *torch.autograd.grad(3.0 * value, of)]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 50), st.integers(1, 2000), st.integers(0, 99))
def test_it_is_the_plain_loss_to_rounding(tokens: int, width: int, vocabulary: int, elements: int, seed: int) -> None:
    hidden, weight, targets = example(tokens, width, vocabulary, seed, torch.float64)
    plain = gradients(F.cross_entropy(hidden @ weight.T, targets), hidden, weight)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of_training, "CHUNK_ELEMENTS", elements)
        fused = gradients(linear_cross_entropy(hidden, weight, targets), hidden, weight)
    for one, other in zip(fused, plain):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_float32_and_autocast_agree_with_float64() -> None:
    hidden, weight, targets = example(64, 32, 500, 1, torch.float32)
    exact = F.cross_entropy(hidden.double() @ weight.double().T, targets)
    truth = gradients(exact, hidden, weight)
    for enabled, tolerance in ((False, 1e-5), (True, 2e-2)):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = linear_cross_entropy(hidden, weight, targets)
        assert value.dtype is torch.float32
        for one, other in zip(gradients(value, hidden, weight), truth):
            assert one.dtype is torch.float32 or one.ndim == 0
            assert float((one - other).norm() / other.norm()) < tolerance


def test_no_gradient_is_kept_where_none_is_wanted() -> None:
    hidden, weight, targets = example(8, 4, 16, 1, torch.float32)
    with torch.no_grad():
        assert linear_cross_entropy(hidden, weight, targets).grad_fn is None


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sequences", [1, 3])  # 9 or 27 tokens: the table's gradient waits as factors, or as a sum
def test_added_in_place_the_gradients_of_micro_batches_sum_to_autograds(
    precision: torch.dtype, sequences: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_training, "CHUNK_ELEMENTS", 5 * 40)
    monkeypatch.setattr(of_training, "ROWS", 7)
    sizes = Model(n_layer=2, n_head=2, n_embd=16, block_size=16, vocab_size=40)
    tokens = torch.randint(40, (2, sequences, 9), generator=torch.Generator().manual_seed(0))
    found = []
    for in_place in (False, True):
        model = build(sizes, seed=1)
        for each in tokens:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
                loss = loss_fn(model, (each, each.roll(1)), in_place)
            (loss / 2).backward()
        found.append([weight.grad for weight in model.parameters()])
    for autograds, added in zip(*found, strict=True):
        torch.testing.assert_close(added, autograds, rtol=1e-5, atol=1e-7)


def test_a_loss_is_differentiated_once() -> None:
    hidden, weight, targets = example(8, 4, 16, 1, torch.float32)
    loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute it again"):
        loss.backward()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
def test_on_a_gpu_it_never_holds_all_logits() -> None:
    hidden, weight, targets = (t.detach().cuda() for t in example(4096, 64, 50257, 1, torch.float32))
    hidden.requires_grad_(), weight.requires_grad_()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    linear_cross_entropy(hidden, weight, targets).backward()
    assert torch.cuda.max_memory_allocated() - before < 4096 * 50257 * 4
