"""Side effects in one table, beside nulls: planted ones are found, absent ones are not."""

import numpy as np
import pandas as pd
import pytest
import torch

import planted
import rolelens as rl
from rolelens.evidence import beside, random_steering
from rolelens.evidence.refusals import refuses
from rolelens.tasks import SentencePair, bias_scores, calibration_of
from test_bias import SENTENCES, load, rows
from test_features import bridge


@pytest.fixture(scope="module")
def lens() -> rl.Lens:
    return rl.Lens(bridge(planted.model()))


def steering(at: int = planted.HOLDS_MARK[0], alpha: float = 1.0) -> rl.Steering:
    return rl.add(rl.Direction(torch.eye(planted.D)[at], layer=1, name="math"), alpha)


def test_a_planted_effect_is_beyond_nulls_and_stays_in_its_task(lens: rl.Lens) -> None:
    questions = rl.load_task([rl.Question(**row) for row in planted.questions(25)])
    asked = {"math": questions.domain("math"), "art": questions.domain("art")}
    found = rl.side_effects(lens, steering(), asked, nulls=7)
    table = found.table().set_index(["task", "measure"])
    gain = table.loc[("math", "accuracy")]
    assert gain["change"] > 0.3
    assert gain["low"] > 0
    assert gain["rank"] == 1 / 8
    assert abs(gain["null"]) < 0.15
    assert table.loc[("art", "accuracy"), "change"] == 0
    assert len(found.nulls) == 7 * len(table)
    plain, steered = (rl.evaluate(lens, asked["math"], hooks) for hooks in ((), steering()))
    for hooks, column in ((plain, "before"), (steered, "after")):
        assert gain[column] == pytest.approx(hooks.accuracy)
        sure = calibration_of(hooks)
        for name, value in (
            ("calibration error", sure.error),
            ("confident errors", sure.confident_errors),
            ("entropy", sure.entropy),
        ):
            assert table.loc[("math", name), column] == pytest.approx(value, abs=1e-5)


def test_several_steerings_are_each_measured_as_alone(
    lens: rl.Lens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "RESAMPLES", 20)
    asked = {"q": [rl.Question(**row) for row in planted.questions(6)]}
    several = {"math": steering(), "art": steering(planted.HOLDS_MARK[1])}
    shared = [random_steering(steering(), n) for n in range(2)]
    for nulls in (2, shared):
        found = rl.side_effects(lens, several, asked, nulls=nulls)
        assert list(found.table()["steering"].unique()) == ["math", "art"]
        for name, one in several.items():
            alone = rl.side_effects(lens, one, asked, nulls=nulls)
            for part, whole in ((alone.table(), found.table()), (alone.nulls, found.nulls)):
                own = whole[whole["steering"] == name].drop(columns="steering")
                pd.testing.assert_frame_equal(own.reset_index(drop=True), part, atol=1e-5)
    gains = found.table().query("measure == 'accuracy'").set_index("steering")["change"]
    assert gains["math"] > 0 == gains["art"]


def test_bias_pairs_text_and_requests(llama: rl.Lens, tmp_path: object) -> None:
    task = load(rows(12), tmp_path)
    d = rl.Direction(torch.randn(32, generator=torch.Generator().manual_seed(0)), layer=1)
    hooks = rl.add(d, 1.0)
    text = "Explain how a river finds the sea. Compare two ways to cook rice, please."
    found = rl.side_effects(
        llama,
        hooks,
        {"bias": task, "pairs": [SentencePair(*row) for row in SENTENCES]},
        text=text,
        requests=["Prove it.", "Who was here first?"],
        nulls=2,
        reply_tokens=4,
    )
    table = found.table().set_index(["task", "measure"])
    for column, given in (("before", ()), ("after", hooks)):
        bias = bias_scores(rl.evaluate(llama, task, given))
        for name in ("accuracy_ambiguous", "accuracy_disambiguated", "s_amb", "s_dis"):
            np.testing.assert_allclose(
                table.loc[("bias", name), column], getattr(bias, name), atol=1e-6
            )
        told = rl.perplexity(llama, text, given).value
        assert table.loc[("text", "perplexity"), column] == pytest.approx(told)
    assert ("pairs", "stereotyped") in table.index
    assert table.loc[("requests", "refused"), "before"] == 0
    assert "perplexity" in str(found.card()) or found.card().facts["measures"]


def test_the_unchanged_is_zero(llama: rl.Lens) -> None:
    """A null beside itself: the same change, and no rank above it."""
    d = rl.Direction(torch.randn(32, generator=torch.Generator().manual_seed(0)), layer=1)
    hooks = rl.add(d, 1.0)
    questions = [rl.Question("a", "Who sings?", ("a stone", "a bird"), 1)] * 1
    found = rl.side_effects(llama, hooks, {"q": questions}, nulls=[hooks], method="cloze")
    table = found.table().set_index("measure")
    assert table.loc["margin", "change"] == pytest.approx(table.loc["margin", "null"], abs=1e-5)


def test_nulls_are_as_strong() -> None:
    both = steering() + steering(planted.HOLDS_MARK[1], 2.0)
    null = random_steering(both, 3)
    for old, new in zip(both.steps, null.steps, strict=True):
        assert new.direction.norm == pytest.approx(old.direction.norm, rel=1e-5)
        assert (new.alpha, new.layers, new.tokens) == (old.alpha, old.layers, old.tokens)
        assert new.direction.null.imitates == "math"
        assert abs(new.direction.cosine(old.direction)) < 0.5
    assert random_steering(both, 3) == null
    assert random_steering(both, 4) != null


def test_refusals_are_told_by_how_they_begin() -> None:
    assert refuses("I’m sorry, but that is not for me.")
    assert refuses("As an AI, I have no songs.")
    assert not refuses("Here is a song. " + "La " * 60 + "I cannot stop.")


def test_what_measures_nothing_is_refused(llama: rl.Lens) -> None:
    hooks = rl.add(rl.Direction(torch.ones(32), layer=1))
    question = {"q": [rl.Question("a", "Who sings?", ("a stone", "a bird"), 1)]}
    for sentence, call in (
        ("nothing is asked", lambda: rl.side_effects(llama, hooks)),
        ("does nothing", lambda: rl.side_effects(llama, rl.Steering(), question)),
        ("at least 1", lambda: rl.side_effects(llama, hooks, question, nulls=0)),
        ("empty dict", lambda: rl.side_effects(llama, {}, question)),
        ("does nothing", lambda: rl.side_effects(llama, {"a": rl.Steering()}, question)),
        ("list of steerings", lambda: rl.side_effects(llama, hooks, question, nulls=[])),
    ):
        with pytest.raises(rl.InputError, match=sentence):
            call()
