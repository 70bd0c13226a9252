"""One run over cells and items: what is scored, in memory and in a store."""

import dataclasses
import json
import sys
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from rolelens import forward, hooks
from rolelens.errors import InputError
from rolelens.lens import Lens
from rolelens.progress import track
from rolelens.sweeps.cells import UNSTEERED, Cell, Grid, cell_row
from rolelens.sweeps.database import Content, lacking
from rolelens.sweeps.engine import Engine, Piece, engine_for
from rolelens.sweeps.runners import (
    Finished,
    Gradient,
    Known,
    Round,
    Runner,
    Score,
    bare,
    gradient,
    sharded,
)
from rolelens.sweeps.store import PLANNED, Store
from rolelens.tasks import (
    Generated,
    Prepared,
    Question,
    Records,
    Scored,
    Tokenised,
    check_on_text,
    says_plainly,
    task_fields,
)

_Done: TypeAlias = Generator[tuple["_Part", Piece, Finished], None, None]

NAN = "its scores are NaN; leave out this strength, or load the model in float32"
"""Why a cell failed."""


class Run:
    """Scores cells on items, in pieces; what the store has is not scored again.

    A repeated run asks for the same pieces in the same order, and a piece runs in the same
    batches, so that a resumed run gives the same numbers.

    Attributes:
        records: what was scored of each cell and item, the unsteered model first; NaN or None
            where nothing was.
        place: row of each cell in it.
        failed: cells that cannot be scored, and why; they are not tried again.
    """

    def __init__(
        self,
        lens: Lens,
        prepared: Prepared,
        grid: Grid,
        *,
        settings: Mapping[str, Any],
        store: str | Path | None,
        runner: Runner | None = None,
    ) -> None:
        self.lens, self.prepared, self.grid, self.runner = lens, prepared, grid, runner
        self.cells = [UNSTEERED, *grid.cells]
        self.place = {cell: n for n, cell in enumerate(self.cells)}
        shape = (len(self.cells), len(prepared.task), len(prepared.columns))
        missing = None if prepared.dtype == object else np.nan
        self.records: Records = np.full(shape, missing, dtype=prepared.dtype)
        check_effect(lens, prepared, grid.live)
        if runner is not None:
            runner.arguments(lens)  # what workers cannot load is refused before a file is made
        says_plainly(prepared)
        self._store = Store.open(store, self._content(settings)) if store else None
        self.failed: dict[Cell, str] = {}
        self._pieces = 0
        self._budget = budget_of(lens, prepared)
        if self._store:
            self.records = self._store.load()
            self._pieces = max(self._store.done, default=-1) + 1
            self.failed = {self.cells[n]: why for n, why in self._store.failures.items()}
            self._budget = self._store.notes.get("budget", self._budget)
            self._store.note("budget", self._budget)

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._store:
            if kind is not None and issubclass(kind, KeyboardInterrupt):
                print(
                    f"\nStopped. {len(self._store.done)} finished pieces are kept in "
                    f"{self._store.path}; repeat the same call to go on.",
                    file=sys.stderr,
                )
            self._store.close()
        if self.failed and kind is None:
            cell, why = next(iter(self.failed.items()))
            warnings.warn(
                f"{len(self.failed)} of {len(self.grid.cells)} cells failed, such as {cell}: {why}."
                " The others were scored.",
                stacklevel=3,
            )

    @property
    def budget(self) -> int:
        """Tokens of one batch."""
        return self._budget

    @property
    def _device(self) -> str:
        return str(self.lens.model.cfg.device) if not self.runner else self.runner.device(self.lens)

    @property
    def store(self) -> Store | None:
        """Where finished pieces are kept."""
        return self._store

    def score(self, cells: Sequence[Cell], items: Sequence[int], what: str = "sweep") -> None:
        """Score some cells, live ones or the unsteered model, on some items."""
        self.score_all([(cells, items)], what)

    def score_all(
        self, asked: Sequence[tuple[Sequence[Cell], Sequence[int]]], what: str = "sweep"
    ) -> None:
        """Score some cells on some items, others on others; workers do all of it side by side."""
        parts = [_Part(self, cells, items) for cells, items in asked]
        left = sum(len(part.left) for part in parts)
        if self._store:
            self._store.note(PLANNED, len(self._store.done) + left)
        done = self._scored_here(parts) if self.runner is None else self._scored_there(parts)
        with closing(done), closing(track(done, what, total=left)) as tracked:
            for part, piece, finished in tracked:
                if finished.budget < self._budget:
                    self._budget = finished.budget
                    if self._store:
                        self._store.note("budget", self._budget)
                lost, records = self._without_failed(piece.cells, finished.records)
                rows = [self.place[cell] for cell in piece.cells if cell not in lost]
                if 0 in rows:  # cells in which nothing is done are the unsteered model
                    zeros = [self.place[cell] for cell in self.grid.cells if cell.is_zero]
                    unsteered = records[[rows.index(0)] * len(zeros)]
                    rows, records = [*rows, *zeros], np.concatenate([records, unsteered])
                chosen = [part.items[n] for n in part.engine.groups[piece.group]]
                self._keep(rows, chosen, self._wide(records), finished.seconds)
                for cell in lost:
                    self.failed[cell] = NAN
                    if self._store:
                        self._store.fail(self.place[cell], NAN)

    def _scored_here(self, parts: Sequence["_Part"]) -> _Done:
        for part in parts:
            part.engine.budget = min(part.engine.budget, self._budget)
            for piece in part.left:
                live = tuple(cell for cell in piece.cells if cell not in self.failed)
                if not live:
                    continue
                piece = dataclasses.replace(piece, cells=live)
                records, seconds = part.engine.run(piece)
                yield part, piece, Finished(records, seconds, part.engine.budget)
            part.engine.forget()

    def _scored_there(self, parts: Sequence["_Part"]) -> _Done:
        assert self.runner is not None
        calls: dict[Any, tuple[_Part, Piece]] = {}
        cut: list[list[Score]] = []
        for part in parts:
            rows = tuple(self.place[cell] for cell in part.cells)
            asked = Round(tuple(part.items), rows, part.engine.budget)
            for shard in sharded(part.engine, part.left, self.runner.workers):
                cut.append([])
                for piece in shard:
                    cells = tuple(self.place[cell] for cell in piece.cells)
                    call = Score(asked, piece.group, part.engine.groups[piece.group], cells)
                    calls[call] = part, piece
                    cut[-1].append(call)
        with closing(self.runner.map(self.lens, self.known, cut)) as done:
            for made, scored in done:
                yield *calls[made], scored

    def gradients(self, calls: Sequence[Gradient]) -> Generator[tuple[Gradient, Any], None, None]:
        """The gradients of some batches, as they are there."""
        if self.runner is None or not calls:
            for call in calls:
                yield call, gradient(self.lens, self.prepared, call)
            return
        with closing(self.runner.map(self.lens, self.known, [[call] for call in calls])) as given:
            yield from given  # type: ignore[misc]

    @cached_property
    def known(self) -> Known:
        """What workers are told of the run."""
        rows = tuple(map(cell_row, self.cells))
        return Known(bare(self.prepared), rows, _directions(self.cells))

    def scored_items(self, cell: Cell) -> list[int]:
        """The items a cell was scored on."""
        known = ~self._lacking([self.place[cell]], range(len(self.prepared.task)))[0]
        items: list[int] = known.nonzero()[0].tolist()
        return items

    def is_scored(self, cell: Cell, items: Sequence[int]) -> bool:
        """Whether a cell was scored on all of some items."""
        return not self._lacking([self.place[cell]], items).any()

    def scores(self, cell: Cell, items: Sequence[int] | None = None) -> Any:
        """Scores of a cell on some items, on all by default.

        Raises:
            InputError: the cell failed.
        """
        chosen = range(len(self.prepared.task)) if items is None else items
        if cell in self.failed and not self.is_scored(cell, chosen):
            raise InputError(f"{cell} could not be scored: {self.failed[cell]}.")
        scored: Scored[Any] = self.prepared.scored(
            chosen, self.records[self.place[cell], list(chosen)]
        )
        return scored

    def _lacking(self, rows: Sequence[int], items: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Which items some rows of the records do not have."""
        return lacking(self.records[np.ix_(rows, items)][:, :, 0])

    @staticmethod
    def _without_failed(cells: Sequence[Cell], records: Records) -> tuple[list[Cell], Records]:
        """The cells with a score that is NaN, and what was scored of the others."""
        if records.dtype == object:
            return [], records
        lost = np.asarray(np.isnan(records).any(axis=(1, 2)))
        return [cell for cell, is_lost in zip(cells, lost, strict=True) if is_lost], records[~lost]

    def _wide(self, records: Records) -> Records:
        """What was scored, with as many columns as the task with most options has."""
        lacking = len(self.prepared.columns) - records.shape[-1]
        if not lacking:
            return records
        return np.pad(records, ((0, 0), (0, 0), (0, lacking)), constant_values=-np.inf)

    def _keep(
        self, cells: Sequence[int], items: Sequence[int], records: Records, seconds: float
    ) -> None:
        """Keep what is not known yet: pieces may have been cut otherwise before."""
        blocks: dict[tuple[int, ...], list[int]] = {}
        for n, left in enumerate(self._lacking(cells, items)):
            if left.any():
                blocks.setdefault(tuple(left.nonzero()[0].tolist()), []).append(n)
        for columns, rows in blocks.items():
            block = records[np.ix_(rows, columns)]
            its_cells, its_items = [cells[n] for n in rows], [items[k] for k in columns]
            self.records[np.ix_(its_cells, its_items)] = block
            if self._store:
                share = seconds / len(blocks)
                self._store.commit(self._pieces, its_cells, its_items, block, share)
                self._pieces += 1

    def _content(self, settings: Mapping[str, Any]) -> Content:
        """What the run is of, and all that its scores depend on."""
        source, task = self.lens.source, self.prepared.task
        provenance = {
            "model": source.model,
            "weights": source.weights,
            "content": self.lens.content,
            "model_class": source.model_class,
            "centred": source.centred,
            "dtype": source.dtype,
            "template": source.template,
            "device": self._device,
            "installed": hooks.installed(self.lens),
            "task": task.name,
            "task_kind": type(task).__name__,
            "task_fields": task_fields(task),
            "items": task.sha,
            **self.prepared.settings,
            "axes": dict(self.grid.axes) if self.grid.axes is not None else None,
            "cells": self.grid.sha,
            **settings,
            "rolelens": source.version,
            "verifier": _verifier(self.prepared),
            "threads": self.runner.threads if self.runner else torch.get_num_threads(),
            "torch": str(torch.__version__),
        }
        cells = list(map(cell_row, self.cells))
        items = [
            (item.id, item.domain, _correct(item), json.dumps(dataclasses.asdict(item)))
            for item in task
        ]
        return Content(
            json.loads(json.dumps(provenance)),
            cells,
            items,
            self.prepared.columns,
            _directions(self.cells),
        )


def budget_of(lens: Lens, prepared: Prepared) -> int:
    """Tokens of one batch of a task."""
    longest = max(map(len, prepared.tokens.ids)) if isinstance(prepared, Tokenised) else 512
    return forward.token_budget(lens.model, longest)


class _Part:
    """Cells on items, cut into pieces.

    Attributes:
        cells: which.
        items: which.
        engine: what cut them, and scores them where no workers do.
        left: the pieces that are not scored yet.
    """

    def __init__(self, run: Run, cells: Sequence[Cell], items: Sequence[int]) -> None:
        self.cells, self.items = cells, items
        self.engine: Engine[Any] = engine_for(
            run.lens, run.prepared.take(items), run._budget, cells
        )
        self.left = []
        for piece in self.engine.plan(cells):
            chosen = [items[n] for n in self.engine.groups[piece.group]]
            # By what is known and not by number: a search that goes on elsewhere may ask otherwise.
            unscored = run._lacking([run.place[cell] for cell in piece.cells], chosen)
            cells = [
                cell
                for cell, lacks in zip(piece.cells, unscored, strict=True)
                if lacks.any() and cell not in run.failed
            ]
            if cells:
                self.left.append(dataclasses.replace(piece, cells=tuple(cells)))


def check_effect(lens: Lens, prepared: Prepared, cells: Sequence[Cell]) -> None:
    """Refuse cells that steer none of the tokens that the task has the model read.

    Raises:
        InputError: there is one.
    """
    if isinstance(prepared, Tokenised):
        unread = 0 if prepared.vocab is not None else 1
        seen = {cell.steering.selections: cell.steering for cell in cells}
        for steering in seen.values():
            if not prepared.prompted:
                check_on_text(steering)
            forward.check_effect(lens.model, steering, prepared.tokens, unread=unread)


def _directions(cells: Sequence[Cell]) -> dict[str, npt.NDArray[np.float32]]:
    """The vectors of cells, by their hashes."""
    return {
        direction.sha: direction.vector.detach().float().cpu().numpy()
        for cell in cells
        for direction in cell.steering.directions
    }


def _verifier(prepared: Prepared) -> str | None:
    """What decides whether a text answers a problem rightly; texts do not depend on it."""
    if not isinstance(prepared, Generated):
        return None
    return str(getattr(prepared.verifier, "__name__", type(prepared.verifier).__name__))


def _correct(item: Any) -> int | None:
    """The correct options of a question, as bits."""
    if not isinstance(item, Question):
        return None
    return sum(1 << option for option in (item.answer, *item.also))
