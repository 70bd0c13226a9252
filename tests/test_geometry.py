import itertools

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_similarity

import rolelens as rl
from rolelens.vectors import geometry

D = 24
DOMAINS = {"a": "x", "b": "x", "c": "y", "d": "y", "e": "y"}


def made(seed: int = 0, *, shared: float = 0.0, apart: float = 0.0) -> rl.Directions:
    """Random directions, with something in common, and with something of each domain."""
    drawn = torch.Generator().manual_seed(seed)
    d = torch.randn(5, 3, 2, D, generator=drawn)
    d += shared * torch.randn(1, 3, 2, D, generator=drawn)
    of = {domain: torch.randn(3, 2, D, generator=drawn) for domain in "xy"}
    for n, domain in enumerate(DOMAINS.values()):
        d[n] += apart * of[domain]
    return rl.Directions(d, tuple(DOMAINS), (1, 2, 3), (-2, -1), torch.ones(3, 2))


def at(vectors: rl.Directions, layer: int, position: int) -> np.ndarray:
    i, j = vectors.layers.index(layer), vectors.positions.index(position)
    return vectors.directions[:, i, j].double().numpy()


def test_the_shared_part_is_what_lies_along_the_mean() -> None:
    vectors = made(shared=2.0)
    table = geometry.shared(vectors).set_index(["layer", "position"])
    assert len(table) == 6
    for layer, position in itertools.product((1, 2, 3), (-2, -1)):
        x = at(vectors, layer, position)
        unit = x.mean(axis=0) / np.linalg.norm(x.mean(axis=0))
        row = table.loc[layer, position]
        assert row["share"] == pytest.approx(((x @ unit) ** 2).sum() / (x**2).sum(), abs=1e-5)
        upper = np.triu_indices(5, 1)
        assert row["cosine"] == pytest.approx(cosine_similarity(x)[upper].mean(), abs=1e-5)
        rest = x - np.outer(x @ unit, unit)
        expected = cosine_similarity(rest)[upper].mean()
        assert row["cosine_without_shared"] == pytest.approx(expected, abs=1e-5)
    assert table["share"].mean() > 0.5 > geometry.shared(made())["share"].mean()


def test_domains_cluster_where_they_have_something_in_common() -> None:
    together = geometry.clustering(made(apart=2.0), DOMAINS)
    assert (together["difference"] > 0.3).all()
    # Ten ways to name two of five roles x: no permutation can do better than one in ten.
    assert together["p"].between(0.07, 0.14).all()
    x = at(made(apart=2.0), 2, -1)
    cosines = cosine_similarity(x)
    pairs = list(itertools.combinations(range(5), 2))
    same = [p for p in pairs if (p[0] < 2) == (p[1] < 2)]
    row = together.set_index("layer").loc[2]
    assert row["within"] == pytest.approx(np.mean([cosines[p] for p in same]), abs=1e-5)
    rest = [cosines[p] for p in pairs if p not in same]
    assert row["between"] == pytest.approx(np.mean(rest), abs=1e-5)
    apart = [geometry.clustering(made(seed), DOMAINS)["p"].iloc[0] for seed in range(20)]
    assert np.mean(np.array(apart) < 0.15) < 0.5


def test_reliability_is_the_cosine_of_the_halves() -> None:
    first = made()
    noise = torch.randn_like(first.directions) * 0.1
    second = rl.Directions(
        first.directions + noise, first.names, first.layers, first.positions, first.resid_norm
    )
    table = geometry.reliability((first, second)).set_index(["name", "layer"])
    a, b = at(first, 2, -1)[1], at(second, 2, -1)[1]
    assert table.loc[("b", 2), "cosine"] == pytest.approx(cosine_similarity([a], [b])[0, 0])
    rest = []
    for vectors in (first, second):
        x = at(vectors, 2, -1)
        unit = x.mean(axis=0) / np.linalg.norm(x.mean(axis=0))
        rest.append(x[1] - (x[1] @ unit) * unit)
    expected = cosine_similarity(rest[:1], rest[1:])[0, 0]
    assert table.loc[("b", 2), "without_shared"] == pytest.approx(expected, abs=1e-5)


def test_agreement_of_layers_is_a_mean_cosine() -> None:
    vectors = made()
    result = geometry.agreement(vectors, position=-2)
    expected = np.mean(
        [cosine_similarity(vectors.directions[n, :, 0].numpy()) for n in range(5)], axis=0
    )
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)
    with pytest.raises(rl.InputError, match="no position -5"):
        geometry.agreement(vectors, -5)


def test_pca_is_scikit_learns() -> None:
    vectors = made()
    result = geometry.pca(vectors, 3, -2)
    reference = PCA(2).fit(at(vectors, 3, -2))
    expected = reference.transform(at(vectors, 3, -2))
    for name, column in zip("xy", expected.T, strict=True):
        own = result.table()[name].to_numpy()
        np.testing.assert_allclose(np.abs(own), np.abs(column), atol=1e-4)
        assert own[np.abs(own).argmax()] > 0
    assert result.explained == pytest.approx(tuple(reference.explained_variance_ratio_), abs=1e-5)


