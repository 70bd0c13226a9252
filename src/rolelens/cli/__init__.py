"""The command line: reads arguments, calls the library, prints what it returns."""

import typer

from rolelens.cli import prompts, scores, vectors

app = typer.Typer(
    name="rolelens",
    help="What does a role do inside a language model? Extract role vectors, steer and ablate with "
    "them, sweep them against benchmarks and read them back as text.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    vectors.demo,
    vectors.extract,
    scores.evaluate,
    scores.sweep,
    scores.search,
    scores.paper,
    vectors.patchscope,
    vectors.report,
    vectors.models,
    vectors.roles,
):
    app.command()(command)
app.add_typer(prompts.app, name="prompts")
