import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from statsmodels.stats.contingency_tables import mcnemar

import rolelens as rl
from rolelens import evidence, stats


def scores(correct: list[bool], *, ids: str = "q", answer: int = 0, **changes) -> rl.Scores:
    logprobs = torch.tensor(
        [[0.0, -1.0, -2.0, -3.0] if c else [-1.0, 0.0, -2.0, -3.0] for c in correct]
    )
    items = tuple(
        rl.Question(f"{ids}{i}", "Who?", ("a", "b", "c", "d"), answer) for i in range(len(correct))
    )
    return rl.Scores(**{"items": items, "logprobs": logprobs, "method": "letter"} | changes)


def test_a_comparison_is_paired() -> None:
    before = [True] * 30 + [False] * 30
    after = [True] * 30 + [True] * 20 + [False] * 10
    result = rl.compare(scores(before), scores(after))
    assert result.difference == pytest.approx(1 / 3)
    assert result.low > 0.2
    assert result.p == pytest.approx(2 * 0.5**20)
    # The same accuracies, with as many lost as gained beside: less sure.
    mixed = [False] * 20 + [True] * 30 + [True] * 10
    assert rl.compare(scores(before), scores(mixed)).p > result.p
    assert "50.0 points" not in str(result)
    assert "0.500 -> 0.833 (+33.3 points" in str(result)


def test_the_same_scores_do_not_differ() -> None:
    result = rl.compare(scores([True, False] * 10), scores([True, False] * 10))
    assert (result.difference, result.low, result.high, result.p) == (0, 0, 0, 1)
    assert result.detectable > 0


def test_other_items_and_other_ways_of_scoring_are_refused() -> None:
    """The same ids do not make the same questions: MMLU's test and val share theirs."""
    one = scores([True])
    (question,) = one.items
    for sentence, other in (
        ("of different items", scores([True], ids="other")),
        ("item 'q0' is not the same", scores([True], answer=1)),
        ("'q0' is not the same", _with(one, dataclasses.replace(question, text="What?"))),
        ("'q0' is not", _with(one, dataclasses.replace(question, options=("b", "a", "c", "d")))),
        ("scored by 'letter' and 'cloze'", dataclasses.replace(one, method="cloze")),
        ("measured by accuracy, margin and gap,", dataclasses.replace(one, metric=gap)),
    ):
        with pytest.raises(rl.InputError, match=sentence):
            rl.compare(one, other)


def _with(one: rl.Scores, question: rl.Question) -> rl.Scores:
    return dataclasses.replace(one, items=(question,))


def gap(item: rl.Question, logprobs: torch.Tensor) -> float:
    return float(logprobs[0] - logprobs[1])


def test_a_metric_is_compared_in_its_own_units() -> None:
    before, after = scores([True, False] * 10, metric=gap), scores([True] * 20, metric=gap)
    result = rl.compare(before, after)
    assert result.measure == "gap"
    assert result.difference == pytest.approx(1.0)
    assert "0.000 -> 1.000 (+1 in gap" in str(result)
    by_accuracy = rl.compare(before, after, "accuracy")
    assert "0.500 -> 1.000 (+50.0 points" in str(by_accuracy)
    assert by_accuracy.p == pytest.approx(2 * 0.5**10)


def test_headroom_says_whether_there_is_something_to_gain() -> None:
    at_chance = evidence.headroom(scores([True] * 26 + [False] * 74))
    assert not at_chance.above_chance
    assert "at chance, 0.260 of 100 items" in str(at_chance)
    assert "nothing here for a direction to improve" in str(at_chance)
    texts = dataclasses.replace(scores([True] * 70 + [False] * 30), method="cloze")
    able = evidence.headroom(texts)
    assert able.above_chance
    assert (able.letter, able.constant) == ("A", 1.0)  # "A" is always correct here
    assert able.detectable == pytest.approx(stats.detectable(100, 0.2))
    # In letters, who says "A" would be right more often.
    assert not evidence.headroom(scores([True] * 70 + [False] * 30)).above_chance
    assert "no change would show" in str(
        evidence.headroom(dataclasses.replace(scores([True] * 5), method="cloze"))
    )


