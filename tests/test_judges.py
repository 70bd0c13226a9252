import math
import random

import pytest
import torch

import oracles
import rolelens as rl
import tiny
from chat_server import chat, serving
from rolelens.endpoints import connect
from rolelens.patchscoping import (
    Embedding,
    EndpointYesNo,
    Judge,
    Overlap,
    YesNo,
    blind_scores,
    vocabulary,
)

ROLES = {
    "lawyer": ["Explain the contract to a judge.", "Draft a contract for the court and the judge."],
    "cook": ["Describe a recipe for soup.", "Design a soup with onions, and a recipe for bread."],
}
BASE = ["Explain the weather.", "Describe a town for a visitor, and a way to it."]
TEXTS = ["The judge reads a contract.", "Soup with bread!", "", "{role} and {text} are braces"]


def test_the_vocabulary_is_what_tells_the_roles_apart() -> None:
    words = vocabulary(ROLES, BASE)
    assert set(words) == set(ROLES)
    assert list(words["lawyer"])[:2] == ["contr", "judge"]
    assert {"soup", "recip"} <= set(words["cook"])
    assert "expla" not in words["cook"]
    assert words["lawyer"]["lawye"] == max(words["lawyer"].values())
    assert len(vocabulary(ROLES, BASE, 1)["cook"]) == 2  # and the name


def test_the_weights_are_the_log_odds_of_monroe_et_al() -> None:
    """Equation 22, with the counts of all prompts as the prior."""
    words = vocabulary(ROLES, BASE)
    counts = {"own": 2, "rest": 0, "prior": 2}  # "contract"
    own, rest = 10, 9 + 11  # words of at least three letters
    texts = {"own": ROLES["lawyer"], "rest": [*ROLES["cook"], *BASE]}
    sizes = {
        name: sum(len(w.strip(".,")) >= 3 for text in group for w in text.split())
        for name, group in texts.items()
    }
    own, rest = sizes["own"], sizes["rest"]
    total = own + rest

    def logit(k: int, n: int) -> float:
        return math.log((k + counts["prior"]) / (n + total - k - counts["prior"]))

    odds = logit(counts["own"], own) - logit(counts["rest"], rest)
    variance = 1 / (counts["own"] + counts["prior"]) + 1 / (counts["rest"] + counts["prior"])
    assert words["lawyer"]["contr"] == pytest.approx(odds / math.sqrt(variance))


def test_overlap_is_the_mean_weight_of_the_words() -> None:
    judge = Overlap({"a": {"soup": 2.0, "bread": 1.0, "mathematician": 3.0}})
    assert judge.score(["Soups and bread", "", "no such"], ["a"] * 3) == [1.0, 0.0, 0.0]
    assert judge.score(["Mathematical"], ["a"]) == [3.0]
    with pytest.raises(rl.InputError, match="no role 'b'"):
        judge.score(["soup"], ["b"])


def test_the_embedding_judge_is_a_cosine(llama: rl.Lens) -> None:
    words = {"a": {"soup": 1.0, "bread": 1.0}, "b": {"judge": 1.0}}
    table, tokenizer = tiny.reference("Llama").model.embed_tokens.weight, tiny.tokenizer()

    def mean(text: str) -> torch.Tensor:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        return table[ids].detach().mean(dim=0)

    centre = (mean("soup bread") + mean("judge")) / 2
    found = Embedding(llama, words).score(["a soup", "a soup", ""], ["a", "b", "a"])
    for score, role in zip(found, ("soup bread", "judge"), strict=False):
        expected = torch.cosine_similarity(mean("a soup") - centre, mean(role) - centre, dim=0)
        assert score == pytest.approx(float(expected), abs=1e-5)
    assert all(map(math.isfinite, found))


def test_the_loaded_model_judges_by_yes_and_no(llama: rl.Lens) -> None:
    model, tokenizer = tiny.reference("Llama"), tiny.tokenizer()
    question = "{text} A {role}?"  # the tiny model reads 128 tokens
    found = YesNo(llama, question).score(TEXTS[:2], ["lawyer", "cook"])
    for score, text, role in zip(found, TEXTS[:2], ["lawyer", "cook"], strict=True):
        asked = f"{text} A {role}?"
        logits = oracles.logits(model, oracles.chat_ids(tokenizer, asked))[-1]
        yes, no = (tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("Yes", "No"))
        assert score == pytest.approx(float(logits[yes] - logits[no]), abs=1e-4)


def test_an_endpoint_judges_and_is_asked_each_once() -> None:
    said = {"contract": "Yes.", "Soup": "No, it is not", "braces": "Nowhere", "empty": "  "}

    def reply(request):
        text = request.body["messages"][0]["content"]
        assert request.body["temperature"] == 0
        return chat(next((answer for word, answer in said.items() if word in text), "NO"))

    with serving(reply) as server:
        judge = EndpointYesNo(connect("local-model", server.url, retries=0))
        texts = [*TEXTS, TEXTS[0], "empty"]
        scores = judge.score(texts, ["lawyer"] * 6)
        assert len(server.requests) == 5
    assert scores[:3] == [1.0, 0.0, 0.0]
    assert math.isnan(scores[3])
    assert scores[4] == 1.0
    assert math.isnan(scores[5])
    assert isinstance(judge, Judge)


def test_a_judge_is_blind_and_sees_another_order() -> None:
    class Watching:
        name = "watching"

        def score(self, texts, roles):
            self.seen = list(zip(texts, roles, strict=True))
            return [float(text) for text in texts]

    judge = Watching()
    texts = [str(n) for n in range(50)]
    roles = [random.Random(0).choice("ab") for _ in texts]
    assert blind_scores(judge, texts, roles, seed=1) == [float(n) for n in range(50)]
    assert sorted(judge.seen) == sorted(zip(texts, roles, strict=True))
    assert judge.seen != list(zip(texts, roles, strict=True))
    for score in ("yes", None, math.inf, -math.inf):
        judge.score = lambda texts, roles, score=score: [score] * len(texts)
        with pytest.raises(rl.InputError, match=f"watching gave the score {score!r}"):
            blind_scores(judge, texts, roles)
    judge.score = lambda texts, roles: [1.0]
    with pytest.raises(rl.InputError, match="watching gave 1 scores of 50 texts"):
        blind_scores(judge, texts, roles)
    with pytest.raises(rl.InputError, match="50 texts and 2 roles"):
        blind_scores(judge, texts, ["a", "b"])


def test_a_question_has_to_name_text_and_role(llama: rl.Lens) -> None:
    with pytest.raises(rl.InputError, match="has to contain '{role}'"):
        YesNo(llama, "Is {text} good?").score(["a"], ["b"])
