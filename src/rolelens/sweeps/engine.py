"""Scores cells in pieces that are fixed beforehand, so that a run can stop between any two."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from rolelens import forward, tasks
from rolelens.errors import InputError
from rolelens.forward import Layout, Plain, Selection, Shared, Tokens
from rolelens.hooks import by_row
from rolelens.lens import Lens
from rolelens.sweeps.cells import Cell
from rolelens.tasks import Generated, Plainly, Prepared, Records, Tokenised

KEPT_BYTES = 512 << 20
"""What may be kept of a group of items, unsteered; of one item it may be more."""
GROUPS = 8
"""Groups of items that are made where none then runs much twice, so that workers share them out
instead of the layers of one group, below which each would run the same prompts. There are more
where what is kept of them would not fit, and where families of prompts share more."""
GROUP_SHARE = 1 / 16
"""Of a batch, that what one cell edits in a group fills at least."""
PREFIX_SHARE = 1 / 32
"""Of the tokens of a group, that the beginning of all its prompts has at most."""
PIECE_BATCHES = 16
"""Batches of a piece: a few seconds to a minute, which is what a killed run loses at most."""

P = TypeVar("P", bound=Prepared)


@dataclass(frozen=True)
class Piece:
    """Some cells on some items.

    Attributes:
        group: which group of items.
        cells: what is done.
    """

    group: int
    cells: tuple[Cell, ...]


@dataclass
class Engine(ABC, Generic[P]):
    """Scores cells on a task.

    Attributes:
        lens: the model.
        prepared: the task.
        budget: tokens of one batch; halves when memory runs out.
        groups: items that are run together.
    """

    lens: Lens
    prepared: P
    budget: int
    groups: list[tuple[int, ...]] = field(init=False)

    @abstractmethod
    def plan(self, cells: Sequence[Cell]) -> list[Piece]:
        """Cut cells and items into pieces."""

    @abstractmethod
    def score(self, piece: Piece) -> Records:
        """Score a piece once; memory may run out."""

    def run(self, piece: Piece) -> tuple[Records, float]:
        """Score a piece; gives what is kept, ``[cell, item, column]``, and the seconds it took.

        Scores of a cell are NaN where steering is too strong for the dtype.

        Raises:
            InputError: a score of the unsteered model is NaN, or one prompt alone does not fit into
                memory.
        """
        begun = time.perf_counter()
        scored: list[Records] = []
        while not scored:
            with forward.running_out() as ended:
                scored.append(self.score(piece))
            if ended:
                self.forget()
                self.budget //= 2
                forward.shrink(self.lens.model, self.budget)
                if self.budget < 1:
                    raise forward.too_large("one prompt")
        records = scored.pop()
        forward.release_memory()
        if records.dtype != object:
            for cell, values in zip(piece.cells, records, strict=True):
                if cell.is_zero and np.isnan(values).any():
                    raise InputError(
                        "scores of the unsteered model are NaN; load the model in float32."
                    )
        return records, time.perf_counter() - begun

    def forget(self) -> None:
        """Give back what is kept between pieces."""


@dataclass
class SharingEngine(Engine[Tokenised]):
    """Answers that are given: what cells share runs once."""

    layers: tuple[int, ...] = ()
    selections: tuple[Selection, ...] = ("all",)
    _ready: tuple[tuple[Any, ...], Shared | Plain] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        owners = self.prepared.owners.tolist()
        limit = self._limit()
        if self.prepared.prompted:
            rows = forward.groups(self.prepared.tokens, limit)
            self.groups = [tuple(dict.fromkeys(owners[row] for row in group)) for group in rows]
        else:
            self.groups = _packed(owners, list(map(len, self.prepared.tokens.ids)), limit)
        self.parts = [self.prepared.take(group) for group in self.groups]

    def plan(self, cells: Sequence[Cell]) -> list[Piece]:
        """Cut cells into pieces: cells that resume at one layer, on one group of items."""
        together: dict[tuple[Any, ...], list[Cell]] = {}
        for cell in cells:
            key = (_ordered(cell.steering.selections), cell.steering.layer, not cell.is_zero)
            together.setdefault(key, []).append(cell)
        pieces = []
        for group, part in enumerate(self.parts):
            size = self._together(part.tokens)
            for _, alike in sorted(together.items(), key=lambda entry: entry[0]):
                pieces += [
                    Piece(group, tuple(alike[n : n + size])) for n in range(0, len(alike), size)
                ]
        return pieces

    def score(self, piece: Piece) -> Records:
        """Score a piece once."""
        part = self.parts[piece.group]
        if all(cell.is_zero for cell in piece.cells):
            selections = self.selections
            if self._ready and self._ready[0][0] == piece.group:
                selections = self._ready[0][2]
            read = self._prompts(piece.group, selections).unsteered()[None]
            read = read.expand(len(piece.cells), -1, -1)
        else:
            selections = tuple(
                dict.fromkeys(chosen for cell in piece.cells for chosen in cell.steering.selections)
            )
            edit = forward.Edit([cell.steering.operations for cell in piece.cells])
            read = self._prompts(piece.group, selections).steered(edit)
        records: Records = part.values(read).numpy()
        return records

    def forget(self) -> None:
        """Give back the prompts that were run unsteered."""
        self._ready = None

    def _prompts(self, group: int, selections: Sequence[Selection]) -> Shared | Plain:
        """The items of a group, run once unsteered; the last group is kept."""
        key = (group, self.budget, tuple(selections))
        if self._ready is None or self._ready[0] != key:
            self._ready = None
            part = self.parts[group]
            prompts = forward.cells(
                self.lens.model,
                part.tokens,
                self.layers or (0,),
                selections,
                vocab=part.vocab,
                budget=self.budget,
            )
            self._ready = (key, prompts)
        return self._ready[1]

    @property
    def kept_bytes(self) -> int:
        """What is kept of the largest group, unsteered."""
        return max(sum(map(len, part.tokens.ids)) for part in self.parts) * self._token_bytes()

    def _token_bytes(self) -> int:
        """What is kept of a token: its residual stream at every layer, or its keys and values."""
        stream = max(1, len(self.layers)) * self.lens.d_model * self.lens.dtype.itemsize
        return int(max(forward.kept_bytes(self.lens.model), stream))

    def _limit(self) -> int:
        """Tokens of a group at most."""
        fitting = KEPT_BYTES // self._token_bytes()
        if not forward.resumes(self.lens.model):  # cells do not fill a batch together
            return fitting
        layout = Layout.planned(self.prepared.tokens, self.selections, self.budget)
        apart = layout.unedited - layout.prefix
        n = min(
            GROUPS,
            int(layout.edited / (GROUP_SHARE * self.budget)),
            int(PREFIX_SHARE * apart / max(1, layout.prefix)),
        )
        longest = max(map(len, self.prepared.tokens.ids)) - layout.prefix
        return min(fitting, apart // n + longest) if n > 1 else fitting

    def _together(self, tokens: Tokens) -> int:
        """How many cells of a layer make a piece."""
        starts = [ids[:n] for ids, n in zip(tokens.ids, tokens.prompt_lengths, strict=True)]
        shared = forward.common_prefix(starts)
        size = sum(len(ids) - shared for ids in tokens.ids) + shared
        fitting = KEPT_BYTES // 2 // max(1, shared * self._token_bytes())
        return max(1, min(int(PIECE_BATCHES * self.budget) // size, fitting))


@dataclass
class GeneratingEngine(Engine[Generated]):
    """Answers that are generated: cells and problems are rows of one batch."""

    def __post_init__(self) -> None:
        self.tokens = self.lens.encode(self.prepared.prompts, system=self.prepared.system)
        self.longest = max(map(len, self.tokens.ids))
        each = max(1, self.rows // self.prepared.n)
        items = range(len(self.prepared.task))
        self.groups = [tuple(items[n : n + each]) for n in range(0, len(items), each)]

    @property
    def rows(self) -> int:
        """Answers that are generated together."""
        new = self.prepared.max_new_tokens
        budget = forward.generated_budget(self.lens.model, self.longest, new, self.budget)
        return max(1, budget // self.longest)

    def plan(self, cells: Sequence[Cell]) -> list[Piece]:
        """Cut cells into pieces, as many together as a batch holds rows."""
        pieces = []
        for group, items in enumerate(self.groups):
            size = max(1, self.rows // (len(items) * self.prepared.n))
            pieces += [Piece(group, tuple(cells[n : n + size])) for n in range(0, len(cells), size)]
        return pieces

    def score(self, piece: Piece) -> Records:
        """Answer the problems of a piece in all of its cells at once."""
        items, n = self.groups[piece.group], self.prepared.n
        answers = [(item, number) for item in items for number in range(n)]
        rows = [(cell, answer) for cell in piece.cells for answer in answers]
        texts: list[str] = []
        for start in range(0, len(rows), self.rows):
            part = rows[start : start + self.rows]
            hooks = by_row([cell.steering for cell, _ in part])
            chosen = [answer for _, answer in part]
            texts += tasks.generate(self.lens, self.prepared, chosen, hooks)
        return np.array(texts, dtype=object).reshape(len(piece.cells), len(items), n)


@dataclass
class PlainEngine(Engine[Plainly]):
    """A task that scores itself: one call a cell."""

    def __post_init__(self) -> None:
        self.groups = [tuple(range(len(self.prepared.task)))]

    def plan(self, cells: Sequence[Cell]) -> list[Piece]:
        """A piece a cell."""
        return [Piece(0, (cell,)) for cell in cells]

    def score(self, piece: Piece) -> Records:
        """One call of the task's score."""
        return tasks.score_plainly(self.lens, self.prepared, piece.cells[0].steering)[None]


