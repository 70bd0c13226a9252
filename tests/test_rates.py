import math

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score, roc_auc_score

import rolelens as rl
from rolelens.patchscoping import (
    Answers,
    Calibration,
    Reading,
    agreement,
    answers,
    calibrate,
    confusion,
    rates,
    verdicts,
)
from rolelens.vectors import Null

ROLES = ("lawyer", "cook", "nurse", "poet")


class Named:
    """Says how often the role's name stands in a text."""

    name = "named"

    def score(self, texts, roles):
        return [float(text.split().count(role)) for text, role in zip(texts, roles, strict=True)]


def reading(name: str, text: str, layer: int = 1) -> Reading:
    null = Null(name.partition(" ~ ")[2], "gaussian") if " ~ " in name else None
    d = rl.Direction(torch.ones(4), layer=layer, position=-1, name=name, null=null)
    return Reading(text, "", "?", d, "test")


def readings() -> list[Reading]:
    """Lawyer and cook are read half of the time, nurse never and poet as a cook; one null is."""
    own = {
        "lawyer": ["lawyer", "lawyer", "x", "x"],
        "cook": ["cook", "x", "x", "cook lawyer"],
        "nurse": ["x"] * 4,
        "poet": ["cook"] * 4,
    }
    found = [reading(role, text, n) for role, texts in own.items() for n, text in enumerate(texts)]
    nulls = [("gaussian 0 ~ lawyer", "lawyer"), ("gaussian 0 ~ cook", "x")]
    return found + [reading(name, text) for name, text in nulls]


GOOD = Calibration("named", 0.9, 0.8, 1.0, 0.5, 20)


def test_rates_stand_beside_those_of_chance() -> None:
    table = rates(readings(), Named(), GOOD, mismatched=3).set_index("name")
    assert table["rate"].to_dict() == {
        "lawyer": 0.5,
        "cook": 0.5,
        "nurse": 0.0,
        "poet": 0.0,
        "all": 0.25,
    }
    assert table.loc["lawyer", "nulls"] == 1.0
    assert table.loc["cook", "nulls"] == 0.0
    # Asked about by all readings of others: lawyer by one of 12, cook by the poet's 4.
    assert table.loc["lawyer", "mismatched"] == pytest.approx(1 / 12)
    assert table.loc["cook", "mismatched"] == pytest.approx(4 / 12)
    assert table.loc["lawyer", "difference"] == pytest.approx(0.5 - 1.0)
    assert table.loc["cook", "difference"] == pytest.approx(0.5 - 4 / 12)
    assert math.isnan(table.loc["nurse", "nulls"])
    total = table.loc["all"]
    assert total["n"] == 16
    assert total["difference"] == pytest.approx((0.5 - 1.0 + 0.5 - 4 / 12 + 0 + 0) / 4)
    assert total["difference_low"] <= total["difference"] <= total["difference_high"]
    assert table.loc["nurse", ["low", "high"]].tolist() == pytest.approx(
        list(rl.stats.wilson(0, 4))
    )


def test_a_judge_that_cannot_tell_gives_no_rate() -> None:
    bad = Calibration("named", 0.6, 0.5, 0.7, 0.5, 20)
    with pytest.raises(rl.InputError, match="AUROC 0.60 .* cannot tell and no rate is given"):
        rates(readings(), Named(), bad)
    other = Calibration("other", 0.9, 0.8, 1.0, 0.5, 20)
    with pytest.raises(rl.InputError, match="other was calibrated, and named is to judge"):
        rates(readings(), Named(), other)


def test_verdicts_ask_about_the_imitated_and_about_others() -> None:
    table = verdicts(readings(), Named(), 0.5, mismatched=1)
    assert table["kind"].value_counts().to_dict() == {"role": 16, "mismatched": 16, "null": 2}
    mismatched = table[table["kind"] == "mismatched"]
    assert (mismatched["name"] != mismatched["read"]).all()
    assert set(table.loc[table["kind"] == "null", "name"]) == {"lawyer", "cook"}
    with pytest.raises(rl.InputError, match="only of nulls"):
        verdicts(readings()[-2:], Named(), 0.5)


