import dataclasses
import itertools
import json
import math
import os
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import rolelens as rl
from rolelens import vectors as rl_vectors
from rolelens.vectors import RunningMean, Source, WeightedSums

SOURCE = Source("m", "m@main", "77", "TransformerBridge", False, "float32", "abc", "0")


def some(
    seed: int = 0, *, count: int = 3, scale: float = 1.0, named="abcdefg", **changes
) -> rl.Directions:
    generator = torch.Generator().manual_seed(seed)
    directions = scale * torch.randn(count, 4, 2, 16, generator=generator)
    fields = {
        "directions": directions,
        "names": tuple(named[:count]),
        "layers": (0, 2, 5, 7),
        "positions": (-2, -1),
        "resid_norm": torch.rand(4, 2, generator=generator) + 1,
        "source": SOURCE,
        "prompts": {"base": (10, "00"), "a": (3, "11")},
    }
    return rl.Directions(**fields | changes)


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
    assert (d.name, d.layer, d.position, d.source) == ("b", 5, -1, SOURCE)
    assert d.resid_norm == pytest.approx(float(vectors.resid_norm[2, 1]))
    assert len(list(vectors)) == 3 * 4 * 2


@given(seed=seeds, factor=st.floats(-100, 100))
def test_direction_algebra(seed: int, factor: float) -> None:
    a, b, c = (some(seed, count=3)[role].at(2) for role in "abc")
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


