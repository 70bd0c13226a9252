"""Models that the tests share."""

import os

# No test reaches for a hub; a client that is offline says so at once. Set before it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

import threading
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hypothesis
import jaxtyping
import pytest
import torch
from tqdm import tqdm

import rolelens as rl
import tiny
from rolelens.forward.plain import _said

# The first example of a property waits for imports, and machines are busy.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

# tqdm's own lock is shared with forks, and a fork that is killed would take it along.
tqdm.set_lock(threading.RLock())

HOOKED = ("Llama", "Mistral", "Qwen2", "Qwen3", "GPT2")
"""What HookedTransformer builds from a local folder as transformers 5 writes it."""


@dataclass(frozen=True)
class Variant:
    """An architecture as one of the two TransformerLens classes."""

    architecture: str
    model_class: str = "TransformerBridge"

    @property
    def direction_tolerance(self) -> float:
        return 1e-5 if self.model_class == "TransformerBridge" else 1e-4

    @property
    def logit_tolerance(self) -> float:
        return 1e-4 if self.model_class == "TransformerBridge" else 1e-3


VARIANTS = [Variant(name) for name in tiny.ARCHITECTURES]
HAS_HOOKED = find_spec("transformer_lens.HookedTransformer") is not None
if HAS_HOOKED:
    VARIANTS += [Variant(name, "HookedTransformer") for name in HOOKED]


def tiny_lens(architecture: str) -> rl.Lens:
    """A lens on a bridge around a fresh copy of a tiny random model."""
    return rl.Lens(tiny_bridge(architecture))


def tiny_bridge(architecture: str) -> Any:
    """A bridge around a fresh copy of a tiny random model."""
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(
        f"tiny-{architecture}",
        hf_model=tiny.hf_model(architecture),
        tokenizer=tiny.tokenizer(),
        device="cpu",
    )


def hooked_transformer(architecture: str, **processing: bool) -> Any:
    """A HookedTransformer with the weights of a tiny random model."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens import loading_from_pretrained as loading

    hf_model = tiny.hf_model(architecture)
    with TemporaryDirectory(prefix="tiny-") as parent, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(parent) / architecture.replace("Llama", "Lama")  # named by its config only
        hf_model.config.update({"n_ctx": 128})  # which the conversion of GPT-2 still reads
        hf_model.save_pretrained(folder)
        fields = loading.convert_hf_model_config(str(folder))
        fields |= {"model_name": f"tiny-{architecture}", "tokenizer_name": None, "device": "cpu"}
        cfg = HookedTransformerConfig.from_dict({**fields, "init_weights": False})
        state = loading.get_pretrained_state_dict(str(folder), cfg, hf_model)
        model = HookedTransformer(cfg, tiny.tokenizer())
        options = {"fold_ln": False, "center_writing_weights": False, "center_unembed": False}
        model.load_and_process_state_dict(state, **(options | processing))
    return model


_lenses: dict[Variant, rl.Lens] = {}


def shared(variant: Variant) -> rl.Lens:
    """A lens that is made once."""
    if variant not in _lenses:
        if variant.model_class == "TransformerBridge":
            _lenses[variant] = tiny_lens(variant.architecture)
        else:
            _lenses[variant] = rl.Lens(hooked_transformer(variant.architecture))
            _said[_lenses[variant].model] = True  # that it cannot be resumed
    return _lenses[variant]


@pytest.fixture(params=VARIANTS, ids=lambda v: f"{v.architecture}-{v.model_class}")
def variant(request: pytest.FixtureRequest) -> Variant:
    """Each architecture of the matrix, in each class that builds it."""
    return request.param


@pytest.fixture
def architecture(variant: Variant) -> str:
    """Its architecture."""
    return variant.architecture


@pytest.fixture
def lens(variant: Variant) -> rl.Lens:
    """A lens on it."""
    return shared(variant)


@pytest.fixture
def llama() -> rl.Lens:
    """One tiny lens, where the architecture does not matter."""
    return shared(Variant("Llama"))


@pytest.fixture(scope="session")
def smollm2() -> rl.Lens:
    """The embedded model."""
    return rl.load("smollm2")


WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
THREADS = max(1, torch.get_num_threads() // WORKERS)
if WORKERS > 1:
    os.environ["OMP_NUM_THREADS"] = str(THREADS)  # for the processes that tests start


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tiny models are faster on one thread than on several that wait for each other.

    Set before any fixture is made, whatever its scope.
    """
    torch.set_num_threads(THREADS if item.get_closest_marker("model") else 1)


@pytest.fixture(autouse=True)
def no_hook_is_left() -> object:
    """After every test, no model has a hook left."""
    yield
    for lens in _lenses.values():
        left = [name for name, point in lens.model.hook_dict.items() if point.fwd_hooks]
        assert not left, f"hooks left at {left}"
        left = [name for name, part in lens.model.named_modules() if "forward" in vars(part)]
        assert not left, f"replaced still: {left}"


@pytest.fixture
def unchecked() -> object:
    """As for a user: arguments of wrong types reach the functions themselves."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
