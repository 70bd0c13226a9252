import dataclasses
import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import rolelens as rl
from rolelens.vectors import RunningMean, Source, WeightedSums, nulls

SOURCE = Source("m", "m@main", "77", "TransformerBridge", False, "float32", "abc", "0")


def some(
    seed: int = 0, *, roles: int = 3, scale: float = 1.0, roles_named: str = "abcdefg", **changes
) -> rl.RoleVectors:
    generator = torch.Generator().manual_seed(seed)
    directions = scale * torch.randn(roles, 4, 2, 16, generator=generator)
    fields = {
        "directions": directions,
        "roles": tuple(roles_named[:roles]),
        "layers": (0, 2, 5, 7),
        "positions": (-2, -1),
        "resid_norm": torch.rand(4, 2, generator=generator) + 1,
        "source": SOURCE,
        "prompts": {"base": (10, "00"), "a": (3, "11")},
    }
    return rl.RoleVectors(**fields | changes)


seeds = st.integers(0, 2**31)


@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=6), seed=seeds)
def test_a_running_mean_is_the_mean(sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batches = [1e3 + torch.randn(size, 3, 5, generator=generator) for size in sizes]
    running = RunningMean()
    for batch in batches:
        running.add(batch)
    expected = torch.cat(batches).double().mean(dim=0)
    torch.testing.assert_close(running.mean, expected, atol=0, rtol=1e-12)
    assert running.count == sum(sizes)


def test_at_is_a_slice() -> None:
    vectors = some()
    d = vectors["b"].at(layer=5, position=-1)
    assert torch.equal(d.vector, vectors.directions[1, 2, 1])
    assert (d.role, d.layer, d.position, d.source) == ("b", 5, -1, SOURCE)
    assert d.resid_norm == pytest.approx(float(vectors.resid_norm[2, 1]))
    assert len(list(vectors)) == 3 * 4 * 2


@given(seed=seeds, factor=st.floats(-100, 100))
def test_direction_algebra(seed: int, factor: float) -> None:
    a, b, c = (some(seed, roles=3)[role].at(2) for role in "abc")
    torch.testing.assert_close((a + b - b).vector, a.vector, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close((factor * a).vector, a.vector * factor)
    torch.testing.assert_close((-a).vector, -a.vector)
    assert a.normalise().norm == pytest.approx(1, abs=1e-6)
    assert a.cosine(a) == pytest.approx(1)
    assert a.cosine(b) == pytest.approx(b.cosine(a))
    rest = a.project_out(b, c, b)
    assert abs(rest.cosine(b)) < 1e-5
    assert abs(rest.cosine(c)) < 1e-5
    torch.testing.assert_close(rest.project_out(b, c).vector, rest.vector, atol=1e-5, rtol=1e-5)
    middle = rl.mean([a, b, c]).vector
    torch.testing.assert_close(middle, (a.vector + b.vector + c.vector) / 3, atol=1e-6, rtol=1e-5)


@given(seed=seeds)
def test_a_random_direction_keeps_the_norm(seed: int) -> None:
    d = some()["a"].at(2)
    random = d.random_like(seed)
    assert random.norm == pytest.approx(d.norm, rel=1e-5)
    assert abs(random.cosine(d)) < 0.999
    assert torch.equal(random.vector, d.random_like(seed).vector)


def test_role_vectors_algebra() -> None:
    a, b = some(0), some(1)
    torch.testing.assert_close((a + b - b).directions, a.directions, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(a.mean().directions[0], a.directions.mean(dim=0))
    assert a.normalise()["c"].at(7).norm == pytest.approx(1, abs=1e-6)
    rest = a.project_out(a.mean())
    assert abs(rest["b"].at(5).cosine(a.mean().at(5))) < 1e-5
    zero = dataclasses.replace(a, directions=torch.zeros_like(a.directions))
    assert zero.normalise().directions.abs().sum() == 0
    assert zero["a"].at(2).cosine(a["a"].at(2)) == 0


def test_files_come_back_bit_for_bit(tmp_path) -> None:
    vectors = some(3)
    path = vectors.save(tmp_path / "deep" / "v.safetensors")
    back = rl.RoleVectors.load(path)
    assert torch.equal(back.directions, vectors.directions)
    assert torch.equal(back.resid_norm, vectors.resid_norm)
    for name in ("roles", "layers", "positions", "source", "prompts", "site"):
        assert getattr(back, name) == getattr(vectors, name)
    assert [p.name for p in path.parent.iterdir()] == ["v.safetensors"]


def test_bad_files_are_one_sentence(tmp_path) -> None:
    path = some().save(tmp_path / "v.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(rl.InputError, match="does not hold role vectors"):
        rl.RoleVectors.load(path)
    path.write_text("not at all")
    with pytest.raises(rl.InputError, match="does not hold role vectors"):
        rl.RoleVectors.load(path)
    save_file({"x": torch.ones(2)}, path)
    with pytest.raises(rl.InputError, match="not written by RoleVectors.save"):
        rl.RoleVectors.load(path)
    with pytest.raises(rl.InputError, match="no file"):
        rl.RoleVectors.load(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(rl.InputError, match="cannot be written"):
        some().save(tmp_path / "file" / "v.safetensors")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda v: v["lawyr"], "no role 'lawyr'; there are: a, b, c"),
        (lambda v: v.at(2), "vectors of 3 roles; take one first"),
        (lambda v: v["a"].at(3), "no layer 3; there are: 0, 2, 5, 7"),
        (lambda v: v["a"].at(2, 0), "no position 0; there are: -2, -1"),
        (lambda v: v["a"].at(2) + v["a"].at(5), "different layer .2 and 5. do not combine"),
        (lambda v: v.project_out(v), "takes vectors of one role"),
        (
            lambda v: v + some(source=dataclasses.replace(SOURCE, centred=True)),
            "their writing weights .raw and centred. differ",
        ),
        (lambda v: v + some(layers=(0, 1, 2, 3)), "layers, positions, site and width"),
        (lambda v: some(roles=2, directions=torch.ones(3, 4, 2, 16)), "do not fit 2 roles"),
        (lambda v: rl.mean([]), "mean of no directions"),
    ],
)
def test_what_does_not_fit_is_refused(call, sentence: str) -> None:
    with pytest.raises(rl.InputError, match=sentence):
        call(some())


def test_near_roles_are_offered() -> None:
    vectors = some(roles=2, directions=torch.ones(2, 4, 2, 16))
    named = dataclasses.replace(vectors, roles=("lawyer", "doctor"))
    with pytest.raises(rl.InputError, match="no role 'lawyr'; did you mean 'lawyer'?"):
        named["lawyr"]


def test_cosines_and_relative_norms() -> None:
    vectors = some(2)
    found = vectors.cosines(5, -2)
    for i, j in itertools.product(range(3), range(3)):
        a, b = vectors["abc"[i]].at(5, -2), vectors["abc"[j]].at(5, -2)
        assert float(found[i, j]) == pytest.approx(a.cosine(b), abs=1e-6)
    share = vectors.relative_norms()[1, 2, 0]
    assert float(share) == pytest.approx(
        vectors["b"].at(5, -2).norm / float(vectors.resid_norm[2, 0])
    )


@given(
    prompts=st.integers(1, 12), count=st.integers(1, 4), parts=st.integers(1, 12), data=st.data()
)
def test_weighted_sums_are_sums_in_any_order(prompts, count, parts, data) -> None:
    generator = torch.Generator().manual_seed(data.draw(seeds))
    x = 1e3 + torch.randn(prompts, 2, 3, generator=generator)
    weights = torch.randn(count, prompts, generator=generator, dtype=torch.float64)
    order = torch.tensor(data.draw(st.permutations(range(prompts))))
    running = WeightedSums(weights)
    for rows in order.chunk(parts):
        running.add(x[rows], rows)
    expected = torch.zeros(count, 2, 3, dtype=torch.float64)
    for null, prompt in itertools.product(range(count), range(prompts)):
        expected[null] += weights[null, prompt] * x[prompt].double()
    torch.testing.assert_close(running.sums, expected, atol=1e-9, rtol=0)


def test_concatenated_vectors_keep_each_direction() -> None:
    a, b = some(0, roles=2), some(1, roles=2, roles_named="cd", prompts={"c": (4, "22")})
    both = rl.concat(a, b, some(2, roles=1, roles_named="e", contrast="another"))
    assert both.roles == ("a", "b", "c", "d", "e")
    assert torch.equal(both["d"].at(5, -2).vector, b.directions[1, 2, 0])
    assert torch.equal(both["a"].at(5, -2).vector, a.directions[0, 2, 0])
    assert both.prompts == {"base": (10, "00"), "a": (3, "11"), "c": (4, "22")}
    assert both.contrast == "role prompts - base prompts; another"
    assert torch.equal(both.resid_norm, a.resid_norm)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "the role 'a' comes 2 times; take each role once, or rename"),
        ({"layers": (0, 1, 2, 3)}, "layers, positions, site and width"),
        ({"source": dataclasses.replace(SOURCE, weights="78")}, "their models .* differ"),
        (
            {"roles_named": "def", "prompts": {"base": (10, "01")}},
            "'base' stands for different prompts .*10, '00'.* and .*10, '01'",
        ),
    ],
)
def test_what_cannot_be_put_together_is_refused(changes: dict, sentence: str) -> None:
    sourceless = some(roles=1, roles_named="x", source=None)
    for parts in ([some(), some(1, **changes)], [sourceless, some(), some(1, **changes)]):
        with pytest.raises(rl.InputError, match=sentence):
            rl.concat(*parts)
    with pytest.raises(rl.InputError, match="pass at least one"):
        rl.concat()


