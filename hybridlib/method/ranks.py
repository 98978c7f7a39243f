"""What several processes that train one model decide alike."""

import torch
import torch.distributed as dist
from torch import Tensor


def mean_over_ranks(loss: Tensor | float) -> float:
    """Return a loss averaged over all ranks, so that each decides alike by it; as it is where there is one process."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return float(loss.detach() if isinstance(loss, Tensor) else loss)
    total = loss.detach().double().clone() if isinstance(loss, Tensor) else torch.tensor(loss, dtype=torch.float64)
    if dist.get_backend() == "nccl":
        total = total.cuda()
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()
