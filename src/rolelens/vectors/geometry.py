"""How directions lie to each other: alike, shared, reliable. No model is known here."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rolelens.display import Card, Shown
from rolelens.errors import InputError
from rolelens.vectors.direction import Direction, check_finite, position_text
from rolelens.vectors.directions import Directions
from rolelens.vectors.estimators import Labelled


def without_shared(vectors: Directions) -> Directions:
    """Directions without what all names share: each loses its component along their mean.

    Raises:
        InputError: fewer than three names, which have no shared component to speak of.
    """
    if len(vectors.names) < 3:
        raise InputError(
            f"{len(vectors.names)} names have no shared component to speak of; pass at least 3."
        )
    return vectors.project_out(vectors.mean())


def shared(vectors: Directions) -> pd.DataFrame:
    """How much of the directions is common to all names, cell by cell.

    Returns:
        A row for each cell that is not zero: ``share`` of the squared norms that lies along the
        mean of all names, ``cosine``, the mean over pairs of names, and
        ``cosine_without_shared``, the same without what is shared.

    Raises:
        InputError: fewer than three names.
    """
    rest = without_shared(vectors)
    d = vectors.directions.double()
    along = d.square().sum(dim=(0, 3)) - rest.directions.double().square().sum(dim=(0, 3))
    total = d.square().sum(dim=(0, 3))
    rows = []
    for i, layer in enumerate(vectors.layers):
        for j, position in enumerate(vectors.positions):
            if total[i, j] > 0:
                rows.append(
                    {
                        "layer": layer,
                        "position": position,
                        "share": float(along[i, j] / total[i, j]),
                        "cosine": _off_diagonal(vectors.cosines(layer, position)),
                        "cosine_without_shared": _off_diagonal(rest.cosines(layer, position)),
                    }
                )
    return pd.DataFrame(rows)


def clustering(
    vectors: Directions,
    domains: Mapping[str, str],
    *,
    position: int | None = None,
    permutations: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Whether names of one domain point more alike than names of different domains.

    Args:
        vectors: the directions; compare them with and without :func:`without_shared`.
        domains: the domain of each name.
        position: which position; the last one by default.
        permutations: of the domains among the names, for ``p``.
        seed: of the permutations.

    Returns:
        A row for each layer without zero directions: mean cosine ``within`` and ``between``
        domains, their ``difference``, and ``p``, the share of permutations with a difference as
        large (itself counted).

    Raises:
        InputError: an unknown position, a name without a domain, fewer than two domains, no two
            names of one domain, no permutation, or directions that are zero in every layer.
    """
    for name in vectors.names:
        if name not in domains:
            raise InputError(f"the {vectors.kind} {name!r} has no domain; pass one for it.")
    labels = np.array([domains[name] for name in vectors.names])
    if len(set(labels)) == len(labels) or len(set(labels)) < 2:
        raise InputError("clustering needs two domains, and two names of one of them.")
    if permutations < 1:
        raise InputError(f"permutations is {permutations}; it has to be at least 1.")
    upper = np.triu_indices(len(labels), 1)
    rng = np.random.default_rng(seed)
    drawn = np.stack([labels, *(rng.permutation(labels) for _ in range(permutations))])
    same = np.stack([(row[:, None] == row)[upper] for row in drawn])
    directed = (vectors.directions[:, :, vectors.column(position)].norm(dim=-1) > 0).all(dim=0)
    if not directed.any():
        raise InputError("some direction is zero in every layer; pass layers above 0.")
    rows = []
    for layer, nonzero in zip(vectors.layers, directed.tolist(), strict=True):
        if not nonzero:
            continue
        cosines = vectors.cosines(layer, position).double().numpy()[upper]
        within = (same * cosines).sum(axis=1) / same.sum(axis=1)
        between = (~same * cosines).sum(axis=1) / (~same).sum(axis=1)
        difference = within - between
        rows.append(
            {
                "layer": layer,
                "within": float(within[0]),
                "between": float(between[0]),
                "difference": float(difference[0]),
                "p": float((difference >= difference[0] - 1e-12).mean()),
            }
        )
    return pd.DataFrame(rows)


