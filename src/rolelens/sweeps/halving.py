"""The best cell of every name, without scoring most cells: screen them all, then halve."""

import hashlib
import json
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd
import scipy
import torch
from jaxtyping import Float
from torch import Tensor

from rolelens import tasks
from rolelens.display import Card, Shown
from rolelens.errors import InputError, checked_seed, unknown
from rolelens.forward import Named
from rolelens.hooks import Steering
from rolelens.lens import Lens
from rolelens.progress import track
from rolelens.sweeps.cells import UNSTEERED, Cell, Grid, grid_of
from rolelens.sweeps.run import Run
from rolelens.sweeps.runners import Runner, running
from rolelens.sweeps.screening import Screening, check_gradient, check_predictable, controlled
from rolelens.tasks import BareOptions, Prepared, Task
from rolelens.vectors import Directions

ROUNDS = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Share of the items that the cells still in the race have answered after each round."""
FEWEST_ITEMS = 32
"""Items of the first round at least, where there are so many."""
FIRST_SHARE = 1 / 12
"""Share of a name's cells that enter the first round; each round keeps half of them."""
AT_LEAST = 12
"""Cells of a name that enter the first round at least."""
RANDOM_SHARE = 1 / 4
"""Share of the first round that is drawn at random, to see how good the screen is."""
GOOD = 0.5
"""Rank correlation of predicted and exact scores below which more cells are run."""
WIDEST = 1 / 10
"""Share of a name's cells that enter the first round at most, however poor the screen is."""
ALWAYS = 24
"""Cells of a name that may all enter it: a grid as small as this can be run whole."""

Worth = tuple[float, ...]
"""What cells are ranked by; later numbers break ties."""
Wanted = tuple[Sequence[Cell], Sequence[int]]
"""Cells that are to be scored on items."""


@dataclass(frozen=True, eq=False, repr=False)
class Search(Shown):
    """The best cell found for every name, and how it was found.

    Attributes:
        quality: a row a name: rank correlation of predicted and exact scores over the cells of
            the first round (``rho``), how many cells were run, and whether there were ``widened``.
        baseline: the unsteered model on all items.
        grid: the cells.
        by: the measure that the best cell is best in.
        chosen: the best cell of each name.
        scored: what the best cells are worth on all items of their names.
    """

    quality: pd.DataFrame
    baseline: Any
    grid: Grid
    by: str
    chosen: Mapping[str, Cell]
    scored: Mapping[str, Any]
    _rows: pd.DataFrame = field(repr=False)

    def table(self) -> pd.DataFrame:
        """A row a live cell.

        Columns: ``name``, ``layer``, ``position``, ``alpha``, the ``predicted`` change of the
        measure, ``items`` it was scored on exactly (0 for most), each measure there with its gain
        over the unsteered model on the same items, and whether it was ``chosen``. Where cells
        ``failed``, that says why.
        """
        return self._rows.copy()

    def best(self, name: str) -> Cell:
        """The cell that was chosen for a name, on these very items: confirm it on others.

        Raises:
            InputError: no such name.
        """
        if name not in self.chosen:
            raise unknown("name", name, self.chosen)
        return self.chosen[name]

    def scores(self, name: str) -> Any:
        """Exact scores of the chosen cell on all items of its name.

        Raises:
            InputError: no such name.
        """
        if name not in self.scored:
            raise unknown("name", name, self.scored)
        return self.scored[name]

    def card(self) -> Card:
        """How many cells were run, and how good the screen was."""
        run = int(self.quality["run"].sum())
        facts = {
            "cells": f"{len(self._rows)} screened, {run} run exactly",
            "screen": f"rank correlation {self.quality['rho'].median():.2f} (median of the names)",
            "names": ", ".join(list(self.chosen)[:6]) + (", ..." if len(self.chosen) > 6 else ""),
        }
        return Card("Search", facts, "search.best(name), search.table(), search.quality")


