"""Parts of a bridge that nobody hooked run as the transformers modules that they wrap.

A bridge computes attention step by step, so that each step can be hooked; where nothing is hooked,
the wrapped module gives the same numbers sooner.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rolelens.errors import InputError
from rolelens.forward.models import Hook, HookedModel, hooked, is_bridge

ENDS = ("hook_in", "hook_out")
OPAQUE = ("PositionEmbeddingsAttentionBridge", "AttentionBridge", "MLPBridge", "GatedMLPBridge")
"""Components that hold hooks of their own inside, and whose weights are those that they wrap."""
THROUGH = ("BlockBridge", "ParallelBlockBridge", "LinearBridge")
"""Components that put nothing but their ends around what they wrap."""
GATES = ("use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in")
"""Settings of TransformerLens that change what a bridge computes."""


@dataclass(frozen=True)
class _Part:
    """A component that can be replaced by what it wraps.

    Attributes:
        component: the component.
        original: what it wraps.
        layer: of which block.
        inside: hook points that have to be free.
        ends: hook points before and after it, which may be hooked.
        is_attention: whether it is attention.
    """

    component: Any
    original: Any
    layer: int
    inside: tuple[Any, ...]
    ends: tuple[Any, ...]
    is_attention: bool


_parts: WeakKeyDictionary[HookedModel, list[_Part]] = WeakKeyDictionary()
_switched_off: WeakKeyDictionary[HookedModel, bool] = WeakKeyDictionary()
_unfused: WeakKeyDictionary[HookedModel, bool] = WeakKeyDictionary()
_attention: WeakKeyDictionary[HookedModel, str] = WeakKeyDictionary()


@contextmanager
def native(
    model: HookedModel, start: int = 0, *, fused: bool = True, checkpointed: bool = False
) -> Iterator[None]:
    """Run the blocks from one on as transformers does, wherever hooks allow it.

    Enter it when all hooks are installed.

    Args:
        model: the model.
        start: the first block that runs.
        fused: compute attention at once where all of it is free of hooks, by PyTorch's scaled dot
            product or what :func:`choose_attention` chose.
            It differs from attention step by step in the last digits, which differences of means
            magnify: where these are read, attention stays as it is.
        checkpointed: keep nothing of a block but what enters it, and run it again in the backward
            pass; hooks inside of blocks are called twice then, those at their ends are not.
    """
    if not is_bridge(model) or _switched_off.get(model) or _changed(model):
        yield
        return
    if model not in _parts:
        _parts[model] = list(_replaceable(model))
    replaced: list[Any] = []
    attention = 0
    with ExitStack() as restored:
        try:  # Ctrl-C may come at any moment
            for part in _parts[model]:
                if part.layer < start or any(map(_hooked, part.inside)):
                    continue
                attention += part.is_attention
                whole = checkpointed and "Block" in type(part.component).__name__
                run = part.original
                if whole:
                    run = partial(checkpoint, part.original, use_reentrant=False)
                at_ends = any(map(_hooked, part.ends))
                replaced.append(part.component)
                part.component.__dict__["forward"] = _Between(run, part.ends) if at_ends else run
            if fused and not _unfused.get(model) and attention == model.cfg.n_layers - start:
                restored.enter_context(_fused_attention(model))
            yield
        finally:
            try:
                put_back(replaced)
            except BaseException:  # Ctrl-C came meanwhile
                put_back(replaced)
                raise


def put_back(components: Iterable[Any]) -> None:
    """Let components run as they do by themselves; doing so twice does no harm."""
    for component in components:
        component.__dict__.pop("forward", None)


def try_native(model: HookedModel) -> None:
    """Find out, once and before anything steers it, if blocks give what the bridge's own give.

    Each block is tried by itself on what enters it, as rounding grows from block to block, in
    bfloat16 to any size.
    """
    if not is_bridge(model) or model in _switched_off:
        return
    entering: dict[int, Tensor] = {}
    leaving: dict[int, Tensor] = {}
    blocks = range(model.cfg.n_layers)
    _run(
        model, [(_entry(n), partial(_kept, entering, n)) for n in blocks] + _exits(leaving, blocks)
    )
    _switched_off[model] = _unfused[model] = False
    _switched_off[model] = not _agrees(model, entering, leaving, fused=False)
    _unfused[model] = _switched_off[model] or not _agrees(model, entering, leaving, fused=True)
    if _unfused[model] and _attention.get(model, "eager") != "eager":
        raise InputError(
            f"attn_implementation is {_attention[model]!r}, with which blocks of "
            f"{model.cfg.model_name!r} give something else than with 'eager'; use that, or nothing."
        )


def _agrees(
    model: HookedModel, entering: dict[int, Tensor], leaving: dict[int, Tensor], *, fused: bool
) -> bool:
    """Whether each block gives what it gave, to within rounding."""
    found: dict[int, Tensor] = {}
    put = [(_entry(n), partial(_put, x)) for n, x in entering.items()]
    try:
        _run(model, put + _exits(found, leaving), fused)
    except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError):
        return False  # an architecture that is built otherwise
    for n, expected in leaving.items():
        tolerance = max(1e-4, 8 * torch.finfo(expected.dtype).eps)
        scale = expected.float().abs().max().clamp(min=1)
        if (found[n].float() - expected.float()).abs().max() > tolerance * scale:
            return False
    return True


def _run(model: HookedModel, hooks: list[Hook], fused: bool | None = None) -> None:
    """Run some tokens, by the bridge itself or as transformers does."""
    ids = torch.arange(24).reshape(2, 12) % model.cfg.d_vocab
    with torch.no_grad(), hooked(model, hooks), ExitStack() as entered:
        if fused is not None:
            entered.enter_context(native(model, fused=fused))
        model(ids.to(model.cfg.device), return_type="logits", use_cache=False)


def _entry(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_pre"


def _exits(into: dict[int, Tensor], blocks: Iterable[int]) -> list[Hook]:
    return [(f"blocks.{n}.hook_resid_post", partial(_kept, into, n)) for n in blocks]


def _kept(into: dict[int, Tensor], layer: int, x: Tensor, hook: Any = None) -> None:
    into[layer] = x.clone()


def _put(kept: Tensor, x: Tensor, hook: Any = None) -> Tensor:
    return kept


class _Between:
    """What a component wraps, between the hooks at its ends."""

    def __init__(self, original: Callable[..., Any], ends: tuple[Any, ...]) -> None:
        self._original, (self._before, self._after) = original, ends

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if args:
            args = (self._before(args[0]), *args[1:])
        else:
            kwargs["hidden_states"] = self._before(kwargs["hidden_states"])
        out = self._original(*args, **kwargs)
        if isinstance(out, Tensor):
            return self._after(out)
        return (self._after(out[0]), *out[1:])


def _replaceable(model: Any) -> Iterator[_Part]:
    """The components of all blocks that can be replaced."""
    for layer, block in enumerate(model.blocks):
        for component in block.modules():
            original = component.__dict__.get("_modules", {}).get("_original_component")
            if original is None:
                continue
            kind = type(component).__name__
            ends = tuple(getattr(component, name, None) for name in ENDS)
            if kind in OPAQUE and None not in ends:
                inside = _points(component, deep=True, but=ends)
                yield _Part(component, original, layer, inside, ends, "Attention" in kind)
            elif kind in THROUGH and None not in ends:
                inside = _points(component, deep=False, but=ends)
                yield _Part(component, original, layer, inside, ends, False)
            elif getattr(component, "use_native_layernorm_autograd", False):
                yield _Part(component, original, layer, _points(component, deep=True), (), False)


def _points(component: Any, *, deep: bool, but: tuple[Any, ...] = ()) -> tuple[Any, ...]:
    """Hook points of a component, and of those inside of it."""
    modules = component.modules() if deep else component.children()
    return tuple(
        module
        for module in modules
        if hasattr(module, "fwd_hooks") and not any(module is end for end in but)
    )


def _hooked(point: Any) -> bool:
    return bool(point._forward_hooks or point._backward_hooks or point._forward_pre_hooks)


def _changed(model: Any) -> bool:
    """Whether a bridge computes something else than what it wraps, as with processed weights."""
    return bool(getattr(model, "compatibility_mode", False)) or any(
        getattr(model.cfg, name, False) for name in GATES
    )


def choose_attention(model: Any, implementation: str) -> None:
    """Choose how attention is computed where it is free of hooks, as transformers names it.

    It is scaled dot product attention (``"sdpa"``) by default, where the model allows it.

    Raises:
        InputError: transformers does not know it, or it cannot compute this model's attention.
    """
    if not is_bridge(model):
        raise InputError(
            f"attn_implementation is {implementation!r}, and a {type(model).__name__} computes its "
            "attention itself; load the model by its name."
        )
    if implementation != "eager":
        try:
            model.original_model._check_and_adjust_attn_implementation(implementation)
        except (ImportError, ValueError) as error:
            reason = str(error).strip().splitlines()[0].partition(". ")[0]
            raise InputError(
                f"attn_implementation is {implementation!r}, which cannot be used here ({reason}); "
                "use 'sdpa', 'eager' or nothing."
            ) from error
    _attention[model] = implementation
    _switched_off.pop(model, None)
    if implementation != "eager" and not _fuses(model):
        raise InputError(
            f"attn_implementation is {implementation!r}, which does not compute the attention of "
            f"{model.cfg.model_name!r}; use 'eager' or nothing."
        )


def _fuses(model: Any) -> bool:
    """Whether attention can be computed at once with the same outcome."""
    if model not in _parts:
        _parts[model] = list(_replaceable(model))
    config = model.original_model.config.get_text_config()
    chosen = _attention.get(model, "sdpa")
    capped = chosen == "sdpa" and getattr(config, "attn_logit_softcapping", None)
    supported = chosen != "sdpa" or getattr(model.original_model, "_supports_sdpa", False)
    shared = all(part.original.config is config for part in _parts[model] if part.is_attention)
    return bool(chosen != "eager" and supported and not capped and shared)


@contextmanager
def _fused_attention(model: Any) -> Iterator[None]:
    """Let transformers compute attention at once, where that is the same."""
    config = model.original_model.config.get_text_config()
    before = config._attn_implementation
    if before != "eager" or not _fuses(model):
        yield
        return
    config._attn_implementation = _attention.get(model, "sdpa")
    try:
        yield
    finally:
        config._attn_implementation = before
