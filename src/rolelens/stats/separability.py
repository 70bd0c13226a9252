"""How well two sets of residual streams separate along a direction."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rolelens.display import Card, Shown
from rolelens.errors import InputError, unique


@dataclass(frozen=True, eq=False, repr=False)
class Projections(Shown):
    """Where held-out prompts stand on the direction from base to positive prompts, by layer.

    In units of the residual stream, counted from the midpoint of the two means.

    Attributes:
        name: what the positive prompts are of, such as a role.
        layers: the layers.
        positive: the prompts of that name.
        base: the base prompts.

    Raises:
        InputError: the numbers do not fit the layers, or are not finite.
    """

    name: str
    layers: tuple[int, ...]
    positive: Float[Tensor, "positive_prompt layer"]
    base: Float[Tensor, "base_prompt layer"]

    def __post_init__(self) -> None:
        unique("layer", self.layers)
        _checked(self.name, self.positive, self.base)
        if self.positive.shape[1] != len(self.layers):
            raise InputError(
                f"projections on {self.positive.shape[1]} layers do not fit the layers "
                f"{list(self.layers)}; name each layer once."
            )

    def card(self) -> Card:
        """Name, numbers of prompts, and layers."""
        facts = {
            "name": self.name,
            "prompts": f"{len(self.positive)} and {len(self.base)} base",
            "layers": f"{self.layers[0]} to {self.layers[-1]}",
        }
        return Card("Projections", facts, "rl.separation(result), rl.plots.projections(result)")


@dataclass(frozen=True, repr=False)
class Separation(Shown):
    """How well held-out prompts of a name separate from held-out base prompts, layer by layer.

    Attributes:
        name: what the positive prompts are of, such as a role.
        layers: the layers.
        auroc: area under the ROC curve; 0.5 is chance.
        low: lower end of the 95 % bootstrap interval.
        high: its upper end.
    """

    name: str
    layers: tuple[int, ...]
    auroc: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def best_layer(self) -> int:
        """The first layer with the highest AUROC."""
        return self.layers[int(np.argmax(self.auroc))]

    def table(self) -> pd.DataFrame:
        """A row for each layer: ``name``, ``layer``, ``auroc``, ``low`` and ``high``."""
        columns = {"auroc": self.auroc, "low": self.low, "high": self.high}
        return pd.DataFrame({"name": self.name, "layer": self.layers} | columns)

    def card(self) -> Card:
        """Name, layers, and the AUROC of the best one."""
        best = self.layers.index(self.best_layer)
        facts = {
            "name": self.name,
            "layers": f"{self.layers[0]} to {self.layers[-1]}",
            "best layer": f"{self.best_layer} (AUROC {self.auroc[best]:.3f}, "
            f"{self.low[best]:.3f} to {self.high[best]:.3f})",
        }
        return Card("Separation", facts, "rl.plots.separation(result), result.table()")


def projections(
    positive: Float[Tensor, "positive_prompt layer d_model"],
    base: Float[Tensor, "base_prompt layer d_model"],
    *,
    name: str = "role",
    layers: Sequence[int] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> Projections:
    """Project each prompt on a unit difference-in-means that was fitted without it.

    Args:
        positive: residual streams of the prompts of a role at one position.
        base: residual streams of base prompts at the same position.
        name: what the positive prompts are of, for the record.
        layers: names of the layers; counted from 0 by default.
        folds: number of parts, of which one at a time is held out.
        seed: of the cutting into parts.

    Raises:
        InputError: fewer than two folds, fewer prompts than folds, activations of different layers
            or widths, or activations that are not finite.
    """
    counts = (len(positive), len(base))
    if folds < 2:
        raise InputError(f"folds is {folds}; at least 2 are needed to hold one out.")
    if min(counts) < folds:
        raise InputError(
            f"{counts[0]} prompts of {name!r} and {counts[1]} base prompts are too few for {folds} "
            "folds; pass more prompts or fewer folds."
        )
    _checked(name, positive, base)
    rng = np.random.default_rng(seed)
    groups = (positive.double(), base.double())
    parts = [torch.tensor(rng.permutation(n) % folds) for n in counts]
    scores = [torch.zeros(n, groups[0].shape[1], dtype=torch.float64) for n in counts]
    for fold in range(folds):
        mu, nu = (x[part != fold].mean(dim=0) for x, part in zip(groups, parts, strict=True))
        # A zero direction, as at layer 0, projects everything on zero.
        unit = (mu - nu) / (mu - nu).norm(dim=-1, keepdim=True).clamp(min=1e-300)
        for x, part, score in zip(groups, parts, scores, strict=True):
            score[part == fold] = ((x[part == fold] - (mu + nu) / 2) * unit).sum(dim=-1)
    known = range(groups[0].shape[1]) if layers is None else layers
    return Projections(name, tuple(known), scores[0], scores[1])


def separation(projected: Projections, *, resamples: int = 1000, seed: int = 0) -> Separation:
    """AUROC of held-out prompts against held-out base prompts, with a bootstrap interval.

    Args:
        projected: from :func:`projections`.
        resamples: bootstrap resamples of the prompts.
        seed: of the bootstrap.

    Raises:
        InputError: fewer than two prompts in either set, or no resamples.
    """
    counts = (len(projected.positive), len(projected.base))
    if min(counts) < 2 or resamples < 1:
        raise InputError(
            f"{projected.name!r} has {counts[0]} prompts, base has {counts[1]}, and resamples is "
            f"{resamples}; an AUROC with an interval needs 2, 2 and 1 at least."
        )
    rng = np.random.default_rng(seed)
    first, second = projected.positive.T[:, :, None], projected.base.T[:, None, :]
    wins = ((first > second).double() + 0.5 * (first == second).double()).numpy()
    weights = [rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n for n in wins.shape[1:]]
    resampled = np.einsum("br,lrs,bs->bl", weights[0], wins, weights[1], optimize=True)
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    return Separation(
        name=projected.name,
        layers=projected.layers,
        auroc=tuple(wins.mean(axis=(1, 2)).tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
    )


def separation_map(
    positive: Float[Tensor, "positive_prompt layer position d_model"],
    base: Float[Tensor, "base_prompt layer position d_model"],
    *,
    layers: Sequence[int],
    positions: Sequence[int],
    name: str = "role",
) -> pd.DataFrame:
    """AUROC of held-out prompts by position (rows) and layer (columns).

    Args:
        positive: residual streams of the prompts of a role.
        base: residual streams of base prompts.
        layers: names of the layers.
        positions: names of the positions.
        name: what the positive prompts are of.

    Raises:
        InputError: as for :func:`projections`, or positions that do not fit the activations.
    """
    unique("position", positions)
    if positive.shape[2] != len(positions) or base.shape[2] != len(positions):
        raise InputError(
            f"activations at {positive.shape[2]} and {base.shape[2]} positions do not fit the "
            f"positions {list(positions)}; name each position once."
        )
    rows = [
        separation(
            projections(positive[:, :, n], base[:, :, n], name=name, layers=layers), resamples=1
        ).auroc
        for n in range(len(positions))
    ]
    index = pd.Index(positions, name="position")
    return pd.DataFrame(rows, index=index, columns=pd.Index(layers, name="layer"))


def _checked(name: str, positive: Tensor, base: Tensor) -> None:
    """Refuse numbers of different layers or widths, and those that are not finite."""
    if positive.shape[1:] != base.shape[1:]:
        raise InputError(
            f"{name!r} of shape {tuple(positive.shape)} and base of shape {tuple(base.shape)} are "
            "not of the same layers and width; measure both in the same way."
        )
    for whose, values in ((repr(name), positive), ("base", base)):
        if not torch.isfinite(values).all():
            raise InputError(
                f"the numbers of {whose} are not all finite; measure them again in float32."
            )
