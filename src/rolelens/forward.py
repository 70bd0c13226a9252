"""Batched forward passes through a TransformerLens model, with hooks.

The only room that knows architectures. Everything that runs a model goes through here:
extraction stops at the last layer it needs, scoring unembeds only what it reads, and every
forward publishes which token of the prompt stands where, so that hooks can select positions.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rolelens.errors import InputError

HookFn: TypeAlias = Callable[..., Tensor | None]
Hook: TypeAlias = tuple[str, HookFn]
RowHooks: TypeAlias = Callable[[Int[Tensor, "row"]], Sequence[Hook]]
Hooks: TypeAlias = Sequence[Hook] | RowHooks

TOKEN_BUDGET = 2048
"""Tokens of one batch, padding included: enough to keep two cores busy, small in memory."""


@runtime_checkable
class HookedModel(Protocol):
    """What is asked of a model: a ``TransformerBridge`` or a ``HookedTransformer``."""

    cfg: Any
    tokenizer: Any
    embed: Any
    ln_final: Any
    unembed: Any

    def hooks(self, fwd_hooks: list[Hook] = ...) -> AbstractContextManager[Any]:
        """Install forward hooks for the duration of a context."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""


@dataclass(frozen=True)
class Tokens:
    """Tokenised prompts.

    Attributes:
        ids: token ids of each prompt, with its answer where one is scored.
        prompt_lengths: how many of them are the prompt; the rest is the answer.
        n_post: how many of the prompt's last tokens are post-instruction tokens.
    """

    ids: tuple[tuple[int, ...], ...]
    prompt_lengths: tuple[int, ...]
    n_post: int

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Batch:
    """Some of the prompts, right-padded to one length (causal attention needs no mask then)."""

    rows: Int[Tensor, "row"]
    ids: Int[Tensor, "row position"]
    lengths: Int[Tensor, "row"]
    prompt_lengths: Int[Tensor, "row"]
    n_post: int

    def part(self, rows: Int[Tensor, "part"], columns: slice) -> "Batch":
        """Some rows and columns."""
        ids = self.ids[rows][:, columns]
        return Batch(
            self.rows[rows], ids, self.lengths[rows], self.prompt_lengths[rows], self.n_post
        )


@dataclass(frozen=True)
class Running:
    """What hooks may know of the forward pass they are called in.

    Attributes:
        positions: absolute positions of the tokens in this forward pass.
        prompt_lengths: tokens of each row's prompt.
        n_post: how many of the prompt's last tokens are post-instruction tokens.
    """

    positions: Int[Tensor, "position"]
    prompt_lengths: Int[Tensor, "row"]
    n_post: int


running: ContextVar[Running | None] = ContextVar("running", default=None)


class _Stop(Exception):  # noqa: N818
    """Ends a forward pass once everything that is needed was read."""


def batches(
    tokens: Tokens, budget: int = TOKEN_BUDGET, *, same_prompt_length: bool = False
) -> list[Batch]:
    """Sort prompts by length and cut them into batches of at most ``budget`` tokens.

    Args:
        tokens: the prompts.
        budget: tokens of a batch, padding included; a longer prompt makes a batch of its own.
        same_prompt_length: put only prompts of equal length together; what follows them then
            stands at the same positions in every row.
    """
    order = sorted(range(len(tokens)), key=lambda i: (tokens.prompt_lengths[i], len(tokens.ids[i])))
    groups: list[list[int]] = []
    longest = 0
    for i in order:
        longest = max(longest, len(tokens.ids[i])) if groups else len(tokens.ids[i])
        fits = groups and (len(groups[-1]) + 1) * longest <= budget
        if fits and same_prompt_length:
            fits = tokens.prompt_lengths[groups[-1][0]] == tokens.prompt_lengths[i]
        if fits:
            groups[-1].append(i)
        else:
            groups.append([i])
            longest = len(tokens.ids[i])
    return [_batch(tokens, group) for group in groups]


def _batch(tokens: Tokens, group: list[int]) -> Batch:
    longest = max(len(tokens.ids[i]) for i in group)
    ids = torch.zeros(len(group), longest, dtype=torch.long)
    for row, i in enumerate(group):
        ids[row, : len(tokens.ids[i])] = torch.tensor(tokens.ids[i])
    return Batch(
        rows=torch.tensor(group),
        ids=ids,
        lengths=torch.tensor([len(tokens.ids[i]) for i in group]),
        prompt_lengths=torch.tensor([tokens.prompt_lengths[i] for i in group]),
        n_post=tokens.n_post,
    )