@given(seed=seeds, scale=st.sampled_from([1e-20, 1.0, 1e10]), n=st.integers(1, 3))
def test_gaussian_nulls_keep_every_norm(seed: int, scale: float, n: int) -> None:
    vectors = some(seed, scale=scale)
    vectors.directions[1, 2, 0] = 0
    found = nulls.gaussian(vectors, n, seed)
    assert found.roles == tuple(f"gaussian {k} ~ {role}" for role in "abc" for k in range(n))
    for role, k, layer, position in itertools.product(
        "abc", range(n), vectors.layers, vectors.positions
    ):
        null = found.direction(f"gaussian {k} ~ {role}", layer, position)
        own = vectors.direction(role, layer, position)
        assert null.norm == pytest.approx(own.norm, rel=1e-6, abs=0)
        assert abs(null.cosine(own)) < 0.99
    assert found["gaussian 0 ~ b"].at(5, -2).vector.abs().sum() == 0
    assert found.contrast == "nulls of role prompts - base prompts"


@given(seed=seeds, sizes=st.tuples(*[st.sampled_from([0.0, 1e-12, 1.0, 1e30])] * 2))
def test_matched_norms_are_those_of_the_others(seed: int, sizes: tuple[float, float]) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, to = (size * torch.randn(3, 16, generator=generator) for size in sizes)
    found = nulls.matched(x, to)
    for own, before, other in zip(found.double(), x.double(), to.double(), strict=True):
        if 0 in sizes:
            assert own.abs().sum() == 0
        else:
            assert float(own.norm()) == pytest.approx(float(other.norm()), rel=1e-6, abs=0)
            assert float(own @ before / own.norm() / before.norm()) == pytest.approx(1)


