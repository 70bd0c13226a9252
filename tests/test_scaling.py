"""Scaling of directions against closed forms in NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import rolelens as rl
from rolelens.vectors.scaling import beta, energy, soft_scaled, top_k

values = hnp.arrays(np.float32, 7, elements=st.floats(-50, 50, width=32))


def direction(mu: np.ndarray) -> rl.Direction:
    return rl.Direction(torch.from_numpy(mu.copy()), layer=1)


@given(values)
def test_beta_is_as_in_the_paper(mu: np.ndarray) -> None:
    size, x = np.abs(mu.astype(float)), torch.from_numpy(mu.copy())
    if size.max() > 0:
        np.testing.assert_allclose(beta(x), size / size.max())
        np.testing.assert_allclose(beta(x, "l2"), size / np.sqrt((size**2).sum()))
    else:
        assert not beta(x).any()
    shares = np.exp(size - size.max()) / np.exp(size - size.max()).sum()
    np.testing.assert_allclose(beta(x, "softmax"), 7 * shares)


@given(values)
def test_both_forms(mu: np.ndarray) -> None:
    weights = beta(torch.from_numpy(mu.copy())).numpy()
    product = soft_scaled(direction(mu)).vector.numpy()
    np.testing.assert_allclose(product, weights * mu, rtol=1e-5, atol=1e-30)
    alone = soft_scaled(direction(mu), form="alone").vector.numpy()
    np.testing.assert_allclose(alone, weights * np.sign(mu), rtol=1e-5, atol=1e-30)


@given(values, st.integers(1, 7))
def test_a_hard_mask_keeps_the_largest_at_equal_norm(mu: np.ndarray, k: int) -> None:
    kept = top_k(direction(mu), k).vector.numpy().astype(float)
    assert (kept != 0).sum() <= k
    np.testing.assert_allclose(
        np.linalg.norm(kept), np.linalg.norm(mu.astype(float)), rtol=1e-5, atol=1e-30
    )
    gone = np.abs(mu[kept == 0])
    left = np.abs(mu[kept != 0])
    assert not len(gone) or not len(left) or gone.max() <= left.min() + 1e-30


@given(values)
def test_soft_scaling_preserves_more_than_a_mask_of_one(mu: np.ndarray) -> None:
    x = torch.from_numpy(mu.copy())
    if float(x.abs().max()) < 1e-3:
        return
    soft = float(energy(soft_scaled(direction(mu)).vector, x))
    hard = float(energy(top_k(direction(mu), 1).vector, x))
    assert soft >= hard - 1e-6
    np.testing.assert_allclose(hard, (x.double().abs().max() / x.double().norm()) ** 2, rtol=1e-5)


def test_all_cells_are_scaled_each_by_itself(llama: rl.Lens) -> None:
    prompts = ["Prove it.", "Sing it.", "Draw it."]
    vectors = rl.role_vectors(llama, {"a": prompts}, ["Hello there.", "Good night."], layers=[1, 3])
    scaled = soft_scaled(vectors, "l2")
    for one, whole in zip(scaled, vectors, strict=True):
        torch.testing.assert_close(one.vector, soft_scaled(whole, "l2").vector)


@pytest.mark.usefixtures("unchecked")
def test_unknown_ways_are_refused() -> None:
    d = direction(np.ones(7, np.float32))
    with pytest.raises(rl.InputError, match="'max', 'l2' or 'softmax'"):
        soft_scaled(d, "min")
    with pytest.raises(rl.InputError, match="'product' or 'alone'"):
        soft_scaled(d, form="sum")
    with pytest.raises(rl.InputError, match="from 1 to 7"):
        top_k(d, 8)
