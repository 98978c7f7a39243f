"""`examples/ddp.py` as it stands, watched and killed; `test_examples.py` starts this.

Given a folder, a list of kills and the script's arguments, this is torchrun's agent, and its ranks are forks that need
not load torch: one and two in each precision, and two that are killed. Each training has a folder, with what it saw.
"""

import io
import json
import os
import runpy
import signal
import socket
import struct
import sys
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which an optimizer's first step loads
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher import LaunchConfig, elastic_launch

from hybridlib import HybridOptimizer, Spectral

SCRIPT = Path(__file__).parents[1] / "examples" / "ddp.py"
NOT_SENT, SENT, SENT_AGAIN = 144, 200, 208  # where linux/tcp.h has these counts of bytes in struct tcp_info
STEP, JUMP, MOVE = HybridOptimizer.step, HybridOptimizer.jump, Spectral.move
SAVE, GATHER = torch.save, dist.all_gather_object


def script(folder: Path, *args: str) -> None:
    """Run the example in this process."""
    sys.argv[1:] = ["--folder", str(folder), *args]
    runpy.run_path(str(SCRIPT), run_name="__main__")


def sockets() -> dict[str, int]:
    """The sockets that this process has open, each by the name that the system has for it, and their numbers."""
    links = {entry: os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()}
    return {link: int(entry.name) for entry, link in links.items() if link.startswith("socket:")}


def written(inherited: Collection[str]) -> int:
    """The bytes written to all TCP connections that this process has opened, whatever wrote them."""
    total = 0
    for number in (number for link, number in sockets().items() if link not in inherited):
        with socket.socket(fileno=os.dup(number)) as found:
            if found.family in (socket.AF_INET, socket.AF_INET6):
                info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                sent, again = (struct.unpack_from("Q", info, at)[0] for at in (SENT, SENT_AGAIN))
                total += sent - again + struct.unpack_from("I", info, NOT_SENT)[0]
    return total


def watched(folder: Path, dtype: torch.dtype, *args: str) -> None:
    """Train in `dtype`; keep a row for each computed step."""
    rows: list[dict[str, Any]] = []
    inherited, before = sockets(), dict(step=0)  # the agent's, which goes on sending its heartbeat

    def step(self: HybridOptimizer, *, loss: Tensor) -> None:
        row = dict(loss=loss.item(), jump=None)
        rows.append(row)
        STEP(self, loss=loss)
        now = written(inherited)
        row |= dict(sent=now - before["step"], weights=torch.cat([w.detach().flatten() for _, w in self.weights]))
        before["step"] = now

    def jump(self: HybridOptimizer) -> int:
        begun = written(inherited)
        taken = JUMP(self)
        rows[-1]["jump"] = written(inherited) - begun
        return taken

    HybridOptimizer.step, HybridOptimizer.jump = step, jump
    torch.set_default_dtype(dtype)
    script(folder, *args)
    torch.save(rows, folder / f"{os.environ['RANK']}.pt")


def killed(folder: Path, kills: list[list[Any]], *args: str) -> None:
    """Train; at start N the rank in `kills[N]` kills itself at that place, after so many computed steps.

    At "any time" it does so that many seconds later.
    """
    start, me = (int(os.environ[name]) for name in ("TORCHELASTIC_RESTART_COUNT", "RANK"))
    rank, place, after, later_s = kills[start]
    at = dict(computed=0)

    def die() -> None:
        with (folder / "killed").open("a", encoding="utf-8") as log:
            log.write(json.dumps([rank, place, at["computed"]]) + "\n")
        os.kill(os.getpid(), signal.SIGKILL)

    def here(name: str) -> bool:
        return (me, name) == (rank, place) and at["computed"] >= after

    def passing(name: str) -> None:
        if here(name):
            die()

    def gather(begins: list[int], begin: int) -> None:
        with (folder / "began").open("a", encoding="utf-8") as log:
            log.write(json.dumps([os.getpid(), begin]) + "\n")
        GATHER(begins, begin)

    def step(self: HybridOptimizer, *, loss: Tensor) -> None:
        at["computed"] = self.computed_steps
        passing("gradient")
        if here("any time") and threading.active_count() == 1:
            threading.Timer(later_s, die).start()
        STEP(self, loss=loss)

    def jump(self: HybridOptimizer) -> int:
        passing("before a jump")
        taken = JUMP(self)
        passing("after a jump")
        return taken

    def move(self: Spectral, *args: Any) -> None:
        MOVE(self, *args)
        passing("in a jump")  # some weights have moved, others have not

    def save(state: Any, file: Any) -> None:
        SAVE(state, whole := io.BytesIO())
        half = len(whole.getvalue()) // 2
        file.write(whole.getvalue()[:half])
        file.flush()
        passing("half a checkpoint")
        file.write(whole.getvalue()[half:])

    def replace(self: Path, target: Path) -> None:
        passing("checkpoint written")
        os.replace(self, target)
        passing("checkpoint renamed")

    HybridOptimizer.step, HybridOptimizer.jump, Spectral.move = step, jump, move
    torch.save, Path.replace, dist.all_gather_object = save, replace, gather
    script(folder, *args)


def launch(ranks: int, restarts: int, *task: Any) -> None:
    """Do what torchrun does, with a function in place of a script."""
    config = LaunchConfig(1, 1, ranks, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=restarts,
                          monitor_interval=0.05, start_method="fork")  # fmt: skip
    elastic_launch(config, task[0])(*task[1:])


if __name__ == "__main__":
    folder, kills, args = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:]
    for dtype, sizes in ((torch.float32, args), (torch.float64, [*args, "--steps", "130"])):
        for ranks in (1, 2):
            launch(ranks, 0, watched, folder / f"{ranks}.{dtype}".replace("torch.", ""), dtype, *sizes)
    try:
        launch(2, len(kills) - 1, killed, folder / "killed", kills, *args)
    except ChildFailedError:  # the last kill was one too many
        (folder / "ended").touch()
