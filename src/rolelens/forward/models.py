"""What a TransformerLens model is asked for, and where its two classes differ."""

import contextlib
import ctypes
import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Protocol, TypeAlias, _ProtocolMeta, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

HookFn: TypeAlias = Callable[..., Tensor | None]
Hook: TypeAlias = tuple[str, HookFn]


class Everywhere:
    """A tensor on each device that asks for it, to which it moves once.

    A copy to a device waits for the device, so that one a layer would cost more than the layer.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._copies = {tensor.device: tensor}
        self._tensor = tensor

    def on(self, device: torch.device) -> Tensor:
        """The tensor there."""
        if device not in self._copies:
            self._copies[device] = self._tensor.to(device)
        return self._copies[device]


class _ByClass(_ProtocolMeta):
    """Asks the class: to ask the model for each attribute would collect its hook points."""

    def __instancecheck__(cls, instance: Any) -> bool:  # noqa: N805
        return isinstance(instance, torch.nn.Module) and hasattr(type(instance), "run_with_hooks")


@runtime_checkable
class HookedModel(Protocol, metaclass=_ByClass):
    """What is asked of a model: a ``TransformerBridge`` or a ``HookedTransformer``."""

    cfg: Any
    tokenizer: Any
    embed: Any
    ln_final: Any
    unembed: Any
    hook_dict: Any

    def hooks(self, fwd_hooks: list[Hook] = ...) -> AbstractContextManager[Any]:
        """Install forward hooks for the duration of a context."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""


_points: WeakKeyDictionary[HookedModel, tuple[Any, dict[str, Any]]] = WeakKeyDictionary()


def points(model: HookedModel) -> dict[str, Any]:
    """The hook points of a model by all of their names, which a bridge would collect each time."""
    state = (getattr(model, "compatibility_mode", None), len(getattr(model, "_hook_registry", ())))
    if model not in _points or _points[model][0] != state:
        _points[model] = state, dict(model.hook_dict)
    return _points[model][1]


def is_hooked(model: HookedModel) -> bool:
    """Whether any hook is installed."""
    return any(point.fwd_hooks for point in points(model).values())


PLAIN_POINTS = ("resid_pre", "resid_post", "attn_out", "mlp_out", "mlp.hook_post")
"""Endings of the names of hooks that need no setting of TransformerLens to be called."""


@contextmanager
def hooked(model: HookedModel, hooks: Sequence[Hook]) -> Iterator[None]:
    """Install hooks for the duration of a context, at whose end the model has those it had."""
    known = points(model)
    plain = all(name.startswith("blocks.") and name.endswith(PLAIN_POINTS) for name, _ in hooks)
    there = {id(known[name]): known[name] for name, _ in hooks}.values()
    before = [(point, list(point.fwd_hooks), set(point._forward_hooks)) for point in there]
    try:
        try:
            if plain:
                for name, fn in hooks:
                    known[name].add_hook(fn)
                yield
            else:
                with model.hooks(fwd_hooks=list(hooks)):
                    yield
        finally:
            _restore(before)
    finally:
        _restore(before)  # where a Ctrl-C ended the first


def _restore(before: Sequence[tuple[Any, list[Any], set[int]]]) -> None:
    """Take off what was put on hook points, half of it, too."""
    for point, handles, keys in before:
        for key in set(point._forward_hooks) - keys:
            point._forward_hooks.pop(key, None)
        point.fwd_hooks = handles


def run(
    model: HookedModel,
    ids: Int[Tensor, "row position"],
    cache: Any = None,
    *,
    last_only: bool = False,
    behind: Int[Tensor, " row"] | None = None,
) -> Float[Tensor, "row read vocab"]:
    """Logits of tokens that follow those in the cache, which grows by them.

    Args:
        model: the model.
        ids: tokens, without padding on the left.
        cache: from :func:`caches.new_cache`; the forward pass fills it.
        last_only: unembed the last position only, where the model can.
        behind: how many tokens of the cache each row follows, after :func:`caches.move_right`;
            all of them by default.
    """
    ids = ids.to(model.cfg.device)
    kwargs: dict[str, Any] = {}
    if is_bridge(model):
        kwargs = {"use_cache": cache is not None}
        if cache is not None:
            kwargs["past_key_values"] = cache
        if last_only and "logits_to_keep" in forward_parameters(model):
            kwargs["logits_to_keep"] = 1
        if behind is not None:
            ends = behind.to(ids.device)[:, None]
            before, new = cache.get_seq_length(), torch.arange(ids.shape[1], device=ids.device)
            every = torch.arange(before + len(new), device=ids.device)
            kwargs["position_ids"] = ends + new
            kwargs["attention_mask"] = (every >= before - ends).long()
    else:
        # HookedTransformer would take every token that equals the pad token for padding.
        kwargs = {"past_kv_cache": cache, "attention_mask": torch.ones_like(ids)}
    logits: Tensor = model(ids, return_type="logits", **kwargs)
    return logits


