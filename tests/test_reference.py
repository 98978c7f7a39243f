"""HybridOptimizer against the whole algorithm, written down once more, plainly: step by step, matrix by matrix."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybridlib import HybridOptimizer, PhaseSchedule, Spectral
from hybridlib.method.predictors.ema_nesterov import EmaNesterov

WARMUP, FULL, PREDICT, CORRECT, TOTAL = 3, 4, 6, 2, 50
GAIN, MOMENTUM, FADE, FADE_FROM, VECTOR_GAIN = 1.3, 0.6, 0.7, 0.4, 0.8
QUINTICS = (  # the best for three iterations from 0.01 on (Amsel et al. 2025, "The Polar Express", theorem 3.1)
    (8.093368512548258, -23.62043032882428, 17.446151749836254),
    (3.6365855542590406, -2.721926746608907, 0.5365462883273611),
    (2.661299985777099, -1.9771545218846247, 0.45261640699640104),
)
STEEPEST, KNEE = 8.093368512548258 * 3.6365855542590406 * 2.661299985777099, 0.0007
ORTHOGONAL = {"tok_emb.weight", "mixer.weight", "mlp.weight", "head.weight"}


class Tiny(nn.Module):
    """Tables of tokens and of positions, wide and tall matrices, vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_emb, self.pos_emb = nn.Embedding(11, 6), nn.Embedding(5, 6)
        self.mixer, self.mlp, self.head = nn.Linear(6, 6), nn.Linear(6, 14), nn.Linear(14, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.tok_emb(tokens) + self.pos_emb(torch.arange(5))
        return self.head(torch.tanh(self.mlp(torch.tanh(self.mixer(hidden)))))


def make() -> Tiny:
    torch.manual_seed(3)
    return Tiny().double()


def gradients(model: nn.Module, at: int) -> None:
    """Those of the batch of this number."""
    tokens = torch.randint(11, (8, 6), generator=torch.Generator().manual_seed(at))
    model.zero_grad()
    nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()


def phases(warmup: int, full: int, predict: int, correct: int, total: int) -> list[tuple[str, int]]:
    """Each phase and its length. Of the last Predict so much is left out that its Correct ends the run."""
    found, left = [("warmup", warmup)], total - warmup
    while left > 0:
        jump = max(0, min(predict, left - full - correct))
        cycle = [("full", min(full, left)), ("predict", jump), ("correct", correct if jump else 0)]
        found += [(phase, length) for phase, length in cycle if length]
        left -= sum(length for _, length in cycle)
    return found


def orthogonal(d: Tensor) -> Tensor:
    """Its singular values through the quintics; these matrices are too small to have leading directions set apart."""
    u = d / torch.maximum((torch.linalg.svdvals(d) ** 4).sum() ** 0.25, STEEPEST * KNEE * d.norm())
    for a, b, c in QUINTICS:
        u = a * u + b * (u @ u.T @ u) + c * (u @ u.T @ u @ u.T @ u)
    return u * (d * u).sum() / (u * u).sum()


def reference(lengths: tuple[int, int, int, int, int]) -> dict[int, dict[str, Tensor]]:
    """The weights after the last step of Warmup, Predict and Correct, by how many nominal steps that is."""
    model = make()
    adam, weights = torch.optim.Adam(model.parameters(), lr=0.02), dict(model.named_parameters())
    anchor, buf, batch, taken, found = None, None, 0, 0, {}
    for phase, length in phases(*lengths):
        if phase == "full" and anchor is None:
            anchor = {name: w.detach().clone() for name, w in weights.items()}
            buf = {name: torch.zeros_like(w) for name, w in weights.items()}
        if phase == "predict":
            faded = FADE * min(max((taken / lengths[-1] - FADE_FROM) / (1 - FADE_FROM), 0), 1)
            for name, w in weights.items():
                d = w.detach() - anchor[name]
                buf[name] = MOMENTUM * buf[name] + d
                ahead, gain = d + MOMENTUM * buf[name], VECTOR_GAIN
                if name in ORTHOGONAL:
                    ahead, gain = orthogonal(ahead), GAIN
                w.data = anchor[name] + gain * (1 - faded) * ahead
                anchor[name] = w.detach().clone()
        else:
            for _ in range(length):
                gradients(model, batch)
                adam.step()
                batch += 1
        taken += length
        if phase != "full" and length:
            found[taken] = {name: w.detach().clone() for name, w in weights.items()}
    return found


def trained(lengths: tuple[int, int, int, int, int], **settings: Any) -> dict[int, dict[str, Tensor]]:
    """The weights after every call of `step`, by nominal steps."""
    model, found = make(), {}
    of_the_reference = dict(gain=GAIN, momentum=MOMENTUM, fade=FADE, fade_from=FADE_FROM, vector_gain=VECTOR_GAIN)
    adam, predictor = torch.optim.Adam(model.parameters(), lr=0.02), Spectral(**of_the_reference | settings)
    optimizer = HybridOptimizer(adam, model.named_parameters(), PhaseSchedule(*lengths), predictor)
    while optimizer.nominal_steps < lengths[-1]:
        gradients(model, optimizer.computed_steps)
        optimizer.step()
        found[optimizer.nominal_steps] = {name: w.detach().clone() for name, w in model.named_parameters()}
    return found


@pytest.mark.parametrize("lengths", [(WARMUP, FULL, PREDICT, CORRECT, TOTAL), (0, 1, 9, 1, 40), (5, 3, 4, 0, 37)])
def test_the_optimizer_is_the_algorithm(lengths: tuple[int, int, int, int, int]) -> None:
    wanted, found = reference(lengths), trained(lengths)
    assert wanted.keys() <= found.keys() and len(wanted) > 4 and max(found) == lengths[-1]
    for taken, weights in wanted.items():
        for name, weight in weights.items():
            torch.testing.assert_close(
                found[taken][name], weight, rtol=1e-6, atol=1e-9, msg=lambda m: f"{name} after {taken}: {m}"
            )


@pytest.mark.parametrize(
    "change",
    [
        dict(momentum=0.0),
        dict(fade=0.0),
        dict(embeddings=False),
        dict(vector_gain=GAIN),
        dict(knee=0.1),
        dict(iterations=2),
    ],
)
def test_the_comparison_sees_every_part_of_the_algorithm(change: dict[str, Any]) -> None:
    lengths = (WARMUP, FULL, PREDICT, CORRECT, TOTAL)
    wanted, found = reference(lengths)[TOTAL], trained(lengths, **change)[TOTAL]
    assert max((found[name] - weight).abs().max() for name, weight in wanted.items()) > 1e-4


def test_a_look_ahead_at_every_step_is_the_algorithm() -> None:
    steps, reach, decay = 30, 2.0, 0.8
    plain, model = make(), make()
    adam, weights, average = torch.optim.Adam(plain.parameters(), lr=0.02), list(plain.parameters()), []
    for step in range(steps):
        here = [w.detach().clone() for w in weights]
        if 0.2 <= step / steps < 0.7:
            for w, m in zip(weights, average):
                w.data += reach * m
        gradients(plain, step)
        for w, value in zip(weights, here):
            w.data = value.clone()
        adam.step()
        moved = [w.detach() - value for w, value in zip(weights, here)]
        average = [decay * m + (1 - decay) * d for m, d in zip(average, moved)] or [
            torch.zeros_like(w) for w in weights
        ]
    optimizer = HybridOptimizer(
        torch.optim.Adam(model.parameters(), lr=0.02),
        model.named_parameters(),
        PhaseSchedule(3, 10, 0, 0, steps),
        EmaNesterov(reach, decay, begin=0.2, until=0.7),
    )
    for step in range(steps):
        before = [w.detach().clone() for w in model.parameters()]
        with optimizer.looking_ahead():
            moved = any(not torch.equal(w, value) for w, value in zip(model.parameters(), before))
            gradients(model, step)
        assert moved == (0.2 <= step / steps < 0.7)
        assert all(torch.equal(w, value) for w, value in zip(model.parameters(), before)), "back, bit for bit"
        optimizer.step()
    for ours, wanted in zip(model.parameters(), weights):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-12)


def test_the_last_predict_is_shortened_so_that_its_correct_ends_the_run() -> None:
    """50 steps after a warm-up of 3 are three cycles of 12 and a last one of 4 + 5 + 2."""
    assert phases(WARMUP, FULL, PREDICT, CORRECT, TOTAL)[-3:] == [("full", 4), ("predict", 5), ("correct", 2)]
    states = list(PhaseSchedule(WARMUP, FULL, PREDICT, CORRECT, TOTAL).unroll())
    counted = [
        (phase, length) for phase, length in phases(WARMUP, FULL, PREDICT, CORRECT, TOTAL) for _ in range(length)
    ]
    assert [(str(state.phase), state.length) for state in states] == counted
