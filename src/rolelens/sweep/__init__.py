"""Sweeps: the score of every cell, a cell being one role, layer, position and alpha."""

from rolelens.sweep.exhaustive import score_cells, sweep
from rolelens.sweep.grid import Cell, Grid, Key
from rolelens.sweep.result import Sweep
from rolelens.sweep.search import Search, search
from rolelens.sweep.store import Status, Store, status

__all__ = [
    "Cell",
    "Grid",
    "Key",
    "Search",
    "Status",
    "Store",
    "Sweep",
    "score_cells",
    "search",
    "status",
    "sweep",
]
