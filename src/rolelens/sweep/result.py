"""The scores of every cell of a sweep."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from rolelens.display import Card, Shown
from rolelens.errors import InputError, unknown
from rolelens.forward import Selection
from rolelens.scoring import Scores
from rolelens.sweep.grid import Cell, Grid, Key


@dataclass(frozen=True, eq=False, repr=False)
class Sweep(Shown):
    """Scores of every cell beside those of the unsteered model.

    Attributes:
        scores: option log-probabilities of every cell.
        baseline: the unsteered model on the same questions.
        grid: the cells.
        tokens: which tokens were steered.
    """

    scores: Float[Tensor, "role layer position alpha question option"]
    baseline: Scores
    grid: Grid
    tokens: Selection

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles along the first axis."""
        return self.grid.vectors.roles

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers along the second axis."""
        return self.grid.layers

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions along the third axis."""
        return self.grid.positions

    @property
    def alphas(self) -> tuple[float, ...]:
        """Strengths along the fourth axis."""
        return self.grid.alphas

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
        return dataclasses.replace(
            self.baseline, logprobs=self.logprobs(role, layer, position, alpha)
        )

    def table(self) -> pd.DataFrame:
        """A row a cell: accuracy, margin (nats), gains over the unsteered model, ``null``.

        A cell is null where its direction is exactly zero, as at layer 0.
        """
        rows = []
        for key in self.grid.keys:
            scores = self.cell(*key)
            rows.append(
                {
                    **key._asdict(),
                    "accuracy": scores.accuracy,
                    "margin": scores.margin,
                    "accuracy_gain": scores.accuracy - self.baseline.accuracy,
                    "margin_gain": scores.margin - self.baseline.margin,
                    "null": self.grid.is_null(key),
                }
            )
        return pd.DataFrame(rows)

    def best(self, role: str, by: str = "accuracy") -> Cell:
        """The live cell of a role with the highest accuracy (ties: margin), or margin.

        It was chosen on these very questions: confirm it on others.
        """
        if by not in ("accuracy", "margin"):
            raise InputError(f"by is {by!r}; it has to be 'accuracy' or 'margin'.")
        if role not in self.roles:
            raise unknown("role", role, self.roles)
        table = self.table()
        live = table[(table["role"] == role) & ~table["null"]]
        if live.empty:
            raise InputError(f"every cell of {role!r} is null: its directions are zero.")
        ranked = live.sort_values([by, "margin"], ascending=False, kind="stable").iloc[0]
        key = Key(role, int(ranked["layer"]), int(ranked["position"]), float(ranked["alpha"]))
        return Cell(self.grid.direction(key), key.alpha)

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
