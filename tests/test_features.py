"""Features of a planted model: which of them a role turns on, and what a direction is made of."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import planted
import rolelens as rl
import tiny
from rolelens.features import (
    SparseAutoencoder,
    content_tokens,
    decoder_cosines,
    feature_contrast,
    srps,
)
from rolelens.forward import Tokens

N = 60
MARK = planted.HOLDS_MARK[0]
ROLE, OTHER = 3, 4
"""Features of the planted role, and of another."""


def bridge(model: Any) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(
        "planted", hf_model=model, tokenizer=tiny.tokenizer(), device="cpu"
    )


@pytest.fixture(scope="module")
def lens() -> rl.Lens:
    return rl.Lens(bridge(planted.model()))


@pytest.fixture(scope="module")
def sae() -> SparseAutoencoder:
    """Features of what the first block gathers of two marks; the others are noise."""
    drawn = torch.Generator().manual_seed(0)
    rows = torch.randn(N, planted.D, generator=drawn)
    for dimensions in (planted.HOLDS_MARK, planted.HOLDS_HIDDEN, planted.GIVES):
        rows[:, list(dimensions)] = 0
    for feature, at in ((ROLE, MARK), (OTHER, planted.HOLDS_MARK[1])):
        rows[feature] = 0
        rows[feature, at] = 1
    rows = torch.nn.functional.normalize(rows, dim=-1)
    return SparseAutoencoder(
        rows.T, torch.zeros(N), rows, torch.zeros(planted.D), "blocks.0.hook_resid_post", "relu"
    )


def prompts(domain: str | None, seed: int = 0) -> list[str]:
    return planted.prompts(domain, 24, seed)


def test_features_of_a_role_are_found_and_shuffled_labels_have_none(
    lens: rl.Lens, sae: SparseAutoencoder
) -> None:
    found = feature_contrast(
        lens, sae, prompts("math"), prompts(None), name="math", shuffles=39, tokens="none"
    )
    table = found.table(5)
    assert table["feature"][0] == ROLE
    assert table["p"][0] == 1 / 40
    assert (table["p"][1:] > 0.05).all()
    null = feature_contrast(lens, sae, prompts(None, 1), prompts(None), shuffles=39, tokens="none")
    assert (null.table(5)["p"] > 0.05).all()


def test_a_contrast_is_a_loop_over_prompts(lens: rl.Lens, sae: SparseAutoencoder) -> None:
    found = feature_contrast(lens, sae, prompts("math"), prompts(None), tokens="none")
    sides = []
    for texts in (prompts("math"), prompts(None)):
        read = rl.activations(lens, texts, layers=[1], positions="all")
        sides.append(torch.stack([torch.relu(x[0] @ sae.w_dec.T).mean(dim=0) for x in read]))
    torch.testing.assert_close(found.positive, sides[0].mean(dim=0))
    torch.testing.assert_close(found.negative, sides[1].mean(dim=0))
    shares = [(side > 0.2).float().mean(dim=0) for side in sides]
    expected = sides[0].mean(dim=0) - sides[1].mean(dim=0) + 3 * (shares[0] - shares[1])
    torch.testing.assert_close(found.scores, expected)


def test_srps_is_the_sum_of_the_highest_features(lens: rl.Lens, sae: SparseAutoencoder) -> None:
    vectors = srps(lens, sae, prompts("math"), prompts(None), name="math", top=3, tokens="none")
    found = feature_contrast(lens, sae, prompts("math"), prompts(None), tokens="none")
    best = sorted(range(N), key=lambda f: -float(found.scores[f]))[:3]
    expected = sum(8 * found.positive[f] * sae.w_dec[f] for f in best)
    d = vectors.at(layer=1)
    torch.testing.assert_close(d.vector, expected)
    assert ROLE in best
    by_difference = found.directions(3, by="difference").at(layer=1).vector
    torch.testing.assert_close(
        by_difference, sum(8 * found.difference[f] * sae.w_dec[f] for f in best)
    )
    # It enters like any other direction, and does what was planted.
    task = rl.load_task([rl.Question(**row) for row in planted.questions(20)]).domain("math")
    alone = srps(lens, sae, prompts("math"), prompts(None), name="math", top=1, tokens="none")
    plain, steered = (
        rl.evaluate(lens, task, hooks) for hooks in ((), rl.add(alone.at(layer=1), 1.0))
    )
    assert steered.accuracy > plain.accuracy + 0.3


def test_nulls_of_srps_are_as_long_and_use_other_features(
    lens: rl.Lens, sae: SparseAutoencoder
) -> None:
    found = feature_contrast(lens, sae, prompts("math"), prompts(None), name="math", tokens="none")
    d = found.directions(4).at(layer=1)
    nulls = found.nulls(3, top=4)
    assert all(null.imitates == "math" for null in nulls.nulls.values())
    for name in nulls.names:
        null = nulls.direction(name, 1)
        assert null.norm == pytest.approx(d.norm, rel=1e-4)
        assert abs(float(null.vector[MARK])) < 1e-6
    assert torch.equal(nulls.directions[:2], found.nulls(2, top=4).directions)
    with pytest.raises(rl.InputError, match="features are left"):
        found.nulls(1, top=N - 1)
    # Roles and their features' nulls go through one study.
    both = rl.concat(found.directions(4), nulls)
    assert both.controls is not None


def test_decoder_cosines_find_a_planted_feature(lens: rl.Lens, sae: SparseAutoencoder) -> None:
    vectors = rl.role_vectors(
        lens,
        {name: prompts(name) for name in planted.MARKS},
        prompts(None),
        layers=[1],
        positions=[-1],
    )
    table = decoder_cosines(sae, vectors["math"].at(1, -1), nulls=vectors, top=4)
    assert table["feature"][0] == ROLE
    assert table["p_random"][0] == 1 / 101
    assert table["cosine"][0] == pytest.approx(
        float(vectors["math"].at(1, -1).unit[MARK]), abs=1e-5
    )
    assert (table["p_random"][1:] > 0.05).all()
    random = vectors["math"].at(1, -1).random_like(7)
    assert (decoder_cosines(sae, random)["p_random"] > 0.05).all()
    # The closed form is near what random directions have.
    assert table.attrs["random"] == pytest.approx(table.attrs["expected"], rel=0.3)


def test_a_direction_elsewhere_is_refused(sae: SparseAutoencoder) -> None:
    d = rl.Direction(torch.ones(planted.D), layer=2)
    with pytest.raises(rl.InputError, match="resid_pre of layer 2"):
        decoder_cosines(sae, d)
    one = rl.Directions(
        torch.ones(1, 1, 1, planted.D), ("direction",), (1,), (None,), torch.ones(1, 1)
    )
    with pytest.raises(rl.InputError, match="own name only"):
        decoder_cosines(sae, dataclasses.replace(d, layer=1), nulls=one)


class Marks:
    """A tokenizer of whole words, which writes spaces by some mark."""

    all_special_ids = (0,)

    def __init__(self, mark: str, bos: str) -> None:
        self.words = [bos, f"{mark}the", f"{mark}River", "!", f"{mark}of", "4"]
        self.mark = mark

    def convert_ids_to_tokens(self, token: int) -> str:
        return self.words[token]

    def decode(self, ids: list[int]) -> str:
        return "".join(self.words[i].replace(self.mark, " ") for i in ids)


@pytest.mark.parametrize(
    ("mark", "bos", "released"),
    [
        ("Ġ", "<|begin_of_text|>", [False, False, True, False, False, True]),
        ("▁", "<bos>", [True, True, True, False, True, True]),
    ],
)
def test_content_tokens(mark: str, bos: str, released: list[bool], unchecked: object) -> None:
    """The released filter knows one tokenizer's marks; the mended one none."""
    lens: Any = SimpleNamespace(tokenizer=Marks(mark, bos))
    tokens = Tokens(((0, 1, 2, 3, 4, 5), (1, 4)), (6, 2), 0)
    mended, stops = content_tokens(lens, tokens)
    assert mended.tolist() == [False, False, True, False, False, True]
    assert stops.all()  # nothing else is there
    assert content_tokens(lens, tokens, "released")[0].tolist() == released
    assert content_tokens(lens, tokens, "none")[0].all()
