"""What a sweep or a search will take, told before it starts."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any, Unpack

from rolelens import forward, tasks
from rolelens.display import Card, Shown
from rolelens.forward import Layout, Named, Selection
from rolelens.hooks import Steering
from rolelens.lens import Lens
from rolelens.sweeps.cells import UNSTEERED, Cell, Change, Grid, grid_of
from rolelens.sweeps.engine import (
    KEPT_BYTES,
    Engine,
    GeneratingEngine,
    PlainEngine,
    SharingEngine,
    engine_for,
)
from rolelens.sweeps.halving import ends_of, entrants, parts_of
from rolelens.sweeps.run import budget_of
from rolelens.sweeps.screening import check_predictable
from rolelens.tasks import Options, Prepared, Task, Tokenised
from rolelens.vectors import Directions

SCREEN = 3.0
"""Operations of the screen, in forward passes: one, one again between checkpoints, one backward."""
SAMPLE = 8
"""Items of the first sample that is timed."""


@dataclass(frozen=True, repr=False)
class Estimate(Shown):
    """What a run will take.

    Attributes:
        cells: how many there are; of a search many are only predicted.
        items: of the task.
        tokens: that will run through blocks, padding included, each counted by the share of the
            blocks that it runs through.
        operations: floating-point operations.
        most_operations: of a search whose screen turns out poor; else the same.
        peak_bytes: memory at the peak, the weights included; an upper bound of what batches and
            what is kept between them may take.
        speed: operations a second, measured on a part of the run; None where it was not measured.
    """

    cells: int
    items: int
    tokens: float
    operations: float
    most_operations: float
    peak_bytes: int
    speed: float | None

    @property
    def seconds(self) -> float | None:
        """How long it will take."""
        return None if self.speed is None else self.operations / self.speed

    def __add__(self, other: "Estimate") -> "Estimate":
        """Of two runs, one after the other, at the speed of the first."""
        return Estimate(
            self.cells + other.cells,
            max(self.items, other.items),
            self.tokens + other.tokens,
            self.operations + other.operations,
            self.most_operations + other.most_operations,
            max(self.peak_bytes, other.peak_bytes),
            self.speed or other.speed,
        )

    def card(self) -> Card:
        """The numbers, for people."""
        facts = {
            "cells": f"{self.cells:,} on {self.items:,} items",
            "tokens": f"{self.tokens:,.0f} through all blocks",
            "operations": f"{self.operations:.2e}",
            "peak memory": f"{self.peak_bytes / 2**30:.1f} GiB",
        }
        if self.seconds is not None and self.speed is not None:
            facts["time"] = f"{duration(self.seconds)} at {self.speed / 1e9:,.0f} GFLOP/s"
            if self.most_operations > self.operations:
                most = duration(self.most_operations / self.speed)
                facts["time"] += f"; {most} if the screen is poor"
        return Card("Estimate", facts, "the same arguments to rl.sweep or rl.search")

    def __str__(self) -> str:
        return "; ".join(f"{name}: {value}" for name, value in self.card().facts.items())


def duration(seconds: float) -> str:
    """A time in the unit that people would use."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def estimate(
    lens: Lens,
    what: Directions | Sequence[Steering] | Mapping[str, Steering],
    task: str | Path | Task[Any] | Sequence[Any] | Prepared,
    *,
    searching: bool = False,
    domains: Mapping[str, str] | None = None,
    layers: Sequence[int] | None = None,
    positions: Sequence[int | None] | None = None,
    alphas: Sequence[float] | None = None,
    tokens: Named | None = None,
    method: str | None = None,
    change: Change | None = None,
    screened: int = 128,
    seconds: int | float = 10.0,
    **options: Unpack[Options],
) -> Estimate:
    """Say what a sweep or a search will take, before it starts.

    Operations follow from the tokens that run, padding included, and from those of the model, which
    are counted. The speed is that of a sample of the very cells and items, run for some seconds.
    Of generated answers the time is that of answers as long as they may be.

    Args:
        lens: the model.
        what: as for :func:`rolelens.sweep`.
        task: as for :func:`rolelens.sweep`.
        searching: estimate :func:`rolelens.search` in place of :func:`rolelens.sweep`.
        domains: as for :func:`rolelens.search`.
        layers: as for both.
        positions: as for both.
        alphas: as for both.
        tokens: as for both.
        method: as for both.
        change: as for :func:`rolelens.sweep`.
        screened: as for :func:`rolelens.search`.
        seconds: how long the speed is measured, about; 0: not at all.
        options: how the task is put, as for both.

    Raises:
        InputError: as for :func:`rolelens.sweep`; a search of answers that are generated.
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
    if searching:
        check_predictable(prepared, grid.live)
    engine = engine_for(lens, prepared, budget_of(lens, prepared), grid.live)
    if searching:
        cost = _search_cost(lens, prepared, grid, domains, screened)
    else:
        cost = _cost(engine, [UNSTEERED, *grid.live])
    speed = _speed(lens, prepared, grid.live, seconds) if seconds > 0 else None
    ops = forward.count_operations(lens.model)
    return Estimate(
        cells=len(grid.live),
        items=len(prepared.task),
        tokens=cost[0] / max(1.0, ops.each),
        operations=cost[0],
        most_operations=cost[1],
        peak_bytes=_peak(lens, engine),
        speed=speed,
    )


def cost_of(lens: Lens, prepared: Prepared, cells: Sequence[Cell]) -> float:
    """Operations of scoring some cells on a task, and of its prompts unsteered."""
    engine = engine_for(lens, prepared, budget_of(lens, prepared), cells)
    return _cost(engine, cells)[0]


def _cost(engine: Engine[Any], cells: Sequence[Cell]) -> tuple[float, float]:
    """Operations of scoring some cells, the unsteered model among them."""
    model = engine.lens.model
    ops = forward.count_operations(model)
    if isinstance(engine, PlainEngine):
        return float(len(cells)), float(len(cells))
    if isinstance(engine, GeneratingEngine):
        prompts = engine.tokens.ids * engine.prepared.n
        new = engine.prepared.max_new_tokens
        each = sum(ops.blocks(len(ids) + new, (len(ids) + new) / 2) for ids in prompts)
        each += len(prompts) * new * ops.unembedded
        return len(cells) * each, len(cells) * each
    assert isinstance(engine, SharingEngine)
    total = 0.0
    live = [cell for cell in cells if cell.steering.steps]
    by_selection: dict[tuple[Selection, ...], list[Cell]] = {}
    for cell in live:
        by_selection.setdefault(cell.steering.selections, []).append(cell)
    resumes = forward.resumes(model)
    for part in engine.parts:
        width = mean(map(len, part.tokens.ids))
        reads = 0.0
        if part.vocab is None:
            pairs = zip(part.tokens.ids, part.tokens.prompt_lengths, strict=True)
            reads = ops.unembedded * sum(len(ids) - n for ids, n in pairs)
        for chosen, some in (by_selection or {("all",): []}).items():
            layout = Layout.planned(part.tokens, chosen, engine.budget)
            total += ops.blocks(layout.unedited, width)
            for cell in some:
                if resumes:
                    total += ops.blocks(layout.edited, width, cell.steering.layer)
                else:
                    total += ops.blocks(sum(map(len, part.tokens.ids)), width)
        total += (1 + len(live)) * reads
    return total, total


def _search_cost(
    lens: Lens,
    prepared: Prepared,
    grid: Grid,
    domains: Mapping[str, str] | None,
    screened: int,
) -> tuple[float, float]:
    """Operations of a search, and those where its screen is poor for all names."""
    ops = forward.count_operations(lens.model)
    total = _cost(engine_for(lens, prepared, budget_of(lens, prepared), []), [UNSTEERED])[0]
    most = total
    for items, names in parts_of(grid, prepared, domains).items():
        part = prepared.take(list(items))
        assert isinstance(part, Tokenised)
        of_names = [[cell for cell in grid.live if cell.name == name] for name in names]
        live = [cell for cells in of_names for cell in cells]
        if not live:
            continue
        engine = engine_for(lens, part, budget_of(lens, part), live)
        whole, unsteered = _cost(engine, [UNSTEERED, *live])[0], _cost(engine, [UNSTEERED])[0]
        each = (whole - unsteered) / len(live) / len(items)
        lengths = [len(ids) for ids in part.tokens.ids]
        shown = min(screened, len(items)) / len(items)
        screen = SCREEN * shown * ops.blocks(sum(lengths), mean(lengths))
        once = shown * unsteered
        total, most = total + screen + once, most + screen + once
        for cells in of_names:
            few, many = entrants(len(cells))
            total += each * _scored(min(few, len(cells)), len(items))
            most += each * _scored(many, len(items))
    return total, most


def _scored(cells: int, items: int) -> float:
    """Cells times items that a race of some cells scores."""
    ends = ends_of(items)
    total = cells * ends[0]
    for begin, end in pairwise(ends):
        cells -= cells // 2
        total += cells * (end - begin)
    return float(total)


def _speed(
    lens: Lens, prepared: Prepared, cells: Sequence[Cell], seconds: int | float
) -> float | None:
    """Operations a second, over samples that grow until one takes half of the time."""
    ranked = sorted(cells, key=lambda cell: cell.layer) or [UNSTEERED]
    chosen = [UNSTEERED, ranked[len(ranked) // 2]]
    n, begun = SAMPLE, time.perf_counter()
    while True:
        items = [k * len(prepared.task) // n for k in range(n)] if n < len(prepared.task) else None
        part = prepared.take(items or range(len(prepared.task)))
        engine = engine_for(lens, part, budget_of(lens, part), chosen)
        started = time.perf_counter()
        for piece in engine.plan(chosen):
            engine.run(piece)
        took = time.perf_counter() - started
        spent = time.perf_counter() - begun
        if items is None or took > seconds / 3 or spent + 2 * took > 1.5 * seconds:
            return _cost(engine, chosen)[0] / took
        n *= 2


def _peak(lens: Lens, engine: Engine[Any]) -> int:
    """Bytes of the weights, of a batch and of what is kept between batches, at most."""
    model: Any = lens.model
    weights = sum({w.data_ptr(): w.nbytes for w in model.parameters()}.values())
    width, kept = lens.n_ctx, 0
    if isinstance(engine, SharingEngine):
        width = max(map(len, engine.prepared.tokens.ids))
        # What prompts of a group share is counted in each; a text alone may be larger.
        most = KEPT_BYTES if engine.prepared.prompted else engine.kept_bytes
        kept = min(most, engine.kept_bytes)
    elif isinstance(engine, GeneratingEngine):
        width = engine.longest + engine.prepared.max_new_tokens
        kept = engine.rows * width * forward.kept_bytes(lens.model)
    return int(weights + forward.batch_bytes(lens.model, engine.budget, width) + kept)
