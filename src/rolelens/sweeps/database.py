"""The SQLite file of a run: its kind, its tables, and what it says about itself."""

import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rolelens.errors import InputError
from rolelens.sweeps.checksums import check_content, content_hash, row_hash

APPLICATION_ID = b"rlsw"
SCHEMA_VERSION = 3
CELL_COLUMNS = ("name", "layer", "position", "alpha", "steering")
ITEM_COLUMNS = ("id", "domain", "correct", "content")


@dataclass(frozen=True)
class Content:
    """What a run is of; all that a store holds beside what was scored.

    Attributes:
        provenance: all that the scores depend on, JSON-able, at most one dict inside another.
        cells: a row a cell, as in ``CELL_COLUMNS``; the row number is the cell's id. The steering
            is JSON.
        items: a row an item, as in ``ITEM_COLUMNS``; the row number is the item's id. ``correct``
            has the bits of the correct options, ``content`` is the item as JSON.
        columns: what is kept of a cell and an item.
        directions: float32 vectors by their hash.
    """

    provenance: Mapping[str, Any]
    cells: Sequence[Sequence[Any]]
    items: Sequence[Sequence[Any]]
    columns: tuple[str, ...]
    directions: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    @property
    def meta(self) -> dict[str, Any]:
        """What the file says about itself."""
        return {"provenance": dict(self.provenance), "columns": list(self.columns)}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Cells, items, columns."""
        return len(self.cells), len(self.items), len(self.columns)


def lacking(records: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where nothing was scored: None in place of texts, NaN in place of numbers."""
    missing = records == None if records.dtype == object else np.isnan(records)  # noqa: E711
    return np.asarray(missing, dtype=bool)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say in one sentence what is wrong with the file."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_ERROR:  # in its own tables
            raise _damaged(path, str(error)) from error
        raise InputError(
            f"{path} cannot be used ({getattr(error, 'strerror', error)}); check that it may be "
            "read and written, that no other program holds it and that the disk has room."
        ) from error
    except sqlite3.DatabaseError as error:
        if type(error) is not sqlite3.DatabaseError:  # a subclass: wrong use, not a wrong file
            raise
        raise _damaged(path, str(error)) from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _damaged(path: Path, why: str) -> InputError:
    told = why.splitlines()[0][:200] if why else "no reason is known"
    return InputError(f"{path} is damaged ({told}); restore it, or name another file.")


def check_kind(path: Path) -> None:
    """Look into the header alone: SQLite leaves files beside some that it opens."""
    with path.open("rb") as file:
        header = file.read(100)
    magic, version, kind = header[:16], header[60:64], header[68:72]
    if magic != b"SQLite format 3\0" or kind != APPLICATION_ID:
        raise InputError(f"{path} is not a store of rolelens; name another file.")
    if int.from_bytes(version) != SCHEMA_VERSION:
        raise InputError(
            f"{path} is a store of version {int.from_bytes(version)}, and this rolelens works "
            f"with version {SCHEMA_VERSION}; use the rolelens that wrote it, or name another file."
        )


def connect(path: Path, mode: Literal["ro", "rw", "rwc"]) -> sqlite3.Connection:
    """Open the file."""
    with explained(path):
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True)
    # Bytes that are no longer UTF-8 must reach the comparison with their hash.
    connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
    return connection


def create(path: Path, content: Content) -> None:
    """Write the store of a run that has not begun; it appears whole or not at all."""
    partial = path.with_name(f".{path.name}.new")
    partial.unlink(missing_ok=True)
    with explained(path), closing(connect(partial, "rwc")) as connection:
        connection.execute("PRAGMA journal_mode=OFF")
        connection.executescript(_schema(content.columns))
        connection.executemany(
            "INSERT INTO cells VALUES (?, ?, ?, ?, ?, ?)",
            ((n, *row) for n, row in enumerate(content.cells)),
        )
        connection.executemany(
            "INSERT INTO items VALUES (?, ?, ?, ?, ?)",
            ((n, *row) for n, row in enumerate(content.items)),
        )
        connection.executemany(
            "INSERT INTO directions VALUES (?, ?)",
            ((sha, vector.tobytes()) for sha, vector in content.directions.items()),
        )
        known = {**content.meta, "writer": None, "content": content_hash(connection)}
        for key, value in known.items():
            set_meta(connection, key, value)
        connection.commit()
    partial.replace(path)


