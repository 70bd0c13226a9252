"""Residual streams of prompts, in memory or in a file."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rolelens import forward
from rolelens.errors import InputError, listed, unknown
from rolelens.forward import Hooks, Tokens
from rolelens.lens import Lens


def activations(
    lens: Lens,
    prompts: Sequence[str],
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    *,
    hooks: Hooks = (),
    path: str | Path | None = None,
) -> Float[Tensor, "prompt layer position d_model"]:
    """Residual stream entering each layer (``blocks.{l}.hook_resid_pre``) of every prompt.

    Args:
        lens: the model.
        prompts: what the user says.
        layers: all of them by default.
        positions: counted from the end of the prompt; the post-instruction positions by default.
        hooks: steering on the way.
        path: keep the result in this file (memory-mapped, float32) instead of in memory.

    Raises:
        InputError: an unknown layer or position, or activations that are not finite.
    """
    layers, positions = axes(lens, layers, positions)
    tokens = lens.tokenize(prompts)
    shape = (len(prompts), len(layers), len(positions), lens.d_model)
    forward.check_positions(tokens, positions)
    if path is None:
        out = torch.empty(shape)
    elif Path(path).exists() or not Path(path).parent.is_dir():
        raise InputError(f"{path} exists already or has no folder; name a new file.")
    else:
        size = torch.Size(shape).numel()
        out = torch.from_file(str(path), shared=True, size=size).reshape(shape)
    for rows, x in streamed(lens, tokens, layers, positions, hooks):
        out[rows] = x.float().cpu()
    return out


def streamed(
    lens: Lens, tokens: Tokens, layers: Sequence[int], positions: Sequence[int], hooks: Hooks = ()
) -> Iterator[tuple[Int[Tensor, " row"], Float[Tensor, "row layer position d_model"]]]:
    """Residual streams batch by batch, with the rows they belong to.

    Raises:
        InputError: some are not finite.
    """
    stream = forward.residual_stream(lens.model, tokens, layers, positions, hooks=hooks)
    for rows, x in stream:
        if not torch.isfinite(x).all():
            bad = (~torch.isfinite(x)).any(dim=3).any(dim=2).any(dim=0).nonzero()[0]
            raise InputError(
                f"the residual stream entering layer {layers[int(bad)]} is NaN or infinite; load "
                "the model with dtype=torch.float32."
            )
        yield rows, x


def axes(
    lens: Lens, layers: Sequence[int] | None, positions: Sequence[int] | None
) -> tuple[list[int], list[int]]:
    """The layers and positions that are meant; all of them by default."""
    layers = known_layers(lens, layers)
    positions = listed("positions", lens.positions if positions is None else positions)
    return layers, positions


def known_layers(lens: Lens, layers: Sequence[int] | None) -> list[int]:
    """The layers that are meant; all of them by default."""
    chosen = listed("layers", range(lens.n_layers) if layers is None else layers)
    for layer in chosen:
        if layer not in range(lens.n_layers):
            raise unknown("layer", layer, range(lens.n_layers))
    return chosen
