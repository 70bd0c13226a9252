import pytest
import torch

import oracles
import rolelens as rl
import tiny
from test_scoring import QUESTIONS


@pytest.fixture
def vectors(llama: rl.Lens) -> rl.RoleVectors:
    return rl.role_vectors(llama, {"a": tiny.PROMPTS, "b": tiny.OTHERS}, base=tiny.PROMPTS[:2])


@pytest.fixture
def swept(llama: rl.Lens, vectors: rl.RoleVectors) -> rl.Sweep:
    return rl.sweep(llama, vectors, QUESTIONS, positions=[-1, -2], method="cloze")


def test_every_cell_equals_plain_steering(swept: rl.Sweep, vectors: rl.RoleVectors) -> None:
    model, tokenizer = tiny.reference("Llama"), tiny.tokenizer()
    for role in ("a", "b"):
        for layer in (0, 1, 2):
            for alpha in (1.0, 3.0):
                delta = alpha * vectors[role].at(layer, -2).vector
                found = swept.logprobs(role=role, layer=layer, position=-2, alpha=alpha)
                ids = oracles.chat_ids(tokenizer, QUESTIONS[0].text)
                answer = tokenizer(QUESTIONS[0].options[2], add_special_tokens=False).input_ids
                with oracles.added(model, layer, delta):
                    expected = oracles.option_logprob(model, ids, answer).sum()
                torch.testing.assert_close(found[0, 2], expected, atol=1e-3, rtol=1e-4)


def test_the_default_grid_is_that_of_the_paper(swept: rl.Sweep) -> None:
    assert swept.layers == (0, 1, 2)  # the first 80 % of 4 layers
    assert swept.alphas == (1.0, 3.0)
    assert swept.scores.shape[:4] == (2, 3, 2, 2)


def test_the_table_has_a_row_a_cell(swept: rl.Sweep) -> None:
    table = swept.table()
    assert len(table) == 2 * 3 * 2 * 2
    assert table[table["layer"] == 0]["null"].all()
    assert (table[table["layer"] == 0]["margin_gain"] == 0).all()
    assert not table[table["layer"] > 0]["null"].any()
    row = table[(table["role"] == "b") & (table["layer"] == 2) & (table["alpha"] == 3.0)].iloc[0]
    cell = swept.cell("b", 2, int(row["position"]), 3.0)
    assert row["accuracy"] == cell.accuracy
    assert row["margin"] == pytest.approx(cell.margin)


def test_the_best_cell_is_live_and_best(swept: rl.Sweep) -> None:
    table = swept.table()
    for by in ("accuracy", "margin"):
        best = swept.best("a", by=by)
        live = table[(table["role"] == "a") & ~table["null"]]
        found = swept.cell("a", best.direction.layer, best.direction.position, best.alpha)
        assert getattr(found, by) == pytest.approx(live[by].max())
        assert best.direction.norm > 0


def test_selected_tokens_are_the_only_ones_steered(llama: rl.Lens, vectors: rl.RoleVectors) -> None:
    options = {"layers": [2], "positions": [-1], "alphas": [3.0], "method": "cloze"}
    everywhere = rl.sweep(llama, vectors["a"], QUESTIONS, **options)
    prompt = rl.sweep(llama, vectors["a"], QUESTIONS, tokens="prompt", **options)
    assert not torch.allclose(everywhere.scores, prompt.scores)
    model, tokenizer = tiny.reference("Llama"), tiny.tokenizer()
    ids = oracles.chat_ids(tokenizer, QUESTIONS[1].text)
    answer = tokenizer("ice", add_special_tokens=False).input_ids
    delta = 3 * vectors["a"].at(2, -1).vector
    with oracles.added(model, 2, delta, where=slice(0, len(ids))):
        expected = oracles.option_logprob(model, ids, answer).sum()
    torch.testing.assert_close(prompt.logprobs("a", 2, -1, 3.0)[1, 1], expected, atol=1e-3, rtol=0)


def test_unknown_cells_and_grids_are_refused(
    swept: rl.Sweep, llama: rl.Lens, vectors: rl.RoleVectors
) -> None:
    with pytest.raises(rl.InputError, match="no role 'c'; there are: a, b"):
        swept.logprobs("c", 1, -1, 1.0)
    with pytest.raises(rl.InputError, match="no alpha 2.0"):
        swept.logprobs("a", 1, -1, 2.0)
    with pytest.raises(rl.InputError, match="no layer 7"):
        rl.sweep(llama, vectors, QUESTIONS, layers=[7])
    with pytest.raises(rl.InputError, match="the alphas are .1.0, 1.0.; name each once"):
        rl.sweep(llama, vectors, QUESTIONS, alphas=[1.0, 1.0])
    with pytest.raises(rl.InputError, match="every cell of 'a' is null"):
        rl.sweep(llama, vectors, QUESTIONS, layers=[0]).best("a")
    with pytest.raises(rl.InputError, match="by is 'luck'"):
        swept.best("a", by="luck")
