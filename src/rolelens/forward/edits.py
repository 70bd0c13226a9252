"""What is done to activations: a sequence of operations for every row of a batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from rolelens.errors import InputError
from rolelens.forward.models import Everywhere, Hook
from rolelens.forward.operations import CHANGES, NUMBERS, Kind, Operation, Point
from rolelens.forward.selection import Selection, published, running, unsteered
from rolelens.vectors import Source, check_sources

Mask: TypeAlias = Callable[[Selection, Tensor], Tensor | None]
"""Which tokens of an activation a selection names, ``[row, position]``; None: all of them."""


@dataclass(frozen=True, eq=False)
class _Group:
    """Operations of one kind on the same tokens, at most one a cell.

    Attributes:
        index: row of the edit's vectors for each cell; 0, a zero, where a cell does nothing here.
        there: the same, on the devices.
        others: the same of the second direction of a plane; None where there is none.
        numbers: what else each cell says.
    """

    kind: Kind
    tokens: Selection
    width: int
    index: Int[Tensor, " cell"]
    there: Everywhere
    others: Everywhere | None
    numbers: Everywhere


class Edit:
    """What is done in some cells, each a sequence of operations, as one batch can do it.

    A batch may hold any of the cells in its rows. Operations of one cell at one hook point act in
    their order.

    Attributes:
        layer: the lowest layer that any cell edits; 0 where none does anything.
        selections: the selections of tokens that cells name.
    """

    def __init__(self, cells: Sequence[Sequence[Operation]]) -> None:
        self._n = len(cells)
        operations = [operation for cell in cells for operation in cell]
        self.selections = tuple(dict.fromkeys(operation.tokens for operation in operations))
        self.layer = min((layer for op in operations for layer, _ in op.points), default=0)
        self._sources = list(dict.fromkeys(op.source for op in operations))
        # By width, the vectors of each operation below a zero.
        stacks: dict[int, list[Tensor]] = {}
        rows: dict[int, tuple[int, int]] = {}
        for operation in {id(operation): operation for operation in operations}.values():
            width = len(operation.vector)
            stack = stacks.setdefault(width, [torch.zeros(width)])
            places = [0, 0]
            for n, vector in enumerate((operation.vector, operation.other)):
                if vector is not None:
                    places[n] = len(stack)
                    stack.append(vector.detach().to("cpu", torch.float32))
            rows[id(operation)] = places[0], places[1]
        self._vectors = {width: Everywhere(torch.stack(stack)) for width, stack in stacks.items()}
        self._groups = self._compiled(cells, rows)

    def __len__(self) -> int:
        return self._n

    def hooks(self, cells: Int[Tensor, " row"], mask: Mask = published) -> list[Hook]:
        """What is done in a batch, as hooks.

        Args:
            cells: the cell of each row; a single one stands for every row.
            mask: which tokens of the running pass a selection names.
        """
        out: list[Hook] = []
        where = Everywhere(cells)
        for (layer, name), groups in sorted(self._groups.items()):
            acting = [group for group in groups if bool(group.index[cells].any())]
            if acting:
                hook = _EditHook(self, acting, where, mask)
                out.append((f"blocks.{layer}.{name}", hook))
        return out

    def apply(self, x: Tensor, groups: Sequence[_Group], cells: Everywhere, mask: Mask) -> Tensor:
        """Do to an activation what some cells do at one hook point."""
        rows = cells.on(x.device)
        rows = rows.expand(len(x)) if len(rows) == 1 else rows
        for group in groups:
            if x.shape[-1] != group.width:
                raise InputError(
                    f"a direction of width {group.width} was used on activations of width "
                    f"{x.shape[-1]}; it was measured on another model, or at another site."
                )
            known = self._vectors[group.width].on(x.device)
            vectors = known[group.there.on(x.device)[rows]]
            others = known[group.others.on(x.device)[rows]] if group.others else vectors
            chosen = mask(group.tokens, x)
            new = CHANGES[group.kind](x, vectors, others, group.numbers.on(x.device)[rows])
            x = new if chosen is None else torch.where(chosen[..., None].to(x.device), new, x)
        return x

    def check_source(self, running: Source | None) -> None:
        """Refuse vectors of another model than the one that runs."""
        for source in self._sources:
            check_sources(source, running)

    def _compiled(
        self, cells: Sequence[Sequence[Operation]], rows: dict[int, tuple[int, int]]
    ) -> dict[Point, list[_Group]]:
        """The groups that act at each hook point, in the order in which they act."""
        index: dict[Point, dict[tuple[int, Kind, Selection, int], dict[int, Operation]]] = {}
        for cell, operations in enumerate(cells):
            turns: dict[Point, int] = {}
            for operation in operations:
                for point in operation.points:
                    turn = turns.get(point, 0)
                    turns[point] = turn + 1
                    key = (turn, operation.kind, operation.tokens, len(operation.vector))
                    index.setdefault(point, {}).setdefault(key, {})[cell] = operation
        made: dict[Any, _Group] = {}  # most points share their groups, as in ablation everywhere
        groups: dict[Point, list[_Group]] = {}
        for point, by_key in index.items():
            groups[point] = []
            for key, acting in sorted(by_key.items(), key=lambda item: item[0][0]):
                _, kind, tokens, width = key
                identity = (key, tuple((cell, id(op)) for cell, op in acting.items()))
                if identity not in made:
                    places = torch.zeros(self._n, 2, dtype=torch.long)
                    numbers = torch.zeros(self._n, NUMBERS[kind])
                    for cell, operation in acting.items():
                        places[cell] = torch.tensor(rows[id(operation)])
                        numbers[cell] = torch.tensor(operation.numbers)
                    chosen, others = places.unbind(dim=1)
                    made[identity] = _Group(
                        kind,
                        tokens,
                        width,
                        chosen,
                        Everywhere(chosen),
                        Everywhere(others) if others.any() else None,
                        Everywhere(numbers),
                    )
                groups[point].append(made[identity])
        return groups


class _EditHook:
    """What cells do at one hook point, as a hook of TransformerLens.

    Attributes:
        selections: the tokens that are edited.
    """

    def __init__(self, edit: Edit, groups: Sequence[_Group], cells: Everywhere, mask: Mask) -> None:
        self._edit, self._groups, self._cells, self._mask = edit, groups, cells, mask
        self.selections = tuple(dict.fromkeys(group.tokens for group in groups))

    def __call__(self, x: Tensor, hook: Any = None) -> Tensor:
        if unsteered.get():
            return x
        now = running.get()
        self._edit.check_source(now.source if now else None)
        return self._edit.apply(x, self._groups, self._cells, self._mask)
