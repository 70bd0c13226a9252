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


def added(
    x: Float[Tensor, "row position d_model"], deltas: Float[Tensor, "#row d_model"]
) -> Float[Tensor, "row position d_model"]:
    """Give x + delta, with another delta for every row."""
    return x + deltas.to(x)[:, None]


def ablated(
    x: Float[Tensor, "row position d_model"],
    units: Float[Tensor, "row d_model"],
    shares: Float[Tensor, " row"] | None = None,
) -> Float[Tensor, "row position d_model"]:
    """Give x - share d̂ (d̂ᵀ x), with another d̂ for every row; a share of 1 by default."""
    units = units.to(x)
    along = einsum(x, units, "row position d_model, row d_model -> row position")
    if shares is not None:
        along = shares.to(x)[:, None] * along
    return x - einsum(along, units, "row position, row d_model -> row position d_model")


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
            deltas = self.deltas[cells.to(self.deltas.device)]
            return torch.where(mask()[..., None].to(x.device), added(x, deltas), x)

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
            own = cells.to(self.units.device)
            gone = ablated(x, self.units[own], self.shares[own])
            return torch.where(mask()[..., None].to(x.device), gone, x)

        return [(f"blocks.{layer}.{site}", remove) for layer in range(n_layers) for site in ABLATED]


Edit: TypeAlias = Addition | Ablation
