"""Estimators on data whose direction is known."""

import numpy as np
import pytest
import torch

import rolelens as rl
from rolelens.vectors.estimators import DifferenceInMeans, GroupedMean, Labelled
from rolelens.vectors.geometry import magnitudes
from rolelens.vectors.recovery import planted, recovery

ALL = {
    "plain": DifferenceInMeans(),
    "grouped": GroupedMean(normalised=False),
    "normalised": GroupedMean(),
}


def test_the_data_are_as_described() -> None:
    own, w = planted(questions=4000, anisotropy=1.0, d=8, offset=0.0)
    assert float(w.norm()) == pytest.approx(1.0)
    found = (own.positive.mean(dim=0) - own.negative.mean(dim=0)).numpy()
    np.testing.assert_allclose(found, 1.5 * w.numpy(), atol=0.08)
    noise = own.positive.numpy() - 0.75 * w.numpy()
    variances = np.sort(np.linalg.eigvalsh(np.cov(noise.T)))[::-1]
    expected = 1 / np.arange(1, 9)
    np.testing.assert_allclose(variances, 8 * expected / expected.sum(), rtol=0.08)
    assert len(own.groups) == 4000
    shares = np.bincount(own.positive_groups.numpy()) / 8
    assert set(shares) == {n / 8 for n in range(1, 8)}


def test_questions_lie_apart_and_are_uneven() -> None:
    apart, _ = planted(questions=3000, d=8, shift=0.0, offset=2.0)
    means = np.stack([apart.positive[apart.positive_groups == q].mean(dim=0) for q in range(900)])
    counts = np.bincount(apart.positive_groups.numpy())[:900]
    assert means.var() == pytest.approx(4 + (1 / counts).mean(), rel=0.1)
    spread, _ = planted(questions=4000, spread=0.7, d=8, rollouts=2, shift=0.0, offset=0.0)
    even, _ = planted(questions=4000, d=8, rollouts=2, shift=0.0, offset=0.0)
    sizes = [np.log(own.positive.norm(dim=-1).numpy()).var() for own in (spread, even)]
    assert sizes[0] - sizes[1] == pytest.approx(0.49, abs=0.05)


def test_grouping_wins_where_magnitudes_vary_and_loses_nothing_where_they_do_not() -> None:
    table = recovery(ALL, {"spread": (0.0, 2.0), "questions": (20, 80)}, repeats=8)
    wide = table.pivot_table(index=["varied", "value"], columns="estimator", values="cosine")
    ahead = wide["normalised"] - wide["grouped"]
    assert ahead["spread", 2.0] > 0.15
    for even in (("spread", 0.0), ("questions", 20), ("questions", 80)):
        assert abs(ahead[even]) < 0.03
    # Questions lie apart, which a mean over all answers takes in and a difference within does not.
    assert (wide["normalised"] > wide["plain"]).all()
    assert wide.loc["questions", 80]["plain"] > wide.loc["questions", 20]["plain"] + 0.05


def test_the_data_of_a_seed_are_the_same_for_all_estimators() -> None:
    twice = recovery({"a": GroupedMean(), "b": GroupedMean()}, {"questions": (10,)}, repeats=3)
    assert twice["cosine"].nunique() == 1
    other = recovery({"a": GroupedMean()}, {"questions": (10,)}, repeats=3, seed=50)
    assert other["cosine"][0] != twice["cosine"][0]
    with pytest.raises(rl.InputError, match="'height' cannot be varied"):
        recovery(ALL, {"height": (1,)})


def test_magnitude_and_consistency_against_a_loop() -> None:
    own, _ = planted(questions=6, spread=1.0, d=5)
    table = magnitudes(own)
    deltas = [
        own.positive[own.positive_groups == k].mean(dim=0)
        - own.negative[own.negative_groups == k].mean(dim=0)
        for k in range(6)
    ]
    for k, row in table.iterrows():
        others = sum(d / d.norm() for n, d in enumerate(deltas) if n != k)
        assert row["magnitude"] == pytest.approx(float(deltas[k].norm()))
        cosine = float(deltas[k] @ others / deltas[k].norm() / others.norm())
        assert row["consistency"] == pytest.approx(cosine)
    with pytest.raises(rl.InputError, match="at least 2"):
        magnitudes(Labelled(torch.ones(1, 2), torch.zeros(1, 2)))


def test_the_figures_show_what_the_tables_have() -> None:
    table = recovery(ALL, {"spread": (0.0, 1.0), "questions": (10, 20)}, repeats=2)
    figure = rl.plots.recovery(table)
    assert [trace.name for trace in figure.data] == [*ALL] * 2
    assert list(figure.data[1].y) == table["cosine"][table["varied"] == "spread"].tolist()[1::3]
    own = magnitudes(planted(questions=6)[0])
    assert list(rl.plots.magnitudes(own).data[0].x) == own["magnitude"].tolist()
