"""Elementwise scaling of a direction: continuous, or by a hard mask."""

import dataclasses
from typing import Literal, TypeAlias, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from rolelens.errors import InputError
from rolelens.vectors.direction import Direction
from rolelens.vectors.directions import Directions
from rolelens.vectors.nulls import matched

Norm: TypeAlias = Literal["max", "l2", "softmax"]
Form: TypeAlias = Literal["product", "alone"]
Scalable = TypeVar("Scalable", Direction, Directions)


def beta(mu: Float[Tensor, "*cell d"], norm: Norm = "max") -> Float[Tensor, "*cell d"]:
    """Weights of a direction's elements (continuous soft scaling of 2602.14143).

    Args:
        mu: the direction; zero has the weights 0 (``max``, ``l2``).
        norm: ``max`` |mu| / max |mu|; ``l2`` |mu| / ‖mu‖; ``softmax`` d softmax(|mu|), which sums
            to d and is nearly 1 everywhere unless elements are of the size of 1.
    """
    size = mu.double().abs()
    match norm:
        case "max":
            weights: Tensor = size / size.amax(dim=-1, keepdim=True).clamp(min=1e-300)
        case "l2":
            weights = size / size.norm(dim=-1, keepdim=True).clamp(min=1e-300)
        case "softmax":
            weights = size.shape[-1] * size.softmax(dim=-1)
        case _:
            raise InputError(f"norm is {norm!r}; it has to be 'max', 'l2' or 'softmax'.")
    return weights


def soft_scaled(direction: Scalable, norm: Norm = "max", form: Form = "product") -> Scalable:
    """Scale the elements of a direction, large ones most (continuous soft scaling).

    Public descriptions of 2602.14143 do not agree on whether beta multiplies mu or stands alone.
    The product is the default: it keeps the units of the residual stream, so that alpha means what
    it means elsewhere.

    Args:
        direction: the direction mu, or several.
        norm: of the weights beta, see :func:`beta`.
        form: ``product`` beta ⊙ mu; ``alone`` beta with the signs of mu, without units (beta by
            itself would point into one orthant whatever mu is).
    """
    mu = _values(direction)
    weights = beta(mu, norm)
    if form == "product":
        return _with(direction, weights * mu.double())
    if form == "alone":
        return _with(direction, weights * mu.sign())
    raise InputError(f"form is {form!r}; it has to be 'product' or 'alone'.")


def top_k(direction: Scalable, k: int) -> Scalable:
    """Keep the k largest elements of a direction, with its norm: the hard mask beside it.

    Args:
        direction: the direction, or several.
        k: how many elements are kept, of each.
    """
    mu = _values(direction).double()
    if not 1 <= k <= mu.shape[-1]:
        raise InputError(f"k is {k}; it has to be from 1 to {mu.shape[-1]}, the width.")
    kept = torch.zeros_like(mu).scatter(-1, mu.abs().topk(k, dim=-1).indices, 1.0) * mu
    return _with(direction, matched(kept, mu))


def energy(
    scaled: Float[Tensor, "*cell d"], mu: Float[Tensor, "*cell d"]
) -> Float[Tensor, "*cell"]:
    """Share of a direction's squared norm that lies along another one: squared cosine, 0 to 1."""
    cosine = torch.cosine_similarity(scaled.double(), mu.double(), dim=-1, eps=1e-300)
    return cosine.square()


def _values(direction: Direction | Directions) -> Tensor:
    return direction.vector if isinstance(direction, Direction) else direction.directions


def _with(direction: Scalable, values: Tensor) -> Scalable:
    if isinstance(direction, Direction):
        return dataclasses.replace(direction, vector=values.to(direction.vector.dtype))
    return dataclasses.replace(direction, directions=values.float())
