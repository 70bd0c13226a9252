import math

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

import oracles
import planted
import rolelens as rl
import tiny
from rolelens import suggesting
from rolelens.suggesting import PROMPTS, WRITTEN, _chosen
from rolelens.sweeps import cell_of_steering


@pytest.fixture(scope="module")
def lens() -> rl.Lens:
    """A model in which one direction is known to help with one domain."""
    return rl.Lens(
        TransformerBridge.boot_transformers(
            "planted", hf_model=planted.model(), tokenizer=tiny.tokenizer(), device="cpu"
        )
    )


def task() -> rl.Task:
    rows = [rl.Question(**row) for row in planted.questions(30)]
    return rl.load_task(rows).domain(planted.PLANTED)


def vectors(lens: rl.Lens, name: str = planted.PLANTED) -> rl.Directions:
    prompts = {name: planted.prompts(name, 24)}
    return rl.role_vectors(lens, prompts, planted.prompts(None, 24))


def test_what_is_suggested_is_the_best_coherent_cell(lens: rl.Lens) -> None:
    found = rl.suggest(lens, vectors(lens), task(), items=16, coherence=50.0)
    assert (found.table["gain"].isna() == ~found.table["coherent"]).all()
    good = found.table[found.table["coherent"] & (found.table["gain"] > 0)]
    best = good.loc[good["gain"].idxmax()]
    (step,) = found.steering.steps
    assert step.direction.layer == best["layer"]
    assert step.alpha == best["share"]
    assert step.unit == "resid_norm"
    assert f"layer {int(best['layer'])}" in found.reason
    assert step.direction.layer in (1, 2)  # the third block reads it
    raw = rl.add(step.direction, float(best["alpha"]))
    torch.testing.assert_close(
        raw.steps[0].vector, step.vector, rtol=1e-4, atol=1e-6
    )  # the same strength, as a factor
    assert (
        rl.compare(
            rl.evaluate(lens, task()), rl.evaluate(lens, task(), found.steering)
        ).margin.value
        > 0
    )
    assert found.screened["predicted"].is_monotonic_decreasing


def test_coherence_is_how_well_own_answers_are_still_predicted(lens: rl.Lens) -> None:
    found = rl.suggest(lens, vectors(lens), task(), items=4)
    row = found.table.iloc[-1]
    model, tokenizer = planted.model(), tiny.tokenizer()
    d = vectors(lens)[planted.PLANTED].at(int(row["layer"]), int(row["position"]))
    prompts = list(rl.load_base())[:PROMPTS]
    before, after = [], []
    for prompt, text in zip(prompts, lens.generate(prompts, max_new_tokens=WRITTEN), strict=True):
        if not text:
            continue
        ids = oracles.chat_ids(tokenizer, prompt)
        own = tokenizer(text, add_special_tokens=False).input_ids
        before.append(oracles.option_logprob(model, ids, own))
        with oracles.added(model, d.layer, float(row["alpha"]) * d.vector):
            after.append(oracles.option_logprob(model, ids, own))
    ratio = math.exp(float(torch.cat(before).mean() - torch.cat(after).mean()))
    assert row["perplexity"] == pytest.approx(ratio, rel=0.02)


def test_nothing_is_suggested_where_nothing_helps(lens: rl.Lens) -> None:
    """A direction of a domain whose answers stand nowhere in the prompt."""
    hidden = [row for row in planted.questions(30) if row["domain"] == "law"]
    unsaid = [rl.Question(**row) for row in hidden if "(0)" in row["text"]]
    found = rl.suggest(lens, vectors(lens, "art"), unsaid, items=8)
    helped = found.table[found.table["coherent"] & (found.table["gain"] > 0)]
    assert found.steering.is_zero == helped.empty
    if helped.empty:
        assert found.reason.startswith("nothing is suggested")
    table = found.table.assign(coherent=False)
    cells = [cell_of_steering(rl.Steering())] * len(table)
    none = _chosen(table, found.screened, cells, "margin", 8, 1.5)
    assert none.steering.is_zero
    assert none.reason.startswith(f"nothing is suggested: none of {len(table)} cells leaves")
    table = found.table.assign(coherent=True, gain=-1.0)
    none = _chosen(table, found.screened, cells, "margin", 8, 1.5)
    assert f"of the {len(table)} of {len(table)} cells" in none.reason


@pytest.mark.parametrize("tokens", ["last", "prompt"])
def test_some_tokens_are_steered_in_what_is_suggested(lens: rl.Lens, tokens) -> None:
    found = rl.suggest(lens, vectors(lens), task(), items=8, coherence=50.0, tokens=tokens)
    assert found.table["perplexity"].notna().all()
    assert [step.tokens for step in found.steering.steps] in ([], [tokens])


def test_a_strength_out_of_range_is_incoherent(lens: rl.Lens, monkeypatch) -> None:
    monkeypatch.setattr(suggesting, "SHARES", (0.1, 3e38))
    found = rl.suggest(lens, vectors(lens), task(), items=8, coherence=50.0)
    lost = found.table[found.table["share"] > 1]
    assert not lost["coherent"].any()
    assert (lost["perplexity"] == math.inf).any()
    assert found.table[found.table["share"] < 1]["coherent"].all()


def test_what_cannot_be_suggested_is_refused(lens: rl.Lens, unchecked: object) -> None:
    v = vectors(lens)
    both = rl.concat(v, vectors(lens, "law"))
    problem = [rl.Problem("p", "How much is 2 + 3?", "5")]
    for sentence, make in (
        ("directions of 2 names; take one", lambda: rl.suggest(lens, both, task())),
        ("items is 0", lambda: rl.suggest(lens, v, task(), items=0)),
        ("coherence 1;", lambda: rl.suggest(lens, v, task(), coherence=1)),
        ("cannot be predicted from gradients", lambda: rl.suggest(lens, v, problem)),
        ("none of the tokens", lambda: rl.suggest(lens, v, task(), tokens="generated")),
    ):
        with pytest.raises(rl.InputError, match=sentence):
            make()
