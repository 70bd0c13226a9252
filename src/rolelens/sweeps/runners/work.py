"""What workers are given and do: a model loaded once, cells scored and predicted with it."""

import dataclasses
import json
import pickle
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import torch

from rolelens import forward, loading
from rolelens.errors import InputError
from rolelens.lens import Lens
from rolelens.sweeps.cells import Cell, CellRow, restored_cell
from rolelens.sweeps.engine import Engine, GeneratingEngine, Piece, engine_for
from rolelens.tasks import Generated, Prepared, Records, Tokenised
from rolelens.tasks.problems import right_number


@dataclass(frozen=True)
class Model:
    """How a worker loads the model, and what it then has to be.

    Attributes:
        arguments: of :func:`rolelens.load`.
        facts: what is known of the model, see :func:`facts`.
        threads: of torch.
    """

    arguments: Mapping[str, Any]
    facts: Mapping[str, Any]
    threads: int


@dataclass(frozen=True)
class Known:
    """What a run is of: a worker gets it once.

    Attributes:
        prepared: the task, without what judges answers, which stays where it was defined.
        cells: the cells of the run, in its order, without their vectors.
        directions: float32 vectors by their hash.
    """

    prepared: Prepared
    cells: tuple[CellRow, ...]
    directions: Mapping[str, npt.NDArray[np.float32]]

    def restored(self, rows: Sequence[int]) -> list[Cell]:
        """Some of the cells, whole."""
        wanted = [self.cells[row] for row in rows]
        shas = {step["direction"]["sha"] for row in wanted for step in json.loads(row[-1])["steps"]}
        vectors = {sha: torch.from_numpy(self.directions[sha].copy()) for sha in shas}
        return [restored_cell(row, vectors) for row in wanted]


@dataclass(frozen=True)
class Parcel:
    """Something that a worker gets once.

    Attributes:
        key: what it is known by.
        content: it, pickled; None where the worker has it.
    """

    key: str
    content: bytes | None = None

    def unpacked(self) -> Known:
        """What is in it."""
        assert self.content is not None
        known: Known = pickle.loads(self.content)
        return known


@dataclass(frozen=True, eq=False)
class Round:
    """Cells that are scored on items.

    Attributes:
        items: which items of the task.
        cells: which cells of the run, in order.
        budget: tokens of one batch.
        key: what it is known by.
    """

    items: tuple[int, ...]
    cells: tuple[int, ...]
    budget: int
    key: str = field(default_factory=lambda: uuid4().hex)


@dataclass(frozen=True, eq=False)
class Score:
    """One piece to score.

    Attributes:
        asked: the round it is of.
        group: which group of items.
        items: the items of the group, counted within the round.
        cells: which cells of the run.
    """

    asked: Round
    group: int
    items: tuple[int, ...]
    cells: tuple[int, ...]

    @property
    def shared(self) -> tuple[str, int]:
        """What a worker runs once for all calls that have it."""
        return self.asked.key, self.group


@dataclass(frozen=True, eq=False)
class Gradient:
    """One batch whose gradients are wanted, see :func:`rolelens.forward.gradients`.

    Attributes:
        rows: of the task's tokens.
        weights: of what is read of each, ``[row, read]``.
        layers: where.
        selections: of tokens.
    """

    rows: tuple[int, ...]
    weights: npt.NDArray[np.float32]
    layers: tuple[int, ...]
    selections: tuple[Any, ...]
    shared: ClassVar[None] = None


Call = Score | Gradient


@dataclass(frozen=True)
class Outcome:
    """What came of something a worker was asked for.

    Attributes:
        kind: ``done``; ``refused``, in one sentence; ``failed``, by a mistake of the program.
        value: of what was done.
        text: of what went wrong.
    """

    kind: Literal["done", "refused", "failed"]
    value: Any = None
    text: str = ""

    def checked(self) -> Any:
        """The value.

        Raises:
            InputError: it was refused.
            RuntimeError: it failed.
        """
        if self.kind == "refused":
            raise InputError(self.text)
        if self.kind == "failed":
            raise RuntimeError(f"a worker failed:\n{self.text}")
        return self.value


@dataclass(frozen=True)
class Finished:
    """A piece that was scored.

    Attributes:
        records: what is kept, ``[cell, item, column]``.
        seconds: how long it took.
        budget: tokens of one batch that memory had room for.
    """

    records: Records
    seconds: float
    budget: int


