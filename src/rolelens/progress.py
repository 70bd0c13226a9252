"""Progress bars: what is running and how long it will take."""

import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias, TypeVar

from tqdm import tqdm

T = TypeVar("T")
Say: TypeAlias = Callable[[str], None]
"""Takes what is told on the way, a line at a time."""
_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


def track(items: Iterable[T], what: str, total: int | None = None) -> Generator[T, None, None]:
    """Iterate under a progress bar on standard error; silent where that is not a terminal."""
    hidden = _quiet.get() or not sys.stderr.isatty()
    yield from tqdm(items, desc=what, total=total, disable=hidden, leave=False)


@contextmanager
def quiet(on: bool = True) -> Iterator[None]:
    """Show no progress bar inside this context."""
    token = _quiet.set(on)
    try:
        yield
    finally:
        _quiet.reset(token)
