"""Rows of JSON, JSONL and CSV files, and of data sets on the hub."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rolelens import hub
from rolelens.errors import InputError

UTF8 = "utf-8-sig"
"""How text files are read: UTF-8, with or without the mark that Excel puts in front."""


def text(path: Path, newline: str | None = None) -> str:
    """What a text file says.

    Args:
        path: the file.
        newline: as for :func:`open`; by default all ends of lines become a newline.

    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    try:
        with path.open(encoding=UTF8, newline=newline) as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason}); convert the file.") from error
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error}); name another file."
        ) from error


def parsed(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        InputError: it is not JSON in UTF-8, or an object has a name twice with different values.
    """
    content = text(path)
    with _json(str(path)):
        return json.loads(content, object_pairs_hook=_object)


def jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    """What the lines of a file hold, and where each stands; blank ones are passed over.

    Raises:
        InputError: the file is not UTF-8, or a line is not JSON or has an object with a name
            twice and different values.
    """
    # Not splitlines: JSON may hold the other separators of lines.
    for number, line in enumerate(text(path).split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            with _json(where):
                row = json.loads(line, object_pairs_hook=_object)
            yield where, row


def csv_lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """What the rows of a CSV file hold, and on which line each begins; empty ones are passed over.

    Raises:
        InputError: the file is not UTF-8 or not CSV.
    """
    reader = csv.reader(io.StringIO(text(path, newline=""), newline=""), strict=True)
    while True:
        where = f"{path}, line {reader.line_num + 1}"
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{where} is not CSV ({error}).") from error
        if row is None:
            return
        if row:
            yield where, row


def csv_rows(path: Path, needed: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, str]]]:
    """What the lines under the header of a CSV file hold, and where each stands.

    Columns without a name are passed over, and so are blanks around a name.

    Args:
        path: the file.
        needed: columns that have to be there.

    Raises:
        InputError: the file is not UTF-8 or not CSV, a column is missing or there twice, or a line
            has more or fewer cells than the header.
    """
    lines = csv_lines(path)
    _, header = next(lines, ("", []))
    names = [name.strip() for name in header]
    for column in needed:
        if column not in names:
            raise InputError(f"{path} has no column {column!r}; its header is {names}.")
    for name in names:
        if name and names.count(name) > 1:
            raise InputError(f"{path} has two columns {name!r}; rename one of them.")
    for where, row in lines:
        cells = row[: len(names)] if not any(row[len(names) :]) else row
        if len(cells) != len(names):
            raise InputError(
                f"{where} has {len(cells)} cells and the header {len(names)}; put a text with a "
                "comma between quotation marks, and write every cell."
            )
        yield where, {name: cell for name, cell in zip(names, cells, strict=True) if name}


def from_hub(
    title: str,
    name: str,
    config: str | None,
    split: str,
    otherwise: str,
    *,
    streaming: bool = False,
) -> Iterator[Any]:
    """The rows of a split of a data set.

    Args:
        title: what it is called in the error.
        name: its id.
        config: which configuration.
        split: which split.
        otherwise: what to do where it cannot be reached.
        streaming: download no more than is read.

    Raises:
        InputError: it cannot be reached.
    """
    from datasets import load_dataset

    try:
        with hub.impatient() as answers:
            yield from load_dataset(name, config, split=split, streaming=streaming)
    except Exception as error:  # the hub client raises dozens of classes
        reason = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
        if answers.missed:
            reason = f"the hub did not answer within {answers.limit:g} s"
        raise InputError(f"{title} cannot be reached ({reason}); {otherwise}.") from error


def label(row: Mapping[str, Any], column: str) -> str:
    """A name in a row, such as an id or a domain; empty where there is none.

    Raises:
        InputError: it is neither a text nor a whole number.
    """
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise InputError(f"expected a text or a whole number under {column!r}; found {value!r}.")
    return "" if value is None else str(value).strip()


@contextmanager
def located(where: str) -> Iterator[None]:
    """Put where a row stands in front of what is wrong with it.

    Raises:
        InputError: what is done inside raises one.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


@contextmanager
def _json(where: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{where} {error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}).") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, in which no name stands for two values."""
    values: dict[str, Any] = {}
    for name, value in pairs:
        if values.setdefault(name, value) != value:
            raise InputError(f"has {name[:60]!r} twice in one object; rename one of them.")
    return values
