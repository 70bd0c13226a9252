"""Steering and ablation as hook lists for any TransformerLens model.

A hook list is a list of ``(hook_name, fn)``. It works in ``lens.generate(..., hooks=...)`` and in
raw ``model.run_with_hooks(..., fwd_hooks=...)`` alike; several lists are joined with ``+``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rolelens.errors import InputError, unknown
from rolelens.forward import (
    ABLATED,
    SITES,
    Hook,
    HookFn,
    RowHooks,
    Selection,
    ablated,
    added,
    running,
    selected,
)
from rolelens.lens import Lens
from rolelens.vectors import Direction, Source, check_sources
from rolelens.vectors.direction import RESID_PRE


def add(
    direction: Direction,
    alpha: float = 1.0,
    *,
    unit: Literal["raw", "resid_norm"] = "raw",
    tokens: Selection = "all",
) -> list[Hook]:
    """Activation addition: x <- x + alpha d at the layer of d (2502.12055 eq. 3).

    Args:
        direction: what is added.
        alpha: strength. With ``unit="raw"`` a factor on the raw direction; with
            ``unit="resid_norm"`` the norm of what is added, as a share of the mean norm of the
            residual stream of base prompts at that layer and position.
        unit: see ``alpha``.
        tokens: which tokens; anything but ``"all"`` works inside calls of a Lens only, which know
            where each token stands.

    Raises:
        InputError: ``alpha`` is not a finite number, or the direction has no ``resid_norm``.
    """
    if not isinstance(direction, Direction):
        raise InputError(
            f"a {type(direction).__name__} cannot be added; take one direction of it, as in "
            "vectors['lawyer'].at(layer=12, position=-1)."
        )
    deltas = delta(direction, alpha, unit)[None]
    return [(_hook_name(direction), _adder(deltas, tokens, direction.source))]


def add_rows(
    directions: Sequence[Direction], alphas: Sequence[float], *, tokens: Selection = "all"
) -> RowHooks:
    """Activation addition with another direction for every prompt.

    Args:
        directions: one for each prompt, of any layers.
        alphas: one raw strength for each prompt.
        tokens: which tokens.

    Returns:
        What the ``hooks=`` of a Lens takes: from the rows of a batch, their hook list.
    """
    _paired(directions, alphas, "alphas")
    deltas = [delta(d, alpha) for d, alpha in zip(directions, alphas, strict=True)]
    names = [_hook_name(direction) for direction in directions]

    def adder(rows: list[int | None]) -> HookFn:
        zero = torch.zeros_like(deltas[0])
        here = torch.stack([zero if row is None else deltas[row] for row in rows])
        return _adder(here, tokens, directions[0].source)

    return ByRow(names, adder)


def replace_rows(
    directions: Sequence[Direction],
    layers: Sequence[int],
    *,
    tokens: Sequence[int],
) -> RowHooks:
    """Put a direction in the place of the residual stream, another one for every prompt.

    It has the norm of what it replaces, at each token.

    Args:
        directions: one for each prompt; zero directions leave it as it is.
        layers: the block whose input is replaced, one for each prompt.
        tokens: absolute positions that are replaced.

    Returns:
        What the ``hooks=`` of a Lens takes.
    """
    _paired(directions, layers, "layers")
    for direction in directions:
        if direction.site != RESID_PRE:
            raise InputError(
                f"a direction at {direction.site!r} cannot stand in the residual stream's place; "
                "take one of the residual stream."
            )

    def replacer(rows: list[int | None]) -> HookFn:
        zero = torch.zeros_like(directions[0].vector)
        units = torch.stack([zero if row is None else directions[row].unit for row in rows])
        replaced = (units.norm(dim=-1) > 0)[:, None, None]

        def replace(x: Tensor, hook: Any) -> Tensor:
            _check(x, units, directions[0].source)
            norm = x.norm(dim=-1, keepdim=True)
            new = torch.where(replaced.to(x.device), norm * units.to(x)[:, None, :], x)
            return _where(x, new, tokens)

        return replace

    names = [f"blocks.{layer}.hook_{RESID_PRE}" for layer in layers]
    return ByRow(names, replacer, first=min(tokens, default=0))


@dataclass(frozen=True)
class ByRow:
    """Hooks that do something else in every row.

    Attributes:
        names: the hook of each prompt.
        make: makes a hook, given for every row of a batch which prompt it is, or None where
            another hook is its own.
        first: no token before this one is edited.
    """

    names: Sequence[str]
    make: Callable[[list[int | None]], HookFn]
    first: int = 0

    def __call__(self, rows: Int[Tensor, " row"]) -> list[Hook]:
        """The hook list of some rows."""
        chosen = rows.tolist()
        if max(chosen) >= len(self.names):
            raise InputError(
                f"prompt {max(chosen)} has no direction; there are {len(self.names)}, and every "
                "prompt needs one."
            )
        used = sorted({self.names[row] for row in chosen})
        return [
            (name, self.make([row if self.names[row] == name else None for row in chosen]))
            for name in used
        ]


def ablate(direction: Direction, lens: Lens, *, tokens: Selection = "all") -> list[Hook]:
    """Directional ablation: x <- x - d̂ (d̂ᵀ x) everywhere (2502.12055 eq. 4).

    At every layer, what enters the block and what attention and MLP add to the residual stream
    lose their component along d, so that the stream stays orthogonal to it.

    Args:
        direction: what is removed.
        lens: the model it is removed from.
        tokens: which tokens.

    Raises:
        InputError: the direction is zero, or was measured on another model.
    """
    check_sources(direction.source, lens.source)
    unit = direction.unit

    def remove(x: Tensor, hook: Any) -> Tensor:
        _check(x, unit, direction.source)
        return _where(x, ablated(x, unit.expand(len(x), -1)), tokens)

    return [
        (f"blocks.{layer}.{site}", remove) for layer in range(lens.n_layers) for site in ABLATED
    ]


def delta(
    direction: Direction, alpha: float, unit: Literal["raw", "resid_norm"] = "raw"
) -> Float[Tensor, " d_model"]:
    """What ``add`` adds to the residual stream, as one vector."""
    if not math.isfinite(alpha):
        raise InputError(f"alpha is {alpha}; it has to be a finite number such as 3.0.")
    if unit == "raw":
        return direction.vector * alpha
    if unit != "resid_norm":
        raise InputError(f"unit is {unit!r}; it has to be 'raw' or 'resid_norm'.")
    if direction.resid_norm is None:
        raise InputError(
            f"the direction of {direction.role!r} does not know the norm of the residual stream; "
            "take it from rl.role_vectors, or use unit='raw'."
        )
    return direction.unit * (alpha * direction.resid_norm)


def _paired(directions: Sequence[Direction], values: Sequence[Any], name: str) -> None:
    if not directions:
        raise InputError("there are no directions; pass one for each prompt.")
    if len(directions) != len(values):
        raise InputError(f"{len(directions)} directions and {len(values)} {name} do not pair up.")
    for direction in directions:
        check_sources(directions[0].source, direction.source)


def _hook_name(direction: Direction) -> str:
    if direction.site not in SITES:
        raise unknown("site", direction.site, SITES)
    return f"blocks.{direction.layer}.{SITES[direction.site]}"


def _adder(
    deltas: Float[Tensor, "row d_model"], tokens: Selection, source: Source | None
) -> HookFn:
    def adder(x: Tensor, hook: Any) -> Tensor:
        _check(x, deltas, source)
        return _where(x, added(x, deltas), tokens)

    return adder


def _where(
    old: Float[Tensor, "row position d_model"],
    new: Float[Tensor, "row position d_model"],
    tokens: Selection,
) -> Float[Tensor, "row position d_model"]:
    if tokens == "all":
        return new
    now = running.get()
    if now is None:
        raise InputError(
            f"tokens={tokens!r} needs to know where each token stands, and only calls of a Lens "
            "(lens.generate, rl.evaluate, ...) say so; use tokens='all' in raw TransformerLens."
        )
    chosen = selected(now, tokens).to(old.device)
    if chosen.shape[1] != old.shape[1]:
        raise InputError(
            f"a hook saw {old.shape[1]} tokens where the running forward has {chosen.shape[1]}; "
            "a selection of tokens works in calls of a Lens only."
        )
    return torch.where(chosen[..., None], new, old)


def _check(x: Tensor, vector: Tensor, source: Source | None) -> None:
    """Refuse directions of another model than the one that runs."""
    now = running.get()
    check_sources(source, now.source if now else None)
    if x.shape[-1] != vector.shape[-1]:
        raise InputError(
            f"a direction of width {vector.shape[-1]} was used on a residual stream of width "
            f"{x.shape[-1]}; it was measured on another model."
        )
