"""What is done to the residual stream, with another direction for every row of a batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from rolelens.forward.models import Hook

SITES = {"resid_pre": "hook_resid_pre", "attn_out": "hook_attn_out", "mlp_post": "mlp.hook_post"}
"""Where in a block a direction may live: what enters the block, what attention adds to the residual
stream, and what the MLP's down projection reads, ``d_mlp`` wide (of a gated MLP the product with
the gate)."""
ABLATED = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out")
"""Where a direction is ablated: what enters a block, and what its two branches add."""

Mask: TypeAlias = Callable[[], Tensor]
"""Which tokens of the running forward pass are edited, as booleans ``[row, position]``."""


@dataclass(frozen=True)
class Addition:
    """x <- x + delta at one layer (2502.12055 eq. 3), another delta for every cell.

    Attributes:
        deltas: what is added.
        layer: where.
    """

    deltas: Float[Tensor, "cell d_model"]
    layer: int

    def __len__(self) -> int:
        return len(self.deltas)

    def hooks(self, n_layers: int, cells: Int[Tensor, " row"], mask: Mask) -> list[Hook]:
        """The cell of every row, as hooks."""

        def add(x: Tensor, hook: Any) -> Tensor:
            deltas = self.deltas.to(x)[cells.to(x.device), None]
            return torch.where(mask()[..., None].to(x.device), x + deltas, x)

        return [(f"blocks.{self.layer}.hook_resid_pre", add)]


@dataclass(frozen=True)
class Ablation:
    """x <- x - share d̂ (d̂ᵀ x) at every layer (2502.12055 eq. 4), another d̂ for every cell.

    Attributes:
        units: directions of norm 1.
        shares: how much of the component is removed; 1 is all of it.
        layer: the first layer it acts in.
    """

    units: Float[Tensor, "cell d_model"]
    shares: Float[Tensor, " cell"]
    layer: int = 0

    def __len__(self) -> int:
        return len(self.units)

    def hooks(self, n_layers: int, cells: Int[Tensor, " row"], mask: Mask) -> list[Hook]:
        """The cell of every row, as hooks."""

        def remove(x: Tensor, hook: Any) -> Tensor:
            units = self.units.to(x)[cells.to(x.device)]
            shares = self.shares.to(x)[cells.to(x.device), None]
            along = shares * einsum(x, units, "row pos d_model, row d_model -> row pos")
            gone = einsum(along, units, "row pos, row d_model -> row pos d_model")
            return torch.where(mask()[..., None].to(x.device), x - gone, x)

        return [(f"blocks.{layer}.{site}", remove) for layer in range(n_layers) for site in ABLATED]


Edit: TypeAlias = Addition | Ablation