def test_algebra_of_sets() -> None:
    a, b = some(0), some(1)
    torch.testing.assert_close((a + b - b).directions, a.directions, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(a.mean().directions[0], a.directions.mean(dim=0))
    assert a.normalise()["c"].at(7).norm == pytest.approx(1, abs=1e-6)
    rest = a.project_out(a.mean())
    assert abs(rest["b"].at(5).cosine(a.mean().at(5))) < 1e-5
    zero = dataclasses.replace(a, directions=torch.zeros_like(a.directions))
    assert zero.normalise().directions.abs().sum() == 0
    assert zero["a"].at(2).cosine(a["a"].at(2)) == 0


@settings(max_examples=25)
@given(
    seed=seeds,
    positions=st.sampled_from([(-2, -1), (-1, -3), (None,)]),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
    null=st.none() | st.sampled_from(["gaussian", "random"]),
)
def test_files_come_back_bit_for_bit(seed, positions, scale, null, tmp_path_factory) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = some(
        seed,
        directions=scale * torch.randn(3, 4, len(positions), 16, generator=generator),
        positions=positions,
        resid_norm=torch.rand(4, len(positions), generator=generator),
        kind="trait",
        nulls={"c": rl_vectors.Null("a", null, 3)} if null else {},
    )
    path = vectors.save(tmp_path_factory.mktemp("files") / "deep" / "v.safetensors")
    back = rl.Directions.load(path)
    assert torch.equal(back.directions, vectors.directions)
    assert torch.equal(back.resid_norm, vectors.resid_norm)
    for field in dataclasses.fields(vectors):
        if field.name not in ("directions", "resid_norm"):
            assert getattr(back, field.name) == getattr(vectors, field.name)
    assert back.sha == vectors.sha
    assert [p.name for p in path.parent.iterdir()] == ["v.safetensors"]


def test_files_can_be_read_by_whom_the_umask_lets(tmp_path) -> None:
    before = os.umask(0o027)
    try:
        path = some().save(tmp_path / "v.safetensors")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_files_of_version_01_are_read(tmp_path) -> None:
    names = ("lawyer", "gaussian 0 ~ lawyer", "shuffled 12 ~ data analyst", "base 0", "base jumper")
    directions, norm = torch.randn(5, 2, 1, 8), torch.rand(2, 1)
    header = {
        "roles": names,
        "layers": (0, 3),
        "positions": (-1,),
        "site": "resid_pre",
        "contrast": "role prompts - base prompts",
        "prompts": {"base": (10, "00"), "lawyer": (3, "11")},
        "source": dataclasses.asdict(SOURCE),
    }
    path = tmp_path / "old.safetensors"
    save_file(
        {"directions": directions, "resid_norm": norm},
        path,
        metadata={"rolelens": json.dumps(header)},
    )
    old = rl.Directions.load(path)
    assert torch.equal(old.directions, directions)
    assert torch.equal(old.resid_norm, norm)
    assert (old.names, old.layers, old.positions) == (names, (0, 3), (-1,))
    assert (old.source, old.kind, old.prompts["lawyer"]) == (SOURCE, "role", (3, "11"))
    assert old.nulls == {
        "gaussian 0 ~ lawyer": rl_vectors.Null("lawyer", "gaussian", 0),
        "shuffled 12 ~ data analyst": rl_vectors.Null("data analyst", "shuffled", 12),
        "base 0": rl_vectors.Null(None, "base", 0),
    }
    assert old.tried == ("lawyer", "base jumper")
    again = rl.Directions.load(old.save(tmp_path / "new.safetensors"))
    assert again.nulls == old.nulls
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(rl.InputError, match="does not hold directions"):
        rl.Directions.load(path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, bytes]:
    path = some(7).save(tmp_path_factory.mktemp("saved") / "v.safetensors")
    return path, path.read_bytes()


def test_flipped_bits_are_refused(saved, unchecked) -> None:
    """In the numbers always; in the header, unless what it says stays the same."""
    path, content = saved
    vectors = some(7)
    payload = 8 + int.from_bytes(content[:8], "little")
    flips = random.Random(0)
    places = [flips.randrange(payload, len(content)) for _ in range(60)]
    places += [payload, len(content) - 1, *flips.sample(range(payload), 60)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << flips.randrange(8)
        path.write_bytes(damaged)
        if place >= payload:
            with pytest.raises(rl.InputError, match="is damaged"):
                rl.Directions.load(path)
            continue
        try:
            loaded = rl.Directions.load(path)
        except rl.InputError:
            continue
        assert loaded.sha == vectors.sha, place
        assert loaded.prompts == vectors.prompts, place
    path.write_bytes(content)
    assert rl.Directions.load(path).sha == vectors.sha


def test_bad_files_are_one_sentence(tmp_path) -> None:
    path = some().save(tmp_path / "v.safetensors")
    whole = path.read_bytes()
    for length in (0, 5, 100, len(whole) - 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(rl.InputError, match="does not hold directions .* truncated"):
            rl.Directions.load(path)
    path.write_text("not at all")
    with pytest.raises(rl.InputError, match="does not hold directions"):
        rl.Directions.load(path)
    save_file({"x": torch.ones(2)}, path)
    with pytest.raises(rl.InputError, match="was not written by rolelens"):
        rl.Directions.load(path)
    save_file({"x": torch.ones(2)}, path, metadata={"rolelens": '{"names": ["a"]}'})
    with pytest.raises(rl.InputError, match="was not written by rolelens"):
        rl.Directions.load(path)
    with pytest.raises(rl.InputError, match="no file"):
        rl.Directions.load(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(rl.InputError, match="cannot be written"):
        some().save(tmp_path / "file" / "v.safetensors")


def test_sets_are_subtracted_name_by_name() -> None:
    v, w = some(0, count=2), some(1, count=2)[["b", "a"]]
    assert (v - v[["b", "a"]]).directions.abs().sum() == 0
    for result, sign in ((v + w, 1), (v - w, -1)):
        assert result.names == ("a", "b")
        for i, name in enumerate("ab"):
            by_hand = v.directions[i] + sign * some(1, count=2).directions[i]
            assert torch.equal(result[name].directions[0], by_hand)
    only = some(2, count=1, named="x")
    for i in (0, 1):
        assert torch.equal((v - only).directions[i], v.directions[i] - only.directions[0])
    with pytest.raises(rl.InputError, match="only one of the two sets has 'b', 'c'; take the same"):
        some(count=2) - some(count=2, named="ac")
    with pytest.raises(rl.InputError, match="only one of the two sets has 'c'"):
        some(count=2) - some(count=3)


def test_names_are_looked_up() -> None:
    vectors = some(named=("lawyer", "cook", "poet"))
    assert "lawyer" in vectors
    assert "bailiff" not in vectors
    null = rl_vectors.Null("lawyer", "gaussian", 0)
    mixed = dataclasses.replace(vectors, nulls={"poet": null})
    assert mixed.tried == ("lawyer", "cook")
    assert mixed.controls is not None
    assert mixed.controls.names == ("poet",)
    assert (mixed["poet"].at(2).null, mixed["cook"].at(2).null) == (null, None)
    assert mixed["cook"].nulls == {}
    assert vectors.controls is None


def test_the_last_position_is_meant_where_none_is_named() -> None:
    assert some().direction("a", 2).position == -1
    backwards = some(positions=(-1, -4))
    assert backwards.direction("a", 2).position == -1
    assert torch.equal(backwards.direction("a", 2).vector, backwards.directions[0, 1, 0])
    of_none = some(
        directions=torch.ones(3, 4, 1, 16), positions=(None,), resid_norm=torch.ones(4, 1)
    )
    assert of_none["a"].at(2).position is None
    assert "positions none" in repr(of_none)
    with pytest.raises(rl.InputError, match="no position -1; there are: None"):
        of_none["a"].at(2, -1)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"named": "aba"}, "names are .*'a' more than once"),
        ({"layers": (0, 2, 2, 7)}, "layers are .*2 more than once"),
        ({"positions": (-1, -1)}, "positions are .*-1 more than once"),
        ({"directions": torch.full((3, 4, 2, 16), torch.nan)}, "of a, b, c are not all finite"),
        ({"directions": torch.full((3, 4, 2, 16), torch.inf)}, "of a, b, c are not all finite"),
        ({"resid_norm": torch.full((4, 2), torch.nan)}, "norms of the residual stream are not all"),
        ({"resid_norm": torch.ones(2, 4)}, "resid_norm of shape .2, 4. does not fit 4 layers"),
        ({"count": 0, "directions": torch.ones(0, 4, 2, 16)}, "have no name; pass at least one"),
        ({"nulls": {"z": rl_vectors.Null("a", "gaussian")}}, "no role 'z'; there are: a, b, c"),
    ],
)
def test_sets_that_would_give_wrong_numbers_are_refused(
    changes: dict, sentence: str, unchecked
) -> None:
    with pytest.raises(rl.InputError, match=sentence):
        some(**changes)


