"""What a sweep runs over: every role, layer, position and alpha."""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch

from rolelens.errors import InputError, listed, unknown
from rolelens.forward import Ablation, Addition, Edit
from rolelens.vectors import Direction, RoleVectors
from rolelens.vectors.direction import RESID_PRE

Change: TypeAlias = Literal["add", "ablate"]


@dataclass(frozen=True, eq=False)
class Cell:
    """One steered configuration, and its direction."""

    direction: Direction
    alpha: float


class Key(NamedTuple):
    """What a cell is called."""

    role: str
    layer: int
    position: int
    alpha: float


UNSTEERED = Key("(unsteered)", -1, 0, 0.0)
"""The model itself, which is a cell of every run."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Cells by role, layer, position and alpha.

    Attributes:
        vectors: the directions of every role.
        layers: layers along the second axis.
        positions: positions along the third axis.
        alphas: strengths along the fourth axis.
        change: whether directions are added or ablated.
        only: the cells, where they are not all of these.
    """

    vectors: RoleVectors
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    alphas: tuple[float, ...]
    change: Change = "add"
    only: tuple[Key, ...] | None = None

    @property
    def keys(self) -> list[Key]:
        """The name of every cell, in order."""
        if self.only is not None:
            return list(self.only)
        axes = (self.vectors.roles, self.layers, self.positions, self.alphas)
        return [Key(*key) for key in itertools.product(*axes)]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Roles, layers, positions, alphas."""
        return (
            len(self.vectors.roles),
            len(self.layers),
            len(self.positions),
            len(self.alphas),
        )

    @property
    def sha(self) -> str:
        """Hash of all that is done in the cells."""
        digest = hashlib.sha256(repr((self.keys, self.change)).encode())
        for key in self.keys:
            vector = self.direction(key).vector
            digest.update(vector.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def direction(self, key: Key) -> Direction:
        """The direction of a cell."""
        return self.vectors.direction(key.role, key.layer, key.position)

    def is_null(self, key: Key) -> bool:
        """Whether a cell's direction is exactly zero, as at layer 0, so that nothing happens."""
        return self.direction(key).norm == 0 or key.alpha == 0

    def edit(self, keys: Sequence[Key]) -> Edit:
        """What is done in some cells; cells of one layer, where directions are added."""
        directions = [self.direction(key) for key in keys]
        if self.change == "ablate":
            units = torch.stack([direction.unit for direction in directions])
            return Ablation(units, torch.tensor([key.alpha for key in keys]))
        deltas = [d.vector * key.alpha for d, key in zip(directions, keys, strict=True)]
        return Addition(torch.stack(deltas), keys[0].layer)


def make_grid(
    vectors: RoleVectors,
    n_layers: int,
    *,
    layers: Sequence[int] | None,
    positions: Sequence[int] | None,
    alphas: Sequence[float] | None,
    change: Change,
) -> Grid:
    """Fill in the paper's grid (2502.12055 eq. 6), and refuse what is not in the vectors."""
    if change not in ("add", "ablate"):
        raise InputError(f"change is {change!r}; it has to be 'add' or 'ablate'.")
    if vectors.site != RESID_PRE:
        raise InputError(
            f"the vectors live at {vectors.site!r}, and sweeps steer the residual stream; use "
            "rl.add and rl.evaluate, or rl.rollouts.trial."
        )
    if layers is None:
        layers = [layer for layer in vectors.layers if layer < int(0.8 * n_layers)]
    if alphas is None:
        alphas = (1.0, 3.0) if change == "add" else (1.0,)
    layers, alphas = listed("layers", layers), listed("alphas", alphas)
    positions = listed("positions", vectors.positions if positions is None else positions)
    for kind, chosen in (("layer", layers), ("position", positions), ("alpha", alphas)):
        if len(set(chosen)) != len(chosen):
            raise InputError(f"the {kind}s are {chosen}; name each once.")
    for alpha in alphas:
        if not torch.isfinite(torch.tensor(float(alpha))):
            raise InputError(f"alpha is {alpha}; it has to be a finite number such as 3.0.")
    for layer in layers:
        if layer not in vectors.layers:
            raise unknown("layer", layer, vectors.layers)
    for position in positions:
        if position not in vectors.positions:
            raise unknown("position", position, vectors.positions)
    return Grid(vectors, tuple(layers), tuple(positions), tuple(map(float, alphas)), change)
