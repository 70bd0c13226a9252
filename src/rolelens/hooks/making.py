"""Steerings of every kind that needs no data."""

import math
from collections.abc import Sequence
from typing import Any

from rolelens import forward
from rolelens.errors import InputError, listed, unique, unknown
from rolelens.forward import SITES, Named
from rolelens.hooks.steering import Steering
from rolelens.hooks.steps import Kind, Step, Unit
from rolelens.lens import Lens
from rolelens.vectors import Direction, check_sources
from rolelens.vectors.direction import RESID_PRE


def add(
    direction: Direction,
    alpha: float = 1.0,
    *,
    unit: Unit = "raw",
    layers: Sequence[int] | None = None,
    tokens: Named = "all",
    rescale: bool = False,
) -> Steering:
    """Activation addition: x <- x + alpha d (2502.12055 eq. 3).

    Args:
        direction: what is added.
        alpha: strength. With ``unit="raw"`` a factor on the raw direction; with
            ``unit="resid_norm"`` the norm of what is added, as a share of the mean norm of the
            residual stream that the direction was measured against.
        unit: see ``alpha``.
        layers: where it is added; at the layer of d by default.
        tokens: which tokens: ``"all"``, ``"prompt"``, ``"post-instruction"``, ``"generated"``,
            ``"last"`` (the prompt's last token and every generated one) or positions counted from
            0. Anything but ``"all"`` works inside calls of a Lens only, which know where each
            token stands.
        rescale: give the sum the norm of x, so that only its direction changes (norm-preserving
            addition, 2507.18043): (x + alpha d) ‖x‖ / ‖x + alpha d‖.

    Raises:
        InputError: ``alpha`` is not a finite number, ``unit`` or ``tokens`` is unknown, a layer is
            named twice, or the residual norm is not known there.
    """
    checked_direction(direction, "added")
    if unit not in ("raw", "resid_norm"):
        raise InputError(f"unit is {unit!r}; it has to be 'raw' or 'resid_norm'.")
    chosen = chosen_layers(layers, (direction.layer,))
    if unit == "resid_norm":
        if direction.resid_norm is None:
            raise InputError(
                f"the direction of {direction.name!r} does not know the norm of the residual "
                "stream; take it from rl.role_vectors, or use unit='raw'."
            )
        if chosen != (direction.layer,):
            raise InputError(
                f"the norm of the residual stream is known at layer {direction.layer} alone, and "
                f"layers is {list(chosen)}; use unit='raw', or add a direction of each layer."
            )
    kind: Kind = "add_rescaled" if rescale else "add"
    selection = forward.checked_selection(tokens)
    return Steering([Step(kind, direction, finite(alpha), chosen, selection, unit)])


def ablate(
    direction: Direction,
    lens: Lens,
    *,
    layers: Sequence[int] | None = None,
    tokens: Named = "all",
    share: float = 1.0,
) -> Steering:
    """Directional ablation: x <- x - share d̂ (d̂ᵀ x) (2502.12055 eq. 4).

    What enters a block and what attention and MLP add to the residual stream lose their component
    along d. At every layer, as by default, the stream so stays orthogonal to it.

    Args:
        direction: what is removed; its layer does not matter.
        lens: the model it is removed from.
        layers: where; everywhere by default.
        tokens: which tokens, as for :func:`add`.
        share: how much of the component is removed.

    Raises:
        InputError: the direction is zero, lives elsewhere than in the residual stream, or was
            measured on another model; an unknown layer.
    """
    checked_direction(direction, "ablated")
    check_sources(direction.source, lens.source)
    _in_residual_stream(direction, "be ablated from the residual stream")
    _ = direction.unit  # a zero direction is refused
    everywhere = tuple(range(lens.n_layers))
    chosen = chosen_layers(layers, everywhere)
    for layer in chosen:
        if layer not in everywhere:
            raise unknown("layer", layer, everywhere)
    tokens = forward.checked_selection(tokens)
    return Steering([Step("ablate", direction, finite(share, "share"), chosen, tokens)])


def replace(
    direction: Direction, *, layers: Sequence[int] | None = None, tokens: Named
) -> Steering:
    """Put a direction in the place of the residual stream: x <- ‖x‖ d̂ (Patchscopes, 2401.06102).

    Args:
        direction: what is put there, with the norm of what it replaces at each token.
        layers: the block whose input is replaced; that of the direction by default.
        tokens: which tokens, as for :func:`add`.

    Raises:
        InputError: the direction is zero, or lives elsewhere than in the residual stream.
    """
    checked_direction(direction, "put in place of the residual stream")
    _in_residual_stream(direction, "stand in the residual stream's place")
    _ = direction.unit
    chosen = chosen_layers(layers, (direction.layer,))
    return Steering([Step("replace", direction, 1.0, chosen, forward.checked_selection(tokens))])


