"""The command line: reads arguments, calls the library, prints what it returns."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from rolelens import demo as demo_job
from rolelens.activations import role_vectors
from rolelens.errors import InputError
from rolelens.errors import unknown as unknown_name
from rolelens.loading import load
from rolelens.patchscope import PROMPT
from rolelens.patchscope import patchscope as read
from rolelens.progress import quiet
from rolelens.prompts import load_base, load_roles
from rolelens.vectors import RoleVectors

app = typer.Typer(
    name="rolelens",
    help="What does a role do inside a language model?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[
    str,
    typer.Option(help="'smollm2' (embedded), a hub id, a local folder or a .gguf file."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]


@contextlib.contextmanager
def _plainly(silent: bool = False) -> Iterator[None]:
    """Bad input ends with one sentence and exit code 2, not with a traceback."""
    try:
        with quiet(silent):
            yield
    except InputError as error:
        print(f"rolelens: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the vectors and the report.")] = Path(
        "rolelens-demo"
    ),
    model: Model = "smollm2",
    silent: Quiet = False,
) -> None:
    """Run the main job, from prompts to a report; about five minutes on two cores."""
    with _plainly(silent):
        print(f"Loading {model} (the embedded model is fetched at the first run)", flush=True)
        demo_job.run(load(model), out, say=lambda line: print(line, flush=True))


@app.command()
def extract(
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    role: Annotated[
        list[str] | None, typer.Option(help="A role; repeat for several. All by default.")
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(help="Role prompts: a folder, a JSON, JSONL or CSV file, or a hub id."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Base prompts: a JSON, JSONL or CSV file, or a hub id.")
    ] = None,
    model: Model = "smollm2",
    silent: Quiet = False,
) -> None:
    """Compute role vectors and save them with their provenance."""
    with _plainly(silent):
        known = load_roles(prompts)
        for name in role or []:
            if name not in known:
                raise unknown_name("role", name, known)
        chosen = {name: known[name] for name in role or known}
        vectors = role_vectors(load(model), chosen, load_base(base))
        print(f"{vectors} saved in {vectors.save(out)}")


@app.command()
def patchscope(
    vectors: Annotated[Path, typer.Argument(help="A file written by 'rolelens extract'.")],
    role: Annotated[str, typer.Option(help="Whose vector is read.")],
    layer: Annotated[int, typer.Option(help="The layer it is added at.")],
    position: Annotated[int, typer.Option(help="Post-instruction position, -1 is the last.")] = -1,
    alpha: Annotated[float, typer.Option(help="Strength, raw.")] = 3.0,
    prompt: Annotated[str, typer.Option(help="The question.")] = PROMPT,
    max_new_tokens: Annotated[int, typer.Option(help="Length of the answer, in tokens.")] = 40,
    model: Model = "smollm2",
    silent: Quiet = False,
) -> None:
    """Read a vector as text: add it at a question about nothing."""
    with _plainly(silent):
        direction = RoleVectors.load(vectors)[role].at(layer, position)
        reading = read(
            load(model), direction, alpha=alpha, prompt=prompt, max_new_tokens=max_new_tokens
        )
        print(f"{reading.prompt}\n\nunsteered: {reading.baseline}\n\nsteered: {reading.text}")


if __name__ == "__main__":
    app()
