"""One of two ranks that train a model together; `test_distributed.py` launches it. Writes what it saw to a folder."""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from hybridlib import HybridOptimizer, Phase, PhaseSchedule, Spectral
from hybridlib.training.objective import Objective
from hybridlib.training.trainer import HybridTrainer

RANK = int(os.environ["RANK"])
CYCLES = PhaseSchedule(warmup=2, full=3, predict=4, correct=2, total=40)
SENT = dict(gradients=0, others=0)  # bytes


def counted(_: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    SENT["gradients"] += bucket.buffer().nbytes
    SENT["others"] -= bucket.buffer().nbytes  # which the hook's own all_reduce counts
    return allreduce_hook(None, bucket)


def counting(function: Any) -> Any:
    def call(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        SENT["others"] += tensor.nbytes
        return function(tensor, *args, **kwargs)

    return call


def make() -> tuple[nn.Module, HybridOptimizer]:
    torch.manual_seed(RANK)  # DDP begins with rank 0's weights
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    model = nn.parallel.DistributedDataParallel(model)
    model.register_comm_hook(None, counted)
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    return model, HybridOptimizer(adam, model.named_parameters(), CYCLES, Spectral(gain=1.2, momentum=0.5))


def batch(at: int) -> tuple[Tensor, Tensor]:
    """Each rank has a batch of its own."""
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(2 * at + RANK))
    return x, x.sin().sum(1, keepdim=True)


def loss_of(model: nn.Module, of: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.mse_loss(model(of[0]), of[1])


def sha(model: nn.Module) -> str:
    return hashlib.sha256(b"".join(w.detach().numpy().tobytes() for w in model.parameters())).hexdigest()


def gradients(model: nn.Module, optimizer: HybridOptimizer) -> Tensor:
    optimizer.zero_grad()
    loss = loss_of(model, batch(optimizer.computed_steps))
    loss.backward()
    return loss


def phases() -> list[dict[str, Any]]:
    """After each step and each jump: the weights, and what was sent for it."""
    model, optimizer = make()
    seen = []
    while optimizer.nominal_steps < CYCLES.total:
        before, phase = dict(SENT), optimizer.phase
        if phase is Phase.PREDICT:
            optimizer.jump()
            local = None
        else:
            local = gradients(model, optimizer).item()
            optimizer.update()
        seen.append(
            dict(phase=str(phase), loss=local, sha=sha(model), sent={key: SENT[key] - before[key] for key in SENT})
        )
    return seen


def judged(losses: tuple[float, float]) -> dict[str, Any]:
    """What the gate makes of a jump after which the two ranks see these losses."""
    model, optimizer = make()
    while optimizer.nominal_steps < 5:
        optimizer.step(loss=gradients(model, optimizer))
    landed, before = sha(model), SENT["others"]
    gradients(model, optimizer)
    optimizer.step(loss=losses[RANK])
    moved, sent = sha(model) != landed, SENT["others"] - before
    return dict(phase=str(optimizer.phase), nominal=optimizer.nominal_steps, moved=moved, sha=sha(model), sent=sent)


def trained() -> dict[str, Any]:
    """HybridTrainer on both ranks: records, and the weights at the end."""
    model, optimizer = make()
    trainer = HybridTrainer(optimizer, Objective(model, loss_of))
    records = [trainer.step(batch(trainer.real_steps)) for _ in range(CYCLES.total)]
    return dict(records=[[r.phase, r.loss, r.grad_norm, r.event] for r in records], sha=sha(model))


if __name__ == "__main__":
    dist.init_process_group("gloo")
    dist.all_reduce = counting(dist.all_reduce)
    found = dict(phases=phases(), one_catastrophe=judged((1e3, 0.1)), one_mishap=judged((7.0, 0.1)))
    found |= dict(one_nan=judged((0.1, float("nan"))), trained=trained())
    (Path(sys.argv[1]) / f"{RANK}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
