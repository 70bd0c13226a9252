"""Problems, rollouts and the directions made of them."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from transformer_lens.model_bridge import TransformerBridge

import oracles
import planted
import rolelens as rl
import tiny
from rolelens import forward, rollouts
from rolelens.patchscope import TokenIdentity
from rolelens.rollouts import Problem, Problems, Rollouts, contrast, contrast_pairs, final_number
from rolelens.vectors import nulls
from rolelens.vectors.estimators import DifferenceInMeans, GroupedMean


def problems(n: int = 5) -> Problems:
    made = tuple(Problem(f"p{k}", f"{text} {k}", str(k)) for k, text in enumerate(tiny.PROMPTS[:n]))
    return Problems("tiny", made, "{question}")


def odd(problem: Problem, text: str) -> bool:
    """A verifier that a random model meets now and then."""
    return len(text) % 2 == 1


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She makes 9 * 2 = $18 every day.\n#### 18", 18),
        ("The answer is 1,250.", 1250),
        ("The answer is $3.50, not 4.", 3.5),
        ("So 10-3 leaves 7", 7),
        ("10-3", 3),
        ("It falls to -4", -4),
        ("the answer is \\boxed{-12}", -12),
        ("Answer: 7 apples, out of 12", 7),
        ("The answer is clear: 5 + 6 = 11", 11),
        ("The answer is 9 * 2 = 18.", 18),
        ("The answer is 20 + 30 = 50\nfor 3 of them", 50),
        ("It costs $.50", 0.5),
        ("The answer is .5.", 0.5),
        ("The answer is unknown after 3 tries? no: the answer is none", 3),
        ("none at all", None),
    ],
)
def test_the_final_number(text: str, number: float | None) -> None:
    assert final_number(text) == number


def test_arithmetic_is_right_and_does_not_depend_on_how_many() -> None:
    few, many = rollouts.arithmetic(20), rollouts.arithmetic(200)
    assert many[:20] == few
    assert len({p.question for p in many}) == 200
    for p in many:
        numbers = [int(word.strip(",.")) for word in p.question.split() if word[0].isdigit()]
        found = int(p.answer)
        candidates = {
            "gets": lambda a, b: a + b,
            "gave": lambda a, b: a - b,
            "boxes": lambda a, b: a * b,
            "finds": lambda a, b, c: a + b - c,
            "bags": lambda a, b, c: a * b - c,
        }
        (own,) = [value for word, value in candidates.items() if f" {word} " in p.question]
        assert own(*numbers) == found >= 0


def test_gsm8k_files_are_read(tmp_path) -> None:
    row = {"question": "How many?", "answer": "2+2=<<2+2=4>>4 of them.\n#### 4"}
    for name, question in (("train", "What?"), ("test", "How many?"), ("test_socratic", "a")):
        text = json.dumps(row | {"question": question, "note": "\u2028"}, ensure_ascii=False)
        (tmp_path / f"{name}.jsonl").write_text(text + "\n\n", encoding="utf-8")
    found = rl.load_problems(tmp_path, shots=1)
    assert (found[0].question, found[0].answer) == ("How many?", "4")
    assert found[0].solution == "2+2=4 of them.\nThe answer is 4."
    said = found.prompt(found[0])
    assert said.count("How many?") == 1
    assert said.count("What?") == 1
    assert said.count("The answer is 4.") == 1
    with pytest.raises(rl.InputError, match="shots is 2; the training split has 1 solutions"):
        rl.load_problems(tmp_path, shots=2)
    with pytest.raises(rl.InputError, match="has no problems"):
        rl.load_problems(tmp_path, "train", shots=1)  # what is shown is not asked


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is not JSON"),
        ("[1]", "expected an object"),
        ('{"question": "a?"}', "an answer under 'answer'"),
        ('{"question": " ", "answer": "1"}', "line 1: problem 'own-00001' has an empty question"),
        ("", "has no problems"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path, line: str, message: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(rl.InputError, match=message):
        rl.load_problems(path)


def test_bad_sources_are_one_sentence(tmp_path) -> None:
    with pytest.raises(rl.InputError, match="name 'arithmetic', 'gsm8k', a JSONL file or a folder"):
        rl.load_problems(tmp_path / "nothing")
    (tmp_path / "latin.jsonl").write_bytes('{"question": "é"}'.encode("latin-1"))
    with pytest.raises(rl.InputError, match="is not UTF-8"):
        rl.load_problems(tmp_path / "latin.jsonl")
    with pytest.raises(rl.InputError, match="has 0 files test"):
        rl.load_problems(tmp_path)
    with pytest.raises(rl.InputError, match="no worked solutions"):
        rl.load_problems("arithmetic", shots=2)
    with pytest.raises(rl.InputError, match="share the id 'a'"):
        Problems("own", (Problem("a", "x", "1"), Problem("a", "y", "2")))


def test_a_split_keeps_every_problem_once() -> None:
    whole = Problems("own", rollouts.arithmetic(30))
    first, second = whole.split(0.4, seed=3)
    assert len(first) == 12
    assert sorted(p.id for p in [*first, *second]) == sorted(p.id for p in whole)
    assert whole.split(0.4, seed=4)[0] != first
    with pytest.raises(rl.InputError, match="both parts need some"):
        whole.split(1.0)


def test_rollouts_are_what_the_model_generates(llama: rl.Lens) -> None:
    asked = problems()
    hooks = [("blocks.1.hook_resid_pre", lambda x, hook: x * 1.1)]
    greedy = rl.roll_out(
        llama, asked, 1, temperature=0.0, max_new_tokens=6, verifier=odd, hooks=hooks
    )
    plain = llama.generate([p.question for p in asked], max_new_tokens=6, hooks=hooks)
    assert [own for (own,) in greedy.texts] == plain
    assert greedy.correct[:, 0].tolist() == [len(text) % 2 == 1 for text in plain]
    sampled = rl.roll_out(llama, asked, 4, max_new_tokens=6, verifier=odd)
    assert sampled.correct.shape == (5, 4)
    assert len({text for own in sampled.texts for text in own}) > 8
    assert sampled.texts == rl.roll_out(llama, asked, 4, max_new_tokens=6, verifier=odd).texts
    table = sampled.table()
    assert table["correct"].mean() == pytest.approx(sampled.pass_at_1)
    low, high = sampled.interval
    assert low <= sampled.pass_at_1 <= high


def test_a_file_goes_on_where_it_was_cut_off(llama: rl.Lens, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("rolelens.rollouts.sampling.PIECE", 4)
    path, options = tmp_path / "r.jsonl", {"max_new_tokens": 5, "verifier": odd}
    whole = rl.roll_out(llama, problems(), 2, **options)
    rl.roll_out(llama, problems(), 2, store=path, **options)
    content = path.read_bytes()
    for cut in (10, content.index(b"\n") + 1, content.rindex(b"\n", 0, -1) + 9):
        path.write_bytes(content[:cut])
        found = rl.roll_out(llama, problems(), 2, store=path, **options)
        assert found.texts == whole.texts
        assert path.read_bytes() == content
    path.write_bytes(content[: content.rindex(b"\n", 0, -1) + 1])
    monkeypatch.setattr("rolelens.rollouts.sampling.PIECE", 2)  # by another version
    other = rl.roll_out(llama, problems(), 2, store=path, **options)
    assert other.texts[:4] == whole.texts[:4]
    assert len(other.texts) == 5
    path.write_bytes(content)
    calls = []
    monkeypatch.setattr(forward, "decode", lambda *a, **k: calls.append(1))
    assert rl.roll_out(llama, problems(), 2, store=path, **options).texts == whole.texts
    assert not calls


def test_a_file_of_another_call_is_refused(llama: rl.Lens, tmp_path) -> None:
    path, options = tmp_path / "r.jsonl", {"max_new_tokens": 4, "verifier": odd, "n": 2}
    rl.roll_out(llama, problems(), store=path, **options)
    with pytest.raises(rl.InputError, match="made with seed 0 and this call has 1"):
        rl.roll_out(llama, problems(), store=path, seed=1, **options)
    with pytest.raises(rl.InputError, match="made with prompts"):
        rl.roll_out(llama, problems(4), store=path, **options)
    with pytest.raises(rl.InputError, match="made with prompts"):  # answers go by their order
        rl.roll_out(llama, problems().take([0, 2, 1, 3, 4]), store=path, **options)
    with pytest.raises(rl.InputError, match="made with steering '' and this call has 'a little'"):
        rl.roll_out(llama, problems(), store=path, steering="a little", **options)
    generated = rl.Direction(torch.ones(llama.d_model), layer=2)
    for tokens in ("all", "generated"):
        with pytest.raises(rl.InputError, match="it is steered otherwise"):
            rl.roll_out(
                llama, problems(), store=path, hooks=rl.add(generated, tokens=tokens), **options
            )
    for other in (b"a,b\n1,2\n", b"text", b"[1]\n"):
        (tmp_path / "other").write_bytes(other)
        with pytest.raises(rl.InputError, match="not a store of rollouts"):
            rl.roll_out(llama, problems(), store=tmp_path / "other", **options)
        assert (tmp_path / "other").read_bytes() == other


@pytest.mark.usefixtures("unchecked")
def test_bad_rollouts_are_one_sentence(llama: rl.Lens) -> None:
    with pytest.raises(rl.InputError, match="n is 2 at temperature 0"):
        rl.roll_out(llama, problems(), 2, temperature=0)
    with pytest.raises(rl.InputError, match="not row-wise hooks"):
        rl.roll_out(llama, problems(), hooks=lambda rows: [])
    with pytest.raises(rl.InputError, match="has to be True or False"):
        rl.roll_out(llama, problems(), 1, max_new_tokens=2, verifier=lambda p, text: "yes")
    words = Problems("own", (Problem("a", "Who?", "nobody"),))
    with pytest.raises(rl.InputError, match="has no number"):
        rl.roll_out(llama, words, 1, max_new_tokens=2)
    with pytest.raises(rl.InputError, match="is a folder"):
        rl.roll_out(llama, problems(), 1, store="tests", verifier=odd)


def answered() -> Rollouts:
    """Three problems with both, one all right, one all wrong with a solution."""
    made = [
        Problem(p.id, p.question, p.answer, "So it goes." if k == 4 else "")
        for k, p in enumerate(problems())
    ]
    texts = tuple(tuple(f"word {'and more ' * n}{k}" for n in range(4)) for k, _ in enumerate(made))
    correct = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
    return Rollouts(Problems("tiny", tuple(made), "{question}"), texts, correct.bool())


@pytest.mark.parametrize("site", ["resid_pre", "mlp_post"])
def test_roast_is_the_mean_of_unit_differences_of_right_and_wrong(
    llama: rl.Lens, site: str
) -> None:
    own, model = answered(), tiny.reference("Llama")
    found = rl.roast(llama, own, layers=[1, 3], site=site)
    total = 0.0
    for k in range(3):
        sides = {}
        for right in (True, False):
            states = []
            for text, correct in zip(own.texts[k], own.correct[k].tolist(), strict=True):
                if correct == right:
                    start = oracles.chat_ids(tiny.tokenizer(), own.problems[k].question)
                    ids = start + tiny.tokenizer()(text).input_ids
                    if site == "resid_pre":
                        states.append(oracles.hidden(model, ids)[[1, 3], -1])
                    else:
                        states.append(oracles.site_states(model, ids, site)[[1, 3], -1])
            sides[right] = torch.stack(states).double().mean(dim=0)
        delta = sides[True] - sides[False]
        total = total + delta / delta.norm(dim=-1, keepdim=True)
    expected = (total / 3).float()
    torch.testing.assert_close(found.directions[0, :, 0], expected, rtol=1e-3, atol=1e-4)
    assert (found.roles, found.site, found.positions) == (("roast",), site, (-1,))


def test_directions_read_answers_to_other_questions(llama: rl.Lens) -> None:
    own, model = contrast(llama, answered(), layers=[1, 3]), tiny.reference("Llama")
    torch.manual_seed(0)
    drawn = torch.randn(2, 2, 1, llama.d_model)
    vectors = rl.RoleVectors(drawn, ("a", "b"), (1, 3), (-1,), torch.ones(2, 1))
    table = own.reads(vectors).set_index(["role", "layer"])
    rolled = answered()
    for r, role in enumerate(vectors.roles):
        for n, layer in enumerate((1, 3)):
            shares = []
            for k in range(3):
                start = oracles.chat_ids(tiny.tokenizer(), rolled.problems[k].question)
                along = [
                    float(oracles.hidden(model, start + tiny.tokenizer()(text).input_ids)[layer, -1]
                          @ drawn[r, n, 0])
                    for text in rolled.texts[k]
                ]  # fmt: skip
                right = rolled.correct[k].tolist()
                shares.append(roc_auc_score(right, along))
            row = table.loc[(role, layer)]
            assert row["auroc"] == pytest.approx(np.mean(shares))
            assert row["low"] <= row["auroc"] <= row["high"]
            assert row["questions"] == 3
    with pytest.raises(rl.InputError, match="no layer 2; there are: 1, 3"):
        own.reads(rl.RoleVectors(drawn[:, :1], ("a", "b"), (2,), (-1,), torch.ones(1, 1)))
    with pytest.raises(
        rl.InputError, match="are of 'mlp_post' and the answers were read at 'resid"
    ):
        own.reads(dataclasses.replace(vectors, site="mlp_post"))


def test_what_was_left_out_is_counted_and_gold_weighs_in(llama: rl.Lens) -> None:
    own = answered()
    plain = contrast(llama, own, layers=[2])
    assert plain.counts == {
        "mixed": 3,
        "all right": 1,
        "all wrong": 1,
        "gold answers": 0,
        "empty answers": 0,
    }
    assert plain.labelled[2].groups == [0, 1, 2]
    half = contrast(llama, own, layers=[2], gold=0.5)
    assert half.counts["gold answers"] == 1
    assert half.labelled[2].groups == [0, 1, 2, 4]
    units = torch.nn.functional.normalize(half.labelled[2].differences, dim=-1)
    expected = (units[:3].sum(dim=0) + 0.5 * units[3]) / 3.5
    found = half.directions(GroupedMean())
    torch.testing.assert_close(found.directions[0, 0, 0], expected.float())
    question = own.problems[4].question
    start = oracles.chat_ids(tiny.tokenizer(), f"{question}\n\nRead the question again: {question}")
    gold = oracles.hidden(
        tiny.reference("Llama"), start + tiny.tokenizer()("So it goes.").input_ids
    )[2, -1]
    positive = half.labelled[2].positive[half.labelled[2].positive_groups == 4]
    torch.testing.assert_close(positive[0], gold, rtol=1e-3, atol=1e-4)


def test_empty_answers_are_left_out_and_counted(llama: rl.Lens) -> None:
    own = answered()
    texts = list(own.texts)
    texts[0] = ("", "  ", *texts[0][2:])  # a right and a wrong one; one of each stays
    texts[1] = ("a", "", "b", "c")  # the only right one
    found = contrast(llama, Rollouts(own.problems, tuple(texts), own.correct), layers=[2])
    assert found.counts["empty answers"] == 3
    assert found.counts["mixed"] == 2
    assert found.labelled[2].groups == [0, 2]
    assert int((found.labelled[2].positive_groups == 0).sum()) == 1
    with pytest.raises(rl.InputError, match="is no answer"):
        contrast_pairs(llama, ["a"], [" "], ["b"])


def test_nothing_to_contrast_is_refused(llama: rl.Lens) -> None:
    own = answered()
    same = Rollouts(own.problems, own.texts, torch.ones(5, 4, dtype=torch.bool))
    with pytest.raises(rl.InputError, match="5 all right, 0 all wrong"):
        contrast(llama, same)
    with pytest.raises(rl.InputError, match="no site 'resid_mid'"):
        contrast(llama, own, site="resid_mid")
    with pytest.raises(rl.InputError, match="no layer 9"):
        contrast(llama, own, layers=[9])
    with pytest.raises(rl.InputError, match="layers is empty"):
        contrast(llama, own, layers=[])
    other = dataclasses.replace(llama.source, weights="00", model="other")
    with pytest.raises(rl.InputError, match="their models"):
        contrast(llama, dataclasses.replace(own, source=other))


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_pooling_is_refused(llama: rl.Lens) -> None:
    with pytest.raises(rl.InputError, match="no way of pooling 'final'"):
        contrast(llama, answered(), pooled="final")


def test_the_system_prompt_of_the_rollouts_is_read_again(llama: rl.Lens) -> None:
    plain = answered()
    told = dataclasses.replace(plain, system="Be kind.")
    found = [contrast(llama, own, layers=[2]).labelled[2].positive for own in (plain, told)]
    assert not torch.allclose(*found)
    made = rl.roll_out(llama, problems(2), 2, max_new_tokens=2, verifier=odd, system="Be kind.")
    assert (made.system, made.source) == ("Be kind.", llama.source)


def test_directions_at_other_sites_are_not_swept(llama: rl.Lens) -> None:
    vectors = rl.roast(llama, answered(), layers=[2], site="attn_out")
    with pytest.raises(rl.InputError, match="live at 'attn_out'"):
        rl.sweep(llama, vectors, "mini")
    with pytest.raises(rl.InputError, match="cannot stand in the residual stream's place"):
        rl.patchscope(llama, vectors.at(2), TokenIdentity())


def test_pairs_are_read_at_the_letter(llama: rl.Lens) -> None:
    prompts, model = tiny.PROMPTS[:3], tiny.reference("Llama")
    found = contrast_pairs(llama, prompts, ["A", "B", "A"], ["B", "A", "B"], layers=[2])
    deltas = []
    for prompt, right, wrong in zip(prompts, "ABA", "BAB", strict=True):
        start = oracles.chat_ids(tiny.tokenizer(), prompt)
        states = [
            oracles.hidden(model, start + tiny.tokenizer()(letter).input_ids)[2, -1].double()
            for letter in (right, wrong)
        ]
        deltas.append(states[0] - states[1])
    expected = torch.stack(deltas).mean(dim=0).float()
    own = found.directions(DifferenceInMeans()).directions[0, 0, 0]
    torch.testing.assert_close(own, expected, rtol=1e-3, atol=1e-4)


def test_changes_are_compared_over_the_same_problems() -> None:
    before = answered()
    flipped = before.correct.clone()
    flipped[4] = True
    after = Rollouts(before.problems, before.texts, flipped)
    found = rollouts.compare(before, after)
    assert found.value == pytest.approx(0.2)
    with pytest.raises(rl.InputError, match="different problems"):
        rollouts.compare(before, Rollouts(problems(4), before.texts[:4], flipped[:4]))


@pytest.mark.parametrize("cache", [True, False])
def test_mlp_steering_generates_as_plain_hooks_do(llama: rl.Lens, cache: bool) -> None:
    model, d_mlp = tiny.reference("Llama"), 48
    vector = torch.randn(d_mlp, generator=torch.Generator().manual_seed(0))
    direction = rl.Direction(vector, layer=2, site="mlp_post")
    found = llama.generate(
        tiny.PROMPTS, hooks=rl.add(direction, 0.5), max_new_tokens=6, cache=cache
    )
    for prompt, text in zip(tiny.PROMPTS, found, strict=True):
        ids = oracles.chat_ids(tiny.tokenizer(), prompt)
        with oracles.mlp_added(model, 2, 0.5 * vector):
            new = oracles.greedy(model, ids, 6)
        assert text == llama._text(new)


@pytest.fixture(scope="module")
def knowing() -> rl.Lens:
    """A model that gives hidden answers while the direction of a role is in the stream."""
    bridge = TransformerBridge.boot_transformers(
        "planted", hf_model=planted.model(), tokenizer=tiny.tokenizer(), device="cpu"
    )
    return rl.Lens(bridge)


def hidden(n: int, seed: int = 0) -> Problems:
    """Problems of which the model answers two in five by itself."""
    rows = [q for q in planted.questions(n, seed) if q["domain"] == planted.PLANTED]
    made = tuple(Problem(q["id"], q["text"], "ABCD"[q["answer"]]) for q in rows)
    return Problems("hidden", made, "{question}")


def letter(problem: Problem, text: str) -> bool:
    return text.startswith(problem.answer)


def role(lens: rl.Lens) -> rl.RoleVectors:
    options = {"layers": [1, 2], "positions": [-1]}
    found = rl.role_vectors(
        lens, {"math": planted.prompts("math", 16)}, planted.prompts(None, 16), **options
    )
    return rl.concat(found, nulls.gaussian(found, 3))


def test_a_trial_finds_what_was_planted_and_no_null(
    knowing: rl.Lens, tmp_path, monkeypatch
) -> None:
    options = {"layers": [2], "max_new_tokens": 1, "verifier": letter}
    found = rollouts.trial(
        knowing, role(knowing), hidden(80), [1.0, 3.0], folder=tmp_path, **options
    )
    own, null = found.table[~found.table["null"]].iloc[0], found.table[found.table["null"]]
    assert own["gain"] > 0.3
    assert own["p_holm"] < 0.001
    assert own["rank"] == 0.25
    assert (null["gain"] < 0.2).all()
    assert len(found.before.problems) == 40
    assert "math" in found.verdicts[1]
    assert " helps: " in found.verdicts[1]
    # The same by hand, on the same problems.
    problems = found.before.problems

    def by_hand(name: str) -> float:
        d = role(knowing).direction(name, int(own["layer"]), -1)
        texts = knowing.generate(
            [p.question for p in problems], hooks=rl.add(d, own["alpha"]), max_new_tokens=1
        )
        right = [text.startswith(p.answer) for p, text in zip(problems, texts, strict=True)]
        return sum(right) / len(right)

    assert by_hand("math") == pytest.approx(own["after"])
    gains = [by_hand(f"gaussian {k} ~ math") - own["before"] for k in range(3)]
    assert (own["null_low"], own["null_high"]) == pytest.approx((min(gains), max(gains)))
    assert null["null_high"].isna().all()
    assert "so does a null" not in found.verdicts[1]
    monkeypatch.setattr(forward, "decode", None)
    again = rollouts.trial(
        knowing, role(knowing), hidden(80), [1.0, 3.0], folder=tmp_path, **options
    )
    assert again.table.equals(found.table)


def test_a_trial_chooses_the_layer(knowing: rl.Lens) -> None:
    """The third block reads the direction, so that from layer 3 on it does nothing."""
    options = {"layers": [2, 3], "positions": [-1]}
    vectors = rl.role_vectors(
        knowing, {"math": planted.prompts("math", 16)}, planted.prompts(None, 16), **options
    )
    for order in ([2, 3], [3, 2]):
        found = rollouts.trial(
            knowing, vectors, hidden(40), [1.0], layers=order, max_new_tokens=1, verifier=letter
        )
        assert found.table["layer"].tolist() == [2]
        assert found.cells.set_index("layer")["gain"][2] > 0.3
        assert found.verdicts[1].startswith("math (layer 2, alpha 1) helps: ")  # beside no nulls


def test_nulls_of_another_direction_are_tried_as_strong(knowing: rl.Lens) -> None:
    d = role(knowing)["math"]
    named = dataclasses.replace(d, directions=3 * d.directions, roles=("another",))
    options = {"layers": [2], "max_new_tokens": 1, "verifier": letter, "anyway": True}
    own, other = (
        rollouts.trial(
            knowing, rl.concat(one, nulls.gaussian(d, 3)), hidden(80), [alpha], **options
        ).table.iloc[0]
        for one, alpha in ((d, 3.0), (named, 1.0))
    )
    columns = ["after", "null_low", "null_high"]
    assert other[columns].tolist() == own[columns].tolist()


def test_nothing_is_tried_near_the_floor(knowing: rl.Lens) -> None:
    options = {"max_new_tokens": 1, "verifier": lambda problem, text: False}
    found = rollouts.trial(knowing, role(knowing), hidden(20), [1.0], **options)
    assert not len(found.table)
    assert "near the floor" in found.verdicts[0]
    assert "near the floor" not in repr(found)
    anyway = rollouts.trial(knowing, role(knowing), hidden(20), [1.0], anyway=True, **options)
    assert (anyway.table["gain"] == 0).all()
    assert anyway.verdicts[0].endswith("near the floor.")
    with pytest.raises(rl.InputError, match="no layer 7"):
        rollouts.trial(knowing, role(knowing), hidden(20), [1.0], layers=[7], **options)


def test_a_trial_without_strengths_is_refused(knowing: rl.Lens) -> None:
    with pytest.raises(rl.InputError, match="alphas is empty"):
        rollouts.trial(knowing, role(knowing), hidden(20), [])


def test_choices_hold_the_right_number_once_under_the_right_letter() -> None:
    asked = Problems("own", rollouts.arithmetic(60))
    prompts, right, wrong = rollouts.ab_choices(asked)
    for problem, prompt, good, bad in zip(asked, prompts, right, wrong, strict=True):
        assert {good, bad} == {"A", "B"}
        assert prompt.startswith(problem.question)
        assert f"({good}) {problem.answer}\n" in prompt
        assert f"({bad}) {problem.answer}\n" not in prompt
    assert 20 < right.count("A") < 40
