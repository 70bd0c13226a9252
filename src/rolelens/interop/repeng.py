"""Control vectors of repeng, in memory; its files are those of :mod:`control_vectors`.

``directions[k]`` is added to the output of block k, counted from 0, which enters layer k + 1.
"""

from typing import Any

import torch

from rolelens.hooks import Steering
from rolelens.interop.additions import additions, gathered
from rolelens.vectors import Directions

LOWEST = "repeng adds to the output of a block, so that layer 1 is the lowest"


def to_repeng(steering: Steering, model_type: str) -> Any:
    """A ``repeng.ControlVector``, to be set with ``coeff=1.0``.

    ``ControlModel.set_control`` needs a vector for every layer that the ControlModel controls: make
    that with ``layer_ids=list(vector.directions)``.

    Args:
        steering: additions, on every token, in layers 1 and above.
        model_type: of the model, as in ``model.config.model_type``.

    Raises:
        InputError: the format cannot hold the steering.
    """
    vectors = additions(steering, "a repeng control vector", lowest=1, why=LOWEST)
    from repeng import ControlVector

    blocks = {layer - 1: vector.numpy() for layer, vector in vectors.items()}
    return ControlVector(model_type=model_type, directions=blocks)


def from_repeng(vector: Any, name: str = "control vector") -> Directions:
    """Directions of a ``repeng.ControlVector``, which are of norm 1 where repeng trained them.

    Raises:
        InputError: they are not vectors of one width.
    """
    found = {k + 1: torch.tensor(one).float() for k, one in vector.directions.items()}
    return gathered(found, name, f"repeng, a {vector.model_type} model")
