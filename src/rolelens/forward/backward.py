"""How a score would change, to first order, if the residual stream were changed anywhere."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from rolelens.forward import memory, models
from rolelens.forward.gates import decided
from rolelens.forward.models import Everywhere, Hook, HookedModel
from rolelens.forward.passes import Stop, one_row, probe, steered, until_stop
from rolelens.forward.selection import Running, Selection, selected
from rolelens.forward.streams import stacked
from rolelens.forward.tokens import Batch, Tokens


def gradients(
    model: HookedModel,
    tokens: Tokens,
    layers: Sequence[int],
    selections: Sequence[Selection] = ("all",),
    *,
    vocab: Sequence[int] | None = None,
    weights: Float[Tensor, "row read"],
    budget: int | None = None,
) -> Iterator[tuple[Int[Tensor, " row"], Float[Tensor, "row selection layer d_model"]]]:
    """Gradient of a score with respect to the residual stream entering each layer.

    One forward and one backward pass give it for all layers. Its product with a direction, times
    alpha, is to first order what adding alpha d to the selected tokens does to the score.

    Args:
        model: the model.
        tokens: the prompts, each with its answer where answers are scored.
        layers: the layers.
        selections: tokens; the gradient is summed over those of each.
        vocab: the score weighs the logits of these tokens at the end of each prompt; None: it
            weighs the summed log-probability of each answer.
        weights: weight of every token of ``vocab``, or one weight a row.
        budget: tokens of one batch; as many as fit by default.

    Yields:
        The rows (indices into ``tokens``), and the gradient summed over the tokens of each
        selection.
    """
    probe(model)
    tokens = decided(model, tokens, selections)
    chosen = sorted(set(layers))
    kind = f"backward over {len(chosen)} layers"
    memory.footprint(model, kind, partial(_run_one_row, model, chosen))
    run = partial(_differentiated, model, chosen, selections, vocab, weights)
    for batch, summed in memory.batched(model, tokens, run, budget=budget, kind=kind):
        yield batch.rows, summed[:, :, [chosen.index(layer) for layer in layers]]


def _differentiated(
    model: HookedModel,
    layers: Sequence[int],
    selections: Sequence[Selection],
    vocab: Sequence[int] | None,
    weights: Float[Tensor, "prompt read"],
    batch: Batch,
) -> Float[Tensor, "row selection layer d_model"]:
    """Gradients of a batch, summed over the tokens of each selection."""
    entries: dict[int, Tensor] = {}
    final: list[Tensor] = []
    with (
        frozen(model),
        steered(model, batch, (), _readers(model, layers, entries, final), checkpointed=True),
        torch.enable_grad(),
    ):
        with until_stop():
            models.run(model, batch.ids)
        score = weighted_score(model, batch, final[0], vocab, weights[batch.rows])
        grads = torch.autograd.grad(score, [entries[layer] for layer in layers])
    columns = torch.arange(batch.ids.shape[1])
    now = Running(columns, batch.prompt_lengths, batch.n_post, gates=batch.gates)
    inside = now.positions < batch.lengths[:, None]
    masks = Everywhere(torch.stack([selected(now, chosen) & inside for chosen in selections]))
    summed = {
        layer: einsum(
            grad.float(),
            masks.on(grad.device).float(),
            "row t d, selection row t -> row selection d",
        )
        for layer, grad in zip(layers, grads, strict=True)
    }
    return stacked(summed, layers).transpose(1, 2).cpu()


def _run_one_row(model: HookedModel, layers: Sequence[int], width: int) -> None:
    """Differentiate one row of some width."""
    _differentiated(model, layers, ("all",), [0], torch.ones(1, 1), one_row(model, width))


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """Let nothing be kept for gradients of weights, which nobody asks for."""
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in learning:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in learning:
            weight.requires_grad_(True)


def _readers(
    model: HookedModel, layers: Sequence[int], entries: dict[int, Tensor], final: list[Tensor]
) -> list[Hook]:
    """Hooks that keep what enters some layers and leaves the last, ready to be differentiated."""
    readers: list[Hook] = [
        (f"blocks.{layer}.hook_resid_pre", partial(_entered, entries, layer, layers[0]))
        for layer in layers
    ]
    end = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    return [*readers, (end, partial(leave, final))]


def _entered(entries: dict[int, Tensor], layer: int, lowest: int, x: Tensor, hook: Any) -> Tensor:
    """What enters a layer; the graph begins at the lowest."""
    entries[layer] = x.detach().requires_grad_() if layer == lowest else x
    return entries[layer]


def leave(final: list[Tensor], x: Tensor, hook: Any) -> None:
    """Keep what leaves the last block, and end the pass."""
    final.append(x)
    raise Stop


def weighted_score(
    model: HookedModel,
    batch: Batch,
    final: Float[Tensor, "row position d_model"],
    vocab: Sequence[int] | None,
    weights: Float[Tensor, "row read"],
) -> Float[Tensor, ""]:
    """The score of a batch: logits or log-probabilities of answers, weighted and summed."""
    rows = torch.arange(len(batch.rows))
    if vocab is not None:
        logits = models.unembed(model, final[rows, batch.prompt_lengths - 1], list(vocab))
        return (logits * weights.to(logits)).sum()
    at = torch.arange(batch.ids.shape[1] - 1)
    ends = batch.lengths[:, None] - 1
    answers = (at >= batch.prompt_lengths[:, None] - 1) & (at < ends)
    logits = models.unembed(model, final[:, :-1][answers])
    targets = batch.ids[:, 1:][answers][:, None].to(logits.device)
    logprobs = logits.log_softmax(dim=-1).gather(1, targets)[:, 0]
    each = weights.expand(-1, len(at))[answers]
    return (logprobs * each.to(logprobs)).sum()
