"""Steering for vLLM: edits of TransformerLens' ``boot_vllm``, and of the plugin vllm-lens.

Both add a vector to the output of block k, counted from 0, at every token, which enters layer
k + 1. TransformerLens names the point ``blocks.{k}.hook_out``, and has no hook in vLLM at what
enters a block. Neither ablates: bake the checkpoint instead (:func:`rolelens.interop.bake`).
"""

import base64
from typing import Any

import torch

from rolelens.hooks import Steering
from rolelens.interop.additions import additions

LOWEST = "vLLM adds to the output of a block, so that layer 1 is the lowest"


def to_boot_vllm(steering: Steering) -> dict[str, dict[str, Any]]:
    """Edits by hook name, as ``RemoteBridge.boot_vllm(...)(tokens, intervene=edits)`` takes them.

    Args:
        steering: additions, on every token, in layers 1 and above.

    Raises:
        InputError: the format cannot hold the steering.
    """
    vectors = additions(steering, "an edit of boot_vllm", lowest=1, why=LOWEST)
    return {
        f"blocks.{layer - 1}.hook_out": {"op": "add", "value": vector.tolist()}
        for layer, vector in vectors.items()
    }


def to_vllm_lens(steering: Steering) -> list[dict[str, Any]]:
    """Steering vectors of vllm-lens, for ``extra_args={"apply_steering_vectors": ...}``.

    Plain values in the form that goes over HTTP: tensors as base64 of their bytes.
    ``vllm_lens.SteeringVector.model_validate`` makes the object of each.

    Args:
        steering: additions, on every token, in layers 1 and above.

    Raises:
        InputError: the format cannot hold the steering.
    """
    vectors = additions(steering, "a steering vector of vllm-lens", lowest=1, why=LOWEST)
    stacked = torch.stack(list(vectors.values()))
    return [
        {
            "activations": {
                "data": base64.b64encode(stacked.numpy().tobytes()).decode("ascii"),
                "dtype": "float32",
                "shape": list(stacked.shape),
            },
            "layer_indices": [layer - 1 for layer in vectors],
            "scale": 1.0,
            "norm_match": False,
            "position_indices": None,
        }
    ]
