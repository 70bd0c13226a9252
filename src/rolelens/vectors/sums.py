"""Means and weighted sums over prompts that arrive in batches."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rolelens.errors import InputError


class RunningMean:
    """Mean over the first axis of tensors that arrive in batches, accumulated in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | None = None

    def add(self, batch: Tensor) -> None:
        """Take in ``[prompt, ...]``."""
        total = batch.sum(dim=0, dtype=torch.float64)
        self._sum = total if self._sum is None else self._sum + total
        self.count += batch.shape[0]

    @property
    def mean(self) -> Tensor:
        """The mean so far, float64."""
        if self._sum is None:
            raise InputError("there is no mean of no prompts; add at least one.")
        return self._sum / self.count


class WeightedSums:
    """Weighted sums over prompts of tensors that arrive in batches, accumulated in float64.

    Each row of weights gives one sum; with weights +1/n and -1/m it is a difference of means.

    Args:
        weights: the weight of every prompt in every sum.
    """

    def __init__(self, weights: Float[Tensor, "null prompt"]) -> None:
        self._weights = weights.double()
        self._added = torch.zeros(weights.shape[1], dtype=torch.long)
        self._sums: Tensor | None = None

    def add(self, batch: Tensor, prompts: Int[Tensor, " row"]) -> None:
        """Take in ``[row, ...]``, and which prompt each row is."""
        self._added += torch.bincount(prompts.cpu(), minlength=len(self._added))
        weights = self._weights[:, prompts].to(batch.device)
        total = torch.tensordot(weights, batch.double(), dims=1)
        self._sums = total if self._sums is None else self._sums + total

    @property
    def sums(self) -> Tensor:
        """The sums, ``[null, ...]``, float64.

        Raises:
            InputError: not every prompt was added once, so these are no sums over the prompts.
        """
        if self._sums is None:
            raise InputError("there are no weighted sums of no prompts; add at least one.")
        if (self._added != 1).any():
            raise InputError(
                f"{int((self._added == 0).sum())} of {len(self._added)} prompts were not added and "
                f"{int((self._added > 1).sum())} more than once; add every prompt once."
            )
        return self._sums
