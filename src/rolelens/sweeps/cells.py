"""What a sweep runs over: cells, each a steering with what it is called."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

from torch import Tensor

from rolelens.display import Card, Shown
from rolelens.errors import InputError, listed, unique, unknown
from rolelens.forward import Named, checked_selection
from rolelens.hooks import Steering, Step
from rolelens.hooks.making import checked_direction, finite
from rolelens.lens import Lens
from rolelens.vectors import Directions
from rolelens.vectors.direction import RESID_PRE

Change: TypeAlias = Literal["add", "add_rescaled", "ablate", "cap", "floor", "fix"]
Position: TypeAlias = int | None
DEFAULT_ALPHAS = {"add": (1.0, 3.0), "add_rescaled": (1.0, 3.0), "ablate": (1.0,)}
"""Strengths of a grid where none are named (2502.12055)."""
CellRow: TypeAlias = Sequence[Any]
"""A cell in plain values, without the numbers of its directions."""


@dataclass(frozen=True, eq=False, repr=False)
class Cell(Shown):
    """One steered configuration: what is done in it, and what it is called.

    Attributes:
        steering: exactly what is done.
        name: of its direction, or of the whole steering.
        layer: where its direction was measured, or the lowest layer it acts in.
        position: where its direction was measured; None where there is no one position.
        alpha: its strength; None where there is no one strength.
    """

    steering: Steering
    name: str
    layer: int
    position: Position
    alpha: float | None

    @property
    def is_zero(self) -> bool:
        """Whether it is the unsteered model, as at layer 0, where directions may be zero."""
        return self.steering.is_zero

    @property
    def label(self) -> dict[str, Any]:
        """What it is called, as columns of a table."""
        return {
            "name": self.name,
            "layer": self.layer,
            "position": self.position,
            "alpha": self.alpha,
        }

    def card(self) -> Card:
        """What it is called, and what is done in it."""
        return Card(
            "Cell",
            {"cell": str(self), "steering": str(self.steering)},
            "rl.evaluate(lens, held_out, cell.steering)",
        )

    def __str__(self) -> str:
        parts = [f"{self.name!r} at layer {self.layer}"]
        parts += [] if self.position is None else [f"position {self.position}"]
        parts += [] if self.alpha is None else [f"alpha {self.alpha:g}"]
        return ", ".join(parts)


UNSTEERED = Cell(Steering(), "(unsteered)", -1, None, 0.0)
"""The model itself, which is a cell of every run."""


def cell_row(cell: Cell) -> tuple[Any, ...]:
    """Its name, layer, position and alpha, and what is done in it as JSON."""
    return (*cell.label.values(), json.dumps(cell.steering.to_dict()))


def restored_cell(row: CellRow, vectors: Mapping[str, Tensor]) -> Cell:
    """What :func:`cell_row` told, with the vectors of its directions by their hashes."""
    name, layer, position, alpha, steering = row
    return Cell(
        Steering.from_dict(json.loads(steering), vectors), name, int(layer), position, alpha
    )


@dataclass(frozen=True, eq=False)
class Grid:
    """Cells, and the axes they lie on where they are a whole grid.

    Attributes:
        cells: in the order of the axes.
        axes: values of ``name``, ``layer``, ``position`` and ``alpha``; None for a list of
            steerings.
    """

    cells: tuple[Cell, ...]
    axes: Mapping[str, tuple[Any, ...]] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the cells, each once."""
        return tuple(dict.fromkeys(cell.name for cell in self.cells))

    @property
    def live(self) -> tuple[Cell, ...]:
        """The cells that change anything."""
        return tuple(cell for cell in self.cells if not cell.is_zero)

    @cached_property
    def by_label(self) -> dict[tuple[Any, ...], Cell]:
        """Cells of a whole grid by name, layer, position and alpha."""
        return {tuple(cell.label.values()): cell for cell in self.cells}

    @property
    def sha(self) -> str:
        """Hash of all that is done in the cells."""
        content = json.dumps([(cell.label, cell.steering.sha) for cell in self.cells])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def find(self, label: Mapping[str, Any]) -> Cell:
        """The cell of a name, layer, position and alpha.

        Raises:
            InputError: there is none.
        """
        if self.axes is None:
            raise InputError(
                "these cells are a list of steerings and no grid; name one by its steering."
            )
        for axis, value in label.items():
            if value not in self.axes[axis]:
                raise unknown(axis, value, self.axes[axis])
        return self.by_label[tuple(label[axis] for axis in self.axes)]

    def of(self, steering: Steering) -> Cell:
        """The cell of a steering.

        Raises:
            InputError: it is none of the cells.
        """
        for cell in self.cells:
            if cell.steering == steering:
                return cell
        raise InputError(f"{str(steering)!r} is none of the {len(self.cells)} cells.")


