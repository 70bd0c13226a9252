"""Which tokens of a forward pass are edited."""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rolelens.errors import InputError
from rolelens.forward.models import Everywhere
from rolelens.vectors import Source

NAMES = ("all", "prompt", "post-instruction", "generated", "last")
Selection: TypeAlias = (
    Literal["all", "prompt", "post-instruction", "generated", "last"] | Sequence[int]
)
"""Which tokens are edited: a name, or absolute positions (0 is the first token). ``last`` are the
prompt's last token and every generated one: the last of each forward pass under a KV cache."""


@dataclass(frozen=True)
class Running:
    """What hooks may know of the forward pass they are called in.

    Attributes:
        positions: absolute positions of the tokens in this forward pass; with a row each where
            prompts of several lengths are continued.
        prompt_lengths: tokens of each row's prompt.
        n_post: how many of the prompt's last tokens are post-instruction tokens.
        source: the lens that runs it.
        masks: which tokens selections name, as far as hooks have asked.
    """

    positions: Int[Tensor, "*row position"]
    prompt_lengths: Int[Tensor, " row"]
    n_post: int
    source: Source | None = None
    masks: dict[Any, Everywhere] = field(default_factory=dict, repr=False, compare=False)


running: ContextVar[Running | None] = ContextVar("running", default=None)


def checked_selection(tokens: Selection) -> Selection:
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
    return bool((selected(now, tokens) & (positions < ends)).any())


def first_selected(now: Running, selections: Sequence[Selection]) -> Int[Tensor, " row"]:
    """The first token that any selection names, or as many as there are positions if none does."""
    rows, positions = len(now.prompt_lengths), now.positions.shape[-1]
    union = torch.zeros(rows, positions, dtype=torch.bool)
    for chosen in selections:
        union |= selected(now, chosen)
    return torch.where(union.any(dim=1), union.int().argmax(dim=1), positions)


def selected(now: Running, tokens: Selection) -> Bool[Tensor, "row position"]:
    """Which tokens of a forward pass a selection names."""
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
