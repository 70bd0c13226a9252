"""How role vectors lie to each other: alike, shared, reliable. No model is known here."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rolelens.errors import InputError
from rolelens.vectors.estimators import Labelled
from rolelens.vectors.role_vectors import RoleVectors


def own(vectors: RoleVectors) -> RoleVectors:
    """Vectors without what all roles share: every direction loses its component along the mean."""
    if len(vectors.roles) < 3:
        raise InputError(
            f"{len(vectors.roles)} roles have no shared component to speak of; pass at least 3."
        )
    return vectors.project_out(vectors.mean())


def shared(vectors: RoleVectors) -> pd.DataFrame:
    """How much of the roles is common to all of them, cell by cell.

    Returns:
        A row a cell: ``share`` of the squared norms that lies along the mean of all roles,
        ``cosine``, the mean over pairs of roles, and ``own_cosine``, the same without what is
        shared.
    """
    rest = own(vectors)
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
                        "own_cosine": _off_diagonal(rest.cosines(layer, position)),
                    }
                )
    return pd.DataFrame(rows)


def clustering(
    vectors: RoleVectors,
    domains: Mapping[str, str],
    *,
    position: int = -1,
    permutations: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Whether roles of one domain point more alike than roles of different domains.

    Args:
        vectors: the roles; compare them with and without :func:`own`.
        domains: the domain of each role.
        position: post-instruction position.
        permutations: of the domains among the roles, for ``p``.
        seed: of the permutations.

    Returns:
        A row a layer: mean cosine ``within`` and ``between`` domains, their ``difference``, and
        ``p``, the share of permutations with a difference as large (itself counted).
    """
    for role in vectors.roles:
        if role not in domains:
            raise InputError(f"the role {role!r} has no domain; name one for it.")
    names = np.array([domains[role] for role in vectors.roles])
    upper = np.triu_indices(len(names), 1)
    if len(set(names)) == len(names) or len(set(names)) < 2:
        raise InputError("clustering needs two domains, and two roles of one of them.")
    rng = np.random.default_rng(seed)
    drawn = np.stack([names, *(rng.permutation(names) for _ in range(permutations))])
    same = np.stack([(labels[:, None] == labels)[upper] for labels in drawn])
    rows = []
    for layer in vectors.layers:
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


def reliability(halves: tuple[RoleVectors, RoleVectors], position: int = -1) -> pd.DataFrame:
    """Split-half cosine of every role by layer, from :func:`rolelens.half_vectors`.

    Returns:
        A row a role and layer: ``cosine``; with three roles or more ``own``, the same without
        what all roles share.
    """
    first, second = halves
    rest = (own(first), own(second)) if len(first.roles) > 2 else None
    rows = []
    for role in first.roles:
        for layer in first.layers:
            cell = role, layer, position
            row = {
                "role": role,
                "layer": layer,
                "cosine": first.direction(*cell).cosine(second.direction(*cell)),
            }
            if rest is not None:
                row["own"] = rest[0].direction(*cell).cosine(rest[1].direction(*cell))
            rows.append(row)
    return pd.DataFrame(rows)


def agreement(vectors: RoleVectors, position: int = -1) -> Float[Tensor, "layer layer"]:
    """Cosine between a role's directions at every two layers, as a mean over roles."""
    j = vectors.positions.index(position) if position in vectors.positions else None
    if j is None:
        raise InputError(f"no position {position}; there are: {list(vectors.positions)}.")
    unit = torch.nn.functional.normalize(vectors.directions[:, :, j].double(), dim=-1)
    return torch.einsum("rld,rmd->lm", unit, unit).float() / len(vectors.roles)


@dataclass(frozen=True, eq=False)
class PCA:
    """Roles on the first principal components of one cell.

    Attributes:
        table: a row a role: ``x`` and ``y``, in units of the residual stream.
        explained: share of the variance of each of the two.
    """

    table: pd.DataFrame
    explained: tuple[float, float]


