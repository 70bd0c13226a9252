"""Safetensors files with a JSON header, whose numbers are known by their hash."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from rolelens.errors import InputError, write_whole

HEADER = "rolelens"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Path:
    """Write tensors and a header that JSON can hold; the file appears whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    fields: dict[str, Any] = json.loads(json.dumps(header))
    fields["content"] = content_hash(whole, fields)
    return write_whole(path, save(whole, metadata={HEADER: json.dumps(fields)}))


@contextmanager
def reading(path: Path, what: str) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """The header and the tensors of a file, for a block that builds something of them.

    Args:
        path: the file.
        what: what it should hold, for the error.

    Raises:
        InputError: there is no such file, it does not hold that, or it is not as it was saved.
            Files of version 0.1 have no hash to tell.
    """
    if not path.is_file():
        raise InputError(f"no file {str(path)!r} with {what}; check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        saved = header.pop("content", None)
        of_version_01 = saved is None and "roles" in header
        if not of_version_01 and saved != content_hash(tensors, header):
            raise InputError(
                f"{str(path)!r} is damaged or was not written by rolelens: its content is not that "
                "which was saved. Restore the file, or make it again."
            )
        yield header, tensors
    except InputError:
        raise
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{str(path)!r} does not hold {what} ({type(error).__name__}: {error}); it is "
            "truncated or was not written by rolelens. Make the file again."
        ) from error


def content_hash(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """Hash of the header, of the numbers, and of their shapes and types."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(repr((name, tuple(tensor.shape), str(tensor.dtype))).encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
