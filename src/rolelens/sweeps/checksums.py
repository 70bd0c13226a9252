"""Hashes of what a store holds, and what is no longer as it was written."""

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

TABLES = ("meta", "cells", "items", "directions", "predictions", "pieces", "scores", "failures")


def row_hash(*values: object) -> str:
    """Hash of a row of a small table."""
    return hashlib.sha256(json.dumps(values, default=bytes.hex).encode()).hexdigest()[:16]


def records_hash(records: npt.NDArray[Any]) -> str:
    """Hash of what was scored in a piece, ``[cell, item, column]``."""
    if records.dtype == object:
        return row_hash(records.tolist())
    numbers = np.ascontiguousarray(records, dtype="<f4")
    return hashlib.sha256(repr(numbers.shape).encode() + numbers.tobytes()).hexdigest()[:16]


def content_hash(connection: sqlite3.Connection) -> str:
    """Hash of the tables that never change, and of how all are made."""
    digest = hashlib.sha256()
    marks = ", ".join("?" * (len(TABLES) + 1))
    for select, arguments in (
        (f"SELECT sql FROM sqlite_master WHERE name IN ({marks}) ORDER BY name", TABLES),
        ("SELECT * FROM cells ORDER BY cell", ()),
        ("SELECT * FROM items ORDER BY item", ()),
        ("SELECT * FROM directions ORDER BY sha", ()),
    ):
        for row in connection.execute(select, (*arguments, "summary") if arguments else ()):
            digest.update(row_hash(*row).encode())
        digest.update(b";")
    return digest.hexdigest()[:16]


def check_content(connection: sqlite3.Connection, expected: object) -> None:
    """Refuse a file in which anything that never changes has changed.

    Raises:
        sqlite3.DatabaseError: it has.
    """
    if content_hash(connection) != expected:
        raise sqlite3.DatabaseError("its cells, items or directions are not those that were saved")


@dataclass(frozen=True)
class Checked:
    """What was scored, as far as it is as it was written.

    Attributes:
        records: see :func:`rolelens.sweeps.database.read_records`; what does not match its
            checksum is missing in it.
        sound: the pieces that match.
        damage: what does not, by name.
    """

    records: npt.NDArray[Any]
    sound: frozenset[int]
    damage: tuple[str, ...]


def checked(connection: sqlite3.Connection, records: npt.NDArray[Any]) -> Checked:
    """Compare all that was read with the checksums of its pieces; what differs is taken out."""
    covered = np.zeros(records.shape[:2], dtype=bool)
    sound, damage = set(), []
    for row in connection.execute("SELECT * FROM pieces ORDER BY piece").fetchall():
        if _sound(row, records):
            covered[np.ix_(json.loads(row[4]), json.loads(row[5]))] = True
            sound.add(row[0])
        else:
            damage.append(f"piece {row[0]}")
    (stored,) = connection.execute("SELECT count(*) FROM scores").fetchone()
    if not damage and stored != covered.sum():
        damage.append("scores that are of no piece")
    records[~covered] = None if records.dtype == object else np.nan
    return Checked(records, frozenset(sound), tuple(damage))


def _sound(row: Sequence[Any], records: npt.NDArray[Any]) -> bool:
    *values, scored, known = row
    if row_hash(*values, scored) != known:
        return False
    places = np.ix_(json.loads(values[4]), json.loads(values[5]))
    return bool(records_hash(records[places]) == scored)


def drop(connection: sqlite3.Connection, sound: frozenset[int]) -> None:
    """Delete all pieces and scores but those of the sound pieces."""
    kept: set[tuple[int, int]] = set()
    for piece, cells, items in connection.execute("SELECT piece, cells, items FROM pieces"):
        if piece in sound:
            kept |= {(cell, item) for cell in json.loads(cells) for item in json.loads(items)}
    pieces = [p for (p,) in connection.execute("SELECT piece FROM pieces") if p not in sound]
    scores = [s for s in connection.execute("SELECT cell, item FROM scores") if s not in kept]
    with connection:
        connection.executemany("DELETE FROM pieces WHERE piece = ?", [(p,) for p in pieces])
        connection.executemany("DELETE FROM scores WHERE cell = ? AND item = ?", scores)