def pca(vectors: RoleVectors, layer: int, position: int = -1) -> PCA:
    """The roles' directions of one cell on their first two principal components.

    Components of the roles' differences from their mean; the sign is fixed so that the largest
    coordinate is positive.
    """
    if len(vectors.roles) < 3:
        raise InputError(f"{len(vectors.roles)} roles span no plane; pass at least 3.")
    d = torch.stack([vectors.direction(r, layer, position).vector for r in vectors.roles]).double()
    u, s, _ = torch.linalg.svd(d - d.mean(dim=0), full_matrices=False)
    x = u[:, :2] * s[:2]
    x = x * torch.sign(x.gather(0, x.abs().argmax(dim=0, keepdim=True)))
    variance = s.square() / s.square().sum().clamp(min=1e-300)
    table = pd.DataFrame({"role": vectors.roles, "x": x[:, 0].tolist(), "y": x[:, 1].tolist()})
    return PCA(table, (float(variance[0]), float(variance[1])))


def learning_curve(
    role: Float[Tensor, "role_prompt d_model"],
    base: Float[Tensor, "base_prompt d_model"],
    sizes: tuple[int, ...] = (4, 8, 16, 32, 64),
    *,
    repeats: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """How alike two directions are that were made from so many other prompts each.

    Args:
        role: residual streams of role prompts in one cell.
        base: the same of base prompts.
        sizes: prompts of each of the four sets.
        repeats: draws of a size.
        seed: of the draws.

    Returns:
        A row a size: mean ``cosine`` over the draws, its 5 % and 95 % quantiles ``low``, ``high``.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for size in sizes:
        if 2 * size > min(len(role), len(base)):
            continue
        found = []
        for _ in range(repeats):
            pair = []
            orders = [torch.from_numpy(rng.permutation(len(x))) for x in (role, base)]
            for part in (slice(0, size), slice(size, 2 * size)):
                mu, nu = (
                    x[order[part]].double().mean(dim=0)
                    for x, order in zip((role, base), orders, strict=True)
                )
                pair.append(mu - nu)
            found.append(float(torch.cosine_similarity(pair[0], pair[1], dim=0)))
        low, high = np.quantile(found, [0.05, 0.95])
        rows.append({"prompts": size, "cosine": float(np.mean(found)), "low": low, "high": high})
    if not rows:
        raise InputError(
            f"{min(len(role), len(base))} prompts are too few for two sets of {min(sizes)}."
        )
    return pd.DataFrame(rows)


def consistency(
    role: Float[Tensor, "role_prompt *cell d_model"],
    base: Float[Tensor, "base_prompt *cell d_model"],
) -> Float[Tensor, "*cell"]:
    """Mean cosine between the differences of every two role prompts from the base mean.

    Low values predict that adding the mean does not steer (2407.12404).
    """
    if len(role) < 2:
        raise InputError("one role prompt has no other to be alike; pass at least 2.")
    differences = role.double() - base.double().mean(dim=0)
    unit = torch.nn.functional.normalize(differences, dim=-1)
    n = len(unit)
    counted = unit.norm(dim=-1).square().sum(dim=0)
    mean: Tensor = (unit.sum(dim=0).square().sum(dim=-1) - counted) / (n * (n - 1))
    return mean.float()


def magnitudes(labelled: Labelled) -> pd.DataFrame:
    """How large each group's difference is, and how far it points where the others do.

    Where the two hardly go together, a plain mean follows the largest and not the most typical
    (2602.14143).

    Returns:
        A row a group: ``magnitude``, the norm of its difference, and ``consistency``, the cosine
        with the mean of all others' differences of norm 1.
    """
    differences = labelled.differences
    if len(differences) < 2:
        raise InputError("one group has no other to be alike; pass at least 2.")
    unit = torch.nn.functional.normalize(differences, dim=-1)
    others = unit.sum(dim=0) - unit
    return pd.DataFrame(
        {
            "group": labelled.groups,
            "magnitude": differences.norm(dim=-1).numpy(),
            "consistency": torch.cosine_similarity(unit, others, dim=-1).numpy(),
        }
    )


def _off_diagonal(cosines: Float[Tensor, "role role"]) -> float:
    n = len(cosines)
    return float((cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1)))