def test_confusion_says_as_which_role_each_is_read() -> None:
    table = confusion(readings()[:-2], Named())
    assert table.sum(axis=1).tolist() == pytest.approx([1, 1, 1, 1])
    assert table.loc["poet"].to_dict() == {"lawyer": 0, "cook": 1, "nurse": 0, "poet": 0}
    assert table.loc["nurse"].tolist() == [0.25] * 4  # nothing is named, so all alike
    assert table.loc["lawyer", "lawyer"] == pytest.approx((1 + 1 + 0.25 + 0.25) / 4)
    assert confusion(readings(), Named()).equals(table)  # nulls are no roles
    with pytest.raises(rl.InputError, match="no readings of roles"):
        confusion(readings()[-2:], Named())


class Silent(Named):
    """No verdict where a text is of these words."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def score(self, texts, roles):
        scores = super().score(texts, roles)
        return [math.nan if t in self.words else s for t, s in zip(texts, scores, strict=True)]


def test_readings_without_a_verdict_are_told_and_not_counted() -> None:
    silent = Silent("x")
    table = rates(readings(), silent, GOOD).set_index("name")
    assert table.loc["nurse", "n"] == 0
    assert table.loc["nurse", ["rate", "low", "high", "difference"]].isna().all()
    assert table.loc["lawyer", ["n", "rate"]].tolist() == [2, 1.0]
    assert table.loc["all", "rate"] == pytest.approx((1 + 1 + 0) / 3)
    square = confusion(readings(), silent)
    assert square.loc["nurse"].isna().all()
    assert square.loc["lawyer", "lawyer"] == 1
    with pytest.raises(rl.InputError, match="no role has both a verdict and something"):
        rates(readings()[:4], silent, GOOD)
    with pytest.raises(rl.InputError, match="gave 1 verdicts on prompted and 0 on plain"):
        calibrate(silent, Answers(("a", "x"), ("lawyer", "cook"), ("x", "x")))
    with pytest.raises(rl.InputError, match="2 prompted answers, 2 roles and 1 plain answers"):
        Answers(("a", "x"), ("lawyer", "cook"), ("x",))


def test_agreement_is_cohens_kappa() -> None:
    rng = np.random.default_rng(0)
    a = (rng.random(200) < 0.3).tolist()
    b = [x if rng.random() < 0.8 else not x for x in a]
    never = [False] * 200
    table = agreement({"a": a, "b": b, "never": never}).set_index(["judge", "other"])
    row = table.loc["a", "b"]
    assert row["kappa"] == pytest.approx(cohen_kappa_score(a, b))
    assert row["same"] == pytest.approx(np.mean(np.array(a) == np.array(b)))
    assert row["low"] < row["kappa"] < row["high"]
    assert table.loc[("a", "never"), "kappa"] == pytest.approx(0)
    for verdicts_of in ({"a": a}, {"a": a, "b": b[:3]}, {"a": [], "b": []}):
        with pytest.raises(rl.InputError, match="numbers of verdicts are"):
            agreement(verdicts_of)


def test_a_judge_is_tried_on_prompted_answers(llama: rl.Lens, monkeypatch) -> None:
    """Answers of a prompted cook name soup, mostly; the judge counts it."""
    plain = [f"plain {n}" + (" soup" if n == 0 else "") for n in range(6)]
    told = [f"{'soup ' * (n != 5)}{n}" for n in range(6)]

    def generate(prompts, *, system=None, **options):
        assert system in (None, ["You are a cook."] * 6)
        return told if system else plain

    monkeypatch.setattr(llama, "generate", generate)

    class Soup:
        name = "soup"

        def score(self, texts, roles):
            return [float(text.count("soup")) for text in texts]

    tried = answers(llama, ["cook"], [f"prompt {n}" for n in range(6)])
    assert tried == Answers(tuple(told), ("cook",) * 6, tuple(plain))
    found = calibrate(Soup(), tried)
    truth, scores = [1] * 6 + [0] * 6, [t.count("soup") for t in told + plain]
    assert found.auroc == pytest.approx(roc_auc_score(truth, scores))
    assert found.low <= found.auroc <= found.high
    assert found.threshold == 0.5
    assert found.trusted
    assert found.answers == 6
    assert str(found).startswith("soup: AUROC 0.83")
