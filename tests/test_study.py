import dataclasses
import json
import random

import pandas as pd
import pytest
import torch

import planted
import rolelens as rl
from rolelens.tasks import Questions, letter_prompt
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
def vectors(lens: rl.Lens, roles) -> rl.Directions:
    return rl.role_vectors(lens, roles, planted.prompts(None, 24))


@pytest.fixture(scope="module")
def bench() -> Questions:
    return rl.load_task([rl.Question(**row) for row in planted.questions(120)])


@pytest.fixture(scope="module")
def arguments(lens, roles, vectors, bench, tmp_path_factory) -> dict:
    base = planted.prompts(None, 24)
    return {
        "vectors": vectors,
        "task": bench,
        "domains": ROLES,
        "nulls": rl.null_vectors(lens, roles, base, n=2),
        "halves": rl.half_vectors(lens, roles, base),
        "folder": tmp_path_factory.mktemp("study"),
        "text": TEXT,
        **OPTIONS,
    }


@pytest.fixture(scope="module")
def result(lens, arguments) -> rl.Study:
    return rl.study(lens, **arguments)


def test_a_planted_effect_is_found_where_it_is(result: rl.Study) -> None:
    table = result.table().set_index("name")
    assert (table["p_holm"] < 0.05).to_dict() == {
        "mathematician": True,
        "lawyer": False,
        "painter": False,
    }
    assert table.loc["mathematician", "gain"] > 0.2
    assert table.loc["mathematician", "interaction_p_holm"] < 0.05
    assert (table["items"] == 60).all()
    assert result.verdicts[0].startswith("mathematician: helps, +")
    assert "and more than elsewhere" in result.verdicts[0]
    assert "lawyer: nothing beyond chance" in result.verdicts[1]
    claimed = result.table("transfer")[result.table("transfer")["p_holm"] < 0.05]
    assert set(zip(claimed["name"], claimed["domain"], strict=True)) == {("mathematician", "math")}


def test_nulls_are_searched_likewise_and_rank_lower(result: rl.Study) -> None:
    row = result.table("chosen").set_index("name").loc["mathematician"]
    assert row["floor"] == pytest.approx(1 / 7)  # 3 kinds, 2 of each
    assert row["rank"] == row["floor"]
    imitated = result.table("chosen")["name"].str.contains(" ~ ")
    assert imitated.sum() == 18
    assert result.table("chosen").loc[imitated, "rank"].isna().all()
    assert row["strength"] > 0
    assert row["split_half"] > 0.9  # the mark is in every prompt
    assert result.table("chosen").loc[imitated, "split_half"].isna().all()


def test_nulls_are_tried_in_the_very_cells_of_the_roles(
    result: rl.Study, lens, vectors, roles, bench
) -> None:
    nulls = rl.null_vectors(lens, roles, planted.prompts(None, 24), n=2)
    for role, domain in ROLES.items():
        cell = result.table("chosen").set_index("name").loc[role]
        asked = set(result.table("answers")[result.table("answers")["domain"] == domain]["item"])
        held_out = [q for q in bench if q.id in asked]
        before = rl.evaluate(lens, held_out).correct.double().mean()
        where = int(cell["layer"]), int(cell["position"])
        norm = vectors.direction(role, *where).vector.double().norm()
        gains = []
        for null in nulls.names:
            if null.endswith(f" ~ {role}"):
                noise = nulls.direction(null, *where)
                alpha = cell["alpha"] * norm / noise.vector.double().norm()
                after = rl.evaluate(lens, held_out, hooks=rl.add(noise, float(alpha)))
                gains.append(float(after.correct.double().mean() - before))
        assert len(gains) == 6
        row = result.table().set_index("name").loc[role]
        assert row["null_low"] == pytest.approx(min(gains))
        assert row["null_high"] == pytest.approx(max(gains))
        sign = 1 if row["gain"] >= 0 else -1
        as_much = sum(sign * gain >= sign * row["gain"] for gain in gains)
        assert row["null_rank"] == pytest.approx((1 + as_much) / 7)
    assert "so does a null" not in result.verdicts[0]
    assert ", nulls in the same cell " in result.verdicts[0]


