import math

import pytest
import torch

import oracles
import rolelens as rl
import tiny
from conftest import Variant

TEXT = "The lighthouse stands in the fog, and nobody knows who was there first. " * 6


def strided(model, ids: list[int], window: int, stride: int) -> list[float]:
    """Every token but the first, one forward pass a window."""
    each, done = [], 1
    for end in [window, *range(window + stride, len(ids) + stride, stride)]:
        begin = max(0, end - window)
        logprobs = oracles.logits(model, ids[begin:end]).log_softmax(dim=-1)
        each += [float(logprobs[n - 1 - begin, ids[n]]) for n in range(done, min(end, len(ids)))]
        done = min(end, len(ids))
    return each


@pytest.mark.parametrize(("window", "stride"), [(24, 12), (16, 5), (128, 64)])
def test_perplexity_equals_a_loop_over_windows(
    lens: rl.Lens, variant: Variant, window: int, stride: int
) -> None:
    model = tiny.reference(variant.architecture)
    ids = lens.tokenizer(TEXT).input_ids[:70]
    read = rl.perplexity(lens, TEXT, window=window, stride=stride, max_tokens=70)
    expected = torch.tensor(strided(model, ids, window, stride))
    torch.testing.assert_close(read.logprobs, expected, atol=1e-3, rtol=1e-4)
    assert read.value == pytest.approx(math.exp(-expected.mean()), rel=1e-3)


def test_steering_reaches_every_window(lens: rl.Lens, variant: Variant) -> None:
    model = tiny.reference(variant.architecture)
    d = rl.role_vectors(lens, {"a": tiny.PROMPTS}, base=tiny.OTHERS)["a"].at(2, -1)
    read = rl.perplexity(lens, TEXT, rl.add(d, 2.0), window=24, stride=12, max_tokens=60)
    ids = lens.tokenizer(TEXT).input_ids[:60]
    with oracles.added(model, 2, 2 * d.vector):
        expected = torch.tensor(strided(model, ids, 24, 12))
    torch.testing.assert_close(read.logprobs, expected, atol=1e-3, rtol=1e-4)


def test_bad_windows_and_texts_are_refused(llama: rl.Lens) -> None:
    for window, stride in ((8, 8), (129, 4), (8, 0)):
        with pytest.raises(rl.InputError, match="expected 0 < stride < window <= 128, the context"):
            rl.perplexity(llama, TEXT, window=window, stride=stride)
    with pytest.raises(rl.InputError, match="2 are needed at least"):
        rl.perplexity(llama, TEXT, window=8, stride=4, max_tokens=1)


def test_steering_that_touches_no_token_is_refused(llama: rl.Lens) -> None:
    d = rl.Direction(torch.ones(llama.d_model), layer=2)
    for tokens in ("prompt", "generated", "post-instruction", (3,)):
        with pytest.raises(rl.InputError, match="which a text without a prompt does not have"):
            rl.perplexity(llama, TEXT, rl.add(d, tokens=tokens))
