"""Null directions: controls that are searched exactly like the directions they imitate.

Each null answers one question, "would a direction without the meaning have done this too?", and
holds something else fixed. Directions come as :class:`Directions`; nulls that need prompts come as
weights of the prompts, so that all of them are estimated in one streamed pass
(:class:`rolelens.vectors.WeightedSums`).
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rolelens.errors import InputError, unknown
from rolelens.vectors.direction import Direction, Null
from rolelens.vectors.directions import Directions


def gaussian(vectors: Directions, n: int = 1, seed: int = 0) -> Directions:
    """Gaussian directions with the norm of each direction in each cell.

    Holds fixed: the norm, hence the strength of steering at equal alpha. Caveat: the noise is
    isotropic and independent between cells, while residual streams fill few dimensions and a name
    points alike in neighbouring layers; it tells a direction from arbitrary damage, not from
    another meaning.

    Args:
        vectors: the directions that are imitated; a zero stays zero, and nulls among them are not
            imitated.
        n: nulls of each name, named ``"gaussian 0 ~ lawyer"`` and so on.
        seed: with name, number and cell it decides the noise, whatever else is in ``vectors``.

    Raises:
        InputError: ``n`` is below 1, or there are only nulls.
    """
    _enough(n)
    if not vectors.tried:
        raise InputError("there are only nulls to imitate; pass the directions that they imitate.")
    vectors = vectors[list(vectors.tried)]
    noise = [
        _generator(seed, "gaussian", name, k, layer, position).standard_normal(vectors.d_model)
        for name in vectors.names
        for k in range(n)
        for layer in vectors.layers
        for position in vectors.positions
    ]
    shape = (len(vectors.names), n, *vectors.directions.shape[1:])
    drawn = torch.from_numpy(np.stack(noise)).reshape(shape)
    made = named("gaussian", vectors.names, n)
    return dataclasses.replace(
        vectors,
        directions=matched(drawn, vectors.directions[:, None]).flatten(0, 1),
        names=tuple(made),
        nulls=made,
        contrast=f"nulls of {vectors.contrast}",
    )


def others(vectors: Directions, name: str) -> Directions:
    """The directions of all other names that are no nulls.

    Holds fixed: that it is the direction of a role, estimated in the same way. Caveat: it shares
    with the role whatever all roles share, and near roles share more; norms and numbers of prompts
    are not matched.

    Raises:
        InputError: an unknown name, or there is no other.
    """
    if name not in vectors.names:
        raise unknown(vectors.kind, name, vectors.names)
    rest = [other for other in vectors.tried if other != name]
    if not rest:
        raise InputError(f"there is no name but {name!r}; pass the directions of several.")
    return vectors[rest]


def shuffled_labels(
    n_role: int, n_base: int, n: int, seed: int = 0
) -> Float[Tensor, "null prompt"]:
    """Weights of difference-in-means under random labels: +1/n_role and -1/n_base, float64.

    Holds fixed: the prompts of both sets, the sizes of the sets and the estimator. The expected
    squared norm is tr(S) (1/n_role + 1/n_base), with S the covariance of the pooled prompts.
    Caveats: fewer prompts give larger nulls; S contains the difference between the two sets, so
    that a null leans along the direction of the role by about 1/sqrt(n_role + n_base) of it, to
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
    scaled: Tensor = unit * to.double().norm(dim=-1, keepdim=True)
    return scaled.float()


def named(made: str, imitates: Sequence[str], n: int) -> dict[str, Null]:
    """The names of n nulls of each, such as ``"gaussian 0 ~ lawyer"``, and what they are."""
    return {
        f"{made} {number} ~ {name}": Null(name, made, number)
        for name in imitates
        for number in range(n)
    }


def matched_strength(null: Direction, to: Direction, alpha: float) -> float:
    """The alpha at which a null has the strength of a direction at ``alpha``; 0 for a zero null.

    Six digits of the factor, so that a null of the same norm has the same alpha.
    """
    return alpha * float(f"{to.norm / null.norm:.6g}") if null.norm else 0.0


def derived(*key: object) -> int:
    """A seed that depends on all of these and on nothing else."""
    return int(hashlib.sha256(json.dumps([str(part) for part in key]).encode()).hexdigest(), 16)


def _generator(*key: object) -> np.random.Generator:
    return np.random.default_rng(derived(*key))


def _enough(n: int) -> None:
    if n < 1:
        raise InputError(f"n is {n}; it has to be at least 1 null.")
