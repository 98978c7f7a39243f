"""A run's final weights: kept in a file, put back into its model, and what that model writes."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from hybridlib.study.progress import weights_path
from hybridlib.study.run import Run
from hybridlib.study.storage import part_of, writing
from hybridlib.training.checkpoint import Damaged, read, write
from hybridlib.training.models import build
from hybridlib.training.states import size_bytes


def keep_weights(model: nn.Module, path: Path) -> None:
    """Write the weights of `model` to `path`, by name, in place of what is there.

    It is a safetensors file with a checksum; a kill leaves the old one or the new one. Raises `StorageError`.
    """
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    part = part_of(path)
    with writing(path, size_bytes(weights)):
        try:
            write(part, weights)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def kept_model(run: Run) -> nn.Module | None:
    """Return the model of `run`, on the CPU, with the weights that the run kept.

    None if it kept none, or if their file is damaged, of which it warns.
    """
    file = weights_path(run)
    if not file.exists():
        return None
    try:
        weights = read(file)
    except Damaged as error:
        warnings.warn(f"{error}; once the file is deleted, the run is trained again", stacklevel=2)
        return None
    model = build(run.model, run.seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(weights[name])
    return model


@torch.no_grad()
def continuation(model: nn.Module, prompts: Tensor, n_tokens: int, seed: int = 0) -> Tensor:
    """Return `n_tokens` tokens that `model` draws, one after the other, after each of `prompts`.

    `prompts` are (batch, seq) token ids, and what is returned is (batch, `n_tokens`). The random numbers follow from
    `seed` alone, so that two models draw with the same ones.
    """
    generator, tokens = torch.Generator().manual_seed(seed), prompts
    for _ in range(n_tokens):
        chances = model(input_ids=tokens).logits[:, -1].softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(chances, 1, generator=generator)], dim=1)
    return tokens[:, prompts.shape[1] :]
