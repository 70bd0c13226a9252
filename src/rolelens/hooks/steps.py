"""One change of the residual stream: what it does, in numbers, in words and in a file."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from rolelens import forward
from rolelens.forward import ABLATED, SITES, Condition, Gated, Named, Operation
from rolelens.vectors import Direction, Null, Source
from rolelens.vectors.direction import RESID_PRE

Unit: TypeAlias = Literal["raw", "resid_norm"]
Kind: TypeAlias = Literal[
    "add", "add_rescaled", "ablate", "replace", "cap", "floor", "fix", "rotate", "turn_to"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
ADDITIONS = ("add", "add_rescaled")
"""Kinds whose strength is a factor on the direction."""
BOUNDS: dict[str, Callable[[float], tuple[float, float]]] = {
    "cap": lambda bound: (-math.inf, bound),
    "floor": lambda bound: (bound, math.inf),
    "fix": lambda value: (value, value),
}
"""Within which bounds a projection is kept, by the strength of a step."""


@dataclass(frozen=True, eq=False)
class Step:
    """One change of the residual stream.

    Attributes:
        kind: ``add`` x + alpha d (2502.12055 eq. 3); ``add_rescaled`` the same with the norm of x
            (2507.18043); ``ablate`` x - alpha d̂ (d̂ᵀ x) (eq. 4); ``replace`` ‖x‖ d̂ (Patchscopes,
            2401.06102); ``cap``, ``floor`` and ``fix`` keep the projection d̂ᵀ x below alpha, above
            it, or at it (2601.10387); ``rotate`` turns the part of x in the plane of d and
            ``other`` by alpha degrees, ``turn_to`` to alpha degrees from d (2510.26243).
        direction: d.
        alpha: strength: a factor on the raw direction; the norm of what is added as a share of the
            residual norm; the share of the component that is removed; a projection in units of the
            residual stream; or an angle in degrees.
        layers: the layers it acts in.
        tokens: the tokens it acts on.
        unit: what ``alpha`` of an addition means, ``raw`` or ``resid_norm``.
        other: what d is turned towards.
        adaptive: whether only tokens with a projection above zero are turned.
        condition: what a prompt has to be like; every prompt is steered without one.
    """

    kind: Kind
    direction: Direction
    alpha: float
    layers: tuple[int, ...]
    tokens: Named = "all"
    unit: Unit = "raw"
    other: Direction | None = None
    adaptive: bool = False
    condition: Condition | None = None

    @property
    def is_zero(self) -> bool:
        """Whether it changes nothing, as at layer 0, where directions may be exactly zero."""
        if self.direction.norm == 0:
            return True
        if self.kind == "rotate":
            return self.alpha % 360 == 0
        return self.alpha == 0 and self.kind in (*ADDITIONS, "ablate")

    @property
    def directions(self) -> tuple[Direction, ...]:
        """All directions that it needs."""
        gate = self.condition.direction if self.condition else None
        return tuple(d for d in (self.direction, self.other, gate) if d is not None)

    @property
    def points(self) -> tuple[forward.Point, ...]:
        """The hook points it acts at."""
        names = ABLATED if self.kind == "ablate" else (SITES[self.direction.site],)
        return tuple((layer, name) for layer in self.layers for name in names)

    @property
    def vector(self) -> Float[Tensor, " d"]:
        """What is added, or the direction of norm 1 that the other kinds act along."""
        if self.is_zero:
            return torch.zeros_like(self.direction.vector)
        if self.kind not in ADDITIONS:
            return self.direction.unit
        if self.unit == "raw":
            return self.direction.vector * self.alpha
        return self.direction.unit * (self.alpha * (self.direction.resid_norm or math.nan))

    @cached_property
    def operation(self) -> Operation:
        """The step as batches run it."""
        kind: forward.Kind
        numbers: tuple[float, ...] = ()
        other = None
        match self.kind:
            case "ablate":
                kind, numbers = self.kind, (self.alpha,)
            case "cap" | "floor" | "fix":
                kind, numbers = "clamp", BOUNDS[self.kind](self.alpha)
            case "rotate" | "turn_to":
                angle = math.radians(self.alpha)
                kind = self.kind
                numbers = (math.cos(angle), math.sin(angle), float(self.adaptive))
                assert self.other is not None
                other = self.other.project_out(self.direction).unit
            case _:
                kind = self.kind
        tokens = Gated(self.tokens, self.condition) if self.condition else self.tokens
        return Operation(
            kind, self.vector, self.points, tokens, numbers, other, self.direction.source
        )

    def __str__(self) -> str:
        d = self.direction
        site = "" if d.site == RESID_PRE else f" at {d.site}"
        word = "layer" if len(self.layers) == 1 else "layers"
        where = f"{site} in {word} {ranges(self.layers)}"
        chosen = self.tokens if isinstance(self.tokens, str) else ranges(self.tokens)
        said = f"{self._done()}{where}, tokens {chosen}"
        return f"{said}, of {self.condition}" if self.condition else said

    def _done(self) -> str:
        """What is done, in words, but for where."""
        measured = f"({_measured(self.direction)})"
        match self.kind:
            case "add" | "add_rescaled":
                times = "residual norms of" if self.unit == "resid_norm" else "x"
                kept = ", norms kept" if self.kind == "add_rescaled" else ""
                return f"add {self.alpha:g} {times} {measured}{kept}"
            case "ablate" if self.alpha != 1:
                return f"ablate {self.alpha:g} x {measured}"
            case "cap" | "floor" | "fix":
                return f"{self.kind} {measured} at {self.alpha:g}"
            case "rotate" | "turn_to":
                assert self.other is not None
                where = f"({_measured(self.other)})" if self.other else ""
                turned = "by" if self.kind == "rotate" else "to"
                only = ", where it is above zero" if self.adaptive else ""
                return f"turn {measured} towards {where} {turned} {self.alpha:g} degrees{only}"
            case _:
                return f"{self.kind} {measured}"

    def to_dict(self) -> dict[str, Any]:
        """All of it but the numbers of the directions, JSON-able."""
        content = {
            "kind": self.kind,
            "alpha": self.alpha,
            "unit": self.unit,
            "layers": list(self.layers),
            "tokens": self.tokens if isinstance(self.tokens, str) else list(self.tokens),
            "direction": _told(self.direction),
        }
        # Only where they are there: what is done says by its hash what a store holds.
        if self.other is not None:
            content |= {"other": _told(self.other), "adaptive": self.adaptive}
        if self.condition is not None:
            content["condition"] = {
                "direction": _told(self.condition.direction),
                "above": self.condition.above,
                "below": self.condition.below,
            }
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], vectors: Mapping[str, Tensor]) -> "Step":
        """What :meth:`to_dict` told, with the vectors of its directions by their hashes."""
        told: Any = content["tokens"]
        tokens: Named = told if isinstance(told, str) else tuple(told)  # type: ignore[assignment]
        gate = content.get("condition")
        condition = gate and Condition(
            _direction(gate["direction"], vectors), gate["above"], gate["below"]
        )
        return cls(
            content["kind"],
            _direction(content["direction"], vectors),
            content["alpha"],
            tuple(content["layers"]),
            tokens,
            content["unit"],
            _direction(content["other"], vectors) if "other" in content else None,
            content.get("adaptive", False),
            condition,
        )


def _measured(d: Direction) -> str:
    """Where a direction was measured."""
    position = "" if d.position is None else f", position {d.position}"
    return f"{d.name} of layer {d.layer}{position}"


def _told(d: Direction) -> dict[str, Any]:
    """All of a direction but its numbers."""
    return {
        "name": d.name,
        "layer": d.layer,
        "position": d.position,
        "site": d.site,
        "norm": d.norm,
        "resid_norm": d.resid_norm,
        "sha": d.sha,
        "source": dataclasses.asdict(d.source) if d.source else None,
        "null": dataclasses.asdict(d.null) if d.null else None,
    }


def _direction(known: Mapping[str, Any], vectors: Mapping[str, Tensor]) -> Direction:
    return Direction(
        vectors[known["sha"]],
        known["layer"],
        known["position"],
        known["name"],
        known["resid_norm"],
        known["site"],
        Source(**known["source"]) if known["source"] else None,
        Null(**known["null"]) if known["null"] else None,
    )


def ranges(numbers: Sequence[int]) -> str:
    """Numbers in words: ``3, 5-7``."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
