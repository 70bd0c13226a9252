"""Keys and values of tokens that were run, which those that follow attend to."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from rolelens.forward.models import Everywhere, HookedModel, forward_parameters, is_bridge

ROOM = 64
"""Tokens that a cache has room for before it is copied to a larger place."""


def has_cache(model: HookedModel) -> bool:
    """Whether keys and values of all layers can be kept; state space layers have none."""
    if not is_bridge(model):
        return True
    wrapped: Any = model
    layers = DynamicCache(config=wrapped.original_model.config).layers
    sorts = all(hasattr(layer, "batch_select_indices") for layer in layers)
    return sorts and "past_key_values" in forward_parameters(model)


def new_cache(model: HookedModel, rows: int, *, whole: bool = False) -> Any:
    """An empty cache of keys and values.

    Args:
        model: the model.
        rows: how many there are.
        whole: of a bridge: keep everything where attention is sliding, too; the mask cuts it.
    """
    if not is_bridge(model):
        from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

        return TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, rows)
    wrapped: Any = model
    cache = DynamicCache(config=wrapped.original_model.config)
    kinds = (DynamicLayer, DynamicSlidingWindowLayer) if whole else (DynamicLayer,)
    cache.layers = [_Roomy() if type(layer) in kinds else layer for layer in cache.layers]
    return cache


def select_rows(cache: Any, rows: Int[Tensor, " row"]) -> None:
    """Keep these rows of a cache, in this order; a row may be named more than once."""
    if hasattr(cache, "batch_select_indices"):
        chosen = Everywhere(rows)
        for layer in cache.layers:
            if layer.get_seq_length():
                layer.batch_select_indices(chosen.on(layer.keys.device))
        return
    for entry in cache.entries:
        entry.past_keys, entry.past_values = entry.past_keys[rows], entry.past_values[rows]
    cache.previous_attention_mask = cache.previous_attention_mask[rows]


def move_right(cache: Any, lengths: Int[Tensor, " row"]) -> None:
    """Move the first tokens of each row of a whole cache to its right end, over the padding."""
    columns = right_ends(lengths, cache.get_seq_length())
    for entry in cache.layers:
        for name in ("keys", "values"):
            setattr(entry, name, right_aligned(getattr(entry, name), columns).contiguous())


def right_ends(lengths: Int[Tensor, " row"], width: int) -> Everywhere:
    """Columns of the first tokens of each row when they move to the right end of some width."""
    return Everywhere((torch.arange(width) - (width - lengths[:, None])).clamp(min=0))


def right_aligned(
    kept: Float[Tensor, "row head position d_head"], columns: Everywhere
) -> Float[Tensor, "row head width d_head"]:
    """The first positions of each row, moved to the right end; what stands before is not used."""
    rows = torch.arange(kept.shape[0], device=kept.device)[:, None]
    return kept.transpose(1, 2)[rows, columns.on(kept.device)].transpose(1, 2)


class _Roomy(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values with room behind them, so that a step copies no token but its own."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._places: tuple[Tensor, Tensor] | None = None
        self._shown: tuple[Any, Any] = (None, None)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.is_initialized:
            self.keys, self.values = self._extended(key_states, value_states)
        else:
            self.keys, self.values = key_states, value_states
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized = True
        return self.keys, self.values

    def _extended(self, *new: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values with new ones behind them."""
        kept: Any = (self.keys, self.values)
        have, end = kept[0].shape[2], kept[0].shape[2] + new[0].shape[2]
        # Whoever selects or moves rows puts new tensors here.
        moved = any(now is not shown for now, shown in zip(kept, self._shown, strict=True))
        if self._places is None or moved or end > self._places[0].shape[2]:
            self._places = _place(kept[0], end + ROOM), _place(kept[1], end + ROOM)
        for place, states in zip(self._places, new, strict=True):
            place[:, :, have:end] = states
        self._shown = self._places[0][:, :, :end], self._places[1][:, :, :end]
        return self._shown


def _place(kept: Float[Tensor, "row head position d_head"], length: int) -> Tensor:
    """A copy with room for more positions."""
    rows, heads, have, width = kept.shape
    place = kept.new_empty(rows, heads, length, width)
    place[:, :, :have] = kept
    return place
