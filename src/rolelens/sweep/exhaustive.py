"""Every cell of a grid, or some cells, scored on every question."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rolelens import scoring
from rolelens.benchmarks import Benchmark, Question, load_benchmark
from rolelens.forward import Selection
from rolelens.lens import Lens
from rolelens.scoring import Method, Scores
from rolelens.sweep.grid import UNSTEERED, Change, Grid, Key, make_grid
from rolelens.sweep.result import Sweep
from rolelens.sweep.run import Run
from rolelens.vectors import RoleVectors, check_sources


def sweep(
    lens: Lens,
    vectors: RoleVectors,
    benchmark: str | Path | Benchmark | Sequence[Question],
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    alphas: Sequence[float] | None = None,
    tokens: Selection = "all",
    method: Method = "letter",
    change: Change = "add",
    store: str | Path | None = None,
) -> Sweep:
    """Steer with every role, layer, position and alpha, and score the benchmark each time.

    What cells share is run once: the blocks below the steered layer, the tokens before the first
    steered one, and what all prompts begin with. Scores are those of whole forward passes to
    within rounding (1e-3 nats in float32).

    Args:
        lens: the model.
        vectors: the directions; every role in them is swept.
        benchmark: the questions.
        layers: the first 80 % of the model's layers by default (2502.12055 eq. 6).
        positions: all positions of the vectors by default.
        alphas: raw strengths, 1 and 3 by default; with ``change="ablate"`` the share of the
            component that is removed, 1 by default.
        tokens: which tokens are steered.
        method: how options are scored, see :func:`rolelens.evaluate`.
        change: ``add`` (eq. 3) adds alpha d at its layer; ``ablate`` (eq. 4) removes d everywhere.
        store: a file that keeps every finished piece. The same call goes on where it was stopped
            or killed, and anyone may read the file meanwhile (SQLite).

    Raises:
        InputError: an unknown layer, position or method, vectors of another model, or a store
            that holds another sweep or is being written.
    """
    check_sources(vectors.source, lens.source)
    grid = make_grid(
        vectors, lens.n_layers, layers=layers, positions=positions, alphas=alphas, change=change
    )
    run = _scored(lens, grid, benchmark, tokens, method, "sweep", store)
    scores = run.logprobs[1:].reshape(*grid.shape, *run.logprobs.shape[1:])
    return Sweep(scores, run.scores(UNSTEERED), grid, tokens)


def score_cells(
    lens: Lens,
    vectors: RoleVectors,
    benchmark: str | Path | Benchmark | Sequence[Question],
    cells: Sequence[Key],
    *,
    tokens: Selection = "all",
    method: Method = "letter",
    change: Change = "add",
    store: str | Path | None = None,
) -> tuple[Scores, dict[Key, Scores]]:
    """Score some cells, as :func:`sweep` scores a grid.

    Args:
        lens: the model.
        vectors: the directions.
        benchmark: the questions.
        cells: what is scored; each is named once. With none the unsteered model is scored alone.
        tokens: which tokens are steered.
        method: how options are scored.
        change: what is done in the cells.
        store: a file that keeps every finished piece.

    Returns:
        The scores of the unsteered model, and those of each cell.

    Raises:
        InputError: as for :func:`sweep`.
    """
    check_sources(vectors.source, lens.source)
    grid = Grid(vectors, (), (), (), change, only=())
    if cells:
        axes = zip(*cells, strict=True)
        _, layers, positions, alphas = (tuple(dict.fromkeys(axis)) for axis in axes)
        grid = make_grid(
            vectors, lens.n_layers, layers=layers, positions=positions, alphas=alphas, change=change
        )
        grid = dataclasses.replace(grid, only=tuple(dict.fromkeys(cells)))
    run = _scored(lens, grid, benchmark, tokens, method, "cells", store)
    return run.scores(UNSTEERED), {key: run.scores(key) for key in grid.keys}


def _scored(
    lens: Lens,
    grid: Grid,
    benchmark: str | Path | Benchmark | Sequence[Question],
    tokens: Selection,
    method: Method,
    kind: str,
    store: str | Path | None,
) -> Run:
    """A run, finished: the unsteered model and every live cell on every question."""
    if not isinstance(benchmark, Benchmark):
        benchmark = load_benchmark(benchmark)
    prepared = scoring.prepare(lens, benchmark, method)
    settings = {"kind": kind}
    with Run(lens, prepared, grid, tokens, benchmark, settings=settings, store=store) as run:
        run.score([UNSTEERED, *run.live], range(len(prepared.questions)))
    return run
