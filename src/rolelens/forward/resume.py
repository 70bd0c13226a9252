"""One forward pass that begins above blocks whose outcome is known, behind tokens already run.

The blocks below are passed over, not run and discarded, and the tokens before enter by their keys
and values alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from rolelens.forward.caches import right_aligned, right_ends
from rolelens.forward.models import Everywhere, Hook, HookedModel, hooked
from rolelens.forward.native import native, put_back
from rolelens.forward.passes import finish, gather, keep_entry, until_stop


@dataclass(frozen=True)
class Past:
    """Keys and values of tokens that stand before those of a forward pass.

    Attributes:
        layers: keys and values of each layer, ``[row, head, position, d_head]``; None below the
            layer that is resumed at.
        length: positions, padding on the left included.
    """

    layers: tuple[tuple[Tensor, Tensor] | None, ...]
    length: int

    @classmethod
    def concat(cls, parts: "Sequence[Past]") -> "Past":
        """The rows of several, which have the same length."""
        layers = []
        for entries in zip(*(part.layers for part in parts), strict=True):
            kept = [entry for entry in entries if entry is not None]
            keys = [key for key, _ in kept]
            layers.append((torch.cat(keys), torch.cat([v for _, v in kept])) if kept else None)
        return cls(tuple(layers), parts[0].length)

    def ends(self, lengths: Int[Tensor, " row"], length: int | None = None) -> "Past":
        """The first tokens of each row, moved to the right end.

        Args:
            lengths: how many columns of each row that is, padding on the left included.
            length: how many columns there are then; as many as in the longest row by default.
        """
        length = length or int(lengths.max())
        if length == self.length and bool((lengths == length).all()):
            return self
        columns = right_ends(lengths, length)
        layers = [
            entry and tuple(right_aligned(t, columns) for t in entry) for entry in self.layers
        ]
        return Past(tuple(layers), length)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Pass:
    """What a forward pass was asked for.

    Attributes:
        final: residual stream that leaves the last block, ``[row read d_model]``; empty where it
            was not asked for.
        entries: residual stream entering each layer asked for.
        past: keys and values of all tokens so far, where they are kept.
    """

    final: Tensor
    entries: dict[int, Float[Tensor, "row position d_model"]]
    past: Past | None


def resume(
    model: HookedModel,
    start: Int[Tensor, "row position"] | Float[Tensor, "row position d_model"],
    layer: int = 0,
    *,
    past: Past | None = None,
    past_rows: Int[Tensor, " row"] | None = None,
    first: Int[Tensor, " row"] | None = None,
    read: Int[Tensor, "row read"] | None = None,
    hooks: Sequence[Hook] = (),
    entries: Sequence[int] = (),
    columns: Int[Tensor, "row column"] | None = None,
    keep: bool = False,
    fused: bool = True,
) -> Pass:
    """Run the blocks from ``layer`` on for tokens that follow others.

    Args:
        model: a bridge; tokens are padded on the right only.
        start: token ids (from layer 0), or the residual stream entering ``layer``.
        layer: the first block that runs.
        past: keys and values of what stands before.
        past_rows: row of ``past`` that each row follows.
        first: absolute position of each row's first token.
        read: columns where the final residual stream is read; None: the pass ends at the last of
            ``entries``.
        hooks: what is done to the stream on the way.
        entries: layers whose entering residual stream is kept.
        columns: where it is kept; everywhere by default.
        keep: keep keys and values.
        fused: see :func:`rolelens.forward.native.native`.
    """
    length = past.length if past else 0
    cache = _Prefixed(model.cfg.n_layers, past, past_rows, keep)
    device = model.cfg.device
    steps = torch.arange(start.shape[1])
    kwargs: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
    if first is None or bool((first == length).all()):
        kwargs["position_ids"] = (length + steps)[None].to(device)
    else:
        kwargs["position_ids"] = (first[:, None] + steps).to(device)
        real = torch.arange(length + len(steps)) >= (length - first)[:, None]
        kwargs["attention_mask"] = real.long().to(device)
    found: dict[int, Tensor] = {}
    final: list[Tensor] = []
    last = len(set(entries)) if read is None else 0
    own: list[Hook] = []
    if start.is_floating_point():
        own.append((f"blocks.{layer}.hook_resid_pre", lambda x, hook: start.to(x.device)))
        given: Tensor = torch.zeros_like(start, device=device)
    else:
        given = start.to(device)
    take = None if columns is None else partial(gather, index=Everywhere(columns))
    readers: list[Hook] = [
        (f"blocks.{at}.hook_resid_pre", partial(keep_entry, found, at, take, last))
        for at in set(entries)
    ]
    end = partial(finish, final, read)
    readers.append((f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", end))
    with (
        torch.no_grad(),
        _passed_over(model, layer),
        hooked(model, [*own, *hooks, *readers]),
        _narrow_mlp(model, read, start.shape[1], hooks),
        native(model, layer, fused=fused),
        until_stop(),
    ):
        model(given, return_type="logits", **kwargs)
    kept = None
    if keep:
        kept = Past(tuple(at.kept for at in cache.own), length + len(steps))
    return Pass(final[0] if final else torch.empty(0), found, kept)


class _Layer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer: those before are shared between rows, not copied ahead."""

    def __init__(
        self,
        entry: tuple[Tensor, Tensor] | None,
        rows: Everywhere | None,
        length: int,
        keep: bool,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.entry, self.rows, self.length, self.keep = entry, rows, length, keep
        self.kept: tuple[Tensor, Tensor] | None = None
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        whole = key_states, value_states
        if self.entry is not None:
            keys, values = self.entry
            if self.rows is not None:
                rows = self.rows.on(keys.device)
                keys, values = keys[rows], values[rows]
            whole = torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)
        if self.keep:
            self.kept = whole
        return whole

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0


