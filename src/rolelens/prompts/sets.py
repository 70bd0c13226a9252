"""Role prompts and base prompts: the shipped sets, and loaders for other files."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from rolelens.display import Card, Shown, cut
from rolelens.errors import InputError
from rolelens.rows import csv_rows, from_hub, jsonl, parsed


@dataclass(frozen=True, repr=False)
class RolePrompts(Shown, Sequence[str]):
    """What a person in a role would ask.

    Attributes:
        role: its name.
        domain: the domain of questions it belongs to, if any.
        prompts: the prompts.

    Raises:
        InputError: no prompts, one that is no text or blank, or a text in place of several.
    """

    role: str
    domain: str | None
    prompts: tuple[str, ...]

    def __post_init__(self) -> None:
        prompts: Any = self.prompts
        if isinstance(prompts, str) or not len(prompts):
            raise InputError(f"the prompts of {self.role!r} are {prompts!r}; pass several texts.")
        for number, prompt in enumerate(prompts, 1):
            if not isinstance(prompt, str) or not prompt.strip():
                raise InputError(
                    f"prompt {number} of {self.role!r} is {prompt!r}; it has to be a text that is "
                    "not blank."
                )

    def __getitem__(self, index: Any) -> Any:
        return self.prompts[index]

    def __len__(self) -> int:
        return len(self.prompts)

    def card(self) -> Card:
        """Role, domain, and the first prompt."""
        facts = {
            "role": self.role,
            "domain": self.domain or "none",
            "prompts": f"{len(self.prompts)}, such as {cut(self.prompts[0], 60)!r}",
        }
        return Card("RolePrompts", facts, "rl.role_vectors(lens, {prompts.role: prompts}, base)")


class Roles(Shown, dict[str, RolePrompts]):
    """Role prompts by role: a dict that prints as one line."""

    def card(self) -> Card:
        """Numbers of roles and prompts, and the first names."""
        facts = {
            "roles": f"{len(self)} ({', '.join([*self][:4])}{', ...' if len(self) > 4 else ''})",
            "prompts": str(sum(map(len, self.values()))),
        }
        return Card("Roles", facts, "rl.role_vectors(lens, roles, base=rl.load_base())")


def load_roles(source: str | Path | None = None) -> Roles:
    """Load role prompts.

    Args:
        source: nothing for the 29 shipped roles (those of 2502.12055, with prompts written for
            this package); a folder with one file a role; a JSON, JSONL or CSV file; or the id of a
            ``datasets`` hub set. Rows have ``role``, ``prompt`` and optionally ``domain``; a JSON
            file may also be ``{"role", "domain", "prompts"}``. Of a file that ``generate`` wrote,
            the accepted prompts are read.

    Raises:
        InputError: nothing there, a row that cannot be read (file and line are named), or a role
            with two domains.
    """
    if source is None:
        with resources.as_file(_shipped("prompts/roles")) as folder:
            return load_roles(folder)
    path = Path(source)
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix in (".json", ".jsonl", ".csv"))
        if not files:
            raise InputError(f"no JSON, JSONL or CSV file in the folder {str(source)!r}.")
        sources: Sequence[str | Path] = files
    else:
        sources = [source]
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in (row for file in sources for row in rows(file)):
        if not row.get("role"):
            raise InputError(
                f"{row['where']} has no role; role prompts need one, base prompts are loaded "
                "with load_base."
            )
        grouped.setdefault(str(row["role"]), []).append(row)
    return Roles((role, _role_prompts(role, of_role)) for role, of_role in grouped.items())


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


def _role_prompts(role: str, of_role: Sequence[Mapping[str, Any]]) -> RolePrompts:
    domain = of_role[0].get("domain") or None
    for row in of_role:
        if (row.get("domain") or None) != domain:
            raise InputError(
                f"{row['where']} has the domain {row.get('domain')!r} and {of_role[0]['where']} "
                f"{domain!r} for the role {role!r}; a role has one domain."
            )
    return RolePrompts(role, domain, tuple(row["prompt"] for row in of_role))


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

    Raises:
        InputError: nothing there, no rows, or a row without a text.
    """
    path = Path(source)
    if path.is_file():
        raw = {".json": _json, ".jsonl": _jsonl, ".csv": _csv}.get(path.suffix)
        if raw is None:
            raise InputError(f"{path} is {path.suffix or 'no'} file; JSON, JSONL or CSV is read.")
        read = raw(path, column)
    elif path.suffix in (".json", ".jsonl", ".csv", ".txt") or str(source).count("/") != 1:
        raise InputError(f"no file {str(source)!r}; check the path, or name a hub id 'owner/set'.")
    else:
        otherwise = "check its name and the network, or pass a file"
        read = (
            (f"{source}, row {n + 1}", row)
            for n, row in enumerate(
                from_hub(f"the data set {source!r}", str(source), None, "train", otherwise)
            )
        )
    empty = True
    for where, row in read:
        row = {column: row} if isinstance(row, str) else row
        text = row.get(column) if isinstance(row, Mapping) else None
        if isinstance(row, Mapping) and text is None and row.get("refused"):
            continue
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{where} has no text under {column!r}; it is {str(row)[:80]!r}.")
        empty = False
        yield {**row, "where": where}
    if empty:
        raise InputError(f"{source} holds no {column}; name another source.")


def _json(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    content = parsed(path)
    shared = {}
    if isinstance(content, Mapping):
        shared = {key: value for key, value in content.items() if key in ("role", "domain")}
        content = content.get(f"{column}s")
    if not isinstance(content, list):
        raise InputError(f"{path} holds no list of {column}s, nor one under '{column}s'.")
    for n, row in enumerate(content):
        yield f"{path}, item {n + 1}", {column: row, **shared} if isinstance(row, str) else row


def _jsonl(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    return jsonl(path)


def _csv(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    return csv_rows(path, [column])