def test_a_domain_s_nulls_serve_all_of_its_roles_at_equal_strength(lens, vectors, bench) -> None:
    both = vectors[["mathematician", "lawyer"]]
    where = {"mathematician": "math", "lawyer": "math"}  # of which one has nulls
    noise = gaussian(vectors["mathematician"], n=2)
    longer = dataclasses.replace(noise, directions=5 * noise.directions)
    columns = ["null_low", "null_high", "null_rank"]
    options = OPTIONS | {"ablated": 0, "prompted": False}
    first, second = (
        rl.study(lens, both, bench, where, nulls=nulls, **options).table()
        for nulls in (noise, longer)
    )
    assert first[columns].notna().all(axis=None)
    pd.testing.assert_frame_equal(first[columns], second[columns])


def test_reliability_and_what_is_shared_are_told_of_the_chosen_cells(
    result: rl.Study, lens, vectors, roles
) -> None:
    halves = rl.half_vectors(lens, roles, planted.prompts(None, 24))
    for role in ROLES:
        row = result.table("chosen").set_index("name").loc[role]
        i, j = vectors.layers.index(row["layer"]), vectors.positions.index(row["position"])
        d = vectors.directions[:, i, j].double()
        n = vectors.names.index(role)
        shared = torch.nn.functional.cosine_similarity(d[n], d.mean(0), dim=0)
        assert row["shared"] == pytest.approx(float(shared), abs=1e-6)
        pair = []
        for half in halves:
            d = half.directions[:, i, j].double()
            unit = d.mean(0) / d.mean(0).norm()
            pair.append((d[n], d[n] - (d[n] @ unit) * unit))
        for name, (a, b) in zip(
            ("split_half", "split_half_rest"), zip(*pair, strict=True), strict=True
        ):
            cosine = torch.nn.functional.cosine_similarity(a, b, dim=0)
            assert row[name] == pytest.approx(float(cosine), abs=1e-5)


def test_ablation_and_prompts_stand_beside(result: rl.Study) -> None:
    table = result.table().set_index("name")
    # What is planted is a letter, whatever stands there.
    assert table.loc["mathematician", "permuted"] < 0.2 < table.loc["mathematician", "gain"]
    assert (table["perplexity"] > 0).all()
    assert set(result.table("ablation")["name"]) == set(ROLES)
    assert result.table("ablation")["random"].abs().max() < 0.3
    forms = result.table("prompted").groupby("form")["name"].agg(set)
    assert forms.to_dict() == {"system": set(ROLES), "prefix": set(ROLES)}
    assert set(result.table("given")["name"]) == set(ROLES)


def test_a_study_is_saved_and_goes_on(lens, arguments, result, tmp_path) -> None:
    pieces = {store: rl.sweeps.status(store).done for store in arguments["folder"].glob("*.db")}
    again = rl.study(lens, **arguments)
    pd.testing.assert_frame_equal(again.table(), result.table())
    for which in ("chosen", "answers", "nulls", "ablation"):
        pd.testing.assert_frame_equal(again.table(which), result.table(which))
    assert pieces == {store: rl.sweeps.status(store).done for store in pieces}
    folder = again.save(tmp_path / "out")
    assert len(pd.read_csv(folder / "answers.csv")) == 3 * 180
    assert (folder / "verdicts.txt").read_text().count("\n") == 3
    written = json.loads((folder / "study.json").read_text())
    assert written["verdicts"] == again.verdicts
    assert written["headroom"]["math"]["items"] == 120
    assert [row["gain"] for row in written["effects"]] == [effect.gain for effect in again.effects]


def test_every_fold_is_asked_once(lens, vectors, bench) -> None:
    options = {"positions": [-1], "layers": [1, 2], "ablated": 0, "prompted": False}
    result = rl.study(lens, vectors, bench, ROLES, folds=3, **options)
    assert (result.table()["items"] == 120).all()
    assert len(result.table("chosen")) == 9
    assert result.table().set_index("name").loc["mathematician", "p_holm"] < 0.05
    assert result.table("ablation").empty
    assert "null_high" not in result.table()  # none were given


