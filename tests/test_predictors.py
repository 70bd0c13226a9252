from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import oracles
import rolelens as rl
import tiny
from conftest import Variant
from rolelens.predictors import SINGLES, singles_of

POSITIVE = [f"Sing of {n} birds, please." for n in range(6)]
NEGATIVE = [f"How many are {n} paper boats?" for n in range(6)]


def test_predictors_are_those_of_a_loop(lens: rl.Lens, variant: Variant) -> None:
    table = rl.steerability(lens, POSITIVE, NEGATIVE, layers=[3], positions=[-1])
    model, tokenizer = tiny.reference(variant.architecture), tiny.tokenizer()
    p, n = (
        np.stack([oracles.hidden(model, oracles.chat_ids(tokenizer, x))[3, -1] for x in side])
        for side in (POSITIVE, NEGATIVE)
    )
    cosines = []
    for k in range(6):
        one = p[k] - n[k]
        rest = np.delete(p, k, 0).mean(0) - np.delete(n, k, 0).mean(0)
        cosines.append(one @ rest / np.linalg.norm(one) / np.linalg.norm(rest))
    row = table.iloc[0]
    assert row["agreement"] == pytest.approx(np.mean(cosines), abs=1e-3)
    d = p.mean(0) - n.mean(0)
    spread = np.sqrt(((p @ d).var(ddof=1) + (n @ d).var(ddof=1)) / 2)
    assert row["discriminability"] == pytest.approx(
        float((p @ d - n @ d).mean() / spread), rel=1e-2
    )
    share = np.linalg.norm(d) / np.linalg.norm(n, axis=1).mean()
    assert row["norm"] == pytest.approx(float(share), rel=1e-3)


def test_a_zero_direction_predicts_nothing(llama: rl.Lens) -> None:
    table = rl.steerability(llama, POSITIVE, NEGATIVE, layers=[0, 2])
    assert table[table["layer"] == 0][["agreement", "auroc"]].isna().all(axis=None)
    assert table[table["layer"] == 2][["agreement", "auroc"]].notna().all(axis=None)
    with pytest.raises(rl.InputError, match="at least five is needed"):
        rl.steerability(llama, POSITIVE[:4], NEGATIVE)


def test_a_correlation_has_an_interval_and_a_p() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    y = x + 0.5 * rng.normal(size=40)
    found = rl.stats.correlation(x, y, resamples=2000)
    assert found.value == pytest.approx(spearmanr(x, y).statistic)
    assert found.low < found.value < found.high
    assert found.p < 0.01
    pure = [rl.stats.correlation(x, rng.normal(size=40), resamples=500).p for _ in range(30)]
    assert 0.25 < np.mean(pure) < 0.75
    few, more = [1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]
    for bad in (few, more):
        with pytest.raises(rl.InputError, match="pass at least four pairs"):
            rl.stats.correlation(bad, few)
    with pytest.raises(rl.InputError, match="the same everywhere"):
        rl.stats.correlation([1.0] * 4, more)


def test_directions_come_with_what_predicts_them(
    lens: rl.Lens, variant: Variant, tmp_path: Path
) -> None:
    base = [f"Name {n} rivers." for n in range(7)]
    vectors = rl.role_vectors(lens, {"a": POSITIVE, "few": NEGATIVE[:4]}, base)
    table = vectors.steerability()
    assert set(table["name"]) == {"a"}  # four prompts are too few
    model, tokenizer = tiny.reference(variant.architecture), tiny.tokenizer()
    p, n = (
        np.stack([oracles.hidden(model, oracles.chat_ids(tokenizer, x))[3, -1] for x in side])
        for side in (POSITIVE, base)
    )
    each = p - n.mean(0)
    rests = [np.delete(each, k, 0).mean(0) for k in range(6)]
    cosines = [
        one @ rest / np.linalg.norm(one) / np.linalg.norm(rest)
        for one, rest in zip(each, rests, strict=True)
    ]
    row = table[table["layer"] == 3].iloc[0]
    assert row["agreement"] == pytest.approx(np.mean(cosines), abs=1e-3)
    along = [x @ (p.mean(0) - n.mean(0)) for x in (p, n)]
    spread = np.sqrt(sum(((x - x.mean()) ** 2).sum() for x in along) / (6 + 7 - 2))
    apart = float((along[0].mean() - along[1].mean()) / spread)
    assert row["discriminability"] == pytest.approx(apart, rel=1e-2)
    assert "single differences agree" in repr(vectors)
    assert "held-out AUROC" in vectors._repr_html_()
    loaded = rl.Directions.load(vectors.save(tmp_path / "v.safetensors"))
    for same in (loaded, vectors["a"], rl.concat(vectors["few"], vectors["a"])):
        pd.testing.assert_frame_equal(same.steerability(), table)
    assert (vectors - vectors.mean()).steerability().empty  # these were not measured
    assert "agree" not in repr(vectors.normalise())


def test_predictors_are_of_some_prompts_wherever_they_stand(llama: rl.Lens) -> None:
    many = [f"Sing of {n} birds{', please' * (n % 7)}." for n in range(SINGLES + 8)]
    base = [f"Name {n} rivers." for n in range(8)]
    whole = rl.role_vectors(llama, {"a": many}, base, layers=[2], positions=[-2, -1])
    first = rl.role_vectors(llama, {"a": many[:SINGLES]}, base, layers=[2], positions=[-1])
    pd.testing.assert_frame_equal(whole.steerability(), first.steerability(), rtol=1e-4)


def test_fewer_prompts_are_kept_of_large_models() -> None:
    assert singles_of(30, 24, 576) == 32
    assert singles_of(30, 80, 8192) == 13  # times 75 MiB are within a GiB
    assert singles_of(1000, 80, 8192) == 5
