"""GrAInS: attribution against plain gradients, and tokens that decide by construction."""

import pytest
import torch

import oracles
import planted
import rolelens as rl
import tiny
from conftest import tiny_lens
from rolelens.rollouts import (
    grains_contrast,
    grains_vectors,
    released_hooks,
    token_scores,
)
from rolelens.vectors.estimators import DifferenceInMeans, PairedPCA
from test_features import bridge

TEXTS = ["Explain how a river finds the sea.", "Who was here first?"]


@pytest.mark.parametrize("architecture", ["Llama", "Gemma2", "Qwen3"])
def test_scores_are_integrated_gradients_of_embeddings(architecture: str) -> None:
    lens = tiny_lens(architecture)
    tokens = lens.encode(TEXTS, raw=True)
    found = token_scores(lens, tokens, steps=5)
    model = tiny.reference(architecture)
    for ids, scores in zip(tokens.ids, found, strict=True):
        whole = model.get_input_embeddings()(torch.tensor([ids])).detach()
        total = torch.zeros_like(whole)
        for step in range(5):
            x = (whole * (step + 0.5) / 5).requires_grad_()
            with torch.enable_grad():
                logits = model(inputs_embeds=x).logits[0, -2].log_softmax(dim=-1)
                (slope,) = torch.autograd.grad(logits[ids[-1]], [x])
            total += slope / 5
        expected = (whole * total)[0].sum(dim=-1)
        torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-4)
        assert scores[-1] == 0


@pytest.fixture(scope="module")
def lens() -> rl.Lens:
    """Tokens are gathered by the second block, and the first puts something beside each.

    Else a norm would take away the size of what a token says, and with it all that lies between
    zero and the token.
    """
    made = planted.model()
    first, second = made.model.layers[:2]
    second.self_attn.load_state_dict(first.self_attn.state_dict())
    with torch.no_grad():
        first.self_attn.o_proj.weight.zero_()
        beside = torch.zeros(planted.D)
        beside[planted.REST[0]] = 3.0
    first.mlp.down_proj.bias = torch.nn.Parameter(beside)
    return rl.Lens(bridge(made))


def asked(n: int = 10) -> tuple[list[str], list[str], list[str]]:
    """Questions whose answer a token says openly, the right letter and a wrong one."""
    rows = [row for row in planted.questions(3 * n) if row["domain"] == "art"]
    rows = [row for k, row in enumerate(rows) if k % 5 < 2][:n]
    right = [planted.LETTERS[row["answer"]] for row in rows]
    wrong = [planted.LETTERS[(row["answer"] + 1) % 4] for row in rows]
    return [row["text"] for row in rows], right, wrong


def test_the_token_that_decides_has_the_highest_score(lens: rl.Lens) -> None:
    prompts, right, _ = asked()
    tokens = lens.encode(prompts, right)
    for ids, scores in zip(tokens.ids, token_scores(lens, tokens), strict=True):
        decisive = [n for n, token in enumerate(ids) if token in map(planted.token, planted.OPEN)]
        assert int(scores.argmax()) == decisive[0]


def test_a_direction_is_what_the_deciding_token_adds(lens: rl.Lens) -> None:
    """The difference is what the second block gathers of that token, and little else."""
    prompts, right, wrong = asked()
    contrast = grains_contrast(lens, prompts, right, wrong, layers=[2], k=1, sides="opposed")
    positive = contrast.labelled[2].differences[: len(prompts)]
    for difference, letter in zip(positive, right, strict=True):
        gives = difference[list(planted.GIVES)]
        assert int(gives.argmax()) == planted.LETTERS.index(letter)
    null = grains_contrast(lens, prompts, right, wrong, layers=[2], k=1, pick="random")
    random = null.labelled[2].differences[: len(prompts)]
    assert positive[:, list(planted.GIVES)].norm() > 2 * random[:, list(planted.GIVES)].norm()


def test_estimators_take_the_pairs(llama: rl.Lens) -> None:
    prompts, positive, negative = ["Prove it.", "Who was here?"], ["Yes.", "Me."], ["No.", "You."]
    both = grains_contrast(llama, prompts, positive, negative, layers=[1, 2], k=2, steps=3)
    opposed = grains_contrast(
        llama, prompts, positive, negative, layers=[1, 2], k=2, steps=3, sides="opposed"
    )
    means = both.directions(DifferenceInMeans(), "x")
    d, e = both.labelled[2].differences, opposed.labelled[2].differences
    torch.testing.assert_close(means.at(2).vector.double(), d.mean(dim=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(e[:2], d[:2])
    torch.testing.assert_close(e[2:], -d[2:])
    vectors = grains_vectors(llama, prompts, positive, negative, layers=[1, 2], k=2, steps=3)
    torch.testing.assert_close(
        vectors.directions, both.directions(PairedPCA(), "grains").directions
    )
    assert float(vectors.at(2).vector.double() @ d.mean(dim=0)) > 0
    # What is read is the state of a plain model on the replaced tokens.
    tokens = llama.encode(prompts, positive)
    state = oracles.hidden(tiny.reference("Llama"), tokens.ids[0])[2, -1]
    torch.testing.assert_close(both.labelled[2].positive[0], state, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["Llama", "Gemma3"])
def test_released_steering_keeps_norms_over_tokens(architecture: str) -> None:
    lens, model = tiny_lens(architecture), tiny.reference(architecture)
    d = rl.Direction(torch.randn(32, generator=torch.Generator().manual_seed(2)), 2)
    ids = lens.encode(TEXTS[:1], raw=True).ids[0]

    def change(x: torch.Tensor) -> torch.Tensor:
        moved = x + 10 * 0.5 * d.vector / d.vector.norm()
        return torch.stack(
            [moved[..., c] * x[..., c].norm() / moved[..., c].norm() for c in range(32)], dim=-1
        )

    with oracles._changed(model, 2, change):
        expected = oracles.logits(model, ids)
    with torch.inference_mode(), lens.steered(released_hooks(d, 0.5)):
        found = lens.model(torch.tensor([ids]), return_type="logits")[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert (found - oracles.logits(model, ids)).abs().max() > 1e-2


def test_released_steering_of_one_token_changes_signs_alone() -> None:
    ((name, hook),) = released_hooks(rl.Direction(torch.randn(32), 2), 2.0)
    x = torch.randn(1, 1, 32)
    torch.testing.assert_close(hook(x).abs(), x.abs())
    d = rl.Direction(torch.randn(32), 2)
    ((name, hook),) = released_hooks(d, 2.0)
    opposed = (-20 * d.vector / d.vector.norm()).half()[None, None]
    assert hook(opposed).isfinite().all()  # what is added cancels it, and half has no 1e-12
    assert name == "blocks.2.hook_resid_pre"
    with pytest.raises(rl.InputError, match="alpha is 0"):
        released_hooks(rl.Direction(torch.ones(32), 2), 0.0)


def test_bad_input(llama: rl.Lens, unchecked: object) -> None:
    for sentence, options in (
        ("no pick", {"pick": "best"}),
        ("no sides", {"sides": "one"}),
        ("k 0", {"k": 0}),
    ):
        with pytest.raises(rl.InputError, match=sentence):
            grains_contrast(llama, ["a"], ["b"], ["c"], **options)
    with pytest.raises(rl.InputError, match="as many of each"):
        grains_contrast(llama, ["a"], ["b"], [])
