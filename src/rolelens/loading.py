"""Loading a model: embedded, from a hub, a folder or a GGUF file, or one that is in memory."""

import difflib
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from rolelens import embedded, forward, hub
from rolelens.errors import InputError
from rolelens.forward import HookedModel
from rolelens.lens import Lens
from rolelens.placement import check_covers, checked_device, checked_dtype, checked_map


def load(
    model: Any,
    *,
    tokenizer: Any = None,
    template: str | None = None,
    device: str | torch.device | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    dtype: torch.dtype | str | None = None,
    quantization_config: Any = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Lens:
    """Load a model.

    Nothing is ever installed on the way, whatever a model's processor may lack. The commit of a
    hub model is recorded (``lens.source.origin``). A hub that leaves two requests unanswered for
    ``HF_HUB_DOWNLOAD_TIMEOUT`` seconds each (10 by default) is taken for one that is not there: the
    local cache serves, or the model is refused.

    Args:
        model: ``"smollm2"`` (embedded, needs no hub), a hub id, a local folder, a ``.gguf`` file
            (dequantised once into the cache), a TransformerLens model, or a transformers model
            that is in memory. The last stays where it is and as exact as it is, but TransformerLens
            wraps its modules in place and switches it to eager attention: its own numbers may move
            in the last digits, and it cannot be wrapped a second time.
        tokenizer: of a transformers model that is in memory.
        template: a Jinja chat template in place of the tokenizer's; ``"text"``: prompts are put as
            they are, as to a base model. A model that has none gets "Question: ... Answer:", with
            a warning.
        device: where it runs; the GPU if there is one.
        device_map: in place of ``device``, how it is laid over several: ``"auto"`` and the other
            names that accelerate knows, or a mapping of modules to devices.
        dtype: float32 on a CPU, so that numbers do not depend on the machine, and bfloat16 on a
            GPU that computes in it; a torch dtype or its name, or ``"auto"``: bfloat16 wherever
            the hardware computes in it.
        quantization_config: of transformers, such as ``BitsAndBytesConfig(load_in_8bit=True)``.
        attn_implementation: how attention is computed where no hook lies inside, as transformers
            names it; ``"sdpa"`` by default. Hooked attention is computed step by step.
        revision: of a hub model.
        trust_remote_code: passed on to ``transformers``.

    Raises:
        InputError: there is no such model, it cannot be reached, is gated or does not fit into
            memory; no such device, or a device map that leaves modules out or weights on disk; a
            transformers model without its tokenizer, or one in training mode.
    """
    if not isinstance(model, str | Path):
        placed = (device, device_map, dtype, quantization_config, revision)
        if any(option is not None for option in placed):
            raise InputError(
                "device, device_map, dtype, quantization_config and revision are for models that "
                "are loaded here; move, cast or quantise a TransformerLens model or a transformers "
                "model before passing it."
            )
        bridge, name, origin = _in_memory(model, tokenizer)
    else:
        if tokenizer is not None:
            raise InputError(
                f"tokenizer is for a transformers model in memory, and model is {str(model)!r}; "
                "leave it out, as a model that is loaded brings its own."
            )
        if device is not None and device_map is not None:
            raise InputError(
                f"device is {str(device)!r} and device_map is given, too; leave one of them out."
            )
        name = str(model)
        bridge, origin = _loaded(
            name,
            checked_device(device),
            device_map if device_map is None else checked_map(device_map),
            dtype,
            quantization_config,
            revision,
            trust_remote_code,
        )
    if attn_implementation is not None:
        forward.choose_attention(bridge, attn_implementation)
    lens = Lens(bridge, name=name, origin=origin, template=template)
    if isinstance(model, str | Path):
        name, origin, path = str(model), str(origin), Path(model).expanduser()
        is_local = name not in embedded.NAMES and (path.is_dir() or name.endswith(".gguf"))
        lens.loaded = {
            "model": str(path.resolve()) if is_local else name,
            "template": template,
            "device": None if device_map else str(lens.model.cfg.device),
            "device_map": device_map,
            "dtype": str(checked_dtype(dtype, checked_device(device))).removeprefix("torch."),
            "quantization_config": quantization_config,
            "attn_implementation": attn_implementation,
            "revision": origin[len(name) + 1 :] if origin.startswith(f"{name}@") else None,
            "trust_remote_code": trust_remote_code,
        }
    return lens


def _loaded(
    name: str,
    device: torch.device,
    device_map: str | dict[str, Any] | None,
    dtype: torch.dtype | str | None,
    quantization_config: Any,
    revision: str | None,
    trust_remote_code: bool,
) -> tuple[Any, str]:
    """A bridge to the model of a name, and where its weights come from."""
    path = Path(name).expanduser()
    is_gguf = name.endswith(".gguf")
    if is_gguf and not path.is_file():
        raise InputError(f"no file {name!r}; check the path.")
    is_hub = not (name in embedded.NAMES or is_gguf or path.is_dir())
    if not is_hub and revision is not None:
        raise InputError(
            f"revision is {revision!r}, and {name!r} is no model of a hub; leave it out."
        )
    options: dict[str, Any] = {
        "trust_remote_code": trust_remote_code,
        "dtype": checked_dtype(dtype, device),
    }
    if is_hub and revision is not None:
        options["revision"] = revision
    # Weights go straight onto an accelerator, and not by way of the CPU's memory.
    if device_map is None and (device.type != "cpu" or quantization_config is not None):
        device_map = {"": str(device)}
    with _hushed(), _nothing_installed(), hub.impatient() as answers:
        try:
            where = str(path)
            if name in embedded.NAMES:
                where = str(embedded.folder())
            elif is_gguf:
                where = str(embedded.gguf_folder(path))
            elif is_hub:
                where = name
            if quantization_config is None:
                bridge = _booted(where, device, device_map, options)
            else:
                bridge = _quantised(where, device_map, quantization_config, options)
            if isinstance(device_map, dict):
                check_covers(device_map, bridge.original_model)
        except InputError:
            raise
        except Exception as error:  # transformers, safetensors and gguf raise dozens of classes
            where = str(device_map or device)
            raise _cannot_load(error, name, revision, where, answers) from error
    if name in embedded.NAMES:
        return bridge, embedded.ORIGIN
    if is_gguf:
        return bridge, f"{path.name}, dequantised"
    if not is_hub:
        return bridge, name
    if answers.missed and answers.any:  # what it did not tell may be the chat template
        raise InputError(
            f"the hub stopped answering while {name!r} was loaded, which may lack something; load "
            "it again when the hub answers."
        )
    return bridge, f"{name}@{hub.commit(name, revision) or revision or 'main'}"


def _booted(
    where: str, device: torch.device, device_map: str | dict[str, Any] | None, options: Any
) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    boot = TransformerBridge.boot_transformers
    if device_map is not None:
        try:
            return boot(where, device_map=device_map, **options)
        except ValueError as error:
            # TransformerLens lets no map place a state space model, be it of one device.
            if "stateful" not in str(error) or device_map != {"": str(device)}:
                raise
    return boot(where, device=device, **options)


def _quantised(where: str, device_map: Any, quantization_config: Any, options: Any) -> Any:
    """A bridge to a model that transformers quantises while it loads it."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    named = {name: options[name] for name in ("revision", "trust_remote_code") if name in options}
    hf_model: Any = AutoModelForCausalLM.from_pretrained(
        where,
        dtype=options["dtype"],
        device_map=device_map,
        quantization_config=quantization_config,
        attn_implementation="eager",
        **named,
    )
    hf_model.eval()
    hf_model.config.architectures = [type(hf_model).__name__]
    tokenizer = AutoTokenizer.from_pretrained(where, **named)
    return TransformerBridge.boot_transformers(
        where, hf_model=hf_model, tokenizer=tokenizer, device=hf_model.device, **options
    )


def _cannot_load(
    error: Exception, name: str, revision: str | None, where: str, answers: hub.Answers
) -> InputError:
    """Why a model could not be loaded, in one sentence."""
    explained = hub.explanation(error, name, revision, where)
    if explained is not None:
        return InputError(explained)
    known = {*embedded.NAMES, *hub.cached_models()} - {name}
    near = difflib.get_close_matches(name, known, n=1)
    offer = f"did you mean {near[0]!r}? Else name" if near else "name"
    reason = _reason(error)
    if answers.missed:
        reason = (
            f"the hub did not answer within {answers.limit:g} s, and it is not in the local cache"
        )
    elif hub.is_unreachable(error):
        reason = "the hub cannot be reached, and it is not in the local cache"
    return InputError(
        f"no model {name!r} could be loaded ({reason}); {offer} a local folder, a .gguf "
        "file, 'smollm2' (embedded) or a hub id that this machine can reach."
    )


def _in_memory(model: Any, tokenizer: Any) -> tuple[Any, str | None, str | None]:
    """A model in memory, of transformers or of TransformerLens, with its name and origin."""
    from transformers import PreTrainedModel

    if isinstance(model, HookedModel):
        if tokenizer is not None:
            raise InputError(
                "a TransformerLens model brings its own tokenizer; set model.tokenizer instead."
            )
        return model, None, None
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
    return bridge, name, f"{name}, in memory"


def _reason(error: Exception) -> str:
    """The first line of what an error says."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return reason if len(reason) < 200 else f"{reason[:200]}..."


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
