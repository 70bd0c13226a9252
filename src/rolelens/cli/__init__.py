"""The command line: reads arguments, calls the library, prints what it returns."""

from importlib.metadata import version
from typing import Annotated

import typer

from rolelens.cli import exports, prompts, scores, talk, vectors

app = typer.Typer(
    name="rolelens",
    help="What does a role do inside a language model? Extract role vectors and other directions, "
    "steer and ablate with them, sweep them against tasks and read them back as text.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> bool:
    if wanted:
        print(f"rolelens {version('rolelens')}")
        raise typer.Exit
    return wanted


@app.callback()
def _group(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """What all commands share."""


for command in (
    vectors.demo,
    vectors.extract,
    vectors.contrast,
    talk.steer,
    talk.chat,
    scores.evaluate,
    scores.sweep,
    scores.search,
    scores.paper,
    vectors.patchscope,
    vectors.report,
    exports.export,
    vectors.models,
    vectors.roles,
):
    app.command()(command)
app.add_typer(prompts.app, name="prompts")
