import numpy as np
import pytest
import torch

import oracles
import rolelens as rl
import tiny
from rolelens.scoring import letter_prompt
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


LONGER = [  # a beginning that some share, and prompts of several lengths
    rl.Question("l1", "What is the weather like over there today?", ("wet", "dry and warm"), 1),
    rl.Question("l2", "What is the weather like in the fog, please?", ("dim", "a bit dim", "x"), 0),
    rl.Question("l3", "Sing.", ("la", "no"), 0),
    rl.Question("l4", "Is it so?", ("y", "n"), 0),  # nothing follows the first token of an answer
]


READ_BY = {"letter": ("all", "prompt", "post-instruction", "last")}
READ_BY["cloze"] = (*READ_BY["letter"], "generated")  # a letter is read before any is generated


def where(tokens: object, length: int, n_post: int) -> slice | list[int]:
    """A selection of tokens, spelled out for one prompt."""
    named = {
        "all": slice(None),
        "prompt": slice(0, length),
        "post-instruction": slice(length - n_post, length),
        "generated": slice(length, None),
        "last": slice(length - 1, None),
    }
    return named[tokens] if isinstance(tokens, str) else list(tokens)


@pytest.mark.parametrize(
    ("method", "tokens"),
    [
        (method, tokens)
        for method in ("letter", "cloze")
        for tokens in (*READ_BY[method], (0,), (3, 11))
    ],
    ids=str,
)
@pytest.mark.parametrize("change", ["add", "ablate"])
def test_cells_equal_plain_steering_on_every_architecture(
    lens: rl.Lens, architecture: str, method: str, tokens: object, change: str
) -> None:
    model, tokenizer = tiny.reference(architecture), tiny.tokenizer()
    torch.manual_seed(1)
    norm = torch.stack([oracles.hidden(model, range(5, 15))[layer].norm() for layer in (0, 2)])
    vectors = rl.RoleVectors(
        torch.randn(2, 2, 1, 32) * (norm / 32**0.5).reshape(1, 2, 1, 1),
        ("a", "b"),
        (0, 2),
        (-1,),
        torch.ones(2, 1),
    )
    layers = [0, 2] if change == "add" else [2]
    alphas = [-0.5] if change == "add" else [1.0]
    grid = {"layers": layers, "positions": [-1], "alphas": alphas}
    questions = [*LONGER, *QUESTIONS[:2]]
    options = {"tokens": tokens, "method": method, "change": change}
    swept = rl.sweep(lens, vectors, questions, **grid, **options)
    n_post = len(lens.positions)
    for key in swept.grid.keys:
        d = vectors.direction(key.role, key.layer, -1).vector
        for n, question in enumerate(questions):
            text = letter_prompt(question) if method == "letter" else question.text
            ids = oracles.chat_ids(tokenizer, text)
            chosen = where(tokens, len(ids), n_post)
            steered = (
                oracles.added(model, key.layer, key.alpha * d, chosen)
                if change == "add"
                else oracles.ablated(model, d, chosen)
            )
            found = swept.logprobs(*key)[n, : len(question.options)]
            with steered:
                if method == "letter":
                    letters = [tokenizer.encode(x)[-1] for x in "ABCD"[: len(question.options)]]
                    expected = oracles.logits(model, ids)[-1][letters].log_softmax(-1)
                else:
                    answers = [
                        tokenizer(o, add_special_tokens=False).input_ids for o in question.options
                    ]
                    expected = torch.stack(
                        [oracles.option_logprob(model, ids, answer).sum() for answer in answers]
                    )
            torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
            assert found.argmax() == expected.argmax()


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
    with pytest.raises(rl.InputError, match="no role 'c'; there are: a, b"):
        swept.best("c")


@pytest.mark.usefixtures("unchecked")
def test_axes_are_lists_or_arrays(llama: rl.Lens, vectors: rl.RoleVectors) -> None:
    plain = rl.sweep(llama, vectors, QUESTIONS, layers=[1, 2], positions=[-1], alphas=[1.0, 3.0])
    axes = {
        "layers": np.arange(1, 3),
        "positions": np.array([-1]),
        "alphas": torch.tensor([1, 3.0]),
    }
    swept = rl.sweep(llama, vectors, QUESTIONS, **axes)
    assert torch.equal(swept.scores, plain.scores)
    assert swept.layers == (1, 2)
    for name, value in {"layers": 1, "positions": -1, "alphas": 3.0}.items():
        with pytest.raises(rl.InputError, match=f"{name} is {value}; pass a list"):
            rl.sweep(llama, vectors, QUESTIONS, **{name: value})
        with pytest.raises(rl.InputError, match=f"{name} is empty"):
            rl.sweep(llama, vectors, QUESTIONS, **{name: np.array([])})


def test_steering_nothing_is_refused(llama: rl.Lens, vectors: rl.RoleVectors) -> None:
    with pytest.raises(rl.InputError, match="tokens is 'generated', which is none of the tokens"):
        rl.sweep(llama, vectors, QUESTIONS, layers=[1], tokens="generated")
    with pytest.raises(rl.InputError, match="tokens is .9999., which is none"):
        rl.search(llama, vectors, QUESTIONS, layers=[1], tokens=[9999], method="cloze")
    rl.sweep(llama, vectors, QUESTIONS, layers=[1], tokens="generated", method="cloze")


def test_a_cell_that_explodes_is_named(llama: rl.Lens, vectors: rl.RoleVectors) -> None:
    with pytest.raises(rl.InputError, match="of '[ab]' at layer 1, position -1, alpha 1e.38 are N"):
        rl.sweep(llama, vectors, QUESTIONS, layers=[1], positions=[-1], alphas=[1.0, 1e38])


@pytest.mark.model
@pytest.mark.parametrize("change", ["add", "ablate"])
@pytest.mark.parametrize("method", ["letter", "cloze"])
def test_cells_of_the_embedded_model_equal_plain_steering(
    smollm2: rl.Lens, method: str, change: str
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rolelens import embedded

    folder = embedded.folder()
    model, tokenizer = (
        kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    model.eval()
    questions = list(rl.load_benchmark("mini"))[:320:120]
    torch.manual_seed(0)
    noise = torch.randn(2, 1, 1, smollm2.d_model)
    vectors = rl.RoleVectors(noise, ("a", "b"), (16,), (-1,), torch.ones(1, 1))
    grid = {"layers": [16], "positions": [-1], "alphas": [2.0] if change == "add" else [1.0]}
    for tokens in (*READ_BY[method], (40,)):
        swept = rl.sweep(
            smollm2, vectors, questions, tokens=tokens, method=method, change=change, **grid
        )
        for key in swept.grid.keys:
            d = vectors.direction(key.role, 16, -1).vector
            for n, question in enumerate(questions):
                text = letter_prompt(question) if method == "letter" else question.text
                ids = oracles.chat_ids(tokenizer, text)
                chosen = where(tokens, len(ids), 6)
                steered = (
                    oracles.added(model, 16, 2.0 * d, chosen)
                    if change == "add"
                    else oracles.ablated(model, d, chosen)
                )
                with steered:
                    if method == "letter":
                        letters = [tokenizer.encode(x)[-1] for x in "ABCD"]
                        expected = oracles.logits(model, ids)[-1][letters].log_softmax(-1)
                    else:
                        answers = [tokenizer(o, add_special_tokens=False) for o in question.options]
                        expected = torch.stack(
                            [oracles.option_logprob(model, ids, a.input_ids).sum() for a in answers]
                        )
                found = swept.logprobs(*key)[n]
                torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
                assert found.argmax() == expected.argmax()
