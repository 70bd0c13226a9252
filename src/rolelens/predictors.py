"""What tells beforehand whether a direction will steer, and how well that is foretold."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rolelens.errors import InputError
from rolelens.lens import Lens, Prompts
from rolelens.residuals import activations, known_layers, known_positions
from rolelens.stats import projections, separation
from rolelens.vectors import Directions

LEAST = 5
"""Prompts on a side that predictors need."""
SINGLES = 32
"""Prompts or answers of a side that are kept one by one for them, while directions are measured."""
SINGLE_BYTES = 2**30
"""What they may take together; of many sides of a large model fewer are kept."""


def steerability(
    lens: Lens,
    positive: Prompts,
    negative: Prompts,
    *,
    name: str = "contrast",
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
) -> pd.DataFrame:
    """What predicts that the direction between two sets of prompts will steer.

    Directions whose single differences agree, and along which the two sets lie apart, steer more
    reliably (2505.22637, 2407.12404).

    Args:
        lens: the model.
        positive: what the direction points to.
        negative: what it points away from. As many as of the other set are taken for pairs.
        name: of the direction.
        layers: all of them by default.
        positions: post-instruction positions by default.

    Returns:
        A row a layer and position: ``name``, ``layer``, ``position``; ``agreement``, the mean
        cosine of the difference of one pair with the mean of the others (of one positive prompt
        with the mean of the negative ones, where they are no pairs); ``auroc`` of prompts that the
        direction was made without (0.5 is chance); ``discriminability``, the difference of the
        projections' means over their pooled standard deviation; and ``norm``, as a share of the
        mean norm of the negative prompts. NaN where the direction is zero.

    Raises:
        InputError: fewer than five prompts in a set, or as for :func:`rolelens.contrast`.
    """
    for side, prompts in (("positive", positive), ("negative", negative)):
        if isinstance(prompts, str) or len(prompts) < LEAST:
            raise InputError(
                f"the {side} prompts are {str(prompts)[:40]!r}; a list of at least five is needed."
            )
    tokens = [lens.encode(prompts) for prompts in (positive, negative)]
    layers, positions = known_layers(lens, layers), known_positions(tokens[0], positions)
    p, n = (activations(lens, one, layers, positions).double() for one in tokens)
    rows = []
    for k, position in enumerate(positions):
        ours, theirs = p[:, :, k], n[:, :, k]
        paired = len(ours) == len(theirs)
        found = foretold(ours, theirs, layers, paired=paired)
        norms = (ours.mean(dim=0) - theirs.mean(dim=0)).norm(dim=-1)
        shares = norms / theirs.norm(dim=-1).mean(dim=0)
        for row, share in zip(found, shares.tolist(), strict=True):
            label = {"name": name, "layer": row["layer"], "position": position}
            rows.append({**label, **row, "norm": share})
    return pd.DataFrame(rows)


def foretold(
    positive: Float[Tensor, "positive_prompt layer d_model"],
    negative: Float[Tensor, "negative_prompt layer d_model"],
    layers: Sequence[int],
    *,
    paired: bool = False,
) -> list[dict[str, Any]]:
    """The predictors of :func:`steerability`, from residual streams at one position.

    Args:
        positive: of the prompts that the direction points to.
        negative: of those that it points away from.
        layers: names of the layers.
        paired: take the differences of pairs, not those from the mean of the negative prompts.

    Returns:
        One a layer: ``layer``, ``agreement``, ``auroc`` and ``discriminability``.
    """
    p, n = positive.double(), negative.double()
    apart = separation(projections(p, n, layers=list(layers)), resamples=1)
    rows = []
    for at, layer in enumerate(layers):
        ours, theirs = p[:, at], n[:, at]
        d = ours.mean(dim=0) - theirs.mean(dim=0)
        alive = bool(d.norm() > 0)
        each = ours - (theirs if paired else theirs.mean(dim=0))
        rows.append(
            {
                "layer": layer,
                "agreement": _agreement(each) if alive else float("nan"),
                "auroc": apart.auroc[at] if alive else float("nan"),
                "discriminability": _apart(ours @ d, theirs @ d) if alive else float("nan"),
            }
        )
    return rows


def singles_of(sides: int, layers: int, d_model: int) -> int:
    """How many prompts or answers of each side are kept one by one, in float32."""
    each = max(1, 4 * sides * layers * d_model)
    return min(SINGLES, max(LEAST, SINGLE_BYTES // each))


def with_foretold(made: Directions, sides: Mapping[str, tuple[Tensor, Tensor]]) -> Directions:
    """Directions with what predicts that they will steer, where enough is known of single prompts.

    Args:
        made: the directions.
        sides: for each name ``[prompt layer d_model]`` of what its directions point to, and of what
            they point away from.
    """
    known = {
        made.sha_of(name): [
            row
            for row in foretold(positive, negative, made.layers)
            if not math.isnan(row["agreement"])
        ]
        for name, (positive, negative) in sides.items()
        if min(len(positive), len(negative)) >= LEAST
    }
    return dataclasses.replace(made, foretold=known)


def _agreement(each: Float[Tensor, "prompt d"]) -> float:
    """Mean cosine of each difference with the mean of the others."""
    others = (each.sum(dim=0) - each) / (len(each) - 1)
    return float(torch.nn.functional.cosine_similarity(each, others, dim=-1).mean())


def _apart(ours: Float[Tensor, " ours"], theirs: Float[Tensor, " theirs"]) -> float:
    """Difference of two means over the pooled standard deviation."""
    squares = sum((x - x.mean()).square().sum() for x in (ours, theirs))
    pooled = (squares / (len(ours) + len(theirs) - 2)) ** 0.5
    return float((ours.mean() - theirs.mean()) / pooled)
