"""Vectors over answers, and the space that roles span."""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import oracles
import rolelens as rl
import tiny
from conftest import Variant
from rolelens.personas import AnswerVectors, Asked, PersonaSpace, RubricJudge, SelfJudge, answered
from rolelens.personas.answering import prompt_of

QUESTIONS = [*tiny.PROMPTS[:3], tiny.OTHERS[0]]
TRAIT = rl.Trait("loud", ("Be loud.", "SHOUT."), ("Be quiet.", "Whisper."), tuple(QUESTIONS))
ROLES = {"cook": "You cook.", "sailor": "You sail.", "poet": "You rhyme."}


def chat(system: str, question: str) -> list[int]:
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    return tiny.tokenizer().apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )


def mean_over_answer(variant: Variant, system: str, question: str, answer: str) -> torch.Tensor:
    """Of every layer, by a plain model: the mean over the tokens of an answer."""
    prompt = chat(system, question)
    own = tiny.tokenizer()(answer, add_special_tokens=False).input_ids
    states = oracles.hidden(tiny.reference(variant.architecture), [*prompt, *own])
    return states[:, len(prompt) :].mean(dim=1).double()


def test_a_trait_is_the_difference_of_answers(lens: rl.Lens, variant: Variant) -> None:
    if variant.architecture == "Gemma3":  # which ends at once, as its weights are drawn
        with pytest.raises(rl.InputError, match="no answer is kept"):
            rl.trait_vectors(lens, TRAIT, max_new_tokens=5)
        return
    made = rl.trait_vectors(lens, TRAIT, max_new_tokens=5)
    table = made.answers
    assert len(table) == 8
    sides = {}
    for side, texts in (("positive", TRAIT.positive), ("negative", TRAIT.negative)):
        rows = table[table["side"] == side]
        assert rows["system"].tolist() == [texts[n % 2] for n in range(4)]
        states = [
            mean_over_answer(variant, row.system, row.question, row.answer)
            for row in rows.itertuples()
            if row.kept
        ]
        sides[side] = torch.stack(states).mean(dim=0)
    expected = sides["positive"] - sides["negative"]
    assert made.vectors.steerability().empty  # four answers of a side are too few
    found = made.vectors.directions[0, :, 0].double()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert made.vectors.kind == "trait"
    assert made.vectors.positions == (None,)


class Longer:
    """Gives an answer 100 where it has an even number of letters, and 0 else."""

    def score(self, traits, questions, answers) -> list[float]:
        return [100.0 * (len(answer) % 2 == 0) for answer in answers]


def test_a_judge_keeps_what_shows_the_trait_and_what_does_not(llama: rl.Lens) -> None:
    questions = [f"What is {n}?" for n in range(16)]
    made = rl.trait_vectors(llama, TRAIT, questions, judge=Longer(), max_new_tokens=4)
    rows = made.answers[made.answers["answer"] != ""]
    even = rows["answer"].str.len() % 2 == 0
    assert (rows["kept"] == np.where(rows["side"] == "positive", even, ~even)).all()
    assert 0 < made.answers["kept"].sum() < len(made.answers)


class Said:
    """An endpoint that answers what it is told to."""

    name = "said"

    def __init__(self, *texts: str) -> None:
        self.texts, self.asked = list(texts), []

    def answer(self, prompt, *, system=None, max_tokens, temperature, seed) -> str:
        self.asked.append(prompt)
        return self.texts.pop(0)


def test_a_rubric_is_asked_and_its_number_read() -> None:
    trait = dataclasses.replace(TRAIT, rubric="Q {question} A {answer}, loud?")
    endpoint = Said("80", "Score: 12.5", "REFUSAL", "400")
    judge = RubricJudge(endpoint)
    found = judge.score([trait] * 4, ["q"] * 4, ["a", "{question}", "c", "d"])
    assert found[:2] == [80.0, 12.5]
    assert math.isnan(found[2])
    assert math.isnan(found[3])
    assert endpoint.asked[1] == "Q q A {question}, loud?"
    assert RubricJudge(Said("3"), highest=3.0).score([trait], ["q"], ["a"]) == [100.0]
    with pytest.raises(rl.InputError, match="has no rubric"):
        RubricJudge(Said("3")).score([TRAIT], ["q"], ["a"])


