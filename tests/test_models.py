"""Sizes by formula against the model itself, and the loss against its definition."""

import math

import pytest
import torch

from hybridlib.study.run import PRESETS, Model
from hybridlib.training.loss import loss_fn
from hybridlib.training.models import build, flops_per_token, parameter_count

TINY = Model(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=32)


@pytest.mark.parametrize("sizes", [TINY, Model(preset="nano")])
def test_parameter_count_is_the_models(sizes: Model) -> None:
    assert parameter_count(sizes) == sum(w.numel() for w in build(sizes, 0).parameters())


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_published_sizes(preset: str) -> None:
    published = {"nano": 0.99e6, "small": 124.4e6, "medium": 354.8e6}
    assert parameter_count(Model(preset=preset)) == pytest.approx(published[preset], rel=0.005)
    with torch.device("meta"):
        assert parameter_count(Model(preset=preset)) == sum(
            w.numel() for w in build(Model(preset=preset), 0).parameters()
        )


def test_flops_agree_with_torchs_own_count() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, tokens = build(TINY, 0), torch.zeros((3, 8), dtype=torch.int64)
    model.config._attn_implementation = "eager"
    with FlopCounterMode(display=False) as counter:
        loss_fn(model, (tokens, tokens)).backward()
    assert flops_per_token(TINY, 8) * tokens.numel() == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_loss_is_the_mean_negative_log_probability() -> None:
    model = build(TINY, 3)
    tokens, targets = torch.randint(32, (2, 8)), torch.randint(32, (2, 8))
    with torch.no_grad():
        log_p = model(input_ids=tokens).logits.log_softmax(-1)
        expected = -log_p.gather(-1, targets[..., None]).mean()
        assert loss_fn(model, (tokens, targets)).item() == pytest.approx(expected.item(), rel=1e-5)
        assert loss_fn(model, (tokens, targets)).item() == pytest.approx(math.log(32), abs=0.3)


def test_weights_are_a_function_of_the_seed() -> None:
    one, same, other = (torch.cat([w.flatten() for w in build(TINY, s).parameters()]) for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
