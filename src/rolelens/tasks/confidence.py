"""How sure a model is of its answers to questions, and whether rightly so."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from rolelens import stats
from rolelens.display import Card, Shown
from rolelens.errors import InputError
from rolelens.tasks.scores import Scores

CONFIDENT = 0.9


@dataclass(frozen=True, eq=False, repr=False)
class Calibration(Shown):
    """Confidence, which is the probability of the best option among all, and what it is worth.

    Attributes:
        confidence: of each answer, 0 to 1.
        correct: whether it is right.
        entropies: of the options' probabilities, in nats.
    """

    confidence: npt.NDArray[np.float64]
    correct: npt.NDArray[np.float64]
    entropies: npt.NDArray[np.float64]

    @property
    def error(self) -> float:
        """Expected calibration error, in ten bins (1706.04599)."""
        return stats.expected_calibration_error(self.confidence, self.correct)

    @property
    def confident_errors(self) -> float:
        """Share of questions that are answered wrongly at a confidence of more than 0.9."""
        return stats.confident_errors(self.confidence, self.correct, CONFIDENT)

    @property
    def entropy(self) -> float:
        """Mean entropy, in nats."""
        return float(self.entropies.mean())

    def take(self, rows: npt.NDArray[np.int64]) -> "Calibration":
        """Of some answers, which may come several times."""
        return Calibration(self.confidence[rows], self.correct[rows], self.entropies[rows])

    def table(self) -> pd.DataFrame:
        """A row a bin of confidence: items, mean confidence and accuracy."""
        return stats.reliability(self.confidence, self.correct)

    def card(self) -> Card:
        """The three numbers."""
        facts = {
            "questions": str(len(self.correct)),
            "mean confidence": f"{self.confidence.mean():.3f}, accuracy {self.correct.mean():.3f}",
            "expected calibration error": f"{self.error:.3f}",
            "confident errors": f"{self.confident_errors:.3f} of the questions",
            "entropy": f"{self.entropy:.3f} nats",
        }
        return Card("Calibration", facts, "calibration.table()")


def calibration_of(scores: Scores) -> Calibration:
    """How well calibrated answers to questions are.

    Probabilities are those of the options among each other: of the letters, or of the options'
    texts as they were scored (with ``cloze_norm`` of means over tokens, which say less than they
    seem to).

    Raises:
        InputError: these are no scores of questions.
    """
    if not isinstance(scores, Scores):
        raise InputError(
            f"a {type(scores).__name__} has no options to be sure of; pass the rl.Scores of "
            "questions."
        )
    shares = scores.logprobs.double().softmax(dim=-1).numpy()
    return Calibration(
        shares.max(axis=-1).clip(0, 1),
        scores.correct.double().numpy(),
        stats.entropies(shares),
    )
