"""Steering vectors of the library steering-vectors, in memory and as files of tensors.

``layer_activations[k]`` of layer type ``decoder_block`` is added to the output of block k, counted
from 0, which enters layer k + 1.
"""

from pathlib import Path
from typing import Any

import torch

from rolelens.errors import InputError, writing
from rolelens.hooks import Steering
from rolelens.interop.additions import additions, gathered, load_pickled
from rolelens.vectors import Directions

LOWEST = "steering-vectors adds to the output of a block, so that layer 1 is the lowest"


def to_steering_vector(steering: Steering) -> Any:
    """A ``steering_vectors.SteeringVector``, to be applied with ``multiplier=1.0``.

    Args:
        steering: additions, on every token, in layers 1 and above.

    Raises:
        InputError: the format cannot hold the steering.
    """
    vectors = additions(steering, "a SteeringVector", lowest=1, why=LOWEST)
    from steering_vectors import SteeringVector

    return SteeringVector({layer - 1: vector for layer, vector in vectors.items()}, "decoder_block")


def from_steering_vector(vector: Any, name: str = "steering vector") -> Directions:
    """Directions of a ``steering_vectors.SteeringVector``.

    Raises:
        InputError: it acts elsewhere than on the residual stream that leaves a block.
    """
    if vector.layer_type != "decoder_block":
        raise InputError(
            f"the steering vector is of layer type {vector.layer_type!r}, and what is read here is "
            "of 'decoder_block'; train it on the residual stream."
        )
    return _of(vector.layer_activations, name, "steering-vectors")


def write_layer_activations(steering: Steering, path: str | Path) -> Path:
    """Write ``layer_activations`` as a file of tensors alone, with ``torch.save``.

    ``SteeringVector(torch.load(path, weights_only=True))`` makes the object of it.

    Raises:
        InputError: the format cannot hold the steering, or the file cannot be written.
    """
    vectors = additions(steering, "a SteeringVector", lowest=1, why=LOWEST)
    target = Path(path)
    with writing(target):
        torch.save({layer - 1: vector for layer, vector in vectors.items()}, target)
    return target


def read_layer_activations(path: str | Path, name: str = "steering vector") -> Directions:
    """Directions of a file that holds the ``layer_activations`` of a steering vector.

    A pickled ``SteeringVector`` is refused, as loading it would run code: save its
    ``layer_activations``.

    Raises:
        InputError: there is no such file, or it holds anything but vectors by block.
    """
    content = load_pickled(Path(path), "layer_activations")
    return _of(content, name, f"steering-vectors file {Path(path).name}")


def _of(activations: Any, name: str, origin: str) -> Directions:
    blocks = isinstance(activations, dict) and all(
        isinstance(k, int) and k >= 0 and isinstance(one, torch.Tensor)
        for k, one in activations.items()
    )
    if not blocks:
        raise InputError(
            f"{origin} holds a {type(activations).__name__}, and it has to be a dict of one vector "
            "for each block, by its number."
        )
    return gathered({k + 1: one for k, one in activations.items()}, name, origin)