def test_what_is_correct_counts_every_correct_option() -> None:
    items = [
        dataclasses.replace(question, also=also)
        for question, also in zip(scores([True] * 4).items, ((1,), (1,), (1, 2), ()), strict=True)
    ]
    several = scores([True] * 4, items=tuple(items))
    assert evidence.letters(several)["correct"].tolist() == [1.0, 0.75, 0.25, 0.0]


def test_generated_answers_need_to_be_off_the_floor() -> None:
    def answers(right: int, n: int) -> rl.Answers:
        problems = rl.load_task([rl.Problem(f"p{k}", f"{k}?", "1") for k in range(n)])
        correct = torch.tensor([[k < right] for k in range(n)])
        return rl.Answers(problems.items, (("",),) * n, correct, problems)

    low, able = (evidence.headroom(answers(right, 100)) for right in (2, 50))
    assert not low.above_chance
    assert "near the floor, 0.020 of 100 items" in str(low)
    assert able.above_chance
    assert evidence.headroom(scores([True] * 5, metric=gap)).above_chance  # nothing is known


EFFECT = evidence.Effect(
    name="role", domain="math", measure="accuracy", items=90, before=0.3, after=0.5, gain=0.2,
    low=0.1, high=0.3, p=0.0005, p_holm=0.001, detectable=0.1, constant=0.4,
)  # fmt: skip


def test_a_gain_in_letters_is_qualified() -> None:
    def verdict(**changes) -> str:
        return dataclasses.replace(EFFECT, **changes).verdict

    assert "role: helps, +20.0 points" in verdict()
    assert "role: helps, +20.0 points" in verdict(permuted=0.1)
    assert "helps, but not with the options in another order, +20.0" in verdict(permuted=-0.02)
    one = verdict(permuted=0.1, constant=0.6)
    assert "helps, but no more than always giving one letter, +20.0" in one
    lower = verdict(null_low=-0.01, null_high=0.19)
    assert "helps, +20.0 points" in lower
    assert ", nulls in the same cell -1.0 to +19.0)" in lower
    higher = verdict(null_low=-0.01, null_high=0.2)
    assert "helps, but so does a null in the same cell, +20.0" in higher
    harmed = {"gain": -0.2, "null_low": -0.3, "null_high": 0.3}
    assert "hurts, but so does a null in the same cell, -20.0" in verdict(**harmed)
    assert "hurts, -20.0" in verdict(**harmed | {"null_low": -0.1})
    assert "no change would have shown" in verdict(p_holm=0.2, detectable=None)
    assert "raises it, +0.2 in gap" in verdict(measure="gap")


def test_letters_are_counted() -> None:
    keys = (2, 2, 0, 2)
    made = rl.Scores(
        items=tuple(rl.Question(f"q{k}", "?", ("x", "y", "z"), key) for k, key in enumerate(keys)),
        logprobs=torch.tensor([[0.0, -1, -2], [0, -1, -2], [-3, 0, -1], [-9, -8, 0]]),
        method="letter",
    )
    table = evidence.letters(made)
    assert table["given"].to_dict() == {"A": 0.5, "B": 0.25, "C": 0.25}
    assert table["correct"].to_dict() == {"A": 0.25, "B": 0.0, "C": 0.75}


DOMAINS = ("math", "law", "art")


def drawn(rng: np.random.Generator, gains: dict[str, float], n: int = 150) -> pd.DataFrame:
    """Answers of one role whose accuracy rises by so much in each domain."""
    rows = []
    for domain in DOMAINS:
        before = rng.random(n) < 0.4
        gain = gains.get(domain, 0.0)
        flip = rng.random(n)
        after = np.where(before, flip >= 0.1, flip < (0.1 * 0.4 + gain) / 0.6)
        correct = rng.choice(list("ABCD"), n)
        wrong = np.where(correct == "D", "A", "D")
        rows.append(
            pd.DataFrame(
                {
                    "item": [f"{domain}{k}" for k in range(n)],
                    "domain": domain,
                    "correct": correct,
                    "given_before": np.where(before, correct, wrong),
                    "given_after": np.where(after, correct, wrong),
                    "before": before.astype(float),
                    "after": after.astype(float),
                    "margin": rng.normal(gain, 1, n),
                }
            )
        )
    return pd.concat(rows)