def search(
    lens: Lens,
    what: Directions | Sequence[Steering] | Mapping[str, Steering],
    task: str | Path | Task[Any] | Sequence[Any] | Prepared,
    *,
    domains: Mapping[str, str] | None = None,
    layers: Sequence[int] | None = None,
    positions: Sequence[int | None] | None = None,
    alphas: Sequence[float] | None = None,
    tokens: Named | None = None,
    method: str | None = None,
    by: str | None = None,
    screened: int = 128,
    seed: int = 0,
    store: str | Path | None = None,
    runner: str | Runner | None = None,
    **options: Unpack[BareOptions],
) -> Search:
    """Find the best cell of every name, scoring a few percent of what :func:`sweep` scores.

    Every cell is predicted to first order, from one forward and one backward pass an item. The
    most promising of each name, and some at random, are scored exactly on an eighth of the
    items (32 at least); the better half goes on to a quarter, and so on. Means on part of the
    items are corrected by what was predicted for the others. Where predicted and exact scores
    of the first round rank differently (rho < 0.5), more cells are run, up to a tenth of them or
    two dozen; ``quality`` says so, and the best of them is then little better than the best of as
    many cells drawn at random.

    Args:
        lens: the model.
        what: the directions or steerings, as for :func:`rolelens.sweep`; nulls are names like any
            other.
        task: questions or texts; generated answers cannot be predicted.
        domains: the domain of each name, whose items it is scored on; all by default.
        layers: the first 80 % of the model's layers by default (2502.12055 eq. 6).
        positions: all positions of the directions by default.
        alphas: raw strengths, 1 and 3 by default.
        tokens: which tokens are steered; all by default.
        method: how the options of questions are scored, see :func:`rolelens.evaluate`.
        by: the measure that the best cell is best in: a metric of one's own, which has to be
            differentiable, where one is given; else ``margin``, or ``accuracy`` with ties broken by
            margin.
        screened: items of each domain that the prediction is made from, at most.
        seed: of the order of the items and of the random cells.
        store: a file that keeps each finished piece, as for :func:`rolelens.sweep`, and the
            predictions.
        runner: who scores, and predicts, as for :func:`rolelens.sweep`.
        options: how the task is put, see :class:`rolelens.tasks.Options`.

    Raises:
        InputError: as for :func:`rolelens.sweep`; a name without a domain, a domain without items,
            or cells or measures that cannot be predicted.
    """
    if screened < 1:
        raise InputError(f"screened is {screened}; it has to be 1 or more.")
    checked_seed(seed)
    grid = grid_of(
        lens, what, layers=layers, positions=positions, alphas=alphas, tokens=tokens, change=None
    )
    prepared = tasks.prepare(lens, task, method, **options)
    check_predictable(prepared, grid.live)
    parts = parts_of(grid, prepared, domains)
    for name in grid.names:
        if all(cell.is_zero for cell in grid.cells if cell.name == name):
            raise InputError(f"every cell of {name!r} is zero: its directions are zero.")
    settings: dict[str, Any] = {"kind": "search", "by": by, "screened": screened, "seed": seed}
    settings["domains"] = dict(domains or {})
    with (
        running(runner) as workers,
        Run(lens, prepared, grid, settings=settings, store=store, runner=workers) as run,
    ):
        run.score([UNSTEERED], range(len(prepared.task)), "unsteered")
        baseline = run.scores(UNSTEERED)
        measure = _measure(baseline, by)
        check_gradient(baseline, measure)
        races = [
            _Race(run, names, items, measure, screened, np.random.default_rng([seed, n]))
            for n, (items, names) in enumerate(parts.items())
        ]
        _screen(run, races)
        _race(run, races)
    return _result(run, races, measure)


def _screen(run: Run, races: Sequence["_Race"]) -> None:
    """Predict the cells of all races; what the store has is not predicted again."""
    asked = {race: race.screening() for race in races if not race.restored()}
    owner = {call: race for race, screening in asked.items() for call in screening.calls}
    with closing(track(run.gradients(list(owner)), "screen", total=len(owner))) as given:
        for call, gradient in given:
            race = owner[call]
            asked[race].add(call, gradient)
            if asked[race].complete:
                race.screened(asked.pop(race).predicted())
    for race, screening in asked.items():  # nothing had to be read to predict them
        race.screened(screening.predicted())


def _race(run: Run, races: Sequence["_Race"]) -> None:
    """Run all races side by side: what they ask for in their rounds is scored together."""
    going = [race.steps() for race in races]
    while going:
        asked = [(steps, next(steps, None)) for steps in going]
        going = [steps for steps, wanted in asked if wanted is not None]
        run.score_all([wanted for _, wanted in asked if wanted is not None], "search")


def _measure(baseline: Any, by: str | None) -> str:
    """The measure that is meant."""
    if by is None:
        ranked = [name for name in baseline.measures if name != "accuracy"]
        return str((ranked or baseline.measures)[0])
    if by not in baseline.measures:
        raise InputError(f"by is {by!r}; it has to be one of {', '.join(baseline.measures)}.")
    return by


def parts_of(
    grid: Grid, prepared: Prepared, domains: Mapping[str, str] | None
) -> dict[tuple[int, ...], list[str]]:
    """Names by the items they are scored on."""
    parts: dict[tuple[int, ...], list[str]] = {}
    for name in grid.names:
        if domains is not None and name not in domains:
            raise unknown("domain for", name, domains)
        items = [
            n
            for n, item in enumerate(prepared.task)
            if domains is None or item.domain == domains[name]
        ]
        if not items:
            raise unknown("domain", domains[name] if domains else "", prepared.task.domains)
        parts.setdefault(tuple(items), []).append(name)
    return parts


