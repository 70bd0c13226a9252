"""Files of sparse autoencoders, as five families write them; nothing executes on load."""

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rolelens.errors import InputError, writing
from rolelens.features.autoencoder import SparseAutoencoder
from rolelens.rows import parsed

Tensors = Mapping[str, Tensor]


def load_sae(folder: str | Path, *, hook: str | None = None) -> SparseAutoencoder:
    """Read a sparse autoencoder from its folder.

    Known are SAELens (``cfg.json``, ``sae_weights.safetensors``), Gemma Scope (``params.npz``),
    Gemma Scope 2 (``config.json``, ``params.safetensors``), Llama Scope (``hyperparams.json``,
    ``checkpoints/final.safetensors``) and dictionary_learning (``config.json``, ``ae.pt``, of which
    only tensors are read). Scales of the input are folded into the weights, so that it takes
    activations as the model has them.

    Args:
        folder: the folder.
        hook: the hook that is read, in place of what the files say; Gemma Scope's do not, so that
            their layer is that of the folder's path (``layer_12/...``), what leaves that block.

    Raises:
        InputError: no such folder or none of these files; a file that cannot be read, holds other
            weights, or is of a kind that is not known here.
    """
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"no folder {str(path)!r}; name the folder of a sparse autoencoder.")
    for config, weights, read in _FAMILIES:
        if (config is None or (path / config).is_file()) and (path / weights).is_file():
            known = _config(path / config) if config else {}
            tensors = _tensors(path / weights)
            try:
                fields = read(known, tensors, path, hook)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                if isinstance(error, InputError):
                    raise
                raise InputError(
                    f"{path} does not hold what {config or weights} of its family has ({error!r}); "
                    "download it again."
                ) from error
            return SparseAutoencoder(**fields)
    families = "; ".join(f"{config or ''} {weights}".strip() for config, weights, _ in _FAMILIES)
    raise InputError(f"{path} holds no sparse autoencoder; known files are: {families}.")


