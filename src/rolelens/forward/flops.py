"""Floating-point operations of forward passes, counted once a model."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch.utils.flop_counter import FlopCounterMode

from rolelens.forward.models import HookedModel
from rolelens.forward.passes import run_one_row


@dataclass(frozen=True)
class Operations:
    """What a token costs, in floating-point operations (a multiplication and an addition are two).

    Attributes:
        each: of a token through all blocks.
        pair: of a token through all blocks, for each token that it may attend to.
        unembedded: of a token that is unembedded to all of the vocabulary.
        n_layers: how many blocks there are.
    """

    each: float
    pair: float
    unembedded: float
    n_layers: int

    def blocks(self, tokens: int | float, width: int | float, layer: int | float = 0) -> float:
        """Operations of tokens in rows of some width through the blocks from a layer on."""
        above = (self.n_layers - layer) / self.n_layers
        return tokens * (self.each + self.pair * width) * above


_counted: WeakKeyDictionary[HookedModel, Operations] = WeakKeyDictionary()


def count_operations(model: HookedModel) -> Operations:
    """Count the operations of two passes of one row, which tell those of all."""
    if model not in _counted:
        wide = min(96, int(model.cfg.n_ctx))
        narrow = wide // 3
        counts = []
        for width in (narrow, wide):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                run_one_row(model, width)
            counts.append(counter.get_total_flops() / width)
        pair = max(0.0, (counts[1] - counts[0]) / (wide - narrow))
        d_model, vocab = model.unembed.W_U.shape[-2:]
        _counted[model] = Operations(
            counts[1] - pair * wide, pair, 2.0 * d_model * vocab, int(model.cfg.n_layers)
        )
    return _counted[model]
