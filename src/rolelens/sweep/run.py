"""One run over cells and questions: what is scored, in memory and in a store."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rolelens.benchmarks import Benchmark
from rolelens.errors import InputError
from rolelens.forward import TOKEN_BUDGET, Selection, selects
from rolelens.lens import Lens
from rolelens.progress import track
from rolelens.scoring import Prepared, Scores
from rolelens.sweep.engine import KEPT_BYTES, PIECE_TOKENS, Engine
from rolelens.sweep.grid import UNSTEERED, Grid, Key
from rolelens.sweep.store import PLANNED, Store


class Run:
    """Scores cells on questions, in pieces; a piece that the store has is not scored again.

    A repeated run asks for the same pieces in the same order, and a piece runs in the same
    batches, so that a resumed run gives the same numbers.

    Attributes:
        logprobs: option log-probabilities (nats) of every cell, the unsteered model first; NaN
            where nothing was scored.
        place: row of each cell in it.
        live: the cells that change anything.
    """

    def __init__(
        self,
        lens: Lens,
        prepared: Prepared,
        grid: Grid,
        tokens: Selection,
        benchmark: Benchmark,
        *,
        settings: Mapping[str, Any],
        store: str | Path | None,
    ) -> None:
        self.lens, self.prepared, self.grid, self.tokens = lens, prepared, grid, tokens
        cells = [UNSTEERED, *grid.keys]
        self.place = {key: n for n, key in enumerate(cells)}
        self.live = [key for key in grid.keys if not grid.is_null(key)]
        shape = (len(cells), len(prepared.questions), prepared.n_options)
        self.logprobs: Float[Tensor, "cell question option"] = torch.full(shape, torch.nan)
        if store and any(question.also for question in prepared.questions):
            raise InputError(
                "a store keeps one correct option of a question, and some of these have more (as "
                "TruthfulQA's MC2 has); pass store=None, or sweep MC1."
            )
        self._check_selection()
        self._store = self._open(store, benchmark, settings) if store else None
        self._pieces = self._asked = 0
        self._budget = TOKEN_BUDGET
        if self._store:
            self.logprobs = self._store.load()
            self._pieces = len(self._store.done)
            self._budget = self._store.notes.get("budget", TOKEN_BUDGET)

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

    def score(self, cells: Sequence[Key], questions: Sequence[int], what: str = "sweep") -> None:
        """Score some cells, live ones or the unsteered model, on some questions."""
        engine = Engine(
            self.lens, self.prepared.take(questions), self.grid, self.tokens, self._budget
        )
        pieces = engine.plan(cells)
        if self._store:
            self._store.note(PLANNED, self._asked + len(pieces))
        self._asked += len(pieces)
        for piece in track(pieces, what, total=len(pieces)):
            asked = [questions[n] for n in engine.groups[piece.group]]
            # By what is known and not by number: a search that goes on elsewhere may ask otherwise.
            missing = tuple(key for key in piece.cells if not self._known(key, asked))
            if not missing:
                continue
            piece = dataclasses.replace(piece, cells=missing)
            found, seconds = engine.run(piece)
            if engine.budget != self._budget:
                self._budget = engine.budget
                if self._store:
                    self._store.note("budget", self._budget)
            rows = [self.place[key] for key in piece.cells]
            if rows == [0]:  # null cells are the unsteered model
                rows += [self.place[key] for key in self.grid.keys if self.grid.is_null(key)]
                found = found.expand(len(rows), -1, -1)
            wide = torch.full((*found.shape[:2], self.logprobs.shape[-1]), -torch.inf)
            wide[..., : found.shape[-1]] = found
            self._keep(rows, asked, wide, seconds)

    def scored(self, key: Key) -> list[int]:
        """The questions a cell was scored on."""
        return (~self.logprobs[self.place[key], :, 0].isnan()).nonzero()[:, 0].tolist()

    def scores(self, key: Key, questions: Sequence[int] | None = None) -> Scores:
        """Scores of a cell on some questions, on all by default."""
        chosen = range(len(self.prepared.questions)) if questions is None else questions
        own = [self.prepared.questions[n] for n in chosen]
        return Scores.of(own, self.logprobs[self.place[key], list(chosen)], self.prepared.method)

    def _check_selection(self) -> None:
        """Refuse to steer nothing: a letter, or the last token of an option, is never an input."""
        tokens = self.prepared.tokens
        last = 0 if self.prepared.method == "letter" else 1
        lengths = [len(ids) - last for ids in tokens.ids]
        if not selects(self.tokens, lengths, tokens.prompt_lengths, tokens.n_post):
            raise InputError(
                f"tokens is {self.tokens!r}, which is none of the tokens that the model reads in "
                f"method {self.prepared.method!r}; use 'all' or 'prompt'."
            )

    def _known(self, key: Key, questions: Sequence[int]) -> bool:
        return not self.logprobs[self.place[key], list(questions), 0].isnan().any()

    def _keep(
        self,
        cells: Sequence[int],
        questions: Sequence[int],
        logprobs: Float[Tensor, "cell question option"],
        seconds: float,
    ) -> None:
        rows = torch.tensor(list(cells))[:, None]
        self.logprobs[rows, torch.tensor(list(questions))] = logprobs
        if self._store:
            self._store.commit(self._pieces, cells, questions, logprobs, seconds)
            self._pieces += 1

    def _open(self, path: str | Path, benchmark: Benchmark, settings: Mapping[str, Any]) -> Store:
        source, grid = self.lens.source, self.grid
        selection = self.tokens if isinstance(self.tokens, str) else list(self.tokens)
        provenance = {
            "model": source.model,
            "weights": source.weights,
            "content": self.lens.content,
            "model_class": source.model_class,
            "centred": source.centred,
            "dtype": source.dtype,
            "template": source.template,
            "device": str(self.lens.model.cfg.device),
            "benchmark": benchmark.name,
            "questions": benchmark.sha,
            "method": self.prepared.method,
            "letters": list(self.prepared.letters),
            "tokens": selection,
            "change": grid.change,
            "vectors": grid.sha,
            "batches": [TOKEN_BUDGET, KEPT_BYTES, PIECE_TOKENS],
            **settings,
            "rolelens": source.version,
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
        }
        questions = [(q.id, q.domain, q.answer) for q in self.prepared.questions]
        return Store.open(
            path,
            provenance,
            pd.DataFrame(list(self.place)),
            pd.DataFrame(questions, columns=["id", "domain", "answer"]),
            self.prepared.n_options,
        )
