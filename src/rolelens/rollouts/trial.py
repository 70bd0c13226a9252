"""Directions tried on generation: strengths chosen on some problems, effects told on others."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rolelens import stats
from rolelens.display import Card, Shown
from rolelens.errors import listed
from rolelens.forward import Hook, Selection
from rolelens.hooks import add
from rolelens.lens import Lens
from rolelens.rollouts.problems import Problems, Verifier, right_number
from rolelens.rollouts.sampling import Rollouts, compare, roll_out
from rolelens.vectors import RoleVectors, check_sources
from rolelens.vectors.nulls import factor, imitated

FLOOR = 0.05
"""Pass@1 that the unsteered model has to be above, by the low end of its interval."""


@dataclass(frozen=True, eq=False, repr=False)
class Trial(Shown):
    """What directions do to generated answers, on problems that their cell was not chosen on.

    Attributes:
        cells: a row a cell tried: ``role``, ``layer``, ``alpha``, ``pass_at_1`` and its ``gain`` on
            the problems that cells are chosen on.
        table: a row a direction: its chosen ``layer`` and ``alpha``, the gain ``where_chosen``;
            ``before`` and ``after`` on the other problems, ``gain`` with its 95 % interval, ``p``
            (paired permutation test) with ``p_holm`` over all but nulls; of these ``rank``, the
            share of nulls that gained as much where they were chosen (itself counted), and the
            lowest and highest gain of nulls in its own cell, ``null_low`` and ``null_high``.
        before: the unsteered answers to the other problems.
        after: the steered ones, by direction.
    """

    cells: pd.DataFrame
    table: pd.DataFrame
    before: Rollouts
    after: Mapping[str, Rollouts]

    @property
    def headroom(self) -> str:
        """What the unsteered model can do, and what so many problems could show."""
        low, high = self.before.interval
        n = len(self.before.problems)
        said = (
            f"{self.before.problems.name}: pass@1 {self.before.pass_at_1:.3f} ({low:.3f} to "
            f"{high:.3f}) unsteered; if one answer in five changes, {n} problems show "
            f"{stats.in_points(stats.detectable(n))}"
        )
        if low >= FLOOR:
            return said
        return f"{said}; near the floor" + ("" if len(self.table) else ", so nothing was tried")

    @property
    def verdicts(self) -> list[str]:
        """A sentence for every direction that is no null."""
        return [self.headroom + ".", *(_verdict(row) for row in _rows(self.table))]

    def card(self) -> Card:
        """How many were tried, and how many do something."""
        own = self.table[~self.table["null"]] if len(self.table) else self.table
        found = own[own["p_holm"] < 0.05] if len(own) else own
        facts = {
            "problems": f"{len(self.before.problems)} of {self.before.problems.name}",
            "unsteered": f"{self.before.pass_at_1:.3f}",
            "directions": f"{len(own)} and {len(self.table) - len(own)} nulls",
            "effects beyond chance": ", ".join(found["role"]) if len(found) else "none",
        }
        return Card("Trial", facts, "trial.verdicts, trial.table")


def trial(
    lens: Lens,
    vectors: RoleVectors,
    problems: Problems,
    alphas: Sequence[float],
    *,
    layers: Sequence[int] | None = None,
    tokens: Selection = "all",
    share: float = 0.5,
    n: int = 1,
    temperature: float = 0.0,
    max_new_tokens: int = 256,
    verifier: Verifier = right_number,
    system: str | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    anyway: bool = False,
) -> Trial:
    """Choose a layer and strength of every direction on some problems, and try it on the others.

    Args:
        lens: the model.
        vectors: the directions, by their last position; nulls are chosen in the same way, and tried
            in the cells of the others, as strong: those that imitate a direction in its cell, or
            all where none does.
        problems: those that nothing was estimated on.
        alphas: raw strengths.
        layers: all layers of the vectors by default.
        tokens: which tokens are steered; ``"generated"`` leaves the prompt alone.
        share: of the problems that cells are chosen on.
        n: answers to each problem.
        temperature: of the sampling; 0 is greedy.
        max_new_tokens: length of an answer at most, in tokens.
        verifier: whether a text answers a problem rightly.
        system: a system prompt.
        seed: of the split and the sampling.
        folder: where finished answers are kept; the same call goes on there.
        anyway: try directions where the unsteered model is near the floor, too.

    Raises:
        InputError: no alphas, vectors of another model, or as for :func:`roll_out`.
    """
    check_sources(vectors.source, lens.source)
    alphas = listed("alphas", alphas)
    chosen = listed("layers", vectors.layers if layers is None else layers)
    chosen_on, others = problems.split(share, seed)
    position = vectors.positions[-1]
    options: dict[str, Any] = {
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "verifier": verifier,
        "system": system,
        "seed": seed,
    }

    def answered(
        name: str, asked: Problems, hooks: Sequence[Hook] = (), steering: str = ""
    ) -> Rollouts:
        store = None if folder is None else Path(folder) / f"{name.replace('/', '_')}.jsonl"
        return roll_out(lens, asked, n, hooks=hooks, store=store, steering=steering, **options)

    parts = {"chosen on": chosen_on, "others": others}

    @functools.cache
    def steered(role: str, layer: int, alpha: float, part: str) -> Rollouts:
        name = f"{role}, layer {layer}, alpha {alpha:g}, {part}"
        d = vectors.direction(role, layer, position)
        how = f"{alpha} x {d.sha} at {d.site} of layer {layer}, tokens {tokens}"
        return answered(name, parts[part], add(d, alpha, tokens=tokens), how)

    def instead(role: str, layer: int, alpha: float) -> list[float]:
        """The gains of nulls in the cell of a direction."""
        known = [name for name in vectors.roles if imitated(name)]
        gains = []
        for null in [name for name in known if imitated(name) == role] or known:
            scale = factor(vectors, null, role, layer, position)
            found = steered(null, layer, alpha * scale, "others")
            gains.append(found.pass_at_1 - before.pass_at_1)
        return gains

    for role, layer, alpha in itertools.product(vectors.roles, chosen, alphas):
        add(vectors.direction(role, layer, position), alpha, tokens=tokens)  # fails before answers

    before = answered("unsteered, others", others)
    if before.interval[0] < FLOOR and not anyway:
        return Trial(pd.DataFrame(), pd.DataFrame(), before, {})
    base = answered("unsteered, chosen on", chosen_on)
    cells: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    after: dict[str, Rollouts] = {}
    for role in vectors.roles:
        own: list[dict[str, Any]] = []
        for layer in chosen:
            for alpha in alphas:
                found = steered(role, layer, alpha, "chosen on")
                gain = found.pass_at_1 - base.pass_at_1
                cell = {"role": role, "layer": layer, "alpha": float(alpha)}
                own.append(cell | {"pass_at_1": found.pass_at_1, "gain": gain})
        cells += own
        best = max(own, key=lambda cell: cell["gain"])
        after[role] = steered(role, best["layer"], best["alpha"], "others")
        change = compare(before, after[role])
        nulls = [] if imitated(role) else instead(role, best["layer"], best["alpha"])
        rows.append(
            {
                "role": role,
                "null": bool(imitated(role)),
                "layer": best["layer"],
                "alpha": best["alpha"],
                "where_chosen": best["gain"],
                "before": before.pass_at_1,
                "after": after[role].pass_at_1,
                "gain": change.value,
                "low": change.low,
                "high": change.high,
                "p": change.p,
                "null_low": min(nulls, default=float("nan")),
                "null_high": max(nulls, default=float("nan")),
            }
        )
    return Trial(pd.DataFrame(cells), _corrected(pd.DataFrame(rows)), before, after)


def _corrected(table: pd.DataFrame) -> pd.DataFrame:
    own, nulls = table[~table["null"]], table[table["null"]]
    gains = nulls["where_chosen"].tolist()
    table.loc[own.index, "p_holm"] = stats.adjusted(own["p"].tolist())
    table.loc[own.index, "rank"] = [stats.null_rank(x, gains) for x in own["where_chosen"]]
    return table


def _rows(table: pd.DataFrame) -> list[dict[Any, Any]]:
    return table[~table["null"]].to_dict("records") if len(table) else []


def _verdict(row: Mapping[str, Any]) -> str:
    does = "changes nothing that these problems could show"
    if row["p_holm"] < 0.05:
        does = "helps" if row["gain"] > 0 else "harms"
        if stats.reached(row["gain"], row["null_low"], row["null_high"]):
            does += ", but so does a null in the same cell"
    beside = ""
    if pd.notna(row["null_high"]):
        beside = f", nulls in this cell {stats.points_between(row['null_low'], row['null_high'])}"
    return (
        f"{row['role']} (layer {row['layer']}, alpha {row['alpha']:g}) {does}: "
        f"{row['before']:.3f} -> {row['after']:.3f} ({100 * row['gain']:+.1f} points, 95 % "
        f"interval {stats.points_between(row['low'], row['high'])}, p = {row['p_holm']:.2f} "
        f"after Holm{beside}); {100 * row['where_chosen']:+.1f} points where the cell was chosen."
    )