def ends_of(items: int) -> list[int]:
    """How many items the cells still in the race have answered after each round."""
    fewest = min(FEWEST_ITEMS, items)
    return sorted({max(fewest, round(share * items)) for share in ROUNDS})


def entrants(cells: int) -> tuple[int, int]:
    """How many of a name's cells enter the first round, and at most, where the screen is poor."""
    most = min(cells, max(ALWAYS, round(WIDEST * cells)))
    return max(AT_LEAST, round(FIRST_SHARE * cells)), most


class _Race:
    """The cells of some names on some items: screened, then fewer and fewer on more items.

    Attributes:
        cells: the live cells.
        predicted: change of the measure, for each cell and screened item.
        chosen: the best cell of each name.
        rho: rank correlation of predicted and exact scores in the first round, by name.
        widened: whether more cells were run because it was low.
    """

    def __init__(
        self,
        run: Run,
        names: Sequence[str],
        items: Sequence[int],
        by: str,
        screened: int,
        rng: np.random.Generator,
    ) -> None:
        self.run, self.names, self.by, self.rng = run, list(names), by, rng
        self.order = [items[n] for n in rng.permutation(len(items))]
        self.seen = self.order[:screened]
        self.cells = [cell for cell in run.grid.live if cell.name in set(names)]
        self.ends = ends_of(len(self.order))
        self.underlying = "margin" if by == "accuracy" else by
        self.predicted: Float[Tensor, "cell screened"] = torch.empty(0, 0)
        self.promise: dict[Cell, Worth] = {}
        self.rows: dict[Cell, int] = {cell: n for n, cell in enumerate(self.cells)}
        self.entered: dict[str, list[Cell]] = {name: [] for name in self.names}
        self.chosen: dict[str, Cell] = {}
        self.rho: dict[str, float] = {}
        self.widened: dict[str, bool] = {}

    def steps(self) -> Generator[Wanted, None, None]:
        """Have a first round scored, halve, and choose; gives what is to be scored next."""
        yield from self.first_round()
        alive = yield from self.halve()
        for name in self.names:
            if not alive[name]:
                why = self.run.failed[self.entered[name][0]]
                raise InputError(f"no cell of {name!r} that was tried could be scored: {why}.")
            worth = self.standing(alive[name], len(self.order))
            self.chosen[name] = max(alive[name], key=worth.__getitem__)

    @cached_property
    def key(self) -> str:
        """What the predictions are kept by."""
        content = json.dumps([self.by, self.seen, [cell.steering.sha for cell in self.cells]])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def restored(self) -> bool:
        """Take the predictions from the store, if it has them."""
        shape = len(self.cells), len(self.seen)
        kept = self.run.store.predictions(self.key) if self.run.store else None
        if kept is None or kept.size != shape[0] * shape[1]:
            return False
        self._promised(torch.from_numpy(kept.reshape(shape).copy()))
        return True

    def screening(self) -> Screening:
        """What it takes to predict every cell."""
        run = self.run
        records = run.records[run.place[UNSTEERED], self.seen]
        return Screening(run.prepared, self.seen, records, self.cells, self.by, run.budget)

    def screened(self, predicted: Float[Tensor, "cell screened"]) -> None:
        """Take what was predicted, and keep it."""
        if self.run.store:
            self.run.store.predict(self.key, predicted.numpy())
        self._promised(predicted)

    def _promised(self, predicted: Float[Tensor, "cell screened"]) -> None:
        self.predicted = predicted
        before = self.values(UNSTEERED, self.seen)
        self.promise = {
            cell: self.worth(before + row)
            for cell, row in zip(self.cells, self.predicted, strict=True)
        }

    def first_round(self) -> Generator[Wanted, None, None]:
        """Score the most promising cells; more of a name whose screen turns out poor."""
        first = self.order[: self.ends[0]]
        waiting: dict[str, Iterator[Cell]] = {}
        wanted: dict[str, int] = {}
        most: dict[str, int] = {}
        for name in self.names:
            cells = [cell for cell in self.cells if cell.name == name]
            wanted[name], most[name] = entrants(len(cells))
            waiting[name] = _queue(cells, self.promise, self.rng)
        unsure = list(self.names)
        while unsure:
            new = [
                cell
                for name in unsure
                for cell in islice(
                    waiting[name], min(wanted[name], most[name] - len(self.entered[name]))
                )
            ]
            yield new, first
            for cell in new:
                self.entered[cell.name].append(cell)
            for name in list(unsure):
                cells = self.scored(self.entered[name], self.ends[0])
                self.rho[name] = _agreement(
                    [self.promise[cell] for cell in cells],
                    [self.exact(cell, self.ends[0]) for cell in cells],
                )
                if self.rho[name] >= GOOD or len(self.entered[name]) >= most[name]:
                    unsure.remove(name)
        self.widened = {name: len(self.entered[name]) > wanted[name] for name in self.names}

    def halve(self) -> Generator[Wanted, None, dict[str, list[Cell]]]:
        """Score the better half of each name's cells on more items, round by round."""
        alive = {name: self.scored(self.entered[name], self.ends[0]) for name in self.names}
        for begin, end in pairwise(self.ends):
            for name in self.names:
                worth = self.standing(alive[name], begin)
                ranked = sorted(alive[name], key=worth.__getitem__)
                alive[name] = ranked[len(ranked) // 2 :]
            cells = [cell for name in self.names for cell in alive[name]]
            yield cells, self.order[begin:end]
            alive = {name: self.scored(alive[name], end) for name in self.names}
        return alive

    def scored(self, cells: Sequence[Cell], end: int) -> list[Cell]:
        """Those that did not fail on the first items, whatever became of them on later ones."""
        return [cell for cell in cells if self.run.is_scored(cell, self.order[:end])]

    def values(self, cell: Cell, items: Sequence[int]) -> Float[Tensor, " item"]:
        """The measure that is predicted, of a cell."""
        scored: Tensor = self.run.scores(cell, items).measure(self.underlying)
        return scored

    def exact(self, cell: Cell, end: int) -> Worth:
        """What a cell is worth on the first items."""
        return self.worth(self.values(cell, self.order[:end]))

    def standing(self, cells: Sequence[Cell], end: int) -> dict[Cell, Worth]:
        """What cells are worth on all items, judged by the first."""
        if self.by == "accuracy" or not cells:
            return {cell: self.exact(cell, end) for cell in cells}
        scored = torch.stack([self.values(cell, self.order[:end]) for cell in cells])
        gains = scored - self.values(UNSTEERED, self.order[:end])
        predicted = torch.stack([self.predicted[self.rows[cell]] for cell in cells])
        means = controlled(gains, predicted.double())
        return {cell: (mean,) for cell, mean in zip(cells, means, strict=True)}

    def worth(self, values: Float[Tensor, " item"]) -> Worth:
        """What cells are ranked by."""
        mean = float(values.double().mean())
        mean = -math.inf if math.isnan(mean) else mean  # predicted of what is too strong
        if self.by == "accuracy":
            return float((values > 0).double().mean()), mean
        return (mean,)


def _queue(
    cells: Sequence[Cell], promise: Mapping[Cell, Worth], rng: np.random.Generator
) -> Iterator[Cell]:
    """The order in which cells are run: the most promising first, some drawn at random between."""
    ranked = sorted(cells, key=lambda cell: promise[cell], reverse=True)
    period = round(1 / RANDOM_SHARE)
    for turn in range(len(cells)):
        drawn = int(rng.integers(len(ranked))) if turn % period == period - 1 else 0
        yield ranked.pop(drawn)


def _agreement(predicted: Sequence[Worth], exact: Sequence[Worth]) -> float:
    """Rank correlation of predicted and exact scores; 0 where either are all the same."""
    ranks = [[sorted(values).index(v) for v in values] for values in (predicted, exact)]
    varied = all(len(set(values)) > 1 for values in ranks)
    return float(scipy.stats.spearmanr(*ranks).statistic) if varied else 0.0


def _result(run: Run, races: Sequence[_Race], by: str) -> Search:
    rows, quality = [], []
    chosen = {name: cell for race in races for name, cell in race.chosen.items()}
    for race in races:
        names = []
        for cell, predicted in zip(race.cells, race.predicted, strict=True):
            items = run.scored_items(cell)
            row = {**cell.label, "predicted": float(predicted.mean()), "items": len(items)}
            if items:
                scored, before = run.scores(cell, items), run.scores(UNSTEERED, items)
                for name in scored.measures:
                    row[name] = scored.mean(name)
                    row[f"{name}_gain"] = row[name] - before.mean(name)
                names.append(cell.name)
            if run.failed:
                row["failed"] = run.failed.get(cell, "")
            rows.append({**row, "chosen": chosen[cell.name] is cell})
        for name in race.names:
            quality.append(
                {
                    "name": name,
                    "rho": race.rho[name],
                    "cells": sum(cell.name == name for cell in race.cells),
                    "run": names.count(name),
                    "widened": race.widened[name],
                }
            )
    scored_best = {name: run.scores(cell, run.scored_items(cell)) for name, cell in chosen.items()}
    return Search(
        pd.DataFrame(quality),
        run.scores(UNSTEERED),
        run.grid,
        by,
        chosen,
        scored_best,
        pd.DataFrame(rows),
    )
