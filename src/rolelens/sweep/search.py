"""The best cell of every role, without scoring most cells: screen them all, then halve."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import spearmanr
from torch import Tensor

from rolelens import scoring
from rolelens.benchmarks import Benchmark, Question, load_benchmark
from rolelens.display import Card, Shown
from rolelens.errors import InputError, checked_seed, unknown
from rolelens.forward import Selection
from rolelens.lens import Lens
from rolelens.progress import track
from rolelens.scoring import Method, Prepared, Scores
from rolelens.sweep.grid import UNSTEERED, Cell, Grid, Key, make_grid
from rolelens.sweep.run import Run
from rolelens.sweep.screen import controlled, screen
from rolelens.vectors import RoleVectors, check_sources

By: TypeAlias = Literal["margin", "accuracy"]

ROUNDS = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Share of the questions that the cells still in the race have answered after each round."""
FEWEST_QUESTIONS = 32
"""Questions of the first round at least, where there are so many."""
FIRST_SHARE = 1 / 12
"""Share of a role's cells that enter the first round; each round keeps half of them."""
AT_LEAST = 12
"""Cells of a role that enter the first round at least."""
RANDOM_SHARE = 1 / 4
"""Share of the first round that is drawn at random, to see how good the screen is."""
GOOD = 0.5
"""Rank correlation of predicted and exact scores below which more cells are run."""
WIDEST = 1 / 10
"""Share of a role's cells that enter the first round at most, however poor the screen is."""
ALWAYS = 24
"""Cells of a role that may all enter it: a grid as small as this can be run whole."""


@dataclass(frozen=True, eq=False, repr=False)
class Search(Shown):
    """The best cell found for every role, and how it was found.

    Attributes:
        table: a row a live cell: ``predicted`` change of the margin (nats), ``questions`` it was
            scored on exactly (0 for most), ``margin`` and ``accuracy`` there with their gains over
            the unsteered model on the same questions, and whether it was ``chosen``.
        quality: a row a role: rank correlation of predicted and exact scores over the cells of
            the first round (``rho``), how many cells were run, and whether there were ``widened``.
        baseline: the unsteered model on all questions.
        grid: the cells.
        by: what the best cell is best in.
    """

    table: pd.DataFrame
    quality: pd.DataFrame
    baseline: Scores
    grid: Grid
    by: By
    chosen: Mapping[str, Scores]

    def best(self, role: str) -> Cell:
        """The cell that was chosen for a role, on these very questions: confirm it on others."""
        if role not in self.chosen:
            raise unknown("role", role, self.chosen)
        row = self.table[(self.table["role"] == role) & self.table["chosen"]].iloc[0]
        key = Key(role, int(row["layer"]), int(row["position"]), float(row["alpha"]))
        return Cell(self.grid.direction(key), key.alpha)

    def scores(self, role: str) -> Scores:
        """Exact scores of the chosen cell on all questions of its role."""
        if role not in self.chosen:
            raise unknown("role", role, self.chosen)
        return self.chosen[role]

    def card(self) -> Card:
        """How many cells were run, how good the screen was, and the best cell."""
        run = int((self.table["questions"] > 0).sum())
        top = self.table[self.table["chosen"]].sort_values(f"{self.by}_gain").iloc[-1]
        facts = {
            "cells": f"{len(self.table)} screened, {run} run exactly",
            "screen": f"rank correlation {self.quality['rho'].median():.2f} (median of the roles)",
            f"highest {self.by} gain, where it was chosen": f"{top[f'{self.by}_gain']:+.3f} "
            f"({top['role']}, layer {top['layer']}, position {top['position']}, "
            f"alpha {top['alpha']:g})",
        }
        return Card("Search", facts, "search.best(role), search.table, search.quality")


