"""Rows of JSON, JSONL and CSV files, and of data sets on the hub."""

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rolelens.errors import InputError

UTF8 = "utf-8-sig"
"""How text files are read: UTF-8, with or without the mark that Excel puts in front."""


def text(path: Path) -> str:
    """What a text file says.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding=UTF8)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason}); convert the file.") from error


def parsed(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        InputError: it is not JSON in UTF-8.
    """
    try:
        return json.loads(text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON ({error}).") from error


def jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    """What the lines of a file hold, and where each stands; blank ones are passed over.

    Raises:
        InputError: the file is not UTF-8, or a line is not JSON.
    """
    # Not splitlines: JSON may hold the other separators of lines.
    for number, line in enumerate(text(path).split("\n"), 1):
        if line.strip():
            try:
                yield f"{path}, line {number}", json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}, line {number} is not JSON ({error}).") from error


def csv_lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """What the lines of a CSV file without a header hold, and where each stands.

    Raises:
        InputError: the file is not UTF-8 or not CSV.
    """
    with path.open(encoding=UTF8, newline="") as file:
        yield from _read(path, csv.reader(file, strict=True))


def csv_rows(path: Path, needed: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the lines under the header of a CSV file hold, and where each stands.

    Args:
        path: the file.
        needed: columns that have to be there.

    Raises:
        InputError: the file is not UTF-8 or not CSV, or a column is missing.
    """
    with path.open(encoding=UTF8, newline="") as file:
        reader = csv.DictReader(file, strict=True)
        with _explained(path, reader):
            names = reader.fieldnames or ()
        for column in needed:
            if column not in names:
                raise InputError(f"{path} has no column {column!r}; found {names}.")
        yield from _read(path, reader)


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
        yield from load_dataset(name, config, split=split, streaming=streaming)
    except Exception as error:  # the hub client raises dozens of classes
        reason = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
        raise InputError(f"{title} cannot be reached ({reason}); {otherwise}.") from error


def _read(path: Path, reader: Any) -> Iterator[tuple[str, Any]]:
    while True:
        with _explained(path, reader):
            row = next(reader, None)
        if row is None:
            return
        yield f"{path}, line {reader.line_num}", row


@contextmanager
def _explained(path: Path, reader: Any) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason}); convert the file.") from error
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num} is not CSV ({error}).") from error