def test_the_model_judges_by_yes_and_no(lens: rl.Lens, variant: Variant) -> None:
    judge = SelfJudge(lens, "Is {answer} {trait}?")
    (found,) = judge.score([TRAIT], ["Who?"], ["it"])
    tokenizer = tiny.tokenizer()
    ids = oracles.chat_ids(tokenizer, "Is it loud?")
    logits = oracles.logits(tiny.reference(variant.architecture), ids)[-1]
    yes, no = (tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("Yes", "No"))
    assert found == pytest.approx(100 * float(torch.sigmoid(logits[yes] - logits[no])), abs=0.05)


def test_roles_are_answers_minus_those_of_the_default(lens: rl.Lens, variant: Variant) -> None:
    if variant.architecture == "Gemma3":
        pytest.skip("its answers are empty, as its weights are drawn")
    made = rl.role_answers(lens, ROLES, QUESTIONS, max_new_tokens=4)
    table = made.answers
    means = {}
    for name in ("default", *ROLES):
        rows = table[(table["name"] == name) & table["kept"]]
        states = [
            mean_over_answer(variant, row.system, row.question, row.answer)
            for row in rows.itertuples()
        ]
        means[name] = torch.stack(states).mean(dim=0)
    for n, name in enumerate(ROLES):
        expected = means[name] - means["default"]
        found = made.vectors.directions[n, :, 0].double()
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_answers_are_kept_and_gone_on_with(llama: rl.Lens, tmp_path: Path) -> None:
    store = tmp_path / "answers.jsonl"
    asked = [Asked("a", "positive", "Be brief.", q) for q in QUESTIONS]
    whole = answered(llama, asked, max_new_tokens=4)
    assert answered(llama, asked[:2], max_new_tokens=4, store=store) == whole[:2]
    with store.open("a", encoding="utf-8") as file:
        file.write('{"name": "a", "side": "posi')  # as after a crash
    size = len(store.read_text("utf-8").split("\n"))
    assert answered(llama, asked, max_new_tokens=4, store=store) == whole
    lines = store.read_text("utf-8").strip().split("\n")
    assert len(lines) == 1 + len(asked)
    assert size == 4
    before = store.read_bytes()
    assert answered(llama, asked, max_new_tokens=4, store=store) == whole
    assert store.read_bytes() == before
    with pytest.raises(rl.InputError, match="max_new_tokens 4, and this call has 5"):
        answered(llama, asked, max_new_tokens=5, store=store)
    other = tmp_path / "other.jsonl"
    other.write_text("[]\n", "utf-8")
    with pytest.raises(rl.InputError, match="does not hold answers"):
        answered(llama, asked, max_new_tokens=4, store=other)


def test_sampled_answers_depend_on_what_is_asked_alone(llama: rl.Lens) -> None:
    asked = [Asked("a", "positive", "Be brief.", q) for q in QUESTIONS]
    options = {"max_new_tokens": 4, "temperature": 1.0}
    whole = answered(llama, asked, **options)
    assert answered(llama, asked[::-1], **options) == whole[::-1]
    assert answered(llama, asked[2:3], **options) == whole[2:3]


def space(points: torch.Tensor, noise: float = 0.0, layer: int = 1) -> PersonaSpace:
    """A space of given points, whose halves differ by noise."""
    drawn = torch.Generator().manual_seed(1)
    names = tuple(f"role {n}" for n in range(len(points)))

    def directions(x: torch.Tensor) -> rl.Directions:
        kwargs = {"names": names, "layers": (layer,), "positions": (None,)}
        return rl.Directions(
            x.float()[:, None, None], resid_norm=torch.full((1, 1), 10.0), **kwargs
        )

    wiggle = noise * torch.randn(points.shape, generator=drawn)
    return PersonaSpace(
        directions(points), (directions(points + wiggle), directions(points - wiggle))
    )


