"""Control vectors of llama.cpp: GGUF files with a vector a block.

``direction.k`` is added to the output of block k, counted from 0, with k >= 1 (llama.cpp,
``llama_adapter_cvec``), at every token. What leaves block k enters layer k + 1.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rolelens.errors import InputError, writing
from rolelens.hooks import Steering
from rolelens.interop.additions import additions, check_fits, gathered
from rolelens.lens import Lens
from rolelens.vectors import Directions, Source, check_sources

ARCHITECTURE = "controlvector"
LOWEST = "llama.cpp adds to the output of block k with k >= 1, so that layer 2 is the lowest"


def write_control_vector(steering: Steering, path: str | Path, model_type: str = "llama") -> Path:
    """Write a control vector for ``llama-cli --control-vector FILE``; returns the path.

    Strengths are in the vectors, so that its scale is 1.

    Args:
        steering: additions, on every token, in layers 2 and above.
        path: the .gguf file.
        model_type: of the model, as transformers calls it; a hint to the reader.

    Raises:
        InputError: the format cannot hold the steering, or the file cannot be written.
    """
    import gguf

    target = Path(path)
    vectors = additions(steering, "a GGUF control vector", lowest=2, why=LOWEST)
    source = next((step.direction.source for step in steering.steps), None)
    measured_on = dataclasses.asdict(source) if source else None
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    with writing(target):
        writer = gguf.GGUFWriter(str(partial), ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", model_type)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(vectors))
        writer.add_string("rolelens.name", steering.name)
        writer.add_string("rolelens.kind", "add")
        writer.add_array("rolelens.hooks", [f"blocks.{layer}.hook_resid_pre" for layer in vectors])
        writer.add_array("rolelens.layers", list(vectors))
        writer.add_string("rolelens.steering", json.dumps(steering.to_dict()))
        writer.add_string("rolelens.source", json.dumps(measured_on))
        for layer, vector in vectors.items():
            writer.add_tensor(f"direction.{layer - 1}", vector.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        partial.replace(target)
    return target


def read_control_vector(path: str | Path, lens: Lens | None = None) -> Directions:
    """Directions of a control vector, of llama.cpp's own tools, of repeng or of rolelens.

    Args:
        path: the .gguf file.
        lens: the model that it is for; its width, layers and, where the file names them, weights
            are compared.

    Returns:
        One direction a layer, strengths included: ``rl.add(vectors.at(layer), 1.0)`` for each does
        what the file does.

    Raises:
        InputError: there is no such file, it is no control vector, or it is another model's.
    """
    import gguf

    source_path = Path(path)
    if not source_path.is_file():
        raise InputError(f"no file {str(source_path)!r} with a control vector; check the path.")
    try:
        reader = gguf.GGUFReader(source_path)
        fields: dict[str, Any] = {key: one.contents() for key, one in reader.fields.items()}
        tensors = {one.name: torch.from_numpy(np.array(one.data)) for one in reader.tensors}
    except Exception as error:  # numpy and gguf raise many classes on what is no GGUF file
        raise InputError(
            f"{str(source_path)!r} is no GGUF file that can be read ({error}); name a control "
            "vector."
        ) from error
    if fields.get("general.architecture") != ARCHITECTURE:
        raise InputError(
            f"{str(source_path)!r} is a GGUF file of {fields.get('general.architecture')!r} and "
            f"not of {ARCHITECTURE!r}; name a control vector."
        )
    found = {}
    for name, tensor in tensors.items():
        k = name.removeprefix("direction.")
        if not k.isdigit():
            raise InputError(
                f"{str(source_path)!r} holds {name!r}, and a control vector has 'direction.k' with "
                "the number k of a block; name another file."
            )
        found[int(k) + 1] = tensor.float()
    vectors = gathered(
        found, str(fields.get("rolelens.name", source_path.stem)), f"GGUF file {source_path.name}"
    )
    known = json.loads(fields.get("rolelens.source", "null"))
    vectors = dataclasses.replace(vectors, source=Source(**known) if known else None)
    if lens is not None:
        check_sources(vectors.source, lens.source)
        check_fits(vectors, lens.d_model, lens.n_layers, lens.name)
    return vectors
