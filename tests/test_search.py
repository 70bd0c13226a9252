import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

import oracles
import rolelens as rl
import tiny
from rolelens import scoring
from rolelens.scoring import letter_prompt
from rolelens.sweep.grid import make_grid
from rolelens.sweep.screen import controlled, screen

WORDS = "stone bird lamp river sea rice boat fog marsh song fire ice grass snow sky blood".split()
QUESTIONS = [
    rl.Question(f"q{n}", f"Which is the {w}?", tuple(WORDS[(n + k) % 16] for k in (0, 3, 7)), n % 3)
    for n, w in enumerate(WORDS)
]
MANY = [
    rl.Question(f"{q.id}-{k}", f"{q.text} {k}", q.options, q.answer)
    for k in range(4)
    for q in QUESTIONS
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
    return rl.RoleVectors(noise, names, layers, (-2, -1), torch.ones(len(layers), 2))


def plain_scores(model, tokenizer, question, ids, method, layer, delta, chosen) -> torch.Tensor:
    with oracles.added(model, layer, delta, chosen):
        if method == "letter":
            own = [tokenizer.encode(x)[-1] for x in "ABC"]
            return oracles.logits(model, ids)[-1][own].log_softmax(-1)
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
    model, tokenizer = tiny.reference(architecture).double(), tiny.tokenizer()
    try:
        vectors = random_vectors(tiny.reference(architecture).float(), 1, (0, 2), 1.0)
        grid = make_grid(vectors, 4, layers=[0, 2], positions=[-1], alphas=[0.5], change="add")
        prepared = scoring.prepare(lens, QUESTIONS[:3], method)
        baseline = scoring.score(lens, prepared).logprobs
        found = screen(lens, prepared, baseline, grid, grid.keys, tokens)
        model.double()
        for c, key in enumerate(grid.keys):
            d = grid.direction(key).vector.double()
            for n, question in enumerate(QUESTIONS[:3]):
                letters = method == "letter"
                text = letter_prompt(question) if letters else question.text
                ids = oracles.chat_ids(tokenizer, text)
                chosen = (
                    slice(None)
                    if tokens == "all"
                    else slice(len(ids) - len(lens.positions), len(ids))
                )

                own = (model, tokenizer, question, ids, method, key.layer)
                low, high = (
                    margin(plain_scores(*own, step * d, chosen), question.answer)
                    for step in (-STEP, STEP)
                )
                slope = (high - low) / (2 * STEP)
                assert float(found[c, n]) == pytest.approx(key.alpha * slope, rel=2e-2, abs=4e-3)
    finally:
        tiny.reference(architecture).float()


@pytest.fixture(scope="module")
def small() -> tuple[rl.Lens, rl.RoleVectors]:
    from conftest import Variant, shared

    vectors = random_vectors(tiny.reference("Llama"), 4, (0, 1, 2, 3), 0.1)
    return shared(Variant("Llama")), vectors


OPTIONS = {"layers": [0, 1, 2, 3], "alphas": (0.5, 1.0, -1.0), "method": "cloze"}


@pytest.mark.parametrize("by", ["margin", "accuracy"])
def test_the_search_finds_nearly_the_best_cell(small, by: str) -> None:
    lens, vectors = small
    table = rl.sweep(lens, vectors, MANY, **OPTIONS).table()
    search = rl.search(lens, vectors, MANY, by=by, **OPTIONS)
    assert len(search.table) == len(table) == 4 * 4 * 2 * 3
    regrets, random = [], []
    for role, own in table.groupby("role"):
        best = search.best(role)
        key = (best.direction.layer, best.direction.position, best.alpha)
        row = own.set_index(["layer", "position", "alpha"]).loc[key]
        assert search.scores(role).margin == pytest.approx(row["margin"], abs=1e-4)
        assert search.scores(role).accuracy == pytest.approx(row["accuracy"])
        regrets.append(own[by].max() - row[by])
        random.append(own[by].max() - own[by].mean())
    assert np.mean(regrets) <= 0.2 * np.mean(random)
    assert search.table["questions"].sum() < 0.6 * len(table) * len(MANY)


def test_what_was_scored_exactly_is_what_the_sweep_scores(small) -> None:
    lens, vectors = small
    swept = rl.sweep(lens, vectors, MANY, **OPTIONS)
    search = rl.search(lens, vectors, MANY, **OPTIONS)
    whole = search.table[search.table["questions"] == len(MANY)]
    assert len(whole) >= 4
    for row in whole.itertuples():
        cell = swept.cell(row.role, row.layer, row.position, row.alpha)
        assert row.margin == pytest.approx(cell.margin, abs=1e-4)
        assert row.margin_gain == pytest.approx(cell.margin - swept.baseline.margin, abs=1e-4)


def test_the_search_is_the_same_again_under_a_seed(small) -> None:
    lens, vectors = small
    first, second = (rl.search(lens, vectors, MANY, seed=5, **OPTIONS) for _ in range(2))
    pd.testing.assert_frame_equal(first.table, second.table)
    other = rl.search(lens, vectors, MANY, seed=6, **OPTIONS)
    assert set(first.table["questions"]) == {0, 32, 64}
    assert not first.table["questions"].equals(other.table["questions"])


def test_the_quality_of_the_screen_is_its_rank_correlation(small) -> None:
    lens, vectors = small
    search = rl.search(lens, vectors[["r1"]], QUESTIONS[:8], **OPTIONS)
    assert len(search.quality) == 1
    run = search.table[search.table["questions"] > 0]
    quality = search.quality.iloc[0]
    assert quality["run"] == len(run)
    assert quality["cells"] == len(search.table)
    exact = spearmanr(run["predicted"], run["margin"]).statistic
    assert quality["rho"] == pytest.approx(exact, abs=1e-6)


def test_predictions_stand_in_for_questions_that_were_not_scored() -> None:
    drawn = torch.Generator().manual_seed(0)
    predicted = torch.randn(3, 40, generator=drawn, dtype=torch.float64)
    exact = 2.0 * predicted + torch.tensor([[1.0], [-1.0], [0.5]])
    found = controlled(exact[:, :8], predicted)
    assert found == pytest.approx(exact.mean(dim=1).tolist(), abs=1e-9)
    assert controlled(exact, predicted[:, :20]) == pytest.approx(exact.mean(dim=1).tolist())
    silent = controlled(exact[:, :8], torch.zeros_like(predicted))
    assert silent == pytest.approx(exact[:, :8].mean(dim=1).tolist())


def test_a_poor_prediction_is_made_up_for_by_more_exact_cells(small) -> None:
    lens, _ = small
    far = random_vectors(tiny.reference("Llama"), 2, (1, 2), 8.0)  # where no slope reaches
    near = random_vectors(tiny.reference("Llama"), 2, (1, 2), 0.002)
    options = {"layers": [1, 2], "alphas": (1.0, 2.0, 3.0, 4.0, 5.0), "method": "cloze"}
    poor = rl.search(lens, far, QUESTIONS, **options).quality
    good = rl.search(lens, near, QUESTIONS, **options).quality
    assert good["rho"].min() > 0.8
    assert not good["widened"].any()
    assert poor["rho"].min() < good["rho"].min()
    assert poor["run"].sum() > good["run"].sum()


def test_what_a_poor_prediction_costs_is_bounded(small) -> None:
    lens, _ = small
    far = random_vectors(tiny.reference("Llama"), 2, (1, 2), 8.0)
    alphas = [0.5 + 0.1 * n for n in range(40)]
    found = rl.search(lens, far, QUESTIONS, layers=[1, 2], alphas=alphas, method="cloze").quality
    assert (found["cells"] >= 80).all()
    assert found["widened"].any()
    assert (found["run"] <= 24).all()


def test_roles_are_searched_on_their_own_domains(small) -> None:
    lens, vectors = small
    questions = [
        rl.Question(q.id, q.text, q.options, q.answer, "even" if n % 2 == 0 else "odd")
        for n, q in enumerate(QUESTIONS)
    ]
    domains = {"r0": "even", "r1": "odd", "r2": "even", "r3": "odd"}
    search = rl.search(lens, vectors, questions, domains=domains, **OPTIONS)
    for role, domain in domains.items():
        assert set(search.scores(role).domains) == {domain}
        assert len(search.scores(role).questions) == 8
    with pytest.raises(rl.InputError, match="no domain for the role 'r0'"):
        rl.search(lens, vectors, questions, domains={"r1": "odd"})
    with pytest.raises(rl.InputError, match="no domain 'prime'"):
        rl.search(lens, vectors, questions, domains=dict.fromkeys(domains, "prime"))


def test_bad_searches_are_refused(small, unchecked) -> None:
    lens, vectors = small
    with pytest.raises(rl.InputError, match="by is 'luck'"):
        rl.search(lens, vectors, QUESTIONS, by="luck")
    with pytest.raises(rl.InputError, match="screened is 0"):
        rl.search(lens, vectors, QUESTIONS, screened=0)
    with pytest.raises(rl.InputError, match="no role 'x'"):
        rl.search(lens, vectors, QUESTIONS[:4], **OPTIONS).best("x")