def test_the_axis_leads_from_the_roles_to_the_default() -> None:
    drawn = torch.Generator().manual_seed(0)
    points = 0.5 * torch.randn(12, 16, generator=drawn)
    points[:, 0] -= 4.0
    made = space(points)
    axis = made.axis(1)
    torch.testing.assert_close(axis.vector, -points.mean(dim=0))
    table = made.map(1)
    assert table["axis"][0] == 0
    assert (table["axis"][1:] < 0).all()
    row = made.axis_table().iloc[0]
    assert row["norm"] == pytest.approx(float(points.mean(dim=0).norm()) / 10, rel=1e-4)
    assert row["norm_p"] == pytest.approx(1 / 13)


def test_a_role_among_roles_is_no_axis() -> None:
    """Where the default is one point of a cloud like the others, its axis is like theirs."""
    ranks = []
    for seed in range(20):
        drawn = torch.Generator().manual_seed(seed)
        cloud = torch.randn(13, 16, generator=drawn)
        ranks.append(space(cloud[1:] - cloud[0]).axis_table()["norm_p"][0])
    assert min(ranks) < 0.5 < max(ranks)
    assert 0.3 < float(np.mean(ranks)) < 0.75


def test_the_stand_in_axes_are_those_of_a_loop() -> None:
    drawn = torch.Generator().manual_seed(3)
    points = torch.randn(6, 8, generator=drawn).double()
    made = space(points, noise=0.3)
    row = made.axis_table().iloc[0]
    whole = torch.cat([torch.zeros(1, 8).double(), points])
    norms, cosines = [], []
    for n in range(7):
        others = torch.cat([whole[:n], whole[n + 1 :]])
        axis = whole[n] - others.mean(dim=0)
        norms.append(float(axis.norm()))
        _, _, v = np.linalg.svd((others - others.mean(dim=0)).numpy())
        cosines.append(abs(float(axis.numpy() @ v[0])) / norms[-1])
    assert row["norm"] == pytest.approx(norms[0] / 10, rel=1e-4)
    assert row["norm_p"] == pytest.approx(sum(value >= norms[0] - 1e-6 for value in norms) / 7)
    assert row["component_cosine"] == pytest.approx(cosines[0], rel=1e-3)
    assert row["component_p"] == pytest.approx(
        sum(value >= cosines[0] - 1e-6 for value in cosines) / 7
    )


def test_components_of_a_plane_are_two_and_hold_out() -> None:
    drawn = torch.Generator().manual_seed(0)
    plane = torch.randn(2, 24, generator=drawn)
    points = 5 * torch.randn(30, 2, generator=drawn) @ plane
    table = space(points + 0.1 * torch.randn(30, 24, generator=drawn), noise=0.1).components(1, 4)
    assert table["explained"][:2].sum() > 0.95
    assert table["held_out"][:2].sum() > 0.95
    assert (table["explained"][:1] > table["chance"][:1]).all()
    assert (table["explained"][2:] < table["chance"][2:]).all()
    noise = space(torch.randn(30, 24, generator=drawn)).components(1, 4)
    assert (noise["explained"] < 1.3 * noise["chance"]).all()
    loop = np.linalg.svd((points - points.mean(dim=0)).numpy(), compute_uv=False) ** 2
    exact = space(points).components(1, 2)["explained"]
    np.testing.assert_allclose(exact, loop[:2] / loop.sum(), rtol=1e-3)


def test_a_map_groups_what_is_near() -> None:
    drawn = torch.Generator().manual_seed(0)
    centres = 5 * torch.randn(3, 16, generator=drawn)
    points = centres.repeat_interleave(4, dim=0) + 0.3 * torch.randn(12, 16, generator=drawn)
    table = space(points).map(1, clusters=3)
    roles = table[table["name"] != "default"]
    for n in range(3):
        part = roles.iloc[4 * n : 4 * n + 4]
        assert part["cluster"].nunique() == 1
        for row in part.itertuples():
            assert set(row.nearest.split(", ")) == set(part["name"]) - {row.name}
    assert roles["cluster"].nunique() == 3
    figure = rl.plots.persona_map(table)
    assert sum(len(trace.x) for trace in figure.data) == 13
    assert "along the assistant axis" in figure.data[0].hovertemplate
    told = re.findall(r"<title>[^<]*(role \d+|default)", rl.plots.svg(figure))  # as in a report
    assert sorted(told) == sorted(table["name"])


