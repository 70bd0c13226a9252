"""Which prompts meet a condition, decided before they are steered.

A gate belongs to a prompt and not to a pass, so that it stays what it is while an answer grows, and
a row of a batch has that of its prompt alone.
"""

import dataclasses
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rolelens.errors import InputError, unknown
from rolelens.forward import memory, models
from rolelens.forward.models import Hook, HookedModel
from rolelens.forward.native import native
from rolelens.forward.operations import SITES
from rolelens.forward.selection import Condition, Gated, Selection, unsteered
from rolelens.forward.tokens import Batch, Tokens
from rolelens.vectors import check_sources


class _Read(Exception):  # noqa: N818
    """Ends a pass when all was read."""


def decided(model: HookedModel, tokens: Tokens, selections: Iterable[Selection]) -> Tokens:
    """The tokens, with the gates that selections ask for: one pass over the prompts, unsteered.

    Raises:
        InputError: a direction of a condition was measured on another model, or the model has no
            such layer or width.
    """
    asked = {chosen.condition for chosen in selections if isinstance(chosen, Gated)}
    missing = [condition for condition in asked if condition not in tokens.gates]
    if not missing:
        return tokens
    for condition in missing:
        check_sources(condition.direction.source, tokens.source)
        if condition.direction.layer not in range(model.cfg.n_layers):
            raise unknown("layer", condition.direction.layer, range(model.cfg.n_layers))
    prompts, rows = tokens.distinct_prompts()
    met = {condition: torch.zeros(len(prompts), dtype=torch.bool) for condition in missing}
    read = partial(_ends, model, missing)
    for batch, ends in memory.batched(model, prompts, read):
        for condition, gate in met.items():
            x, unit = ends[_point(condition)], condition.direction.unit
            if x.shape[-1] != len(unit):
                raise InputError(
                    f"the direction of {condition.direction.name!r} is {len(unit)} wide, and the "
                    f"activations that it is a condition on are {x.shape[-1]} wide."
                )
            gate[batch.rows] = condition.holds(x.double() @ unit.double().cpu())
    gates = {**tokens.gates, **{condition: gate[rows] for condition, gate in met.items()}}
    return dataclasses.replace(tokens, gates=gates)


def _point(condition: Condition) -> str:
    return f"blocks.{condition.direction.layer}.{SITES[condition.direction.site]}"


def _ends(
    model: HookedModel, conditions: list[Condition], batch: Batch
) -> dict[str, Float[Tensor, "row d"]]:
    """The activations at the last token of each prompt, where conditions read them."""
    found: dict[str, Tensor] = {}
    names = sorted({_point(condition) for condition in conditions})
    readers: list[Hook] = [
        (name, partial(_keep, found, name, batch.lengths - 1, len(names))) for name in names
    ]
    token = unsteered.set(True)
    try:
        with torch.no_grad(), models.hooked(model, readers), native(model, fused=False):
            models.run(model, batch.ids)
    except _Read:
        return found
    finally:
        unsteered.reset(token)
    raise InputError(f"the model ran to its end without passing {names[-1]!r}.")


def _keep(
    found: dict[str, Tensor], name: str, last: Tensor, n: int, x: Tensor, hook: Any = None
) -> None:
    rows = torch.arange(len(x), device=x.device)
    found[name] = x[rows, last.to(x.device)].float().cpu()
    if len(found) == n:
        raise _Read
