"""Forward passes that read what is needed and end there."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rolelens.errors import InputError
from rolelens.forward import caches, memory, models
from rolelens.forward.gates import decided
from rolelens.forward.models import Everywhere, Hook, HookedModel
from rolelens.forward.native import native, try_native
from rolelens.forward.selection import Running, Selection, running, selects, ungated
from rolelens.forward.tokens import Batch, Tokens

RowHooks: TypeAlias = Callable[[Int[Tensor, " row"]], Sequence[Hook]]
Hooks: TypeAlias = Sequence[Hook] | RowHooks


def selections_of(hooks: Hooks) -> tuple[Selection, ...] | None:
    """The selections of tokens that hooks edit; None where some do not say."""
    if callable(hooks):
        chosen: tuple[Selection, ...] | None = getattr(hooks, "selections", None)
        return chosen
    each = [getattr(fn, "selections", None) for _, fn in hooks]
    known = [one for one in each if one is not None]
    if len(known) < len(each):
        return None
    return tuple(dict.fromkeys(name for one in known for name in one))


class Regrouped:
    """Row-wise hooks for rows that stand for others, such as the options of a question.

    Attributes:
        selections: the tokens that are edited; None where the hooks do not say.
        n: how many rows there are.
        layer: the lowest layer that is edited; 0 where the hooks do not say.
    """

    def __init__(self, hooks: RowHooks, of: Int[Tensor, " row"]) -> None:
        check_rows(hooks, int(of.max()) + 1)
        self._hooks, self._of, self.n = hooks, of, len(of)
        self.selections = getattr(hooks, "selections", None)
        self.layer = getattr(hooks, "layer", 0)

    def __call__(self, rows: Int[Tensor, " row"]) -> Sequence[Hook]:
        """The hook list of some rows."""
        return self._hooks(self._of[rows])

    def labels(self, rows: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
        """Rows of the same label are steered alike."""
        return labels_of(self._hooks, self._of[rows])


def check_rows(hooks: Hooks, rows: int) -> None:
    """Refuse row-wise hooks that are of another number of rows."""
    n = getattr(hooks, "n", rows)
    if n != rows:
        raise InputError(
            f"{n} steerings and {rows} prompts do not pair up; pass one for each prompt "
            "(rl.Steering() does nothing)."
        )


def labels_of(hooks: Hooks, rows: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
    """Labels of rows that are the same where rows are steered alike."""
    if not callable(hooks):
        return torch.zeros_like(rows)
    known = getattr(hooks, "labels", None)
    labels: Tensor = rows if known is None else known(rows)
    return labels


def check_effect(model: HookedModel, hooks: Hooks, tokens: Tokens, *, unread: int = 0) -> None:
    """Refuse steering that touches none of the tokens that a model reads.

    Args:
        model: the model; steering that is installed on it counts, too.
        hooks: the steering.
        tokens: what is read.
        unread: how many of the last tokens of each row are no input; negative where more follow.

    Raises:
        InputError: it touches none, or it is no steering.
    """
    if not callable(hooks) and not isinstance(hooks, Sequence):
        raise InputError(
            f"hooks is a {type(hooks).__name__}; pass steering such as rl.add(direction, 3.0), or "
            "a list of (hook_name, function)."
        )
    check_rows(hooks, len(tokens))
    for chosen in _chosen(model, hooks):
        lengths = [len(ids) - unread for ids in tokens.ids]
        if not selects(chosen, lengths, tokens.prompt_lengths, tokens.n_post):
            plain = ungated(chosen)
            named = plain if isinstance(plain, str) else list(plain)
            raise InputError(
                f"tokens is {named!r}, which is none of the tokens that the model reads here, so "
                "that nothing would be steered; use 'all' or 'prompt'."
            )


def gated(model: HookedModel, hooks: Hooks, tokens: Tokens) -> Tokens:
    """The tokens, with it decided which prompts meet the conditions of steering."""
    return decided(model, tokens, _chosen(model, hooks))


def _chosen(model: HookedModel, hooks: Hooks) -> set[Selection]:
    """The selections of tokens that hooks, and those that are installed, say they edit."""
    functions = [fn for given in (hooks, *installed(model)) for fn in _functions(given)]
    return {one for fn in functions for one in getattr(fn, "selections", None) or ()}


def _functions(hooks: Hooks) -> list[Any]:
    return [hooks] if callable(hooks) else [fn for _, fn in hooks]


_installed: WeakKeyDictionary[Any, list[Sequence[Hook]]] = WeakKeyDictionary()


def installed(model: HookedModel) -> tuple[Sequence[Hook], ...]:
    """What :func:`install` has put on a model."""
    return tuple(_installed.get(model, ()))


@contextmanager
def install(model: HookedModel, hooks: Sequence[Hook]) -> Iterator[None]:
    """Leave hooks on a model, for every pass inside a context."""
    stack = _installed.setdefault(model, [])
    stack.append(hooks)
    try:
        with model.hooks(fwd_hooks=list(hooks)):
            yield
    finally:
        stack.pop()


def foreign_hooks(model: HookedModel, known: Sequence[Sequence[Hook]]) -> bool:
    """Whether a model has hooks beyond those that :func:`install` has put there."""
    points = {id(point): point for point in models.points(model).values()}
    return sum(len(point.fwd_hooks) for point in points.values()) > sum(map(len, known))


class Stop(Exception):  # noqa: N818
    """Ends a forward pass once everything that is needed was read."""


def next_token_logits(
    model: HookedModel,
    tokens: Tokens,
    *,
    vocab: Sequence[int],
    hooks: Hooks = (),
    budget: int | None = None,
) -> Float[Tensor, "prompt token"]:
    """Logits of some tokens at the end of each prompt; nothing else is unembedded.

    Args:
        model: the model.
        tokens: the prompts.
        vocab: ids of the tokens asked for.
        hooks: what is done to the stream on the way.
        budget: tokens of one batch; as many as fit by default.
    """
    check_effect(model, hooks, tokens)
    tokens = gated(model, hooks, tokens)
    out = torch.empty(len(tokens), len(vocab))
    read = partial(_next_logits, model, list(vocab), hooks)
    for batch, logits in memory.batched(model, tokens, read, budget=budget):
        out[batch.rows] = logits
    return out


def _next_logits(
    model: HookedModel, vocab: list[int], hooks: Hooks, batch: Batch
) -> Float[Tensor, "row token"]:
    final = final_residual(model, batch, (batch.lengths - 1)[:, None], hooks)[:, 0]
    return unembed(model, final, vocab).float().cpu()


def answer_logprobs(
    model: HookedModel,
    tokens: Tokens,
    *,
    hooks: Hooks = (),
    mixed: bool = False,
    budget: int | None = None,
) -> list[Float[Tensor, " token"]]:
    """Log-probability (nats) of every token of each answer, given all that stands before it.

    Answers to the same prompt share its keys and values, so a prompt runs once.

    Args:
        model: the model.
        tokens: the prompts with their answers.
        hooks: what is done to the stream on the way.
        mixed: put prompts of several lengths into one batch, where the model :func:`mixes` them.
        budget: tokens of one batch; as many as fit by default.
    """
    check_effect(model, hooks, tokens, unread=1)
    tokens = gated(model, hooks, tokens)
    out: list[Tensor] = [torch.empty(0)] * len(tokens)
    read = partial(_answers, model, hooks)
    for batch, answers in memory.batched(
        model, tokens, read, budget=budget, same_prompt_length=not mixed
    ):
        for i, logprobs in zip(batch.rows.tolist(), answers, strict=True):
            out[i] = logprobs
    return out


def _answers(model: HookedModel, hooks: Hooks, batch: Batch) -> list[Float[Tensor, " token"]]:
    """Log-probabilities of the answers of a batch."""
    lengths = batch.lengths - batch.prompt_lengths
    columns = torch.arange(int(lengths.max()))
    answered = columns < lengths[:, None]
    index = (batch.prompt_lengths[:, None] + columns).clamp(max=batch.ids.shape[1] - 1)
    targets = batch.ids.gather(1, index)
    final = _answer_residual(model, batch, targets[:, :-1], hooks)
    logprobs = token_logprobs(model, final[answered], targets[answered][:, None])[:, 0]
    return list(torch.split(logprobs, lengths.tolist()))


def _answer_residual(
    model: HookedModel, batch: Batch, answers: Int[Tensor, "row read"], hooks: Hooks
) -> Float[Tensor, "row token d_model"]:
    """What leaves the last block where each token of the answers is predicted.

    Args:
        model: the model.
        batch: the prompts with their answers.
        answers: all tokens of the answers but the last.
        hooks: what is done to the stream on the way.
    """
    lengths, width = batch.prompt_lengths, answers.shape[1]
    if not caches.has_cache(model):
        index = lengths[:, None] - 1 + torch.arange(width + 1)
        return final_residual(model, batch, index.clamp(max=batch.ids.shape[1] - 1), hooks)
    longest, even = int(lengths.max()), bool((lengths == lengths[0]).all())
    inside = torch.arange(longest) < lengths[:, None]
    starts = [batch.ids[:, :longest].where(inside, 0), lengths[:, None]]
    if callable(hooks):  # rows that are steered differently share nothing
        starts.append(batch.rows[:, None])
    prompts, prompt_of = torch.unique(torch.cat(starts, dim=1), dim=0, return_inverse=True)
    first = torch.tensor([int((prompt_of == p).nonzero()[0]) for p in range(len(prompts))])
    cache = caches.new_cache(model, len(prompts), whole=not even)
    part = batch.part(first, slice(0, longest))
    last = (lengths[first] - 1)[:, None]
    before = final_residual(model, part, last, hooks, cache=cache)[prompt_of]
    if not width:
        return before
    if not even:
        caches.move_right(cache, lengths[first])
    caches.select_rows(cache, prompt_of.to(model.cfg.device))
    after = final_residual(
        model,
        dataclasses.replace(batch, ids=answers),
        torch.arange(width).expand(len(lengths), -1),
        hooks,
        cache=cache,
        positions=lengths[:, None] + torch.arange(width),
        behind=None if even else lengths,
    )
    return torch.cat([before, after], dim=1)


def token_logprobs(
    model: HookedModel, final: Float[Tensor, "n d_model"], targets: Int[Tensor, "n token"]
) -> Float[Tensor, "n token"]:
    """Log-probability of some tokens each, unembedding a few hundred vectors at a time."""
    _check_unembedding(model)
    parts = []
    with torch.no_grad():
        head = models.unembedding(model)
        for x, target in zip(torch.split(final, 256), torch.split(targets, 256), strict=True):
            logits = head(x)
            chosen = logits.gather(1, target.to(logits.device))
            parts.append((chosen - logits.logsumexp(dim=-1, keepdim=True)).cpu())
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
    fused: bool = True,
    checkpointed: bool = False,
) -> Iterator[None]:
    """Install hooks, publish the positions of this forward pass, and undo both at the end.

    Readers are installed last, so they see what the hooks have done. For ``fused`` and
    ``checkpointed`` see :func:`rolelens.forward.native.native`.
    """
    mine = list(hooks(batch.rows) if callable(hooks) else hooks)
    known = models.points(model)
    for name, _ in mine:
        if name not in known:
            raise InputError(f"the model has no hook {name!r}; it has {model.cfg.n_layers} layers.")
    columns = start + torch.arange(batch.ids.shape[1] if width is None else width)
    with (
        told(batch, columns if positions is None else positions),
        torch.no_grad(),
        models.hooked(model, [*mine, *readers]),
        native(model, fused=fused, checkpointed=checkpointed),
    ):
        yield


@contextmanager
def told(batch: Batch, positions: Int[Tensor, "*row position"]) -> Iterator[None]:
    """Publish where the tokens of a forward pass stand, for hooks that select some."""
    now = Running(positions, batch.prompt_lengths, batch.n_post, batch.source, batch.gates)
    token = running.set(now)
    try:
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


# Functions of their own, and not inside of those that use them, which run once a batch.
def keep_entry(
    entries: dict[int, Tensor],
    layer: int,
    take: Callable[[Tensor], Tensor] | None,
    last: int,
    x: Tensor,
    hook: Any,
) -> None:
    """Keep what is taken of a layer; the pass ends where as many are kept as ``last`` says."""
    entries[layer] = x if take is None else take(x)
    if len(entries) == last:
        raise Stop


def finish(final: list[Tensor], read: Int[Tensor, "row read"] | None, x: Tensor, hook: Any) -> None:
    """Keep what leaves the last block where it is read, and end the pass."""
    if read is not None:
        final.append(gather(x, read))
        raise Stop


def gather(
    x: Float[Tensor, "row position d_model"], index: Int[Tensor, "row read"] | Everywhere
) -> Float[Tensor, "row read d_model"]:
    """Read some columns of each row."""
    there = index.on(x.device) if isinstance(index, Everywhere) else index.to(x.device)
    return x[torch.arange(x.shape[0], device=x.device)[:, None], there]


def final_residual(
    model: HookedModel,
    batch: Batch,
    index: Int[Tensor, "row read"],
    hooks: Hooks,
    *,
    cache: Any = None,
    start: int = 0,
    positions: Int[Tensor, "row position"] | None = None,
    behind: Int[Tensor, " row"] | None = None,
) -> Float[Tensor, "row read d_model"]:
    """The residual stream that leaves the last block, at the columns ``index`` of the batch.

    For ``cache`` and ``behind`` see :func:`rolelens.forward.models.run`; ``positions`` are those of
    the tokens, which else follow ``start``.
    """
    for name, _ in hooks(batch.rows) if callable(hooks) else hooks:
        if behind_blocks(name):
            raise InputError(
                f"the hook {name!r} lies behind the last block, where scoring stops the model; "
                "hook a block instead."
            )
    read: list[Tensor] = []
    reader = (f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", partial(finish, read, index))
    with steered(model, batch, hooks, [reader], start=start, positions=positions), until_stop():
        models.run(model, batch.ids, cache, behind=behind)
    return read[0]


def behind_blocks(hook: str) -> bool:
    """Whether a hook lies behind the last block, where passes that read a residual stream end."""
    return hook.startswith(("ln_final", "unembed"))


_unembeds_by_hand: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def unembed(
    model: HookedModel, final: Float[Tensor, "n d_model"], vocab: list[int] | None = None
) -> Float[Tensor, "n token"]:
    """Unembed single vectors, where this gives the model's own logits."""
    _check_unembedding(model)
    with torch.no_grad():
        return models.unembed(model, final, vocab)


