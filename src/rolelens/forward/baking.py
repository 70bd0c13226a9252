"""A vector that is added after a block, written into that block's weights instead."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rolelens.errors import InputError
from rolelens.forward.models import HookedModel, is_bridge
from rolelens.forward.passes import foreign_hooks, installed, one_row
from rolelens.forward.points import point_states

OUT = ("out", "dense_out")
"""What TransformerLens calls the last matrix of an MLP, also of one beside experts."""


@contextmanager
def baked(model: HookedModel, vectors: Mapping[int, Float[Tensor, " d_model"]]) -> Iterator[None]:
    """Add vectors to the biases of blocks' down projections; the weights are put back at the end.

    Args:
        model: the model.
        vectors: what is added, by block.

    Raises:
        InputError: hooks are installed, the architecture has no such matrix, or something follows
            it before the skip, such as a norm, so that a bias would not be that vector.
    """
    if installed(model) or foreign_hooks(model, ()):
        raise InputError("the model has hooks; remove them before weights are changed.")
    with ExitStack() as stack:
        for block, vector in vectors.items():
            before = _left(model, block)
            stack.enter_context(_biased(model, block, vector))
            moved = _left(model, block) - before
            if not torch.allclose(moved, vector.to(moved).expand_as(moved), rtol=1e-2,
                                  atol=1e-3 * float(vector.abs().max())):  # fmt: skip
                raise InputError(
                    f"what the down projection of block {block} of {model.cfg.model_name!r} gives "
                    "is changed before it reaches the residual stream (by a norm, as in Gemma 2 and"
                    " 3), so that no bias is the same as this steering."
                )
        yield


def _left(model: HookedModel, block: int) -> Tensor:
    """What leaves a block on a few tokens."""
    name = f"blocks.{block}.hook_resid_post"
    return point_states(model, one_row(model, 4), [name])[name][0].float()


@contextmanager
def _biased(model: HookedModel, block: int, vector: Tensor) -> Iterator[None]:
    owner, name = _down(model, block)
    old = getattr(owner, name)
    weight = next(owner.parameters())
    new = vector.to(weight) if old is None else old.detach() + vector.to(old)
    setattr(owner, name, nn.Parameter(new, requires_grad=False))
    try:
        yield
    finally:
        setattr(owner, name, old)


def _down(model: HookedModel, block: int) -> tuple[Any, str]:
    """The module that has the bias, and what the bias is called."""
    whole: Any = model
    if not is_bridge(model):
        return whole.blocks[block].mlp, "b_out"
    # A bridge holds its parts under two names, TransformerLens' and the checkpoint's.
    for name, module in whole.blocks[block].mlp.named_modules(remove_duplicate=False):
        original = getattr(module, "original_component", None)
        if name.rpartition(".")[2] in OUT and hasattr(original, "bias"):
            return original, "bias"
    raise InputError(
        f"{model.cfg.model_name!r} has no down projection in block {block} that could carry a bias "
        "(as where experts keep theirs in one tensor); steer it with hooks."
    )