def residual_stream(
    model: HookedModel,
    tokens: Tokens,
    layers: Sequence[int],
    positions: Sequence[int],
    *,
    hooks: Hooks = (),
    budget: int = TOKEN_BUDGET,
) -> Iterator[tuple[Int[Tensor, "row"], Float[Tensor, "row layer position d_model"]]]:
    """Read the residual stream entering each layer, a batch at a time.

    The forward pass ends at the last layer asked for; nothing is unembedded.

    Args:
        model: the model.
        tokens: the prompts.
        layers: layers, in any order.
        positions: positions counted from the end of each prompt (-1 is its last token).
        hooks: what is done to the stream on the way.
        budget: tokens of one batch.

    Yields:
        The rows (indices into ``tokens``) and their residual stream.
    """
    offsets = torch.tensor(positions)
    for batch in batches(tokens, budget):
        read: dict[int, Tensor] = {}
        index = batch.prompt_lengths[:, None] + offsets

        def keep(
            x: Tensor,
            hook: Any,
            *,
            layer: int,
            read: dict[int, Tensor] = read,
            index: Tensor = index,
        ) -> None:
            read[layer] = _gather(x, index)
            if len(read) == len(set(layers)):
                raise _Stop

        readers = [
            (f"blocks.{layer}.hook_resid_pre", _bind(keep, layer=layer)) for layer in set(layers)
        ]
        with _steered(model, batch, hooks, readers), _until_stop():
            _run(model, batch.ids, None)
        yield batch.rows, torch.stack([read[layer] for layer in layers], dim=1)


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
        final = _final_residual(model, batch, index, hooks)[:, 0]
        out[batch.rows] = _unembed(model, final, list(vocab)).float().cpu()
    return out


def answer_logprobs(
    model: HookedModel, tokens: Tokens, *, hooks: Hooks = (), budget: int = TOKEN_BUDGET
) -> list[Float[Tensor, "token"]]:
    """Log-probability (nats) of every token of each answer, given all that stands before it.

    Answers to the same prompt share its keys and values, so a prompt runs once.
    """
    out: list[Tensor] = [torch.empty(0)] * len(tokens)
    for batch in batches(tokens, budget, same_prompt_length=True):
        length = int(batch.prompt_lengths[0])
        prompts, prompt_of = torch.unique(batch.ids[:, :length], dim=0, return_inverse=True)
        first = torch.tensor([int((prompt_of == p).nonzero()[0]) for p in range(len(prompts))])
        cache = _new_cache(model, len(prompts))
        last = torch.full((len(prompts), 1), length - 1)
        before = _final_residual(
            model, batch.part(first, slice(0, length)), last, hooks, cache=cache
        )[prompt_of]
        final = before
        width = batch.ids.shape[1] - length
        if width > 1:
            _select_rows(cache, prompt_of.to(model.cfg.device))
            rows = torch.arange(len(batch.rows))
            index = torch.arange(width - 1).expand(len(rows), -1)
            part = batch.part(rows, slice(length, length + width - 1))
            after = _final_residual(model, part, index, hooks, cache=cache, start=length)
            final = torch.cat([before, after], dim=1)
        answered = torch.arange(width) < (batch.lengths - length)[:, None]
        found = torch.zeros(answered.shape)
        found[answered] = _logprobs(model, final[answered], batch.ids[:, length:][answered])
        for row, i in enumerate(batch.rows.tolist()):
            out[i] = found[row, answered[row]]
    return out


def _logprobs(
    model: HookedModel, final: Float[Tensor, "n d_model"], targets: Int[Tensor, "n"]
) -> Float[Tensor, "n"]:
    """Log-probability of each target, unembedding a few hundred vectors at a time."""
    parts = []
    for x, target in zip(torch.split(final, 256), torch.split(targets, 256), strict=True):
        logits = _unembed(model, x, None).float()
        own = logits.gather(1, target[:, None].to(logits.device))[:, 0]
        parts.append((own - logits.logsumexp(dim=-1)).cpu())
    return torch.cat(parts)


def decode(
    model: HookedModel,
    batch: Batch,
    pick: Callable[[Float[Tensor, "row vocab"], Int[Tensor, "row position"]], Int[Tensor, "row"]],
    *,
    max_new_tokens: int,
    hooks: Hooks = (),
    cache: bool = True,
) -> Iterator[Int[Tensor, "row"]]:
    """Generate for prompts of equal length, one token a row and step.

    Args:
        model: the model.
        batch: prompts of equal length.
        pick: chooses the next token of each row from its logits and the ids so far.
        max_new_tokens: how many steps at most.
        hooks: what is done to the stream, at the prompt and at every new token.
        cache: keep keys and values; without, every step runs the whole sequence again.
    """
    ids = batch.ids.to(model.cfg.device)
    kept = _new_cache(model, len(batch.rows)) if cache else None
    start = 0
    for _ in range(max_new_tokens):
        with _steered(model, batch, hooks, (), start=start, width=ids.shape[1] - start):
            logits = _run(model, ids[:, start:], kept, last_only=True)
        chosen = pick(logits[:, -1].float(), ids)
        start = ids.shape[1] if cache else 0
        ids = torch.cat([ids, chosen[:, None]], dim=1)
        yield chosen


