"""Sweeps: what a task says in every cell, a cell being a steering with a name."""

from rolelens.sweeps.cells import UNSTEERED, Cell, Grid, cell_of_steering, grid_of
from rolelens.sweeps.costs import Estimate, cost_of, duration, estimate
from rolelens.sweeps.exhaustive import score_cells, scored_run, sweep
from rolelens.sweeps.halving import Search, search
from rolelens.sweeps.result import Sweep, load_sweep
from rolelens.sweeps.run import Run
from rolelens.sweeps.store import Status, Store, status

__all__ = [
    "UNSTEERED",
    "Cell",
    "Estimate",
    "Grid",
    "Run",
    "Search",
    "Status",
    "Store",
    "Sweep",
    "cell_of_steering",
    "cost_of",
    "duration",
    "estimate",
    "grid_of",
    "load_sweep",
    "score_cells",
    "scored_run",
    "search",
    "status",
    "sweep",
]
