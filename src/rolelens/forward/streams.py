"""Activations of prompts, read at some layers and positions, at all tokens or over answers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, TypeAlias

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rolelens.errors import InputError
from rolelens.forward import memory, models
from rolelens.forward.models import Everywhere, Hook, HookedModel
from rolelens.forward.operations import SITES
from rolelens.forward.passes import (
    Hooks,
    check_effect,
    gated,
    gather,
    keep_entry,
    steered,
    until_stop,
)
from rolelens.forward.plain import resumes
from rolelens.forward.resume import Past, resume
from rolelens.forward.tokens import Batch, Tokens, common_prefix

Pooled: TypeAlias = Literal["last", "mean"]


def check_positions(tokens: Tokens, positions: Sequence[int]) -> None:
    """Refuse positions that are not in every prompt."""
    shortest = min(tokens.prompt_lengths)
    if not all(-shortest <= position < 0 for position in positions):
        raise InputError(
            f"positions are {list(positions)}; they count from the end, from -1 down to "
            f"-{shortest}, the length of the shortest prompt in tokens."
        )


def residual_stream(
    model: HookedModel,
    tokens: Tokens,
    layers: Sequence[int],
    positions: Sequence[int],
    *,
    site: str = "resid_pre",
    hooks: Hooks = (),
    budget: int | None = None,
) -> Iterator[tuple[Int[Tensor, " row"], Float[Tensor, "row layer position d"]]]:
    """Read the residual stream entering each layer, or another site, a batch at a time.

    The forward pass ends at the last layer asked for; nothing is unembedded.

    Args:
        model: the model.
        tokens: the prompts.
        layers: layers, in any order.
        positions: positions counted from the end of each prompt (-1 is its last token).
        site: one of ``SITES``.
        hooks: what is done to the stream on the way.
        budget: tokens of one batch; as many as fit by default.

    Yields:
        The rows (indices into ``tokens``) and what was read.
    """
    check_positions(tokens, positions)
    check_effect(model, hooks, tokens)
    tokens = gated(model, hooks, tokens)
    offsets = torch.tensor(positions)
    if site == "resid_pre" and len(tokens) > 1 and not hooks and resumes(model):
        past = None
        with memory.running_out():
            past = _shared_past(model, tokens, max(layers), int(offsets.min()))
        read = partial(_read_behind, model, past, layers, offsets)
    else:
        read = partial(_read_ends, model, layers, offsets, hooks, site)
    for batch, states in memory.batched(model, tokens, read, budget=budget):
        yield batch.rows, states
        del states


def _read_behind(
    model: HookedModel,
    past: Past | None,
    layers: Sequence[int],
    offsets: Int[Tensor, " position"],
    batch: Batch,
) -> Float[Tensor, "row layer position d"]:
    """What enters each layer at the ends of prompts, behind the beginning that all share."""
    shared = past.length if past else 0
    ids = batch.ids[:, shared : int(batch.prompt_lengths.max())]
    read = resume(
        model,
        ids,
        past=past,
        past_rows=torch.zeros(len(ids), dtype=torch.long),
        entries=layers,
        columns=batch.prompt_lengths[:, None] + offsets - shared,
        fused=False,
    ).entries
    return stacked(read, layers)


def _read_ends(
    model: HookedModel,
    layers: Sequence[int],
    offsets: Int[Tensor, " position"],
    hooks: Hooks,
    site: str,
    batch: Batch,
) -> Float[Tensor, "row layer position d"]:
    """The same of a whole pass."""
    index = Everywhere(batch.prompt_lengths[:, None] + offsets)
    return _read(model, batch, layers, partial(gather, index=index), hooks, site)


def token_states(
    model: HookedModel,
    tokens: Tokens,
    layers: Sequence[int],
    site: str = "resid_pre",
    *,
    hooks: Hooks = (),
    budget: int | None = None,
) -> Iterator[tuple[int, Float[Tensor, "layer token d"]]]:
    """Read the activations of every token at one site, a prompt at a time.

    Args:
        model: the model.
        tokens: the prompts, with their answers where they have any.
        layers: layers, in any order.
        site: one of ``SITES``.
        hooks: what is done to the stream on the way.
        budget: tokens of one batch; as many as fit by default.

    Yields:
        The row (index into ``tokens``) and what was read; rows come by their length.
    """
    check_effect(model, hooks, tokens)
    tokens = gated(model, hooks, tokens)
    read = partial(_read_whole, model, tokens, layers, lambda batch: _all, hooks, site)
    for batch, states in memory.batched(model, _ended(tokens), read, budget=budget):
        ends = zip(batch.rows.tolist(), batch.lengths.tolist(), strict=True)
        for place, (row, length) in enumerate(ends):
            yield row, states[place, :, :length]


def answer_states(
    model: HookedModel,
    tokens: Tokens,
    layers: Sequence[int],
    site: str = "resid_pre",
    pooled: Pooled = "last",
    *,
    hooks: Hooks = (),
    budget: int | None = None,
) -> Iterator[tuple[Int[Tensor, " row"], Float[Tensor, "row layer d"]]]:
    """Read the activations of answers at one site, a batch at a time.

    Args:
        model: the model.
        tokens: prompts with an answer each.
        layers: layers, in any order.
        site: one of ``SITES``.
        pooled: the last token of each answer, or the mean over all its tokens.
        hooks: what is done to the stream on the way.
        budget: tokens of one batch; as many as fit by default.

    Yields:
        The rows (indices into ``tokens``) and what was read.

    Raises:
        InputError: a prompt has no answer.
    """
    for n, (ids, length) in enumerate(zip(tokens.ids, tokens.prompt_lengths, strict=True)):
        if len(ids) == length:
            raise InputError(f"prompt {n} has no answer to read; pass an answer to each prompt.")
    check_effect(model, hooks, tokens)
    tokens = gated(model, hooks, tokens)
    read = partial(_read_whole, model, tokens, layers, partial(_pooled, pooled), hooks, site)
    for batch, states in memory.batched(model, _ended(tokens), read, budget=budget):
        yield batch.rows, states


def _ended(tokens: Tokens) -> Tokens:
    """Prompts that end where their answers do, to be sorted by the length of both."""
    return replace(tokens, prompt_lengths=tuple(map(len, tokens.ids)))


def _read_whole(
    model: HookedModel,
    tokens: Tokens,
    layers: Sequence[int],
    take: Callable[[Batch], Callable[[Tensor], Tensor]],
    hooks: Hooks,
    site: str,
    batch: Batch,
) -> Tensor:
    """What is taken of a batch of :func:`_ended` tokens, each of which has its prompt back."""
    starts = torch.tensor([tokens.prompt_lengths[row] for row in batch.rows.tolist()])
    batch = replace(batch, prompt_lengths=starts)
    return _read(model, batch, layers, take(batch), hooks, site)


def _all(x: Tensor) -> Tensor:
    return x


def _pooled(pooled: Pooled, batch: Batch) -> Callable[[Tensor], Tensor]:
    """The last token of each answer, or the mean over its tokens."""
    columns = torch.arange(batch.ids.shape[1])
    if pooled == "last":
        return _mean(columns == batch.lengths[:, None] - 1)
    return _mean((columns >= batch.prompt_lengths[:, None]) & (columns < batch.lengths[:, None]))


def _shared_past(model: HookedModel, tokens: Tokens, top: int, lowest: int) -> Past | None:
    """Keys and values of what all prompts begin with, up to the lowest position that is read."""
    starts = [ids[:n] for ids, n in zip(tokens.ids, tokens.prompt_lengths, strict=True)]
    shared = min(common_prefix(starts), min(map(len, starts)) + lowest)
    if shared <= 0 or top == 0:
        return None
    ids = torch.tensor([starts[0][:shared]])
    return resume(model, ids, entries=[top], keep=True, fused=False).past


def _read(
    model: HookedModel,
    batch: Batch,
    layers: Sequence[int],
    take: Callable[[Tensor], Tensor],
    hooks: Hooks = (),
    site: str = "resid_pre",
) -> Float[Tensor, "row layer *rest"]:
    """What is taken of the activations of each layer; the pass ends with the last of them."""
    read: dict[int, Tensor] = {}
    last = len(set(layers))
    readers: list[Hook] = [
        (f"blocks.{layer}.{SITES[site]}", partial(keep_entry, read, layer, take, last))
        for layer in set(layers)
    ]
    with steered(model, batch, hooks, readers, fused=False), until_stop():
        models.run(model, batch.ids, None)
    return stacked(read, layers)


def stacked(read: dict[int, Tensor], layers: Sequence[int]) -> Tensor:
    """What was read of some layers, ``[row, layer, ...]``, in one place: a copy for each device."""
    by_device: dict[torch.device, list[int]] = {}
    for layer in layers:
        by_device.setdefault(read[layer].device, []).append(layer)
    parts = [torch.stack([read[layer] for layer in on], dim=1) for on in by_device.values()]
    if len(parts) == 1:
        return parts[0]
    where = [layer for on in by_device.values() for layer in on]
    index = torch.tensor([where.index(layer) for layer in layers], device=parts[0].device)
    return torch.cat([part.to(parts[0].device) for part in parts], dim=1).index_select(1, index)


def _mean(inside: Bool[Tensor, "row position"]) -> Callable[[Tensor], Tensor]:
    weights = Everywhere(inside / inside.sum(dim=1, keepdim=True))
    return lambda x: einsum(x.float(), weights.on(x.device), "row t d, row t -> row d")
