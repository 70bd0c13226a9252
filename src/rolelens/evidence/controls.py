"""What has to be known before a gain is believed: is there anything to gain, and from what."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from rolelens import stats
from rolelens.display import Card, Shown
from rolelens.tasks import LETTERS, Answers, Scored, Scores

FLOOR = 0.05
"""Accuracy of generated answers that the unsteered model has to be above, by its interval."""


@dataclass(frozen=True, repr=False)
class Headroom(Shown):
    """Whether a model can do a task at all, and what so many items can show.

    Attributes:
        measure: what is told.
        value: of the unsteered model.
        low: lower end of its 95 % interval.
        high: its upper end.
        items: how many there are.
        detectable: smallest change that so many items show (80 % power), if a fifth of the answers
            change; None where none would, or of a measure that is no share of right answers.
        chance: of questions, expected accuracy of guessing.
        constant: of questions, accuracy of always giving the letter that is correct most often.
        letter: that letter.
        lettered: whether the options' letters are what is scored.
        floor: of generated answers, the accuracy that has to be passed.
    """

    measure: str
    value: float
    low: float
    high: float
    items: int
    detectable: float | None = None
    chance: float | None = None
    constant: float | None = None
    letter: str | None = None
    lettered: bool = False
    floor: float | None = None

    @property
    def above_chance(self) -> bool:
        """Whether there is something that steering could change, as far as that can be told.

        The interval has to lie above guessing, and letters above one letter; generated answers
        above the floor; of other measures nothing is known.
        """
        if self.floor is not None:
            return self.low >= self.floor
        if self.chance is None or self.constant is None:
            return True
        return self.low > self.chance and not (self.lettered and self.value <= self.constant)

    def __str__(self) -> str:
        text = f"{self.value:.3f} of {self.items} items (95 % interval {self.low:.3f} to "
        text += f"{self.high:.3f}"
        if self.chance is not None:
            text += f"; guessing {self.chance:.3f}, always {self.letter} {self.constant:.3f}"
        text += ")"
        if self.chance is None and self.floor is None:
            return f"{self.measure} {text}"
        if not self.above_chance:
            where = "near the floor" if self.floor is not None else "at chance"
            return f"{where}, {text}: there is nothing here for a direction to improve"
        where = "above the floor" if self.floor is not None else "above chance"
        return f"{where}, {text}; {stats.in_points(self.detectable)} would show"

    def card(self) -> Card:
        """What there is to be found."""
        return Card("Headroom", {"unsteered": str(self)}, "headroom.above_chance")


def headroom(scored: Scored[Any]) -> Headroom:
    """What the scores of the unsteered model leave to be found."""
    low, high = scored.interval
    measure, n = scored.measures[0], len(scored.items)
    known = measure, scored.mean(), low, high, n
    if isinstance(scored, Scores) and scored.metric is None:
        table = letters(scored)
        return Headroom(
            *known,
            detectable=stats.detectable(n),
            chance=scored.chance,
            constant=float(table["correct"].max()),
            letter=str(table["correct"].idxmax()),
            lettered=scored.method == "letter",
        )
    if isinstance(scored, Answers) and scored.metric is None:
        return Headroom(*known, detectable=stats.detectable(n), floor=FLOOR)
    return Headroom(*known)


def letters(scores: Scores) -> pd.DataFrame:
    """How often each letter is given, and how often it is correct, as shares of the questions.

    ``correct`` is also the accuracy of always giving that letter.
    """
    counts = {
        letter: {
            "given": float((scores.predictions == n).double().mean()),
            "correct": float(scores.true[:, n].double().mean()),
        }
        for n, letter in enumerate(LETTERS[: scores.logprobs.shape[1]])
    }
    return pd.DataFrame.from_dict(counts, orient="index").rename_axis("letter")
