import contextlib

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

import oracles
import rolelens as rl
import tiny
from conftest import Variant, shared
from rolelens import tasks
from rolelens.sweeps import UNSTEERED, cell_of_steering, halving
from rolelens.sweeps.screening import controlled, screen
from rolelens.tasks import letter_prompt

WORDS = "stone bird lamp river sea rice boat fog marsh song fire ice grass snow sky blood".split()
QUESTIONS = [
    rl.Question(f"q{n}", f"What is {x}?", tuple(WORDS[(n + k) % 16] for k in (0, 3, 7)), n % 3)
    for n, x in enumerate("abcdefghijklmnop")
]
MANY = [
    *QUESTIONS,
    *(rl.Question(f"{q.id}+", q.text.upper(), q.options, q.answer) for q in QUESTIONS),
]
STEP = 1e-3
"""Norms compute in float32, so a smaller step would drown in rounding."""


def random_vectors(model: object, roles: int, layers: tuple[int, ...], share: float):
    """Directions whose norm is a share of that of the residual stream."""
    torch.manual_seed(3)
    stream = oracles.hidden(model, range(5, 30))
    norms = torch.stack([stream[layer].norm(dim=-1).mean() for layer in layers])
    noise = torch.randn(roles, len(layers), 2, 32)
    noise = share * noise / noise.norm(dim=-1, keepdim=True) * norms[None, :, None, None]
    names = tuple(f"r{n}" for n in range(roles))
    return rl.Directions(noise, names, layers, (-2, -1), torch.ones(len(layers), 2))


def plain_scores(model, question, ids, method) -> torch.Tensor:
    tokenizer = tiny.tokenizer()
    if method == "letter":
        letters = [tokenizer.encode(x)[-1] for x in "ABC"]
        return oracles.logits(model, ids)[-1][letters].log_softmax(-1)
    answers = [tokenizer(o, add_special_tokens=False).input_ids for o in question.options]
    each = [oracles.option_logprob(model, ids, answer) for answer in answers]
    return torch.stack([x.sum() if method == "cloze" else x.mean() for x in each])


def margin(logprobs: torch.Tensor, answer: int) -> float:
    wrong = [x for k, x in enumerate(logprobs.tolist()) if k != answer]
    return float(logprobs[answer]) - max(wrong)


@pytest.mark.parametrize("method", ["letter", "cloze", "cloze_norm"])
@pytest.mark.parametrize("tokens", ["all", "post-instruction"])
def test_the_screen_is_the_slope_of_plain_steering(
    lens: rl.Lens, architecture: str, method: str, tokens: str
) -> None:
    """Of an addition at one layer, and of two at two layers in one cell."""
    model = tiny.reference(architecture).float()
    try:
        vectors = random_vectors(model, 1, (0, 2), 1.0)
        low, high = (vectors.direction("r0", layer, -1) for layer in (0, 2))
        cells = [
            cell_of_steering(rl.add(low, 0.5, tokens=tokens)),
            cell_of_steering(rl.add(high, -0.5, tokens=tokens) + rl.add(low, 0.3, tokens=tokens)),
        ]
        prepared = tasks.prepare(lens, QUESTIONS[:3], method)
        predicted = screen(lens, prepared, tasks.run_records(lens, prepared), cells, "margin")
        model.double()
        for c, cell in enumerate(cells):
            for n, question in enumerate(QUESTIONS[:3]):
                text = letter_prompt(question) if method == "letter" else question.text
                ids = oracles.chat_ids(tiny.tokenizer(), text)
                n_post = len(lens.positions) if tokens == "post-instruction" else len(ids)
                chosen = slice(len(ids) - n_post, None if tokens == "all" else len(ids))

                def steered(step: float, cell=cell, chosen=chosen) -> contextlib.ExitStack:
                    stack = contextlib.ExitStack()
                    for part in cell.steering.steps:
                        delta = step * part.alpha * part.direction.vector.double()
                        layer = part.direction.layer
                        stack.enter_context(oracles.added(model, layer, delta, chosen))
                    return stack

                ends = []
                for step in (-STEP, STEP):
                    with steered(step):
                        scores = plain_scores(model, question, ids, method)
                    ends.append(margin(scores, question.answer))
                slope = (ends[1] - ends[0]) / (2 * STEP)
                assert float(predicted[c, n]) == pytest.approx(slope, rel=2e-2, abs=4e-3)
    finally:
        model.float()


def first_and_last(item: rl.Question, answer: torch.Tensor) -> torch.Tensor:
    return answer[0] - 0.5 * answer[-1].exp()


def squared(item: rl.Text, answer: torch.Tensor) -> torch.Tensor:
    return -(answer**2)