def test_effects_find_what_is_there_and_where() -> None:
    rng = np.random.default_rng(0)
    gains = {
        "one": ("math", {"math": 0.25}),
        "everywhere": ("law", dict.fromkeys(DOMAINS, 0.25)),
        "nothing": ("art", {}),
    }
    answers = pd.concat([drawn(rng, gain).assign(name=name) for name, (_, gain) in gains.items()])
    domains = {name: domain for name, (domain, _) in gains.items()}
    made = {effect.name: effect for effect in evidence.effects(answers, domains)}
    assert {name for name, effect in made.items() if effect.is_shown} == {"one", "everywhere"}
    assert {n for n, effect in made.items() if effect.interaction_p_holm < 0.05} == {"one"}
    rows = answers[(answers["name"] == "one") & (answers["domain"] == "math")]
    effect = made["one"]
    assert effect.gain == pytest.approx(rows["after"].mean() - rows["before"].mean())
    assert effect.p == pytest.approx(
        mcnemar(pd.crosstab(rows["before"], rows["after"]).to_numpy(), exact=True).pvalue
    )
    assert effect.low < effect.gain < effect.high
    assert effect.constant == rows["correct"].value_counts().max() / 150
    assert "one: helps, " in effect.verdict
    assert "and more than elsewhere" in effect.verdict
    assert "and not more than elsewhere" in made["everywhere"].verdict
    assert "nothing: nothing beyond chance, " in made["nothing"].verdict
    table = evidence.effect_table(made.values())
    assert table["gain"].tolist() == [effect.gain for effect in made.values()]
    assert "permuted" not in table
    everywhere = evidence.transfer(answers)
    assert len(everywhere) == 9
    claimed = everywhere[everywhere["p_holm"] < 0.05]
    assert {("one", "math")} <= set(zip(claimed["name"], claimed["domain"], strict=True))
    assert not ((claimed["name"] == "nothing") | (claimed["gain"] < 0)).any()


def test_given_letters_are_counted_in_the_domain() -> None:
    answers = drawn(np.random.default_rng(0), {"math": 0.25}).assign(name="one")
    table = evidence.given(answers, {"one": "math"}).set_index("letter")
    rows = answers[answers["domain"] == "math"]
    for letter in "ABCD":
        assert table.loc[letter, "correct"] == pytest.approx((rows["correct"] == letter).mean())
        assert table.loc[letter, "after"] == pytest.approx((rows["given_after"] == letter).mean())
    assert table.loc["D", "before"] > table.loc["D", "after"]  # what is wrong is a D, mostly
    assert table[["correct", "before", "after"]].sum().tolist() == pytest.approx([1, 1, 1])


def test_where_nothing_is_there_nothing_is_claimed() -> None:
    rng = np.random.default_rng(1)
    claims, alone = 0, 0
    for _ in range(30):
        answers = pd.concat([drawn(rng, {}, 60).assign(name=name) for name in "abc"])
        made = evidence.effects(answers, dict(zip("abc", DOMAINS, strict=True)))
        claims += any(effect.is_shown for effect in made)
        alone += sum(effect.p < 0.05 for effect in made)
    assert claims / 30 <= 0.14
    assert alone / 90 <= 0.11


def test_names_without_a_domain_or_items_are_refused() -> None:
    answers = drawn(np.random.default_rng(0), {}, 5).assign(name="a")
    with pytest.raises(rl.InputError, match="'a' has no domain"):
        evidence.effects(answers, {})
    with pytest.raises(rl.InputError, match="not asked an item of its domain 'music'"):
        evidence.effects(answers, {"a": "music"})
    (effect,) = evidence.effects(answers[answers["domain"] == "math"], {"a": "math"})
    assert effect.interaction is None
    (everything,) = evidence.effects(answers, {"a": None})
    assert everything.items == len(answers)


def test_answers_are_those_of_the_scores() -> None:
    before, after = scores([True, False, False]), scores([True, True, False])
    table = evidence.answer_table("nurse", before, after, "accuracy")
    assert table["before"].tolist() == [1, 0, 0]
    assert table["after"].tolist() == [1, 1, 0]
    assert table["margin"].tolist() == [0.0, 2.0, 0.0]
    assert table["correct"].tolist() == ["A", "A", "A"]
    assert table["given_before"].tolist() == ["A", "B", "B"]
    assert table["given_after"].tolist() == ["A", "A", "B"]
    with pytest.raises(rl.InputError, match="different items"):
        evidence.answer_table("nurse", before, scores([True] * 3, ids="other"), "accuracy")
