"""Personas: one sentence about somebody, whose prompts a language model then writes."""

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from rolelens.errors import InputError
from rolelens.prompts.sets import rows
from rolelens.rows import from_hub, text

HUB = "proj-persona/PersonaHub"


def load_personas(source: str | Path | None = None, *, limit: int | None = None) -> list[str]:
    """Load personas.

    Args:
        source: nothing for PersonaHub (200,000 from the hub, CC BY-NC-SA 4.0), which 2502.12055
            takes its own from; a ``.txt`` file, one a line; a JSON or JSONL file of texts, or of
            rows with ``persona``; a CSV file with that column; or the id of another hub set.
        limit: how many to read at most; of PersonaHub, no more than these are downloaded.

    Raises:
        InputError: nothing there, or a row that cannot be read (file and line are named).
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; it has to be 1 or more.")
    read: Iterator[str]
    if source is None:
        otherwise = "check the network, or pass a file"
        read = (
            str(row["persona"])
            for row in from_hub(
                f"PersonaHub ({HUB})", HUB, "persona", "train", otherwise, streaming=True
            )
        )
    elif Path(source).suffix == ".txt" and Path(source).is_file():
        read = (line.strip() for line in text(Path(source)).split("\n") if line.strip())
    else:
        read = (row["persona"] for row in rows(source, "persona"))
    personas = list(islice(read, limit))
    if not personas:
        raise InputError(f"{source or HUB} holds no persona; name another file.")
    return personas


def matching(personas: Iterable[str], role: str) -> list[str]:
    """Keep the personas that name a role, as 2502.12055 does: by string match, in whole words.

    Returns:
        They, in order, each once.
    """
    pattern = naming(role)
    return [persona for persona in dict.fromkeys(personas) if pattern.search(persona)]


def naming(role: str, *, plural: bool = False) -> re.Pattern[str]:
    """What finds a role's name in a text, in whole words, whatever their case.

    Args:
        role: its name.
        plural: find several of them as well.

    Raises:
        InputError: the role has no name.
    """
    words = role.split()
    if not words:
        raise InputError(f"the role is {role!r}; give it a name.")
    *before, last = map(re.escape, words)
    if plural:
        last = rf"(?:{last}(?:e?s)?|{last[:-1]}ies)" if last.endswith("y") else rf"{last}(?:e?s)?"
    name = r"[\s-]+".join([*before, last])
    return re.compile(rf"(?<!\w){name}(?!\w)", re.IGNORECASE)