class _Prefixed(Cache):
    """A cache of every layer in full: sliding windows are cut by the mask alone."""

    def __init__(self, n_layers: int, past: Past | None, rows: Tensor | None, keep: bool) -> None:
        length = past.length if past else 0
        entries = past.layers if past else (None,) * n_layers
        shared = None if rows is None else Everywhere(rows)
        self.own = [_Layer(entry, shared, length, keep) for entry in entries]
        super().__init__(layers=list(self.own))


@contextmanager
def _passed_over(model: Any, below: int) -> Iterator[None]:
    """Let the blocks below a layer give back what they get.

    A bridge's block hands attributes on to what it wraps, so this goes into its ``__dict__``.
    """
    passed = list(model.blocks)[:below]
    try:
        for block in passed:
            block.__dict__["forward"] = _unchanged
        yield
    finally:
        try:
            put_back(passed)
        except BaseException:  # Ctrl-C came meanwhile
            put_back(passed)
            raise


@contextmanager
def _narrow_mlp(
    model: Any, read: Int[Tensor, "row read"] | None, width: int, hooks: Sequence[Hook]
) -> Iterator[None]:
    """Let the last MLP run where the residual stream is read; nothing reads its other outputs.

    Not where a hook lies inside it, which expects all tokens.
    """
    inside = any(name.startswith(f"blocks.{model.cfg.n_layers - 1}.mlp.") for name, _ in hooks)
    wrapped = getattr(model.blocks[model.cfg.n_layers - 1].mlp, "original_component", None)
    if inside or wrapped is None or read is None or read.shape[1] >= width:
        yield
        return
    whole = wrapped.forward

    wrapped.__dict__["forward"] = partial(_narrow, whole, read)
    try:
        yield
    finally:
        wrapped.__dict__.pop("forward", None)


def _narrow(
    whole: Callable[..., Any], read: Int[Tensor, "row read"], x: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """An MLP at the columns that are read; zeros elsewhere."""
    out_read = whole(gather(x, read), *args, **kwargs)
    if not isinstance(out_read, Tensor):  # a mixture of experts gives more than its output
        return whole(x, *args, **kwargs)
    out = out_read.new_zeros(*x.shape[:2], out_read.shape[-1])
    out[torch.arange(len(x), device=x.device)[:, None], read.to(x.device)] = out_read
    return out


def _unchanged(*args: Any, **kwargs: Any) -> Any:
    return args[0] if args else kwargs["hidden_states"]