def test_others_are_placed_by_cosines() -> None:
    drawn = torch.Generator().manual_seed(0)
    points = torch.randn(5, 32, generator=drawn)
    made = space(points)
    others = rl.Directions(
        torch.stack([3 * points[2], torch.randn(32, generator=drawn)])[:, None, None],
        ("same", "random"),
        (1,),
        (None,),
        torch.ones(1, 1),
    )
    table = made.place(others, 1)
    assert table["nearest"][0] == "role 2"
    assert table["cosine"][0] == pytest.approx(1.0, abs=1e-5)
    assert table["inside"][0] > table["inside"][1]
    assert table["chance"].tolist() == [4 / 32] * 2


def test_a_space_is_saved_and_loaded(llama: rl.Lens, tmp_path: Path) -> None:
    made = rl.persona_space(rl.role_answers(llama, ROLES, QUESTIONS, max_new_tokens=3))
    again = PersonaSpace.load(made.save(tmp_path / "space.safetensors"))
    assert again.vectors.names == ("cook", "sailor", "poet")
    assert again.vectors.source == llama.source
    pd.testing.assert_frame_equal(again.axis_table([2, 3]), made.axis_table([2, 3]))
    pd.testing.assert_frame_equal(again.map(3, 2), made.map(3, 2))
    assert rl.add(again.axis(2), 1.0).check(llama.source, llama.n_layers) is None
    with pytest.raises(rl.InputError, match="does not hold a persona space"):
        PersonaSpace.load(made.vectors.save(tmp_path / "v.safetensors"))


def test_bad_personas_are_refused(llama: rl.Lens, unchecked: object) -> None:
    made: AnswerVectors = rl.trait_vectors(llama, TRAIT, max_new_tokens=3)
    silent = dataclasses.replace(TRAIT, questions=())
    for sentence, make in (
        ("are directions of traits", lambda: rl.persona_space(made)),
        ("has no negative system prompts", lambda: _traits(llama, negative=())),
        ("has no questions", lambda: rl.trait_vectors(llama, silent)),
        ("systems is 3, and 'loud' has 2", lambda: rl.trait_vectors(llama, TRAIT, systems=3)),
        ("no roles beside the default", lambda: rl.role_answers(llama, {}, QUESTIONS)),
        ("at least two", lambda: rl.role_answers(llama, ROLES, ["Who?"])),
        ("no layer 7", lambda: space(torch.randn(4, 8)).axis(7)),
    ):
        with pytest.raises(rl.InputError, match=sentence):
            make()


def _traits(lens: rl.Lens, **changes) -> None:
    rl.trait_vectors(lens, dataclasses.replace(TRAIT, **changes))


def test_vectors_over_answers_come_with_what_predicts_them(llama: rl.Lens) -> None:
    questions = [f"What is {n}?" for n in range(6)]
    made = rl.role_answers(llama, ROLES, questions, layers=[2], max_new_tokens=4)
    table = made.vectors.steerability()
    assert table["name"].tolist() == list(ROLES)
    kept = made.answers[made.answers["kept"]]
    states = {
        name: rl.activations(
            llama,
            [prompt_of(llama, Asked(*row[:4])) for row in rows.itertuples(index=False)],
            [2],
            "mean",
            answers=rows["answer"].tolist(),
        )[:, 0].double()
        for name, rows in kept.groupby("name")
    }
    each = states["cook"] - states["default"].mean(dim=0)
    rests = (each.sum(dim=0) - each) / (len(each) - 1)
    expected = torch.cosine_similarity(each, rests, dim=-1).mean()
    assert table["agreement"][0] == pytest.approx(float(expected), abs=1e-3)