def clamp(
    direction: Direction,
    low: float | None = None,
    high: float | None = None,
    *,
    layers: Sequence[int] | None = None,
    tokens: Named = "all",
) -> Steering:
    """Keep the projection d̂ᵀx within bounds (activation capping, 2601.10387).

    x <- x + (clip(d̂ᵀx, low, high) - d̂ᵀx) d̂. ``high=0`` removes what is positive alone (one-sided
    ablation). Tokens within the bounds stay as they are, bit for bit. The first token of a prompt
    often projects far beyond all others without meaning anything; take bounds from ordinary prompts
    over the tokens that are steered (:func:`rolelens.thresholds`).

    Args:
        direction: d; its norm does not matter.
        low: the least projection, in units of the residual stream (of the direction's site).
        high: the greatest.
        layers: where; at the layer of d by default.
        tokens: which tokens, as for :func:`add`.

    Raises:
        InputError: there is no bound, ``low`` is above ``high``, or the direction is zero.
    """
    checked_direction(direction, "clamped")
    _ = direction.unit  # a zero direction is refused
    if low is None and high is None:
        raise InputError("a clamp has no bounds; pass low, high or both, such as high=0.0.")
    bounds: list[tuple[Kind, float]] = []
    if low is not None:
        bounds.append(("floor", finite(low, "low")))
    if high is not None:
        bounds.append(("cap", finite(high, "high")))
    if len(bounds) == 2 and bounds[0][1] > bounds[1][1]:
        raise InputError(f"low is {low:g} and high is {high:g}; low must not be above high.")
    chosen = chosen_layers(layers, (direction.layer,))
    selection = forward.checked_selection(tokens)
    return Steering(Step(kind, direction, bound, chosen, selection) for kind, bound in bounds)


def rotate(
    direction: Direction,
    towards: Direction,
    degrees: float,
    *,
    absolute: bool = False,
    adaptive: bool = False,
    layers: Sequence[int] | None = None,
    tokens: Named = "all",
) -> Steering:
    """Turn x in the plane of two directions; its norm is kept (angular steering, 2510.26243).

    What x has in the plane is turned by an angle, counted from d towards the other direction; what
    it has outside of the plane stays.

    Args:
        direction: d.
        towards: the other direction, of the same layer and site; what it has along d does not
            count.
        degrees: the angle.
        absolute: put the part of x in the plane *at* this angle from d, wherever it was.
        adaptive: only at tokens with a projection on d above zero.
        layers: where; at the layer of d by default.
        tokens: which tokens, as for :func:`add`.

    Raises:
        InputError: a direction is zero, the two point the same way, or do not combine.
    """
    for one in (direction, towards):
        checked_direction(one, "turned")
        _ = one.unit
    if direction.site != towards.site or direction.layer != towards.layer:
        raise InputError(
            f"{direction.name!r} is of layer {direction.layer} ({direction.site}) and "
            f"{towards.name!r} of layer {towards.layer} ({towards.site}); take both of the same."
        )
    if abs(direction.cosine(towards)) > 1 - 1e-6:
        raise InputError(
            f"{direction.name!r} and {towards.name!r} lie on one line, which makes no plane; take "
            "another second direction, such as direction.random_like()."
        )
    chosen = chosen_layers(layers, (direction.layer,))
    selection = forward.checked_selection(tokens)
    kind: Kind = "turn_to" if absolute else "rotate"
    angle = finite(degrees, "degrees")
    return Steering(
        [Step(kind, direction, angle, chosen, selection, other=towards, adaptive=adaptive)]
    )


def checked_direction(direction: Any, done: str) -> None:
    """Refuse what is not one direction at a known site."""
    if not isinstance(direction, Direction):
        raise InputError(
            f"a {type(direction).__name__} cannot be {done}; take one direction of it, as in "
            "vectors['lawyer'].at(layer=12, position=-1)."
        )
    if direction.site not in SITES:
        raise unknown("site", direction.site, SITES)


def _in_residual_stream(direction: Direction, what: str) -> None:
    if direction.site != RESID_PRE:
        raise InputError(
            f"a direction at {direction.site!r} cannot {what}; take one of the residual stream."
        )


def chosen_layers(layers: Sequence[int] | None, default: tuple[int, ...]) -> tuple[int, ...]:
    """The layers that are meant, in order, each once."""
    if layers is None:
        return default
    chosen = listed("layers", layers)
    unique("layer", chosen)
    for layer in chosen:
        if not isinstance(layer, int) or layer < 0:
            raise InputError(f"a layer is {layer!r}; layers count from 0.")
    return tuple(sorted(chosen))


def finite(value: Any, name: str = "alpha") -> float:
    """A finite number."""
    try:
        number = float(value) if not isinstance(value, str) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{name} is {value!r}; it has to be a finite number such as 3.0.")
    return number