def test_a_gaussian_null_depends_on_nothing_but_its_seed_name_and_cell() -> None:
    vectors = some()
    found = nulls.gaussian(vectors, 2, seed=3)["gaussian 1 ~ b"].directions
    assert torch.equal(nulls.gaussian(vectors["b"], 5, seed=3).directions[1:2], found)
    two = vectors[["c", "b"]]
    part = dataclasses.replace(
        two,
        directions=two.directions[:, [3, 1]][:, :, [1]],
        layers=(7, 2),
        positions=(-1,),
        resid_norm=vectors.resid_norm[[3, 1]][:, [1]],
    )
    again = nulls.gaussian(part, 2, seed=3)["gaussian 1 ~ b"].directions
    assert torch.equal(again, found[:, [3, 1]][:, :, [1]])
    assert not torch.equal(nulls.gaussian(vectors, 2, seed=4)["gaussian 1 ~ b"].directions, found)


def test_gaussian_nulls_are_isotropic_and_independent() -> None:
    ones = some(roles=2, directions=torch.ones(2, 4, 2, 16) / 4)
    unit = nulls.gaussian(ones, 500).directions.double().reshape(2, 500, 4, 2, 16)
    cells = [unit[0, :, 0, 0], unit[1, :, 0, 0], unit[0, :, 1, 0], unit[0, :, 0, 1]]
    for a, b in itertools.combinations_with_replacement(range(4), 2):
        moments = 16 * cells[a].T @ cells[b] / 500
        expected = torch.eye(16, dtype=torch.float64) if a == b else 0 * moments
        assert (moments - expected).abs().max() < 0.25, (a, b)  # five standard errors


def test_other_roles_are_all_but_one() -> None:
    vectors = some()
    others = nulls.other_roles(vectors, "b")
    assert others.roles == ("a", "c")
    assert torch.equal(others.directions, vectors.directions[[0, 2]])
    with pytest.raises(rl.InputError, match="no role 'x'; there are: a, b, c"):
        nulls.other_roles(vectors, "x")
    with pytest.raises(rl.InputError, match="there is no role but 'a'"):
        nulls.other_roles(vectors["a"], "a")


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