def grid_of(
    lens: Lens,
    what: Directions | Sequence[Steering] | Mapping[str, Steering],
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[Position] | None = None,
    alphas: Sequence[float] | None = None,
    tokens: Named | None = None,
    change: Change | None = None,
) -> Grid:
    """The cells that are meant.

    Args:
        lens: the model.
        what: directions, whose grid is that of 2502.12055 eq. 6 unless told otherwise, or
            steerings, which may have names.
        layers: of a grid; the first 80 % of the model's layers by default.
        positions: of a grid; all positions of the directions by default.
        alphas: of a grid; 1 and 3 by default, 1 for ablation, and of bounds to be named.
        tokens: of a grid; which tokens are steered, all by default.
        change: of a grid; ``add`` by default, see :class:`rolelens.hooks.Step`.

    Raises:
        InputError: an axis that the directions do not have, settings of a grid beside steerings, or
            what was measured on another model.
    """
    axes = {"layers": layers, "positions": positions, "alphas": alphas}
    settings = {**axes, "tokens": tokens, "change": change}
    if isinstance(what, Directions):
        grid = _product(lens, what, axes, tokens or "all", change or "add")
    else:
        for name, value in settings.items():
            if value is not None:
                raise InputError(
                    f"{name} is {value!r} beside steerings, which say themselves what is done; "
                    "leave it out, or pass directions."
                )
        grid = _listed(what)
    for cell in grid.cells:
        cell.steering.check(lens.source, lens.n_layers)
    return grid


def cell_of(
    vectors: Directions,
    name: str,
    layer: int,
    position: Position,
    alpha: float,
    *,
    tokens: Named,
    change: Change,
    n_layers: int,
) -> Cell:
    """One cell of a grid."""
    direction = vectors.direction(name, layer, position)
    checked_direction(direction, "swept")
    layers = tuple(range(n_layers)) if change == "ablate" else (layer,)
    steering = Steering([Step(change, direction, finite(alpha), layers, tokens)])
    return Cell(steering, name, layer, position, alpha)


def cell_of_steering(steering: Steering, name: str | None = None) -> Cell:
    """A steering as a cell, with what can be said of it in a table."""
    positions = {step.direction.position for step in steering.steps}
    alphas = {step.alpha for step in steering.steps}
    return Cell(
        steering,
        steering.name if name is None else name,
        steering.layer,
        positions.pop() if len(positions) == 1 else None,
        alphas.pop() if len(alphas) == 1 else None,
    )


def _product(
    lens: Lens,
    vectors: Directions,
    chosen: Mapping[str, Sequence[Any] | None],
    tokens: Named,
    change: Change,
) -> Grid:
    if change not in get_args(Change):
        raise InputError(
            f"change is {change!r}; it has to be one of {', '.join(map(repr, get_args(Change)))}."
        )
    if change == "ablate" and vectors.site != RESID_PRE:
        raise InputError(
            f"the directions live at {vectors.site!r}, and ablation is of the residual stream; add "
            "them, or take directions of the residual stream."
        )
    layers, positions, alphas = (chosen[name] for name in ("layers", "positions", "alphas"))
    if layers is None:
        layers = [layer for layer in vectors.layers if layer < int(0.8 * lens.n_layers)]
    if alphas is None:
        if change not in DEFAULT_ALPHAS:
            raise InputError(
                f"a grid of change={change!r} needs alphas, the bounds that are tried; take them "
                "from rl.thresholds, or leave bounds of each layer to a list of rl.clamp."
            )
        alphas = DEFAULT_ALPHAS[change]
    axes = {
        "name": list(vectors.names),
        "layer": listed("layers", layers),
        "position": listed("positions", vectors.positions if positions is None else positions),
        "alpha": [_number(alpha) for alpha in listed("alphas", alphas)],
    }
    for axis, values in axes.items():
        unique(axis, values)
    for axis, known in (("layer", vectors.layers), ("position", vectors.positions)):
        for value in axes[axis]:
            if value not in known:
                raise unknown(axis, value, known)
    selection = checked_selection(tokens)
    cells = (
        cell_of(vectors, *label, tokens=selection, change=change, n_layers=lens.n_layers)
        for label in itertools.product(*axes.values())
    )
    return Grid(tuple(cells), {axis: tuple(values) for axis, values in axes.items()})


def _listed(what: Sequence[Steering] | Mapping[str, Steering]) -> Grid:
    named: Iterable[tuple[str | None, Any]]
    if isinstance(what, Mapping):
        named = list(what.items())
    elif not isinstance(what, Sequence) or hasattr(what, "steps"):
        raise InputError(
            f"a {type(what).__name__} cannot be swept; pass rl.Directions, or a list of steerings "
            "such as [rl.add(d, 1.0), rl.add(d, 3.0)]."
        )
    else:
        named = [(None, steering) for steering in what]
    cells = []
    for name, steering in named:
        if not isinstance(steering, Steering):
            raise InputError(
                f"a {type(steering).__name__} is among the steerings; pass what rl.add, rl.ablate "
                "or their sum gives."
            )
        cells.append(cell_of_steering(steering, name))
    if not cells:
        raise InputError("there are no steerings to sweep; pass at least one.")
    unique("steering", [str(c.steering) if c.steering.steps else "nothing" for c in cells])
    return Grid(tuple(cells))


def _number(alpha: Any) -> float:
    try:
        return float(alpha)
    except (TypeError, ValueError):
        raise InputError(f"alpha is {alpha!r}; it has to be a finite number such as 3.0.") from None
