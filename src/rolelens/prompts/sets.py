"""Role prompts and base prompts: the shipped sets, and loaders for the user's own."""

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from rolelens.errors import InputError

T = TypeVar("T")

DEMO_ROLES = (
    "economist",
    "software engineer",
    "lawyer",
    "mathematician",
    "doctor",
    "biologist",
    "politician",
    "psychologist",
)
"""The roles with 64 prompts each, one a domain."""


@dataclass(frozen=True)
class RolePrompts(Sequence[str]):
    """What a person in a role would ask.

    Attributes:
        role: its name.
        domain: the domain of questions it belongs to, if any.
        prompts: the prompts.
    """

    role: str
    domain: str | None
    prompts: tuple[str, ...]

    def __getitem__(self, index: Any) -> Any:
        return self.prompts[index]

    def __len__(self) -> int:
        return len(self.prompts)


def load_roles(source: str | Path | None = None) -> dict[str, RolePrompts]:
    """Load role prompts.

    Args:
        source: nothing for the 29 shipped roles (those of 2502.12055, with prompts of our own); a
            folder with one file a role; a JSON, JSONL or CSV file; or the id of a ``datasets``
            hub set. Rows have ``role``, ``prompt`` and optionally ``domain``; a JSON file may
            also be ``{"role", "domain", "prompts"}``. Of a file that ``generate`` wrote, the
            accepted prompts are read.

    Raises:
        InputError: nothing there, or a row that cannot be read (file and line are named).
    """
    if source is None:
        with resources.as_file(_shipped("prompts/roles")) as folder:
            return load_roles(folder)
    path = Path(source)
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix in (".json", ".jsonl", ".csv"))
        if not files:
            raise InputError(f"no JSON, JSONL or CSV file in the folder {str(source)!r}.")
        found = [row for file in files for row in rows(file)]
    else:
        found = list(rows(source))
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        if not row.get("role"):
            raise InputError(
                f"{row['where']} has no role; role prompts need one, base prompts are loaded "
                "with load_base."
            )
        grouped.setdefault(str(row["role"]), []).append(row)
    return {
        role: RolePrompts(role, own[0].get("domain"), tuple(row["prompt"] for row in own))
        for role, own in grouped.items()
    }


def load_base(source: str | Path | None = None) -> list[str]:
    """Load base prompts: what anybody might ask, with no role.

    Args:
        source: nothing for the 128 shipped ones; a JSON, JSONL or CSV file; or the id of a
            ``datasets`` hub set.

    Raises:
        InputError: nothing there, or a row that cannot be read.
    """
    if source is None:
        with resources.as_file(_shipped("prompts/base.json")) as file:
            return load_base(file)
    return [row["prompt"] for row in rows(source)]


def digest(prompts: Sequence[str]) -> str:
    """Hash of a set of prompts, independent of their order."""
    return hashlib.sha256(json.dumps(sorted(prompts)).encode()).hexdigest()[:16]


def _shipped(name: str) -> Any:
    return resources.files("rolelens") / "data" / name


def rows(source: str | Path, column: str = "prompt") -> Iterator[dict[str, Any]]:
    """Rows with a text in a column and whatever else the source says.

    Args:
        source: a JSON, JSONL or CSV file, or the id of a hub set.
        column: what holds the text.

    Returns:
        The rows, each with ``where`` it stands.
    """
    path = Path(source)
    if path.is_file():
        raw = {".json": _json, ".jsonl": _jsonl, ".csv": _csv}.get(path.suffix)
        if raw is None:
            raise InputError(f"{path} is {path.suffix or 'no'} file; JSON, JSONL or CSV is read.")
        found = raw(path, column)
    elif path.suffix in (".json", ".jsonl", ".csv", ".txt") or str(source).count("/") != 1:
        raise InputError(f"no file {str(source)!r}; check the path, or name a hub id 'owner/set'.")
    else:
        found = hub(str(source))
    for where, row in readable(found, source):
        row = {column: row} if isinstance(row, str) else row
        text = row.get(column) if isinstance(row, Mapping) else None
        if isinstance(row, Mapping) and text is None and row.get("refused"):
            continue
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{where} has no text under {column!r}; found {str(row)[:80]!r}.")
        yield {**row, "where": where}


def readable(found: Iterator[T], source: str | Path) -> Iterator[T]:
    """What is found in a text file, if it is one."""
    try:
        yield from found
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not UTF-8 ({error.reason}); convert the file.") from error


def hub(
    name: str, config: str | None = None, *, streaming: bool = False
) -> Iterator[tuple[str, Any]]:
    """Rows of a hub set, and where each stands."""
    from datasets import load_dataset

    try:
        for n, row in enumerate(load_dataset(name, config, split="train", streaming=streaming)):
            yield f"{name}, row {n + 1}", row
    except Exception as error:  # the hub client raises dozens of classes
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"the data set {name!r} could not be loaded from the hub ({reason}); check its name "
            "and the network, or pass a file."
        ) from error


def _json(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON ({error}).") from error
    shared = {}
    if isinstance(content, Mapping):
        shared = {key: value for key, value in content.items() if key in ("role", "domain")}
        content = content.get(f"{column}s")
    if not isinstance(content, list):
        raise InputError(f"{path} holds no list of {column}s, nor one under '{column}s'.")
    for n, row in enumerate(content):
        yield f"{path}, item {n + 1}", {column: row, **shared} if isinstance(row, str) else row


def _jsonl(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    # Not splitlines: JSON may hold the other separators of lines.
    for n, line in enumerate(path.read_text(encoding="utf-8").split("\n")):
        if line.strip():
            try:
                yield f"{path}, line {n + 1}", json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}, line {n + 1} is not JSON ({error}).") from error


def _csv(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        if column not in (reader.fieldnames or ()):
            raise InputError(f"{path} has no column {column!r}; found {reader.fieldnames}.")
        try:
            for row in reader:
                yield f"{path}, line {reader.line_num}", row
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num} is not CSV ({error}).") from error
