import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import rolelens as rl
from rolelens.stats import probes
from rolelens.stats.linearity import _area


def drawn(kind: str, n: int = 60, d: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets that differ by a shift, by their distance from the middle, or in nothing."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * n, 1, d, generator=generator)
    if kind == "shift":
        x[:n] += 0.8
    if kind == "ring":
        x[:n] *= 3.5
    return x[:n], x[n:]


def table(kind: str, **options: int):
    return probes(*drawn(kind), resamples=200, **options).set_index("probe")


def test_where_a_shift_is_all_nothing_is_lost() -> None:
    found = table("shift")
    assert found.loc["means", "auroc"] > 0.85
    assert (found.loc[["perceptron", "kernel"], "gain"] < 0.03).all()


def test_where_the_difference_is_curved_nonlinear_probes_see_it() -> None:
    found = table("ring")
    assert found.loc["means", "auroc"] < 0.65
    assert found.loc["kernel", "auroc"] > 0.85
    assert found.loc["kernel", "low"] > 0


def test_where_there_is_nothing_all_are_at_chance() -> None:
    found = table("none", shuffles=3)
    assert ((found["auroc"] - 0.5).abs() < 0.2).all()
    assert (found["null"] > 0.35).all()
    assert set(found.index) == {"means", "logistic", "perceptron", "kernel"}


def test_the_area_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        score, y = rng.integers(0, 5, 30).astype(float), rng.permutation([0, 1] * 15)
        assert _area(score, y) == pytest.approx(roc_auc_score(y, score))


def test_bad_input() -> None:
    positive, base = drawn("none", n=6)
    for sentence, options in (("folds", {"folds": 1}), ("folds", {"folds": 9})):
        with pytest.raises(rl.InputError, match=sentence):
            probes(positive, base, **options)
    with pytest.raises(rl.InputError, match="finite"):
        probes(positive * torch.nan, base)
    with pytest.raises(rl.InputError, match="layers"):
        probes(positive, base, layers=[1, 2])