class Worker:
    """Scores what it is given with a model that it loads once."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._lens: Lens | None = None
        self._known: tuple[str, Known] | None = None
        self._engine: tuple[str, Engine[Any], dict[int, Cell]] | None = None

    def load(self) -> Outcome:
        """Load the model, if it is not loaded yet."""
        try:
            if self._lens is None:
                self._lens = _loaded(self._model)
        except BaseException as error:
            return _told(error)
        return Outcome("done")

    def answer(self, parcel: Parcel, call: Call) -> Outcome:
        """Do what is asked."""
        loaded = self.load()
        if loaded.kind != "done":
            return loaded
        assert self._lens is not None
        try:
            known = self._opened(parcel)
            if isinstance(call, Score):
                return Outcome("done", self._score(self._lens, known, call))
            return Outcome("done", gradient(self._lens, known.prepared, call))
        except BaseException as error:
            return _told(error)

    def _opened(self, parcel: Parcel) -> Known:
        if self._known is None or self._known[0] != parcel.key:
            self._known = self._engine = None
            try:
                self._known = parcel.key, parcel.unpacked()
            except (AttributeError, ImportError) as error:
                raise InputError(
                    f"a worker cannot make out what is asked ({error}); define the task in a "
                    "module that workers can import, or take runner='local'."
                ) from error
        return self._known[1]

    def _score(self, lens: Lens, known: Known, call: Score) -> Finished:
        asked = call.asked
        if self._engine is None or self._engine[0] != asked.key:
            self._engine = None
            cells = known.restored(asked.cells)
            made = engine_for(lens, known.prepared.take(asked.items), asked.budget, cells)
            self._engine = asked.key, made, dict(zip(asked.cells, cells, strict=True))
        _, engine, of_row = self._engine
        if isinstance(engine, GeneratingEngine):  # it puts together what the memory here holds
            engine.groups = [call.items]
            call = dataclasses.replace(call, group=0)
        if engine.groups[call.group] != call.items:
            raise RuntimeError("items were put together otherwise than where the run was begun")
        cells = [of_row[row] for row in call.cells]
        if any(cell.is_zero for cell in cells):
            engine.forget()  # what was run before must not matter
        records, seconds = engine.run(Piece(call.group, tuple(cells)))
        return Finished(records, seconds, engine.budget)


def facts(lens: Lens) -> dict[str, Any]:
    """What the scores of a model depend on, wherever it is."""
    source = lens.source
    return {
        "weights": source.weights,
        "content": lens.content,
        "model_class": source.model_class,
        "centred": source.centred,
        "dtype": source.dtype,
        "template": source.template,
    }


def bare(prepared: Prepared) -> Prepared:
    """A task without what judges answers: functions of one's own stay where they were defined."""
    prepared = dataclasses.replace(prepared, metric=None)
    if isinstance(prepared, Generated):
        return dataclasses.replace(prepared, verifier=right_number)
    return prepared


def _loaded(model: Model) -> Lens:
    torch.set_num_threads(model.threads)
    lens = loading.load(**model.arguments)
    here = facts(lens)
    other = [name for name, value in model.facts.items() if here[name] != value]
    if other:
        told = ", ".join(f"{name} {model.facts[name]} -> {here[name]}" for name in other)
        raise InputError(
            f"a worker that loads {model.arguments['model']!r} gets another model ({told}); give "
            "workers the same files, and do not change the model after loading it."
        )
    return lens


def gradient(lens: Lens, prepared: Prepared, call: Gradient) -> npt.NDArray[np.float32]:
    """The gradients of a batch, ``[row, selection, layer, d_model]``."""
    assert isinstance(prepared, Tokenised)
    batches = forward.gradients(
        lens.model,
        prepared.tokens.take(call.rows),
        call.layers,
        call.selections,
        vocab=prepared.vocab,
        weights=torch.from_numpy(call.weights.copy()),
    )
    shape = (len(call.rows), len(call.selections), len(call.layers), lens.d_model)
    out = np.empty(shape, dtype=np.float32)
    for rows, summed in batches:
        out[rows.numpy()] = summed.numpy()
    return out


def _told(error: BaseException) -> Outcome:
    if isinstance(error, InputError):
        return Outcome("refused", text=str(error))
    return Outcome("failed", text="".join(traceback.format_exception(error)))