@pytest.mark.parametrize(
    ("task", "metric", "method"),
    [
        (tasks.Texts("own", tuple(rl.Text(p, p) for p in tiny.PROMPTS[:3])), None, None),
        (tasks.Texts("own", tuple(rl.Text(p, p) for p in tiny.PROMPTS[:3])), squared, None),
        (QUESTIONS[:3], first_and_last, "letter"),
        (QUESTIONS[:3], first_and_last, "cloze"),
        ([rl.Question("q", "Which?", ("a bird", "fog", "sea"), 2, also=(0,))], None, "cloze"),
    ],
)
def test_texts_metrics_and_several_correct_options_are_screened(task, metric, method) -> None:
    """Beside what steering by a little does, each way."""
    lens = shared(Variant("Llama"))
    vectors = random_vectors(tiny.reference("Llama"), 1, (0, 2), 1.0)
    prepared = tasks.prepare(lens, task, method, metric=metric)
    cells = [cell_of_steering(rl.add(vectors.direction("r0", at, -1), 0.5)) for at in (0, 2)]
    records = tasks.run_records(lens, prepared)
    by = next(m for m in prepared.scored(range(len(prepared.task)), records).measures if m != "acc")
    by = "margin" if by == "accuracy" else by
    predicted = screen(lens, prepared, records, cells, by)
    for c, layer in enumerate((0, 2)):
        ends = [
            rl.evaluate(
                lens,
                task,
                rl.add(vectors.direction("r0", layer, -1), sign * 0.01),
                method,
                metric=metric,
            ).measure(by)
            for sign in (-0.5, 0.5)
        ]
        slopes = (ends[1] - ends[0]) / 0.02
        torch.testing.assert_close(predicted[c].double(), slopes, rtol=0.05, atol=0.02)


OPTIONS = {"layers": [0, 1, 2, 3], "alphas": (0.5, 1.0, -1.0), "method": "cloze"}


@pytest.fixture(scope="module")
def small() -> tuple[rl.Lens, rl.Directions]:
    vectors = random_vectors(tiny.reference("Llama"), 4, (0, 1, 2, 3), 0.1)
    return shared(Variant("Llama")), vectors


