import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rolelens as rl
from rolelens import stats
from rolelens.tasks import calibration_of

shares = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


def naive(pairs: list[tuple[float, bool]], bins: int) -> float:
    """Bin by bin, item by item."""
    error = 0.0
    for n in range(bins):
        low, high = n / bins, (n + 1) / bins
        here = [(c, r) for c, r in pairs if (low < c <= high) or (n == 0 and c == 0)]
        if here:
            confidence = sum(c for c, _ in here) / len(here)
            accuracy = sum(r for _, r in here) / len(here)
            error += len(here) / len(pairs) * abs(accuracy - confidence)
    return error


@given(shares)
def test_calibration_error_is_a_loop_over_bins(pairs: list[tuple[float, bool]]) -> None:
    # In quarters, whose ends are exact numbers.
    confidence, correct = map(np.array, zip(*pairs, strict=True))
    found = stats.expected_calibration_error(confidence, correct.astype(float), bins=4)
    assert found == pytest.approx(naive(pairs, 4))


def test_closed_forms() -> None:
    sure = np.array([0.95] * 10)
    right = np.array([1.0] * 6 + [0.0] * 4)
    assert stats.expected_calibration_error(sure, right) == pytest.approx(0.35)
    assert stats.confident_errors(sure, right) == pytest.approx(0.4)
    assert stats.confident_errors(sure, right, above=0.95) == 0
    assert stats.entropies(np.array([[0.25] * 4, [1, 0, 0, 0]])) == pytest.approx([np.log(4), 0])


def test_answers_to_questions() -> None:
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.95, 0.03, 0.02], [0.5, 0.5, 0.0]])
    questions = tuple(rl.Question(f"q{n}", "?", ("a", "b", "c"), n % 2) for n in range(2))
    questions += (rl.Question("q2", "?", ("a", "b"), 0),)
    logprobs = probabilities.log()
    found = calibration_of(rl.Scores(questions, logprobs, "letter"))
    assert found.confidence == pytest.approx([0.7, 0.95, 0.5])
    assert found.correct.tolist() == [1, 0, 1]
    assert found.confident_errors == pytest.approx(1 / 3)
    assert found.error == pytest.approx((0.3 + 0.95 + 0.5) / 3)
    assert found.entropies[2] == pytest.approx(np.log(2))
    # Scores that do not sum to one are taken among each other.
    again = calibration_of(rl.Scores(questions, logprobs - 7, "cloze"))
    assert again.confidence == pytest.approx(found.confidence)


def test_bad_numbers_are_refused() -> None:
    for confidence, correct in (([0.5], [1, 0]), ([], []), ([1.5], [1])):
        with pytest.raises(rl.InputError):
            stats.expected_calibration_error(np.array(confidence, float), np.array(correct, float))
