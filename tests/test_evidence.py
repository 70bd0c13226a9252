import pytest
import torch

import rolelens as rl
from rolelens import evidence


def scores(correct: list[bool], *, ids: str = "q") -> rl.Scores:
    n = len(correct)
    logprobs = torch.tensor(
        [[0.0, -1.0, -2.0, -3.0] if c else [-1.0, 0.0, -2.0, -3.0] for c in correct]
    )
    return rl.Scores(
        logprobs,
        torch.zeros(n, dtype=torch.long),
        tuple(f"{ids}{i}" for i in range(n)),
        ("",) * n,
        "letter",
    )


def test_a_comparison_is_paired() -> None:
    before = [True] * 30 + [False] * 30
    after = [True] * 30 + [True] * 20 + [False] * 10
    found = evidence.compare(scores(before), scores(after))
    assert found.difference == pytest.approx(1 / 3)
    assert found.low > 0.2
    assert found.p == pytest.approx(2 * 0.5**20)
    # The same accuracies, with as many lost as gained beside: less sure.
    mixed = [False] * 20 + [True] * 30 + [True] * 10
    assert evidence.compare(scores(before), scores(mixed)).p > found.p
    assert "50.0 points" not in str(found)
    assert "0.500 -> 0.833 (+33.3 points" in str(found)


def test_the_same_scores_do_not_differ() -> None:
    found = evidence.compare(scores([True, False] * 10), scores([True, False] * 10))
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert found.detectable > 0


def test_different_questions_are_refused() -> None:
    with pytest.raises(rl.InputError, match="different questions"):
        evidence.compare(scores([True]), scores([True], ids="other"))


def test_above_chance() -> None:
    assert not evidence.above_chance(scores([True] * 26 + [False] * 74))
    assert evidence.above_chance(scores([True] * 40 + [False] * 60))