def _schema(columns: Sequence[str]) -> str:
    """The tables; what is kept has no type, as REAL would make -0.0 into 0.0."""
    return f"""
    BEGIN;
    PRAGMA application_id = {int.from_bytes(APPLICATION_ID)};
    PRAGMA user_version = {SCHEMA_VERSION};
    CREATE TABLE meta (
        key TEXT PRIMARY KEY, value TEXT NOT NULL, hash TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE cells (
        cell INTEGER PRIMARY KEY, name TEXT, layer INTEGER, position INTEGER, alpha REAL,
        steering TEXT NOT NULL
    );
    CREATE TABLE items (
        item INTEGER PRIMARY KEY, id TEXT, domain TEXT, correct INTEGER, content TEXT NOT NULL
    );
    CREATE TABLE directions (sha TEXT PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE predictions (
        key TEXT PRIMARY KEY, predicted BLOB NOT NULL, hash TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE pieces (
        piece INTEGER PRIMARY KEY CHECK (piece >= 0),
        finished_at TEXT NOT NULL, seconds REAL NOT NULL, info TEXT NOT NULL,
        cells TEXT NOT NULL, items TEXT NOT NULL, scored TEXT NOT NULL, hash TEXT NOT NULL
    );
    CREATE TABLE failures (
        cell INTEGER PRIMARY KEY REFERENCES cells, reason TEXT NOT NULL, hash TEXT NOT NULL
    );
    CREATE TABLE scores (
        cell INTEGER NOT NULL REFERENCES cells,
        item INTEGER NOT NULL REFERENCES items,
        {", ".join(columns)},
        PRIMARY KEY (cell, item)
    ) WITHOUT ROWID;
    {_summary(columns)}
    """


def _summary(columns: Sequence[str]) -> str:
    """A view with a row a cell."""
    if not columns[0].startswith("logprob_"):
        return """
    CREATE VIEW summary AS
    SELECT cells.cell, name, layer, position, alpha, count(*) AS items
    FROM scores JOIN cells USING (cell) GROUP BY cell;
    """
    numbers = range(len(columns))
    filled = ", ".join(f"coalesce({name}, -9e999) AS o{k}" for k, name in enumerate(columns))
    best = f"max(-9e999, {', '.join(f'o{k}' for k in numbers)})"
    given = " ".join(f"WHEN o{k} THEN (correct >> {k}) & 1" for k in numbers)
    right, wrong = (f"max(-9e999, {', '.join(_where(k, bit) for k in numbers)})" for bit in (1, 0))
    return f"""
    CREATE VIEW summary AS
    WITH filled AS (
        SELECT cell, correct, {filled} FROM scores JOIN items USING (item)
    ), judged AS (
        SELECT cell, CASE {best} {given} END AS accuracy, {right} - {wrong} AS margin FROM filled
    )
    SELECT cells.cell, name, layer, position, alpha, count(*) AS items,
        avg(accuracy) AS accuracy, avg(margin) AS margin
    FROM judged JOIN cells USING (cell) GROUP BY cell;
    """


def _where(k: int, bit: int) -> str:
    return f"CASE (correct >> {k}) & 1 WHEN {bit} THEN o{k} ELSE -9e999 END"


def changes(
    connection: sqlite3.Connection, content: Content, informative: Collection[str]
) -> list[str]:
    """Everything that is not as it was: ``name old -> new``."""
    old, new = _flat(read_meta(connection)), _flat(json.loads(json.dumps(content.meta)))
    differing = [
        f"{key} {_change(_text(old, key), _text(new, key))}"
        for key in {**old, **new}
        if (key in old, old.get(key)) != (key in new, new.get(key))
        and not {key, key.split(".")[0]} & set(informative)
    ]
    for kind, columns, rows in (
        ("cell", CELL_COLUMNS, content.cells),
        ("item", ITEM_COLUMNS, content.items),
    ):
        select = f"SELECT {', '.join(columns)} FROM {kind}s ORDER BY {kind}"
        were = connection.execute(select).fetchall()
        if len(were) != len(rows):
            differing.append(f"{kind}s {len(were)} -> {len(rows)}")
            continue
        moved = [n for n in range(len(rows)) if were[n] != tuple(rows[n])]
        if moved:
            first = moved[0]
            more = f" and {len(moved) - 1} more" if moved[1:] else ""
            differing.append(
                f"{kind} {first} {_change(str(were[first]), str(tuple(rows[first])))}{more}"
            )
    return differing


