import pytest
import torch

import oracles
import rolelens as rl
import tiny
from conftest import tiny_bridge, tiny_lens
from rolelens.forward.native import native, try_native

IDS = torch.arange(40).reshape(2, 20)
"""Longer than the windows of sliding attention."""


def replaced(model) -> list[str]:
    return [name for name, part in model.named_modules() if "forward" in vars(part)]


@pytest.fixture(params=tiny.ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


def test_native_passes_give_the_logits_of_transformers(architecture: str) -> None:
    model = tiny_bridge(architecture)
    try_native(model)
    config = model.original_model.config
    with torch.no_grad(), native(model):
        assert replaced(model)
        used = config._attn_implementation
        found = model(IDS)
    assert used == ("eager" if architecture in ("Gemma2", "GPT2") else "sdpa")
    assert config._attn_implementation == "eager"
    assert not replaced(model)
    expected = torch.stack([oracles.logits(tiny.reference(architecture), i) for i in IDS.tolist()])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "point",
    ["attn.hook_pattern", "attn.hook_z", "mlp.hook_post", "hook_attn_out"],
)
def test_hooks_inside_are_called_as_before(architecture: str, point: str) -> None:
    model = tiny_bridge(architecture)
    name = f"blocks.1.{point}"
    if name not in model.hook_dict:
        pytest.skip(f"{architecture} has no {point}")
    try_native(model)

    def tilted(x, hook):
        return x * torch.linspace(0, 2, x.shape[-1])

    with torch.no_grad():
        expected = model.run_with_hooks(IDS, fwd_hooks=[(name, tilted)])
        unhooked = model(IDS)
        with model.hooks(fwd_hooks=[(name, tilted)]), native(model, 0):
            found = model(IDS)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, unhooked, atol=1e-3)


def test_what_transformers_computes_otherwise_stays_with_the_bridge() -> None:
    model = tiny_bridge("Llama")
    model.enable_compatibility_mode(disable_warnings=True)
    with native(model):
        assert not replaced(model)


def test_an_exception_leaves_the_model_as_it_was(llama: rl.Lens) -> None:
    def fail(x, hook):
        raise RuntimeError("now")

    with pytest.raises(RuntimeError, match="now"):
        llama.generate(["Hi."], hooks=[("blocks.2.hook_resid_pre", fail)], max_new_tokens=2)
    assert not replaced(llama.model)
    assert llama.model.original_model.config._attn_implementation == "eager"


def test_a_model_that_computes_otherwise_is_tried_and_left_alone(monkeypatch) -> None:
    """What attention wraps gives other numbers here, and nothing says so."""
    model = tiny_bridge("Llama")
    attention = model.blocks[1].attn

    def nothing(hidden_states, **_):
        return 0 * hidden_states, None

    monkeypatch.setattr(attention.original_component, "forward", nothing)
    with torch.no_grad():
        before = model(IDS)
    try_native(model)
    with torch.no_grad(), native(model):
        torch.testing.assert_close(model(IDS), before)


def test_how_attention_is_computed_can_be_chosen(monkeypatch) -> None:
    used: list[str] = []
    for name in ("eager", "sdpa"):
        bridge = tiny_bridge("Llama")
        lens = rl.load(bridge, attn_implementation=name)
        plain = torch.nn.functional.scaled_dot_product_attention

        def counted(*args, name=name, plain=plain, **kwargs):
            used.append(name)
            return plain(*args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
            found = lens.generate(["Prove it."], max_new_tokens=4)
        assert found == tiny_lens("Llama").generate(["Prove it."], max_new_tokens=4)
    assert set(used) == {"sdpa"}


def test_attention_that_cannot_be_computed_so_is_one_sentence() -> None:
    refused = {
        "attn_implementation is 'fast', which cannot be used here": ("Llama", "fast"),
        "attn_implementation is 'flash_attention_2', which cannot be": (
            "Llama",
            "flash_attention_2",
        ),
        "attn_implementation is 'sdpa', which cannot be used here .Gemma2ForCausalLM does not": (
            "Gemma2",
            "sdpa",
        ),
    }
    for message, (architecture, name) in refused.items():
        with pytest.raises(rl.InputError, match=message):
            rl.load(tiny_bridge(architecture), attn_implementation=name)
