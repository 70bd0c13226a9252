"""Vectors on Neuronpedia, which names points as TransformerLens does: ``hook_resid_pre``.

Nothing is sent but by :func:`upload_to_neuronpedia`.
"""

import os
from typing import Any

from rolelens.errors import InputError
from rolelens.vectors import Direction
from rolelens.vectors.direction import RESID_PRE

KEY = "NEURONPEDIA_API_KEY"


def neuronpedia_upload(
    direction: Direction, model_id: str, *, label: str | None = None, strength: float = 1.0
) -> dict[str, Any]:
    """What is sent to make a vector on Neuronpedia of a direction, raw.

    Args:
        direction: of the residual stream.
        model_id: the model, as Neuronpedia calls it, such as ``"gemma-2-2b-it"``.
        label: what it is called there; its name by default.
        strength: alpha of its steering by default.

    Raises:
        InputError: a zero direction, or one of another site.
    """
    if direction.site != RESID_PRE or direction.norm == 0:
        raise InputError(
            f"Neuronpedia takes directions of the residual stream that are not zero, and "
            f"{direction.name!r} lives at {direction.site!r} with norm {direction.norm:g}; take "
            "another."
        )
    return {
        "modelId": model_id,
        "layerNumber": direction.layer,
        "hookType": "hook_resid_pre",
        "vector": direction.vector.detach().cpu().float().tolist(),
        "vectorDefaultSteerStrength": strength,
        "vectorLabel": label or direction.name,
    }


def neuronpedia_steering(
    vector: Any, prompt: str, *, n_tokens: int = 32, seed: int = 0
) -> dict[str, Any]:
    """What is sent to have Neuronpedia continue a text under a vector, greedily.

    Args:
        vector: a ``neuronpedia.NPVector``, as :func:`upload_to_neuronpedia` returns it; its
            strength is its own, without a further factor.
        prompt: the text.
        n_tokens: length of what is written, in tokens.
        seed: of the sampling.
    """
    feature = {
        "modelId": vector.model_id,
        "layer": vector.source,
        "index": vector.index,
        "strength": vector.default_steer_strength,
    }
    return {
        "modelId": vector.model_id,
        "features": [feature],
        "prompt": prompt,
        "temperature": 0.0,
        "n_tokens": n_tokens,
        "freq_penalty": 0.0,
        "seed": seed,
        "strength_multiplier": 1.0,
    }


def upload_to_neuronpedia(
    direction: Direction, model_id: str, *, label: str | None = None, strength: float = 1.0
) -> Any:
    """Make a vector on Neuronpedia; returns its ``NPVector``, which has a ``url``.

    Args: as for :func:`neuronpedia_upload`. The key is read from ``NEURONPEDIA_API_KEY``.

    Raises:
        InputError: as for :func:`neuronpedia_upload`; there is no key, the client is not installed,
            or Neuronpedia refuses.
    """
    told = neuronpedia_upload(direction, model_id, label=label, strength=strength)
    if not os.environ.get(KEY):
        raise InputError(f"there is no key for Neuronpedia; set {KEY}.")
    try:
        from neuronpedia.np_vector import NPVector
    except ImportError as error:
        raise InputError(
            f"Neuronpedia's client cannot be imported ({error}); run 'pip install neuronpedia'."
        ) from error
    try:
        return NPVector.new(
            label=told["vectorLabel"],
            model_id=told["modelId"],
            layer_num=told["layerNumber"],
            hook_type=told["hookType"],
            vector=told["vector"],
            default_steer_strength=told["vectorDefaultSteerStrength"],
        )
    except Exception as error:  # the client raises many classes
        raise InputError(
            f"Neuronpedia took no vector of {direction.name!r} ({error}); check the key, and "
            f"whether it knows the model {model_id!r}."
        ) from error
