"""What was scored in every cell of a sweep."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rolelens import tasks
from rolelens.display import Card, Shown
from rolelens.errors import InputError, unknown
from rolelens.hooks import Steering
from rolelens.sweeps.cells import Cell, Grid, restored_cell
from rolelens.sweeps.database import lacking
from rolelens.sweeps.store import read_store
from rolelens.tasks import Metric, Prepared, Records, Scored, Scores, Verifier


@dataclass(frozen=True, eq=False, repr=False)
class Sweep(Shown):
    """What was scored in every cell, beside the unsteered model.

    Attributes:
        records: of every cell: log-probabilities of options, texts, or other numbers.
        baseline: the unsteered model on the same items.
        grid: the cells.
        prepared: the task, and how it was put.
        failed: cells that could not be scored, and why.
    """

    records: Records
    baseline: Any
    grid: Grid
    prepared: Prepared
    failed: Mapping[Cell, str] = field(default_factory=dict)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells, in the order of :attr:`records`."""
        return self.grid.cells

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the cells, each once."""
        return self.grid.names

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of the cells."""
        return tuple(dict.fromkeys(cell.layer for cell in self.cells))

    @property
    def positions(self) -> tuple[int | None, ...]:
        """The positions of the cells."""
        return tuple(dict.fromkeys(cell.position for cell in self.cells))

    @property
    def alphas(self) -> tuple[float | None, ...]:
        """The strengths of the cells."""
        return tuple(dict.fromkeys(cell.alpha for cell in self.cells))

    def find(self, which: Steering | Cell | None = None, /, **label: Any) -> Cell:
        """A cell, by its steering or by name, layer, position and alpha.

        Raises:
            InputError: there is none.
        """
        if isinstance(which, Cell):
            return which
        if isinstance(which, Steering):
            return self.grid.of(which)
        axes = ("name", "layer", "position", "alpha")
        if set(label) != set(axes):
            raise InputError(
                f"a cell has {', '.join(axes)}, and {', '.join(label) or 'nothing'} was given; "
                "name all four, or pass its steering."
            )
        return self.grid.find({axis: label[axis] for axis in axes})

    def cell(self, which: Steering | Cell | None = None, /, **label: Any) -> Any:
        """What one cell is worth; arguments as for :meth:`find`.

        Returns:
            :class:`rolelens.tasks.Scores` of questions, :class:`rolelens.tasks.Answers` to
            problems, :class:`rolelens.tasks.Values` of others.

        Raises:
            InputError: there is no such cell, or it failed.
        """
        return self._scored(self.find(which, **label))

    def logprobs(
        self, which: Steering | Cell | None = None, /, **label: Any
    ) -> Float[Tensor, "question option"]:
        """Option log-probabilities of one cell, in nats; arguments as for :meth:`find`.

        Raises:
            InputError: the task has no options.
        """
        scores = self.cell(which, **label)
        if not isinstance(scores, Scores):
            raise InputError(
                f"{self.prepared.task.name!r} has no options; use sweep.cell(...) instead."
            )
        return scores.logprobs

    def table(self) -> pd.DataFrame:
        """A row a cell: its name, layer, position and alpha, each measure and its gain.

        Gains are over the unsteered model. ``zero`` says that nothing is done in the cell, as at
        layer 0, where directions are exactly zero; ``control`` that its direction is a null. Of a
        list of steerings, ``steering`` says what is done. Where cells failed, ``failed`` says why,
        and their measures are NaN.
        """
        measures = self.baseline.measures
        before = {name: self.baseline.mean(name) for name in measures}
        rows = []
        for cell in self.cells:
            means = dict.fromkeys(measures, math.nan)
            if cell not in self.failed:
                scored = self._scored(cell)
                means = {name: scored.mean(name) for name in measures}
            rows.append(
                {
                    **cell.label,
                    **({"steering": str(cell.steering)} if self.grid.axes is None else {}),
                    **means,
                    **{f"{name}_gain": means[name] - before[name] for name in measures},
                    "zero": cell.is_zero,
                    "control": any(step.direction.null is not None for step in cell.steering.steps),
                    **({"failed": self.failed.get(cell, "")} if self.failed else {}),
                }
            )
        return pd.DataFrame(rows)

    def best(self, name: str | None = None, by: str | None = None) -> Cell:
        """The live cell of a name that is highest in a measure; ties go to the other measures.

        It was chosen on these very items: confirm it on others.

        Args:
            name: whose cells; all of them by default.
            by: the measure; the first by default.

        Raises:
            InputError: an unknown name or measure, or there is no live cell.
        """
        if name is not None and name not in self.names:
            raise unknown("name", name, self.names)
        measures = self.baseline.measures
        by = measures[0] if by is None else by
        if by not in measures:
            raise InputError(f"by is {by!r}; it has to be one of {', '.join(measures)}.")
        live = [cell for cell in self.grid.live if name is None or cell.name == name]
        if not live:
            raise InputError(
                f"every cell of {name or 'the sweep'!r} is zero: its directions are zero."
            )
        live = [cell for cell in live if cell not in self.failed] or live[:1]
        order = [by, *(measure for measure in measures if measure != by)]
        scored = {cell: self._scored(cell) for cell in live}
        return max(live, key=lambda cell: [scored[cell].mean(measure) for measure in order])

    def card(self) -> Card:
        """Size of the grid and the unsteered model."""
        shape = ""
        if self.grid.axes is not None:
            shape = " = " + " x ".join(
                f"{len(values)} {axis}s" for axis, values in self.grid.axes.items()
            )
        task = self.prepared.task
        facts = {
            "cells": f"{len(self.cells)}{shape}",
            "items": f"{len(task)} of {task.name}",
            "names": ", ".join(self.names[:4]) + (", ..." if self.names[4:] else ""),
        }
        return Card("Sweep", facts, "sweep.table(), rl.plots.heatmap(sweep), sweep.best(name)")

    def _scored(self, cell: Cell) -> Scored[Any]:
        if cell not in self._place:
            raise InputError(f"{cell} is none of the {len(self.cells)} cells of this sweep.")
        if cell in self.failed:
            raise InputError(f"{cell} could not be scored: {self.failed[cell]}.")
        records = self.records[self._place[cell]]
        return self.prepared.scored(range(len(self.prepared.task)), records)

    @cached_property
    def _place(self) -> dict[Cell, int]:
        return {cell: row for row, cell in enumerate(self.cells)}


