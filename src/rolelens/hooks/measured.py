"""What ordinary prompts project to: thresholds for bounds, conditions and alarms."""

import dataclasses
from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rolelens import forward
from rolelens.errors import InputError, listed, unknown
from rolelens.forward import Named, Running
from rolelens.hooks.making import checked_direction, chosen_layers
from rolelens.hooks.steering import Steering
from rolelens.hooks.steps import Step
from rolelens.lens import Lens, Prompts
from rolelens.vectors import Direction, Directions, check_sources

PERCENTILES = (1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 100.0)


def thresholds(
    lens: Lens,
    prompts: Prompts,
    directions: Direction | Directions | Sequence[Direction],
    percentiles: Sequence[float] = PERCENTILES,
    *,
    tokens: Named = "all",
    answers: Sequence[str] | None = None,
    system: str | Sequence[str] | None = None,
) -> pd.DataFrame:
    """Percentiles of the projections of ordinary prompts: bounds of a clamp, gate or alarm.

    All prompts run once, up to the highest layer, however many directions there are.

    Args:
        lens: the model.
        prompts: ordinary ones, as for ``lens.encode``.
        directions: each read at its own layer and site. Zero ones of a set have no row.
        percentiles: from 0 to 100, the least and the greatest projection.
        tokens: which tokens count; take those that are steered. For a condition of
            ``Steering.when`` and for alarms at the prompt ``"last"``.
        answers: an answer to each prompt, whose tokens count, too.
        system: a system prompt for all of them, or one for each.

    Returns:
        A row a direction: ``name``, ``layer``, ``position``, ``mean``, a column a percentile such
        as ``95``, and ``tokens``, how many were read. Projections are in units of the residual
        stream.

    Raises:
        InputError: a percentile outside of 0 to 100, a zero direction, one of another model, or no
            token that is selected.
    """
    chosen = checked_directions(lens, directions)
    for percentile in percentiles:
        if not 0 <= percentile <= 100:
            raise InputError(f"a percentile is {percentile!r}; it has to be from 0 to 100.")
    encoded = lens.encode(prompts, answers, system=system)
    rows = []
    for d, along in zip(chosen, projected(lens, encoded, chosen, tokens), strict=True):
        shares = torch.tensor(list(percentiles), dtype=torch.float64) / 100
        label = {"name": d.name, "layer": d.layer, "position": d.position}
        found = dict(zip(percentiles, torch.quantile(along, shares).tolist(), strict=True))
        rows.append(label | {"mean": float(along.mean())} | found | {"tokens": len(along)})
    return pd.DataFrame(rows)


def mean_ablate(
    direction: Direction,
    lens: Lens,
    prompts: Prompts,
    *,
    layers: Sequence[int] | None = None,
    tokens: Named = "all",
) -> Steering:
    """Mean ablation: the projection on d becomes what it is on the mean over base prompts.

    What enters each layer gets the mean of that layer, over the tokens that are steered. Where all
    tokens are, the first of each prompt counts like the others, though it often projects far beyond
    them: steer others, such as ``"last"``, where it should not.

    Args:
        direction: what is set to its mean.
        lens: the model.
        prompts: base prompts, such as from :func:`rolelens.load_base`.
        layers: where; everywhere by default.
        tokens: which tokens. The mean is over those of the prompts, which have no generated ones.

    Raises:
        InputError: the direction is zero, lives elsewhere than in the residual stream, or was
            measured on another model; an unknown layer; no token that is selected.
    """
    checked_direction(direction, "ablated")
    if direction.site != "resid_pre":
        raise InputError(
            f"a direction at {direction.site!r} cannot be ablated from the residual stream; take "
            "one of the residual stream."
        )
    where = chosen_layers(layers, tuple(range(lens.n_layers)))
    moved = [_at(lens, direction, layer) for layer in where]
    tokens = forward.checked_selection(tokens)
    along = projected(lens, lens.encode(prompts), checked_directions(lens, moved), tokens)
    means = [float(values.mean()) for values in along]
    return Steering(
        Step("fix", direction, mean, (layer,), tokens)
        for mean, layer in zip(means, where, strict=True)
    )


def projected(
    lens: Lens, tokens: forward.Tokens, directions: Sequence[Direction], selection: Named
) -> list[Float[Tensor, " token"]]:
    """Projections of selected tokens onto directions, float64; the order is that of the rows.

    Raises:
        InputError: the selection names no token.
    """
    selection = forward.checked_selection(selection)
    sites: dict[str, list[int]] = {}
    for d in directions:
        sites.setdefault(d.site, []).append(d.layer)
    found: list[dict[int, Tensor]] = [{} for _ in directions]
    for site, at in sites.items():
        layers = sorted(set(at))
        for row, x in forward.token_states(lens.model, tokens, layers, site):
            now = Running(
                torch.arange(x.shape[1]), torch.tensor([tokens.prompt_lengths[row]]), tokens.n_post
            )
            inside = forward.selected(now, selection)[0]
            states = x[:, inside.to(x.device)].double().cpu()
            for n, d in enumerate(directions):
                if d.site == site:
                    found[n][row] = states[layers.index(d.layer)] @ d.unit.double().cpu()
    along = [torch.cat([values[row] for row in sorted(values)]) for values in found]
    if along and not len(along[0]):
        raise InputError(
            f"tokens is {selection!r}, which is none of the tokens of these prompts; pass answers, "
            "or take tokens='last'."
        )
    return along


def checked_directions(
    lens: Lens, directions: Direction | Directions | Sequence[Direction]
) -> list[Direction]:
    """The directions that are meant, if they are of this model and not zero."""
    if isinstance(directions, Directions):
        directions = [d for d in directions if d.norm > 0]
    chosen = [directions] if isinstance(directions, Direction) else listed("directions", directions)
    for d in chosen:
        checked_direction(d, "projected onto")
        check_sources(d.source, lens.source)
        if d.layer not in range(lens.n_layers):
            raise unknown("layer", d.layer, range(lens.n_layers))
        _ = d.unit
    return chosen


def _at(lens: Lens, direction: Direction, layer: int) -> Direction:
    """The same direction, read at another layer."""
    return dataclasses.replace(direction, layer=layer)
