"""Estimators on data whose direction is known."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import rolelens as rl
from rolelens.vectors.estimators import DifferenceInMeans, GroupedMean, Labelled
from rolelens.vectors.geometry import magnitudes

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "recovery.py"
_names = runpy.run_path(str(SCRIPT))
planted, recovery, drawing = (_names[name] for name in ("planted", "recovery", "drawing"))

ALL = {
    "plain": DifferenceInMeans(),
    "grouped": GroupedMean(normalised=False),
    "normalised": GroupedMean(),
}


def test_the_data_are_as_described() -> None:
    labelled, w = planted(questions=4000, anisotropy=1.0, d=8, offset=0.0)
    assert float(w.norm()) == pytest.approx(1.0)
    found = (labelled.positive.mean(dim=0) - labelled.negative.mean(dim=0)).numpy()
    np.testing.assert_allclose(found, 1.5 * w.numpy(), atol=0.08)
    noise = labelled.positive.numpy() - 0.75 * w.numpy()
    variances = np.sort(np.linalg.eigvalsh(np.cov(noise.T)))[::-1]
    expected = 1 / np.arange(1, 9)
    np.testing.assert_allclose(variances, 8 * expected / expected.sum(), rtol=0.08)
    assert len(labelled.groups) == 4000
    shares = np.bincount(labelled.positive_groups.numpy()) / 8
    assert set(shares) == {n / 8 for n in range(1, 8)}


def test_questions_lie_apart_and_are_uneven() -> None:
    apart, _ = planted(questions=3000, d=8, shift=0.0, offset=2.0)
    means = np.stack([apart.positive[apart.positive_groups == q].mean(dim=0) for q in range(900)])
    counts = np.bincount(apart.positive_groups.numpy())[:900]
    assert means.var() == pytest.approx(4 + (1 / counts).mean(), rel=0.1)
    spread, _ = planted(questions=4000, spread=0.7, d=8, rollouts=2, shift=0.0, offset=0.0)
    even, _ = planted(questions=4000, d=8, rollouts=2, shift=0.0, offset=0.0)
    sizes = [np.log(labelled.positive.norm(dim=-1).numpy()).var() for labelled in (spread, even)]
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
    labelled, _ = planted(questions=6, spread=1.0, d=5)
    table = magnitudes(labelled)
    deltas = [
        labelled.positive[labelled.positive_groups == k].mean(dim=0)
        - labelled.negative[labelled.negative_groups == k].mean(dim=0)
        for k in range(6)
    ]
    for k, row in table.iterrows():
        others = sum(d / d.norm() for n, d in enumerate(deltas) if n != k)
        assert row["magnitude"] == pytest.approx(float(deltas[k].norm()))
        cosine = float(deltas[k] @ others / deltas[k].norm() / others.norm())
        assert row["consistency"] == pytest.approx(cosine)
    with pytest.raises(rl.InputError, match="at least 2"):
        magnitudes(Labelled(torch.ones(1, 2), torch.zeros(1, 2)))


def test_the_figure_shows_what_the_table_has() -> None:
    table = recovery(ALL, {"spread": (0.0, 1.0), "questions": (10, 20)}, repeats=2)
    figure = drawing(table)
    assert [trace.name for trace in figure.data] == [*ALL] * 2
    assert list(figure.data[1].y) == table["cosine"][table["varied"] == "spread"].tolist()[1::3]


def test_the_script_draws_all_conditions(tmp_path, monkeypatch, capsys) -> None:
    out = tmp_path / "recovery.html"
    monkeypatch.setattr(sys, "argv", ["recovery.py", "--out", str(out), "--repeats", "1"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "is drawn" in capsys.readouterr().out
    assert "anisotropy of the noise" in out.read_text()