def shuffled(bench: Questions, seed: int) -> Questions:
    rng = random.Random(seed)
    return rl.load_task(
        [rl.Question(q.id, q.text, q.options, rng.randrange(4), q.domain) for q in bench]
    )


def test_at_chance_nothing_is_searched(lens, vectors, bench) -> None:
    result = rl.study(lens, vectors, shuffled(bench, 0), ROLES)
    assert result.table().empty
    assert all("at chance" in line for line in result.verdicts)
    assert len(result.verdicts) == 3


def test_shuffled_labels_give_few_false_positives(lens, vectors) -> None:
    """Each role has questions of its own, so that the tests of one study are independent."""
    small = rl.load_task([rl.Question(**row) for row in planted.questions(60)])
    options = {"positions": [-1], "layers": [2], "ablated": 0, "anyway": True, "prompted": False}
    p = []
    for seed in range(8):
        labels = shuffled(small, seed)
        p += rl.study(lens, vectors, labels, ROLES, seed=seed, **options).table()["p"].tolist()
    assert sum(value < 0.05 for value in p) <= 4, p  # of 24; more have a probability of 0.006


def test_bad_roles_and_nulls_are_refused(lens, vectors, unchecked) -> None:
    bench = rl.load_task([rl.Question(**row) for row in planted.questions(12)])
    with pytest.raises(rl.InputError, match="'painter' has no domain"):
        rl.study(lens, vectors, bench, {"mathematician": "math", "lawyer": "law"})
    with pytest.raises(rl.InputError, match="'music', and 'own questions' asks about art, law, ma"):
        rl.study(lens, vectors, bench, ROLES | {"painter": "music"})
    halves = vectors["lawyer"], vectors["lawyer"]
    with pytest.raises(rl.InputError, match="the halves are not of these vectors"):
        rl.study(lens, vectors, bench, ROLES, halves=halves)
    with pytest.raises(rl.InputError, match="text is ''; perplexity needs a longer text"):
        rl.study(lens, vectors, bench, ROLES, text="")
    with pytest.raises(rl.InputError, match="randoms is -1"):
        rl.study(lens, vectors, bench, ROLES, randoms=-1)
    foreign = gaussian(vectors["lawyer"])
    with pytest.raises(rl.InputError, match="the null 'gaussian 0 ~ lawyer' imitates none"):
        rl.study(lens, vectors["painter"], bench, ROLES, nulls=foreign)
    with pytest.raises(rl.InputError, match="there are nulls and nothing else"):
        rl.study(lens, foreign, bench, ROLES)
    with pytest.raises(rl.InputError, match="tokens is 'prompt', which a text without a prompt"):
        rl.study(lens, vectors, bench, ROLES, text=TEXT, tokens="prompt")
    with pytest.raises(rl.InputError, match="choose is 'luck'"):
        rl.study(lens, vectors, bench, ROLES, choose="luck")
    with pytest.raises(rl.InputError, match="by is 'luck'; it has to be one of accuracy, margin"):
        rl.study(lens, vectors, bench, ROLES, by="luck")


def test_what_a_study_hands_on_is_what_was_tried(lens, vectors, bench, tmp_path) -> None:
    """Tokens included: the text's perplexity is that of the steering, and so is the best cell's."""
    options = OPTIONS | {"ablated": 0, "prompted": False, "tokens": "last", "text": TEXT}
    found = rl.study(lens, vectors["mathematician"], bench, **options)
    cell = found.best("mathematician")
    assert cell.steering.selections == ("last",)
    answers = found.table("answers")
    held_out = [q for q in bench if q.id in set(answers["item"])]
    again = rl.evaluate(lens, held_out, cell.steering)
    assert again.correct.double().tolist() == answers["after"].tolist()
    assert not found.table("transfer").empty
    (effect,) = found.effects
    assert effect.domain is None
    step = cell.steering.steps[0]
    everywhere = rl.add(step.direction, step.alpha)
    plain, steered = (rl.perplexity(lens, TEXT, h).value for h in ([], everywhere))
    assert effect.perplexity == pytest.approx(steered / plain)
    loaded = rl.load_study(found.save(tmp_path / "study"))
    assert loaded.verdicts == found.verdicts
    assert loaded.effects == found.effects
    assert loaded.best("mathematician").steering == cell.steering
    for name in ("chosen", "transfer", "answers"):
        pd.testing.assert_frame_equal(loaded.table(name), found.table(name), check_dtype=False)
    with pytest.raises(rl.InputError, match="no study in"):
        rl.load_study(tmp_path)