def test_more_prompts_make_more_alike_directions() -> None:
    """With unit noise and a shift of length s, E cos is about s2 / (s2 + 2 D / n)."""
    drawn = torch.Generator().manual_seed(0)
    shift = torch.randn(D, generator=drawn)
    base = torch.randn(200, D, generator=drawn)
    role = torch.randn(200, D, generator=drawn) + shift
    table = geometry.learning_curve(role, base, (4, 16, 64, 128), repeats=50)
    assert table["prompts"].tolist() == [4, 16, 64]  # two sets of 128 there are not
    assert table["cosine"].is_monotonic_increasing
    s2 = float(shift.square().sum())
    for row in table.to_dict("records"):
        expected = s2 / (s2 + 2 * D / row["prompts"])
        assert row["cosine"] == pytest.approx(expected, abs=0.05)
        assert row["low"] <= row["cosine"] <= row["high"]


def test_consistency_is_the_mean_pairwise_cosine() -> None:
    drawn = torch.Generator().manual_seed(0)
    role, base = torch.randn(6, 2, D, generator=drawn), torch.randn(9, 2, D, generator=drawn)
    result = geometry.consistency(role, base)
    for cell in (0, 1):
        x = (role[:, cell] - base[:, cell].mean(dim=0)).numpy()
        expected = cosine_similarity(x)[np.triu_indices(6, 1)].mean()
        assert float(result[cell]) == pytest.approx(expected, abs=1e-5)


def with_zeros(layer: int = 1) -> rl.Directions:
    """A layer in which all directions are exactly zero, as at layer 0."""
    vectors = made()
    vectors.directions[:, vectors.layers.index(layer)] = 0
    return vectors


def test_zero_directions_have_no_cosine() -> None:
    vectors, whole = with_zeros(), made()
    table = geometry.reliability((vectors, vectors)).set_index(["name", "layer"])
    assert table.loc[("b", 1)].isna().all()
    assert table.loc[("b", 2)].tolist() == pytest.approx([1, 1])
    cosines = geometry.agreement(vectors)
    assert cosines[0].isnan().all()
    assert cosines[:, 0].isnan().all()
    torch.testing.assert_close(cosines[1:, 1:], geometry.agreement(whole)[1:, 1:])
    assert geometry.clustering(vectors, DOMAINS, permutations=9)["layer"].tolist() == [2, 3]
    assert sorted(set(geometry.shared(vectors)["layer"])) == [2, 3]
    with pytest.raises(rl.InputError, match="directions of layer 1 are the same"):
        geometry.pca(vectors, 1)


def test_halves_are_compared_name_by_name() -> None:
    vectors = made()
    table = geometry.reliability((vectors, vectors[list("edcba")]))
    assert table["cosine"].tolist() == pytest.approx([1] * 15)
    with pytest.raises(rl.InputError, match="no role 'e'"):
        geometry.reliability((vectors, vectors[list("abcd")]))


def test_directions_of_no_position_are_compared() -> None:
    some = made()
    vectors = rl.Directions(
        some.directions[:, :, 1:], some.names, some.layers, (None,), some.resid_norm[:, 1:]
    )
    torch.testing.assert_close(geometry.agreement(vectors), geometry.agreement(some))
    expected = geometry.clustering(some, DOMAINS, permutations=9)
    assert geometry.clustering(vectors, DOMAINS, permutations=9).equals(expected)
    result = geometry.pca(vectors, 2)
    assert result.table().equals(geometry.pca(some, 2).table())
    assert repr(result).startswith("PCA(names 5, layer 2, position none, explained ")


def test_too_little_is_refused() -> None:
    vectors = made()
    for call, sentence in (
        (lambda: geometry.without_shared(vectors[["a", "b"]]), "2 names have no shared component"),
        (lambda: geometry.pca(vectors[["a", "b"]], 1), "2 names span no plane"),
        (lambda: geometry.clustering(vectors, {"a": "x"}), "'b' has no domain"),
        (
            lambda: geometry.clustering(vectors, dict.fromkeys("abcde", "x")),
            "needs two domains",
        ),
        (
            lambda: geometry.learning_curve(torch.ones(5, 3), torch.ones(9, 3)),
            "5 prompts are too few for two sets of 4",
        ),
        (lambda: geometry.consistency(torch.ones(1, 3), torch.ones(9, 3)), "pass at least 2"),
        (lambda: geometry.consistency(torch.ones(4, 3), torch.ones(0, 3)), "and 0 base prompts"),
        (
            lambda: geometry.consistency(torch.full((4, 3), torch.nan), torch.ones(9, 3)),
            "the activations are not all finite",
        ),
        (
            lambda: geometry.learning_curve(torch.ones(9, 3), torch.full((9, 3), torch.inf)),
            "the base activations are not all finite",
        ),
        (
            lambda: geometry.learning_curve(torch.ones(9, 3), torch.ones(9, 3), (0, 4)),
            "each has to be at least 1",
        ),
        (
            lambda: geometry.clustering(vectors, DOMAINS, permutations=0),
            "permutations is 0; it has to be at least 1",
        ),
        (lambda: geometry.clustering(vectors, DOMAINS, position=-7), "no position -7"),
        (lambda: geometry.reliability((vectors, vectors), -7), "no position -7"),
        (lambda: geometry.pca(vectors, 9), "no layer 9"),
    ):
        with pytest.raises(rl.InputError, match=sentence):
            call()
