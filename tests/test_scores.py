"""What answers are worth, whoever gave them."""

import math

import pytest
import torch

import rolelens as rl
from rolelens import tasks
from rolelens.tasks import Answers, Values, metric_name

QUESTIONS = (
    rl.Question("a", "A?", ("1", "2", "3"), 0, "x"),
    rl.Question("b", "B?", ("1", "2"), 1, "x"),
    rl.Question("c", "C?", ("1", "2", "3"), 2, "y"),
)
LOGPROBS = torch.tensor([[-1.0, -2.0, -5.0], [-1.0, -3.0, -torch.inf], [-4.0, -2.5, -2.0]])


def scores(**changes) -> rl.Scores:
    return rl.Scores(**{"items": QUESTIONS, "logprobs": LOGPROBS, "method": "cloze"} | changes)


def test_accuracy_and_margin_are_those_of_the_definition() -> None:
    known = scores()
    assert known.accuracy == known.mean("accuracy") == pytest.approx(2 / 3)
    assert known.margins.tolist() == pytest.approx([1.0, -2.0, 0.5])
    assert known.margin == pytest.approx(-0.5 / 3)
    assert known.mean("margin") == pytest.approx(-0.5 / 3)
    assert known.chance == pytest.approx((1 / 3 + 1 / 2 + 1 / 3) / 3)
    assert known.table()["accuracy"].to_dict() == {"x": 0.5, "y": 1.0}
    assert known.table()["items"].to_dict() == {"x": 2, "y": 1}
    assert "accuracy 0.667" in repr(known)
    assert known.ids == ("a", "b", "c")
    assert known.answers.tolist() == [0, 1, 2]


def test_every_correct_option_counts() -> None:
    several = (rl.Question("a", "A?", ("1", "2", "3"), 2, also=(0,)), *QUESTIONS[1:])
    known = scores(items=several)
    assert known.correct.tolist() == [True, False, True]
    assert known.margins.tolist() == pytest.approx([1.0, -2.0, 0.5])
    assert known.chance == pytest.approx((2 / 3 + 1 / 2 + 1 / 3) / 3)
    shares = [math.exp(x) for x in (-1, -2, -5)]
    assert float(known.mc2[0]) == pytest.approx((shares[0] + shares[2]) / sum(shares))
    with pytest.raises(rl.InputError, match="MC2 is of method 'cloze'"):
        _ = scores(method="letter").mc2


def test_scores_of_one_domain_and_of_some_questions() -> None:
    law = scores().domain("y")
    assert law.ids == ("c",)
    assert torch.equal(law.logprobs, LOGPROBS[2:])
    assert scores().take([2, 0]).margins.tolist() == pytest.approx([0.5, 1.0])
    with pytest.raises(rl.InputError, match="no domain 'z'; there are: x, y"):
        scores().domain("z")


def spread(item: rl.Question, answer: torch.Tensor) -> torch.Tensor:
    return answer.max() - answer.min()


def test_a_metric_of_ones_own_comes_first() -> None:
    known = scores(metric=spread)
    assert known.measures == ("spread", "accuracy", "margin")
    # Of the options that there are: an option that a question lacks is no -inf there.
    assert known.measure().tolist() == pytest.approx([4.0, 2.0, 2.0])
    assert known.mean() == pytest.approx(8 / 3)
    assert list(known.table()) == ["items", "spread", "low", "high", "accuracy", "margin"]
    assert "spread" in repr(known)
    assert known.domain("x").mean() == pytest.approx(3.0)
    with pytest.raises(rl.InputError, match="no measure 'spred'; did you mean 'spread'"):
        known.measure("spred")


def text(item: rl.Question, answer: torch.Tensor) -> str:
    return "much"


def test_a_metric_without_a_number_is_refused() -> None:
    with pytest.raises(rl.InputError, match="metric 'text' gives 'much' for item 'a'"):
        scores(metric=text).mean()
    with pytest.raises(rl.InputError, match="metric 'metric' gives nan for item 'a'"):
        scores(metric=lambda item, answer: math.nan).mean()
    assert metric_name(lambda item, answer: 0.0) == "metric"


def test_answers_are_the_share_that_is_right() -> None:
    problems = tasks.Problems("own", tuple(rl.Problem(x, f"{x}?", "1", domain=x) for x in "ab"))
    correct = torch.tensor([[True, False], [True, True]])
    texts = (("1", "2"), ("1", "1"))
    answers = Answers(problems.items, texts, correct, problems)
    assert answers.accuracy == answers.mean() == 0.75
    assert answers.mixed == [0]
    assert answers.take([1]).accuracy == 1.0
    low, high = answers.interval
    assert low <= 0.75 <= high
    table = answers.rollouts()
    assert table["correct"].mean() == 0.75
    assert table["text"].tolist() == ["1", "2", "1", "1"]
    several = Answers(problems.items, texts, correct, problems, metric=lambda item, text: 1.0)
    with pytest.raises(rl.InputError, match="reads one text a problem, and there are 2"):
        several.mean()


def test_values_are_numbers() -> None:
    items = tuple(rl.Text(x, x, x) for x in "ab")
    values = Values(items, torch.tensor([-1.0, -3.0]), metric=lambda item, answer: answer**2)
    assert values.measures == ("metric", "logprob")
    assert values.mean() == 5.0
    assert values.mean("logprob") == -2.0
    assert values.take([1]).mean() == 9.0
