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


def shards(engine: Engine[Any], pieces: Sequence[Piece], workers: int) -> list[list[Piece]]:
    """Cut pieces into shards, the dearest first.

    Pieces of a shard are of one group of items, whose prompts then run unsteered once. Where
    nothing is shared, a shard is a piece.

    Args:
        engine: what scores them.
        pieces: in the order of :meth:`rolelens.sweeps.engine.Engine.plan`.
        workers: how many there are.
    """
    costs = Costs(engine)
    of_piece = [costs.of(piece) for piece in pieces]
    total = sum(of_piece)
    made: list[tuple[float, list[Piece]]] = []
    for piece, cost in zip(pieces, of_piece, strict=True):
        again = costs.again(piece)
        size = max(total / (SHARDS * workers), min(WORTH * again, total / workers))
        if made and again and made[-1][1][0].group == piece.group and made[-1][0] + cost / 2 < size:
            before, shard = made.pop()
            made.append((before + cost, [*shard, piece]))
        else:
            made.append((cost, [piece]))
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

    def again(self, piece: Piece) -> int:
        """The prompts of a piece unsteered, which each shard runs once."""
        engine = self._engine
        if not isinstance(engine, SharingEngine):
            return 0
        return self._layout(engine, piece.group, engine.selections)[1]

    def _steered(self, engine: SharingEngine, group: int, cell: Cell) -> float:
        if cell.is_zero:
            return self._layout(engine, group, engine.selections)[1]
        edited = self._layout(engine, group, cell.steering.selections)[0]
        return edited * (1 - cell.steering.layer / engine.lens.n_layers)

    def _layout(
        self, engine: SharingEngine, group: int, selections: tuple[Selection, ...]
    ) -> tuple[int, int]:
        """Tokens that run for each cell, and once."""
        key = group, selections
        if key not in self._layouts:
            layout = Layout(engine.parts[group].tokens, selections, engine.budget)
            self._layouts[key] = layout.edited, layout.unedited
        return self._layouts[key]
