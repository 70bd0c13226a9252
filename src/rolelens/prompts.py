"""Role prompts and base prompts: the shipped sets, and loaders for the user's own."""

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from rolelens.errors import InputError

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
            also be ``{"role", "domain", "prompts"}``.

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
        rows = [row for file in files for row in _rows(file)]
    else:
        rows = list(_rows(source))
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
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
    return [row["prompt"] for row in _rows(source)]


def digest(prompts: Sequence[str]) -> str:
    """Hash of a set of prompts, independent of their order."""
    return hashlib.sha256(json.dumps(sorted(prompts)).encode()).hexdigest()[:16]


def _shipped(name: str) -> Any:
    return resources.files("rolelens") / "data" / name


def _rows(source: str | Path) -> Iterator[dict[str, Any]]:
    """Rows with ``prompt`` and whatever else the source says, each with ``where`` it stands."""
    path = Path(source)
    if path.is_file():
        raw = {".json": _json, ".jsonl": _jsonl, ".csv": _csv}.get(path.suffix)
        if raw is None:
            raise InputError(f"{path} is {path.suffix or 'no'} file; JSON, JSONL or CSV is read.")
        found = raw(path)
    elif path.suffix in (".json", ".jsonl", ".csv") or str(source).count("/") != 1:
        raise InputError(f"no file {str(source)!r}; check the path, or name a hub id 'owner/set'.")
    else:
        found = _hub(str(source))
    for where, row in _readable(found, source):
        row = {"prompt": row} if isinstance(row, str) else row
        prompt = row.get("prompt") if isinstance(row, Mapping) else None
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f"{where} has no text under 'prompt'; found {str(row)[:80]!r}.")
        yield {**row, "where": where}


def _readable(found: Iterator[tuple[str, Any]], source: str | Path) -> Iterator[tuple[str, Any]]:
    try:
        yield from found
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not UTF-8 ({error.reason}); convert the file.") from error


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON ({error}).") from error
    shared = {}
    if isinstance(content, Mapping):
        shared = {key: value for key, value in content.items() if key in ("role", "domain")}
        content = content.get("prompts")
    if not isinstance(content, list):
        raise InputError(f"{path} holds no list of prompts, nor one under 'prompts'.")
    for n, row in enumerate(content):
        yield f"{path}, item {n + 1}", {"prompt": row, **shared} if isinstance(row, str) else row


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    for n, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        if line.strip():
            try:
                yield f"{path}, line {n + 1}", json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}, line {n + 1} is not JSON ({error}).") from error


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        if "prompt" not in (reader.fieldnames or ()):
            raise InputError(f"{path} has no column 'prompt'; found {reader.fieldnames}.")
        try:
            for row in reader:
                yield f"{path}, line {reader.line_num}", row
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num} is not CSV ({error}).") from error


def _hub(name: str) -> Iterator[tuple[str, Any]]:
    from datasets import load_dataset

    try:
        rows = load_dataset(name, split="train")
    except Exception as error:  # the hub client raises dozens of classes
        raise InputError(
            f"the data set {name!r} could not be loaded from the hub "
            f"({str(error).splitlines()[0]}); check its name and the network."
        ) from error
    for n, row in enumerate(rows):
        yield f"{name}, row {n + 1}", row
