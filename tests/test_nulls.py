import dataclasses
import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rolelens as rl
from rolelens.vectors import Null, WeightedSums, nulls
from test_directions import seeds, some


@settings(max_examples=30)
@given(seed=seeds, scale=st.sampled_from([1e-20, 1.0, 1e10]), n=st.integers(1, 3))
def test_gaussian_nulls_keep_every_norm(seed: int, scale: float, n: int) -> None:
    vectors = some(seed, scale=scale)
    vectors.directions[1, 2, 0] = 0
    result = nulls.gaussian(vectors, n, seed)
    assert result.names == tuple(f"gaussian {k} ~ {role}" for role in "abc" for k in range(n))
    for role, k, layer, position in itertools.product(
        "abc", range(n), vectors.layers, vectors.positions
    ):
        null = result.direction(f"gaussian {k} ~ {role}", layer, position)
        own = vectors.direction(role, layer, position)
        assert null.norm == pytest.approx(own.norm, rel=1e-6, abs=0)
        assert abs(null.cosine(own)) < 0.99
    assert result["gaussian 0 ~ b"].at(5, -2).vector.abs().sum() == 0
    assert result.nulls["gaussian 0 ~ b"] == Null("b", "gaussian", 0)
    assert result.tried == ()
    assert result.contrast == "nulls of role prompts - base prompts"


@given(seed=seeds, sizes=st.tuples(*[st.sampled_from([0.0, 1e-12, 1.0, 1e30])] * 2))
def test_matched_norms_are_those_of_the_others(seed: int, sizes: tuple[float, float]) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, to = (size * torch.randn(3, 16, generator=generator) for size in sizes)
    result = nulls.matched(x, to)
    for own, before, other in zip(result.double(), x.double(), to.double(), strict=True):
        if 0 in sizes:
            assert own.abs().sum() == 0
        else:
            assert float(own.norm()) == pytest.approx(float(other.norm()), rel=1e-6, abs=0)
            assert float(own @ before / own.norm() / before.norm()) == pytest.approx(1)


def test_a_gaussian_null_depends_on_nothing_but_its_seed_name_and_cell() -> None:
    vectors = some()
    result = nulls.gaussian(vectors, 2, seed=3)["gaussian 1 ~ b"].directions
    assert torch.equal(nulls.gaussian(vectors["b"], 5, seed=3).directions[1:2], result)
    two = vectors[["c", "b"]]
    part = dataclasses.replace(
        two,
        directions=two.directions[:, [3, 1]][:, :, [1]],
        layers=(7, 2),
        positions=(-1,),
        resid_norm=vectors.resid_norm[[3, 1]][:, [1]],
    )
    again = nulls.gaussian(part, 2, seed=3)["gaussian 1 ~ b"].directions
    assert torch.equal(again, result[:, [3, 1]][:, :, [1]])
    assert not torch.equal(nulls.gaussian(vectors, 2, seed=4)["gaussian 1 ~ b"].directions, result)


def test_gaussian_nulls_are_isotropic_and_independent() -> None:
    ones = some(count=2, directions=torch.ones(2, 4, 2, 16) / 4)
    unit = nulls.gaussian(ones, 500).directions.double().reshape(2, 500, 4, 2, 16)
    cells = [unit[0, :, 0, 0], unit[1, :, 0, 0], unit[0, :, 1, 0], unit[0, :, 0, 1]]
    for a, b in itertools.combinations_with_replacement(range(4), 2):
        moments = 16 * cells[a].T @ cells[b] / 500
        expected = torch.eye(16, dtype=torch.float64) if a == b else 0 * moments
        assert (moments - expected).abs().max() < 0.25, (a, b)  # five standard errors


def test_other_roles_are_all_but_one() -> None:
    vectors = some()
    others = nulls.others(vectors, "b")
    assert others.names == ("a", "c")
    assert torch.equal(others.directions, vectors.directions[[0, 2]])
    with_nulls = rl.concat(vectors, nulls.gaussian(vectors))
    assert nulls.others(with_nulls, "b").names == ("a", "c")
    assert nulls.gaussian(with_nulls).names == nulls.gaussian(vectors).names
    with pytest.raises(rl.InputError, match="only nulls to imitate"):
        nulls.gaussian(nulls.gaussian(vectors))
    with pytest.raises(rl.InputError, match="no role 'x'; there are: a, b, c"):
        nulls.others(vectors, "x")
    with pytest.raises(rl.InputError, match="there is no name but 'a'"):
        nulls.others(vectors["a"], "a")


