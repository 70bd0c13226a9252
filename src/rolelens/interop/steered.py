"""Files for the model ``steered`` of lm-evaluation-harness.

It adds a vector to the output of a module at every token, and names modules below the base model:
``layers.3`` of a Llama is the block whose output enters layer 4.
"""

from pathlib import Path
from typing import Any

import torch

from rolelens.errors import writing
from rolelens.hooks import Steering
from rolelens.interop.additions import additions
from rolelens.interop.stock import stock_places
from rolelens.lens import Lens

LOWEST = "it adds to the output of a block, so that layer 1 is the lowest"


def write_steered(steering: Steering, path: str | Path, lens: Lens) -> Path:
    """Write a file for ``--model steered --model_args pretrained=...,steer_path=FILE``.

    Args:
        steering: additions, on every token, in layers 1 and above.
        path: the .pt file: tensors and plain values alone.
        lens: the model, whose blocks are named.

    Raises:
        InputError: the format cannot hold the steering, or it is not of this model.
    """
    steering.check(lens.source, lens.n_layers)
    vectors = additions(steering, "a file for lm-eval's steered model", lowest=1, why=LOWEST)
    original: Any = lens.model
    blocks, _ = stock_places(lens)
    blocks = blocks.removeprefix(f"{original.original_model.base_model_prefix}.")
    target = Path(path)
    content = {
        f"{blocks}.{layer - 1}": {
            "action": "add",
            "steering_vector": vector,
            "steering_coefficient": 1.0,
            "head_index": None,
            "bias": None,
        }
        for layer, vector in vectors.items()
    }
    with writing(target):
        torch.save(content, target)
    return target
