"""Every cell of a grid, or some cells, scored on every item of a task."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from rolelens import tasks
from rolelens.forward import Named
from rolelens.hooks import Steering
from rolelens.lens import Lens
from rolelens.sweeps.cells import UNSTEERED, Cell, Change, Grid, grid_of
from rolelens.sweeps.result import Sweep
from rolelens.sweeps.run import Run
from rolelens.sweeps.runners import Runner, running
from rolelens.tasks import Options, Prepared, Task
from rolelens.vectors import Directions


def sweep(
    lens: Lens,
    what: Directions | Sequence[Steering] | Mapping[str, Steering],
    task: str | Path | Task[Any] | Sequence[Any] | Prepared,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int | None] | None = None,
    alphas: Sequence[float] | None = None,
    tokens: Named | None = None,
    method: str | None = None,
    change: Change | None = None,
    store: str | Path | None = None,
    runner: str | Runner | None = None,
    **options: Unpack[Options],
) -> Sweep:
    """Score a task in every cell: each direction, layer, position and alpha, or each steering.

    What cells share is run once: the blocks below the lowest edited layer, the tokens before the
    first edited one, and what all prompts begin with. Scores are those of whole forward passes to
    within rounding (1e-3 nats in float32). Where answers are generated, cells are rows of one
    batch. A cell whose scores are NaN is kept as failed, with a warning, and the others are scored.

    Args:
        lens: the model.
        what: directions, every name of which is swept over the grid; or steerings of any kind, in a
            list or by name.
        task: questions, problems, texts or a task of one's own, or what
            :func:`rolelens.load_task` takes.
        layers: the first 80 % of the model's layers by default (2502.12055 eq. 6).
        positions: all positions of the directions by default.
        alphas: raw strengths, 1 and 3 by default; with ``change="ablate"`` the share of the
            component that is removed, 1 by default; of ``cap``, ``floor`` and ``fix`` the bounds of
            the projection, such as percentiles from :func:`rolelens.thresholds`.
        tokens: which tokens are steered; all by default.
        method: how the options of questions are scored, see :func:`rolelens.evaluate`.
        change: ``add`` (eq. 3), the default, adds alpha d at its layer, ``add_rescaled`` keeps the
            norm of what it is added to; ``ablate`` (eq. 4) removes d everywhere; ``cap``, ``floor``
            and ``fix`` keep the projection on d below alpha, above it or at it, at its layer.
        store: a file that keeps each finished piece. The same call goes on where it was stopped
            or killed, and anyone may read the file meanwhile (SQLite).
        runner: who scores: ``"local"``, this process, by default; ``"processes"``, one worker a GPU
            or a few on the CPU; ``"ray"``, the actors of a Ray cluster; or one of
            :mod:`rolelens.sweeps.runners` that says how many. Scores are the same to the bit where
            workers have as many threads.
        options: how the task is put, see :class:`rolelens.tasks.Options`; ``metric=`` is a measure
            of one's own.

    Raises:
        InputError: an unknown layer, position or method, directions of another model, steering that
            touches no token that is read, a store that holds another run or is being written, or
            a model or task that workers cannot have.
    """
    grid = grid_of(
        lens,
        what,
        layers=layers,
        positions=positions,
        alphas=alphas,
        tokens=tokens,
        change=change,
    )
    prepared = tasks.prepare(lens, task, method, **options)
    run = scored_run(lens, prepared, grid, "sweep", store, runner)
    return Sweep(run.records[1:], run.scores(UNSTEERED), grid, prepared, run.failed)


def score_cells(
    lens: Lens,
    prepared: Prepared,
    cells: Sequence[Cell],
    *,
    store: str | Path | None = None,
    runner: str | Runner | None = None,
) -> tuple[Any, dict[Cell, Any]]:
    """Score some cells, as :func:`sweep` scores a grid.

    Args:
        lens: the model.
        prepared: the task, from :func:`rolelens.tasks.prepare`.
        cells: what is scored. With none the unsteered model is scored alone.
        store: a file that keeps each finished piece.
        runner: who scores.

    Returns:
        What the unsteered model is worth, and what each cell is.

    Raises:
        InputError: as for :func:`sweep`, or scores of a cell are NaN.
    """
    run = scored_run(lens, prepared, Grid(tuple(cells)), "cells", store, runner)
    return run.scores(UNSTEERED), {cell: run.scores(cell) for cell in cells}


def scored_run(
    lens: Lens,
    prepared: Prepared,
    grid: Grid,
    kind: str,
    store: str | Path | None,
    runner: str | Runner | None = None,
) -> Run:
    """A run, finished: the unsteered model and each live cell on all items."""
    with (
        running(runner) as workers,
        Run(lens, prepared, grid, settings={"kind": kind}, store=store, runner=workers) as run,
    ):
        items = range(len(prepared.task))
        if prepared.metric is not None:
            run.score([UNSTEERED], items, "unsteered")
            run.scores(UNSTEERED).measure()  # a metric that fails fails before the cells
        run.score([UNSTEERED, *grid.live], items)
    return run
