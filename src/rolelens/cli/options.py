"""What commands have in common: options, and how results and errors are told."""

import contextlib
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, Any

import pandas as pd
import typer

from rolelens.errors import InputError, writing
from rolelens.progress import quiet
from rolelens.vectors import RoleVectors

Model = Annotated[
    str, typer.Option(help="'smollm2' (embedded), a hub id, a local folder or a .gguf file.")
]
Vectors = Annotated[Path, typer.Argument(help="A file written by 'rolelens extract'.")]
Bench = Annotated[
    str,
    typer.Argument(
        help="'mini', 'mmlu' (from the hub), a folder of MMLU CSV files or of the paper's JSON."
    ),
]
Roles = Annotated[
    list[str] | None, typer.Option("--role", help="A role; repeat for several. All by default.")
]
Domains = Annotated[
    list[str] | None,
    typer.Option("--domain", help="A domain; repeat for several. All by default."),
]
Shots = Annotated[int, typer.Option(help="Solved examples before each question (MMLU's dev).")]
Layers = Annotated[
    str | None, typer.Option(help="Such as 8,12,16 or 0-23; the first 80 % by default.")
]
Positions = Annotated[str | None, typer.Option(help="Such as -2,-1; all by default.")]
Alphas = Annotated[str, typer.Option(help="Strengths, raw.")]
TokenSelection = Annotated[
    str, typer.Option(help="all, prompt, post-instruction, generated or last.")
]
Out = Annotated[Path | None, typer.Option(help="Write the table to this CSV file.")]
Stored = Annotated[
    Path | None,
    typer.Option(help="Keep every finished piece in this file; the same command then goes on."),
]
Method = Annotated[str, typer.Option(help="How options are scored: letter, cloze or cloze_norm.")]
Prompts = Annotated[
    str | None,
    typer.Option(
        "--prompts", help="Role prompts: a folder, a JSON, JSONL or CSV file, or a hub id."
    ),
]
Base = Annotated[
    str | None, typer.Option(help="Base prompts: a JSON, JSONL or CSV file, or a hub id.")
]
LUCK = "The best of many cells is partly luck: confirm it on other questions."
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]


@contextlib.contextmanager
def plainly(silent: bool = False) -> Iterator[None]:
    """Bad input ends with one sentence and exit code 2, not with a traceback."""
    try:
        with quiet(silent):
            yield
    except InputError as error:
        print(f"rolelens: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        words = set(sys.argv)
        kept = "--store" in words or ("--out" in words and {"paper", "generate"} & words)
        again = f" To go on: rolelens {shlex.join(sys.argv[1:])}" if kept else ""
        print(f"rolelens: interrupted.{again}", file=sys.stderr)
        raise typer.Exit(130) from None


def tell(as_json: bool, content: dict[str, Any], text: str) -> None:
    """Print a result, for machines or for people."""
    print(json.dumps(content) if as_json else text)


def numbers(name: str, text: str | None, kind: type) -> list[Any] | None:
    """The numbers of an option such as ``8,12,16`` or ``0-23``."""
    if text is None:
        return None
    try:
        if kind is int and text.count("-") == 1 and not text.startswith("-"):
            first, last = map(int, text.split("-"))
            return list(range(first, last + 1))
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"{name} is {text!r}; it has to be numbers with commas between, such as 8,12,16."
        ) from None


def grid(layers: str | None, positions: str | None, alphas: str | None) -> dict[str, Any]:
    """The axes of a grid, as the library takes them."""
    return {
        "layers": numbers("--layers", layers, int),
        "positions": numbers("--positions", positions, int),
        "alphas": numbers("--alphas", alphas, float),
    }


def held(vectors: Path | None, role: list[str] | None) -> RoleVectors:
    """The vectors of a file, of some roles if any are named."""
    if vectors is None:
        raise InputError("no vectors; name a file written by 'rolelens extract'.")
    loaded = RoleVectors.load(vectors)
    return loaded[role] if role else loaded


def check_out(path: Path | None) -> None:
    """Refuse, before hours of work, a file that cannot be written after them."""
    if path is not None:
        if path.is_dir():
            raise InputError(f"{path} is a folder; name a file in it.")
        with writing(path):
            TemporaryFile(dir=path.resolve().parent).close()


def write(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV."""
    with writing(path):
        table.to_csv(path, index=False)


def read_text(path: Path) -> str:
    """The text of a file."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", error)
        raise InputError(f"{path} cannot be read ({reason}); name a text file in UTF-8.") from error