def reliability(halves: tuple[Directions, Directions], position: int | None = None) -> pd.DataFrame:
    """Split-half cosine of every name by layer, from :func:`rolelens.half_vectors`.

    Args:
        halves: directions from either half of the prompts, with the same names and cells.
        position: which position; the last one by default.

    Returns:
        A row for each name and layer: ``cosine``; with three names or more ``without_shared``, the
        cosine without what all names share. NaN where either direction is zero, as at layer 0.

    Raises:
        InputError: an unknown position, or halves that do not have the same names and cells.
    """
    first, second = halves
    second = second[list(first.names)]
    pairs = {"cosine": (first, second)}
    if len(first.names) > 2:
        pairs["without_shared"] = (without_shared(first), without_shared(second))
    return pd.DataFrame(
        {"name": name, "layer": layer}
        | {
            column: _cosine(*(half.direction(name, layer, position) for half in pair))
            for column, pair in pairs.items()
        }
        for name in first.names
        for layer in first.layers
    )


def agreement(vectors: Directions, position: int | None = None) -> Float[Tensor, "layer layer"]:
    """Cosine between a name's directions at every two layers, as a mean over names.

    Args:
        vectors: the directions.
        position: which position; the last one by default.

    Returns:
        The cosines; NaN in the rows and columns of layers in which a direction is zero.

    Raises:
        InputError: an unknown position.
    """
    x = vectors.directions[:, :, vectors.column(position)].double()
    unit = x / x.norm(dim=-1, keepdim=True)  # a zero has no direction: NaN
    return torch.einsum("nld,nmd->lm", unit, unit).float() / len(vectors.names)


@dataclass(frozen=True, eq=False, repr=False)
class PCA(Shown):
    """Directions of one cell on their first two principal components.

    Attributes:
        names: what the directions stand for.
        coordinates: of each name, in units of the residual stream.
        explained: share of the variance of each of the two components.
        layer: of the cell.
        position: of the cell.
    """

    names: tuple[str, ...]
    coordinates: Float[Tensor, "name 2"]
    explained: tuple[float, float]
    layer: int
    position: int | None

    def table(self) -> pd.DataFrame:
        """A row for each name: ``name``, and the coordinates ``x`` and ``y``."""
        x, y = self.coordinates.T.tolist()
        return pd.DataFrame({"name": self.names, "x": x, "y": y})

    def card(self) -> Card:
        """Cell, number of names, and what the components explain."""
        facts = {
            "names": str(len(self.names)),
            "layer": str(self.layer),
            "position": position_text(self.position),
            "explained": " and ".join(f"{share:.0%}" for share in self.explained),
        }
        return Card("PCA", facts, "rl.plots.pca(result), result.table()")


def pca(vectors: Directions, layer: int, position: int | None = None) -> PCA:
    """The directions of one cell on their first two principal components.

    Components of the directions' differences from their mean; the sign is fixed so that the
    coordinate that is largest in size is positive.

    Args:
        vectors: the directions, of three names or more.
        layer: of the cell.
        position: of the cell; the last one by default.

    Raises:
        InputError: fewer than three names, an unknown cell, or directions that are all the same.
    """
    if len(vectors.names) < 3:
        raise InputError(f"{len(vectors.names)} names span no plane; pass at least 3.")
    cell = [vectors.direction(name, layer, position) for name in vectors.names]
    d = torch.stack([direction.vector for direction in cell]).double()
    u, s, _ = torch.linalg.svd(d - d.mean(dim=0), full_matrices=False)
    if not s[0] > 0:
        raise InputError(
            f"all directions of layer {layer} are the same, so they have no components; take a "
            "higher layer."
        )
    x = u[:, :2] * s[:2]
    x = x * torch.sign(x.gather(0, x.abs().argmax(dim=0, keepdim=True)))
    explained = s.square() / s.square().sum()
    return PCA(
        vectors.names,
        x.float(),
        (float(explained[0]), float(explained[1])),
        layer,
        cell[0].position,
    )


