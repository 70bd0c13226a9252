"""Halves and nulls of role vectors, from weighted sums over the prompts that make the vectors."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch

from rolelens.errors import InputError, unknown
from rolelens.vectors import nulls
from rolelens.vectors.role_vectors import RoleVectors, concat
from rolelens.vectors.sums import WeightedSums

Kind: TypeAlias = Literal["gaussian", "shuffled", "base"]


class Halves:
    """Directions from either half of the prompts; its sums are filled while the prompts run."""

    def __init__(self, counts: Mapping[str, int], seed: int) -> None:
        self.sums = {}
        for name, count in counts.items():
            if count < 4:
                raise InputError(
                    f"{name!r} has {count} prompts, too few for two halves; pass at least 4."
                )
            rng = np.random.default_rng(nulls.derived(seed, "halves", name))
            first = torch.from_numpy(rng.permutation(count)) < count // 2
            weights = torch.stack([first, ~first]).double()
            self.sums[name] = WeightedSums(weights / weights.sum(dim=1, keepdim=True))

    def of(self, found: RoleVectors) -> tuple[RoleVectors, RoleVectors]:
        """The halves of these vectors."""
        nu = self.sums["base"].sums
        made = []
        for half in (0, 1):
            d = torch.stack([self.sums[role].sums[half] - nu[half] for role in found.roles])
            directions = d.float().cpu()
            # What is the same in every prompt cancels, but for the rounding of float64.
            directions[found.directions.norm(dim=-1) == 0] = 0
            contrast = f"half {half} of {found.contrast}"
            made.append(dataclasses.replace(found, directions=directions, contrast=contrast))
        return made[0], made[1]


class Nulls:
    """Nulls of some roles; its sums are filled while the prompts run."""

    def __init__(
        self,
        counts: Mapping[str, int],
        roles: tuple[str, ...],
        kinds: Sequence[Kind],
        n: int,
        norms: str,
        seed: int,
    ) -> None:
        self.names = _null_names(roles, kinds, n, norms)
        self.roles, self.n, self.norms, self.seed = roles, n, norms, seed
        base = counts["base"]
        labels = {
            role: nulls.shuffled_labels(
                counts[role], base, n, nulls.derived(seed, "shuffled", role)
            )
            for role in roles
            if "shuffled" in kinds
        }
        self.sums = {
            role: WeightedSums(weights[:, : counts[role]]) for role, weights in labels.items()
        }
        of_base = [weights[:, counts[role] :] for role, weights in labels.items()]
        halves = nulls.base_against_base(base, n, nulls.derived(seed, "base"))
        self.sums["base"] = WeightedSums(torch.cat([*of_base, halves]))

    def of(self, found: RoleVectors) -> RoleVectors:
        """The nulls, beside these vectors."""
        found = found[list(self.roles)]
        *rests, halved = self.sums["base"].sums.reshape(-1, self.n, *found.directions.shape[1:])
        own_sums = [sums.sums for name, sums in self.sums.items() if name != "base"]
        raw = {
            "shuffled": [own + rest for own, rest in zip(own_sums, rests, strict=True)],
            "base": [halved],
        }
        parts = []
        for kind, names in self.names.items():
            if kind == "gaussian":
                parts.append(nulls.gaussian(found, self.n, self.seed))
                continue
            own = torch.stack(raw[kind]).cpu()
            # What is the same in every prompt cancels, but for the rounding of float64.
            own[own.norm(dim=-1) <= 1e-12 * found.resid_norm] = 0
            if self.norms == "matched":
                own = nulls.matched(own, found.directions[:, None])
            parts.append(
                dataclasses.replace(
                    found,
                    directions=own.flatten(0, 1).float(),
                    roles=names,
                    contrast=f"nulls of {found.contrast}",
                )
            )
        return concat(*parts)


def _null_names(
    roles: tuple[str, ...], kinds: Sequence[Kind], n: int, norms: str
) -> dict[Kind, tuple[str, ...]]:
    if isinstance(kinds, str) or not kinds or len(set(kinds)) < len(kinds):
        raise InputError(f"kinds is {kinds!r}; pass a list that names each kind once.")
    for kind in kinds:
        if kind not in get_args(Kind):
            raise unknown("kind of null", kind, get_args(Kind))
    if n < 1:
        raise InputError(f"n is {n}; it has to be at least 1 null of each kind and role.")
    if norms not in ("matched", "raw"):
        raise InputError(f"norms is {norms!r}; it has to be 'matched' or 'raw'.")
    names = {kind: nulls.names(kind, roles, n) for kind in kinds}
    if "base" in kinds and norms == "raw":
        names["base"] = tuple(f"base {k}" for k in range(n))
    for name in (name for own in names.values() for name in own):
        if name in roles:
            raise InputError(f"a role is called {name!r}, which is the name of a null; rename it.")
    return names
