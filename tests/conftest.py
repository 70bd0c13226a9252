"""Models that the tests share."""

import os

# No test reaches for a hub; a client that is offline says so at once. Set before it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

import jaxtyping
import pytest

import rolelens as rl
import tiny


def tiny_lens(architecture: str) -> rl.Lens:
    """A lens on a fresh copy of a tiny random model."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(
        f"tiny-{architecture}",
        hf_model=tiny.hf_model(architecture),
        tokenizer=tiny.tokenizer(),
        device="cpu",
    )
    return rl.Lens(bridge)


_lenses: dict[str, rl.Lens] = {}


@pytest.fixture(params=tiny.ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    """Each architecture of the matrix."""
    return request.param


@pytest.fixture
def lens(architecture: str) -> rl.Lens:
    """A lens on each architecture of the matrix."""
    if architecture not in _lenses:
        _lenses[architecture] = tiny_lens(architecture)
    return _lenses[architecture]


@pytest.fixture
def llama() -> rl.Lens:
    """One tiny lens, where the architecture does not matter."""
    if "Llama" not in _lenses:
        _lenses["Llama"] = tiny_lens("Llama")
    return _lenses["Llama"]


@pytest.fixture(scope="session")
def smollm2() -> rl.Lens:
    """The embedded model."""
    return rl.load("smollm2")


@pytest.fixture(autouse=True)
def no_hook_is_left() -> object:
    """After every test, no model has a hook left."""
    yield
    for lens in _lenses.values():
        left = [name for name, point in lens.model.hook_dict.items() if point.fwd_hooks]
        assert not left, f"hooks left at {left}"


@pytest.fixture
def unchecked() -> object:
    """As for a user: arguments of wrong types reach the functions themselves."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
