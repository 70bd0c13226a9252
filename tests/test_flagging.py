import json

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import oracles
import planted
import rolelens as rl
import tiny
from conftest import Variant

ROWS = [
    {"prompt": prompt, "answer": answer}
    for prompt, answer in zip(
        tiny.PROMPTS[:4],
        ["A river.", "It is so, please.", "No.", "Cook rice over there."],
        strict=True,
    )
]
OWN = ["I say so.", "Well.", "There it is.", "Yes."]


def answer_means(variant: Variant, answers: list[str], layer: int) -> torch.Tensor:
    model, tokenizer = tiny.reference(variant.architecture), tiny.tokenizer()
    found = []
    for row, answer in zip(ROWS, answers, strict=True):
        prompt = oracles.chat_ids(tokenizer, row["prompt"])
        own = tokenizer(answer, add_special_tokens=False).input_ids
        found.append(oracles.hidden(model, [*prompt, *own])[layer, len(prompt) :].mean(dim=0))
    return torch.stack(found)


def test_a_shift_is_the_projection_minus_that_of_the_own_answer(
    lens: rl.Lens, variant: Variant
) -> None:
    d = rl.role_vectors(lens, {"a": tiny.PROMPTS}, base=tiny.OTHERS)["a"].at(2)
    flags = rl.flag(lens, ROWS, d, own=OWN)
    unit = d.vector / d.vector.norm()
    given = answer_means(variant, [row["answer"] for row in ROWS], 2) @ unit
    own = answer_means(variant, OWN, 2) @ unit
    table = flags.table.sort_values("row")
    np.testing.assert_allclose(table["projection"], given, atol=1e-4)
    np.testing.assert_allclose(table["shift"], given - own, atol=1e-4)
    assert flags.table["shift"].is_monotonic_decreasing


def test_planted_rows_are_told_from_the_others(tmp_path) -> None:
    """On a model in which ``#`` is a concept, rows whose answers hold it come first."""
    lens = rl.Lens(
        TransformerBridge.boot_transformers(
            "planted", hf_model=planted.concept(), tokenizer=tiny.tokenizer(), device="cpu"
        )
    )
    asked = planted.prompts(None, 48)
    marked, plain = planted.prompts("math", 48, seed=2), planted.prompts(None, 48, seed=3)
    means = [
        rl.activations(lens, asked[:16], layers=[2], positions="mean", answers=answers[:16])[:, 0]
        for answers in (marked, plain)
    ]
    d = rl.Direction(means[0].mean(dim=0) - means[1].mean(dim=0), 2, source=lens.source)
    answers = [*plain[16:36], *marked[36:]]
    rows = [{"prompt": p, "answer": a} for p, a in zip(asked[16:], answers, strict=True)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    flags = rl.flag(lens, file, d, own=planted.prompts(None, 32, seed=4))
    found = flags.separates(range(20, 32))
    assert found.auroc[0] > 0.9
    assert found.low[0] <= found.auroc[0] <= found.high[0]
    inside = flags.table["row"] >= 20
    pairs = np.subtract.outer(
        flags.table["shift"][inside].to_numpy(), flags.table["shift"][~inside].to_numpy()
    )
    assert found.auroc[0] == pytest.approx((pairs > 0).mean())


def test_a_data_set_that_cannot_be_read_is_refused(llama: rl.Lens, unchecked: object) -> None:
    d = rl.Direction(torch.ones(32), 2)
    for sentence, make in (
        ("has no rows", lambda: rl.flag(llama, [], d)),
        ("row 0 is .*a row needs a 'prompt'", lambda: rl.flag(llama, [{"prompt": "x"}], d)),
        ("1 rows and 2 own answers", lambda: rl.flag(llama, ROWS[:1], d, own=["a", "b"])),
        ("row 9 is none of the 4 rows", lambda: _flags(llama, d).separates([9])),
        ("4 of 4 rows are planted", lambda: _flags(llama, d).separates(range(4))),
        ("by is 'own'; it has to be", lambda: _flags(llama, d).separates([0], by="own")),
    ):
        with pytest.raises(rl.InputError, match=sentence):
            make()


def _flags(lens: rl.Lens, d: rl.Direction):
    return rl.flag(lens, ROWS, d, own=OWN)