def right_letter(item: rl.Question, logprobs: torch.Tensor) -> torch.Tensor:
    """The log-probability of the right letter."""
    return logprobs[item.answer]


def test_a_metric_of_one_s_own_goes_through_a_study(lens, vectors, bench) -> None:
    options = OPTIONS | {"ablated": 0, "prompted": False}
    found = rl.study(lens, vectors, bench, ROLES, metric=right_letter, **options)
    assert found.measure == "right_letter"
    effect = found.effects[0]
    assert effect.is_shown
    assert effect.verdict.startswith("mathematician: raises it, ")
    assert "in right_letter on 60 held-out items of math" in effect.verdict
    # The same by a naive loop.
    answers = found.table("answers")
    asked = answers[(answers["name"] == "mathematician") & (answers["domain"] == "math")]
    gains = []
    for question in [q for q in bench if q.id in set(asked["item"])]:
        before, after = (
            rl.evaluate(lens, [question], hooks).logprobs[0, question.answer]
            for hooks in ([], found.best("mathematician").steering)
        )
        gains.append(float(after - before))
    assert effect.gain == pytest.approx(sum(gains) / len(gains), abs=1e-3)


def test_a_study_of_generated_answers(lens, vectors, bench, tmp_path) -> None:
    """What a trial of directions was: a layer and strength chosen, nulls in the same cell."""
    knowing = [q for q in bench if q.domain == "math"]
    problems = rl.load_task(
        [rl.Problem(q.id, f"{letter_prompt(q)}", "ABCD"[q.answer]) for q in knowing],
        template="{question}",
    )
    both = rl.concat(vectors[["mathematician", "painter"]], gaussian(vectors["mathematician"], n=3))
    options = {
        "layers": [1, 2],
        "positions": [-1],
        "alphas": [0.5, 1.0],
        "max_new_tokens": 1,
        "verifier": begins_right,
        "folder": tmp_path,
    }
    found = rl.study(lens, both, problems, **options)
    effect, other = found.effects
    assert effect.is_shown
    assert " helps, +" in found.verdicts[0]
    assert not other.is_shown
    held_out = set(found.table("answers")["item"])
    prompts = [problems.prompt(p) for p in problems if p.id in held_out]
    keys = [p.answer for p in problems if p.id in held_out]

    def by_hand(name: str) -> float:
        cell = found.best("mathematician")
        d = both.direction(name, cell.layer)
        texts = lens.generate(prompts, hooks=rl.add(d, cell.alpha), max_new_tokens=1)
        right = [text.startswith(key) for text, key in zip(texts, keys, strict=True)]
        return sum(right) / len(right)

    assert by_hand("mathematician") == pytest.approx(effect.after)
    gains = [by_hand(f"gaussian {k} ~ mathematician") - effect.before for k in range(3)]
    assert (effect.null_low, effect.null_high) == pytest.approx((min(gains), max(gains)))
    assert "so does a null" not in found.verdicts[0]
    again = rl.study(lens, both, problems, **options)  # from the stores
    assert again.verdicts == found.verdicts
    never = rl.study(lens, both, problems, **options | {"verifier": never_right, "folder": None})
    assert never.verdicts == [f"own problems: {never.headroom['own problems']}."]
    assert "near the floor" in never.verdicts[0]


def begins_right(problem: rl.Problem, text: str) -> bool:
    return text.startswith(problem.answer)


def never_right(problem: rl.Problem, text: str) -> bool:
    return False