def _run(
    model: HookedModel, ids: Int[Tensor, "row position"], cache: Any, *, last_only: bool = False
) -> Float[Tensor, "row read vocab"]:
    """Run the model on tokens that follow those in the cache, which grows by them."""
    kwargs: dict[str, Any] = {}
    if cache is not None:
        kwargs = {"past_key_values": cache, "use_cache": True}
    accepted = inspect.signature(_wrapped(model).forward).parameters
    if last_only and "logits_to_keep" in accepted:
        kwargs["logits_to_keep"] = 1
    logits: Tensor = model(ids.to(model.cfg.device), return_type="logits", **kwargs)
    return logits


def _wrapped(model: Any) -> Any:
    """The Hugging Face model inside a bridge."""
    return model.original_model


def _new_cache(model: HookedModel, rows: int) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=_wrapped(model).config)


def _select_rows(cache: Any, rows: Int[Tensor, "row"]) -> None:
    cache.batch_select_indices(rows)


@contextmanager
def _steered(
    model: HookedModel,
    batch: Batch,
    hooks: Hooks,
    readers: Sequence[Hook],
    *,
    start: int = 0,
    width: int | None = None,
) -> Iterator[None]:
    """Install hooks, publish the positions of this forward pass, and undo both at the end.

    Readers are installed last, so they see what the hooks have done.
    """
    mine = hooks(batch.rows) if callable(hooks) else hooks
    published = Running(
        positions=start + torch.arange(batch.ids.shape[1] if width is None else width),
        prompt_lengths=batch.prompt_lengths,
        n_post=batch.n_post,
    )
    token = running.set(published)
    try:
        with torch.no_grad(), model.hooks(fwd_hooks=[*mine, *readers]):
            yield
    finally:
        running.reset(token)


@contextmanager
def _until_stop() -> Iterator[None]:
    try:
        yield
    except _Stop:
        return
    raise InputError(
        "the model ran to its end without passing a hook that was to be read; this architecture "
        "does not fire blocks.{l}.hook_resid_pre and cannot be used."
    )


def _bind(keep: Callable[..., None], **fixed: int) -> HookFn:
    return lambda x, hook: keep(x, hook, **fixed)


def _gather(
    x: Float[Tensor, "row position d_model"], index: Int[Tensor, "row read"]
) -> Float[Tensor, "row read d_model"]:
    return x[torch.arange(x.shape[0], device=x.device)[:, None], index.to(x.device)]


def _final_residual(
    model: HookedModel,
    batch: Batch,
    index: Int[Tensor, "row read"],
    hooks: Hooks,
    *,
    cache: Any = None,
    start: int = 0,
) -> Float[Tensor, "row read d_model"]:
    """The residual stream that leaves the last block, at the columns ``index`` of the batch."""
    read: list[Tensor] = []

    def keep(x: Tensor, hook: Any) -> None:
        read.append(_gather(x, index))
        raise _Stop

    reader = (f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", keep)
    with _steered(model, batch, hooks, [reader], start=start), _until_stop():
        _run(model, batch.ids, cache)
    return read[0]


_unembeds_by_hand: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def _unembed(
    model: HookedModel, final: Float[Tensor, "n d_model"], vocab: list[int] | None
) -> Float[Tensor, "n token"]:
    """Final norm and unembedding of single residual vectors, for some tokens or for all."""
    if model not in _unembeds_by_hand:
        _unembeds_by_hand[model] = _unembedding_agrees(model)
    if not _unembeds_by_hand[model]:
        raise InputError(
            f"the unembedding of {model.cfg.model_name!r} is not a final norm, a matrix and a soft "
            "cap, so its scores cannot be computed; please report this architecture."
        )
    return _unembed_by_hand(model, final, vocab)


def _unembed_by_hand(
    model: HookedModel, final: Float[Tensor, "n d_model"], vocab: list[int] | None
) -> Float[Tensor, "n token"]:
    with torch.no_grad():
        normed = model.ln_final(final[None])[0]
        weight, bias = model.unembed.W_U, model.unembed.b_U
        if vocab is not None:
            weight, bias = weight[:, vocab], bias[vocab]
        logits = normed @ weight + bias
        cap = getattr(model.cfg, "output_logits_soft_cap", None) or -1.0
        return cap * torch.tanh(logits / cap) if cap > 0 else logits


def _unembedding_agrees(model: HookedModel) -> bool:
    """Whether unembedding by hand gives the model's own logits, tried on four tokens."""
    ids = torch.arange(4)[None].to(model.cfg.device)
    one = torch.tensor([0])
    batch = Batch(one, ids, one + 4, one + 4, 0)
    final = _final_residual(model, batch, torch.arange(4)[None], ())
    with torch.no_grad():
        own = model(ids, return_type="logits")[0].float()
    mine = _unembed_by_hand(model, final[0], None).float()
    return bool((own - mine).abs().max() <= 1e-3 * own.abs().max().clamp(min=1))
