"""Two ways of answering the same questions, compared question by question."""

from dataclasses import dataclass

from rolelens import stats
from rolelens.errors import InputError
from rolelens.scoring import Scores


@dataclass(frozen=True)
class Comparison:
    """Two ways of answering the same questions.

    Attributes:
        before: accuracy of the first.
        after: accuracy of the second.
        low: lower end of the 95 % paired bootstrap interval of the difference.
        high: its upper end.
        p: exact McNemar p-value, which is the paired permutation test of right and wrong answers.
        detectable: smallest difference that so many questions would show (80 % power); None where
            none would.
        questions: how many there are.
        margin: change of the mean margin, in nats.
    """

    before: float
    after: float
    low: float
    high: float
    p: float
    detectable: float | None
    questions: int
    margin: stats.Estimate

    @property
    def difference(self) -> float:
        """Gain in accuracy."""
        return self.after - self.before

    def __str__(self) -> str:
        return (
            f"{self.before:.3f} -> {self.after:.3f} ({100 * self.difference:+.1f} points, 95 % "
            f"interval {stats.points_between(self.low, self.high)}, p = {self.p:.2f}; "
            f"{self.questions} questions show {stats.in_points(self.detectable)})"
        )


def compare(before: Scores, after: Scores) -> Comparison:
    """Compare two scores of the same questions, question by question.

    Raises:
        InputError: they are of different questions.
    """
    check_questions(before, after)
    first, second = before.correct.tolist(), after.correct.tolist()
    differences = [float(b) - float(a) for a, b in zip(first, second, strict=True)]
    low, high = stats.paired_bootstrap(differences)
    n = len(differences)
    return Comparison(
        before=before.accuracy,
        after=after.accuracy,
        low=low,
        high=high,
        p=stats.mcnemar(first, second),
        detectable=stats.detectable(n, sum(map(abs, differences)) / n),
        questions=n,
        margin=stats.paired((after.margins.double() - before.margins.double()).tolist()),
    )


def check_questions(before: Scores, after: Scores) -> None:
    """Refuse to compare scores of different questions."""
    if before.questions != after.questions:
        raise InputError("the two scores are of different questions; evaluate both on the same.")
