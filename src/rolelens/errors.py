"""The errors of bad input, and files that are written whole or not at all."""

import difflib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


class InputError(ValueError):
    """Something that was passed in cannot be used; the message says what, and what to do."""


def unknown(kind: str, value: object, known: Iterable[object]) -> InputError:
    """Build the error for a name or number that is not among the known ones.

    Near matches are offered, else the known values are listed (the first 12).
    """
    names = [str(k) for k in known]
    near = difflib.get_close_matches(value, names, n=3) if isinstance(value, str) else []
    if near:
        return InputError(f"no {kind} {value!r}; did you mean {' or '.join(map(repr, near))}?")
    listed = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return InputError(f"no {kind} {value!r}; there are: {listed or 'none'}.")


def listed(name: str, values: Any) -> list[Any]:
    """The values of a list, tuple, range or array, as plain Python numbers.

    Raises:
        InputError: it is a single value, or empty.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InputError(f"{name} is {values!r}; pass a list, such as [{values!r}].")
    items = [value.item() if hasattr(value, "item") else value for value in values]
    if not items:
        raise InputError(f"{name} is empty; pass at least one.")
    return items


def unique(kind: str, values: Iterable[Any]) -> None:
    """Refuse a list that names something twice.

    Raises:
        InputError: it does.
    """
    chosen = list(values)
    if len(set(chosen)) < len(chosen):
        twice = next(value for value in chosen if chosen.count(value) > 1)
        raise InputError(
            f"the {kind}s are {chosen}, with {twice!r} more than once; name each once."
        )


def checked_seed(seed: int) -> int:
    """A seed that random generators take."""
    if seed < 0:
        raise InputError(f"seed is {seed}; it has to be 0 or more.")
    return seed


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make the folder of a file that is written inside, and say in one sentence if it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}); name another path."
        ) from error


def write_whole(path: Path, data: bytes | str) -> Path:
    """Write a file that appears whole or not at all, texts in UTF-8; the old one stays till then.

    Raises:
        InputError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path):
            with partial.open("wb") as file:
                file.write(data.encode(errors="replace") if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return path
