"""Null directions: controls that are searched exactly like a role.

Each null answers one question, "would a direction without the role have done this too?", and holds
something else fixed. Directions come as :class:`RoleVectors`; nulls that need prompts come as
weights of the prompts, so that all of them are estimated in one streamed pass
(:class:`rolelens.vectors.WeightedSums`).
"""

import dataclasses
import hashlib
import json

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rolelens.errors import InputError, unknown
from rolelens.vectors.role_vectors import RoleVectors


def gaussian(vectors: RoleVectors, n: int = 1, seed: int = 0) -> RoleVectors:
    """Gaussian directions with the norm of each role in each cell.

    Holds fixed: the norm, hence the strength of steering at equal alpha. Caveat: the noise is
    isotropic and independent between cells, while residual streams fill few dimensions and a role
    points alike in neighbouring layers; it tells a direction from arbitrary damage, not from
    another meaning.

    Args:
        vectors: the roles that are imitated; a zero stays zero.
        n: nulls of each role, named ``"gaussian 0 ~ lawyer"`` and so on.
        seed: with role, number and cell it decides the noise, whatever else is in ``vectors``.

    Raises:
        InputError: ``n`` is below 1.
    """
    _enough(n)
    noise = [
        _generator(seed, "gaussian", role, k, layer, position).standard_normal(vectors.d_model)
        for role in vectors.roles
        for k in range(n)
        for layer in vectors.layers
        for position in vectors.positions
    ]
    shape = (len(vectors.roles), n, *vectors.directions.shape[1:])
    drawn = torch.from_numpy(np.stack(noise)).reshape(shape)
    return dataclasses.replace(
        vectors,
        directions=matched(drawn, vectors.directions[:, None]).flatten(0, 1),
        roles=names("gaussian", vectors.roles, n),
        contrast=f"nulls of {vectors.contrast}",
    )


def other_roles(vectors: RoleVectors, role: str) -> RoleVectors:
    """The vectors of all other roles.

    Holds fixed: that it is the direction of a role, estimated in the same way. Caveat: it shares
    with the role whatever all roles share, and near roles share more; norms and numbers of prompts
    are the roles' own.

    Raises:
        InputError: an unknown role, or there is no other.
    """
    if role not in vectors.roles:
        raise unknown("role", role, vectors.roles)
    others = [name for name in vectors.roles if name != role]
    if not others:
        raise InputError(f"there is no role but {role!r}; pass vectors of several roles.")
    return vectors[others]


def shuffled_labels(
    n_role: int, n_base: int, n: int, seed: int = 0
) -> Float[Tensor, "null prompt"]:
    """Weights of difference-in-means under random labels: +1/n_role and -1/n_base, float64.

    Holds fixed: the prompts of both sets, the sizes of the sets and the estimator. The expected
    squared norm is tr(S) (1/n_role + 1/n_base), with S the covariance of the pooled prompts.
    Caveats: fewer prompts give larger nulls; S contains the difference between the two sets, so
    that a null leans along the role's own direction by about 1/sqrt(n_role + n_base) of it, to
    either side; in a pool of a few prompts the true labels may be drawn.

    Args:
        n_role: role prompts, which come first in the pool.
        n_base: base prompts, which follow.
        n: how many relabellings; the first ones do not depend on it.
        seed: of the relabellings.

    Raises:
        InputError: an empty set, or ``n`` is below 1.
    """
    _enough(n)
    if min(n_role, n_base) < 1:
        raise InputError(
            f"{n_role} role and {n_base} base prompts have no labels to shuffle; at least one of "
            "each is needed."
        )
    generator = _generator(seed)
    values = np.repeat([1 / n_role, -1 / n_base], [n_role, n_base])
    return torch.from_numpy(np.stack([generator.permutation(values) for _ in range(n)]))


def base_against_base(n_base: int, n: int, seed: int = 0) -> Float[Tensor, "null prompt"]:
    """Weights of one random half of the base prompts against the other: +1/half, -1/half, float64.

    Holds fixed: the base prompts and the estimator; no role prompt enters. The expected squared
    norm is tr(S) 2/half, with S the covariance of the base prompts. Caveats: a half is fewer
    prompts than the contrast has, which makes nulls larger than sampling noise in the role's
    direction; base prompts may vary less, or in other dimensions, than role prompts.

    Args:
        n_base: base prompts; of an odd number one, drawn at random, gets weight 0.
        n: how many pairs of halves; the first ones do not depend on it.
        seed: of the halves.

    Raises:
        InputError: fewer than two base prompts, or ``n`` is below 1.
    """
    _enough(n)
    if n_base < 2:
        raise InputError(f"{n_base} base prompts have no halves; at least two are needed.")
    generator = _generator(seed)
    half = n_base // 2
    values = np.repeat([1 / half, -1 / half, 0.0], [half, half, n_base % 2])
    return torch.from_numpy(np.stack([generator.permutation(values) for _ in range(n)]))


def matched(
    directions: Float[Tensor, "*#cell d_model"], to: Float[Tensor, "*#cell d_model"]
) -> Float[Tensor, "*cell d_model"]:
    """Directions with the norms of others, float32; where either is zero, zero."""
    unit = directions / directions.double().norm(dim=-1, keepdim=True).clamp(min=1e-300)
    found: Tensor = unit * to.double().norm(dim=-1, keepdim=True)
    return found.float()


def names(kind: str, roles: tuple[str, ...], n: int) -> tuple[str, ...]:
    """Names of n nulls of each role: ``"gaussian 0 ~ lawyer"``."""
    return tuple(f"{kind} {k} ~ {role}" for role in roles for k in range(n))


def factor(vectors: RoleVectors, null: str, role: str, layer: int, position: int) -> float:
    """What a null's alpha is multiplied by to be as strong as a role's there; 0 of a zero null.

    Six digits of it, so that a null of the same norm has the same alpha.
    """
    norm = vectors.direction(null, layer, position).norm
    return float(f"{vectors.direction(role, layer, position).norm / norm:.6g}") if norm else 0.0


def imitated(name: str) -> str:
    """The role that a null of this name imitates; of a role's own name, an empty text."""
    return name.partition(" ~ ")[2]


def derived(*key: object) -> int:
    """A seed that depends on all of these and on nothing else."""
    return int(hashlib.sha256(json.dumps([str(part) for part in key]).encode()).hexdigest(), 16)


def _generator(*key: object) -> np.random.Generator:
    return np.random.default_rng(derived(*key))


def _enough(n: int) -> None:
    if n < 1:
        raise InputError(f"n is {n}; it has to be at least 1 null.")