def save_sae(sae: SparseAutoencoder, folder: str | Path) -> Path:
    """Write a sparse autoencoder as SAELens does; returns the folder.

    Raises:
        InputError: the files cannot be written.
    """
    path = Path(folder)
    config: dict[str, Any] = {
        "architecture": "standard" if sae.activation == "relu" else sae.activation,
        "d_in": sae.d_in,
        "d_sae": sae.n_features,
        "dtype": str(sae.w_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": sae.subtracts,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "hook_name": sae.hook,
            "model_name": sae.model,
            "sae_lens_version": "6.0.0",
        },
    }
    tensors = {"W_enc": sae.w_enc, "b_enc": sae.b_enc, "W_dec": sae.w_dec, "b_dec": sae.b_dec}
    if sae.activation == "topk":
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    if sae.threshold is not None and sae.activation == "jumprelu":
        tensors["threshold"] = sae.threshold
    with writing(path / "cfg.json"):
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
            path / "sae_weights.safetensors",
        )
        (path / "cfg.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return path


def _sae_lens(known: Any, tensors: Tensors, path: Path, hook: str | None) -> dict[str, Any]:
    """SAELens, of version 6 (hook in ``metadata``) and before."""
    meta = known.get("metadata") or known
    kind = known.get("architecture", "standard")
    k = known.get("k") or (known.get("activation_fn_kwargs") or {}).get("k")
    if "topk" in (known.get("activation_fn"), known.get("activation_fn_str")):
        kind = "topk"
    activations = {"standard": "relu", "jumprelu": "jumprelu", "topk": "topk"}
    if kind not in activations:
        raise InputError(
            f"{path} has the architecture {kind!r}; {', '.join(activations)} can be read."
        )
    norm = known.get("normalize_activations") or "none"
    if norm not in ("none", False):
        raise InputError(
            f"{path} normalises activations by {norm!r}, whose scale the file does not hold; fold "
            "it into the weights with SAELens and save it again."
        )
    if known.get("finetuning_scaling_factor"):
        raise InputError(f"{path} has a scale of features from finetuning, which is not read here.")
    w_enc, b_enc, w_dec = tensors["W_enc"], tensors["b_enc"], tensors["W_dec"]
    if kind == "topk" and known.get("rescale_acts_by_decoder_norm"):
        norms = w_dec.norm(dim=-1)
        w_enc, b_enc, w_dec = w_enc * norms, b_enc * norms, w_dec / norms[:, None]
    return {
        "w_enc": w_enc,
        "b_enc": b_enc,
        "w_dec": w_dec,
        "b_dec": tensors["b_dec"],
        "hook": hook or meta.get("hook_name") or meta["hook_point"],
        "activation": activations[kind],
        "threshold": tensors["threshold"] if kind == "jumprelu" else None,
        "k": int(k or 0) if kind == "topk" else None,
        # Files from before version 6 that do not say it meant it.
        "subtracts": bool(known.get("apply_b_dec_to_input", "metadata" not in known)),
        "model": str(meta.get("model_name") or ""),
    }


def _jump(tensors: Tensors, hook: str, model: str) -> dict[str, Any]:
    """Weights under the names of Gemma Scope, of either case."""
    named = {name.lower(): tensor for name, tensor in tensors.items()}
    if "affine_skip_connection" in named:
        raise InputError("these are the weights of a transcoder, which is no autoencoder.")
    fields = {name: named[name] for name in ("w_enc", "b_enc", "w_dec", "b_dec", "threshold")}
    return {**fields, "hook": hook, "activation": "jumprelu", "model": model}


def _gemma_scope(known: Any, tensors: Tensors, path: Path, hook: str | None) -> dict[str, Any]:
    if hook is None:
        layers = re.findall(r"layer_(\d+)", str(path.resolve()))
        if not layers:
            raise InputError(
                f"{path} does not say which layer it reads; keep the folder's name 'layer_12/...', "
                "or pass hook='blocks.12.hook_resid_post'."
            )
        hook = f"blocks.{layers[-1]}.hook_resid_post"
    return _jump(tensors, hook, "")


def _gemma_scope_2(known: Any, tensors: Tensors, path: Path, hook: str | None) -> dict[str, Any]:
    if known["architecture"] != "jump_relu":
        raise InputError(f"{path} has the architecture {known['architecture']!r}, not 'jump_relu'.")
    point = str(known["hf_hook_point_in"])
    block = re.fullmatch(r"model\.layers\.(\d+)\.output", point)
    if hook is None and block is None:
        raise InputError(
            f"{path} reads {point!r}; those of what leaves a block (model.layers.12.output) can be "
            "read."
        )
    hook = hook or f"blocks.{block[1] if block else ''}.hook_resid_post"
    return _jump(tensors, hook, str(known.get("model_name", "")))


def _llama_scope(known: Any, tensors: Tensors, path: Path, hook: str | None) -> dict[str, Any]:
    """Inputs are scaled to a mean norm of sqrt(d), and what is decoded back again."""
    if known.get("norm_activation", "dataset-wise") != "dataset-wise":
        raise InputError(f"{path} normalises by {known['norm_activation']!r}, not 'dataset-wise'.")
    if known.get("hook_point_out", known["hook_point_in"]) != known["hook_point_in"]:
        raise InputError(f"{path} writes {known['hook_point_out']!r}: it is a transcoder.")
    norms = known["dataset_average_activation_norm"]
    root = float(known["d_model"]) ** 0.5
    into, out = root / norms["in"], root / norms.get("out", norms["in"])
    w_enc, w_dec = tensors["encoder.weight"].T.float(), tensors["decoder.weight"].T.float()
    # The file's threshold is of inputs as the model has them.
    threshold = torch.full((w_enc.shape[1],), float(known["jump_relu_threshold"]) * into)
    return {
        "w_enc": w_enc * into,
        "b_enc": tensors["encoder.bias"].float(),
        "w_dec": w_dec / out,
        "b_dec": tensors["decoder.bias"].float() / out,
        "hook": hook or known["hook_point_in"],
        "activation": "jumprelu",
        "threshold": threshold,
        "model": str(known.get("model_name", "")),
    }


def _dictionary(known: Any, tensors: Tensors, path: Path, hook: str | None) -> dict[str, Any]:
    trainer = known["trainer"]
    kind = trainer["dict_class"]
    fields: dict[str, Any] = {
        "hook": hook or _dictionary_hook(trainer, path),
        "model": str(trainer.get("lm_name", "")),
    }
    if kind == "JumpReluAutoEncoder":
        same = {name.lower(): tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        return {**fields, **same, "threshold": tensors["threshold"], "activation": "jumprelu"}
    classes = {
        "AutoEncoder": "relu",
        "AutoEncoderTopK": "topk",
        "BatchTopKSAE": "jumprelu",
        "MatryoshkaBatchTopKSAE": "jumprelu",
    }
    if kind not in classes:
        raise InputError(
            f"{path} is a {kind}; {', '.join([*classes, 'JumpReluAutoEncoder'])} can be read."
        )
    if "W_enc" in tensors:
        w_enc, b_enc = tensors["W_enc"], tensors["b_enc"]
        w_dec = tensors["W_dec"]
    else:
        w_enc, b_enc = tensors["encoder.weight"].T, tensors["encoder.bias"]
        w_dec = tensors["decoder.weight"].T
    fields |= {
        "w_enc": w_enc,
        "b_enc": b_enc,
        "w_dec": w_dec,
        "b_dec": tensors["bias"] if "bias" in tensors else tensors["b_dec"],
        "activation": classes[kind],
        "subtracts": True,
    }
    if classes[kind] == "topk":
        fields["k"] = int(trainer["k"])
    if classes[kind] == "jumprelu":
        fields["threshold"] = tensors["threshold"].expand(w_enc.shape[1])
    return fields


def _dictionary_hook(trainer: Mapping[str, Any], path: Path) -> str:
    """Of the residual stream: that library reads what leaves a block."""
    name = str(trainer.get("submodule_name") or "resid_post")
    if not name.startswith("resid_post"):
        raise InputError(f"{path} reads {name!r}; pass hook= with the name of the hook it reads.")
    return f"blocks.{int(trainer['layer'])}.hook_resid_post"


_FAMILIES: tuple[tuple[str | None, str, Callable[..., dict[str, Any]]], ...] = (
    ("cfg.json", "sae_weights.safetensors", _sae_lens),
    ("hyperparams.json", "checkpoints/final.safetensors", _llama_scope),
    ("config.json", "params.safetensors", _gemma_scope_2),
    ("config.json", "ae.pt", _dictionary),
    (None, "params.npz", _gemma_scope),
)


def _config(path: Path) -> dict[str, Any]:
    content = parsed(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {str(content)[:40]!r}; expected an object.")
    return content


def _tensors(path: Path) -> dict[str, Tensor]:
    """What a file of weights holds, in float32.

    Raises:
        InputError: it cannot be read, or would execute something.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                raw = {name: torch.from_numpy(arrays[name]) for name in arrays}
        elif path.suffix == ".pt":
            raw = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raw = load_file(path)
    except (OSError, ValueError, EOFError, RuntimeError, SafetensorError, zipfile.BadZipFile,
            pickle.UnpicklingError) as error:  # fmt: skip
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(
            f"{path} cannot be read as tensors alone ({reason}); download it again, or convert it "
            "to safetensors where it came from."
        ) from error
    return {
        str(name): value.detach().float()
        for name, value in raw.items()
        if isinstance(value, Tensor)
    }
