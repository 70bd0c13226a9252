"""Folds over the prompts choose the planted layer, and their vectors are what they say."""

import pytest
import torch

import planted
import rolelens as rl
from rolelens.evidence import study_folds
from rolelens.extraction import fold_vectors
from test_features import bridge

PROMPTS = {name: planted.prompts(name, 20) for name in ("math", "art")}
BASE = planted.prompts(None, 20)


@pytest.fixture(scope="module")
def lens() -> rl.Lens:
    return rl.Lens(bridge(planted.model()))


def test_folds_of_prompts_leave_each_prompt_out_once(lens: rl.Lens) -> None:
    folds = fold_vectors(lens, PROMPTS, BASE, k=4)
    whole = rl.role_vectors(lens, PROMPTS, BASE)
    assert len(folds) == 4
    # Every prompt is left out once, so that the mean over equal folds is the whole.
    mean = torch.stack([fold.directions for fold in folds]).mean(dim=0)
    torch.testing.assert_close(mean, whole.directions, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(folds[0].directions, folds[1].directions)
    # One fold is a difference of means of three quarters of the prompts.
    x = rl.activations(lens, PROMPTS["math"], layers=[1], positions=[-1])[:, 0, 0].double()
    y = rl.activations(lens, BASE, layers=[1], positions=[-1])[:, 0, 0].double()
    from rolelens.vectors.controls import Folds

    sums = Folds({"math": 20, "base": 20}, 4, 0).sums
    expected = sums["math"]._weights[0] @ x - sums["base"]._weights[0] @ y
    kept = (sums["math"]._weights > 0).sum(dim=1)
    assert kept.tolist() == [15] * 4
    torch.testing.assert_close(
        folds[0]["math"].at(1, -1).vector.double(), expected, rtol=1e-4, atol=1e-5
    )


def test_folds_choose_the_planted_layer(lens: rl.Lens) -> None:
    task = rl.load_task([rl.Question(**row) for row in planted.questions(40)]).domain("math")
    folds = fold_vectors(lens, {"math": PROMPTS["math"]}, BASE, k=3)
    found = study_folds(
        lens, folds, task, layers=[1, 2, 3], positions=[-1], alphas=[1.0, 3.0], ablated=0,
        prompted=False, choose="sweep",
    )  # fmt: skip
    row = found.agreement().iloc[0]
    assert row["folds"] == 3
    # The direction acts where the third MLP still reads it.
    assert row["layer"] in (1, 2)
    assert (found.table()["layer"] < 3).all()
    assert row["lowest"] > 0.2
    assert (found.table()["low"] > 0).all()
    assert len(found.studies) == 3


def test_bad_folds_are_refused(lens: rl.Lens) -> None:
    with pytest.raises(rl.InputError, match="from 2 to as many"):
        fold_vectors(lens, PROMPTS, BASE, k=21)
    folds = fold_vectors(lens, PROMPTS, BASE, k=2)
    task = [rl.Question(**row) for row in planted.questions(2)]
    with pytest.raises(rl.InputError, match="at least 2 folds"):
        study_folds(lens, folds[:1], task)
    with pytest.raises(rl.InputError, match="other names"):
        study_folds(lens, [folds[0], folds[1]["math"]], task)
