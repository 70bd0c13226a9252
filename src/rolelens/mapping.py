"""Directions of one model in another, through a map that is fitted on ordinary prompts."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rolelens.errors import InputError, unique, unknown
from rolelens.lens import Lens, Prompts
from rolelens.residuals import activations, known_layers
from rolelens.vectors import Directions, Null, check_sources
from rolelens.vectors.nulls import derived, matched

Kind: TypeAlias = Literal["procrustes", "ridge"]
PENALTIES = tuple(float(x) for x in np.logspace(-4, 4, 9))
"""Of the ridge regression, times the mean square of x; leave-one-out errors choose."""


def map_vectors(
    vectors: Directions,
    lens: Lens,
    other: Lens,
    prompts: Prompts,
    layers: Mapping[int, int],
    *,
    kind: Kind = "ridge",
    nulls: int = 0,
    seed: int = 0,
) -> Directions:
    """Carry directions over to another model, of another width or not.

    A linear map from what enters a layer of one model to what enters a layer of the other is fitted
    on both models' activations of the same prompts, none of which knows the directions' names; the
    directions go through it. As nulls the same directions go through maps whose pairs were
    shuffled: what they do as well, any map does.

    Args:
        vectors: directions of the first model.
        lens: that model.
        other: the model that they are carried to.
        prompts: such as base prompts; the map knows only what these span, so take several hundred.
        layers: for each layer of the first model that is carried, one of the other.
        kind: ``ridge``: any linear map, least squares with a penalty; ``procrustes``: a rotation
            (onto the smaller of both spaces) and one scale, which few prompts determine.
        nulls: shuffled maps for each direction, whose results are as long as the direction's.
        seed: of the shuffling.

    Returns:
        Directions of the other model at the given layers, at the last position of ``vectors``.

    Raises:
        InputError: directions of another model or site, an unknown layer or kind, fewer than three
            prompts, or two layers that go to one.
    """
    check_sources(vectors.source, lens.source)
    if kind not in get_args(Kind):
        raise unknown("kind of map", kind, get_args(Kind))
    if vectors.site != "resid_pre":
        raise InputError(
            f"the directions live at {vectors.site!r}; those of resid_pre can be carried over."
        )
    if not layers or len(prompts) < 3 or nulls < 0:
        raise InputError(
            f"{len(prompts)} prompts, {len(layers)} layers and nulls {nulls}: it needs 3 prompts, "
            "1 layer, and 0 nulls or more."
        )
    for layer in layers:
        if layer not in vectors.layers:
            raise unknown("layer", layer, vectors.layers)
    known_layers(other, list(layers.values()))
    unique("layer", list(layers.values()))
    position = vectors.last_position
    at = [-1 if position is None else position]
    x, y = (
        activations(model, prompts, layers=list(which), positions=at)[:, :, 0].double()
        for model, which in ((lens, layers), (other, layers.values()))
    )
    where = vectors.positions.index(position)
    found, drawn = [], []
    for n, layer in enumerate(layers):
        d = vectors.directions[:, vectors.layers.index(layer), where].double()
        mapped = d @ linear_map(x[:, n], y[:, n], kind)
        found.append(mapped)
        others = [
            d @ linear_map(x[:, n], y[order, n], kind) for order in _orders(len(y), nulls, seed)
        ]
        drawn.append([matched(one, mapped) for one in others])
    directions, names, known = [torch.stack(found, dim=1)], list(vectors.names), dict(vectors.nulls)
    for number in range(nulls):
        made = {f"map {number} ~ {name}": Null(name, "map", number) for name in vectors.names}
        directions.append(torch.stack([layer[number] for layer in drawn], dim=1).double())
        names, known = [*names, *made], known | made
    return dataclasses.replace(
        vectors,
        directions=torch.cat(directions).float()[:, :, None],
        names=tuple(names),
        layers=tuple(layers.values()),
        positions=(position,),
        resid_norm=y.norm(dim=-1).mean(dim=0).float()[:, None],
        source=other.source,
        prompts={},
        contrast=f"{vectors.contrast}, carried from {lens.name} by {kind}",
        nulls=known,
    )


def linear_map(
    x: Float[Tensor, "prompt d"], y: Float[Tensor, "prompt e"], kind: Kind = "ridge"
) -> Float[Tensor, "d e"]:
    """The matrix W for which centred x W is nearest to centred y.

    Args:
        x: activations of one model.
        y: of the other, prompt by prompt.
        kind: ``ridge`` or ``procrustes`` (W is a scale times a matrix with orthonormal rows or
            columns, whichever are fewer; the orthogonal Procrustes problem, Schönemann 1966).
    """
    x, y = (part.double() - part.double().mean(dim=0) for part in (x, y))
    if kind == "procrustes":
        u, sizes, v = torch.linalg.svd(x.T @ y, full_matrices=False)
        turn = u @ v
        size = sizes.sum() / (x @ turn).square().sum().clamp(min=1e-300)
        scaled: Tensor = size * turn
        return scaled
    from sklearn.linear_model import RidgeCV

    unit = float(x.square().mean()) * len(x)
    penalties = [unit * penalty for penalty in PENALTIES] if unit else [1.0]
    model = RidgeCV(alphas=penalties, fit_intercept=False).fit(x.numpy(), y.numpy())
    weights: Tensor = torch.from_numpy(np.atleast_2d(model.coef_)).T.contiguous()
    return weights


def _orders(n: int, nulls: int, seed: int) -> Sequence[Tensor]:
    """Permutations of the prompts."""
    return [
        torch.from_numpy(np.random.default_rng(derived(seed, "map", k)).permutation(n))
        for k in range(nulls)
    ]
