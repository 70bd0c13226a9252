"""What a change of weights does to a block's output, and a steering written into weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from rolelens import forward
from rolelens.errors import InputError
from rolelens.hooks import Steering
from rolelens.lens import Lens


@contextmanager
def baked_in(lens: Lens, steering: Steering) -> Iterator[Lens]:
    """Write a fixed steering into the weights, for as long as the context lasts.

    Adding alpha d to what enters layer l, at every token, is the same as a bias alpha d on the down
    projection of block l - 1, where nothing follows that projection before the skip: exact in
    Llama, Qwen, Mistral, GPT-2 and Phi, refused in Gemma 2 and 3.

    Args:
        lens: the model.
        steering: additions to the residual stream at all tokens, in layer 1 or above.

    Raises:
        InputError: a steering that no bias can be, or an architecture in which a bias is no
            addition to the residual stream.
    """
    steering.check(lens.source, lens.n_layers)
    vectors: dict[int, Tensor] = {}
    for step in steering.steps:
        plain = step.kind == "add" and step.direction.site == "resid_pre" and step.tokens == "all"
        if not plain or 0 in step.layers:
            raise InputError(
                f"{str(step)!r} is no bias; additions to what enters layer 1 or above, at all "
                "tokens, can be written into weights."
            )
        for operation in step.points:
            block = operation[0] - 1
            vectors[block] = vectors.get(block, torch.zeros_like(step.vector)) + step.vector
    with forward.baked(lens.model, vectors):
        yield lens


def first_order_shift(
    h: Float[Tensor, "*row d"],
    weights: tuple[Float[Tensor, "m d"], Float[Tensor, "m d"], Float[Tensor, "d m"]],
    changes: tuple[Float[Tensor, "m d"], Float[Tensor, "m d"], Float[Tensor, "d m"]],
) -> Float[Tensor, "*row d"]:
    """What small changes of a gated MLP's weights add to its output (2603.00425).

    ΔW_d m + W_d [(σ'(a_g) ⊙ a_u) ⊙ ΔW_g h + σ(a_g) ⊙ ΔW_u h], with a_g = W_g h, a_u = W_u h,
    m = σ(a_g) ⊙ a_u and σ the SiLU.

    Args:
        h: what the MLP reads.
        weights: W_g, W_u and W_d.
        changes: of the same.
    """
    gate, up, down = weights
    d_gate, d_up, d_down = changes
    a_gate, a_up = h @ gate.T, h @ up.T
    share = torch.sigmoid(a_gate)
    activated = a_gate * share
    slope = share * (1 + a_gate * (1 - share))
    inner = slope * a_up * (h @ d_gate.T) + activated * (h @ d_up.T)
    shift: Tensor = (activated * a_up) @ d_down.T + inner @ down.T
    return shift
