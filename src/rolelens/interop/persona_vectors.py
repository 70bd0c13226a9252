"""Persona vectors (2507.21509): files of a trait, and folders of the package persona-vectors.

A file of a trait is a tensor ``[n_layers + 1, d_model]`` of ``torch.save``, of which row l is of
``hidden_states[l]``: what enters layer l. It is applied to the output of block l - 1. The last row
is of what leaves the final norm, which no layer reads, and is left out.

A folder of the package has ``steering_vector.safetensors`` and ``metadata.json``, whose ``layer`` k
is the block whose output it was measured at: what enters layer k + 1.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rolelens.errors import InputError, writing
from rolelens.interop.additions import gathered, load_pickled
from rolelens.vectors import Direction, Directions

TENSOR, METADATA = "steering_vector.safetensors", "metadata.json"


def read_persona_vectors(path: str | Path, name: str | None = None) -> Directions:
    """Directions of a file of a trait, such as ``evil_response_avg_diff.pt``.

    Rows that are not numbers, as :func:`write_persona_vectors` writes them, are left out.

    Args:
        path: the file.
        name: what they stand for; by default the file's name up to ``_response_avg_diff``.

    Raises:
        InputError: there is no such file, or it holds anything but one row a layer.
    """
    file = Path(path)
    content = load_pickled(file, "persona vectors")
    if not isinstance(content, torch.Tensor) or content.ndim != 2 or len(content) < 2:
        raise InputError(
            f"{str(file)!r} holds {_told(content)}, and persona vectors are one tensor "
            "[n_layers + 1, d_model]; name another file."
        )
    rows = {n: row for n, row in enumerate(content[:-1].float()) if not row.isnan().any()}
    known = [end for end in ("_response_avg", "_prompt_avg", "_prompt_last") if end in file.stem]
    trait = file.stem.split(known[0])[0] if known else file.stem
    return gathered(rows, name or trait, f"persona vectors, {file.name}")


def write_persona_vectors(vectors: Directions, path: str | Path, n_layers: int) -> Path:
    """Write a file of a trait, for the ``--vector_path`` of its evaluation.

    Rows that are not known, the last among them, are not numbers (NaN), so that to steer with one
    shows at once.

    Args:
        vectors: of one name and position.
        path: the .pt file.
        n_layers: layers of the model.

    Raises:
        InputError: there are several names or positions, or a layer that the model has not.
    """
    if len(vectors.names) != 1 or len(vectors.positions) != 1:
        raise InputError(
            f"a file of persona vectors is of one trait, and these are {len(vectors.names)} names "
            f"at {len(vectors.positions)} positions; take one name, as in vectors['evil'], of one "
            "position."
        )
    if max(vectors.layers) >= n_layers:
        raise InputError(
            f"the vectors reach layer {max(vectors.layers)}, and the model has {n_layers} layers; "
            "pass as many as the model has."
        )
    rows = torch.full((n_layers + 1, vectors.d_model), torch.nan)
    rows[list(vectors.layers)] = vectors.directions[0, :, 0]
    target = Path(path)
    with writing(target):
        torch.save(rows, target)
    return target


def read_persona_folder(folder: str | Path) -> Direction:
    """The direction of a folder that ``persona_vectors.steering.save_steering_vector`` wrote.

    Raises:
        InputError: there is no such folder, or it holds anything else.
    """
    place = Path(folder)
    try:
        vector = load_file(place / TENSOR)["steering_vector"]
        told = json.loads((place / METADATA).read_text(encoding="utf-8"))
        return Direction(
            vector.reshape(-1).float(), int(told["layer"]) + 1, name=told["persona_id"]
        )
    except (OSError, KeyError, ValueError, TypeError, SafetensorError) as error:
        raise InputError(
            f"{str(place)!r} does not hold a persona's steering vector ({error}); name a folder "
            f"with {TENSOR} and {METADATA}."
        ) from error


def write_persona_folder(direction: Direction, folder: str | Path, alpha: float = 1.0) -> Path:
    """Write a folder that ``persona_vectors.steering.load_steering_vector`` reads.

    Args:
        direction: of layer 1 or above.
        folder: where.
        alpha: the strength that the file suggests.

    Raises:
        InputError: a direction of layer 0, which is the output of no block.
    """
    if direction.layer < 1:
        raise InputError(
            "persona-vectors counts the outputs of blocks, so that layer 1 is the lowest; take a "
            "direction of a higher layer."
        )
    place = Path(folder)
    told = {
        "suggested_alpha": alpha,
        "persona_id": direction.name,
        "layer": direction.layer - 1,
        "model_id": direction.source.model if direction.source else "",
        "n_qa_pairs": 0,
    }
    with writing(place / TENSOR):
        vector = direction.vector.detach().cpu().float().contiguous()[None, None]
        save_file({"steering_vector": vector}, place / TENSOR)
        (place / METADATA).write_text(json.dumps(told, indent=2), encoding="utf-8")
    return place


def _told(content: object) -> str:
    """What was found, in words."""
    if isinstance(content, torch.Tensor):
        return f"a tensor of shape {tuple(content.shape)}"
    return f"a {type(content).__name__}"
