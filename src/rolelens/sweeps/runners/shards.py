"""Pieces that share work, kept together: what one worker does on end."""

from collections.abc import Sequence
from typing import Any

from rolelens.forward import Layout, Selection
from rolelens.sweeps.cells import Cell
from rolelens.sweeps.engine import Engine, Piece, SharingEngine

SHARDS = 4
"""Shards a worker, so that none waits long for the last."""
WORTH = 8
"""A shard costs at least so many times what it runs again, where there is work enough for that."""


def sharded(engine: Engine[Any], pieces: Sequence[Piece], workers: int) -> list[list[Piece]]:
    """Cut pieces into shards, the dearest first.

    Pieces of a shard are of one group of items, whose prompts then run unsteered once. Where
    nothing is shared, a shard is a piece.

    Args:
        engine: what scores them.
        pieces: in the order of :meth:`rolelens.sweeps.engine.Engine.plan`.
        workers: how many there are.
    """
    costs = Costs(engine)
    made = cut(
        [costs.of(piece) for piece in pieces],
        [costs.again(piece) for piece in pieces],
        [piece.group for piece in pieces],
        workers,
    )
    return [[pieces[n] for n in shard] for shard in made]


def cut(
    costs: Sequence[float], again: Sequence[float], groups: Sequence[int], workers: int
) -> list[list[int]]:
    """Cut a row of pieces into shards, the dearest first.

    Args:
        costs: of each piece.
        again: what its shard runs once beside, in the same unit; 0 where nothing is shared.
        groups: which pieces share that; they stand together.
        workers: how many there are.

    Returns:
        Which pieces each shard has.
    """
    total = sum(costs)
    made: list[tuple[float, list[int]]] = []
    for n, cost in enumerate(costs):
        size = max(total / (SHARDS * workers), min(WORTH * again[n], total / workers))
        same = bool(made) and again[n] > 0 and groups[made[-1][1][0]] == groups[n]
        if same and made[-1][0] + cost / 2 < size:
            before, shard = made.pop()
            shard.append(n)
            made.append((before + cost, shard))
        else:
            made.append((cost, [n]))
    return [shard for _, shard in sorted(made, key=lambda entry: -entry[0])]


class Costs:
    """What pieces cost, in tokens that run through all blocks; of others, answers."""

    def __init__(self, engine: Engine[Any]) -> None:
        self._engine = engine
        self._layouts: dict[tuple[int, tuple[Selection, ...]], tuple[int, int]] = {}

    def of(self, piece: Piece) -> float:
        """The cells of a piece, the prompts having run unsteered."""
        engine = self._engine
        if not isinstance(engine, SharingEngine):
            return float(len(piece.cells) * len(engine.groups[piece.group]))
        return sum(self._steered(engine, piece.group, cell) for cell in piece.cells)

    def again(self, piece: Piece) -> float:
        """The prompts of a piece unsteered, which each shard runs once."""
        engine = self._engine
        if not isinstance(engine, SharingEngine):
            return 0.0
        return float(self._layout(engine, piece.group, engine.selections)[1])

    def _steered(self, engine: SharingEngine, group: int, cell: Cell) -> float:
        if cell.is_zero:
            return float(self._layout(engine, group, engine.selections)[1])
        edited = self._layout(engine, group, cell.steering.selections)[0]
        return edited * (1 - cell.steering.layer / engine.lens.n_layers)

    def _layout(
        self, engine: SharingEngine, group: int, selections: tuple[Selection, ...]
    ) -> tuple[int, int]:
        """Tokens that run for each cell, and once."""
        key = group, selections
        if key not in self._layouts:
            layout = Layout.planned(engine.parts[group].tokens, selections, engine.budget)
            self._layouts[key] = layout.edited, layout.unedited
        return self._layouts[key]
