"""How directions are estimated from activations."""

import torch
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
            raise InputError("the mean of no prompts was asked for; pass at least one.")
        return self._sum / self.count
