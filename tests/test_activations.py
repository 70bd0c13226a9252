import pytest
import torch

import oracles
import rolelens as rl
import tiny
from conftest import Variant


def test_activations_equal_plain_hidden_states(lens: rl.Lens, variant: Variant) -> None:
    model, tokenizer = tiny.reference(variant.architecture), tiny.tokenizer()
    n = len(lens.positions)
    found = rl.activations(lens, tiny.PROMPTS)
    for i, prompt in enumerate(tiny.PROMPTS):
        expected = oracles.hidden(model, oracles.chat_ids(tokenizer, prompt))[:, -n:]
        assert oracles.relative(found[i], expected) < variant.direction_tolerance


def test_memory_mapped_activations_are_the_same(llama: rl.Lens, tmp_path) -> None:
    path = tmp_path / "cache.bin"
    mapped = rl.activations(llama, tiny.PROMPTS, path=path)
    assert torch.equal(mapped, rl.activations(llama, tiny.PROMPTS))
    assert path.stat().st_size == mapped.numel() * 4
    content = path.read_bytes()
    with pytest.raises(rl.InputError, match="exists already"):
        rl.activations(llama, tiny.PROMPTS, path=path)
    assert path.read_bytes() == content
    with pytest.raises(rl.InputError, match="positions are"):
        rl.activations(llama, tiny.PROMPTS, positions=[-99], path=tmp_path / "other.bin")
    assert not (tmp_path / "other.bin").exists()


def test_steered_activations_see_the_steering(llama: rl.Lens) -> None:
    direction = rl.role_vectors(llama, {"a": tiny.PROMPTS}, base=tiny.OTHERS)["a"].at(2)
    clean = rl.activations(llama, tiny.PROMPTS)
    steered = rl.activations(llama, tiny.PROMPTS, hooks=rl.add(direction, 3.0))
    torch.testing.assert_close(steered[:, :2], clean[:, :2])
    delta = (3 * direction.vector).expand_as(clean[:, 2])
    torch.testing.assert_close(steered[:, 2] - clean[:, 2], delta, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(steered[:, 3], clean[:, 3])


def test_only_the_layers_needed_run(llama: rl.Lens) -> None:
    ran: list[int] = []
    hooks = [
        (f"blocks.{n}.hook_resid_pre", lambda x, hook, n=n: ran.append(n))
        for n in range(llama.n_layers)
    ]
    with llama.steered(hooks):
        rl.activations(llama, tiny.PROMPTS[:1], layers=[1])
    assert set(ran) == {0, 1}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"layers": [9]}, "no layer 9; there are: 0, 1, 2, 3."),
        ({"positions": [0]}, "they count from the end, from -1 down to -"),
        ({"positions": [-99]}, "the length of the shortest prompt in tokens"),
        ({"layers": []}, "layers is empty; pass at least one"),
        ({"layers": 2}, "layers is 2; pass a list, such as .2."),
        ({"positions": -1}, "positions is -1; pass a list"),
    ],
)
def test_bad_grids_are_refused(llama: rl.Lens, arguments: dict, sentence: str) -> None:
    with pytest.raises(rl.InputError, match=sentence):
        rl.activations(llama, tiny.PROMPTS, **arguments)


def test_infinite_activations_name_their_layer(llama: rl.Lens) -> None:
    broken = [("blocks.2.hook_resid_pre", lambda x, hook: x * torch.inf)]
    with pytest.raises(rl.InputError, match="entering layer 2 is NaN or infinite"):
        rl.activations(llama, tiny.PROMPTS, hooks=broken)
