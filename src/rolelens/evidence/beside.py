"""What a steering does besides: capability, bias, calibration, perplexity and refusals at once."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, Unpack, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from rolelens import stats, tasks
from rolelens.display import Card, Shown
from rolelens.errors import InputError, unique
from rolelens.evidence.fold import on_text
from rolelens.evidence.refusals import refuses
from rolelens.hooks import Steering, Step
from rolelens.lens import Lens
from rolelens.progress import track
from rolelens.sweeps import cell_of_steering, score_cells
from rolelens.tasks import BiasQuestions, NumberedOptions, Options, Scored, Scores, Task
from rolelens.tasks.bias import BiasCounts, bias_of
from rolelens.vectors import Null
from rolelens.vectors.nulls import derived

Rows: TypeAlias = npt.NDArray[np.int64]
Values: TypeAlias = npt.NDArray[np.float64]
Measures: TypeAlias = Mapping[str, Callable[[Rows], float]]
"""Names of measures, and what each is of some items, which may come several times."""
RESAMPLES = 1000
READ = 2048
"""Tokens of the text whose perplexity is measured."""


@dataclass(frozen=True, eq=False, repr=False)
class SideEffects(Shown):
    """What steerings change, beside null steerings of the same strength.

    Attributes:
        steering: what was done, in words.
        frame: a row a measure, see :meth:`table`.
        nulls: a row a null and measure: ``null``, ``task``, ``measure``, ``change``; of several
            steerings also the ``steering`` that they stand beside.
    """

    steering: str
    frame: pd.DataFrame
    nulls: pd.DataFrame

    def table(self) -> pd.DataFrame:
        """A row a task and measure; of several steerings a row each, named under ``steering``.

        ``before`` and ``after``, their ``change`` with the 95 % paired bootstrap interval over
        items (``low``, ``high``; none of perplexity, as tokens are no independent items), mean and
        largest size of the nulls' changes (``null``, ``null_most``), and ``rank``: that of the
        change's size among theirs, at least 1 / (nulls + 1).
        """
        return self.frame

    def card(self) -> Card:
        """The measures that change more than under any null."""
        beyond = self.frame[self.frame["change"].abs() > self.frame["null_most"]]
        told = [
            f"{row.get('steering', '')} {row['task']} {row['measure']} {row['change']:+.3g}".strip()
            for _, row in beyond.iterrows()
        ]
        facts = {
            "steering": self.steering,
            "measures": str(len(self.frame)),
            "beyond all nulls": "; ".join(told[:6]) or "none",
        }
        return Card("SideEffects", facts, "effects.table()")


def side_effects(
    lens: Lens,
    steering: Steering | Mapping[str, Steering],
    asked: Mapping[str, Any] | None = None,
    *,
    text: str | None = None,
    requests: Sequence[str] | None = None,
    nulls: int | Sequence[Steering] = 8,
    method: str | None = None,
    reply_tokens: int = 32,
    seed: int = 0,
    **options: Unpack[NumberedOptions],
) -> SideEffects:
    """Measure what a steering does to everything else, beside nulls of the same strength.

    Questions are measured by accuracy, margin, expected calibration error, confident errors and
    entropy; those of BBQ by both accuracies and both bias scores as well; pairs of sentences, texts
    and problems by their own measures; texts with a metric by that.

    Args:
        lens: the model.
        steering: what is done; or several steerings by name, each of which is measured alone.
        asked: tasks under names of your own, such as ``{"capability": "mini", "bias": "bbq/"}``.
        text: held-out text whose perplexity is measured (its first 2048 tokens).
        requests: prompts; the share of answers that refuse is measured.
        nulls: how many null steerings are made, in each of which random directions of the same
            norm take the place of the directions; or the steerings themselves, which several of one
            strength then share.
        method: how the options of questions are scored.
        reply_tokens: length of the answers to requests at most, in tokens.
        seed: of the nulls and of the bootstrap.
        options: how tasks are put.

    Raises:
        InputError: nothing is asked, a steering that does nothing, no nulls, or as for
            :func:`rolelens.evaluate`.
    """
    if not asked and text is None and requests is None:
        raise InputError("nothing is asked; pass tasks, a text or requests to measure by.")
    several = dict(steering) if isinstance(steering, Mapping) else {"": steering}
    if not several:
        raise InputError("the steerings are an empty dict; pass at least one.")
    for one in several.values():
        if not isinstance(one, Steering) or one.is_zero:
            raise InputError(
                f"{str(one)[:60]!r} does nothing that could have effects; pass a steering such as "
                "rl.add(d, 3.0)."
            )
    plan = _planned(several, nulls, seed)
    rows, made = [], []
    for name, items, measures, resampled in _measured(
        lens, plan.steerings, asked or {}, text, requests, method, reply_tokens,
        cast(Options, options),
    ):  # fmt: skip
        before, *after = measures
        drawn = _resampled(before, items, seed) if resampled and items > 1 else {}
        for named, (own, beside) in plan.places.items():
            label = {"steering": named} if isinstance(steering, Mapping) else {}
            for measure in before:
                others = [after[n][measure] for n in beside]
                row, changes = _row(
                    before[measure], after[own][measure], others, items, drawn.get(measure)
                )
                rows.append({**label, "task": name, "measure": measure, "items": items, **row})
                made += [
                    {**label, "null": n, "task": name, "measure": measure, "change": change}
                    for n, change in enumerate(changes)
                ]
    told = "; ".join(map(str, several.values())) if len(several) < 3 else f"{len(several)} of them"
    return SideEffects(told, pd.DataFrame(rows), pd.DataFrame(made))


@dataclass(frozen=True)
class _Plan:
    """All steerings that are measured, and which of them is what.

    Attributes:
        steerings: each once.
        places: for each name its own place among them, and those of its nulls.
    """

    steerings: tuple[Steering, ...]
    places: Mapping[str, tuple[int, tuple[int, ...]]]


def _planned(several: Mapping[str, Steering], nulls: int | Sequence[Steering], seed: int) -> _Plan:
    """Nulls are made of each steering, or those that are given are shared."""
    steerings = list(several.values())
    places: dict[str, tuple[int, tuple[int, ...]]] = {}
    shared: tuple[int, ...] | None = None
    for own, (name, steering) in enumerate(several.items()):
        if shared is None:
            made = _nulls(steering, nulls, seed)
            beside = tuple(range(len(steerings), len(steerings) + len(made)))
            steerings += made
            if not isinstance(nulls, int):
                shared = beside
        places[name] = own, beside
    return _Plan(tuple(steerings), places)


def _measured(
    lens: Lens,
    steerings: Sequence[Steering],
    asked: Mapping[str, Any],
    text: str | None,
    requests: Sequence[str] | None,
    method: str | None,
    reply_tokens: int,
    options: Options,
) -> Iterator[tuple[str, int, list[Measures], bool]]:
    """Name, items, measures unsteered and steered of each task, and whether items are drawn."""
    for name, what in asked.items():
        scored = _scored(lens, what, steerings, method, options)
        yield name, len(scored[0].items), [_measures(one) for one in scored], True
    if text is not None:
        for one in steerings:
            tasks.check_on_text(on_text(one))
        found = [
            tasks.perplexity(lens, text, on_text(one), max_tokens=READ).value
            for one in track([Steering(), *steerings], "perplexity")
        ]
        yield "text", 1, [{"perplexity": _fixed(value)} for value in found], False
    if requests is not None:
        told = [
            np.array(
                [
                    float(refuses(answer))
                    for answer in lens.generate(requests, hooks=one, max_new_tokens=reply_tokens)
                ]
            )
            for one in track([Steering(), *steerings], "requests")
        ]
        yield "requests", len(requests), [{"refused": _mean(values)} for values in told], True


def random_steering(steering: Steering, number: int = 0, seed: int = 0) -> Steering:
    """The same with random directions, of the same norms, in place of its directions."""

    def change(step: Step) -> Step:
        d = step.direction
        random = d.random_like(derived(seed, number, d.sha) % 2**62)
        null = Null(d.name, "gaussian", number)
        named = dataclasses.replace(random, name=f"gaussian {number} ~ {d.name}", null=null)
        return dataclasses.replace(step, direction=named)

    return steering.with_directions(change)


def _nulls(steering: Steering, nulls: int | Sequence[Steering], seed: int) -> list[Steering]:
    if isinstance(nulls, int):
        if nulls < 1:
            raise InputError(f"nulls is {nulls}; at least 1 is needed to compare with.")
        return [random_steering(steering, n, seed) for n in range(nulls)]
    made = list(nulls)
    if not made or not all(isinstance(one, Steering) for one in made):
        raise InputError("nulls has to be a number, or a list of steerings such as rl.add gives.")
    unique("null", map(str, made))
    return made


def _scored(
    lens: Lens, what: Any, steerings: Sequence[Steering], method: str | None, options: Options
) -> list[Scored[Any]]:
    """The scores of the unsteered model, and of each steering."""
    task = what if isinstance(what, Task) else tasks.load_task(what)
    asks = isinstance(task, tasks.Questions)
    prepared = tasks.prepare(lens, task, method if asks else None, **options)
    cells = [cell_of_steering(one, f"steering {n}") for n, one in enumerate(steerings)]
    before, after = score_cells(lens, prepared, cells)
    return [before, *(after[cell] for cell in cells)]


def _measures(scored: Scored[Any]) -> Measures:
    """The measures of a score, as functions of rows."""
    found: dict[str, Callable[[Rows], float]] = {}
    if isinstance(scored, Scores):
        for name in scored.measures:
            found[name] = _mean(scored.measure(name).numpy())
        sure = tasks.calibration_of(scored)
        for name, attribute in (
            ("calibration error", "error"),
            ("confident errors", "confident_errors"),
            ("entropy", "entropy"),
        ):
            found[name] = _of_calibration(sure, attribute)
        if all(isinstance(item, BiasQuestions.kind) for item in scored.items):
            counts = BiasCounts.of(scored)
            for name in ("accuracy_ambiguous", "accuracy_disambiguated", "s_amb", "s_dis"):
                found[name] = _of_bias(counts, name)
        return found
    return {name: _mean(scored.measure(name).numpy()) for name in scored.measures}


def _of_calibration(sure: tasks.Calibration, name: str) -> Callable[[Rows], float]:
    return lambda rows: float(getattr(sure.take(rows), name))


def _of_bias(counts: BiasCounts, name: str) -> Callable[[Rows], float]:
    return lambda rows: float(getattr(bias_of(counts, rows), name))


def _mean(values: npt.NDArray[Any]) -> Callable[[Rows], float]:
    return lambda rows: float(values[rows].mean())


def _fixed(value: float) -> Callable[[Rows], float]:
    return lambda rows: value


def _resampled(before: Measures, items: int, seed: int) -> dict[str, tuple[list[Rows], Values]]:
    """Items drawn with replacement, and each measure of the unsteered model on them."""
    draws = list(np.random.default_rng(seed).integers(items, size=(RESAMPLES, items)))
    return {
        name: (draws, np.array([measure(rows) for rows in draws]))
        for name, measure in before.items()
    }


def _row(
    before: Callable[[Rows], float],
    after: Callable[[Rows], float],
    nulls: Sequence[Callable[[Rows], float]],
    items: int,
    drawn: tuple[list[Rows], Values] | None,
) -> tuple[dict[str, float], list[float]]:
    """What is told of one measure, and the changes of the nulls."""
    every = np.arange(items)
    old, new = before(every), after(every)
    changes = [null(every) - old for null in nulls]
    low = high = float("nan")
    if drawn is not None:
        draws, at_first = drawn
        moved = np.array([after(rows) for rows in draws]) - at_first
        if not np.isnan(moved).all():
            low, high = map(float, np.nanpercentile(moved, [2.5, 97.5]))
    known = [abs(change) for change in changes if not np.isnan(change)]
    told = {
        "before": old,
        "after": new,
        "change": new - old,
        "low": low,
        "high": high,
        "null": float(np.mean((known and [c for c in changes if not np.isnan(c)]) or [np.nan])),
        "null_most": max(known, default=float("nan")),
        "rank": float("nan"),
    }
    if known and not np.isnan(new - old):
        told["rank"] = stats.null_rank(abs(new - old), known)
    return told, changes
