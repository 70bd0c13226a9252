"""Sweeps: the score of every cell, a cell being one role, layer, position and alpha."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rolelens import scoring
from rolelens.benchmarks import Benchmark, Question
from rolelens.display import Card, Shown
from rolelens.errors import InputError, unknown
from rolelens.hooks import Selection, add
from rolelens.lens import Lens
from rolelens.progress import track
from rolelens.scoring import Method, Scores
from rolelens.vectors import Direction, RoleVectors, check_sources


@dataclass(frozen=True, eq=False)
class Cell:
    """One steered configuration, and the direction that it adds."""

    direction: Direction
    alpha: float


@dataclass(frozen=True, eq=False, repr=False)
class Sweep(Shown):
    """Scores of every cell beside those of the unsteered model.

    Attributes:
        scores: option log-probabilities of every cell.
        baseline: the unsteered model on the same questions.
        vectors: the role vectors that were added.
        layers: layers along the second axis.
        positions: positions along the third axis.
        alphas: strengths along the fourth axis.
        tokens: which tokens were steered.
    """

    scores: Float[Tensor, "role layer position alpha question option"]
    baseline: Scores
    vectors: RoleVectors
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    alphas: tuple[float, ...]
    tokens: Selection

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles along the first axis."""
        return self.vectors.roles

    def logprobs(
        self, role: str, layer: int, position: int, alpha: float
    ) -> Float[Tensor, "question option"]:
        """Option log-probabilities of one cell, in nats."""
        axes: list[tuple[str, object, Sequence[object]]] = [
            ("role", role, self.roles),
            ("layer", layer, self.layers),
            ("position", position, self.positions),
            ("alpha", alpha, self.alphas),
        ]
        index = []
        for kind, value, known in axes:
            if value not in known:
                raise unknown(kind, value, known)
            index.append(list(known).index(value))
        return self.scores[tuple(index)]

    def cell(self, role: str, layer: int, position: int, alpha: float) -> Scores:
        """Scores of one cell."""
        return Scores(
            logprobs=self.logprobs(role, layer, position, alpha),
            answers=self.baseline.answers,
            questions=self.baseline.questions,
            domains=self.baseline.domains,
            method=self.baseline.method,
        )

    def table(self) -> pd.DataFrame:
        """A row a cell: accuracy, margin (nats), gains over the unsteered model, ``null``.

        A cell is null where its direction is exactly zero, as at layer 0.
        """
        rows = []
        axes = (self.roles, self.layers, self.positions, self.alphas)
        for role, layer, position, alpha in itertools.product(*axes):
            scores = self.cell(role, layer, position, alpha)
            rows.append(
                {
                    "role": role,
                    "layer": layer,
                    "position": position,
                    "alpha": alpha,
                    "accuracy": scores.accuracy,
                    "margin": scores.margin,
                    "accuracy_gain": scores.accuracy - self.baseline.accuracy,
                    "margin_gain": scores.margin - self.baseline.margin,
                    "null": self.vectors.direction(role, layer, position).norm == 0,
                }
            )
        return pd.DataFrame(rows)

    def best(self, role: str, by: str = "accuracy") -> Cell:
        """The live cell of a role with the highest accuracy (ties: margin), or margin.

        It was chosen on these very questions: confirm it on others.
        """
        if by not in ("accuracy", "margin"):
            raise InputError(f"by is {by!r}; it has to be 'accuracy' or 'margin'.")
        table = self.table()
        live = table[(table["role"] == role) & ~table["null"]]
        if live.empty:
            raise InputError(f"every cell of {role!r} is null: its directions are zero.")
        ranked = live.sort_values([by, "margin"], ascending=False, kind="stable").iloc[0]
        direction = self.vectors.direction(role, int(ranked["layer"]), int(ranked["position"]))
        return Cell(direction, float(ranked["alpha"]))

    def card(self) -> Card:
        """Size of the grid, the unsteered model and the best cell."""
        table = self.table()
        top = table.sort_values("accuracy", ascending=False, kind="stable").iloc[0]
        facts = {
            "cells": f"{len(table)} = {len(self.roles)} roles x {len(self.layers)} layers x "
            f"{len(self.positions)} positions x {len(self.alphas)} alphas",
            "questions": str(len(self.baseline.questions)),
            "unsteered accuracy": f"{self.baseline.accuracy:.3f}",
            "highest, where it was chosen": f"{top['accuracy']:.3f} ({top['role']}, layer "
            f"{top['layer']}, position {top['position']}, alpha {top['alpha']:g})",
        }
        return Card("Sweep", facts, "rl.plots.heatmap(sweep), sweep.best(role)")


def sweep(
    lens: Lens,
    vectors: RoleVectors,
    benchmark: str | Path | Benchmark | Sequence[Question],
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    alphas: Sequence[float] = (1.0, 3.0),
    tokens: Selection = "all",
    method: Method = "letter",
) -> Sweep:
    """Steer with every role, layer, position and alpha, and score the benchmark each time.

    Args:
        lens: the model.
        vectors: the directions; every role in them is swept.
        benchmark: the questions.
        layers: the first 80 % of the model's layers by default (2502.12055 eq. 6).
        positions: all positions of the vectors by default.
        alphas: raw strengths.
        tokens: which tokens are steered.
        method: how options are scored, see :func:`rolelens.evaluate`.
    """
    check_sources(vectors.source, lens.source)
    if layers is None:
        first = range(int(0.8 * lens.n_layers))
        layers = [layer for layer in vectors.layers if layer in first]
    positions = vectors.positions if positions is None else positions
    for kind, chosen in (("layer", layers), ("position", positions), ("alpha", alphas)):
        if len(set(chosen)) != len(chosen) or not chosen:
            raise InputError(f"the {kind}s are {list(chosen)}; name each once, and at least one.")
    grid = [
        (vectors.direction(role, layer, position), alpha)
        for role in vectors.roles
        for layer in layers
        for position in positions
        for alpha in alphas
    ]
    prepared = scoring.prepare(lens, benchmark, method)
    baseline = scoring.score(lens, prepared)
    cells = [
        baseline.logprobs
        if direction.norm == 0
        else scoring.score(lens, prepared, add(direction, alpha, tokens=tokens)).logprobs
        for direction, alpha in track(grid, "sweep", total=len(grid))
    ]
    shape = (len(vectors.roles), len(layers), len(positions), len(alphas))
    return Sweep(
        scores=torch.stack(cells).reshape(*shape, *baseline.logprobs.shape),
        baseline=baseline,
        vectors=vectors,
        layers=tuple(layers),
        positions=tuple(positions),
        alphas=tuple(alphas),
        tokens=tokens,
    )
