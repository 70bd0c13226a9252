"""Estimators against closed forms and plain NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

import rolelens as rl
from rolelens.vectors.estimators import (
    LDA,
    Contrastive,
    DifferenceInMeans,
    Estimator,
    GroupedMean,
    Labelled,
    Logistic,
    MassMean,
    PairedPCA,
    WithoutShared,
)

D = 6


def drawn(seed: int = 0, n: int = 40, m: int = 40) -> Labelled:
    """Two classes of a covariance that is no identity."""
    make = torch.Generator().manual_seed(seed)
    mix = torch.randn(D, D, generator=make)
    shift = torch.randn(D, generator=make)
    positive = torch.randn(n, D, generator=make) @ mix + shift
    return Labelled(positive, torch.randn(m, D, generator=make) @ mix)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.cosine_similarity(a.double(), b.double(), dim=0))


def test_difference_in_means_is_plain() -> None:
    labelled = drawn(m=25)
    expected = labelled.positive.numpy().mean(axis=0) - labelled.negative.numpy().mean(axis=0)
    np.testing.assert_allclose(DifferenceInMeans().fit(labelled), expected, atol=1e-6)


def grouped(scale: float = 1.0) -> Labelled:
    """Three questions with several rollouts each, and one that only has wrong ones."""
    make = torch.Generator().manual_seed(3)
    right, wrong = torch.randn(6, D, generator=make), torch.randn(7, D, generator=make)
    of_right, of_wrong = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([2, 1, 1, 0, 2, 2, 9])
    right, wrong = right.clone(), wrong.clone()
    right[of_right == 1] *= scale
    wrong[of_wrong == 1] *= scale
    return Labelled(right, wrong, of_right, of_wrong)


def test_the_grouped_mean_is_that_of_unit_differences() -> None:
    labelled, total = grouped(), np.zeros(D)
    for question in (0, 1, 2):
        r = (
            labelled.positive[labelled.positive_groups == question]
            .numpy()
            .astype(float)
            .mean(axis=0)
        )
        w = (
            labelled.negative[labelled.negative_groups == question]
            .numpy()
            .astype(float)
            .mean(axis=0)
        )
        total += (r - w) / np.linalg.norm(r - w)
    np.testing.assert_allclose(GroupedMean().fit(labelled), total / 3, atol=1e-12)


def test_one_question_a_thousand_times_as_large_changes_the_plain_mean_only() -> None:
    one, other = grouped(), grouped(1000.0)
    torch.testing.assert_close(GroupedMean().fit(other), GroupedMean().fit(one))
    plain = GroupedMean(normalised=False)
    assert cosine(plain.fit(other), plain.fit(one)) < 0.9
    assert cosine(DifferenceInMeans().fit(other), DifferenceInMeans().fit(one)) < 0.9


def test_paired_pca_is_the_top_eigenvector_with_the_sign_of_the_mean() -> None:
    labelled = drawn()
    delta = labelled.positive.double().numpy() - labelled.negative.double().numpy()
    _, vectors = np.linalg.eigh(delta.T @ delta)  # not centred
    expected = vectors[:, -1] * np.sign(vectors[:, -1] @ delta.mean(axis=0))
    direction = PairedPCA().fit(labelled)
    np.testing.assert_allclose(direction / direction.norm(), expected, atol=1e-10)


def test_logistic_weights_are_where_the_penalised_gradient_vanishes() -> None:
    labelled = drawn()
    x = torch.cat([labelled.positive, labelled.negative]).double().numpy()
    mean, spread = x.mean(axis=0), x.std(axis=0)
    z, y = (x - mean) / spread, np.repeat([1.0, 0.0], 40)
    w = np.zeros(D + 1)  # Newton's method, the intercept not penalised
    design = np.c_[z, np.ones(len(z))]
    penalty = np.diag([1.0] * D + [0.0]) / 0.5
    for _ in range(50):
        p = 1 / (1 + np.exp(-design @ w))
        hessian = design.T @ (design * (p * (1 - p))[:, None]) + penalty
        w -= np.linalg.solve(hessian, design.T @ (p - y) + penalty @ w)
    expected = torch.from_numpy(w[:D] / spread)
    assert cosine(Logistic(c=0.5).fit(labelled), expected) == pytest.approx(1.0, abs=1e-8)


def test_mass_mean_is_the_whitened_difference() -> None:
    labelled = drawn(n=30, m=50)
    parts = [p.double().numpy() for p in (labelled.positive, labelled.negative)]
    within = np.concatenate([p - p.mean(axis=0) for p in parts])
    expected = np.linalg.solve(within.T @ within, parts[0].mean(axis=0) - parts[1].mean(axis=0))
    assert cosine(MassMean().fit(labelled), torch.from_numpy(expected)) == pytest.approx(
        1.0, abs=1e-9
    )


def test_lda_stands_between_the_difference_and_mass_mean() -> None:
    many, few = drawn(n=4000, m=4000), drawn(n=3, m=3)
    assert cosine(LDA().fit(many), MassMean().fit(many)) > 0.999
    assert cosine(LDA().fit(few), few.difference) > cosine(MassMean().fit(few), few.difference)


def test_the_contrastive_direction_is_that_of_a_naive_loop() -> None:
    labelled = drawn(n=4, m=5)
    x = torch.cat([labelled.positive, labelled.negative]).double().numpy()
    spread = x.std(axis=0)
    z = torch.from_numpy((x - x.mean(axis=0)) / spread)
    start = torch.randn(3, D, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    weights = (start / D**0.5).requires_grad_()
    adam = torch.optim.Adam([weights], lr=1e-2)
    for _ in range(4):
        loss = torch.zeros((), dtype=torch.float64)
        for i in range(9):
            one = weights @ z[i]
            own, every = [], []
            for j in range(9):
                if j != i:
                    other = weights @ z[j]
                    near = torch.exp(torch.cosine_similarity(one, other, dim=0) / 0.5)
                    every.append(near)
                    own += [near] if (i < 4) == (j < 4) else []
            loss = loss - torch.log(sum(own) / sum(every)) / 9
        adam.zero_grad()
        loss.backward()
        adam.step()
    w = weights.detach()
    expected = (w.T @ (w @ (z[:4].mean(dim=0) - z[4:].mean(dim=0)))) / torch.from_numpy(spread)
    found = Contrastive(rank=3, temperature=0.5, steps=4, seed=7).fit(labelled)
    assert cosine(found, expected) == pytest.approx(1.0, abs=1e-9)
    assert float(found.norm()) == pytest.approx(float(labelled.difference.norm()))


def test_what_is_shared_is_gone() -> None:
    labelled = drawn()
    shared = torch.randn(2, D, generator=torch.Generator().manual_seed(1))
    direction = WithoutShared(DifferenceInMeans(), torch.cat([shared, shared[:1]])).fit(labelled)
    basis, _ = np.linalg.qr(shared.double().numpy().T)
    d = labelled.difference.numpy()
    np.testing.assert_allclose(direction, d - basis @ (basis.T @ d), atol=1e-6)


ALL = [
    DifferenceInMeans(),
    GroupedMean(),
    PairedPCA(),
    Logistic(),
    MassMean(),
    LDA(),
    Contrastive(steps=10),
]


@pytest.mark.parametrize("estimator", ALL, ids=lambda e: type(e).__name__)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_directions_turn_with_the_space_and_point_to_the_positive(
    estimator: Estimator, seed: int
) -> None:
    labelled = drawn(seed)
    direction = estimator.fit(labelled)
    assert float(direction @ labelled.differences.mean(dim=0)) >= 0
    swapped = estimator.fit(Labelled(labelled.negative, labelled.positive))
    torch.testing.assert_close(swapped, -direction, atol=1e-4, rtol=1e-3)
    if isinstance(estimator, Logistic | Contrastive):  # standardising knows the axes
        return
    turn = torch.linalg.qr(
        torch.randn(D, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ).Q
    turned = Labelled(labelled.positive.double() @ turn, labelled.negative.double() @ turn)
    torch.testing.assert_close(estimator.fit(turned), direction @ turn, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("estimator", ALL, ids=lambda e: type(e).__name__)
def test_planted_directions_are_found(estimator: Estimator) -> None:
    make = torch.Generator().manual_seed(5)
    truth = torch.randn(32, generator=make)
    truth /= truth.norm()
    noise = [torch.randn(400, 32, generator=make) for _ in range(2)]
    direction = estimator.fit(Labelled(noise[0] + 3 * truth, noise[1]))
    assert cosine(direction, truth) > 0.9


def test_bad_labels_are_refused(unchecked) -> None:
    x = torch.ones(3, D)
    with pytest.raises(rl.InputError, match="there are no positive activations"):
        Labelled(x[:0], x)
    with pytest.raises(rl.InputError, match="negative activations are not all finite"):
        Labelled(x, x * torch.nan)
    with pytest.raises(rl.InputError, match="3 positive activations and 2 groups"):
        Labelled(x, x, torch.tensor([0, 1]))
    with pytest.raises(rl.InputError, match="no group has positive and negative"):
        GroupedMean().fit(Labelled(x, x, torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])))
    groups = torch.tensor([0, 1, 2])
    with pytest.raises(rl.InputError, match="pass both or neither"):
        Labelled(x, x, groups)
    with pytest.raises(rl.InputError, match="3 positive and 2 negative activations are no pairs"):
        PairedPCA().fit(Labelled(x, x[:2]))
    with pytest.raises(rl.InputError, match="each has to be 0 or more"):
        Labelled(x, x, groups, groups, {0: float("nan")})
    with pytest.raises(rl.InputError, match="weights of all groups are 0"):
        GroupedMean().fit(Labelled(x, 0 * x, groups, groups, dict.fromkeys(range(3), 0.0)))
    with pytest.raises(rl.InputError, match="numbers of the direction are not all finite"):
        drawn().ordered(torch.full((D,), torch.nan))
    with pytest.raises(rl.InputError, match="shared directions are not all finite"):
        WithoutShared(DifferenceInMeans(), torch.full((1, D), torch.inf)).fit(drawn())
    with pytest.raises(rl.InputError, match=r"c is 0.0; it has to be above 0"):
        Logistic(c=0.0).fit(drawn())
    with pytest.raises(rl.InputError, match="temperature 0.0; each has to be above 0"):
        Contrastive(temperature=0.0).fit(drawn())
    with pytest.raises(rl.InputError, match="a class has one activation"):
        Contrastive().fit(drawn(n=1))


@pytest.mark.parametrize("estimator", [LDA(), MassMean()], ids=["LDA", "MassMean"])
def test_classes_of_one_point_each_have_the_difference_in_means(estimator: Estimator) -> None:
    pair = Labelled(torch.ones(1, D), torch.zeros(1, D))
    torch.testing.assert_close(estimator.fit(pair), torch.ones(D, dtype=torch.float64))
    same = Labelled(torch.ones(5, D), torch.ones(5, D))
    assert not estimator.fit(same).any()


def test_order_within_groups_is_their_auroc() -> None:
    labelled = drawn(n=30, m=50)
    groups = torch.arange(30) % 4, torch.arange(50) % 5  # the last group has no positive one
    labelled = Labelled(
        labelled.positive.round(), labelled.negative.round(), *groups
    )  # rounded: with ties
    direction = torch.tensor([1.0, 0, 0, -1, 0, 0])
    shares = labelled.ordered(direction)
    for k in range(4):
        x = (
            torch.cat([labelled.positive[groups[0] == k], labelled.negative[groups[1] == k]])
            @ direction
        )
        y = np.arange(len(x)) < int((groups[0] == k).sum())
        assert shares[k] == pytest.approx(roc_auc_score(y, x))
    assert len(shares) == 4