def _check_unembedding(model: HookedModel) -> None:
    """Refuse a model whose logits are not those of unembedding by hand."""
    probe(model)
    if not _unembeds_by_hand[model]:
        raise InputError(
            f"the unembedding of {model.cfg.model_name!r} is not a final norm, a matrix, a scale "
            "and a soft cap, so its scores cannot be computed; please report this architecture."
        )


def probe(model: HookedModel) -> None:
    """Find out, once and before anything steers it, how a model can be run and unembedded."""
    try_native(model)
    if model not in _unembeds_by_hand:
        _unembeds_by_hand[model] = _unembedding_agrees(model)
        memory.footprint(model, "forward", partial(run_one_row, model))


def one_row(model: HookedModel, width: int) -> Batch:
    """A batch of one prompt of some width, of any tokens, to try a model on."""
    length = torch.tensor([width])
    ids = torch.arange(width)[None] % model.cfg.d_vocab
    return Batch(torch.tensor([0]), ids, length, length, 0)


def run_one_row(model: HookedModel, width: int) -> None:
    """Run one row with attention step by step, which takes the most memory."""
    batch = one_row(model, width)
    kept: list[Tensor] = []
    read = torch.zeros(1, 1, dtype=torch.long)
    reader = (f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", partial(finish, kept, read))
    with steered(model, batch, (), [reader], fused=False), until_stop():
        models.run(model, batch.ids)


def _unembedding_agrees(model: HookedModel) -> bool:
    """Whether unembedding by hand gives the model's own logits, tried on four tokens."""
    batch = one_row(model, 4)
    final = final_residual(model, batch, torch.arange(4)[None], ())[0]
    with steered(model, batch, (), ()):
        own = models.run(model, batch.ids)[0]
    with torch.no_grad():
        found = models.unembed(model, final)
    tolerance = max(1e-3, 4 * torch.finfo(own.dtype).eps)
    return bool((own.float() - found).abs().max() <= tolerance * own.abs().max().clamp(min=1))
