"""Which tokens of a forward pass are edited."""

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rolelens.errors import InputError
from rolelens.forward.models import Everywhere
from rolelens.vectors import Direction, Source

NAMES = ("all", "prompt", "post-instruction", "generated", "last")
Named: TypeAlias = Literal["all", "prompt", "post-instruction", "generated", "last"] | Sequence[int]
"""Which tokens are edited: a name, or absolute positions (0 is the first token). ``last`` are the
prompt's last token and every generated one: the last of each forward pass under a KV cache."""


@dataclass(frozen=True, eq=False)
class Condition:
    """What a prompt has to be like to be steered (conditional steering, 2409.05907).

    The projection x · d̂ at the prompt's last token, at the layer and site of d, as the model reads
    the prompt unsteered, lies above one bound or below another, or both. Equal ones are equal by
    their numbers.

    Attributes:
        direction: d.
        above: the projection has to be greater, in units of the residual stream.
        below: the projection has to be less.
    """

    direction: Direction
    above: float | None = None
    below: float | None = None

    @cached_property
    def _key(self) -> tuple[Any, ...]:
        d = self.direction
        return d.sha, d.layer, d.site, self.above, self.below

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Condition) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __str__(self) -> str:
        d = self.direction
        bounds = [("above", self.above), ("below", self.below)]
        said = " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
        return f"prompts {said} on ({d.name} of layer {d.layer}) [{d.sha}]"

    def holds(self, along: Float[Tensor, " row"]) -> Bool[Tensor, " row"]:
        """Whether projections meet it."""
        met = torch.ones_like(along, dtype=torch.bool)
        if self.above is not None:
            met &= along > self.above
        if self.below is not None:
            met &= along < self.below
        return met


@dataclass(frozen=True)
class Gated:
    """Tokens of the prompts that meet a condition, and of none of the others."""

    tokens: Named
    condition: Condition

    def __str__(self) -> str:
        return f"{self.tokens} of {self.condition}"


Selection: TypeAlias = Named | Gated
"""Which tokens are edited, of all prompts or of some."""


def ungated(tokens: Selection) -> Named:
    """The tokens that a selection names in the prompts that meet its condition."""
    return tokens.tokens if isinstance(tokens, Gated) else tokens


@dataclass(frozen=True)
class Running:
    """What hooks may know of the forward pass they are called in.

    Attributes:
        positions: absolute positions of the tokens in this forward pass; with a row each where
            prompts of several lengths are continued.
        prompt_lengths: tokens of each row's prompt.
        n_post: how many of the prompt's last tokens are post-instruction tokens.
        source: the lens that runs it.
        gates: for each condition, which rows meet it.
        masks: which tokens selections name, as far as hooks have asked.
    """

    positions: Int[Tensor, "*row position"]
    prompt_lengths: Int[Tensor, " row"]
    n_post: int
    source: Source | None = None
    gates: Mapping[Condition, Bool[Tensor, " row"]] = field(default_factory=dict)
    masks: dict[Any, Everywhere] = field(default_factory=dict, repr=False, compare=False)


running: ContextVar[Running | None] = ContextVar("running", default=None)
unsteered: ContextVar[bool] = ContextVar("unsteered", default=False)
"""Whether edits leave everything as it is, those that are installed on the model included."""


def checked_selection(tokens: Named) -> Named:
    """A selection of tokens that can be compared and hashed, if it is one.

    Raises:
        InputError: it is neither a name nor absolute positions.
    """
    if isinstance(tokens, str) and tokens in NAMES:
        return tokens
    if not isinstance(tokens, str):
        try:
            positions = tuple(sorted({int(position) for position in tokens}))
        except (TypeError, ValueError):
            positions = ()
        if positions and positions[0] >= 0:
            return positions
        if positions:
            raise InputError(f"tokens is {list(tokens)}; absolute positions count from 0.")
    raise InputError(
        f"tokens is {tokens!r}; it has to be 'all', 'prompt', 'post-instruction', 'generated', "
        "'last' or a list of absolute positions."
    )


def published(tokens: Selection, x: Tensor) -> Bool[Tensor, "row position"] | None:
    """Which tokens of the running forward pass a selection names; None: all of them.

    Raises:
        InputError: no call of a Lens says where the tokens of this pass stand.
    """
    if tokens == "all":
        return None
    now = running.get()
    if now is None and isinstance(tokens, Gated):
        raise InputError(
            "steering on a condition is decided at the prompt, and only calls of a Lens "
            "(lens.generate, rl.evaluate, ...) say where that ends; take the condition off in raw "
            "TransformerLens."
        )
    if now is None:
        raise InputError(
            f"tokens={tokens!r} needs to know where each token stands, and only calls of a Lens "
            "(lens.generate, rl.evaluate, ...) say so; use tokens='all' in raw TransformerLens."
        )
    if tokens not in now.masks:
        now.masks[tokens] = Everywhere(selected(now, tokens))
    chosen = now.masks[tokens].on(x.device)
    if chosen.shape[1] != x.shape[1]:
        raise InputError(
            f"a hook saw {x.shape[1]} tokens where the running forward has {chosen.shape[1]}; "
            "a selection of tokens works in calls of a Lens only."
        )
    return chosen


def selects(tokens: Selection, lengths: Sequence[int], prompts: Sequence[int], n_post: int) -> bool:
    """Whether a selection names any token of some rows.

    Args:
        tokens: the selection.
        lengths: tokens of each row.
        prompts: of which so many are its prompt.
        n_post: how many of a prompt's last tokens are post-instruction tokens.
    """
    positions, ends = torch.arange(max(lengths)), torch.tensor(list(lengths))[:, None]
    now = Running(positions, torch.tensor(list(prompts)), n_post)
    return bool((selected(now, ungated(tokens)) & (positions < ends)).any())


def first_selected(now: Running, selections: Sequence[Selection]) -> Int[Tensor, " row"]:
    """The first token that any selection names, or as many as there are positions if none does."""
    rows, positions = len(now.prompt_lengths), now.positions.shape[-1]
    union = torch.zeros(rows, positions, dtype=torch.bool)
    for chosen in selections:
        union |= selected(now, chosen)
    return torch.where(union.any(dim=1), union.int().argmax(dim=1), positions)


def selected(now: Running, tokens: Selection) -> Bool[Tensor, "row position"]:
    """Which tokens of a forward pass a selection names.

    Raises:
        InputError: whether the prompts meet its condition was not decided.
    """
    if isinstance(tokens, Gated):
        gate = now.gates.get(tokens.condition)
        if gate is None:
            raise InputError(
                f"this call does not decide which prompts to steer ({tokens.condition}); steer by "
                "hooks= of lens.generate, rl.evaluate, rl.activations or rl.sweep."
            )
        return selected(now, tokens.tokens) & gate[:, None]
    lengths = now.prompt_lengths[:, None]
    rows = len(lengths)
    positions = now.positions.expand(rows, -1)
    if not isinstance(tokens, str):
        return torch.isin(positions, torch.tensor(list(tokens), dtype=torch.long))
    match tokens:
        case "all":
            return positions >= 0
        case "prompt":
            return positions < lengths
        case "generated":
            return positions >= lengths
        case "last":
            return positions >= lengths - 1
        case "post-instruction":
            return (positions < lengths) & (positions >= lengths - now.n_post)
        case _:
            raise InputError(f"tokens is {tokens!r}, which names no tokens.")
