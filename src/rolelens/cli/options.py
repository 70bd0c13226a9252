"""What commands have in common: options, and how results and errors are told.

Nothing here takes time to import, so that help is shown at once.
"""

import contextlib
import json
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, Any, TextIO

import typer

from rolelens.errors import InputError, writing
from rolelens.progress import quiet

Model = Annotated[
    str, typer.Option(help="'smollm2' (embedded), a hub id, a local folder or a .gguf file.")
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="float32, bfloat16, float16, float64, or auto: bfloat16 where the machine computes in "
        "it; float32 on a CPU and bfloat16 on a GPU by default."
    ),
]
Device = Annotated[
    str | None, typer.Option(help="Such as cpu or cuda; the GPU if there is one by default.")
]
Vectors = Annotated[Path, typer.Argument(help="A file of 'rolelens extract' or 'contrast'.")]
TaskName = Annotated[
    str,
    typer.Argument(
        help="'mini' (shipped); 'mmlu', 'truthfulqa', 'gsm8k', 'svamp' (from the hub); "
        "'arithmetic'; a CSV, JSONL or JSON file, or a folder. Columns of questions: question, "
        "answer (a letter, an index from 0 or an option's text) and options, or A, B, ...; of "
        "problems: question, answer; of texts: text; of all: id, domain."
    ),
]
Name = Annotated[
    str | None, typer.Option("--name", "--role", help="Whose direction: a name in the file.")
]
Names = Annotated[
    list[str] | None,
    typer.Option("--name", "--role", help="A name in the file; repeat it. All by default."),
]
Domains = Annotated[
    list[str] | None,
    typer.Option("--domain", help="A domain; repeat for several. All by default."),
]
Shots = Annotated[int, typer.Option(help="Solved examples before each item, where there are any.")]
Layers = Annotated[
    str | None, typer.Option(help="Such as 8,12,16 or 0-23; the first 80 % by default.")
]
Positions = Annotated[str | None, typer.Option(help="Such as -2,-1; all by default.")]
Alphas = Annotated[str, typer.Option(help="Strengths, raw.")]
TokenSelection = Annotated[
    str, typer.Option(help="all, prompt, post-instruction, generated or last.")
]
Out = Annotated[Path | None, typer.Option(help="Write the table to this CSV file.")]
SaveBest = Annotated[
    Path | None,
    typer.Option(
        help="Write the best cell's steering, exactly as it was scored, to this .safetensors file, "
        "for 'rolelens evaluate --steering'."
    ),
]
Stored = Annotated[
    Path | None,
    typer.Option(help="Keep every finished piece in this file; the same command then goes on."),
]
Method = Annotated[
    str | None,
    typer.Option(help="How options are scored: letter (the default), cloze or cloze_norm."),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(help="Length of an answer to a problem at most, in tokens; 256 by default."),
]
RunnerName = Annotated[
    str,
    typer.Option(
        "--runner",
        help="Who scores: local (this process), processes (one worker a GPU, or a few on the CPU) "
        "or ray (a Ray cluster; pip install 'rolelens[ray]').",
    ),
]
Workers = Annotated[
    int | None, typer.Option(help="How many, of --runner processes or ray; by what there is.")
]
Threads = Annotated[
    int | None, typer.Option(help="CPU threads of each worker, of --runner processes or ray.")
]
Address = Annotated[
    str | None,
    typer.Option(help="Of the cluster, of --runner ray: auto, or ray://HOST:PORT; one of its own."),
]
Gpus = Annotated[
    float | None,
    typer.Option(help="GPUs of each worker, of --runner ray: 1, or 0.5 where two share one."),
]
Prompts = Annotated[
    str | None,
    typer.Option(
        "--prompts", help="Role prompts: a folder, a JSON, JSONL or CSV file, or a hub id."
    ),
]
Base = Annotated[
    str | None, typer.Option(help="Base prompts: a JSON, JSONL or CSV file, or a hub id.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what it would take, measured for ten seconds.")
]
LUCK = "The best of many cells is partly luck: confirm it on other items."
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress and no notes.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the file where there is one.")]
SteeringFile = Annotated[
    Path | None, typer.Option(help="Steer with a file of --save-best, or of Steering.save.")
]
OfVectors = Annotated[Path | None, typer.Option(help="Steer with one of the directions of a file.")]
Layer = Annotated[int | None, typer.Option(help="Its layer, with --vectors.")]
Position = Annotated[
    int | None, typer.Option(help="Its position, with --vectors; the last by default.")
]
Alpha = Annotated[float | None, typer.Option(help="Strength, raw, with --vectors; 1 by default.")]
Ablate = Annotated[
    bool, typer.Option("--ablate", help="Ablate the direction instead of adding it.")
]


@contextlib.contextmanager
def plainly(silent: bool = False) -> Iterator[None]:
    """Bad input ends with one sentence and exit code 2, not with a traceback."""
    try:
        with quiet(silent), warnings.catch_warnings():
            warnings.showwarning = _note
            warnings.simplefilter("ignore" if silent else "default", UserWarning)
            yield
    except InputError as error:
        print(f"rolelens: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        arguments = set(sys.argv)
        kept = "--store" in arguments
        kept = kept or ("--out" in arguments and not arguments.isdisjoint({"paper", "generate"}))
        again = f" To go on: rolelens {shlex.join(sys.argv[1:])}" if kept else ""
        print(f"rolelens: interrupted.{again}", file=sys.stderr)
        raise typer.Exit(130) from None


def _note(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as one sentence, without where in the code it was raised."""
    if issubclass(category, UserWarning):
        print(f"note: {message}", file=sys.stderr)


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
            if last < first:
                raise InputError(
                    f"{name} is {text!r}, which counts down; write the lower number first: "
                    f"{last}-{first}."
                )
            return list(range(first, last + 1))
        return [kind(part) for part in text.split(",")]
    except InputError:
        raise
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


def check_out(path: Path | None, *, force: bool = True) -> None:
    """Refuse, before hours of work, a file that cannot be written after them.

    Args:
        path: the file.
        force: whether one that is there may be overwritten.
    """
    if path is not None and not force and path.is_file():
        raise InputError(f"{path} exists already; name another file, or pass --force.")
    if path is not None:
        if path.is_dir():
            raise InputError(f"{path} is a folder; name a file in it.")
        with writing(path):
            TemporaryFile(dir=path.resolve().parent).close()


def read_text(path: Path) -> str:
    """The text of a file."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", error)
        raise InputError(f"{path} cannot be read ({reason}); name a text file in UTF-8.") from error