def learning_curve(
    positive: Float[Tensor, "positive_prompt d_model"],
    base: Float[Tensor, "base_prompt d_model"],
    sizes: tuple[int, ...] = (4, 8, 16, 32, 64),
    *,
    repeats: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """How alike two directions are that were made from so many other prompts each.

    Args:
        positive: residual streams of role prompts in one cell.
        base: the same of base prompts.
        sizes: prompts of each of the four sets; sizes for which there are too few are left out.
        repeats: draws of a size.
        seed: of the draws.

    Returns:
        A row for each size: mean ``cosine`` over the draws, its 5 % and 95 % quantiles ``low`` and
        ``high``.

    Raises:
        InputError: too few prompts for any size, a size or ``repeats`` below 1, or activations
            that are not finite.
    """
    if min(sizes) < 1 or repeats < 1:
        raise InputError(f"sizes is {sizes} and repeats {repeats}; each has to be at least 1.")
    check_finite("the activations", positive)
    check_finite("the base activations", base)
    rng = np.random.default_rng(seed)
    rows = []
    for size in sizes:
        if 2 * size > min(len(positive), len(base)):
            continue
        cosines = []
        for _ in range(repeats):
            pair = []
            orders = [torch.from_numpy(rng.permutation(len(x))) for x in (positive, base)]
            for part in (slice(0, size), slice(size, 2 * size)):
                mu, nu = (
                    x[order[part]].double().mean(dim=0)
                    for x, order in zip((positive, base), orders, strict=True)
                )
                pair.append(mu - nu)
            cosines.append(float(torch.cosine_similarity(pair[0], pair[1], dim=0)))
        low, high = np.quantile(cosines, [0.05, 0.95])
        rows.append({"prompts": size, "cosine": float(np.mean(cosines)), "low": low, "high": high})
    if not rows:
        raise InputError(
            f"{min(len(positive), len(base))} prompts are too few for two sets of {min(sizes)}; "
            "pass more prompts or smaller sizes."
        )
    return pd.DataFrame(rows)


def consistency(
    positive: Float[Tensor, "positive_prompt *cell d_model"],
    base: Float[Tensor, "base_prompt *cell d_model"],
) -> Float[Tensor, "*cell"]:
    """Mean cosine between the differences of every two role prompts from the base mean.

    Low values predict that adding the mean does not steer (2407.12404).

    Args:
        positive: residual streams of role prompts.
        base: the same of base prompts.

    Raises:
        InputError: fewer than two role prompts, no base prompt, or activations that are not finite.
    """
    if len(positive) < 2 or not len(base):
        raise InputError(
            f"there are {len(positive)} role and {len(base)} base prompts; pass at least 2 role "
            "prompts to compare and 1 base prompt."
        )
    check_finite("the activations", positive)
    check_finite("the base activations", base)
    differences = positive.double() - base.double().mean(dim=0)
    unit = torch.nn.functional.normalize(differences, dim=-1)
    n = len(unit)
    diagonal = unit.norm(dim=-1).square().sum(dim=0)
    mean: Tensor = (unit.sum(dim=0).square().sum(dim=-1) - diagonal) / (n * (n - 1))
    return mean.float()


def magnitudes(labelled: Labelled) -> pd.DataFrame:
    """How large each group's difference is, and how far it points where the others do.

    Where the two hardly go together, a plain mean follows the largest and not the most typical
    (2602.14143).

    Returns:
        A row for each ``group``: ``magnitude``, the norm of its difference, and ``consistency``,
        the cosine with the mean of all others' differences of norm 1.

    Raises:
        InputError: there are fewer than two groups.
    """
    differences = labelled.differences
    if len(differences) < 2:
        raise InputError("one group has no other to compare with; pass at least 2.")
    unit = torch.nn.functional.normalize(differences, dim=-1)
    others = unit.sum(dim=0) - unit
    return pd.DataFrame(
        {
            "group": labelled.groups,
            "magnitude": differences.norm(dim=-1).numpy(),
            "consistency": torch.cosine_similarity(unit, others, dim=-1).numpy(),
        }
    )


def _cosine(one: Direction, other: Direction) -> float:
    return one.cosine(other) if one.norm and other.norm else float("nan")


def _off_diagonal(cosines: Float[Tensor, "name name"]) -> float:
    n = len(cosines)
    return float((cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1)))
