"""What a steering does besides: capability, bias, calibration, perplexity and refusals at once."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
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
Measures: TypeAlias = Mapping[str, Callable[[Rows], float]]
"""Names of measures, and what each is of some items, which may come several times."""
RESAMPLES = 1000
READ = 2048
"""Tokens of the text whose perplexity is measured."""


@dataclass(frozen=True, eq=False, repr=False)
class SideEffects(Shown):
    """What a steering changes, beside null steerings of the same strength.

    Attributes:
        steering: what was done, in words.
        frame: a row a measure, see :meth:`table`.
        nulls: a row a null and measure: ``null``, ``task``, ``measure``, ``change``.
    """

    steering: str
    frame: pd.DataFrame
    nulls: pd.DataFrame

    def table(self) -> pd.DataFrame:
        """A row a task and measure.

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
            f"{row['task']} {row['measure']} {row['change']:+.3g}" for _, row in beyond.iterrows()
        ]
        facts = {
            "steering": self.steering,
            "measures": str(len(self.frame)),
            "beyond all nulls": "; ".join(told[:6]) or "none",
        }
        return Card("SideEffects", facts, "effects.table()")


def side_effects(
    lens: Lens,
    steering: Steering,
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
        steering: what is done.
        asked: tasks under names of your own, such as ``{"capability": "mini", "bias": "bbq/"}``.
        text: held-out text whose perplexity is measured (its first 2048 tokens).
        requests: prompts; the share of answers that refuse is measured.
        nulls: how many null steerings are made, in each of which random directions of the same norm
            take the place of the directions; or the steerings themselves.
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
    if not isinstance(steering, Steering) or steering.is_zero:
        raise InputError(
            f"{str(steering)[:60]!r} does nothing that could have effects; pass a steering such as "
            "rl.add(d, 3.0)."
        )
    others = _nulls(steering, nulls, seed)
    measured: list[tuple[str, int, list[Measures], bool]] = []
    for name, what in (asked or {}).items():
        scored = _scored(lens, what, [steering, *others], method, cast(Options, options))
        every = [_measures(one) for one in scored]
        measured.append((name, len(scored[0].items), every, True))
    if text is not None:
        tasks.check_on_text(on_text(steering))
        found = [
            tasks.perplexity(lens, text, on_text(one), max_tokens=READ).value
            for one in track([Steering(), steering, *others], "perplexity")
        ]
        measured.append(("text", 1, [{"perplexity": _fixed(value)} for value in found], False))
    if requests is not None:
        told = [
            np.array(
                [
                    float(refuses(answer))
                    for answer in lens.generate(requests, hooks=one, max_new_tokens=reply_tokens)
                ]
            )
            for one in track([Steering(), steering, *others], "requests")
        ]
        each: list[Measures] = [{"refused": _mean(values)} for values in told]
        measured.append(("requests", len(requests), each, True))
    rows, made = [], []
    for name, items, (before, after, *rest), resampled in measured:
        for measure in before:
            row, changes = _row(before[measure], after[measure], [one[measure] for one in rest],
                                items, resampled, seed)  # fmt: skip
            rows.append({"task": name, "measure": measure, "items": items, **row})
            made += [
                {"null": n, "task": name, "measure": measure, "change": change}
                for n, change in enumerate(changes)
            ]
    return SideEffects(str(steering), pd.DataFrame(rows), pd.DataFrame(made))


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


def _row(
    before: Callable[[Rows], float],
    after: Callable[[Rows], float],
    nulls: Sequence[Callable[[Rows], float]],
    items: int,
    resampled: bool,
    seed: int,
) -> tuple[dict[str, float], list[float]]:
    """What is told of one measure, and the changes of the nulls."""
    every = np.arange(items)
    old, new = before(every), after(every)
    changes = [null(every) - old for null in nulls]
    low = high = float("nan")
    if resampled and items > 1:
        rng = np.random.default_rng(seed)
        drawn = rng.integers(items, size=(RESAMPLES, items))
        moved = np.array([after(rows) - before(rows) for rows in drawn])
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
