"""Vectors that are added to what enters each layer, which is all that most formats hold."""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from rolelens.errors import InputError
from rolelens.hooks import Steering, Step
from rolelens.vectors import Direction, Directions
from rolelens.vectors.direction import RESID_PRE


def additions(
    steering: Steering, what: str, *, lowest: int = 0, why: str = ""
) -> dict[int, Float[Tensor, " d_model"]]:
    """What a steering adds to the residual stream that enters each layer, at every token.

    Args:
        steering: what is done.
        what: the format that is to hold it, for errors.
        lowest: the lowest layer that the format can hold.
        why: why it holds none below.

    Returns:
        A vector a layer, alpha times d, in float32.

    Raises:
        InputError: the steering does nothing, or something that the format cannot hold: anything
            but additions, some of the tokens, another site, several directions in one layer, or a
            layer that is too low.
    """
    found: dict[int, Tensor] = {}
    if steering.is_zero:
        raise InputError(f"the steering does nothing ({steering}), so there is nothing to export.")
    for step in steering.steps:
        if step.is_zero:
            continue
        if step.kind != "add":
            raise InputError(
                f"{what} can only add a direction, and this steering has {step}; export it as a "
                "checkpoint (--to hf), or make it of rl.add."
            )
        check_whole(step, what)
        for layer in step.layers:
            if layer < lowest:
                raise InputError(f"{what} cannot add a direction in layer {layer}: {why}.")
            if layer in found:
                raise InputError(
                    f"{what} holds one direction a layer, and this steering adds several in layer "
                    f"{layer}; add their sum, as in rl.add(3.0 * d + e)."
                )
            found[layer] = step.vector.detach().cpu().float()
    return dict(sorted(found.items()))


def check_whole(step: Step, what: str) -> None:
    """Refuse a step that does not act on every token of the residual stream.

    Raises:
        InputError: it does not.
    """
    if step.tokens != "all":
        tokens = step.tokens if isinstance(step.tokens, str) else list(step.tokens)
        raise InputError(
            f"{what} acts on every token, and this steering on tokens {tokens!r}; make it with "
            "tokens='all', or run it in rolelens."
        )
    if step.direction.site != RESID_PRE:
        raise InputError(
            f"{what} acts on the residual stream, and the direction of {step.direction.name!r} "
            f"lives at {step.direction.site!r}; take one of the residual stream."
        )


def gathered(
    vectors: Mapping[int, Float[Tensor, " d_model"]], name: str, contrast: str
) -> Directions:
    """Directions of one name, one a layer, of vectors that come from elsewhere.

    Their source is not known, so that nothing can check that a model is the right one but the
    width; the norm of the residual stream is not known either, and is put as 0.

    Args:
        vectors: by layer, as what enters that layer.
        name: what they stand for.
        contrast: where they come from.

    Raises:
        InputError: there are none, or they are not vectors of equal width.
    """
    shapes = {tuple(vector.shape) for vector in vectors.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        told = ", ".join(map(str, sorted(shapes))) or "nothing"
        raise InputError(
            f"{contrast} holds {told}, and it has to be one vector a layer, all of one width."
        )
    layers = tuple(sorted(vectors))
    stacked = torch.stack([vectors[layer].detach().cpu().float() for layer in layers])
    return Directions(
        directions=stacked[None, :, None],
        names=(name,),
        layers=layers,
        positions=(None,),
        resid_norm=torch.zeros(len(layers), 1),
        contrast=contrast,
        kind="name",
    )


def check_fits(vectors: Directions | Direction, d_model: int, n_layers: int, model: str) -> None:
    """Refuse vectors of another width than a model's, or of layers that it has not.

    Raises:
        InputError: they are.
    """
    layers = vectors.layers if isinstance(vectors, Directions) else (vectors.layer,)
    if vectors.d_model != d_model or max(layers) >= n_layers:
        raise InputError(
            f"the vectors are {vectors.d_model} wide and reach layer {max(layers)}, and {model} is "
            f"{d_model} wide with layers 0 to {n_layers - 1}; take the model that they were "
            "measured on."
        )


def load_pickled(path: Path, what: str) -> object:
    """What a file of ``torch.save`` holds, if it is tensors and plain values; no code ever runs.

    Raises:
        InputError: there is no such file, or it holds anything else.
    """
    if not path.is_file():
        raise InputError(f"no file {str(path)!r} with {what}; check the path.")
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch raise many classes
        raise InputError(
            f"{str(path)!r} is not read: it is no file of tensors alone, and loading anything else "
            "would run what it says; save tensors with torch.save, or a safetensors file."
        ) from error
    return content
