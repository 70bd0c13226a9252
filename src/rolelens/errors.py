"""What is said about bad input."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


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
