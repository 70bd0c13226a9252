"""Which tokens of a forward pass are edited."""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rolelens.errors import InputError
from rolelens.vectors import Source

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
    """

    positions: Int[Tensor, "*row position"]
    prompt_lengths: Int[Tensor, " row"]
    n_post: int
    source: Source | None = None


running: ContextVar[Running | None] = ContextVar("running", default=None)


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


def selected(now: Running, tokens: Selection) -> Bool[Tensor, "row position"]:
    """Which tokens of a forward pass a selection names."""
    lengths = now.prompt_lengths[:, None]
    rows = len(lengths)
    positions = now.positions.expand(rows, -1)
    if not isinstance(tokens, str):
        if any(position < 0 for position in tokens):
            raise InputError(f"tokens is {list(tokens)}; absolute positions count from 0.")
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
    raise InputError(
        f"tokens is {tokens!r}; it has to be 'all', 'prompt', 'post-instruction', 'generated', "
        "'last' or a list of absolute positions."
    )
