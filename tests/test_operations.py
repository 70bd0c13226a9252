"""Every operation against plain Hugging Face hooks, on every architecture of the matrix."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformer_lens.model_bridge import TransformerBridge

import oracles
import planted
import rolelens as rl
import tiny
from conftest import Variant
from rolelens.forward.operations import CHANGES, NUMBERS
from rolelens.hooks import Step

LAYER = 2
PROMPTS = [tiny.PROMPTS[n] for n in (1, 0, 3, 1)]
QUESTIONS = [
    rl.Question("q1", "Which is red?", ("blood", "grass", "the sky", "snow"), 0),
    rl.Question("q2", "Which of these is cold to the touch?", ("fire", "ice"), 1),
]


def plane(lens: rl.Lens) -> tuple[rl.Direction, rl.Direction]:
    """Two directions, at a layer in the middle."""
    vectors = rl.role_vectors(lens, {"a": tiny.PROMPTS, "b": tiny.PROMPTS[:3]}, base=tiny.OTHERS)
    return vectors["a"].at(LAYER), vectors["b"].at(LAYER)


def middle(lens: rl.Lens, d: rl.Direction) -> float:
    """A bound that some tokens lie above and some below."""
    return float(rl.project(lens, PROMPTS, d)["projection"].median())


Kept = tuple[rl.Steering, Callable[[torch.Tensor], torch.Tensor]]


def kinds(lens: rl.Lens) -> dict[str, Kept]:
    """Each operation, and what it does to one token as the oracle has it."""
    d, e = plane(lens)
    v, w, m = d.vector, e.vector, middle(lens, d)
    turn = {"absolute": False, "adaptive": False}
    return {
        "rescaled": (rl.add(d, 2.0, rescale=True), oracles.rescaled(2 * v)),
        "cap": (rl.clamp(d, high=m), oracles.within(v, -1e9, m)),
        "floor": (rl.clamp(d, low=m), oracles.within(v, m, 1e9)),
        "both": (rl.clamp(d, m - 0.1, m + 0.1), oracles.within(v, m - 0.1, m + 0.1)),
        "one-sided": (rl.clamp(d, high=0.0), oracles.within(v, -1e9, 0.0)),
        "fix": (
            rl.Steering([Step("fix", d, m, (LAYER,))]),
            lambda x: x - (x @ v / v.norm() - m) * v / v.norm(),
        ),
        "rotate": (rl.rotate(d, e, 40.0), oracles.turned(v, w, 40, **turn)),
        "turn to": (
            rl.rotate(d, e, 120.0, absolute=True),
            oracles.turned(v, w, 120, absolute=True, adaptive=False),
        ),
        "adaptive": (
            rl.rotate(d, e, 90.0, adaptive=True),
            oracles.turned(v, w, 90, absolute=False, adaptive=True),
        ),
    }


def at(steering: rl.Steering, tokens: Any) -> rl.Steering:
    return steering.with_directions(lambda step: dataclasses.replace(step, tokens=tokens))


def test_logits_are_those_of_plain_hooks_in_raw_transformer_lens(
    lens: rl.Lens, variant: Variant
) -> None:
    model = tiny.reference(variant.architecture)
    ids = oracles.chat_ids(tiny.tokenizer(), PROMPTS[0])
    plain = oracles.logits(model, ids)
    for name, (steering, change) in kinds(lens).items():
        with oracles.entering(model, LAYER, change, slice(None)):
            expected = oracles.logits(model, ids)
        with torch.no_grad():
            found = lens.model.run_with_hooks(torch.tensor([ids]), fwd_hooks=steering)[0]
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3, msg=name)
        assert not torch.allclose(found, plain, atol=1e-2), name


def test_text_is_that_of_plain_hooks_with_and_without_cache_batched_and_alone(
    lens: rl.Lens, variant: Variant
) -> None:
    model = tiny.reference(variant.architecture)
    stop = {1, tiny.tokenizer().convert_tokens_to_ids("<|end|>")}
    prompts = [oracles.chat_ids(tiny.tokenizer(), prompt) for prompt in PROMPTS]
    steerings, expected = [], []
    for n, (steering, change) in enumerate(kinds(lens).values()):
        ids = prompts[n % 4]
        where = slice(len(ids) - 1, None)
        with oracles.entering(model, LAYER, change, where):
            written = oracles.greedy(model, ids, 6)
        end = next((k for k, token in enumerate(written) if token in stop), 6)
        text = tiny.tokenizer().decode(written[:end], skip_special_tokens=True).strip()
        steerings.append(at(steering, "last"))
        expected.append(text)
    asked = [PROMPTS[n % 4] for n in range(len(steerings))]
    for cache in (True, False):
        together = lens.generate(asked, hooks=rl.by_row(steerings), max_new_tokens=6, cache=cache)
        assert together == expected
        for n, steering in enumerate(steerings):
            alone = lens.generate([asked[n]], hooks=steering, max_new_tokens=6, cache=cache)
            assert alone == [expected[n]], (n, cache)


@pytest.mark.parametrize("tokens", ["all", "post-instruction"])
def test_a_sweep_of_every_kind_scores_what_plain_hooks_do(
    lens: rl.Lens, variant: Variant, tokens: str
) -> None:
    model = tiny.reference(variant.architecture)
    known = kinds(lens)
    steerings = {name: at(steering, tokens) for name, (steering, _) in known.items()}
    swept = rl.sweep(lens, steerings, QUESTIONS, method="cloze")
    prepared = swept.prepared.tokens
    n_post = prepared.n_post
    for name, (_, change) in known.items():
        scores: list[float] = []
        for ids, length in zip(prepared.ids, prepared.prompt_lengths, strict=True):
            where = slice(None) if tokens == "all" else slice(length - n_post, length)
            with oracles.entering(model, LAYER, change, where):
                answer = oracles.option_logprob(model, ids[:length], ids[length:])
            scores.append(float(answer.sum()))
        found = swept.logprobs(steerings[name])
        found = found[torch.isfinite(found)]
        np.testing.assert_allclose(found.numpy(), scores, atol=1e-3, rtol=1e-3, err_msg=name)


def test_a_cap_bounds_the_projection_at_every_steered_token(lens: rl.Lens) -> None:
    d, _ = plane(lens)
    m = middle(lens, d)
    before = rl.project(lens, PROMPTS, d)["projection"]
    after = rl.project(lens, PROMPTS, d, hooks=rl.clamp(d, high=m))["projection"]
    assert after.max() <= m + 1e-5
    assert (before > m + 1e-3).any()
    below = before <= m - 1e-4
    assert (after[below] == before[below]).all()  # bit for bit
    last = rl.project(lens, PROMPTS, d, hooks=rl.clamp(d, high=m, tokens="last"))
    lasts = last.groupby("prompt").tail(1)["projection"]
    assert lasts.max() <= m + 1e-5
    others = last.drop(lasts.index)["projection"]
    assert (others == before.drop(lasts.index)).all()


def test_norms_are_kept(llama: rl.Lens) -> None:
    d, e = plane(llama)
    before = rl.activations(llama, PROMPTS, layers=[LAYER])
    for steering in (
        rl.add(d, -3.0, rescale=True),
        rl.rotate(d, e, 77.0),
        rl.rotate(d, e, 200.0, absolute=True),
        rl.rotate(d, e, 30.0, adaptive=True),
    ):
        after = rl.activations(llama, PROMPTS, layers=[LAYER], hooks=steering)
        assert not torch.allclose(after, before, atol=1e-2)
        torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1), atol=1e-4, rtol=1e-5)


NUMBERS_DRAWN = st.floats(-20, 20, allow_nan=False, width=32)


@given(st.integers(0, 10_000), NUMBERS_DRAWN, NUMBERS_DRAWN)
def test_laws_of_the_changes(seed: int, one: float, two: float) -> None:
    drawn = torch.Generator().manual_seed(seed)
    x = 5 * torch.randn(2, 3, 8, generator=drawn, dtype=torch.float64)
    units, others = torch.linalg.qr(torch.randn(2, 8, 2, generator=drawn, dtype=torch.float64))[
        0
    ].unbind(dim=2)
    low, high = sorted((one, two))
    bounds = torch.tensor([[low, high]] * 2)
    kept = CHANGES["clamp"](x, units, others, bounds)
    along = torch.einsum("rpd,rd->rp", kept, units)
    assert (along >= low - 1e-9).all()
    assert (along <= high + 1e-9).all()
    torch.testing.assert_close(CHANGES["clamp"](kept, units, others, bounds), kept)
    angles = torch.tensor([one, two]).double()
    turn = torch.stack([angles.cos(), angles.sin(), torch.zeros(2)], dim=1)
    back = turn * torch.tensor([1.0, -1.0, 1.0])
    turned = CHANGES["rotate"](x, units, others, turn)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(CHANGES["rotate"](turned, units, others, back), x)
    rescaled = CHANGES["add_rescaled"](x, one * units, others, turn[:, :0])
    torch.testing.assert_close(rescaled.norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_with_nothing_to_do_stays_as_it_is(kind: Any, dtype: torch.dtype) -> None:
    """In a batch of cells, some do nothing at a hook point: all their numbers are zero there."""
    x = torch.randn(1, 4, 8).to(dtype)
    x[0, 3] = 0.0
    zero = torch.zeros(1, 8)
    assert torch.equal(CHANGES[kind](x, zero, zero, torch.zeros(1, NUMBERS[kind])), x)


def test_mean_ablation_puts_every_token_at_the_mean(lens: rl.Lens, variant: Variant) -> None:
    d, _ = plane(lens)
    model = tiny.reference(variant.architecture)
    unit = d.vector / d.vector.norm()
    streams = [oracles.hidden(model, oracles.chat_ids(tiny.tokenizer(), p)) for p in tiny.OTHERS]
    means = torch.cat([x @ unit for x in streams], dim=1).mean(dim=1)  # of each layer
    ids = oracles.chat_ids(tiny.tokenizer(), PROMPTS[0])
    with contextlib.ExitStack() as stack:
        for layer, mean in enumerate(means):
            change = oracles.within(d.vector, float(mean), float(mean))
            stack.enter_context(oracles.entering(model, layer, change, slice(None)))
        expected = oracles.logits(model, ids)
    with torch.no_grad():
        steering = rl.mean_ablate(d, lens, tiny.OTHERS)
        found = lens.model.run_with_hooks(torch.tensor([ids]), fwd_hooks=steering)[0]
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_thresholds_are_percentiles_of_the_tokens_that_are_meant(lens: rl.Lens) -> None:
    d, e = plane(lens)
    both = [d, dataclasses.replace(e, layer=1)]
    table = rl.thresholds(lens, PROMPTS, both, (0.0, 50.0, 90.0, 100.0))
    for row, direction in zip(table.to_dict("records"), (d, e), strict=True):
        at_layer = dataclasses.replace(direction, layer=row["layer"])
        values = rl.project(lens, PROMPTS, at_layer)["projection"].to_numpy()
        assert row["tokens"] == len(values)
        expected = np.percentile(values, [0, 50, 90, 100])
        np.testing.assert_allclose([row[p] for p in (0, 50, 90, 100)], expected, rtol=1e-4)
        assert row["mean"] == pytest.approx(values.mean(), rel=1e-4)
    lasts = rl.project(lens, PROMPTS, d).groupby("prompt").tail(1)["projection"]
    table = rl.thresholds(lens, PROMPTS, d, [100.0], tokens="last")
    assert table[100][0] == pytest.approx(lasts.max(), rel=1e-5)
    with pytest.raises(rl.InputError, match="none of the tokens of these prompts"):
        rl.thresholds(lens, PROMPTS, d, tokens="generated")


def test_a_cap_from_the_greatest_projection_leaves_ordinary_prompts_bit_identical(
    lens: rl.Lens,
) -> None:
    d, _ = plane(lens)
    highest = rl.thresholds(lens, PROMPTS, d, [100.0])[100][0]
    cap = rl.clamp(d, high=float(np.nextafter(np.float32(highest), np.float32(np.inf))) + 1e-4)
    before, after = (
        rl.activations(lens, PROMPTS, layers=[lens.n_layers - 1], hooks=hooks)
        for hooks in ([(f"blocks.{LAYER}.hook_resid_pre", lambda x, hook: x)], cap)
    )
    assert torch.equal(before, after)


def test_steerings_of_every_kind_are_values(llama: rl.Lens, tmp_path: Any) -> None:
    d, e = plane(llama)
    made = [
        *(steering for steering, _ in kinds(llama).values()),
        rl.mean_ablate(d, llama, tiny.OTHERS, layers=[1, 3]),
        rl.add(d, 2.0).when(e, above=0.5),
        rl.add(d, 2.0).when(e, below=0.5),
        rl.clamp(d, high=1.0, tokens="generated").when(d, above=-1.0, below=2.0),
    ]
    assert len(set(made)) == len(made)
    for n, steering in enumerate(made):
        loaded = rl.Steering.load(steering.save(tmp_path / f"{n}.safetensors"))
        assert loaded == steering
        assert str(loaded) == str(steering)
        assert loaded.operations[0].tokens == steering.operations[0].tokens
    assert str(rl.add(d, 2.0, rescale=True)) == (
        "add 2 x (a of layer 2, position -1), norms kept in layer 2, tokens all"
    )
    assert str(rl.clamp(d, 0.5, 1.5)) == (
        "floor (a of layer 2, position -1) at 0.5 in layer 2, tokens all; "
        "cap (a of layer 2, position -1) at 1.5 in layer 2, tokens all"
    )
    assert str(rl.rotate(d, e, 30.0, adaptive=True)) == (
        "turn (a of layer 2, position -1) towards (b of layer 2, position -1) by 30 degrees, where "
        "it is above zero in layer 2, tokens all"
    )


def test_a_grid_sweeps_a_cap_like_any_strength(llama: rl.Lens) -> None:
    vectors = rl.role_vectors(llama, {"a": tiny.PROMPTS}, base=tiny.OTHERS)
    bounds = [-0.5, 0.0, 0.5]
    grid = {"layers": [LAYER], "positions": [-1], "alphas": bounds, "change": "cap"}
    swept = rl.sweep(llama, vectors, QUESTIONS, **grid)
    d = vectors["a"].at(LAYER)
    for bound in bounds:
        (cell,) = [cell for cell in swept.cells if cell.alpha == bound]
        assert cell.steering == rl.clamp(d, high=bound)
        expected = rl.evaluate(llama, QUESTIONS, cell.steering).logprobs
        torch.testing.assert_close(swept.logprobs(cell.steering), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(rl.InputError, match="needs alphas, the bounds that are tried"):
        rl.sweep(llama, vectors, QUESTIONS, change="floor")


def test_a_store_keeps_planes_and_conditions(llama: rl.Lens, tmp_path: Any) -> None:
    d, e = plane(llama)
    steerings = [rl.rotate(d, e, 45.0), rl.add(d, 3.0).when(e, above=0.1), rl.clamp(d, high=0.0)]
    swept = rl.sweep(llama, steerings, QUESTIONS, store=tmp_path / "s.db")
    loaded = rl.load_sweep(tmp_path / "s.db")
    assert [cell.steering for cell in loaded.cells] == steerings
    for steering in steerings:
        assert torch.equal(loaded.logprobs(steering), swept.logprobs(steering))


def test_bad_operations_are_refused(llama: rl.Lens, unchecked: object) -> None:
    d, e = plane(llama)
    zero = dataclasses.replace(d, vector=torch.zeros(32))
    for sentence, make in (
        ("a clamp has no bounds", lambda: rl.clamp(d)),
        ("low is 2 and high is 1; low must not", lambda: rl.clamp(d, 2.0, 1.0)),
        ("high is nan; it has to be a finite", lambda: rl.clamp(d, high=float("nan"))),
        ("is zero", lambda: rl.clamp(zero, high=1.0)),
        ("lie on one line", lambda: rl.rotate(d, -2.0 * d, 30)),
        ("take both of the same", lambda: rl.rotate(d, dataclasses.replace(e, layer=1), 30)),
        ("is zero", lambda: rl.rotate(d, zero, 30)),
        ("degrees is None; it has to be", lambda: rl.rotate(d, e, None)),
        ("above is None and below is None", lambda: rl.add(d).when(e)),
        ("nothing lies between", lambda: rl.add(d).when(e, above=2, below=1)),
        ("has a condition already", lambda: rl.add(d).when(e, above=2).when(e, below=3)),
        ("cannot be a condition", lambda: rl.add(d).when("e", above=2)),
        ("is zero", lambda: rl.add(d).when(zero, above=2)),
        ("a percentile is 101", lambda: rl.thresholds(llama, PROMPTS, d, [101])),
        ("change is 'push'; it has to be one of", lambda: _swept(llama, d)),
    ):
        with pytest.raises(rl.InputError, match=sentence):
            make()


def _swept(lens: rl.Lens, d: rl.Direction) -> None:
    vectors = rl.role_vectors(lens, {"a": tiny.PROMPTS}, base=tiny.OTHERS)
    rl.sweep(lens, vectors, QUESTIONS, change="push")


def passing(lens: rl.Lens, prompts: Sequence[str]) -> tuple[rl.Direction, float, list[bool]]:
    """A condition that some of the prompts meet, by plain hidden states."""
    _, e = plane(lens)
    architecture = lens.name.removeprefix("tiny-")
    model = tiny.reference(architecture)
    unit = e.vector / e.vector.norm()
    along = []
    for prompt in prompts:
        ids = oracles.chat_ids(tiny.tokenizer(), prompt)
        along.append(float(oracles.hidden(model, ids)[LAYER, -1] @ unit))
    ordered = sorted(set(along))
    bound = (ordered[0] + ordered[1]) / 2
    return e, bound, [value > bound for value in along]


def test_a_gate_is_of_each_row_and_stays_under_the_cache(lens: rl.Lens, variant: Variant) -> None:
    """A batch of passing and failing prompts is each of them alone, by plain hooks or none."""
    d, _ = plane(lens)
    model = tiny.reference(variant.architecture)
    condition, bound, passes = passing(lens, PROMPTS)
    assert True in passes
    assert False in passes
    stop = {1, tiny.tokenizer().convert_tokens_to_ids("<|end|>")}
    for tokens in ("all", "generated", "last"):
        steering = rl.add(d, 4.0, tokens=tokens).when(condition, above=bound)
        expected = []
        for prompt, met in zip(PROMPTS, passes, strict=True):
            ids = oracles.chat_ids(tiny.tokenizer(), prompt)
            first = {"all": 0, "generated": len(ids), "last": len(ids) - 1}[tokens]
            delta = 4.0 * d.vector if met else torch.zeros(32)
            with oracles.added(model, LAYER, delta, slice(first, None)):
                written = oracles.greedy(model, ids, 6)
            end = next((k for k, token in enumerate(written) if token in stop), 6)
            text = tiny.tokenizer().decode(written[:end], skip_special_tokens=True).strip()
            expected.append(text)
        for cache in (True, False):
            options = {"max_new_tokens": 6, "cache": cache}
            assert lens.generate(PROMPTS, hooks=steering, **options) == expected
            for prompt, text in zip(PROMPTS, expected, strict=True):
                assert lens.generate([prompt], hooks=steering, **options) == [text]
        rows = rl.by_row([steering, rl.Steering(), steering, steering])
        plain = lens.generate([PROMPTS[1]], max_new_tokens=6)
        mixed = lens.generate(PROMPTS, hooks=rows, max_new_tokens=6)
        assert mixed == [expected[0], *plain, *expected[2:]]
        with lens.steered(steering):
            assert lens.generate(PROMPTS, max_new_tokens=6) == expected


@pytest.mark.parametrize("tokens", ["all", "post-instruction", "last"])
def test_gates_in_sweeps_are_those_of_plain_hooks(
    lens: rl.Lens, variant: Variant, tokens: str
) -> None:
    d, _ = plane(lens)
    model = tiny.reference(variant.architecture)
    options = ("red", "a blue stone", "nobody")
    task = rl.load_task([rl.Question(str(n), tiny.PROMPTS[n], options, 0) for n in range(4)])
    _, e = plane(lens)
    unit = e.vector / e.vector.norm()
    prepared = rl.sweep(lens, [rl.add(d)], task, method="cloze").prepared.tokens
    starts = [ids[:n] for ids, n in zip(prepared.ids, prepared.prompt_lengths, strict=True)]
    along = [float(oracles.hidden(model, ids)[LAYER, -1] @ unit) for ids in starts]
    bound = float(np.median(np.unique(along)))
    steerings = [
        rl.add(d, 3.0, tokens=tokens).when(e, above=bound),
        rl.add(d, 3.0, tokens=tokens).when(e, below=bound)
        + rl.clamp(d, high=0.0).when(e, above=bound),
        rl.add(d, 3.0, tokens=tokens),
    ]
    swept = rl.sweep(lens, steerings, task, method="cloze")
    for n, steering in enumerate(steerings):
        scores = []
        for ids, start, value in zip(prepared.ids, starts, along, strict=True):
            length = len(start)
            first = {"all": 0, "last": length - 1, "post-instruction": length - prepared.n_post}
            end = length if tokens == "post-instruction" else None
            where = slice(first[tokens], end)
            passes = (value > bound, value < bound, True)[n]
            with contextlib.ExitStack() as stack:
                if passes:
                    stack.enter_context(oracles.added(model, LAYER, 3 * d.vector, where))
                if n == 1 and value > bound:
                    change = oracles.within(d.vector, -1e9, 0.0)
                    stack.enter_context(oracles.entering(model, LAYER, change, slice(None)))
                answer = oracles.option_logprob(model, start, ids[length:])
            scores.append(float(answer.sum()))
        found = swept.logprobs(steering).flatten().numpy()
        np.testing.assert_allclose(found, scores, atol=1e-3, rtol=1e-3)
        again = rl.evaluate(lens, task, steering, method="cloze").logprobs.flatten().numpy()
        np.testing.assert_allclose(again, scores, atol=1e-3, rtol=1e-3)


def test_a_gate_needs_a_call_that_knows_the_prompt(llama: rl.Lens) -> None:
    d, e = plane(llama)
    steering = rl.add(d, 3.0).when(e, above=0.0)
    with pytest.raises(rl.InputError, match="decided at the prompt, and only calls of a Lens"):
        llama.model.run_with_hooks(torch.tensor([[5, 6]]), fwd_hooks=steering)
    with pytest.raises(rl.InputError, match="which a text does not have"):
        rl.perplexity(llama, "Some text.", steering)
    far = dataclasses.replace(e, layer=9)
    with pytest.raises(rl.InputError, match="no layer 9"):
        llama.generate(["Hi."], hooks=rl.add(d).when(far, above=0.0), max_new_tokens=1)
    narrow = rl.Direction(torch.ones(4), layer=1)
    with pytest.raises(rl.InputError, match="4 wide, and the activations .* are 32 wide"):
        llama.generate(["Hi."], hooks=rl.add(d).when(narrow, above=0.0), max_new_tokens=1)


def test_a_planted_drift_is_undone_and_ordinary_prompts_are_left_alone() -> None:
    """The concept that a planted model answers with goes, by a cap from prompts without it."""
    lens = rl.Lens(
        TransformerBridge.boot_transformers(
            "planted", hf_model=planted.concept(), tokenizer=tiny.tokenizer(), device="cpu"
        )
    )
    ordinary = planted.prompts(None, 24)
    drifting = planted.prompts("math", 12, seed=1)
    d = rl.contrast(lens, planted.prompts("math", 24), ordinary).at(2)
    highest = float(rl.thresholds(lens, ordinary, d, [100.0])[100][0])
    cap = rl.clamp(d, high=highest + 1e-4)
    before, after = (
        rl.project(lens, drifting, dataclasses.replace(d, layer=3), hooks=hooks)
        for hooks in ([], cap)
    )
    again = rl.project(lens, drifting, d, hooks=cap)["projection"]
    assert again.max() <= highest + 2e-4
    token = planted.token(planted.CONCEPT)
    logits = []
    for hooks in ([], cap):
        with lens.steered(hooks), torch.no_grad():
            ids = torch.tensor([lens.encode(drifting[:1]).ids[0]])
            logits.append(lens.model(ids, return_type="logits")[0, -1])
    assert float(logits[0][token]) > float(logits[1][token]) + 0.5
    assert after["projection"].max() < before["projection"].max()
    for prompt in ordinary[:6]:
        ids = torch.tensor([lens.encode([prompt]).ids[0]])
        outs = []
        for hooks in ([], cap):
            with lens.steered(hooks), torch.no_grad():
                outs.append(lens.model(ids, return_type="logits"))
        assert torch.equal(outs[0], outs[1])