def load_sweep(
    path: str | Path, *, metric: Metric | None = None, verifier: Verifier | None = None
) -> Sweep:
    """Read what a store of :func:`rolelens.sweep` holds, without the model.

    Args:
        path: the file.
        metric: a measure of one's own, which needs no new run.
        verifier: whether a text answers a problem rightly, where the sweep was given one.

    Raises:
        InputError: there is no such file, it is no finished sweep, it is damaged, or it was made
            with a verifier and none is given.
    """
    content, records, failures = read_store(path)
    kind = content.provenance.get("kind")
    if kind not in ("sweep", "cells"):
        raise InputError(
            f"{str(path)!r} is a store of {kind!r} and no sweep; repeat the call that made it."
        )
    missing = np.asarray(lacking(records).any(axis=2))
    missing[list(failures)] = False
    if missing.any():
        share = 1 - missing.mean()
        raise InputError(
            f"{str(path)!r} is {share:.0%} done; repeat the call that made it, or read its tables "
            "with sqlite3."
        )
    vectors = {sha: torch.from_numpy(vector.copy()) for sha, vector in content.directions.items()}
    cells = [restored_cell(row, vectors) for row in content.cells]
    axes = content.provenance["axes"]
    grid = Grid(tuple(cells[1:]), axes and {name: tuple(values) for name, values in axes.items()})
    task = tasks.restored(content.provenance, content.items)
    prepared = tasks.restored_prepared(task, content.provenance, metric, verifier)
    every = range(len(task))
    failed = {cells[n]: reason for n, reason in failures.items()}
    return Sweep(records[1:], prepared.scored(every, records[0]), grid, prepared, failed)
