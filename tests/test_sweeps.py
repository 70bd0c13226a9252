import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import oracles
import rolelens as rl
import tiny
from rolelens.hooks import Step
from rolelens.tasks import Task, letter_prompt

QUESTIONS = [
    rl.Question("q1", "Which is red?", ("blood", "grass", "the clear sky", "snow"), 0, "colour"),
    rl.Question("q2", "Which of these is cold to the touch?", ("fire", "ice"), 1, "heat"),
    rl.Question("q3", "Who sings?", ("a stone", "a bird", "a lamp"), 1, "sound"),
]
LONGER = [  # a beginning that some share, and prompts of several lengths
    rl.Question("l1", "What is the weather like over there today?", ("wet", "dry and warm"), 1),
    rl.Question("l2", "What is the weather like in the fog, please?", ("dim", "a bit dim", "x"), 0),
    rl.Question("l3", "Sing.", ("la", "no"), 0),
    rl.Question("l4", "Is it so?", ("y", "n"), 0),  # nothing follows the first token of an answer
]
READ_BY: dict[str, tuple[Any, ...]] = {"letter": ("all", "prompt", "post-instruction", "last")}
READ_BY["letter"] += ((0,), (3, 11))
READ_BY["cloze"] = (*READ_BY["letter"], "generated")  # a letter is read before any is generated


@pytest.fixture
def vectors(llama: rl.Lens) -> rl.Directions:
    return rl.role_vectors(llama, {"a": tiny.PROMPTS, "b": tiny.OTHERS}, base=tiny.PROMPTS[:2])


@pytest.fixture
def swept(llama: rl.Lens, vectors: rl.Directions) -> rl.Sweep:
    return rl.sweep(llama, vectors, QUESTIONS, positions=[-1, -2], method="cloze")


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


@contextmanager
def plain_hooks(model: Any, steps: Sequence[Step], length: int, n_post: int) -> Iterator[None]:
    """The steps of a steering as plain hooks on a Hugging Face model, in their order."""
    with contextlib.ExitStack() as stack:
        for step in steps:
            chosen, vector = where(step.tokens, length, n_post), step.direction.vector
            if step.kind == "add":
                for layer in step.layers:
                    stack.enter_context(oracles.added(model, layer, step.alpha * vector, chosen))
            else:
                stack.enter_context(oracles.ablated(model, vector, chosen, step.layers, step.alpha))
        yield


def expected_logprobs(
    model: Any, tokenizer: Any, question: rl.Question, method: str, steps: Sequence[Step], n: int
) -> torch.Tensor:
    """Log-probabilities of the options, from one plain pass a prompt and option."""
    text = letter_prompt(question) if method == "letter" else question.text
    ids = oracles.chat_ids(tokenizer, text)
    with plain_hooks(model, steps, len(ids), n):
        if method == "letter":
            letters = [tokenizer.encode(x)[-1] for x in "ABCD"[: len(question.options)]]
            return oracles.logits(model, ids)[-1][letters].log_softmax(-1)
        answers = [tokenizer(o, add_special_tokens=False).input_ids for o in question.options]
        sums = [oracles.option_logprob(model, ids, answer).sum() for answer in answers]
        return torch.stack(sums)


def noise(model: Any, seed: int, layer: int) -> rl.Direction:
    """A random direction as long as the residual stream there."""
    norm = float(oracles.hidden(model, range(5, 15))[layer].norm()) / 32**0.5
    drawn = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    return rl.Direction(norm * drawn, layer, -1, f"noise {seed}")


