"""Vectors of Contrastive Activation Addition (2312.06681), one file a layer.

``vec_layer_{k}_{model}.pt`` is a vector that is added to the output of block k, counted from 0,
which enters layer k + 1. Its own code adds them after the instruction: ``tokens="last"`` here.
"""

import re
from pathlib import Path

import torch

from rolelens.errors import InputError, writing
from rolelens.interop.additions import gathered, load_pickled
from rolelens.vectors import Directions

FILE = re.compile(r"vec_layer_(\d+)_(.+)\.pt")


def read_caa(folder: str | Path, model: str | None = None, name: str | None = None) -> Directions:
    """Directions of a folder of CAA, such as ``vectors/sycophancy``.

    Args:
        folder: with files ``vec_layer_{k}_{model}.pt``.
        model: which model's, where there are several.
        name: what they stand for; the folder's name by default.

    Raises:
        InputError: there are no such files, of several models, or of anything but vectors.
    """
    place = Path(folder)
    files = [(file, FILE.fullmatch(file.name)) for file in sorted(place.glob("vec_layer_*.pt"))]
    named = [(file, int(match[1]), match[2]) for file, match in files if match]
    models = sorted({of for _, _, of in named})
    if model is None and len(models) > 1:
        raise InputError(
            f"{str(place)!r} holds vectors of {', '.join(models)}; say which, as in "
            f"model={models[0]!r}."
        )
    chosen = [(file, k) for file, k, of in named if model in (None, of)]
    if not chosen:
        of = f" of {model!r}" if model else ""
        raise InputError(
            f"{str(place)!r} has no files vec_layer_K_MODEL.pt{of}; name a folder of CAA's vectors."
        )
    found = {}
    for file, k in chosen:
        vector = load_pickled(file, "a vector of CAA")
        if not isinstance(vector, torch.Tensor):
            raise InputError(
                f"{str(file)!r} holds a {type(vector).__name__}, and it has to be a vector."
            )
        found[k + 1] = vector.float()
    return gathered(found, name or place.name, f"CAA, {model or models[0]}")


def write_caa(vectors: Directions, folder: str | Path, model: str) -> list[Path]:
    """Write a file a layer, as CAA's own code reads them; returns the paths.

    Args:
        vectors: of one name and position, of layers 1 and above.
        folder: where.
        model: as CAA names it, such as ``"Llama-2-7b-chat-hf"``.

    Raises:
        InputError: there are several names or positions, or layer 0, which is the output of no
            block.
    """
    if len(vectors.names) != 1 or len(vectors.positions) != 1 or min(vectors.layers) < 1:
        raise InputError(
            "files of CAA hold one direction a layer, of layers 1 and above, and these are "
            f"{len(vectors.names)} names at {len(vectors.positions)} positions from layer "
            f"{min(vectors.layers)}; choose among them."
        )
    paths = []
    for layer, vector in zip(vectors.layers, vectors.directions[0, :, 0], strict=True):
        path = Path(folder) / f"vec_layer_{layer - 1}_{model}.pt"
        with writing(path):
            torch.save(vector.clone(), path)
        paths.append(path)
    return paths
