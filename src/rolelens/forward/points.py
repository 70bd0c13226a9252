"""Any hook points of a model: what passes them, and how a score depends on it."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rolelens.forward import memory, models
from rolelens.forward.backward import frozen, leave, weighted_score
from rolelens.forward.models import Hook, HookedModel
from rolelens.forward.passes import Hooks, check_effect, probe, steered, until_stop
from rolelens.forward.tokens import Batch, Tokens


def point_states(
    model: HookedModel, batch: Batch, names: Sequence[str], hooks: Hooks = ()
) -> dict[str, Float[Tensor, "row position ..."]]:
    """What passes some hook points, at all tokens of a batch.

    Args:
        model: the model.
        batch: the tokens; whatever stands in the padding on the right means nothing.
        names: full names of the hooks, such as ``blocks.3.attn.hook_z``.
        hooks: what is done on the way; where it acts at one of the points, the result is read.
    """
    seen: dict[str, Tensor] = {}
    final: list[Tensor] = []
    readers: list[Hook] = [(name, partial(_keep, seen, name)) for name in names]
    with steered(model, batch, hooks, [*readers, _end(model, final)], fused=False), until_stop():
        models.run(model, batch.ids)
    return seen


def point_gradients(
    model: HookedModel,
    tokens: Tokens,
    names: Sequence[str],
    *,
    vocab: Sequence[int] | None = None,
    weights: Float[Tensor, "row read"],
    hooks: Hooks = (),
    lowest: int = 0,
    budget: int | None = None,
) -> Iterator[tuple[Batch, dict[str, Tensor], dict[str, Tensor]]]:
    """What passes some hook points, and the gradient of a score with respect to it.

    Args:
        model: the model.
        tokens: the prompts, each with its answer where answers are scored.
        names: full names of the hooks.
        vocab: the score, as for :func:`rolelens.forward.gradients`.
        weights: likewise.
        hooks: what is done on the way.
        lowest: the block whose input the graph begins at: none of the points lies before it.
        budget: tokens of one batch; as many as fit by default.

    Yields:
        A batch, what passes each point, and the gradients, ``[row, position, ...]``.
    """
    run = partial(_differentiated, model, names, vocab, weights, hooks, lowest)
    for batch, (seen, grads) in memory.batched(model, tokens, run, budget=budget):
        yield batch, seen, grads


def _differentiated(
    model: HookedModel,
    names: Sequence[str],
    vocab: Sequence[int] | None,
    weights: Float[Tensor, "prompt read"],
    hooks: Hooks,
    lowest: int,
    batch: Batch,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What passes some points of a batch, and the gradients there."""
    seen, score = graph(model, batch, names, vocab, weights[batch.rows], hooks, lowest)
    with torch.enable_grad():
        grads = torch.autograd.grad(score, list(seen.values()))
    return {k: x.detach() for k, x in seen.items()}, dict(zip(seen, grads, strict=True))


def graph(
    model: HookedModel,
    batch: Batch,
    names: Sequence[str],
    vocab: Sequence[int] | None,
    weights: Float[Tensor, "row read"],
    hooks: Hooks = (),
    lowest: int = 0,
) -> tuple[dict[str, Tensor], Float[Tensor, ""]]:
    """The weighted score of a batch as something to be differentiated, and what passes points.

    No weight of the model is kept for a gradient; those that hooks bring along are.
    """
    probe(model)
    check_effect(
        model, hooks, Tokens(_rows(batch), tuple(batch.prompt_lengths.tolist()), batch.n_post)
    )
    seen: dict[str, Tensor] = {}
    final: list[Tensor] = []
    readers: list[Hook] = [(name, partial(_keep, seen, name)) for name in names]
    begin = (f"blocks.{lowest}.hook_resid_pre", _begin)
    # Readers come last, so that those of what enters the lowest block see where the graph begins.
    with (
        frozen(model),
        steered(model, batch, hooks, [begin, *readers, _end(model, final)], fused=False),
        torch.enable_grad(),
    ):
        with until_stop():
            models.run(model, batch.ids)
        return seen, weighted_score(model, batch, final[0], vocab, weights)


def _rows(batch: Batch) -> tuple[tuple[int, ...], ...]:
    pairs = zip(batch.ids.tolist(), batch.lengths.tolist(), strict=True)
    return tuple(tuple(ids[:length]) for ids, length in pairs)


def _keep(seen: dict[str, Tensor], name: str, x: Tensor, hook: Any = None) -> Tensor:
    seen[name] = x
    return x  # else the model may go on with another tensor than the one that is kept


def _begin(x: Tensor, hook: Any = None) -> Tensor:
    return x if x.requires_grad else x.detach().requires_grad_()


def _end(model: HookedModel, final: list[Tensor]) -> Hook:
    return f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", partial(leave, final)
