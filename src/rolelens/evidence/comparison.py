"""Two ways of answering the same items, compared item by item."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from rolelens import stats
from rolelens.display import Card, Shown
from rolelens.errors import InputError
from rolelens.evidence.wording import Amount
from rolelens.tasks import LETTERS, Answers, Scored, Scores


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """Two ways of answering the same items.

    Attributes:
        measure: what is compared; of ``accuracy`` differences are told in points.
        before: its mean of the first.
        after: its mean of the second.
        low: lower end of the 95 % paired bootstrap interval of the difference.
        high: its upper end.
        p: paired permutation test; of right and wrong answers that is the exact McNemar test.
        detectable: smallest difference that so many items would show (80 % power); None where none
            would.
        items: how many there are.
        margin: of questions, change of the mean margin, in nats.
    """

    measure: str
    before: float
    after: float
    low: float
    high: float
    p: float
    detectable: float | None
    items: int
    margin: stats.Estimate | None = None

    @property
    def difference(self) -> float:
        """How much the second is higher."""
        return self.after - self.before

    def __str__(self) -> str:
        amount = Amount(self.measure)
        return (
            f"{self.before:.3f} -> {self.after:.3f} ({amount.text(self.difference)}, 95 % "
            f"interval {amount.between(self.low, self.high)}, p = {self.p:.2f}; "
            f"{self.items} items show {amount.shown(self.detectable)})"
        )

    def card(self) -> Card:
        """The difference, with its interval and p."""
        return Card("Comparison", {self.measure: str(self)}, "comparison.p, comparison.difference")


def compare(before: Scored[Any], after: Scored[Any], measure: str | None = None) -> Comparison:
    """Compare two scores of the same items, item by item.

    Args:
        before: such as the unsteered model's.
        after: such as the steered model's.
        measure: what is compared; the first measure by default: a metric of one's own where there
            is one, else the accuracy of questions and problems.

    Raises:
        InputError: they are of different items, or were put or measured in different ways.
    """
    check_same_items(before, after)
    name = before.measures[0] if measure is None else measure
    answers = answer_table("", before, after, name)
    tested = gain_of(answers)
    margin = None
    if isinstance(before, Scores) and isinstance(after, Scores):
        margin = stats.paired((after.margins.double() - before.margins.double()).tolist())
    return Comparison(
        name,
        float(answers["before"].mean()),
        float(answers["after"].mean()),
        tested["low"],
        tested["high"],
        tested["p"],
        detectable_of(answers),
        len(answers),
        margin,
    )


def answer_table(name: str, before: Scored[Any], after: Scored[Any], measure: str) -> pd.DataFrame:
    """What every item was worth, before and after: a row an item."""
    check_same_items(before, after)
    columns: dict[str, Any] = {
        "name": name,
        "item": before.ids,
        "domain": before.domains,
        "before": before.measure(measure).tolist(),
        "after": after.measure(measure).tolist(),
    }
    if isinstance(before, Scores) and isinstance(after, Scores):
        columns |= {
            "correct": [LETTERS[index] for index in before.answers.tolist()],
            "given_before": [LETTERS[index] for index in before.predictions.tolist()],
            "given_after": [LETTERS[index] for index in after.predictions.tolist()],
            "margin": (after.margins.double() - before.margins.double()).tolist(),
        }
    if isinstance(before, Answers) and isinstance(after, Answers):
        columns |= {
            "text_before": [texts[0] for texts in before.texts],
            "text_after": [texts[0] for texts in after.texts],
        }
    return pd.DataFrame(columns)


def changes(answers: pd.DataFrame) -> pd.Series:
    """How much each item's value rose."""
    return answers["after"].astype(float) - answers["before"].astype(float)


def is_binary(answers: pd.DataFrame) -> bool:
    """Whether every value is 0 or 1: right or wrong."""
    return bool(answers[["before", "after"]].isin([0.0, 1.0]).all(axis=None))


def gain_of(answers: pd.DataFrame) -> dict[str, float]:
    """Mean change on some items, with its 95 % interval and p."""
    change = changes(answers).tolist()
    low, high = stats.paired_bootstrap(change)
    if is_binary(answers):
        p = stats.mcnemar((answers["before"] == 1.0).tolist(), (answers["after"] == 1.0).tolist())
    else:
        p = stats.sign_flip(change)
    return {"gain": sum(change) / len(change), "low": low, "high": high, "p": p}


def detectable_of(answers: pd.DataFrame, family: int = 1) -> float | None:
    """The smallest change that so many items would show, given how much they change."""
    change = changes(answers)
    if is_binary(answers):
        share = float(change.abs().sum()) / len(change)
        return stats.detectable(len(change), share, family=family)
    return stats.detectable_mean(change.tolist(), family=family)


def check_same_items(before: Scored[Any], after: Scored[Any]) -> None:
    """Refuse to compare scores of different items, or of items put in different ways.

    Raises:
        InputError: they differ.
    """
    if before.ids != after.ids:
        raise InputError("the two scores are of different items; score both on the same.")
    for one, other in zip(before.items, after.items, strict=True):
        if one != other:
            raise InputError(
                f"item {one.id!r} is not the same in the two scores: they have the same ids and "
                "other texts, options or answers; score both on the same task."
            )
    methods = getattr(before, "method", None), getattr(after, "method", None)
    if methods[0] != methods[1]:
        raise InputError(
            f"the two were scored by {methods[0]!r} and {methods[1]!r}; score both in the same way."
        )
    if before.measures != after.measures:
        raise InputError(
            f"the two were measured by {', '.join(before.measures)} and {', '.join(after.measures)}"
            "; pass the same metric to both."
        )
