"""Train a small GPT with predicted steps, on one device or on several that share every batch.

One process; two on this machine; eight on each of two, where HOST is one of them and both are given the command:

    python examples/ddp.py --folder runs
    torchrun --standalone --nproc_per_node 2 examples/ddp.py --folder runs
    torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HOST:29500 examples/ddp.py --folder /runs

A process takes a GPU where there is CUDA. Where one dies, torchrun ends the others. The same command, given again, goes
on from the last checkpoint. With `--max_restarts 3` torchrun starts all again by itself, up to three times. Torch 2.13
needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the environment for that, or processes look for those that died. Two ranks
then end bit for bit where they would have, more to rounding: DDP orders its buckets anew after its first step.

For a model of yours, replace `GPT` and `batch`. DistributedDataParallel averages gradients, and `step(loss=loss)` the
loss, so that all ranks keep a jump or all undo it. A jump follows from weights that all ranks have: it sends nothing.
Ranks differ in their share of a batch alone, which follows from the step, so rank 0 saves for all. With dropout, call
`torch.manual_seed` before each step, with a number made from the step and the rank.
"""

import argparse
import fcntl
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hybridlib import HybridOptimizer, PhaseSchedule, Spectral

RANK, WORLD, LOCAL_RANK = (int(os.environ.get(*of)) for of in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
TOKENS, LENGTH, WIDTH = 64, 32, 64  # tokens in the vocabulary and in a sequence; the model's width


class GPT(nn.Module):
    """A small GPT-2, without dropout and without biases in its blocks."""

    def __init__(self) -> None:
        super().__init__()
        like = dict(dropout=0.0, activation="gelu", batch_first=True, norm_first=True, bias=False)
        self.wte, self.wpe = nn.Embedding(TOKENS, WIDTH), nn.Embedding(LENGTH - 1, WIDTH)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, **like) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, TOKENS, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        """Return the mean loss, in nats, of each next token of `text`, (size, LENGTH)."""
        hidden = self.wte(text[:, :-1]) + self.wpe.weight
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH - 1, text.device, hidden.dtype)
        for block in self.blocks:
            hidden = block(hidden, src_mask=mask, is_causal=True)
        return nn.functional.cross_entropy(self.head(self.norm(hidden)).flatten(0, 1), text[:, 1:].flatten())


def batch(number: int, size: int) -> Tensor:
    """Return batch `number`, (size, LENGTH) tokens: four of five are the one before plus 3, the others are any."""
    draw = torch.Generator().manual_seed(number)
    anything = torch.randint(TOKENS, (size, LENGTH), generator=draw)
    return torch.where(torch.rand(size, LENGTH, generator=draw) < 0.8, 3, anything).cumsum(1) % TOKENS


def save(path: Path, state: dict) -> None:
    """Replace the file at `path` by one of `state`. Whenever the process is killed, the old or the new one is there."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def train(path: Path, steps: int, size: int, every: int) -> None:
    """Train for `steps` nominal steps on batches of `size`; save to `path` after `every` so many computed steps."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = GPT().to(device)
    adamw = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = PhaseSchedule(warmup=10, full=5, predict=12, correct=3, total=steps)
    optimizer = HybridOptimizer(adamw, model.named_parameters(), schedule, Spectral(gain=1.0))
    if path.exists():
        state = torch.load(path, map_location="cpu", weights_only=True)  # runs no code from the file
        model.load_state_dict(state.pop("model"))
        optimizer.load_state_dict(state.pop("optimizer"))  # it knows the step, too
    if WORLD > 1:
        dist.all_gather_object(begins := [0] * WORLD, optimizer.computed_steps)
        if len(set(begins)) > 1:
            raise SystemExit(f"ranks begin after different steps, {begins}: all of them must see one folder")
    replica = nn.parallel.DistributedDataParallel(model) if WORLD > 1 else model
    while optimizer.nominal_steps < steps:
        loss = replica(batch(optimizer.computed_steps, size)[RANK::WORLD].to(device))
        loss.backward()
        optimizer.step(loss=loss)  # the last step of Full jumps, too
        optimizer.zero_grad()
        if RANK == 0 and (optimizer.computed_steps % every == 0 or optimizer.nominal_steps >= steps):
            save(path, dict(model=model.state_dict(), optimizer=optimizer.state_dict()))
            print(f"step {optimizer.nominal_steps} of {steps}: loss {loss.item():.4f}", flush=True)
    if RANK == 0:
        with torch.no_grad():
            print(f"final loss {model(batch(10**9, 512).to(device)).item():.4f}", flush=True)  # of a batch held out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for this run alone; all machines must see it")
    parser.add_argument("--steps", type=int, default=400, help="nominal steps, predicted ones included")
    parser.add_argument("--batch", type=int, default=32, help="sequences in a batch, over all processes")
    parser.add_argument("--every", type=int, default=20, help="computed steps between two checkpoints")
    args = parser.parse_args()
    if args.batch % WORLD:
        parser.error(f"{WORLD} processes cannot share batches of {args.batch} evenly")
    args.folder.mkdir(parents=True, exist_ok=True)
    if RANK == 0:
        lock = (args.folder / "lock").open("wb")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an error where another run has the folder, until it ends
    if torch.cuda.is_available():
        torch.cuda.set_device(LOCAL_RANK)
    if WORLD > 1:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    train(args.folder / "checkpoint.pt", args.steps, args.batch, args.every)
    if WORLD > 1:
        dist.destroy_process_group()