@pytest.mark.parametrize("method", ["letter", "cloze"])
def test_cells_equal_plain_hooks_on_every_architecture(
    lens: rl.Lens, architecture: str, method: str
) -> None:
    """One layer and everywhere, added and ablated, three layers at once, every selection."""
    model, tokenizer = tiny.reference(architecture), tiny.tokenizer()
    a, b, c = (noise(model, seed, layer) for seed, layer in ((1, 0), (2, 2), (3, 1)))
    steerings = []
    for tokens in READ_BY[method]:
        mixed = rl.add(a, -0.3, layers=[1, 2, 3], tokens=tokens)
        steerings += [
            rl.add(a, -0.5, tokens=tokens),
            rl.add(b, 0.5, tokens=tokens),
            rl.ablate(c, lens, tokens=tokens),
            mixed + rl.ablate(b, lens, layers=[1, 2, 3], tokens=tokens),
            rl.ablate(b, lens, layers=[2, 3], share=0.7) + rl.add(b, 0.4, tokens=tokens) + mixed,
        ]
    questions = [*LONGER, *QUESTIONS[:2]]
    swept = rl.sweep(lens, steerings, questions, method=method)
    assert len(swept.cells) == 5 * len(READ_BY[method])
    for turn, steering in enumerate(steerings):
        logprobs = swept.logprobs(steering)
        for n in ((turn + turn // 5) % 6, (turn + turn // 5 + 3) % 6):  # all of each kind in turn
            question = questions[n]
            result = logprobs[n, : len(question.options)]
            expected = expected_logprobs(
                model, tokenizer, question, method, steering.steps, len(lens.positions)
            )
            torch.testing.assert_close(result, expected, atol=1e-3, rtol=0, msg=str(steering))
            assert result.argmax() == expected.argmax()


def test_a_grid_is_its_cells(swept: rl.Sweep, vectors: rl.Directions, llama: rl.Lens) -> None:
    model, tokenizer = tiny.reference("Llama"), tiny.tokenizer()
    assert swept.layers == (0, 1, 2)  # the first 80 % of 4 layers
    assert swept.alphas == (1.0, 3.0)
    assert len(swept.cells) == 2 * 3 * 2 * 2
    for cell in swept.cells:
        delta = cell.alpha * vectors[cell.name].at(cell.layer, cell.position).vector
        ids = oracles.chat_ids(tokenizer, QUESTIONS[0].text)
        answer = tokenizer(QUESTIONS[0].options[2], add_special_tokens=False).input_ids
        with oracles.added(model, cell.layer, delta):
            expected = oracles.option_logprob(model, ids, answer).sum()
        result = swept.logprobs(**cell.label)[0, 2]
        torch.testing.assert_close(result, expected, atol=1e-3, rtol=1e-4)


def test_what_cells_share_runs_once(llama: rl.Lens) -> None:
    """Operations of a sweep beside whole passes; three layers each, from layer 2 on."""
    model = tiny.reference("Llama")
    directions = [noise(model, seed, 2) for seed in range(6)]
    late = [rl.add(d, 0.5, layers=[2, 3], tokens="last") for d in directions]

    def operations(call: Any) -> int:
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    shared = operations(lambda: rl.sweep(llama, late, LONGER))
    plain = operations(
        lambda: [rl.evaluate(llama, LONGER, hooks=s) for s in [rl.Steering(), *late]]
    )
    print(f"operations of whole passes over those of the sweep: {plain / shared:.1f}")
    assert plain / shared > 3


def test_the_table_has_a_row_a_cell(swept: rl.Sweep) -> None:
    table = swept.table()
    assert len(table) == 2 * 3 * 2 * 2
    assert table[table["layer"] == 0]["zero"].all()
    assert (table[table["layer"] == 0]["margin_gain"] == 0).all()
    assert not table[table["layer"] > 0]["zero"].any()
    assert not table["control"].any()
    row = table[(table["name"] == "b") & (table["layer"] == 2) & (table["alpha"] == 3.0)].iloc[0]
    cell = swept.cell(name="b", layer=2, position=int(row["position"]), alpha=3.0)
    assert row["accuracy"] == cell.accuracy
    assert row["margin"] == pytest.approx(cell.margin)


def test_nulls_are_told_from_zeros(llama: rl.Lens, vectors: rl.Directions) -> None:
    base = tiny.PROMPTS[:2]
    nulls = rl.null_vectors(llama, {"a": tiny.PROMPTS}, base, n=1, kinds=["gaussian"])
    both = rl.concat(vectors["a"], nulls)
    table = rl.sweep(llama, both, QUESTIONS, positions=[-1], alphas=[1.0]).table()
    assert (table["zero"] == (table["layer"] == 0)).all()
    assert (table["control"] == (table["name"] != "a")).all()


def test_the_best_cell_is_live_and_best_and_is_what_was_scored(
    llama: rl.Lens, vectors: rl.Directions
) -> None:
    swept = rl.sweep(llama, vectors, QUESTIONS, tokens="post-instruction", method="cloze")
    table = swept.table()
    for by in ("accuracy", "margin"):
        best = swept.best("a", by=by)
        live = table[(table["name"] == "a") & ~table["zero"]]
        assert swept.cell(best).mean(by) == pytest.approx(live[by].max())
        again = rl.evaluate(llama, QUESTIONS, best.steering, "cloze")
        torch.testing.assert_close(again.logprobs, swept.logprobs(best), atol=1e-3, rtol=0)
        everywhere = rl.add(best.steering.steps[0].direction, best.alpha)
        other = rl.evaluate(llama, QUESTIONS, everywhere, "cloze")
        assert not torch.allclose(again.logprobs, other.logprobs, atol=1e-2)


def test_unknown_cells_and_grids_are_refused(
    swept: rl.Sweep, llama: rl.Lens, vectors: rl.Directions
) -> None:
    with pytest.raises(rl.InputError, match="no name 'c'; there are: a, b"):
        swept.logprobs(name="c", layer=1, position=-1, alpha=1.0)
    with pytest.raises(rl.InputError, match="no alpha 2.0"):
        swept.logprobs(name="a", layer=1, position=-1, alpha=2.0)
    with pytest.raises(rl.InputError, match="a cell has name, layer, position, alpha, and name, l"):
        swept.logprobs(name="a", layer=1)
    with pytest.raises(rl.InputError, match="is none of the 24 cells"):
        swept.cell(rl.Steering())
    with pytest.raises(rl.InputError, match="no layer 7"):
        rl.sweep(llama, vectors, QUESTIONS, layers=[7])
    with pytest.raises(rl.InputError, match="the alphas are .1.0, 1.0., with 1.0 more than once"):
        rl.sweep(llama, vectors, QUESTIONS, alphas=[1.0, 1.0])
    with pytest.raises(rl.InputError, match="every cell of 'a' is zero"):
        rl.sweep(llama, vectors, QUESTIONS, layers=[0]).best("a")
    with pytest.raises(rl.InputError, match="by is 'luck'"):
        swept.best("a", by="luck")
    with pytest.raises(rl.InputError, match="no name 'c'; there are: a, b"):
        swept.best("c")


def test_lists_of_steerings_say_themselves_what_is_done(
    llama: rl.Lens, vectors: rl.Directions, unchecked: object
) -> None:
    one, two = (rl.add(vectors[name].at(2), 1.0) for name in ("a", "b"))
    named = rl.sweep(llama, {"first": one, "second": two}, QUESTIONS)
    assert named.names == ("first", "second")
    assert named.table()["steering"].tolist() == [str(one), str(two)]
    with pytest.raises(rl.InputError, match="tokens is 'all' beside steerings"):
        rl.sweep(llama, [one], QUESTIONS, tokens="all")
    with pytest.raises(rl.InputError, match="with .* more than once; name each once"):
        rl.sweep(llama, [one, one], QUESTIONS)
    with pytest.raises(rl.InputError, match="a Steering cannot be swept; pass"):
        rl.sweep(llama, one, QUESTIONS)
    with pytest.raises(rl.InputError, match="a Direction is among the steerings"):
        rl.sweep(llama, [vectors["a"].at(2)], QUESTIONS)
    with pytest.raises(rl.InputError, match="no layer 9"):
        rl.sweep(llama, [rl.add(vectors["a"].at(2), 1.0, layers=[9])], QUESTIONS)
    with pytest.raises(rl.InputError, match="no steerings to sweep"):
        rl.sweep(llama, [], QUESTIONS)


def gap(item: rl.Question, logprobs: torch.Tensor) -> torch.Tensor:
    """The log-probability gap of the first two options."""
    return logprobs[0] - logprobs[1]


def test_a_metric_of_one_s_own_is_swept_and_searched(
    llama: rl.Lens, vectors: rl.Directions
) -> None:
    model, tokenizer = tiny.reference("Llama"), tiny.tokenizer()
    grid = {"layers": [1, 2], "positions": [-1], "alphas": [1.0]}
    swept = rl.sweep(llama, vectors, QUESTIONS, method="cloze", metric=gap, **grid)
    gaps = {}
    for cell in swept.cells:
        values = [
            gap(q, expected_logprobs(model, tokenizer, q, "cloze", cell.steering.steps, 1))
            for q in QUESTIONS
        ]
        gaps[cell] = float(torch.stack(values).mean())
        assert swept.cell(cell).mean("gap") == pytest.approx(gaps[cell], abs=1e-3)
    assert swept.table()["gap"].tolist() == pytest.approx(list(gaps.values()), abs=1e-3)
    best = max((c for c in swept.cells if c.name == "a"), key=gaps.__getitem__)
    assert swept.best("a") is best
    result = rl.search(llama, vectors, QUESTIONS, method="cloze", metric=gap, **grid)
    assert result.by == "gap"
    assert result.best("a").steering == best.steering  # a grid this small is run whole
    with pytest.raises(rl.InputError, match="the metric 'coarse' gives float without a gradient"):
        rl.search(llama, vectors, QUESTIONS, method="cloze", metric=coarse, **grid)
    with pytest.raises(rl.InputError, match="the metric 'broken' gives nan for item 'q1'"):
        rl.evaluate(llama, QUESTIONS, metric=broken)


def coarse(item: rl.Question, logprobs: torch.Tensor) -> float:
    return float(logprobs[0] > logprobs[1])


def broken(item: rl.Question, logprobs: torch.Tensor) -> float:
    return float("nan")


PROBLEMS = [rl.Problem(f"p{n}", text, "1") for n, text in enumerate(tiny.PROMPTS[:5])]


def last_letter(item: rl.Problem, text: str) -> float:
    return float(ord(text[-1]) if text else 0)


@pytest.mark.parametrize("tokens", ["all", "generated", "post-instruction"])
def test_cells_of_a_generation_task_are_rows_of_one_batch(
    llama: rl.Lens, vectors: rl.Directions, tokens: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = {"layers": [0, 1, 2], "positions": [-1], "alphas": [1.0, 3.0], "tokens": tokens}
    task = rl.load_task(PROBLEMS)
    calls = []
    generate = rl.Lens.generate
    monkeypatch.setattr(
        rl.Lens,
        "generate",
        lambda lens, prompts, **k: calls.append(1) or generate(lens, prompts, **k),
    )
    swept = rl.sweep(llama, vectors, task, max_new_tokens=6, metric=last_letter, **grid)
    assert len(calls) == 2  # the unsteered model, and all cells
    for cell in swept.cells:  # at layer 0 nothing is done
        d = vectors[cell.name].at(cell.layer)
        hooks = rl.add(d, cell.alpha, tokens=tokens)
        prompts = [task.prompt(problem) for problem in task]
        texts = generate(llama, prompts, hooks=hooks, max_new_tokens=6)
        assert [text for (text,) in swept.cell(cell).texts] == texts
        expected = sum(last_letter(p, t) for p, t in zip(task, texts, strict=True)) / len(texts)
        assert swept.cell(cell).mean("last_letter") == pytest.approx(expected)
    assert "accuracy" in swept.table()
    with pytest.raises(rl.InputError, match="cannot be predicted from gradients"):
        rl.search(llama, vectors, task, max_new_tokens=6, **grid)


def test_texts_and_tasks_of_one_s_own_are_swept(llama: rl.Lens, vectors: rl.Directions) -> None:
    texts = [rl.Text(f"t{n}", text) for n, text in enumerate(tiny.OTHERS)]
    grid = {"layers": [2], "positions": [-1], "alphas": [2.0]}
    swept = rl.sweep(llama, vectors["a"], texts, **grid)
    (cell,) = swept.cells
    model, tokenizer = tiny.reference("Llama"), tiny.tokenizer()
    delta = 2.0 * vectors["a"].at(2).vector
    for n, text in enumerate(texts):
        ids = [tokenizer.bos_token_id, *tokenizer(text.text).input_ids]
        with oracles.added(model, 2, delta):
            logprobs = oracles.option_logprob(model, ids[:1], ids[1:])
        expected = float(logprobs.mean())
        assert float(swept.cell(cell).values[n]) == pytest.approx(expected, abs=1e-3)
    with pytest.raises(rl.InputError, match="tokens is 'prompt', which a text without a prompt"):
        rl.sweep(llama, vectors["a"], texts, tokens="prompt", **grid)

    class Mine(Task[rl.Text]):
        def score(self, lens: rl.Lens, hooks: Any) -> list[float]:
            return [float(rl.activations(lens, [t.text], [3], hooks=hooks).sum()) for t in self]

    mine = Mine("mine", tuple(texts))
    with pytest.warns(UserWarning, match="'mine' scores itself, so that every cell is one call"):
        scored = rl.sweep(llama, vectors["a"], mine, **grid)
    expected = [
        float(rl.activations(llama, [t.text], [3], hooks=rl.add(vectors["a"].at(2), 2.0)).sum())
        for t in texts
    ]
    assert scored.cell(scored.cells[0]).values.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.usefixtures("unchecked")
def test_axes_are_lists_or_arrays(llama: rl.Lens, vectors: rl.Directions) -> None:
    plain = rl.sweep(llama, vectors, QUESTIONS, layers=[1, 2], positions=[-1], alphas=[1.0, 3.0])
    axes = {
        "layers": np.arange(1, 3),
        "positions": np.array([-1]),
        "alphas": torch.tensor([1, 3.0]),
    }
    swept = rl.sweep(llama, vectors, QUESTIONS, **axes)
    assert np.array_equal(swept.records, plain.records)
    assert swept.layers == (1, 2)
    for name, value in {"layers": 1, "positions": -1, "alphas": 3.0}.items():
        with pytest.raises(rl.InputError, match=f"{name} is {value}; pass a list"):
            rl.sweep(llama, vectors, QUESTIONS, **{name: value})
        with pytest.raises(rl.InputError, match=f"{name} is empty"):
            rl.sweep(llama, vectors, QUESTIONS, **{name: np.array([])})


def test_steering_nothing_is_refused(llama: rl.Lens, vectors: rl.Directions) -> None:
    with pytest.raises(rl.InputError, match="tokens is 'generated', which is none of the tokens"):
        rl.sweep(llama, vectors, QUESTIONS, layers=[1], tokens="generated")
    with pytest.raises(rl.InputError, match="tokens is .9999., which is none"):
        rl.search(llama, vectors, QUESTIONS, layers=[1], tokens=[9999], method="cloze")
    rl.sweep(llama, vectors, QUESTIONS, layers=[1], tokens="generated", method="cloze")


def test_a_cell_that_explodes_is_named(llama: rl.Lens, vectors: rl.Directions) -> None:
    options = {"layers": [1], "positions": [-1]}
    with pytest.warns(UserWarning, match="such as '[ab]' at layer 1, position -1, alpha 1e.38:"):
        swept = rl.sweep(llama, vectors, QUESTIONS, alphas=[1.0, 1e38], **options)
    assert {cell.alpha for cell in swept.failed} == {1e38}
    alone = rl.sweep(llama, vectors, QUESTIONS, alphas=[1.0], **options)
    for cell in alone.cells:
        label = {"name": cell.name, "layer": 1, "position": -1, "alpha": 1.0}
        torch.testing.assert_close(swept.logprobs(**label), alone.logprobs(**label))


@pytest.mark.model
@pytest.mark.parametrize("method", ["letter", "cloze"])
def test_cells_of_the_embedded_model_equal_plain_hooks(smollm2: rl.Lens, method: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rolelens import embedded

    folder = embedded.folder()
    model, tokenizer = (
        kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    model.eval()
    questions = list(rl.load_task("mini"))[:320:120]
    drawn = torch.Generator().manual_seed(0)
    a, b = (
        rl.Direction(torch.randn(smollm2.d_model, generator=drawn), 16, -1, name) for name in "ab"
    )
    steerings = []
    for tokens in (*READ_BY[method][:-1], (40,)):
        steerings += [
            rl.add(a, 2.0, tokens=tokens),
            rl.ablate(b, smollm2, tokens=tokens),
            rl.add(a, 1.0, layers=[12, 16, 20], tokens=tokens)
            + rl.ablate(b, smollm2, layers=[14, 15], tokens=tokens),
        ]
    swept = rl.sweep(smollm2, steerings, questions, method=method)
    for steering in steerings:
        for n, question in enumerate(questions):
            expected = expected_logprobs(
                model, tokenizer, question, method, steering.steps, len(smollm2.positions)
            )
            result = swept.logprobs(steering)[n]
            torch.testing.assert_close(result, expected, atol=1e-3, rtol=0)
            assert result.argmax() == expected.argmax()
