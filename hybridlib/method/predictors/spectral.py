"""Outer Nesterov momentum on orthogonalized displacements: the study's predictor, and its control."""

import zlib

import torch
from torch import Tensor

from hybridlib.method.predictors.base import Weights, is_embedding, is_matrix
from hybridlib.method.predictors.nesterov import Nesterov
from hybridlib.method.predictors.orthogonal import best_quintics, orthogonalize
from hybridlib.method.settings import Momentum, Natural, Precision, Share, Small

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MOST_BF16 = 3  # iterations
COLUMNS_A_DIRECTION = 16  # with fewer, to find the leading directions first costs more than it is worth
BLOCK_ELEMENTS = 5 << 20  # of a table that is moved some rows at a time
CACHED_ELEMENTS = 1 << 19  # of those rows that are read and landed at once: so few stay in a processor's cache


class Spectral(Nesterov):
    """Outer Nesterov whose look-ahead is orthogonalized on every weight matrix.

    A matrix moves along all singular directions of its look-ahead about equally far, by the mean of what training moved
    them, but for those far below the `knee`, which keep their proportions: the jump is the look-ahead's projection on
    its own damped orthogonal form, so it sizes itself. A look-ahead along few directions gives a short jump, where
    keeping the Frobenius norm would blow up all others. The table of token embeddings moves so too, if `embeddings`; a
    row that did not move stays. Vectors and positions follow plain outer Nesterov with the gain `vector_gain`: they
    keep their length, and the gain that suits matrices would overshoot.

    Args:
        gain: how many times its look-ahead's orthogonal form a matrix moves.
        momentum: of the look-ahead, 0 to below 1, per cycle.
        fade: the share of the gain that is gone at the end of the run, 0 to 1.
        fade_from: the share of the run from which it goes, 0 to below 1.
        iterations: of Newton-Schulz, each with its best quintic; with 0 nothing is orthogonalized, "bf16" bears 3.
        least: the smallest singular value, as a share of a bound on the largest, that is to end near one; in (0, 1).
        leading: how many singular directions are found first, so that those that stand out are orthogonalized exactly;
            none are of a matrix with fewer than 16 columns or rows for each.
        knee: where singular values begin to fall, as a share of the Frobenius norm, in (0, 1).
        precision: of the products, "fp32" or "bf16"; with "fp32" those of float64 weights are in float64.
        embeddings: whether tables of token embeddings are orthogonalized.
        vector_gain: the gain of what is not orthogonalized.
    """

    def __init__(
        self,
        gain: float = 1.0,
        momentum: Momentum = 0.7,
        fade: Share = 0.0,
        fade_from: Momentum = 0.6,
        iterations: Natural = 3,
        least: Small = 0.01,
        leading: Natural = 16,
        knee: Small = 0.0007,
        precision: Precision = "fp32",
        embeddings: bool = True,
        vector_gain: float = 0.7,
    ) -> None:
        super().__init__(gain, momentum, fade, fade_from)
        if precision == "bf16" and iterations > MOST_BF16:
            raise ValueError(f"spectral: iterations = {iterations}: bf16 bears at most {MOST_BF16}")
        self.vector_gain, self.embeddings = vector_gain, embeddings
        self.leading, self.knee, self.dtype = leading, knee, DTYPES[precision]
        self.quintics = best_quintics(iterations, least)

    def move(self, group: Weights, share: float) -> None:
        together = []
        for name, weight in group:
            if self._is_large(name, weight):
                self._move_by_rows(name, weight.detach(), share)
            else:
                together.append((name, weight))
        if together:
            super().move(together, share)

    def _is_large(self, name: str, weight: Tensor) -> bool:
        """Return whether the matrix `name`, `weight`, is moved some rows at a time: where it is tall and too large."""
        tall = weight.ndim > 1 and len(weight) > weight[0].numel() and weight.is_contiguous()
        return tall and weight.numel() > BLOCK_ELEMENTS and bool(self.quintics) and self.is_linear(name, weight)

    def _move_by_rows(self, name: str, weight: Tensor, share: float) -> None:
        """Move a tall matrix some rows at a time: `weight` itself takes look-ahead and direction, with no copy."""
        cached = BLOCK_ELEMENTS if weight.is_cuda else CACHED_ELEMENTS
        few, many = (self._rows_of(weight, elements) for elements in (cached, BLOCK_ELEMENTS))
        for rows in few:
            weight[rows] = self.look_ahead(name, weight[rows], rows)
        length = self._orthogonalize([weight[rows].flatten(1) for rows in many])
        for rows in few:
            self.land(name, weight[rows], weight[rows], self.gain * share * float(length), rows)

    @staticmethod
    def _rows_of(weight: Tensor, elements: int) -> list[slice]:
        """Return the rows of `weight` in slices of about so many `elements`."""
        size = max(elements // weight[0].numel(), 1)
        return [slice(at, at + size) for at in range(0, len(weight), size)]

    def directions(self, group: Weights, ahead: list[Tensor]) -> list[tuple[Tensor, float]]:
        found = [(each, self.gain if self.is_linear(name, weight) else self.vector_gain)
                 for (name, weight), each in zip(group, ahead)]  # fmt: skip
        chosen = [i for i, (name, weight) in enumerate(group) if self.is_linear(name, weight)]
        if chosen and self.quintics:
            each = [ahead[i].contiguous() for i in chosen]  # to be changed in place
            matrices = torch.stack(each) if len(each) > 1 else each[0][None]
            flat = matrices.flatten(2) if len(each) > 1 else matrices[0].flatten(1)  # a batch of one is slower
            lengths = self._orthogonalize([flat if flat.shape[-2] >= flat.shape[-1] else flat.mT])
            for i, direction, length in zip(chosen, matrices, lengths.view(-1).tolist()):
                found[i] = direction, self.gain * length
        return found

    def _orthogonalize(self, blocks: list[Tensor]) -> Tensor:
        enough = blocks[0].shape[-1] >= COLUMNS_A_DIRECTION * self.leading
        return orthogonalize(blocks, self.quintics, self.dtype, self.leading if enough else 0, self.knee)

    def is_linear(self, name: str, weight: Tensor) -> bool:
        """Return whether the parameter `name`, `weight`, is orthogonalized: as the user says, else by axes and name."""
        if (said := self.orthogonalizes and self.orthogonalizes(name, weight)) is not None:
            return weight.ndim > 1 and said
        return is_matrix(name, weight) or (self.embeddings and is_embedding(name, weight))


class Sham(Spectral):
    """A control: jump in a random direction, each tensor as far as Spectral would: what distance alone does.

    Directions depend on a tensor's name and on how many jumps came before, so every seed of a study has the same.
    """

    def start(self, weights: Weights) -> None:
        super().start(weights)
        if "jumps" not in self.store:
            self.store.put("jumps", torch.zeros((), dtype=torch.int64, device="cpu"))

    def predict(self, weights: Weights, horizon: int, progress: float) -> None:
        super().predict(weights, horizon, progress)
        self.store.put("jumps", self.store.get("jumps") + 1)

    def move(self, group: Weights, share: float) -> None:
        Nesterov.move(self, group, share)  # a direction is drawn whole

    def directions(self, group: Weights, ahead: list[Tensor]) -> list[tuple[Tensor, float]]:
        true = super().directions(group, ahead)
        return [(self._random_like(name, jump), gain) for (name, _), (jump, gain) in zip(group, true)]

    def _random_like(self, name: str, jump: Tensor) -> Tensor:
        seed = zlib.crc32(f"{name} {int(self.store.get('jumps'))}".encode())
        noise = torch.randn(jump.shape, generator=torch.Generator().manual_seed(seed), device="cpu").to(
            jump.device, jump.dtype
        )
        return noise * (jump.norm() / noise.norm())
