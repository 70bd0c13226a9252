"""Whether confidence is worth what it says: calibration of answers. Pure mathematics."""

import numpy as np
import numpy.typing as npt
import pandas as pd

from rolelens.errors import InputError

BINS = 10
Array = npt.NDArray[np.float64]


def expected_calibration_error(confidence: Array, correct: Array, bins: int = BINS) -> float:
    """Mean |accuracy - confidence| over bins of equal width, weighed by their items (1706.04599).

    Args:
        confidence: probability of each answer, 0 to 1.
        correct: 1 where it is right, else 0.
        bins: how many.

    Raises:
        InputError: numbers that do not pair up or lie outside of 0 to 1, or fewer than one bin.
    """
    table = reliability(confidence, correct, bins)
    gaps = (table["accuracy"] - table["confidence"]).abs()
    return float((gaps * table["items"]).sum() / table["items"].sum())


def reliability(confidence: Array, correct: Array, bins: int = BINS) -> pd.DataFrame:
    """A row a bin that has items: ``low``, ``high``, ``items``, ``confidence``, ``accuracy``.

    A bin holds what lies above its low end, up to its high one; the first holds 0, too.
    """
    confidence, correct = np.asarray(confidence, float), np.asarray(correct, float)
    _check(confidence, correct, bins)
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    rows = []
    for n in np.unique(place):
        inside = place == n
        rows.append(
            {
                "low": edges[n],
                "high": edges[n + 1],
                "items": int(inside.sum()),
                "confidence": float(confidence[inside].mean()),
                "accuracy": float(correct[inside].mean()),
            }
        )
    return pd.DataFrame(rows)


def confident_errors(confidence: Array, correct: Array, above: float = 0.9) -> float:
    """Share of items whose answer is wrong at a confidence of more than ``above``."""
    confidence, correct = np.asarray(confidence, float), np.asarray(correct, float)
    _check(confidence, correct, 1)
    return float(((confidence > above) & (correct == 0)).mean())


def entropies(probabilities: Array) -> Array:
    """Entropy of each row of probabilities, in nats; 0 log 0 is 0."""
    p = np.asarray(probabilities, float)
    logs = np.log(np.where(p > 0, p, 1.0))
    found: Array = -(p * logs).sum(axis=-1)
    return found


def _check(confidence: Array, correct: Array, bins: int) -> None:
    if confidence.shape != correct.shape or not confidence.size or bins < 1:
        raise InputError(
            f"{confidence.size} confidences, {correct.size} answers and {bins} bins: as many of "
            "both are needed, at least one, and at least one bin."
        )
    if not ((confidence >= 0) & (confidence <= 1 + 1e-9)).all():
        raise InputError("a confidence lies outside of 0 to 1; pass probabilities.")
