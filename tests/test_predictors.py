import numpy as np
import pytest

import oracles
import rolelens as rl
import tiny
from conftest import Variant

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
