"""What is said about bad input."""

import difflib
from collections.abc import Iterable


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
