import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from statsmodels.stats.contingency_tables import mcnemar

import rolelens as rl
from rolelens import evidence, stats


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


def test_headroom_says_whether_there_is_something_to_gain() -> None:
    at_chance = evidence.headroom(scores([True] * 26 + [False] * 74))
    assert not at_chance.above_chance
    assert "at chance, 0.260 of 100 questions" in str(at_chance)
    assert "nothing here for a role to improve" in str(at_chance)
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
    several = dataclasses.replace(scores([True] * 4), also=((1,), (1,), (1, 2), ()))
    assert evidence.letters(several)["correct"].tolist() == [1.0, 0.75, 0.25, 0.0]


def test_a_gain_in_letters_is_qualified() -> None:
    row = {
        "role": "own", "domain": "math", "questions": 90, "before": 0.3, "after": 0.5, "gain": 0.2,
        "low": 0.1, "high": 0.3, "p_holm": 0.001, "detectable": 0.1, "constant": 0.4,
    }  # fmt: skip
    assert "own: helps, +20.0 points" in evidence.verdict(row)
    assert "own: helps, +20.0 points" in evidence.verdict(row | {"permuted": 0.1})
    moved = evidence.verdict(row | {"permuted": -0.02})
    assert "helps, but not with the options in another order, +20.0" in moved
    one = evidence.verdict(row | {"permuted": 0.1, "constant": 0.6})
    assert "helps, but no more than always giving one letter, +20.0" in one
    lower = evidence.verdict(row | {"null_low": -0.01, "null_high": 0.19})
    assert "helps, +20.0 points" in lower
    assert ", nulls in the same cell -1.0 to +19.0)" in lower
    higher = evidence.verdict(row | {"null_low": -0.01, "null_high": 0.2})
    assert "helps, but so does a null in the same cell, +20.0" in higher
    harmed = {"gain": -0.2, "null_low": -0.3, "null_high": 0.3}
    assert "hurts, but so does a null in the same cell, -20.0" in evidence.verdict(row | harmed)
    assert "hurts, -20.0" in evidence.verdict(row | harmed | {"null_low": -0.1})
    few = evidence.verdict(row | {"p_holm": 0.2, "detectable": None})
    assert "no change would have shown" in few


def test_letters_are_counted() -> None:
    made = rl.Scores(
        torch.tensor([[0.0, -1, -2], [0, -1, -2], [-3, 0, -1], [-9, -8, 0]]),
        torch.tensor([2, 2, 0, 2]),
        ("a", "b", "c", "d"),
        ("",) * 4,
        "letter",
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
                    "question": [f"{domain}{k}" for k in range(n)],
                    "domain": domain,
                    "correct": correct,
                    "given_before": np.where(before, correct, wrong),
                    "given_after": np.where(after, correct, wrong),
                    "before": before,
                    "after": after,
                    "margin": rng.normal(gain, 1, n),
                }
            )
        )
    return pd.concat(rows)


def test_effects_find_what_is_there_and_where() -> None:
    rng = np.random.default_rng(0)
    gains = {
        "own": ("math", {"math": 0.25}),
        "everywhere": ("law", dict.fromkeys(DOMAINS, 0.25)),
        "nothing": ("art", {}),
    }
    answers = pd.concat([drawn(rng, own).assign(role=r) for r, (_, own) in gains.items()])
    domains = {role: domain for role, (domain, _) in gains.items()}
    table = evidence.effects(answers, domains).set_index("role")
    assert (table["p_holm"] < 0.05).to_dict() == {
        "own": True,
        "everywhere": True,
        "nothing": False,
    }
    assert (table["interaction_p_holm"] < 0.05).to_dict() == {
        "own": True,
        "everywhere": False,
        "nothing": False,
    }
    own = answers[(answers["role"] == "own") & (answers["domain"] == "math")]
    row = table.loc["own"]
    assert row["gain"] == pytest.approx(own["after"].mean() - own["before"].mean())
    assert row["p"] == pytest.approx(
        mcnemar(pd.crosstab(own["before"], own["after"]).to_numpy(), exact=True).pvalue
    )
    assert row["low"] < row["gain"] < row["high"]
    assert row["constant"] == own["correct"].value_counts().max() / 150
    said = {role: evidence.verdict({"role": role, **table.loc[role]}) for role in gains}
    assert "own: helps, " in said["own"]
    assert "and more than elsewhere" in said["own"]
    assert "and not more than elsewhere" in said["everywhere"]
    assert "nothing: nothing beyond chance, " in said["nothing"]
    everywhere = evidence.transfer(answers)
    assert len(everywhere) == 9
    claimed = everywhere[everywhere["p_holm"] < 0.05]
    assert {("own", "math")} <= set(zip(claimed["role"], claimed["domain"], strict=True))
    assert not ((claimed["role"] == "nothing") | (claimed["gain"] < 0)).any()


def test_given_letters_are_counted_in_the_domain() -> None:
    answers = drawn(np.random.default_rng(0), {"math": 0.25}).assign(role="own")
    table = evidence.given(answers, {"own": "math"}).set_index("letter")
    own = answers[answers["domain"] == "math"]
    for letter in "ABCD":
        assert table.loc[letter, "correct"] == pytest.approx((own["correct"] == letter).mean())
        assert table.loc[letter, "after"] == pytest.approx((own["given_after"] == letter).mean())
    assert table.loc["D", "before"] > table.loc["D", "after"]  # what is wrong is a D, mostly
    assert table[["correct", "before", "after"]].sum().tolist() == pytest.approx([1, 1, 1])


def test_where_nothing_is_there_nothing_is_claimed() -> None:
    rng = np.random.default_rng(1)
    claims, alone = 0, 0
    for _ in range(30):
        answers = pd.concat([drawn(rng, {}, 60).assign(role=r) for r in ("a", "b", "c")])
        table = evidence.effects(answers, dict(zip("abc", DOMAINS, strict=True)))
        claims += (table["p_holm"] < 0.05).any()
        alone += (table["p"] < 0.05).sum()
    assert claims / 30 <= 0.14
    assert alone / 90 <= 0.11


def test_roles_without_a_domain_or_questions_are_refused() -> None:
    answers = drawn(np.random.default_rng(0), {}, 5).assign(role="a")
    with pytest.raises(rl.InputError, match="'a' has no domain"):
        evidence.effects(answers, {})
    with pytest.raises(rl.InputError, match="not asked a question of its domain 'music'"):
        evidence.effects(answers, {"a": "music"})
    own = answers[answers["domain"] == "math"]
    row = evidence.effects(own, {"a": "math"}).iloc[0]
    assert "interaction" not in row


def test_answers_are_those_of_the_scores() -> None:
    before, after = scores([True, False, False]), scores([True, True, False])
    table = evidence.answered("nurse", before, after)
    assert table["before"].tolist() == [True, False, False]
    assert table["after"].tolist() == [True, True, False]
    assert table["margin"].tolist() == [0.0, 2.0, 0.0]
    assert table["correct"].tolist() == ["A", "A", "A"]
    assert table["given_before"].tolist() == ["A", "B", "B"]
    assert table["given_after"].tolist() == ["A", "A", "B"]
    with pytest.raises(rl.InputError, match="different questions"):
        evidence.answered("nurse", before, scores([True] * 3, ids="other"))
