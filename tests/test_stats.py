import itertools
import math

import numpy as np
import pytest
import scipy
import torch
from hypothesis import given, settings
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
    projected = stats.projections(role, base, name="x", layers=[4, 6, 8], seed=5)
    expected = naive_projections(role, base, 5)
    torch.testing.assert_close(projected.positive, expected[0])
    torch.testing.assert_close(projected.base, expected[1])
    result = stats.separation(projected)
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
    result = stats.separation_map(role, base, layers=[1, 4], positions=[-3, -2, -1])
    alone = stats.separation(stats.projections(role[:, :, 1], base[:, :, 1]))
    assert result.loc[-2].to_dict() == pytest.approx(dict(zip([1, 4], alone.auroc, strict=True)))


def test_projections_of_numbers_that_tell_nothing_are_refused(unchecked) -> None:
    x = torch.randn(9, 2, 4)
    for call, sentence in (
        (lambda: stats.projections(x, x, folds=1), "folds is 1; at least 2 are needed"),
        (lambda: stats.projections(x * torch.nan, x), "numbers of 'role' are not all finite"),
        (lambda: stats.projections(x, x * torch.inf), "numbers of base are not all finite"),
        (lambda: stats.projections(x, x[:, :1]), "not of the same layers and width"),
        (lambda: stats.projections(x, x[..., :3]), "not of the same layers and width"),
        (lambda: stats.projections(x, x, layers=[3]), "on 2 layers do not fit the layers .3."),
        (lambda: stats.projections(x, x, layers=[3, 3]), "3 more than once"),
        (
            lambda: stats.separation(stats.Projections("a", (0,), x[:1, :1, 0], x[:, :1, 0])),
            "'a' has 1 prompts, base has 9",
        ),
        (
            lambda: stats.separation_map(
                x[:, :, None], x[:, :, None], layers=[0, 1], positions=[-2, -1]
            ),
            "at 1 and 1 positions do not fit the positions",
        ),
    ):
        with pytest.raises(rl.InputError, match=sentence):
            call()


def test_separations_show_their_best_layer_and_give_a_table() -> None:
    result = stats.Separation("lawyer", (0, 4), (0.5, 0.75), (0.5, 0.6), (0.5, 0.9))
    assert "name lawyer, layers 0 to 4, best layer 4 (AUROC 0.750, 0.600 to 0.900)" in repr(result)
    assert result.table().to_dict("list") == {
        "name": ["lawyer"] * 2,
        "layer": [0, 4],
        "auroc": [0.5, 0.75],
        "low": [0.5, 0.6],
        "high": [0.5, 0.9],
    }
    shown = repr(stats.projections(torch.randn(9, 2, 4), torch.randn(8, 2, 4), name="lawyer"))
    assert "prompts 9 and 8 base, layers 0 to 1" in shown
    assert "tensor" not in shown


def test_too_few_prompts_are_refused() -> None:
    with pytest.raises(
        rl.InputError, match="4 prompts of .role. and 9 base prompts are too few for 5 folds"
    ):
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
    result = 0
    for _ in range(300):
        moved = rng.choice([1, -1, 0], size=n, p=[gain, loss, 1 - discordant])
        result += stats.mcnemar((moved < 0).tolist(), (moved > 0).tolist()) < 0.05
    assert 0.7 < result / 300 < 0.9


@pytest.mark.parametrize(("n", "discordant", "family"), [(7, 0.4, 1), (14, 0.1, 1), (14, 0.5, 4)])
def test_the_detectable_difference_is_the_smallest(n: int, discordant: float, family: int) -> None:
    """Its power summed over every outcome: so many for the better, so many for the worse."""

    def power(effect: float) -> float:
        share = max(discordant, effect)
        p = [(share + effect) / 2, (share - effect) / 2, 1 - share]
        return sum(
            scipy.stats.multinomial.pmf([gained, lost, n - gained - lost], n, p)
            for gained in range(n + 1)
            for lost in range(n + 1 - gained)
            if gained > lost
            and scipy.stats.binomtest(gained, gained + lost).pvalue <= 0.05 / family
        )

    result = stats.detectable(n, discordant, family=family)
    assert result is not None
    assert power(result) >= 0.8
    assert result == pytest.approx(1 / n) or power(result - 1 / n) < 0.8


def test_few_questions_show_nothing() -> None:
    assert stats.detectable(5) is None
    assert stats.detectable(6) == 1.0
    assert stats.detectable(10, family=29) is None


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8))
def test_sign_flip_equals_every_flip(values) -> None:
    sums = [
        sum(s * v for s, v in zip(signs, values, strict=True))
        for signs in itertools.product((-1, 1), repeat=len(values))
    ]
    extreme = [abs(s) >= abs(sum(values)) for s in sums]
    result = stats.sign_flip(list(map(float, values)))
    assert result == pytest.approx(sum(extreme) / len(extreme))


def test_sign_flip_of_answers_is_mcnemar() -> None:
    rng = np.random.default_rng(3)
    before, after = rng.random(14) < 0.4, rng.random(14) < 0.7
    differences = after.astype(float) - before.astype(float)
    assert stats.sign_flip(differences) == pytest.approx(
        stats.mcnemar(before.tolist(), after.tolist())
    )


