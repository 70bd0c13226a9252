"""Halves and nulls of directions, from weighted sums over the prompts that make the directions."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch

from rolelens.errors import InputError, unknown
from rolelens.vectors import nulls
from rolelens.vectors.direction import Null
from rolelens.vectors.directions import Directions, concat
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

    def of(self, vectors: Directions) -> tuple[Directions, Directions]:
        """The halves of these directions."""
        nu = self.sums["base"].sums
        halves = []
        for half in (0, 1):
            d = torch.stack([self.sums[name].sums[half] - nu[half] for name in vectors.names])
            directions = d.float().cpu()
            # What is the same in every prompt cancels, but for the rounding of float64.
            directions[vectors.directions.norm(dim=-1) == 0] = 0
            contrast = f"half {half} of {vectors.contrast}"
            halves.append(dataclasses.replace(vectors, directions=directions, contrast=contrast))
        return halves[0], halves[1]


class Folds:
    """Directions from all folds of the prompts but one; its sums are filled as prompts run."""

    def __init__(self, counts: Mapping[str, int], k: int, seed: int) -> None:
        self.k = k
        self.sums = {}
        for name, count in counts.items():
            if not 2 <= k <= count:
                raise InputError(
                    f"k is {k}, and {name!r} has {count} prompts; it has to be from 2 to as many."
                )
            rng = np.random.default_rng(nulls.derived(seed, "folds", name))
            fold = torch.from_numpy(rng.permutation(count)) % k
            weights = torch.stack([fold != n for n in range(k)]).double()
            self.sums[name] = WeightedSums(weights / weights.sum(dim=1, keepdim=True))

    def of(self, vectors: Directions) -> list[Directions]:
        """These directions, made again without each fold."""
        nu = self.sums["base"].sums
        remade = []
        for n in range(self.k):
            d = torch.stack([self.sums[name].sums[n] - nu[n] for name in vectors.names])
            directions = d.float().cpu()
            # What is the same in every prompt cancels, but for the rounding of float64.
            directions[vectors.directions.norm(dim=-1) == 0] = 0
            contrast = f"{vectors.contrast}, without fold {n} of {self.k}"
            remade.append(dataclasses.replace(vectors, directions=directions, contrast=contrast))
        return remade


class Nulls:
    """Nulls of some names; its sums are filled while the prompts run."""

    def __init__(
        self,
        counts: Mapping[str, int],
        names: tuple[str, ...],
        kinds: Sequence[Kind],
        n: int,
        norms: str,
        seed: int,
    ) -> None:
        self.made = _null_names(names, kinds, n, norms)
        self.names, self.n, self.norms, self.seed = names, n, norms, seed
        base = counts["base"]
        labels = {
            name: nulls.shuffled_labels(
                counts[name], base, n, nulls.derived(seed, "shuffled", name)
            )
            for name in names
            if "shuffled" in kinds
        }
        self.sums = {
            name: WeightedSums(weights[:, : counts[name]]) for name, weights in labels.items()
        }
        of_base = [weights[:, counts[name] :] for name, weights in labels.items()]
        halves = nulls.base_against_base(base, n, nulls.derived(seed, "base"))
        self.sums["base"] = WeightedSums(torch.cat([*of_base, halves]))

    def of(self, vectors: Directions) -> Directions:
        """The nulls that imitate these directions."""
        vectors = vectors[list(self.names)]
        *of_base, halved = self.sums["base"].sums.reshape(-1, self.n, *vectors.directions.shape[1:])
        of_names = [sums.sums for name, sums in self.sums.items() if name != "base"]
        raw = {
            "shuffled": [a + b for a, b in zip(of_names, of_base, strict=True)],
            "base": [halved],
        }
        parts = []
        for kind, made in self.made.items():
            if kind == "gaussian":
                parts.append(nulls.gaussian(vectors, self.n, self.seed))
                continue
            drawn = torch.stack(raw[kind]).cpu()
            # What is the same in every prompt cancels, but for the rounding of float64.
            drawn[drawn.norm(dim=-1) <= 1e-12 * vectors.resid_norm] = 0
            if self.norms == "matched":
                drawn = nulls.matched(drawn, vectors.directions[:, None])
            parts.append(
                dataclasses.replace(
                    vectors,
                    directions=drawn.flatten(0, 1).float(),
                    names=tuple(made),
                    nulls=made,
                    contrast=f"nulls of {vectors.contrast}",
                )
            )
        return concat(*parts)


def _null_names(
    names: tuple[str, ...], kinds: Sequence[Kind], n: int, norms: str
) -> dict[Kind, dict[str, Null]]:
    if isinstance(kinds, str) or not kinds or len(set(kinds)) < len(kinds):
        raise InputError(f"kinds is {kinds!r}; pass a list that names each kind once.")
    for kind in kinds:
        if kind not in get_args(Kind):
            raise unknown("kind of null", kind, get_args(Kind))
    if n < 1:
        raise InputError(f"n is {n}; it has to be at least 1 null of each kind and name.")
    if norms not in ("matched", "raw"):
        raise InputError(f"norms is {norms!r}; it has to be 'matched' or 'raw'.")
    made: dict[Kind, dict[str, Null]] = {kind: nulls.named(kind, names, n) for kind in kinds}
    if "base" in kinds and norms == "raw":
        made["base"] = {f"base {k}": Null(None, "base", k) for k in range(n)}
    for null in (null for several in made.values() for null in several):
        if null in names:
            raise InputError(f"a role is called {null!r}, which is the name of a null; rename it.")
    return made
