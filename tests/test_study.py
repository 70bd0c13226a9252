import dataclasses
import json
import random

import pandas as pd
import pytest
import torch

import planted
import rolelens as rl
from rolelens import evidence
from rolelens.vectors.nulls import gaussian

ROLES = {"mathematician": "math", "lawyer": "law", "painter": "art"}
TEXT = "bcd fgh (1) jkl " * 30
OPTIONS = {"positions": [-2, -1], "layers": [1, 2, 3], "ablated": 20, "randoms": 2}


def planted_lens() -> rl.Lens:
    from transformer_lens.model_bridge import TransformerBridge

    import tiny

    return rl.Lens(
        TransformerBridge.boot_transformers(
            "planted", hf_model=planted.model(), tokenizer=tiny.tokenizer(), device="cpu"
        )
    )


@pytest.fixture(scope="module")
def lens() -> rl.Lens:
    return planted_lens()


@pytest.fixture(scope="module")
def roles() -> dict[str, list[str]]:
    return {role: planted.prompts(domain, 24) for role, domain in ROLES.items()}


@pytest.fixture(scope="module")
def vectors(lens: rl.Lens, roles) -> rl.RoleVectors:
    return rl.role_vectors(lens, roles, planted.prompts(None, 24))


@pytest.fixture(scope="module")
def bench() -> rl.Benchmark:
    return rl.load_benchmark([rl.Question(**row) for row in planted.questions(120)])


@pytest.fixture(scope="module")
def found(lens, roles, vectors, bench, tmp_path_factory) -> evidence.Study:
    base = planted.prompts(None, 24)
    return evidence.study(
        lens,
        vectors,
        bench,
        ROLES,
        nulls=rl.null_vectors(lens, roles, base, n=2),
        halves=rl.half_vectors(lens, roles, base),
        folder=tmp_path_factory.mktemp("study"),
        text=TEXT,
        **OPTIONS,
    )


def test_a_planted_effect_is_found_where_it_is(found: evidence.Study) -> None:
    table = found.table.set_index("role")
    assert (table["p_holm"] < 0.05).to_dict() == {
        "mathematician": True,
        "lawyer": False,
        "painter": False,
    }
    assert table.loc["mathematician", "gain"] > 0.2
    assert table.loc["mathematician", "interaction_p_holm"] < 0.05
    assert (table["questions"] == 60).all()
    assert found.verdicts[0].startswith("mathematician: helps, +")
    assert "and more than elsewhere" in found.verdicts[0]
    assert "lawyer: nothing beyond chance" in found.verdicts[1]
    claimed = found.transfer[found.transfer["p_holm"] < 0.05]
    assert set(zip(claimed["role"], claimed["domain"], strict=True)) == {("mathematician", "math")}


def test_nulls_are_searched_likewise_and_rank_lower(found: evidence.Study) -> None:
    own = found.chosen.set_index("role").loc["mathematician"]
    assert own["floor"] == pytest.approx(1 / 7)  # 3 kinds, 2 of each
    assert own["rank"] == own["floor"]
    imitated = found.chosen["role"].str.contains(" ~ ")
    assert imitated.sum() == 18
    assert found.chosen.loc[imitated, "rank"].isna().all()
    assert own["strength"] > 0
    assert own["split_half"] > 0.9  # the mark is in every prompt
    assert found.chosen.loc[imitated, "split_half"].isna().all()


def test_nulls_are_tried_in_the_very_cells_of_the_roles(
    found: evidence.Study, lens, vectors, roles, bench
) -> None:
    nulls = rl.null_vectors(lens, roles, planted.prompts(None, 24), n=2)
    for role, domain in ROLES.items():
        cell = found.chosen.set_index("role").loc[role]
        asked = set(found.answers[found.answers["domain"] == domain]["question"])
        held_out = [q for q in bench if q.id in asked]
        before = rl.evaluate(lens, held_out).correct.double().mean()
        where = int(cell["layer"]), int(cell["position"])
        norm = vectors.direction(role, *where).vector.double().norm()
        gains = []
        for null in nulls.roles:
            if null.endswith(f" ~ {role}"):
                noise = nulls.direction(null, *where)
                alpha = cell["alpha"] * norm / noise.vector.double().norm()
                after = rl.evaluate(lens, held_out, hooks=rl.add(noise, float(alpha)))
                gains.append(float(after.correct.double().mean() - before))
        assert len(gains) == 6
        row = found.table.set_index("role").loc[role]
        assert row["null_low"] == pytest.approx(min(gains))
        assert row["null_high"] == pytest.approx(max(gains))
        sign = 1 if row["gain"] >= 0 else -1
        as_much = sum(sign * gain >= sign * row["gain"] for gain in gains)
        assert row["null_rank"] == pytest.approx((1 + as_much) / 7)
    assert "so does a null" not in found.verdicts[0]
    assert ", nulls in the same cell " in found.verdicts[0]


def test_a_domain_s_nulls_serve_all_of_its_roles_at_equal_strength(lens, vectors, bench) -> None:
    own = vectors[["mathematician", "lawyer"]]
    where = {"mathematician": "math", "lawyer": "math"}  # of which one has nulls
    noise = gaussian(vectors["mathematician"], n=2)
    longer = dataclasses.replace(noise, directions=5 * noise.directions)
    columns = ["null_low", "null_high", "null_rank"]
    options = OPTIONS | {"ablated": 0}
    first, second = (
        evidence.study(lens, own, bench, where, nulls=nulls, **options).table
        for nulls in (noise, longer)
    )
    assert first[columns].notna().all(axis=None)
    pd.testing.assert_frame_equal(first[columns], second[columns])


