import dataclasses
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import rolelens as rl
from rolelens.vectors import RunningMean, Source

SOURCE = Source("m", "m@main", "77", "TransformerBridge", False, "float32", "abc", "0")


def some(seed: int = 0, *, roles: int = 3, scale: float = 1.0, **changes) -> rl.RoleVectors:
    generator = torch.Generator().manual_seed(seed)
    directions = scale * torch.randn(roles, 4, 2, 16, generator=generator)
    fields = {
        "directions": directions,
        "roles": tuple("abcdefg"[:roles]),
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
