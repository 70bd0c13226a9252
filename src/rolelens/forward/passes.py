"""Forward passes that read what is needed and end there."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rolelens.errors import InputError
from rolelens.forward import models
from rolelens.forward.models import Hook, HookedModel, HookFn
from rolelens.forward.selection import Running, running
from rolelens.forward.tokens import TOKEN_BUDGET, Batch, Tokens, batches

RowHooks: TypeAlias = Callable[[Int[Tensor, " row"]], Sequence[Hook]]
Hooks: TypeAlias = Sequence[Hook] | RowHooks


class Stop(Exception):  # noqa: N818
    """Ends a forward pass once everything that is needed was read."""


def next_token_logits(
    model: HookedModel,
    tokens: Tokens,
    *,
    vocab: Sequence[int],
    hooks: Hooks = (),
    budget: int = TOKEN_BUDGET,
) -> Float[Tensor, "prompt token"]:
    """Logits of some tokens at the end of each prompt; nothing else is unembedded.

    Args:
        model: the model.
        tokens: the prompts.
        vocab: ids of the tokens asked for.
        hooks: what is done to the stream on the way.
        budget: tokens of one batch.
    """
    out = torch.empty(len(tokens), len(vocab))
    for batch in batches(tokens, budget):
        index = (batch.lengths - 1)[:, None]
        final = final_residual(model, batch, index, hooks)[:, 0]
        out[batch.rows] = unembed(model, final, list(vocab)).float().cpu()
    return out


def answer_logprobs(
    model: HookedModel, tokens: Tokens, *, hooks: Hooks = (), budget: int = TOKEN_BUDGET
) -> list[Float[Tensor, " token"]]:
    """Log-probability (nats) of every token of each answer, given all that stands before it.

    Answers to the same prompt share its keys and values, so a prompt runs once.
    """
    out: list[Tensor] = [torch.empty(0)] * len(tokens)
    for batch in batches(tokens, budget, same_prompt_length=True):
        length = int(batch.prompt_lengths[0])
        starts = batch.ids[:, :length]
        if callable(hooks):  # rows that are steered differently share nothing
            starts = torch.cat([starts, batch.rows[:, None]], dim=1)
        prompts, prompt_of = torch.unique(starts, dim=0, return_inverse=True)
        first = torch.tensor([int((prompt_of == p).nonzero()[0]) for p in range(len(prompts))])
        cache = models.new_cache(model, len(prompts))
        last = torch.full((len(prompts), 1), length - 1)
        before = final_residual(
            model, batch.part(first, slice(0, length)), last, hooks, cache=cache
        )[prompt_of]
        final = before
        width = batch.ids.shape[1] - length
        if width > 1:
            models.select_rows(cache, prompt_of.to(model.cfg.device))
            rows = torch.arange(len(batch.rows))
            index = torch.arange(width - 1).expand(len(rows), -1)
            part = batch.part(rows, slice(length, length + width - 1))
            after = final_residual(model, part, index, hooks, cache=cache, start=length)
            final = torch.cat([before, after], dim=1)
        answered = torch.arange(width) < (batch.lengths - length)[:, None]
        found = torch.zeros(answered.shape)
        targets = batch.ids[:, length:][answered][:, None]
        found[answered] = token_logprobs(model, final[answered], targets)[:, 0]
        for row, i in enumerate(batch.rows.tolist()):
            out[i] = found[row, answered[row]]
    return out


def token_logprobs(
    model: HookedModel, final: Float[Tensor, "n d_model"], targets: Int[Tensor, "n token"]
) -> Float[Tensor, "n token"]:
    """Log-probability of some tokens each, unembedding a few hundred vectors at a time."""
    parts = []
    for x, target in zip(torch.split(final, 256), torch.split(targets, 256), strict=True):
        logits = unembed(model, x, None).float()
        own = logits.gather(1, target.to(logits.device))
        parts.append((own - logits.logsumexp(dim=-1, keepdim=True)).cpu())
    return torch.cat(parts)


@contextmanager
def steered(
    model: HookedModel,
    batch: Batch,
    hooks: Hooks,
    readers: Sequence[Hook],
    *,
    start: int = 0,
    width: int | None = None,
    positions: Int[Tensor, "row position"] | None = None,
) -> Iterator[None]:
    """Install hooks, publish the positions of this forward pass, and undo both at the end.

    Readers are installed last, so they see what the hooks have done.
    """
    mine = list(hooks(batch.rows) if callable(hooks) else hooks)
    known = model.hook_dict if mine else {}
    for name, _ in mine:
        if name not in known:
            raise InputError(f"the model has no hook {name!r}; it has {model.cfg.n_layers} layers.")
    columns = start + torch.arange(batch.ids.shape[1] if width is None else width)
    published = Running(
        positions=columns if positions is None else positions,
        prompt_lengths=batch.prompt_lengths,
        n_post=batch.n_post,
        source=batch.source,
    )
    token = running.set(published)
    try:
        with torch.no_grad(), model.hooks(fwd_hooks=[*mine, *readers]):
            yield
    finally:
        running.reset(token)


@contextmanager
def until_stop() -> Iterator[None]:
    """Run a model until a hook has read what is needed."""
    try:
        yield
    except Stop:
        return
    raise InputError(
        "the model ran to its end without passing a hook that was to be read; this architecture "
        "does not fire blocks.{l}.hook_resid_pre and cannot be used."
    )


def bind(keep: Callable[..., Tensor | None], **fixed: int) -> HookFn:
    """Make a hook of a function of more arguments."""
    return lambda x, hook: keep(x, hook, **fixed)


def gather(
    x: Float[Tensor, "row position d_model"], index: Int[Tensor, "row read"]
) -> Float[Tensor, "row read d_model"]:
    """Read some columns of each row."""
    return x[torch.arange(x.shape[0], device=x.device)[:, None], index.to(x.device)]


def final_residual(
    model: HookedModel,
    batch: Batch,
    index: Int[Tensor, "row read"],
    hooks: Hooks,
    *,
    cache: Any = None,
    start: int = 0,
) -> Float[Tensor, "row read d_model"]:
    """The residual stream that leaves the last block, at the columns ``index`` of the batch."""
    for name, _ in hooks(batch.rows) if callable(hooks) else hooks:
        if behind_blocks(name):
            raise InputError(
                f"the hook {name!r} lies behind the last block, where scoring stops the model; "
                "hook a block instead."
            )
    read: list[Tensor] = []

    def keep(x: Tensor, hook: Any) -> None:
        read.append(gather(x, index))
        raise Stop

    reader = (f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", keep)
    with steered(model, batch, hooks, [reader], start=start), until_stop():
        models.run(model, batch.ids, cache)
    return read[0]


def behind_blocks(hook: str) -> bool:
    """Whether a hook lies behind the last block, where passes that read a residual stream end."""
    return hook.startswith(("ln_final", "unembed"))


_unembeds_by_hand: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def unembed(
    model: HookedModel, final: Float[Tensor, "n d_model"], vocab: list[int] | None = None
) -> Float[Tensor, "n token"]:
    """Unembed single vectors, where this gives the model's own logits."""
    probe(model)
    if not _unembeds_by_hand[model]:
        raise InputError(
            f"the unembedding of {model.cfg.model_name!r} is not a final norm, a matrix and a soft "
            "cap, so its scores cannot be computed; please report this architecture."
        )
    with torch.no_grad():
        return models.unembed(model, final, vocab)


def probe(model: HookedModel) -> None:
    """Find out, once and before anything steers it, if a model can be unembedded by hand."""
    if model not in _unembeds_by_hand:
        _unembeds_by_hand[model] = _unembedding_agrees(model)


def _unembedding_agrees(model: HookedModel) -> bool:
    """Whether unembedding by hand gives the model's own logits, tried on four tokens."""
    one = torch.tensor([0])
    batch = Batch(one, torch.arange(4)[None], one + 4, one + 4, 0)
    final = final_residual(model, batch, torch.arange(4)[None], ())[0]
    with steered(model, batch, (), ()):
        own = models.run(model, batch.ids)[0]
    with torch.no_grad():
        found = models.unembed(model, final)
    tolerance = max(1e-3, 4 * torch.finfo(own.dtype).eps)
    return bool((own.float() - found).abs().max() <= tolerance * own.abs().max().clamp(min=1))