def unembed(
    model: HookedModel, final: Float[Tensor, "n d_model"], vocab: list[int] | None = None
) -> Float[Tensor, "n token"]:
    """Final norm and unembedding of single residual vectors, for some tokens or for all."""
    logits: Tensor = unembedding(model, vocab)(final)
    return logits


def unembedding(model: HookedModel, vocab: list[int] | None = None) -> Callable[[Tensor], Tensor]:
    """What unembeds single residual vectors, ``[n, d_model]``, for some tokens or for all.

    Right for models that end in a norm, a matrix, a scale and a soft cap. The product is taken in
    float32: logits rounded to bfloat16 would tie.
    """
    weight, bias = model.unembed.W_U, model.unembed.b_U
    if vocab is not None:
        weight, bias = weight[:, vocab], bias[vocab]
    scale = _logit_scale(model)
    if scale != 1.0:
        weight, bias = scale * weight.float(), scale * bias.float()
    cap = getattr(model.cfg, "output_logits_soft_cap", None) or -1.0
    return partial(_logits, model, weight.float(), bias.float(), cap)


def _logit_scale(model: HookedModel) -> float:
    """What logits are multiplied with in the end, as in Cohere's and Granite's models."""
    if not is_bridge(model):
        return 1.0
    config = _wrapped(model).config.get_text_config()
    times, by = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
    return float(times or 1.0) / float(by or 1.0)


def _logits(
    model: HookedModel, weight: Tensor, bias: Tensor, cap: float, final: Float[Tensor, "n d_model"]
) -> Float[Tensor, "n token"]:
    normed = model.ln_final(final[None])[0].to(weight)
    logits: Tensor = normed @ weight + bias
    return cap * torch.tanh(logits / cap) if cap > 0 else logits


def release_memory() -> None:
    """Give freed memory back to the system, once between batches.

    Else glibc's heap keeps blocks of every shape that a batch ever had, and grows with their
    number. (Giving every block back at once, by a low M_MMAP_THRESHOLD, costs a third of the time
    in page faults.)
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def end_ids(model: HookedModel) -> set[int]:
    """Tokens that end an answer, by the model's own generation settings."""
    config = getattr(_wrapped(model), "generation_config", None) if is_bridge(model) else None
    end = getattr(config, "eos_token_id", None)
    return {int(i) for i in (end if isinstance(end, list) else [end]) if i is not None}


def is_centred(model: HookedModel) -> bool:
    """Whether the writing weights were centred; the configuration does not record it."""
    embedding = model.embed.W_E[:4096].detach().float()
    return bool(embedding.mean(dim=-1).abs().mean() < 1e-4 * embedding.std())


def fingerprint(model: HookedModel) -> str:
    """Hash of the signs of the embedding, which are the same in every dtype."""
    signs = torch.signbit(model.embed.W_E[:4096].detach()).cpu()
    return hashlib.sha256(signs.contiguous().numpy().tobytes()).hexdigest()[:16]


def content(model: Any) -> str:
    """Hash of a sample of every weight, as it is: any training, merging or rounding changes it."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        flat = weight.detach().flatten()
        some = flat[:: max(1, len(flat) // 256)].cpu().contiguous()
        digest.update(name.encode() + some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def is_offloaded(model: Any) -> bool:
    """Whether weights are elsewhere until they are needed, as accelerate leaves them."""
    return any(weight.is_meta for weight in model.parameters())


def is_bridge(model: HookedModel) -> bool:
    """Whether it wraps a Hugging Face model."""
    return hasattr(model, "original_model")


def _wrapped(model: Any) -> Any:
    """The Hugging Face model inside a bridge."""
    return model.original_model


def forward_parameters(model: HookedModel) -> Any:
    """What the Hugging Face model inside a bridge can be told."""
    return inspect.signature(_wrapped(model).forward).parameters