def test_sign_flip_is_seeded_and_holds_its_level() -> None:
    rng = np.random.default_rng(0)
    many = rng.normal(size=300)
    assert stats.sign_flip(many, seed=1) == stats.sign_flip(many, seed=1)
    rejected = sum(stats.sign_flip(rng.normal(size=40), resamples=400) < 0.05 for _ in range(200))
    assert 0.02 < rejected / 200 < 0.09


def test_the_interaction_is_the_difference_of_means_and_covers_it() -> None:
    rng = np.random.default_rng(0)
    covered, small = 0, 0
    for seed in range(150):
        inside, outside = rng.normal(0.5, 1, 50), rng.normal(0.1, 2, 120)
        result = stats.interaction(inside, outside, resamples=400, seed=seed)
        assert result.value == pytest.approx(inside.mean() - outside.mean())
        covered += result.low <= 0.4 <= result.high
        equal = stats.interaction(rng.normal(0, 1, 50), rng.normal(0, 1, 120), resamples=400)
        small += equal.p < 0.05
    assert 0.87 < covered / 150 < 0.99
    assert small / 150 < 0.11


def test_unequal_variances_are_no_interaction() -> None:
    """A permutation of the plain difference would claim one in five of these."""
    rng = np.random.default_rng(0)
    claimed = 0
    for seed in range(300):
        inside, outside = rng.normal(0, 2, 20), rng.normal(0, 1, 140)
        claimed += stats.interaction(inside, outside, resamples=300, seed=seed).p < 0.05
    assert claimed / 300 < 0.09
    with pytest.raises(rl.InputError, match="two questions on each side; there are 1 inside and 3"):
        stats.interaction([1.0], [0.0, 1.0, 0.0])
    assert stats.interaction([1.0] * 4, [0.0] * 9, resamples=2000).p < 0.05


def test_what_never_changes_is_no_effect() -> None:
    assert stats.sign_flip([0.0] * 9) == 1.0
    assert stats.paired_bootstrap([0.25] * 5) == (0.25, 0.25)
    assert stats.interaction([0.0] * 4, [0.0] * 9) == stats.Estimate(0.0, 0.0, 0.0, 1.0)


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_corrections_equal_their_definitions(p) -> None:
    n, order = len(p), sorted(range(len(p)), key=p.__getitem__)
    holm, running = [0.0] * n, 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (n - rank) * p[index]))
        holm[index] = running
    bh, running = [0.0] * n, 1.0
    for rank in reversed(range(n)):
        running = min(running, n / (rank + 1) * p[order[rank]])
        bh[order[rank]] = running
    assert stats.adjusted(p) == pytest.approx(holm)
    assert stats.adjusted(p, "benjamini-hochberg") == pytest.approx(bh)


def test_a_rank_among_nulls_has_a_floor() -> None:
    assert stats.null_rank(5.0, [1.0, 2.0, 3.0]) == 1 / 4
    assert stats.null_rank(2.0, [1.0, 2.0, 3.0]) == 3 / 4
    assert stats.null_rank(0.0, []) == 1.0


def test_values_are_reached_on_their_side_of_zero() -> None:
    assert stats.reached(2.0, -9.0, 2.0)
    assert not stats.reached(2.0, -9.0, 1.9)
    assert stats.reached(-2.0, -2.0, 9.0)
    assert not stats.reached(-2.0, -1.9, 9.0)
    assert not stats.reached(2.0, float("nan"), float("nan"))


def test_one_question_has_no_interval() -> None:
    assert all(map(math.isnan, stats.paired_bootstrap([0.5])))
    assert all(map(math.isnan, stats.bootstrap([[0.5, 0.25], [1.0]], [1.0, -1.0])))


def test_counts_that_mean_nothing_are_refused(unchecked) -> None:
    for call, sentence in (
        (lambda: stats.wilson(0, 0), "0 of 0 is no share"),
        (lambda: stats.wilson(3, 2), "3 of 2 is no share"),
        (lambda: stats.mcnemar([], []), "0 answers before and 0 after are no pairs"),
        (lambda: stats.mcnemar([True], [True, False]), "1 answers before and 2 after"),
        (lambda: stats.null_rank(math.nan, [0.1]), "rank of nan among 1 nulls is not known"),
        (lambda: stats.null_rank(0.5, [math.nan]), "rank of 0.5 among 1 nulls is not known"),
        (lambda: stats.detectable(0), "n is 0, discordant 0.2 and family 1"),
        (lambda: stats.detectable(9, family=0), "family 0"),
        (lambda: stats.detectable(9, 1.5), "discordant 1.5"),
    ):
        with pytest.raises(rl.InputError, match=sentence):
            call()


def test_bad_values_are_refused_in_a_sentence() -> None:
    with pytest.raises(rl.InputError, match="at least one question"):
        stats.sign_flip([])
    with pytest.raises(rl.InputError, match="not all finite"):
        stats.interaction([1.0, float("nan")], [0.0])
    with pytest.raises(rl.InputError, match="between 0 and 1"):
        stats.adjusted([0.2, 1.2])