def test_a_direction_that_is_not_finite_is_refused() -> None:
    with pytest.raises(rl.InputError, match="direction of 'x' at layer 3 are not all finite"):
        rl.Direction(torch.tensor([1.0, torch.nan]), layer=3, name="x")
    with pytest.raises(rl.InputError, match="not all finite"):
        some()["a"].at(2) * math.inf
    with pytest.raises(rl.InputError, match="at least one direction to remove"):
        some()["a"].at(2).project_out()
    zero = rl.Direction(torch.zeros(4), layer=0, name="x")
    with pytest.raises(rl.InputError, match="zero, so it has no unit vector"):
        zero.unit  # noqa: B018


def test_cards_compute_nothing(monkeypatch) -> None:
    vectors = some()
    for name in ("median", "norm", "mean", "sum"):
        monkeypatch.setattr(torch.Tensor, name, None)
    assert repr(vectors).startswith("Directions(roles a, b, c, directions 3 x 4 x 2 x 16")
    assert "-2 to -1" in vectors._repr_html_()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda v: v["lawyr"], "no role 'lawyr'; there are: a, b, c"),
        (lambda v: v.at(2), "directions of 3 names; take one first"),
        (lambda v: v["a"].at(3), "no layer 3; there are: 0, 2, 5, 7"),
        (lambda v: v["a"].at(2, 0), "no position 0; there are: -2, -1"),
        (lambda v: v["a"].at(2) + v["a"].at(5), "different layer .2 and 5. do not combine"),
        (lambda v: v.project_out(v), "takes the directions of one name"),
        (
            lambda v: v + some(source=dataclasses.replace(SOURCE, centred=True)),
            "their writing weights .raw and centred. differ",
        ),
        (lambda v: v + some(layers=(0, 1, 2, 3)), "layers, positions, site and width"),
        (lambda v: some(count=2, directions=torch.ones(3, 4, 2, 16)), "do not fit 2 names"),
        (lambda v: rl.mean([]), "no mean of no directions"),
    ],
)
def test_what_does_not_fit_is_refused(call, sentence: str) -> None:
    with pytest.raises(rl.InputError, match=sentence):
        call(some())


def test_near_roles_are_offered() -> None:
    vectors = some(count=2, directions=torch.ones(2, 4, 2, 16))
    named = dataclasses.replace(vectors, names=("lawyer", "doctor"))
    with pytest.raises(rl.InputError, match="no role 'lawyr'; did you mean 'lawyer'?"):
        named["lawyr"]


def test_cosines_and_relative_norms() -> None:
    vectors = some(2)
    result = vectors.cosines(5, -2)
    for i, j in itertools.product(range(3), range(3)):
        a, b = vectors["abc"[i]].at(5, -2), vectors["abc"[j]].at(5, -2)
        assert float(result[i, j]) == pytest.approx(a.cosine(b), abs=1e-6)
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
    running.add(x[:1], torch.tensor([0]))
    with pytest.raises(rl.InputError, match="and 1 more than once; add every prompt once"):
        running.sums  # noqa: B018
    missing = WeightedSums(weights)
    missing.add(x[1:], torch.arange(1, prompts))
    with pytest.raises(rl.InputError, match=f"1 of {prompts} prompts were not added"):
        missing.sums  # noqa: B018


def test_concatenated_vectors_keep_each_direction() -> None:
    a, b = some(0, count=2), some(1, count=2, named="cd", prompts={"c": (4, "22")})
    both = rl.concat(a, b, some(2, count=1, named="e", contrast="another"))
    assert both.names == ("a", "b", "c", "d", "e")
    assert torch.equal(both["d"].at(5, -2).vector, b.directions[1, 2, 0])
    assert torch.equal(both["a"].at(5, -2).vector, a.directions[0, 2, 0])
    assert both.prompts == {"base": (10, "00"), "a": (3, "11"), "c": (4, "22")}
    assert both.contrast == "role prompts - base prompts; another"
    assert torch.equal(both.resid_norm, a.resid_norm)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "the name 'a' comes 2 times; take each name once, or rename"),
        ({"layers": (0, 1, 2, 3)}, "layers, positions, site and width"),
        ({"source": dataclasses.replace(SOURCE, weights="78")}, "their models .* differ"),
        (
            {"named": "def", "prompts": {"base": (10, "01")}},
            "'base' stands for different prompts .*10, '00'.* and .*10, '01'",
        ),
    ],
)
def test_what_cannot_be_put_together_is_refused(changes: dict, sentence: str) -> None:
    sourceless = some(count=1, named="x", source=None)
    for parts in ([some(), some(1, **changes)], [sourceless, some(), some(1, **changes)]):
        with pytest.raises(rl.InputError, match=sentence):
            rl.concat(*parts)
    with pytest.raises(rl.InputError, match="pass at least one"):
        rl.concat()