def search(
    lens: Lens,
    vectors: RoleVectors,
    benchmark: str | Path | Benchmark | Sequence[Question],
    *,
    domains: Mapping[str, str] | None = None,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    alphas: Sequence[float] | None = None,
    tokens: Selection = "all",
    method: Method = "letter",
    by: By = "margin",
    screened: int = 128,
    seed: int = 0,
    store: str | Path | None = None,
) -> Search:
    """Find the best cell of every role, scoring a few percent of what :func:`sweep` scores.

    Every cell is predicted to first order, from one forward and one backward pass a question. The
    most promising of each role, and some at random, are scored exactly on an eighth of the
    questions (32 at least); the better half goes on to a quarter, and so on. Margins on part of the
    questions are corrected by what was predicted for the others. Where predicted and exact scores
    of the first round rank differently (rho < 0.5), more cells are run, up to a tenth of them or
    two dozen; ``quality`` says so, and the best of them is then little better than the best of as
    many cells drawn at random.

    Args:
        lens: the model.
        vectors: the directions; nulls are roles like any other.
        benchmark: the questions.
        domains: the domain of each role, whose questions it is scored on; all by default.
        layers: the first 80 % of the model's layers by default (2502.12055 eq. 6).
        positions: all positions of the vectors by default.
        alphas: raw strengths, 1 and 3 by default.
        tokens: which tokens are steered.
        method: how options are scored, see :func:`rolelens.evaluate`.
        by: what the best cell is best in; ``accuracy`` breaks ties by margin.
        screened: questions of each domain that the prediction is made from, at most.
        seed: of the order of the questions and of the random cells.
        store: a file that keeps every finished piece, as for :func:`rolelens.sweep`; only the
            prediction is made again by a search that goes on.

    Raises:
        InputError: as for :func:`rolelens.sweep`; or a role without a domain, or a domain
            without questions.
    """
    check_sources(vectors.source, lens.source)
    if by not in ("margin", "accuracy"):
        raise InputError(f"by is {by!r}; it has to be 'margin' or 'accuracy'.")
    if screened < 1:
        raise InputError(f"screened is {screened}; it has to be 1 or more.")
    checked_seed(seed)
    grid = make_grid(
        vectors, lens.n_layers, layers=layers, positions=positions, alphas=alphas, change="add"
    )
    if not isinstance(benchmark, Benchmark):
        benchmark = load_benchmark(benchmark)
    prepared = scoring.prepare(lens, benchmark, method)
    tasks = _tasks(grid, prepared, domains)
    for role in vectors.roles:
        if all(grid.is_null(key) for key in grid.keys if key.role == role):
            raise InputError(f"every cell of {role!r} is null: its directions are zero.")
    settings = {
        "kind": f"search by {by}",
        "screened": screened,
        "seed": seed,
        "domains": dict(domains or {}),
    }
    with Run(lens, prepared, grid, tokens, benchmark, settings=settings, store=store) as run:
        run.score([UNSTEERED], range(len(prepared.questions)), "unsteered")
        races = []
        for n, (questions, roles) in enumerate(track(tasks.items(), "search", total=len(tasks))):
            rng = np.random.default_rng([seed, n])
            races.append(_race(run, roles, questions, by, screened, rng))
    return _result(run, races, by)


def _tasks(
    grid: Grid, prepared: Prepared, domains: Mapping[str, str] | None
) -> dict[tuple[int, ...], list[str]]:
    """Roles by the questions they are scored on."""
    tasks: dict[tuple[int, ...], list[str]] = {}
    for role in grid.vectors.roles:
        if domains is not None and role not in domains:
            raise unknown("domain for the role", role, domains)
        own = [
            n
            for n, question in enumerate(prepared.questions)
            if domains is None or question.domain == domains[role]
        ]
        if not own:
            known = {question.domain for question in prepared.questions}
            raise unknown("domain", domains[role] if domains else "", sorted(known))
        tasks.setdefault(tuple(own), []).append(role)
    return tasks


@dataclass(frozen=True)
class _Race:
    """What happened to the cells of some roles on some questions."""

    cells: list[Key]
    predicted: Float[Tensor, "cell screened"]
    chosen: dict[str, Key]
    rho: dict[str, float]
    widened: dict[str, bool]


