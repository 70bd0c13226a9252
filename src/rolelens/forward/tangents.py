"""What a small change of the residual stream becomes at the last block, to first order."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd import forward_ad

from rolelens.errors import InputError
from rolelens.forward import memory, models
from rolelens.forward.models import HookedModel
from rolelens.forward.passes import Stop, probe, steered, until_stop
from rolelens.forward.tokens import Batch, Tokens


def transported(
    model: HookedModel,
    tokens: Tokens,
    directions: Float[Tensor, "direction d_model"],
    layers: Sequence[int],
    *,
    skip: int,
    budget: int | None = None,
) -> Float[Tensor, "direction d_model"]:
    """Directions through the mean Jacobian from the input of a block to the output of the last.

    J d, where J is the mean over prompts and over source tokens t of the sum over target tokens
    t' >= t of the Jacobian of the last block's output at t' by the stream at t. One pass in
    forward mode gives J d for a direction and batch; J itself is never built.

    Args:
        model: the model.
        tokens: the prompts that the mean is over.
        directions: directions of the residual stream.
        layers: the block that each of them enters.
        skip: leading tokens of each prompt that are neither sources nor targets; the last token of
            a prompt is none, either.
        budget: tokens of one batch; as many as fit by default.

    Raises:
        InputError: a prompt has no token left, or an operation of the model has no forward-mode
            derivative.
    """
    shortest = min(map(len, tokens.ids))
    if shortest < skip + 2:
        raise InputError(
            f"a prompt has {shortest} tokens, of which the first {skip} and the last are left out; "
            "pass longer prompts, or skip fewer tokens."
        )
    probe(model)
    run = partial(_pushed, model, directions, layers, skip)
    total = torch.zeros(directions.shape, dtype=torch.float64)
    for _, summed in memory.batched(model, tokens, run, budget=budget, kind="tangents"):
        total += summed
    return (total / len(tokens)).float()


def _pushed(
    model: HookedModel,
    directions: Float[Tensor, "direction d_model"],
    layers: Sequence[int],
    skip: int,
    batch: Batch,
) -> Float[Tensor, "direction d_model"]:
    """The sum over the prompts of a batch, each a mean over its source tokens."""
    at = torch.arange(batch.ids.shape[1])
    inside = (at >= skip) & (at < batch.lengths[:, None] - 1)
    weights = inside.double() / inside.sum(dim=1, keepdim=True)
    rows = []
    for d, layer in zip(directions, layers, strict=True):
        tangent = _tangent(model, batch, d, layer, inside)
        rows.append(einsum(tangent.double().cpu(), weights, "row t d, row t -> d"))
    return torch.stack(rows)


def _tangent(
    model: HookedModel, batch: Batch, d: Tensor, layer: int, inside: Bool[Tensor, "row token"]
) -> Float[Tensor, "row token d_model"]:
    """The derivative of what leaves the last block, where a multiple of d is added at some tokens.

    Causal attention makes the sum over targets of later tokens alone.
    """
    found: list[Tensor] = []

    def enter(x: Tensor, hook: Any) -> Tensor:
        change = inside[..., None].to(x.device, x.dtype) * d.to(x.device, x.dtype)
        dual: Tensor = forward_ad.make_dual(x, change)  # type: ignore[no-untyped-call]
        return dual

    def leave(x: Tensor, hook: Any) -> None:
        tangent = forward_ad.unpack_dual(x).tangent  # type: ignore[no-untyped-call]
        found.append(torch.zeros_like(x) if tangent is None else tangent)
        raise Stop

    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    readers = [(f"blocks.{layer}.hook_resid_pre", enter), (last, leave)]
    try:
        with (
            forward_ad.dual_level(),
            steered(model, batch, (), readers, fused=False),
            until_stop(),
        ):
            models.run(model, batch.ids)
    except NotImplementedError as error:
        raise InputError(
            f"{model.cfg.model_name} cannot be differentiated forwards ({error}); fit a lens with "
            "transformer_lens.tools.analysis.JacobianLens and pass that."
        ) from error
    return found[0]
