"""The SQLite file of a sweep: its kind, its tables, and what it says about itself."""

import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from rolelens.errors import InputError

APPLICATION_ID = b"rlsw"
SCHEMA_VERSION = 1
CELL_COLUMNS = {"role": str, "layer": int, "position": int, "alpha": float}
QUESTION_COLUMNS = {"id": str, "domain": str, "answer": int}


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say in one sentence what is wrong with the file."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        raise InputError(
            f"{path} cannot be used ({getattr(error, 'strerror', error)}); check that it may be "
            "read and written, that no other program holds it and that the disk has room."
        ) from error
    except sqlite3.DatabaseError as error:
        if type(error) is not sqlite3.DatabaseError:  # a subclass: wrong use, not a wrong file
            raise
        raise InputError(f"{path} is damaged ({error}); name another file.") from error


def check_kind(path: Path) -> None:
    """Look into the header alone: SQLite leaves files beside some that it opens."""
    with path.open("rb") as file:
        header = file.read(100)
    magic, version, kind = header[:16], header[60:64], header[68:72]
    if magic != b"SQLite format 3\0" or kind != APPLICATION_ID:
        raise InputError(f"{path} is not the store of a sweep; name another file.")
    if int.from_bytes(version) != SCHEMA_VERSION:
        raise InputError(
            f"{path} is a store of version {int.from_bytes(version)}, and this rolelens works "
            f"with version {SCHEMA_VERSION}; use the rolelens that wrote it, or name another file."
        )


def connect(path: Path, mode: Literal["ro", "rw", "rwc"]) -> sqlite3.Connection:
    """Open the file."""
    with explained(path):
        return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True)


def create(path: Path, meta: Mapping[str, Any], cells: list[Any], questions: list[Any]) -> None:
    """Write the store of a sweep that has not begun; it appears whole or not at all."""
    partial = path.with_name(f".{path.name}.new")
    partial.unlink(missing_ok=True)
    with explained(path), closing(connect(partial, "rwc")) as connection:
        connection.execute("PRAGMA journal_mode=OFF")
        connection.executescript(_schema(meta["n_options"]))
        connection.executemany(
            "INSERT INTO cells VALUES (?, ?, ?, ?, ?)",
            ((n, *row) for n, row in enumerate(cells)),
        )
        connection.executemany(
            "INSERT INTO questions VALUES (?, ?, ?, ?)",
            ((n, *row) for n, row in enumerate(questions)),
        )
        for key, value in {**meta, "writer": None}.items():
            set_meta(connection, key, value)
        connection.commit()
    partial.replace(path)


def _schema(n_options: int) -> str:
    """The tables; log-probabilities have no type, as REAL would make -0.0 into 0.0."""
    numbers = range(n_options)
    best = " ".join(f"WHEN o{k} THEN {k}" for k in numbers)
    margins = " ".join(
        f"WHEN {k} THEN o{k} - max({', '.join(['-9e999', *(f'o{j}' for j in numbers if j != k)])})"
        for k in numbers
    )
    return f"""
    BEGIN;
    PRAGMA application_id = {int.from_bytes(APPLICATION_ID)};
    PRAGMA user_version = {SCHEMA_VERSION};
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE cells (
        cell INTEGER PRIMARY KEY, role TEXT, layer INTEGER, position INTEGER, alpha REAL
    );
    CREATE TABLE questions (question INTEGER PRIMARY KEY, id TEXT, domain TEXT, answer INTEGER);
    CREATE TABLE pieces (
        piece INTEGER PRIMARY KEY CHECK (piece >= 0),
        finished_at TEXT NOT NULL, seconds REAL NOT NULL, info TEXT NOT NULL
    );
    CREATE TABLE scores (
        cell INTEGER NOT NULL REFERENCES cells,
        question INTEGER NOT NULL REFERENCES questions,
        {", ".join(f"logprob_{k}" for k in numbers)},
        PRIMARY KEY (cell, question)
    ) WITHOUT ROWID;
    CREATE VIEW summary AS
    WITH filled AS (
        SELECT cell, answer,
            {", ".join(f"coalesce(logprob_{k}, -9e999) AS o{k}" for k in numbers)}
        FROM scores JOIN questions USING (question)
    ), judged AS (
        SELECT cell,
            CASE max(-9e999, {", ".join(f"o{k}" for k in numbers)}) {best} END = answer AS correct,
            CASE answer {margins} END AS margin
        FROM filled
    )
    SELECT cells.*, count(*) AS questions, avg(correct) AS accuracy, avg(margin) AS margin
    FROM judged JOIN cells USING (cell) GROUP BY cell;
    """


def changes(
    connection: sqlite3.Connection,
    meta: Mapping[str, Any],
    cells: list[Any],
    questions: list[Any],
    informative: Collection[str],
) -> list[str]:
    """Everything that is not as it was: ``name old -> new``."""
    old, new = _flat(read_meta(connection)), _flat(json.loads(json.dumps(meta)))
    found = [
        f"{key} {_change(_text(old, key), _text(new, key))}"
        for key in {**old, **new}
        if (key in old, old.get(key)) != (key in new, new.get(key))
        and not {key, key.split(".")[0]} & set(informative)
    ]
    for kind, columns, rows in (
        ("cell", CELL_COLUMNS, cells),
        ("question", QUESTION_COLUMNS, questions),
    ):
        select = f"SELECT {', '.join(columns)} FROM {kind}s ORDER BY {kind}"
        were = connection.execute(select).fetchall()
        if len(were) != len(rows):
            found.append(f"{kind}s {len(were)} -> {len(rows)}")
            continue
        moved = [n for n in range(len(rows)) if were[n] != rows[n]]
        if moved:
            first = moved[0]
            more = f" and {len(moved) - 1} more" if moved[1:] else ""
            found.append(f"{kind} {first} {_change(str(were[first]), str(rows[first]))}{more}")
    return found


def _flat(meta: Mapping[str, Any]) -> dict[str, Any]:
    flat = {"n_options": meta["n_options"]}
    for key, value in meta["provenance"].items():
        inner = value if isinstance(value, dict) else {}
        flat |= {f"{key}.{name}": one for name, one in inner.items()} or {key: value}
    return flat


def _text(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "not given"


def _change(old: str, new: str) -> str:
    """``old -> new``; of long ones, some of where they part."""
    parted = next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), 0)
    start = max(0, parted - 20) if max(len(old), len(new)) > 80 else 0
    shown = [
        ("..." if start else "") + text[start : start + 80] + ("..." if text[start + 80 :] else "")
        for text in (old, new)
    ]
    return " -> ".join(shown)


def rows_of(frame: pd.DataFrame, columns: Mapping[str, type]) -> list[Any]:
    """Rows of plain Python values: SQLite would store NumPy's as bytes."""
    return list(zip(*(map(kind, frame[name]) for name, kind in columns.items()), strict=True))


def read_meta(connection: sqlite3.Connection) -> dict[str, Any]:
    """All that the file says about itself."""
    rows = connection.execute("SELECT key, value FROM meta").fetchall()
    return {key: json.loads(value) for key, value in rows}


def set_meta(connection: sqlite3.Connection, key: str, value: object) -> None:
    """Let it say something else."""
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))


def notes_of(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The notes among it."""
    return {key[5:]: value for key, value in meta.items() if key.startswith("note.")}
