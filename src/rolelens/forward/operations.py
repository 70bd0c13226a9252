"""Changes of an activation, each with another direction and other numbers for every row."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from rolelens.forward.selection import Selection
from rolelens.vectors import Source

SITES = {"resid_pre": "hook_resid_pre", "attn_out": "hook_attn_out", "mlp_post": "mlp.hook_post"}
"""Where in a block a direction may live: what enters the block, what attention adds to the residual
stream, and what the MLP's down projection reads, ``d_mlp`` wide (of a gated MLP the product with
the gate)."""
ABLATED = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out")
"""Where a direction is ablated: what enters a block, and what its two branches add."""

Kind: TypeAlias = Literal["add", "add_rescaled", "ablate", "replace", "clamp", "rotate", "turn_to"]
Point: TypeAlias = tuple[int, str]
"""A layer, and the name of a hook in its block."""
Stream: TypeAlias = Float[Tensor, "row position d"]
Vectors: TypeAlias = Float[Tensor, "row d"]
Numbers: TypeAlias = Float[Tensor, "row number"]


@dataclass(frozen=True, eq=False)
class Operation:
    """One change of the activations at some hook points.

    Attributes:
        kind: ``add`` x + v (2502.12055 eq. 3), ``add_rescaled`` (x + v) ‖x‖ / ‖x + v‖, ``ablate``
            x - share v (vᵀ x) (eq. 4), ``replace`` ‖x‖ v, ``clamp`` vᵀx kept within two bounds,
            ``rotate`` by an angle in the plane of v and ``other``, or ``turn_to`` an angle in it.
        vector: v; of norm 1 unless it is added, and zero where nothing is done.
        points: where.
        tokens: at which tokens.
        numbers: the share that is removed; the lower and the upper bound; the cosine and the sine
            of the angle, and 1 where only tokens with vᵀx > 0 are turned.
        other: of norm 1 and orthogonal to v.
        source: the model that the vector was measured on.
    """

    kind: Kind
    vector: Float[Tensor, " d"]
    points: tuple[Point, ...]
    tokens: Selection = "all"
    numbers: tuple[float, ...] = ()
    other: Float[Tensor, " d"] | None = None
    source: Source | None = None


def added(x: Stream, deltas: Vectors, others: Vectors, numbers: Numbers) -> Stream:
    """Give x + delta."""
    return x + deltas.to(x)[:, None]


def added_rescaled(x: Stream, deltas: Vectors, others: Vectors, numbers: Numbers) -> Stream:
    """Give x + delta with the norm of x (2507.18043)."""
    wide = _wide(x)
    new = wide + deltas.to(wide)[:, None]
    norms = new.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(new.dtype).tiny)
    kept: Tensor = new * (wide.norm(dim=-1, keepdim=True) / norms)
    return kept.to(x.dtype)


def ablated(x: Stream, units: Vectors, others: Vectors, numbers: Numbers) -> Stream:
    """Give x - share d̂ (d̂ᵀ x)."""
    units = units.to(x)
    along = numbers[:, :1].to(x) * _along(x, units)
    return x - _times(along, units)


def replaced(x: Stream, units: Vectors, others: Vectors, numbers: Numbers) -> Stream:
    """Give ‖x‖ d̂; where d̂ is zero, x."""
    live = (units.norm(dim=-1) > 0)[:, None, None].to(x.device)
    return torch.where(live, x.norm(dim=-1, keepdim=True) * units.to(x)[:, None, :], x)


def clamped(x: Stream, units: Vectors, others: Vectors, numbers: Numbers) -> Stream:
    """Give x with its projection on d̂ kept within two bounds (2601.10387); within them, x itself.

    What is added to a token is rounded, so the projection may miss a bound by the last digits.
    """
    wide, units = _wide(x), units.to(_wide(x))
    along = _along(wide, units)
    low, high = numbers.to(wide).unbind(dim=1)
    kept = torch.minimum(torch.maximum(along, low[:, None]), high[:, None])
    return (wide + _times(kept - along, units)).to(x.dtype)


def rotated(x: Stream, units: Vectors, others: Vectors, numbers: Numbers) -> Stream:
    """Give x with its part in a plane turned by an angle, from d̂ towards the other direction."""
    wide, units, others = _wide(x), units.to(_wide(x)), others.to(_wide(x))
    cosine, sine, adaptive = numbers.to(wide)[..., None].unbind(dim=1)
    a, b = _along(wide, units), _along(wide, others)
    new = cosine * a - sine * b, sine * a + cosine * b
    return _in_plane(x, units, others, (a, b), new, adaptive)


def turned_to(x: Stream, units: Vectors, others: Vectors, numbers: Numbers) -> Stream:
    """Give x with its part in a plane at an angle from d̂, whatever it was before (2510.26243)."""
    wide, units, others = _wide(x), units.to(_wide(x)), others.to(_wide(x))
    cosine, sine, adaptive = numbers.to(wide)[..., None].unbind(dim=1)
    a, b = _along(wide, units), _along(wide, others)
    size = torch.hypot(a, b)
    return _in_plane(x, units, others, (a, b), (cosine * size, sine * size), adaptive)


CHANGES: dict[Kind, Callable[[Stream, Vectors, Vectors, Numbers], Stream]] = {
    "add": added,
    "add_rescaled": added_rescaled,
    "ablate": ablated,
    "replace": replaced,
    "clamp": clamped,
    "rotate": rotated,
    "turn_to": turned_to,
}
NUMBERS: dict[Kind, int] = {
    "add": 0,
    "add_rescaled": 0,
    "ablate": 1,
    "replace": 0,
    "clamp": 2,
    "rotate": 3,
    "turn_to": 3,
}
"""How many numbers an operation has beside its vectors."""


def _in_plane(
    x: Stream,
    units: Vectors,
    others: Vectors,
    old: tuple[Tensor, Tensor],
    new: tuple[Tensor, Tensor],
    adaptive: Float[Tensor, "row 1"],
) -> Stream:
    """What stands in a plane, put elsewhere in it; where adaptive, of tokens along d̂ alone."""
    turned = (adaptive == 0) | (old[0] > 0)
    first, second = (
        torch.where(turned, n - o, torch.zeros_like(o)) for n, o in zip(new, old, strict=True)
    )
    return (_wide(x) + _times(first, units) + _times(second, others)).to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    """In float32 at least: norms and projections of half precision have three digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _along(x: Stream, units: Vectors) -> Float[Tensor, "row position"]:
    return einsum(x, units, "row position d, row d -> row position")


def _times(along: Float[Tensor, "row position"], units: Vectors) -> Stream:
    return einsum(along, units, "row position, row d -> row position d")
