"""Vectors and steerings to and from other formats, one file a format.

A :class:`~rolelens.Steering` says what is done; each format says what of it it can hold, and
refuses the rest with the reason. Libraries are imported where they are used, and none of them is
required. :mod:`rolelens.interop.lm_eval` and :mod:`rolelens.interop.inspect_ai` are read by the
programs of those names.
"""

from rolelens.interop.baking import bake
from rolelens.interop.caa import read_caa, write_caa
from rolelens.interop.control_vectors import read_control_vector, write_control_vector
from rolelens.interop.hub import from_pretrained, push_to_hub, save_pretrained
from rolelens.interop.neuronpedia import (
    neuronpedia_steering,
    neuronpedia_upload,
    upload_to_neuronpedia,
)
from rolelens.interop.persona_vectors import (
    read_persona_folder,
    read_persona_vectors,
    write_persona_folder,
    write_persona_vectors,
)
from rolelens.interop.repeng import from_repeng, to_repeng
from rolelens.interop.steered import write_steered
from rolelens.interop.steering_vectors import (
    from_steering_vector,
    read_layer_activations,
    to_steering_vector,
    write_layer_activations,
)
from rolelens.interop.vllm import to_boot_vllm, to_vllm_lens

__all__ = [
    "bake",
    "from_pretrained",
    "from_repeng",
    "from_steering_vector",
    "neuronpedia_steering",
    "neuronpedia_upload",
    "push_to_hub",
    "read_caa",
    "read_control_vector",
    "read_layer_activations",
    "read_persona_folder",
    "read_persona_vectors",
    "save_pretrained",
    "to_boot_vllm",
    "to_repeng",
    "to_steering_vector",
    "to_vllm_lens",
    "upload_to_neuronpedia",
    "write_caa",
    "write_control_vector",
    "write_layer_activations",
    "write_persona_folder",
    "write_persona_vectors",
    "write_steered",
]
