"""Has picking a steering for each prompt anything to win? The oracle, with chance priced in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from rolelens import stats, tasks
from rolelens.display import Card, Shown
from rolelens.errors import InputError
from rolelens.evidence.beside import random_steering
from rolelens.hooks import Steering
from rolelens.lens import Lens
from rolelens.sweeps import cell_of_steering, score_cells
from rolelens.tasks import NumberedOptions, Prepared, Scores

NOTHING = "nothing"
Library = Mapping[str, Steering]
"""Steerings by name; leaving a prompt alone is always a choice besides."""


@dataclass(frozen=True, eq=False, repr=False)
class OracleGap(Shown):
    """What the best steering of each item would win over the best one for all.

    Attributes:
        measure: what items are worth.
        plain: mean of the unsteered model, on the test items.
        single: the steering that is best on the selection items.
        single_value: its mean on the test items.
        oracle: mean of the best of all for each test item.
        null_gaps: the same difference, oracle minus single, for libraries of null steerings: what
            picking the best of so many after the fact gains by luck.
        items: test items.
    """

    measure: str
    plain: float
    single: str
    single_value: float
    oracle: float
    null_gaps: tuple[float, ...]
    items: int

    @property
    def gap(self) -> float:
        """Oracle minus the best single steering."""
        return self.oracle - self.single_value

    @property
    def beyond_chance(self) -> float:
        """The gap minus the mean gap of null libraries: what a router could win at most."""
        return self.gap - sum(self.null_gaps) / len(self.null_gaps)

    @property
    def rank(self) -> float:
        """Share of null libraries with a gap as large, the library itself counted."""
        return stats.null_rank(self.gap, self.null_gaps)

    def card(self) -> Card:
        """The gap, and what of it chance gives."""
        mean = sum(self.null_gaps) / len(self.null_gaps)
        facts = {
            "best single": f"{self.single}: {self.single_value:.4g} {self.measure}, unsteered "
            f"{self.plain:.4g}, on {self.items} items",
            "oracle": f"{self.oracle:.4g}, a gap of {self.gap:+.4g}",
            "null libraries": f"a gap of {mean:+.4g}, rank {self.rank:.3f}",
            "beyond chance": f"{self.beyond_chance:+.4g}",
        }
        return Card("OracleGap", facts, "rolelens.routing.try_router(lens, library, task)")


def oracle_gap(
    lens: Lens,
    library: Library,
    task: Any,
    *,
    nulls: int = 8,
    by: str | None = None,
    method: str | None = None,
    share: float = 0.5,
    seed: int = 0,
    **options: Unpack[NumberedOptions],
) -> OracleGap:
    """Measure what picking the best steering for each item could win (as RISER, 2601.09269).

    Args:
        lens: the model.
        library: steerings by name.
        task: what is asked.
        nulls: libraries of random directions, each as large and as strong as this one.
        by: the measure; the margin of questions by default, else the first of the task.
        method: how the options of questions are scored.
        share: of the items that the best single steering is chosen on.
        seed: of the split and of the nulls.
        options: how the task is put.

    Raises:
        InputError: an empty library, something else than steerings in it, no nulls, or as for
            :func:`rolelens.evaluate`.
    """
    if nulls < 1:
        raise InputError(f"nulls is {nulls}; at least 1 library of nulls prices chance in.")
    prepared = tasks.prepare(lens, task, method, **options)
    selection, test = halves(prepared, share, seed)
    names, measure, values = values_of_library(lens, library, prepared, by)
    single, value, oracle = _single(names, values, selection, test)
    gaps = []
    for number in range(nulls):
        others = {
            f"{name} ~ {number}": random_steering(steering, number, seed)
            for name, steering in library.items()
        }
        drawn, _, worth = values_of_library(lens, others, prepared, by)
        _, one, best = _single(drawn, worth, selection, test)
        gaps.append(best - one)
    plain = float(values[0, test].mean())
    return OracleGap(measure, plain, single, value, oracle, tuple(gaps), len(test))


def values_of_library(
    lens: Lens, library: Library, prepared: Prepared, by: str | None = None
) -> tuple[list[str], str, Float[Tensor, "steering item"]]:
    """What every item is worth under every steering, the unsteered model first.

    Returns:
        The names, the measure, and the values in float64.

    Raises:
        InputError: an empty library, or something else than steerings in it.
    """
    if not isinstance(library, Mapping) or not library or NOTHING in library:
        raise InputError(
            f"the library is {str(library)[:60]!r}; pass a dict of at least one steering by name, "
            f"none of which is called {NOTHING!r}."
        )
    for name, steering in library.items():
        if not isinstance(steering, Steering) or steering.is_zero:
            raise InputError(f"{name!r} is no steering that does anything; pass what rl.add gives.")
    cells = [cell_of_steering(steering, name) for name, steering in library.items()]
    before, after = score_cells(lens, prepared, cells)
    margins = isinstance(before, Scores) and before.metric is None
    measure = by or ("margin" if margins else before.measures[0])
    values = [before.measure(measure), *(after[cell].measure(measure) for cell in cells)]
    return [NOTHING, *library], measure, torch.stack(values)


def halves(prepared: Prepared, share: float, seed: int) -> tuple[list[int], list[int]]:
    """The items of the selection part and of the test part."""
    place = {item.id: n for n, item in enumerate(prepared.task)}
    first, second = prepared.task.split(share, seed)
    return [place[item.id] for item in first], [place[item.id] for item in second]


def _single(
    names: Sequence[str],
    values: Float[Tensor, "steering item"],
    selection: Sequence[int],
    test: Sequence[int],
) -> tuple[str, float, float]:
    """The best on the selection, its mean on the test, and the oracle's there."""
    best = int(values[:, selection].mean(dim=1).argmax())
    oracle = float(values[:, test].amax(dim=0).mean())
    return names[best], float(values[best, test].mean()), oracle