def test_reliability_and_what_is_shared_are_told_of_the_chosen_cells(
    found: evidence.Study, lens, vectors, roles
) -> None:
    halves = rl.half_vectors(lens, roles, planted.prompts(None, 24))
    for role in ROLES:
        row = found.chosen.set_index("role").loc[role]
        i, j = vectors.layers.index(row["layer"]), vectors.positions.index(row["position"])
        d = vectors.directions[:, i, j].double()
        n = vectors.roles.index(role)
        shared = torch.nn.functional.cosine_similarity(d[n], d.mean(0), dim=0)
        assert row["shared"] == pytest.approx(float(shared), abs=1e-6)
        pair = []
        for half in halves:
            own = half.directions[:, i, j].double()
            unit = own.mean(0) / own.mean(0).norm()
            pair.append((own[n], own[n] - (own[n] @ unit) * unit))
        for name, (a, b) in zip(
            ("split_half", "split_half_own"), zip(*pair, strict=True), strict=True
        ):
            cosine = torch.nn.functional.cosine_similarity(a, b, dim=0)
            assert row[name] == pytest.approx(float(cosine), abs=1e-5)


def test_ablation_and_prompts_stand_beside(found: evidence.Study) -> None:
    table = found.table.set_index("role")
    # What is planted is a letter, whatever stands there.
    assert table.loc["mathematician", "permuted"] < 0.2 < table.loc["mathematician", "gain"]
    assert (table["perplexity"] > 0).all()
    assert set(found.ablation["role"]) == set(ROLES)
    assert found.ablation["random"].abs().max() < 0.3
    forms = found.prompted.groupby("form")["role"].agg(set)
    assert forms.to_dict() == {"system": set(ROLES), "prefix": set(ROLES)}
    assert set(found.given["role"]) == set(ROLES)


def test_a_study_is_saved_and_goes_on(lens, vectors, roles, bench, found, tmp_path) -> None:
    nulls = rl.null_vectors(lens, roles, planted.prompts(None, 24), n=2)
    arguments = {"nulls": nulls, "folder": tmp_path / "stores", **OPTIONS}
    first = evidence.study(lens, vectors, bench, ROLES, **arguments)
    again = evidence.study(lens, vectors, bench, ROLES, **arguments)
    pd.testing.assert_frame_equal(first.table, again.table)
    without = found.table.drop(columns="perplexity")
    pd.testing.assert_frame_equal(first.table, without)
    folder = again.save(tmp_path / "out")
    assert len(pd.read_csv(folder / "answers.csv")) == 3 * 180
    assert (folder / "verdicts.txt").read_text().count("\n") == 3
    written = json.loads((folder / "study.json").read_text())
    assert written["verdicts"] == again.verdicts
    assert written["headroom"]["math"]["questions"] == 120
    assert [row["gain"] for row in written["table"]] == again.table["gain"].tolist()


def test_every_fold_is_asked_once(lens, vectors, bench) -> None:
    found = evidence.study(lens, vectors, bench, ROLES, folds=3, **(OPTIONS | {"ablated": 0}))
    assert (found.table["questions"] == 120).all()
    assert len(found.chosen) == 9
    assert found.table.set_index("role").loc["mathematician", "p_holm"] < 0.05
    assert found.ablation.empty
    assert "null_high" not in found.table  # none were given


def shuffled(bench: rl.Benchmark, seed: int) -> rl.Benchmark:
    rng = random.Random(seed)
    return rl.load_benchmark(
        [rl.Question(q.id, q.text, q.options, rng.randrange(4), q.domain) for q in bench]
    )


def test_at_chance_nothing_is_searched(lens, vectors, bench) -> None:
    found = evidence.study(lens, vectors, shuffled(bench, 0), ROLES)
    assert found.table.empty
    assert all("at chance" in line for line in found.verdicts)
    assert len(found.verdicts) == 3


def test_shuffled_labels_give_few_false_positives(lens, vectors) -> None:
    """Each role has questions of its own, so that the tests of one study are independent."""
    small = rl.load_benchmark([rl.Question(**row) for row in planted.questions(60)])
    options = {"positions": [-1], "layers": [2], "ablated": 0, "anyway": True}
    p = []
    for seed in range(8):
        labels = shuffled(small, seed)
        p += evidence.study(lens, vectors, labels, ROLES, seed=seed, **options).table["p"].tolist()
    assert sum(value < 0.05 for value in p) <= 4, p  # of 24; more have a probability of 0.006


def test_bad_roles_and_nulls_are_refused(lens, vectors, bench) -> None:
    with pytest.raises(rl.InputError, match="'painter' has no domain"):
        evidence.study(lens, vectors, bench, {"mathematician": "math", "lawyer": "law"})
    with pytest.raises(rl.InputError, match="'music', and 'own questions' asks about art, law, ma"):
        evidence.study(lens, vectors, bench, ROLES | {"painter": "music"})
    halves = vectors["lawyer"], vectors["lawyer"]
    with pytest.raises(rl.InputError, match="the halves are not of these vectors"):
        evidence.study(lens, vectors, bench, ROLES, halves=halves)
    with pytest.raises(rl.InputError, match="text is ''; perplexity needs a longer text"):
        evidence.study(lens, vectors, bench, ROLES, text="")
    with pytest.raises(rl.InputError, match="randoms is -1"):
        evidence.study(lens, vectors, bench, ROLES, randoms=-1)
    with pytest.raises(rl.InputError, match="null 'lawyer' imitates none of the roles"):
        evidence.study(lens, vectors["painter"], bench, ROLES, nulls=vectors["lawyer"])
