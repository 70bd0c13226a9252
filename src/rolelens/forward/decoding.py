"""Generation: one token a row and step, of all rows that have not ended."""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rolelens.forward import caches, models
from rolelens.forward.models import Everywhere, HookedModel
from rolelens.forward.passes import (
    Hooks,
    final_residual,
    installed,
    labels_of,
    selections_of,
    steered,
    told,
    unembed,
)
from rolelens.forward.plain import resumes
from rolelens.forward.resume import resume
from rolelens.forward.selection import Running, first_selected, selected
from rolelens.forward.tokens import Batch

Pick: TypeAlias = Callable[
    [Float[Tensor, "going vocab"], Int[Tensor, " going"]], Int[Tensor, " going"]
]
"""The next token of the rows that go on, from their logits and which rows of the batch they are."""


def decode(
    model: HookedModel,
    batch: Batch,
    pick: Pick,
    *,
    max_new_tokens: int,
    stop: Int[Tensor, " token"],
    hooks: Hooks = (),
    cache: bool = True,
) -> Iterator[Int[Tensor, " row"]]:
    """Generate until every row has ended.

    Rows of the same prompt share its pass where the prompt is steered alike.

    Args:
        model: the model; one that :func:`mixes` where the prompts have several lengths.
        batch: the prompts.
        pick: chooses the next tokens.
        max_new_tokens: how many steps at most.
        stop: tokens that end a row. Where half of the rows have ended, the others go on alone.
        hooks: what is done to the stream, at the prompt and at every new token. A beginning that
            all prompts share runs once, as far as it is edited alike in all rows.
        cache: keep keys and values, where the model has any; without, every step runs the whole
            sequence again, and the prompts have to be of one length.

    Yields:
        The token of each row, on the CPU; of rows that have ended, any.
    """
    cache = cache and caches.has_cache(model)
    several = len(set(batch.lengths.tolist())) > 1
    rows = torch.arange(len(batch.rows))
    at_prompt = () if _after_prompt(batch, hooks) else hooks
    labels = labels_of(at_prompt, batch.rows)
    first, which = _distinct(batch, labels)
    prompts = batch.part(first, slice(None))
    if cache and _share_below(model, prompts, at_prompt):
        state: _Ragged | _Even = _Ragged(
            model, prompts, at_prompt, *_resumed(model, prompts, at_prompt)
        )
    else:
        shared = _shared_beginning(model, prompts, at_prompt, labels[first]) if cache else 0
        if several:
            begun = _whole(model, prompts, at_prompt, shared)
            state = _Ragged(model, prompts, at_prompt, *begun)
        else:
            state = _Even(model, prompts, at_prompt, cache, shared)
    logits = state.logits()
    logits = logits[which.to(logits.device)]
    if len(first) < len(rows):
        state.keep(which)
    state.batch, state.hooks = batch, hooks
    last = torch.zeros_like(rows)
    ended = torch.zeros(len(rows), dtype=torch.bool)
    for step in range(max_new_tokens):
        last[rows] = pick(state.logits() if step else logits, rows).cpu()
        ended |= torch.isin(last, stop)
        yield last.clone()
        if ended.all():
            return
        going = ~ended[rows]
        if 2 * int(going.sum()) <= len(rows):
            state.keep(going.nonzero()[:, 0])
            rows = rows[going]
        state.append(last[rows])


class _Even:
    """Rows of one length."""

    def __init__(
        self, model: HookedModel, batch: Batch, hooks: Hooks, cache: bool, shared: int
    ) -> None:
        self.model, self.batch, self.hooks = model, batch, hooks
        self.ids = batch.ids.to(model.cfg.device)
        self.start = shared
        self.cache = _begun(model, batch, hooks, shared) if cache else None

    def logits(self) -> Float[Tensor, "row vocab"]:
        start, width = self.start, self.ids.shape[1] - self.start
        with steered(self.model, self.batch, self.hooks, (), start=start, width=width):
            found = models.run(self.model, self.ids[:, start:], self.cache, last_only=True)
        return found[:, -1].float()

    def append(self, chosen: Int[Tensor, " row"]) -> None:
        self.start = self.ids.shape[1] if self.cache is not None else 0
        self.ids = torch.cat([self.ids, chosen[:, None].to(self.ids.device)], dim=1)

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        self.batch = self.batch.part(rows, slice(None))
        self.ids = self.ids[rows.to(self.ids.device)]
        if self.cache is not None:
            caches.select_rows(self.cache, rows.to(self.ids.device))


class _Ragged:
    """Rows of several lengths, padded on the right at first (columns are positions), then left."""

    def __init__(
        self, model: HookedModel, batch: Batch, hooks: Hooks, final: Tensor, cache: Any
    ) -> None:
        self.model, self.batch, self.hooks = model, batch, hooks
        self.lengths, self.final, self.cache = batch.lengths, final, cache
        caches.move_right(self.cache, self.lengths)
        self.chosen: Tensor | None = None

    def logits(self) -> Float[Tensor, "row vocab"]:
        if self.chosen is None:
            return unembed(self.model, self.final).float()
        behind = self.lengths - 1
        with steered(self.model, self.batch, self.hooks, (), positions=behind[:, None]):
            found = models.run(
                self.model, self.chosen[:, None], self.cache, last_only=True, behind=behind
            )
        return found[:, -1].float()

    def append(self, chosen: Int[Tensor, " row"]) -> None:
        self.chosen, self.lengths = chosen, self.lengths + 1

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        self.batch = self.batch.part(rows, slice(None))
        self.lengths = self.lengths[rows]
        caches.select_rows(self.cache, rows.to(self.model.cfg.device))