def _flat(meta: Mapping[str, Any]) -> dict[str, Any]:
    flat = {"columns": meta["columns"]}
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


def read_content(connection: sqlite3.Connection) -> Content:
    """What a store says that its run is of."""
    meta = read_meta(connection)
    check_content(connection, meta["content"])
    rows = [
        connection.execute(f"SELECT {', '.join(columns)} FROM {kind}s ORDER BY {kind}").fetchall()
        for kind, columns in (("cell", CELL_COLUMNS), ("item", ITEM_COLUMNS))
    ]
    directions = {
        sha: np.frombuffer(vector, dtype=np.float32)
        for sha, vector in connection.execute("SELECT sha, vector FROM directions")
    }
    return Content(meta["provenance"], rows[0], rows[1], tuple(meta["columns"]), directions)


def read_records(connection: sqlite3.Connection, content: Content) -> npt.NDArray[Any]:
    """All that was scored, ``[cell, item, column]``.

    Numbers are NaN where nothing was scored yet and -inf where there is no such option; texts are
    None where nothing was answered yet.
    """
    n_cells, n_items, _ = content.shape
    numeric = not content.columns[0].startswith("text_")
    records = np.full(
        content.shape, np.nan if numeric else None, dtype=np.float32 if numeric else object
    )
    rows = connection.execute("SELECT * FROM scores")
    while chunk := rows.fetchmany(2**16):
        if numeric:
            table = _numbers(chunk)
            with np.errstate(invalid="ignore"):  # a number that is none is outside
                cell, item = table[:, :2].astype(np.int64).T
            values = np.where(np.isnan(table[:, 2:]), -np.inf, table[:, 2:])
        else:
            cell, item = np.array([row[:2] for row in chunk]).T
            values = np.array([row[2:] for row in chunk], dtype=object)
        known = (cell >= 0) & (cell < n_cells) & (item >= 0) & (item < n_items)
        with np.errstate(over="ignore"):  # no float32 was written that is as large
            records[cell[known], item[known]] = values[known]
    return records


def _numbers(rows: Sequence[Sequence[Any]]) -> npt.NDArray[np.float64]:
    """Rows as numbers; NULL becomes NaN, and so does what can be none."""
    try:
        return np.array(rows, dtype=np.float64)
    except (ValueError, TypeError):
        plain = [[x if isinstance(x, int | float) else np.nan for x in row] for row in rows]
        return np.array(plain, dtype=np.float64)


def read_failures(connection: sqlite3.Connection) -> dict[int, str]:
    """Why cells could not be scored, by their ids.

    Raises:
        sqlite3.DatabaseError: it is not what was saved.
    """
    failed = {}
    for cell, reason, known in connection.execute("SELECT * FROM failures"):
        if row_hash(cell, reason) != known:
            raise sqlite3.DatabaseError(f"the failure of cell {cell} is not what was saved")
        failed[cell] = reason
    return failed


def read_meta(connection: sqlite3.Connection) -> dict[str, Any]:
    """All that the file says about itself.

    Raises:
        sqlite3.DatabaseError: it is not what was saved.
    """
    meta = {}
    for key, value, known in connection.execute("SELECT key, value, hash FROM meta"):
        if row_hash(key, value) != known:
            raise sqlite3.DatabaseError(f"its {key!r} is not what was saved")
        meta[key] = json.loads(value)
    return meta


def set_meta(connection: sqlite3.Connection, key: str, value: object) -> None:
    """Let it say something else."""
    text = json.dumps(value)
    row = (key, text, row_hash(key, text))
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", row)


def notes_of(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The notes among it."""
    return {key[5:]: value for key, value in meta.items() if key.startswith("note.")}