def _packed(owners: Sequence[int], lengths: Sequence[int], limit: int) -> list[tuple[int, ...]]:
    """Items in their order, together as far as their rows stay within a limit of tokens."""
    sizes: dict[int, int] = {}
    for owner, length in zip(owners, lengths, strict=True):
        sizes[owner] = sizes.get(owner, 0) + length
    packed: list[list[int]] = []
    room = 0
    for item, size in sorted(sizes.items()):
        if not packed or size > room:
            packed.append([])
            room = limit
        packed[-1].append(item)
        room -= size
    return [tuple(items) for items in packed]


def engine_for(
    lens: Lens, prepared: Prepared, budget: int, cells: Sequence[Cell]
) -> SharingEngine | GeneratingEngine | PlainEngine:
    """The engine that scores a task.

    Args:
        lens: the model.
        prepared: the task.
        budget: tokens of one batch.
        cells: those that will be scored.
    """
    if isinstance(prepared, Tokenised):
        live = [cell.steering for cell in cells if not cell.is_zero]
        layers = tuple(sorted({steering.layer for steering in live}))
        selections = live[0].selections if live else ("all",)
        return SharingEngine(lens, prepared, budget, layers, selections)
    if isinstance(prepared, Generated):
        return GeneratingEngine(lens, prepared, budget)
    if isinstance(prepared, Plainly):
        return PlainEngine(lens, prepared, budget)
    raise InputError(f"a task prepared as {type(prepared).__name__} has no engine.")


def _ordered(selections: Sequence[Selection]) -> tuple[str, ...]:
    return tuple(sorted(map(str, selections)))