def _race(
    run: Run,
    roles: Sequence[str],
    questions: Sequence[int],
    by: By,
    screened: int,
    rng: np.random.Generator,
) -> _Race:
    """Screen the cells of some roles, then score fewer and fewer of them on more questions."""
    order = [questions[n] for n in rng.permutation(len(questions))]
    seen = order[:screened]
    cells = [key for key in run.live if key.role in roles]
    base = run.scores(UNSTEERED, seen)
    taken = run.prepared.take(seen)
    predicted = screen(run.lens, taken, base.logprobs, run.grid, cells, run.tokens)
    promise = {
        key: _merit(base.margins + row, by) for key, row in zip(cells, predicted, strict=True)
    }
    fewest = min(FEWEST_QUESTIONS, len(order))
    ends = sorted({max(fewest, round(share * len(order))) for share in ROUNDS})
    foreseen = dict(zip(cells, predicted, strict=True))
    entered: dict[str, list[Key]] = {}
    rho: dict[str, float] = {}
    waiting: dict[str, Iterator[Key]] = {}
    wanted: dict[str, int] = {}
    most: dict[str, int] = {}
    for role in roles:
        own = [key for key in cells if key.role == role]
        wanted[role] = max(AT_LEAST, round(FIRST_SHARE * len(own)))
        most[role] = min(len(own), max(ALWAYS, round(WIDEST * len(own))))
        waiting[role], entered[role] = _queue(own, promise, rng), []
    open_roles = list(roles)
    first = order[: ends[0]]

    def exact(key: Key, end: int) -> tuple[float, float]:
        return _merit(run.scores(key, order[:end]).margins, by)

    def standing(keys: Sequence[Key], end: int) -> dict[Key, tuple[float, float]]:
        if by == "accuracy":
            return {key: exact(key, end) for key in keys}
        scored = torch.stack([run.scores(key, order[:end]).margins for key in keys])
        gains = scored.double() - run.scores(UNSTEERED, order[:end]).margins.double()
        means = controlled(gains, torch.stack([foreseen[key] for key in keys]).double())
        return {key: (mean, mean) for key, mean in zip(keys, means, strict=True)}

    while open_roles:
        new = [
            key
            for role in open_roles
            for key in islice(waiting[role], min(wanted[role], most[role] - len(entered[role])))
        ]
        run.score(new, first, "search")
        for key in new:
            entered[key.role].append(key)
        for role in list(open_roles):
            own = entered[role]
            rho[role] = _agreement([promise[k] for k in own], [exact(k, ends[0]) for k in own])
            if rho[role] >= GOOD or len(own) >= most[role]:
                open_roles.remove(role)
    widened = {role: len(entered[role]) > wanted[role] for role in roles}
    alive = dict(entered)
    for begin, end in pairwise(ends):
        for role in roles:
            worth = standing(alive[role], begin)
            ranked = sorted(alive[role], key=worth.__getitem__)
            alive[role] = ranked[len(ranked) // 2 :]
        run.score([key for role in roles for key in alive[role]], order[begin:end], "search")
    chosen = {}
    for role in roles:
        worth = standing(alive[role], len(order))
        chosen[role] = max(alive[role], key=worth.__getitem__)
    return _Race(cells, predicted, chosen, rho, widened)


def _queue(
    cells: Sequence[Key], promise: Mapping[Key, tuple[float, float]], rng: np.random.Generator
) -> Iterator[Key]:
    """The order in which cells are run: the most promising first, some drawn at random between."""
    ranked = sorted(cells, key=lambda key: promise[key], reverse=True)
    every = round(1 / RANDOM_SHARE)
    for turn in range(len(cells)):
        drawn = int(rng.integers(len(ranked))) if turn % every == every - 1 else 0
        yield ranked.pop(drawn)


def _merit(margins: Float[Tensor, " question"], by: By) -> tuple[float, float]:
    """What cells are ranked by."""
    margin = float(margins.double().mean())
    return (float((margins > 0).double().mean()) if by == "accuracy" else margin, margin)


def _agreement(
    predicted: Sequence[tuple[float, float]], exact: Sequence[tuple[float, float]]
) -> float:
    """Rank correlation of predicted and exact scores; 0 where either are all the same."""
    ranks = [[sorted(values).index(v) for v in values] for values in (predicted, exact)]
    rho = spearmanr(*ranks).statistic if all(len(set(r)) > 1 for r in ranks) else 0.0
    return float(rho)


def _result(run: Run, races: Sequence[_Race], by: By) -> Search:
    rows, quality = [], []
    chosen: dict[str, Scores] = {}
    for race in races:
        for key, predicted in zip(race.cells, race.predicted, strict=True):
            done = run.scored(key)
            row = {**key._asdict(), "predicted": float(predicted.mean()), "questions": len(done)}
            if done:
                scores, base = run.scores(key, done), run.scores(UNSTEERED, done)
                row |= {
                    "margin": scores.margin,
                    "margin_gain": scores.margin - base.margin,
                    "accuracy": scores.accuracy,
                    "accuracy_gain": scores.accuracy - base.accuracy,
                }
            rows.append({**row, "chosen": race.chosen[key.role] == key})
        for role, key in race.chosen.items():
            chosen[role] = run.scores(key, run.scored(key))
            own = [row for row in rows if row["role"] == role]
            quality.append(
                {
                    "role": role,
                    "rho": race.rho[role],
                    "cells": len(own),
                    "run": sum(row["questions"] > 0 for row in own),
                    "widened": race.widened[role],
                }
            )
    return Search(
        pd.DataFrame(rows), pd.DataFrame(quality), run.scores(UNSTEERED), run.grid, by, chosen
    )