@pytest.fixture(scope="module", autouse=True)
def few_items() -> object:
    """Several rounds on few items, which take longer on many."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(halving, "FEWEST_ITEMS", 8)
        yield


@pytest.fixture(scope="module")
def swept(small) -> rl.Sweep:
    return rl.sweep(*small, MANY, **OPTIONS)


@pytest.fixture(scope="module")
def searched(small) -> rl.Search:
    return rl.search(*small, MANY, **OPTIONS)


@pytest.mark.parametrize("by", ["margin", "accuracy"])
def test_the_search_finds_nearly_the_best_cell(small, swept, searched, by: str) -> None:
    table = swept.table()
    search = searched if by == "margin" else rl.search(*small, MANY, by=by, **OPTIONS)
    assert len(search.table()) == len(table) == 4 * 4 * 2 * 3
    regrets, random = [], []
    for name, cells in table.groupby("name"):
        best = search.best(name)
        row = cells.set_index(["layer", "position", "alpha"]).loc[
            (best.layer, best.position, best.alpha)
        ]
        assert best.steering == swept.find(best.steering).steering
        assert search.scores(name).margin == pytest.approx(row["margin"], abs=1e-4)
        assert search.scores(name).accuracy == pytest.approx(row["accuracy"])
        regrets.append(cells[by].max() - row[by])
        random.append(cells[by].max() - cells[by].mean())
    assert np.mean(regrets) <= 0.2 * np.mean(random)
    assert search.table()["items"].sum() < 0.6 * len(table) * len(MANY)


def test_what_was_scored_exactly_is_what_the_sweep_scores(swept, searched) -> None:
    whole = searched.table().query(f"items == {len(MANY)}")
    assert len(whole) >= 4
    assert set(searched.table()["items"]) == {0, 8, 16, 32}
    for row in whole.itertuples():
        cell = swept.cell(name=row.name, layer=row.layer, position=row.position, alpha=row.alpha)
        assert row.margin == pytest.approx(cell.margin, abs=1e-4)
        assert row.margin_gain == pytest.approx(cell.margin - swept.baseline.margin, abs=1e-4)
    assert searched.table()["chosen"].sum() == 4
    assert UNSTEERED.name not in searched.table()["name"].tolist()


def test_the_search_is_the_same_again_under_a_seed(small) -> None:
    lens, vectors = small
    first, again, other = (
        rl.search(lens, vectors[["r0"]], QUESTIONS, seed=seed, **OPTIONS) for seed in (5, 5, 6)
    )
    pd.testing.assert_frame_equal(first.table(), again.table())
    assert {8, 16} <= set(first.table()["items"]) <= {0, 8, 16}
    assert not first.table()["items"].equals(other.table()["items"])


def test_the_quality_of_the_screen_is_its_rank_correlation(small) -> None:
    lens, vectors = small
    search = rl.search(lens, vectors[["r1"]], QUESTIONS[:8], **OPTIONS)
    assert len(search.quality) == 1
    run = search.table().query("items > 0")
    quality = search.quality.iloc[0]
    assert quality["run"] == len(run)
    assert quality["cells"] == len(search.table())
    exact = spearmanr(run["predicted"], run["margin"]).statistic
    assert quality["rho"] == pytest.approx(exact, abs=1e-6)


def test_predictions_stand_in_for_questions_that_were_not_scored() -> None:
    drawn = torch.Generator().manual_seed(0)
    predicted = torch.randn(3, 40, generator=drawn, dtype=torch.float64)
    exact = 2.0 * predicted + torch.tensor([[1.0], [-1.0], [0.5]])
    means = controlled(exact[:, :8], predicted)
    assert means == pytest.approx(exact.mean(dim=1).tolist(), abs=1e-9)
    assert controlled(exact, predicted[:, :20]) == pytest.approx(exact.mean(dim=1).tolist())
    silent = controlled(exact[:, :8], torch.zeros_like(predicted))
    assert silent == pytest.approx(exact[:, :8].mean(dim=1).tolist())


def test_a_poor_prediction_is_made_up_for_by_more_exact_cells(small, monkeypatch) -> None:
    lens, _ = small
    monkeypatch.setattr(halving, "FEWEST_ITEMS", 16)
    far = random_vectors(tiny.reference("Llama"), 2, (1, 2), 8.0)  # where no slope reaches
    near = random_vectors(tiny.reference("Llama"), 2, (1, 2), 0.002)
    options = {"layers": [1, 2], "alphas": (1.0, 2.0, 3.0, 4.0, 5.0), "method": "cloze"}
    poor = rl.search(lens, far, QUESTIONS, **options).quality
    good = rl.search(lens, near, QUESTIONS, **options).quality
    assert good["rho"].min() > 0.8
    assert not good["widened"].any()
    assert poor["rho"].min() < good["rho"].min()
    assert poor["run"].sum() > good["run"].sum()


def test_what_a_poor_prediction_costs_is_bounded(small, monkeypatch) -> None:
    lens, _ = small
    monkeypatch.setattr(halving, "FEWEST_ITEMS", 16)
    far = random_vectors(tiny.reference("Llama"), 2, (1, 2), 8.0)
    alphas = [0.5 + 0.1 * n for n in range(40)]
    quality = rl.search(lens, far, QUESTIONS, layers=[1, 2], alphas=alphas, method="cloze").quality
    assert (quality["cells"] >= 80).all()
    assert quality["widened"].any()
    assert (quality["run"] <= 24).all()


def test_names_are_searched_on_their_own_domains(small) -> None:
    lens, vectors = small
    questions = [
        rl.Question(q.id, q.text, q.options, q.answer, "even" if n % 2 == 0 else "odd")
        for n, q in enumerate(QUESTIONS)
    ]
    domains = {"r0": "even", "r1": "odd", "r2": "even", "r3": "odd"}
    options = OPTIONS | {"alphas": [1.0]}
    search = rl.search(lens, vectors, questions, domains=domains, **options)
    for name, domain in domains.items():
        assert set(search.scores(name).domains) == {domain}
        assert len(search.scores(name).items) == 8
    with pytest.raises(rl.InputError, match="no domain for 'r0'"):
        rl.search(lens, vectors, questions, domains={"r1": "odd"})
    with pytest.raises(rl.InputError, match="no domain 'prime'"):
        rl.search(lens, vectors, questions, domains=dict.fromkeys(domains, "prime"))


def test_steerings_are_searched_by_name(small) -> None:
    """What is joined is a cell like any other; a name has as many as it is given."""
    lens, vectors = small
    d, e = vectors.direction("r0", 1, -1), vectors.direction("r1", 2, -2)
    what = {"both": rl.add(d, 1.0) + rl.add(e, -1.0, tokens="prompt"), "one": rl.add(d, 2.0)}
    search = rl.search(lens, what, QUESTIONS[:8], method="cloze")
    for name, steering in what.items():
        assert search.best(name).steering == steering
        scores = rl.evaluate(lens, QUESTIONS[:8], steering, "cloze")
        assert search.scores(name).margin == pytest.approx(scores.margin, abs=1e-3)


def loud(item: rl.Question, answer: torch.Tensor) -> float:
    return float(answer[0])


@pytest.mark.usefixtures("unchecked")
def test_bad_searches_are_refused(small, searched) -> None:
    lens, vectors = small
    with pytest.raises(rl.InputError, match="by is 'luck'"):
        rl.search(lens, vectors, QUESTIONS, by="luck")
    with pytest.raises(rl.InputError, match="screened is 0"):
        rl.search(lens, vectors, QUESTIONS, screened=0)
    with pytest.raises(rl.InputError, match="no name 'x'"):
        searched.best("x")
    with pytest.raises(rl.InputError, match="no name 'x'"):
        searched.scores("x")
    with pytest.raises(rl.InputError, match="every cell of 'r0' is zero"):
        rl.search(lens, vectors, QUESTIONS, alphas=[0.0])
    ablated = rl.ablate(vectors.direction("r0", 1, -1), lens)
    with pytest.raises(rl.InputError, match="no addition to the residual stream"):
        rl.search(lens, [ablated], QUESTIONS)
    with pytest.raises(rl.InputError, match="'loud' gives float without a gradient"):
        rl.search(lens, vectors, QUESTIONS, metric=loud)
    problems = tasks.Problems("sums", (rl.Problem("a", "One and one?", "2"),))
    with pytest.raises(rl.InputError, match="answers to 'sums' cannot be predicted"):
        rl.search(lens, vectors, problems, max_new_tokens=1)
