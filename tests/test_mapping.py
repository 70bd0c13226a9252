"""Directions carried to another width: a rotated, wider copy of the model has them."""

import copy
import random

import numpy as np
import pytest
import torch
import transformers

import rolelens as rl
import tiny
from rolelens.mapping import linear_map, map_vectors
from test_features import bridge

WIDE, D = 64, 32
TURN = torch.linalg.qr(torch.randn(WIDE, WIDE, generator=torch.Generator().manual_seed(1))).Q[:D]
"""What stands in the narrow model's stream stands in the wide one's turned by this."""


def prompts(n: int, letters: str, seed: int) -> list[str]:
    drawn = random.Random(seed)
    return ["".join(drawn.choices(letters, k=drawn.randint(6, 14))) for _ in range(n)]


BASE = prompts(80, "abcdefghijklm nop?.", 0)
ROLE = prompts(12, "nopqrstuvwxyz ABC!", 1)


def wide() -> object:
    """The tiny Llama in a space twice as wide, where it does exactly the same."""
    narrow = tiny.reference("Llama")
    fields = narrow.config.to_dict() | {"hidden_size": WIDE, "head_dim": D // 4}
    config = transformers.LlamaConfig(**fields)
    config._attn_implementation = "eager"
    config.architectures = ["LlamaForCausalLM"]
    made = transformers.LlamaForCausalLM(config).eval()
    own = copy.deepcopy(narrow.state_dict())
    with torch.no_grad():
        for name, weights in made.named_parameters():
            old = own[name]
            if "norm" in name:
                weights.copy_(torch.full((WIDE,), (D / WIDE) ** 0.5))
            elif "o_proj" in name or "down_proj" in name:
                weights.copy_(TURN.T @ old)
            else:
                weights.copy_(old @ TURN)
    return made


@pytest.fixture(scope="module")
def both() -> tuple[rl.Lens, rl.Lens]:
    return rl.Lens(bridge(tiny.hf_model("Llama"))), rl.Lens(bridge(wide()))


@pytest.mark.parametrize("kind", ["procrustes", "ridge"])
def test_a_role_vector_of_a_wider_copy_is_found_without_its_prompts(both, kind: str) -> None:
    narrow, other = both
    layers = {1: 1, 3: 3}
    own = rl.role_vectors(narrow, {"role": ROLE}, BASE[:12], positions=[-1])
    truth = rl.role_vectors(other, {"role": ROLE}, BASE[:12], positions=[-1])
    carried = map_vectors(own, narrow, other, BASE, layers, kind=kind, nulls=3)
    assert carried.source == other.source
    assert carried.layers == (1, 3)
    assert len(carried.nulls) == 3
    for layer in carried.layers:
        expected = truth.direction("role", layer).vector
        found = carried.direction("role", layer)
        assert torch.cosine_similarity(found.vector, expected, dim=0) > 0.99
        assert found.norm == pytest.approx(float(expected.norm()), rel=0.1)
        for null in carried.nulls:
            shuffled = carried.direction(null, layer)
            assert abs(torch.cosine_similarity(shuffled.vector, expected, dim=0)) < 0.8
            assert shuffled.norm == pytest.approx(found.norm, rel=1e-4)
    plain = other.generate(["Prove it."], max_new_tokens=4)
    assert plain == narrow.generate(["Prove it."], max_new_tokens=4)
    assert rl.add(carried["role"].at(3), 1.0)


def test_maps_are_least_squares_and_rotations() -> None:
    drawn = np.random.default_rng(0)
    x, y = drawn.normal(size=(60, 5)), drawn.normal(size=(60, 7))
    from scipy.linalg import orthogonal_procrustes

    square = y[:, :5]
    turn, scale = orthogonal_procrustes(x - x.mean(0), square - square.mean(0))
    found = linear_map(torch.from_numpy(x), torch.from_numpy(square), "procrustes")
    size = scale / np.square(x - x.mean(0)).sum()
    np.testing.assert_allclose(found, turn * size, atol=1e-10)
    weights = drawn.normal(size=(5, 7))
    exact = linear_map(torch.from_numpy(x), torch.from_numpy(x @ weights + 3.0), "ridge")
    np.testing.assert_allclose(exact, weights, atol=1e-3)


def test_what_cannot_be_carried_is_refused(both, unchecked: object) -> None:
    narrow, other = both
    own = rl.role_vectors(narrow, {"role": ROLE}, BASE[:4], positions=[-1])
    for sentence, call in (
        ("kind of map", lambda: map_vectors(own, narrow, other, BASE, {1: 1}, kind="affine")),
        ("layer", lambda: map_vectors(own, narrow, other, BASE, {9: 1})),
        ("layer", lambda: map_vectors(own, narrow, other, BASE, {1: 9})),
        ("layer", lambda: map_vectors(own, narrow, other, BASE, {1: 1, 2: 1})),
        ("3 prompts", lambda: map_vectors(own, narrow, other, BASE[:2], {1: 1})),
        ("model", lambda: map_vectors(own, other, narrow, BASE, {1: 1})),
    ):
        with pytest.raises(rl.InputError, match=sentence):
            call()
