import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

import rolelens as rl
from rolelens import stats


def naive_projections(role: torch.Tensor, base: torch.Tensor, seed: int) -> list[torch.Tensor]:
    """Cross-fitted projections, one prompt at a time."""
    rng = np.random.default_rng(seed)
    parts = [torch.tensor(rng.permutation(len(x)) % 5) for x in (role, base)]
    out = []
    for group, part in zip((role, base), parts, strict=True):
        scores = torch.zeros(group.shape[:2], dtype=torch.float64)
        for i, layer in itertools.product(range(len(group)), range(group.shape[1])):
            mu = role[parts[0] != part[i], layer].double().mean(dim=0)
            nu = base[parts[1] != part[i], layer].double().mean(dim=0)
            unit = (mu - nu) / (mu - nu).norm()
            scores[i, layer] = (group[i, layer].double() - (mu + nu) / 2) @ unit
        out.append(scores)
    return out


def test_projections_and_separation_equal_a_naive_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    role = torch.randn(23, 3, 8, generator=generator) + torch.linspace(0, 1, 3)[None, :, None]
    base = torch.randn(31, 3, 8, generator=generator)
    found = stats.projections(role, base, role="x", layers=[4, 6, 8], seed=5)
    expected = naive_projections(role, base, 5)
    torch.testing.assert_close(found.of_role, expected[0])
    torch.testing.assert_close(found.of_base, expected[1])
    result = stats.separation(found)
    truth = [1] * 23 + [0] * 31
    auroc = [roc_auc_score(truth, torch.cat(expected)[:, layer]) for layer in range(3)]
    assert list(result.auroc) == pytest.approx(auroc)
    assert result.layers == (4, 6, 8)
    assert result.best_layer == 8
    bands = zip(result.low, result.auroc, result.high, strict=True)
    assert all(low < a < high for low, a, high in bands)


def test_separation_of_noise_is_chance_and_of_equals_is_one_half() -> None:
    generator = torch.Generator().manual_seed(1)
    noise = [torch.randn(200, 1, 4, generator=generator) for _ in range(2)]
    assert 0.4 < stats.separation(stats.projections(*noise)).auroc[0] < 0.6
    same = stats.separation(stats.projections(torch.ones(10, 1, 4), torch.ones(10, 1, 4)))
    assert (*same.auroc, *same.low, *same.high) == pytest.approx((0.5, 0.5, 0.5))


def test_the_map_has_a_row_a_position() -> None:
    generator = torch.Generator().manual_seed(0)
    role = torch.randn(12, 2, 3, 8, generator=generator) + 0.5
    base = torch.randn(15, 2, 3, 8, generator=generator)
    found = stats.separation_map(role, base, layers=[1, 4], positions=[-3, -2, -1])
    alone = stats.separation(stats.projections(role[:, :, 1], base[:, :, 1]))
    assert found.loc[-2].to_dict() == pytest.approx(dict(zip([1, 4], alone.auroc, strict=True)))


def test_too_few_prompts_are_refused() -> None:
    with pytest.raises(rl.InputError, match="4 role and 9 base prompts are too few for 5 folds"):
        stats.projections(torch.ones(4, 1, 2), torch.ones(9, 1, 2))


def test_wilson_equals_its_closed_form() -> None:
    z, n, k = 1.959964, 40, 11
    centre = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    assert stats.wilson(k, n) == pytest.approx((centre - half, centre + half), abs=1e-6)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_mcnemar_equals_every_sign_flip(pairs) -> None:
    differences = [int(after) - int(before) for before, after in pairs]
    moved = [d for d in differences if d]
    flips = [sum(s) for s in itertools.product((-1, 1), repeat=len(moved))]
    extreme = sum(abs(f) >= abs(sum(moved)) for f in flips) / len(flips)
    before, after = zip(*pairs, strict=True)
    assert stats.mcnemar(before, after) == pytest.approx(extreme)


def test_paired_bootstrap_covers_the_mean() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        low, high = stats.paired_bootstrap(
            rng.normal(0.3, 1, 60).tolist(), resamples=400, seed=seed
        )
        hits += low <= 0.3 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_the_detectable_difference_is_detected() -> None:
    n, discordant = 400, 0.3
    effect = stats.detectable(n, discordant)
    rng = np.random.default_rng(0)
    gain, loss = (discordant + effect) / 2, (discordant - effect) / 2
    found = 0
    for _ in range(300):
        moved = rng.choice([1, -1, 0], size=n, p=[gain, loss, 1 - discordant])
        found += stats.mcnemar((moved < 0).tolist(), (moved > 0).tolist()) < 0.05
    assert 0.7 < found / 300 < 0.9
