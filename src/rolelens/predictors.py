"""What tells beforehand whether a direction will steer, and how well that is foretold."""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rolelens.errors import InputError
from rolelens.lens import Lens, Prompts
from rolelens.residuals import activations, known_layers, known_positions
from rolelens.stats import projections, separation


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
        if isinstance(prompts, str) or len(prompts) < 5:
            raise InputError(
                f"the {side} prompts are {str(prompts)[:40]!r}; a list of at least five is needed."
            )
    tokens = [lens.encode(prompts) for prompts in (positive, negative)]
    layers, positions = known_layers(lens, layers), known_positions(tokens[0], positions)
    p, n = (activations(lens, one, layers, positions).double() for one in tokens)
    rows = []
    for k, position in enumerate(positions):
        apart = separation(projections(p[:, :, k], n[:, :, k], layers=layers), resamples=1)
        for at, layer in enumerate(layers):
            ours, theirs = p[:, at, k], n[:, at, k]
            d = ours.mean(dim=0) - theirs.mean(dim=0)
            alive = bool(d.norm() > 0)
            row = {"name": name, "layer": layer, "position": position}
            rows.append(
                row
                | {
                    "agreement": _agreement(ours, theirs) if alive else float("nan"),
                    "auroc": apart.auroc[at] if alive else float("nan"),
                    "discriminability": _apart(ours @ d, theirs @ d) if alive else float("nan"),
                    "norm": float(d.norm() / theirs.norm(dim=-1).mean()),
                }
            )
    return pd.DataFrame(rows)


def _agreement(ours: Float[Tensor, "ours d"], theirs: Float[Tensor, "theirs d"]) -> float:
    """Mean cosine of each difference with the mean of the others."""
    each = ours - (theirs if len(ours) == len(theirs) else theirs.mean(dim=0))
    others = (each.sum(dim=0) - each) / (len(each) - 1)
    return float(torch.nn.functional.cosine_similarity(each, others, dim=-1).mean())


def _apart(ours: Float[Tensor, " ours"], theirs: Float[Tensor, " theirs"]) -> float:
    """Difference of two means over the pooled standard deviation."""
    squares = sum((x - x.mean()).square().sum() for x in (ours, theirs))
    pooled = (squares / (len(ours) + len(theirs) - 2)) ** 0.5
    return float((ours.mean() - theirs.mean()) / pooled)
