"""Loading a model: embedded, from a hub, a folder, a GGUF file, or a TransformerLens model."""

import difflib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from rolelens import embedded
from rolelens.errors import InputError
from rolelens.forward import HookedModel
from rolelens.lens import Lens


def load(
    model: str | Path | HookedModel,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | Literal["auto"] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> "Lens":
    """Load a model.

    Args:
        model: ``"smollm2"`` (embedded, needs no hub), a hub id, a local folder, a ``.gguf`` file,
            or a TransformerLens model.
        device: where it runs; the GPU if there is one.
        dtype: float32 on a CPU, so that numbers do not depend on the machine, and bfloat16 on a
            GPU; ``"auto"`` takes bfloat16 wherever the hardware computes it natively.
        revision: of a hub model.
        trust_remote_code: passed on to ``transformers``.

    Raises:
        InputError: there is no such model, or it cannot be reached.
    """
    if not isinstance(model, str | Path):
        if device is not None or dtype is not None or revision is not None:
            raise InputError(
                "device, dtype and revision are for models that are loaded here; move or cast a "
                "TransformerLens model before passing it."
            )
        return Lens(model)
    device = _device(device)
    kwargs: dict[str, Any] = {"device": device, "dtype": _dtype(dtype, device)}
    name, path = str(model), Path(model).expanduser()
    if name.endswith(".gguf") and not path.is_file():
        raise InputError(f"no file {name!r}; check the path.")
    with _hushed():
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
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            reason = reason if len(reason) < 200 else f"{reason[:200]}..."
            near = difflib.get_close_matches(name, [*embedded.NAMES, *cached_models()], n=1)
            offer = f"did you mean {near[0]!r}? Else name" if near else "name"
            raise InputError(
                f"no model {name!r} could be loaded ({reason}); {offer} a local folder, a .gguf "
                "file, 'smollm2' (embedded) or a hub id that this machine can reach."
            ) from error
    return Lens(bridge, name=name, origin=origin)


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
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if dtype != "auto":
        raise InputError(f"dtype is {dtype!r}; pass a torch dtype, 'auto' or nothing.")
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