sizes = st.integers(1, 40)


@given(n_role=sizes, n_base=sizes, n=st.integers(1, 5), seed=st.integers())
def test_shuffled_labels_are_labels(n_role: int, n_base: int, n: int, seed: int) -> None:
    weights = nulls.shuffled_labels(n_role, n_base, n, seed)
    assert weights.shape == (n, n_role + n_base)
    for row in weights.tolist():
        assert Counter(row) == {1 / n_role: n_role, -1 / n_base: n_base}
    assert torch.equal(nulls.shuffled_labels(n_role, n_base, n + 2, seed)[:n], weights)
    torch.testing.assert_close(weights.sum(dim=1), torch.zeros(n).double(), atol=1e-12, rtol=0)


@given(n_base=sizes, n=st.integers(1, 5), seed=st.integers())
def test_base_against_base_is_half_against_half(n_base: int, n: int, seed: int) -> None:
    n_base += 1
    half = n_base // 2
    weights = nulls.base_against_base(n_base, n, seed)
    assert weights.shape == (n, n_base)
    for row in weights.tolist():
        assert Counter(row) == Counter({1 / half: half, -1 / half: half} | {0: n_base % 2})
    assert torch.equal(nulls.base_against_base(n_base, n + 2, seed)[:n], weights)


@pytest.mark.parametrize(
    ("weights", "sizes", "outcomes"),
    [
        (nulls.shuffled_labels, (3, 2), math.comb(5, 2)),
        (nulls.base_against_base, (5,), math.comb(5, 2) * math.comb(3, 2)),
        (nulls.base_against_base, (4,), math.comb(4, 2)),
    ],
)
def test_every_relabelling_is_equally_likely(weights, sizes: tuple, outcomes: int) -> None:
    counts = Counter(tuple(row) for row in weights(*sizes, 6000).tolist())
    assert len(counts) == outcomes
    expected = 6000 / outcomes
    for count in counts.values():
        assert abs(count - expected) < 5 * math.sqrt(expected)


@pytest.mark.parametrize("pool", ["noise", "labels"])
def test_the_size_of_nulls_is_that_of_sampling_noise(pool: str) -> None:
    n_role, n_base, n = 9, 6, 20_000
    x = torch.zeros(n_role + n_base, 8, dtype=torch.float64)
    if pool == "noise":
        x = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    else:
        x[:n_role, 0] = 1
    drawn = (nulls.shuffled_labels(n_role, n_base, n) @ x).square().sum(dim=1).mean()
    expected = x.var(dim=0).sum() * (1 / n_role + 1 / n_base)
    assert float(drawn) == pytest.approx(float(expected), rel=0.05)
    if pool == "labels":  # what the docstring says of leaning along the role's direction
        assert float(drawn) == pytest.approx(1 / (n_role + n_base - 1), rel=0.05)
    drawn = (nulls.base_against_base(n_base, n) @ x[n_role:]).square().sum(dim=1).mean()
    expected = x[n_role:].var(dim=0).sum() * 2 / 3
    assert float(drawn) == pytest.approx(float(expected), rel=0.05)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: nulls.gaussian(some(), 0), "n is 0; it has to be at least 1"),
        (lambda: nulls.shuffled_labels(3, 3, 0), "n is 0; it has to be at least 1"),
        (lambda: nulls.base_against_base(3, -1), "n is -1; it has to be at least 1"),
        (lambda: nulls.shuffled_labels(0, 3, 1), "0 role and 3 base prompts have no labels"),
        (lambda: nulls.shuffled_labels(3, 0, 1), "3 role and 0 base prompts have no labels"),
        (lambda: nulls.base_against_base(1, 1), "1 base prompts have no halves"),
        (lambda: WeightedSums(torch.ones(1, 2)).sums, "weighted sums of no prompts"),
    ],
)
def test_nulls_that_cannot_be_made_are_refused(call, sentence: str) -> None:
    with pytest.raises(rl.InputError, match=sentence):
        call()