def _whole(
    model: HookedModel, batch: Batch, hooks: Hooks, shared: int
) -> tuple[Float[Tensor, "row d_model"], Any]:
    """What leaves the last block at the end of each prompt, and a cache of all of its tokens."""
    cache = _begun(model, batch, hooks, shared, whole=True)
    rest = batch.part(torch.arange(len(batch.rows)), slice(shared, None))
    index = (batch.lengths - 1 - shared)[:, None]
    return final_residual(model, rest, index, hooks, cache=cache, start=shared)[:, 0], cache


def _share_below(model: HookedModel, batch: Batch, hooks: Hooks) -> bool:
    """Whether rows of one prompt are edited differently, and not below some layer."""
    if not callable(hooks) or not getattr(hooks, "layer", 0) or not resumes(model):
        return False
    alike = torch.zeros(len(batch.rows), dtype=torch.long)
    return len(_distinct(batch, alike)[0]) < len(batch.rows)


def _resumed(
    model: HookedModel, batch: Batch, hooks: Any
) -> tuple[Float[Tensor, "row d_model"], Any]:
    """The same as of :func:`_whole`; each prompt runs once up to the lowest edited layer."""
    first, which = _distinct(batch, torch.zeros(len(batch.rows), dtype=torch.long))
    below = resume(model, batch.ids[first], entries=[hooks.layer], keep=True)
    chosen = Everywhere(which)
    entry = below.entries[hooks.layer]
    with told(batch, torch.arange(batch.ids.shape[1])):
        above = resume(
            model,
            entry[chosen.on(entry.device)],
            hooks.layer,
            hooks=hooks(batch.rows),
            read=(batch.lengths - 1)[:, None],
            keep=True,
        )
    assert below.past is not None
    assert above.past is not None
    cache = caches.new_cache(model, len(batch.rows), whole=True)
    layers = zip(cache.layers, below.past.layers, above.past.layers, strict=True)
    for kept, once, each in layers:
        kept.update(*(each or [states[chosen.on(states.device)] for states in once or ()]))
    return above.final[:, 0], cache


def _distinct(
    batch: Batch, labels: Int[Tensor, " row"]
) -> tuple[Int[Tensor, " prompt"], Int[Tensor, " row"]]:
    """One row of each prompt and label, and which of these every row is like."""
    ends = torch.stack([batch.lengths, batch.prompt_lengths, labels], dim=1)
    _, which = torch.unique(torch.cat([ends, batch.ids], dim=1), dim=0, return_inverse=True)
    rows = torch.arange(len(which))
    if int(which.max()) + 1 == len(which):
        return rows, rows
    first = torch.full((int(which.max()) + 1,), len(which)).scatter_reduce(0, which, rows, "amin")
    return first, which


def _after_prompt(batch: Batch, hooks: Hooks) -> bool:
    """Whether hooks say that they edit no token of the prompts."""
    chosen = selections_of(hooks)
    if chosen is None:
        return False
    columns = torch.arange(batch.ids.shape[1] + 1)
    now = Running(columns, batch.prompt_lengths, batch.n_post, gates=batch.gates)
    return bool((first_selected(now, chosen) >= batch.lengths).all())


WORTH = 64
"""Tokens that a pass of its own over what prompts share has to save."""


def _shared_beginning(
    model: HookedModel, batch: Batch, hooks: Hooks, labels: Int[Tensor, " row"]
) -> int:
    """Tokens at the beginning that are the same in all rows and edited alike."""
    each = [selections_of(given) for given in (hooks, *installed(model))]
    if None in each:
        return 0
    same = (batch.ids == batch.ids[:1]).all(dim=0)
    columns = torch.arange(batch.ids.shape[1])
    now = Running(columns, batch.prompt_lengths, batch.n_post, gates=batch.gates)
    for tokens in {tokens for chosen in each for tokens in chosen or ()}:
        edited = selected(now, tokens)
        alike = (edited == edited[:1]).all(dim=0) & bool((labels == labels[0]).all())
        same &= alike | ~edited.any(dim=0)
    shared = int(same[: int(batch.lengths.min()) - 1].int().cumprod(dim=0).sum())
    return shared if shared * (len(batch.rows) - 1) >= WORTH else 0


def _begun(
    model: HookedModel, batch: Batch, hooks: Hooks, shared: int, *, whole: bool = False
) -> Any:
    """A cache with what all rows share, of which the first row stands for all."""
    n = len(batch.rows)
    cache = caches.new_cache(model, 1 if shared else n, whole=whole)
    if shared:
        one = batch.part(torch.tensor([0]), slice(0, shared))
        with steered(model, one, hooks, ()):
            models.run(model, one.ids, cache, last_only=True)
        caches.select_rows(cache, torch.zeros(n, dtype=torch.long, device=model.cfg.device))
    return cache
