"""Loading a model: embedded, from a hub, a folder or a GGUF file, or one that is in memory."""

import difflib
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from rolelens import embedded
from rolelens.errors import InputError
from rolelens.forward import HookedModel
from rolelens.lens import Lens

DTYPES = ("float32", "bfloat16", "float16", "float64")


def load(
    model: Any,
    *,
    tokenizer: Any = None,
    template: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Lens:
    """Load a model.

    Nothing is ever installed on the way, whatever a model's processor may lack.

    Args:
        model: ``"smollm2"`` (embedded, needs no hub), a hub id, a local folder, a ``.gguf`` file,
            a TransformerLens model, or a transformers model that is in memory. The last stays
            where it is and as exact as it is, but TransformerLens wraps its modules in place and
            switches it to eager attention: its own numbers may move in the last digits, and it
            cannot be wrapped a second time.
        tokenizer: of a transformers model that is in memory.
        template: a Jinja chat template in place of the tokenizer's; ``"text"``: prompts are put as
            they are, as to a base model. A model that has none gets "Question: ... Answer:", with
            a warning.
        device: where it runs; the GPU if there is one.
        dtype: float32 on a CPU, so that numbers do not depend on the machine, and bfloat16 on a
            GPU; a torch dtype or its name, or ``"auto"``: bfloat16 wherever the hardware computes
            it natively.
        revision: of a hub model.
        trust_remote_code: passed on to ``transformers``.

    Raises:
        InputError: there is no such model, or it cannot be reached; a transformers model without
            its tokenizer, or one in training mode.
    """
    if not isinstance(model, str | Path):
        if device is not None or dtype is not None or revision is not None:
            raise InputError(
                "device, dtype and revision are for models that are loaded here; move or cast a "
                "TransformerLens model or a transformers model before passing it."
            )
        return _in_memory(model, tokenizer, template)
    if tokenizer is not None:
        raise InputError(
            f"tokenizer is for a transformers model in memory, and model is {str(model)!r}; leave "
            "it out, as a model that is loaded brings its own."
        )
    device = _device(device)
    kwargs: dict[str, Any] = {"device": device, "dtype": _dtype(dtype, device)}
    name, path = str(model), Path(model).expanduser()
    if name.endswith(".gguf") and not path.is_file():
        raise InputError(f"no file {name!r}; check the path.")
    is_local = name in embedded.NAMES or name.endswith(".gguf") or path.is_dir()
    if is_local and revision is not None:
        raise InputError(
            f"revision is {revision!r}, and {name!r} is no model of a hub; leave it out."
        )
    with _hushed(), _nothing_installed():
        from transformer_lens.model_bridge import TransformerBridge

        where = str(embedded.folder()) if name in embedded.NAMES else str(path)
        origin = embedded.ORIGIN if name in embedded.NAMES else name
        try:
            if name.endswith(".gguf"):
                hf_model, kwargs["tokenizer"] = embedded.read_gguf(path)
                # transformers leaves it out of some architectures' files, Gemma 3's among them.
                hf_model.config.architectures = [type(hf_model).__name__]
                kwargs["hf_model"] = hf_model.to(device=device, dtype=kwargs["dtype"])
                origin = f"{path.name}, dequantised"
            elif not Path(where).is_dir():
                where, kwargs["revision"] = name, revision
                origin = f"{name}@{revision or 'main'}"
            bridge = TransformerBridge.boot_transformers(
                where, trust_remote_code=trust_remote_code, **kwargs
            )
        except Exception as error:  # transformers, safetensors and gguf raise dozens of classes
            near = difflib.get_close_matches(name, [*embedded.NAMES, *cached_models()], n=1)
            offer = f"did you mean {near[0]!r}? Else name" if near else "name"
            raise InputError(
                f"no model {name!r} could be loaded ({_reason(error)}); {offer} a local folder, a "
                ".gguf file, 'smollm2' (embedded) or a hub id that this machine can reach."
            ) from error
    return Lens(bridge, name=name, origin=origin, template=template)


def _in_memory(model: Any, tokenizer: Any, template: str | None) -> Lens:
    """A lens on a model that is in memory, of transformers or of TransformerLens."""
    from transformers import PreTrainedModel

    if isinstance(model, HookedModel):
        if tokenizer is not None:
            raise InputError(
                "a TransformerLens model brings its own tokenizer; set model.tokenizer instead."
            )
        return Lens(model, template=template)
    kind = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise InputError(
            f"a {kind} is no model that can be loaded; pass a name, a folder, a TransformerLens "
            "model or a transformers model."
        )
    if tokenizer is None:
        raise InputError(f"the {kind} has no tokenizer; pass it as well, as in tokenizer=tok.")
    if model.training:
        raise InputError(
            f"the {kind} is in training mode, in which dropout changes activations at random; call "
            "model.eval() first."
        )
    if any(type(part).__module__.startswith("transformer_lens") for part in model.modules()):
        raise InputError(
            f"the {kind} is wrapped by TransformerLens already; pass the lens or the bridge that "
            "holds it, or load the model again."
        )
    name = str(model.config.name_or_path or kind)
    with _hushed(), _nothing_installed(), tempfile.TemporaryDirectory() as folder:
        from transformer_lens.model_bridge import TransformerBridge
        from transformers import AutoTokenizer

        named, model.config.architectures = model.config.architectures, [kind]
        try:
            # TransformerLens reads a tokenizer again from its folder, so it is put there as it is.
            tokenizer.save_pretrained(folder)
            bridge = TransformerBridge.boot_transformers(
                name,
                hf_model=model,
                tokenizer=AutoTokenizer.from_pretrained(folder),
                device=model.device,
                dtype=model.dtype,
            )
        except Exception as error:  # TransformerLens and transformers raise dozens of classes
            model.config.architectures = named
            raise InputError(
                f"the {kind} could not be wrapped ({_reason(error)}); pass a decoder-only model "
                "that TransformerLens knows, with its tokenizer."
            ) from error
    return Lens(bridge, name=name, origin=f"{name}, in memory", template=template)


def _reason(error: Exception) -> str:
    """The first line of what an error says."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return reason if len(reason) < 200 else f"{reason[:200]}..."


def _device(device: str | torch.device | None) -> torch.device:
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise InputError(
            f"device is {device!r}; it has to be one such as 'cpu' or 'cuda'."
        ) from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device is {str(device)!r}, and there is no GPU here; use 'cpu'.")
    return chosen


def cached_models() -> dict[str, str]:
    """Hub models in the local cache, and where each is."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return {}
    return {r.repo_id: str(r.repo_path) for r in sorted(repos, key=str) if r.repo_type == "model"}


def _dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if dtype in DTYPES:
        named: torch.dtype = getattr(torch, str(dtype))
        return named
    if dtype != "auto":
        raise InputError(
            f"dtype is {dtype!r}; pass a torch dtype, one of {', '.join(map(repr, DTYPES))}, "
            "'auto' or nothing."
        )
    cpu: Any = torch.cpu
    native = device.type != "cpu" or cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


@contextmanager
def _hushed() -> Iterator[None]:
    """Import and load without the progress bars and notices of the libraries below."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.utils import logging

        bars: Any = logging
        shown = bars.is_progress_bar_enabled()
        bars.disable_progress_bar()
        try:
            yield
        finally:
            if shown:
                bars.enable_progress_bar()


@contextmanager
def _nothing_installed() -> Iterator[None]:
    """Keep TransformerLens from installing torchvision where a processor fails to load."""
    import transformer_lens.model_bridge  # noqa: F401

    name = "_ensure_torchvision"
    modules = [
        module
        for path, module in list(sys.modules.items())
        if path.startswith("transformer_lens") and name in vars(module)
    ]
    kept = [getattr(module, name) for module in modules]
    for module in modules:
        setattr(module, name, lambda: find_spec("torchvision") is not None)
    try:
        yield
    finally:
        for module, function in zip(modules, kept, strict=True):
            setattr(module, name, function)
