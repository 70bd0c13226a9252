"""How well two sets of residual streams separate along a direction."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rolelens.errors import InputError


@dataclass(frozen=True, eq=False)
class Projections:
    """Where held-out prompts stand on the direction from base to role, layer by layer.

    In units of the residual stream, counted from the midpoint of the two means.

    Attributes:
        role: which role.
        layers: the layers.
        of_role: the role prompts.
        of_base: the base prompts.
    """

    role: str
    layers: tuple[int, ...]
    of_role: Float[Tensor, "role_prompt layer"]
    of_base: Float[Tensor, "base_prompt layer"]


@dataclass(frozen=True)
class Separation:
    """How well held-out role prompts separate from held-out base prompts, layer by layer.

    Attributes:
        role: which role.
        layers: the layers.
        auroc: area under the ROC curve; 0.5 is chance.
        low: lower end of the 95 % bootstrap interval.
        high: its upper end.
    """

    role: str
    layers: tuple[int, ...]
    auroc: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def best_layer(self) -> int:
        """The first layer with the highest AUROC."""
        return self.layers[int(np.argmax(self.auroc))]


def projections(
    role_activations: Float[Tensor, "role_prompt layer d_model"],
    base_activations: Float[Tensor, "base_prompt layer d_model"],
    *,
    role: str = "role",
    layers: Sequence[int] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> Projections:
    """Project every prompt on a unit difference-in-means that was fitted without it.

    Args:
        role_activations: residual streams of role prompts at one position.
        base_activations: residual streams of base prompts at the same position.
        role: name, for the record.
        layers: names of the layers; counted from 0 by default.
        folds: number of parts.
        seed: of the cutting into parts.
    """
    counts = (len(role_activations), len(base_activations))
    if min(counts) < folds:
        raise InputError(
            f"{counts[0]} role and {counts[1]} base prompts are too few for {folds} folds."
        )
    rng = np.random.default_rng(seed)
    groups = (role_activations.double(), base_activations.double())
    parts = [torch.tensor(rng.permutation(n) % folds) for n in counts]
    scores = [torch.zeros(n, groups[0].shape[1], dtype=torch.float64) for n in counts]
    for fold in range(folds):
        mu, nu = (x[part != fold].mean(dim=0) for x, part in zip(groups, parts, strict=True))
        # A zero direction, as at layer 0, projects everything on zero.
        unit = (mu - nu) / (mu - nu).norm(dim=-1, keepdim=True).clamp(min=1e-300)
        for x, part, score in zip(groups, parts, scores, strict=True):
            score[part == fold] = ((x[part == fold] - (mu + nu) / 2) * unit).sum(dim=-1)
    n_layers = groups[0].shape[1]
    return Projections(
        role, tuple(range(n_layers)) if layers is None else tuple(layers), scores[0], scores[1]
    )


def separation(projected: Projections, *, resamples: int = 1000, seed: int = 0) -> Separation:
    """AUROC of held-out role prompts against held-out base prompts, with a bootstrap interval.

    Args:
        projected: from :func:`projections`.
        resamples: bootstrap resamples of the prompts.
        seed: of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    first, second = projected.of_role.T[:, :, None], projected.of_base.T[:, None, :]
    wins = ((first > second).double() + 0.5 * (first == second).double()).numpy()
    weights = [rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n for n in wins.shape[1:]]
    resampled = np.einsum("br,lrs,bs->bl", weights[0], wins, weights[1], optimize=True)
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    return Separation(
        role=projected.role,
        layers=projected.layers,
        auroc=tuple(wins.mean(axis=(1, 2)).tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
    )


def separation_map(
    role_activations: Float[Tensor, "role_prompt layer position d_model"],
    base_activations: Float[Tensor, "base_prompt layer position d_model"],
    *,
    layers: Sequence[int],
    positions: Sequence[int],
    role: str = "role",
) -> pd.DataFrame:
    """AUROC of held-out prompts by position (rows) and layer (columns)."""
    rows = []
    for n in range(len(positions)):
        pair = role_activations[:, :, n], base_activations[:, :, n]
        rows.append(separation(projections(*pair, role=role), resamples=1).auroc)
    index = pd.Index(positions, name="position")
    return pd.DataFrame(rows, index=index, columns=pd.Index(layers, name="layer"))
