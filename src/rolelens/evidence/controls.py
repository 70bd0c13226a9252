"""What has to be known before a gain is believed: is there anything to gain, and from what."""

from dataclasses import dataclass

import pandas as pd

from rolelens import stats
from rolelens.benchmarks import LETTERS
from rolelens.scoring import Scores


@dataclass(frozen=True)
class Headroom:
    """Whether a model can do a benchmark at all, and what so many questions can show.

    Attributes:
        accuracy: of the unsteered model.
        low: lower end of its 95 % Wilson interval.
        high: its upper end.
        chance: expected accuracy of guessing.
        constant: accuracy of always giving the letter that is correct most often.
        letter: that letter.
        detectable: smallest change of accuracy that so many questions show (80 % power), if a
            fifth of the answers change; None where none would.
        questions: how many there are.
        lettered: whether the options' letters are what is scored.
    """

    accuracy: float
    low: float
    high: float
    chance: float
    constant: float
    letter: str
    detectable: float | None
    questions: int
    lettered: bool = False

    @property
    def above_chance(self) -> bool:
        """Whether the interval lies above guessing, and letters above one letter."""
        return self.low > self.chance and not (self.lettered and self.accuracy <= self.constant)

    def __str__(self) -> str:
        found = (
            f"{self.accuracy:.3f} of {self.questions} questions (95 % interval {self.low:.3f} to "
            f"{self.high:.3f}; guessing {self.chance:.3f}, always {self.letter} "
            f"{self.constant:.3f})"
        )
        if not self.above_chance:
            return f"at chance, {found}: there is nothing here for a role to improve"
        return f"above chance, {found}; {stats.in_points(self.detectable)} would show"


def headroom(scores: Scores) -> Headroom:
    """What the scores of the unsteered model leave to be found."""
    low, high = scores.interval
    table = letters(scores)
    n = len(scores.questions)
    return Headroom(
        accuracy=scores.accuracy,
        low=low,
        high=high,
        chance=scores.chance,
        constant=float(table["correct"].max()),
        letter=str(table["correct"].idxmax()),
        detectable=stats.detectable(n),
        questions=n,
        lettered=scores.method == "letter",
    )


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
