"""Commands that write prompts."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rolelens import endpoints, prompts
from rolelens.cli.options import Json, Quiet, plainly, tell

app = typer.Typer(help="Write role prompts.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Write role prompts."""


@app.command()
def generate(
    role: Annotated[str, typer.Option(help="Whose prompts.")],
    llm: Annotated[
        str,
        typer.Option(
            help="Who writes them: openai/NAME, anthropic/NAME (keys from OPENAI_API_KEY and "
            "ANTHROPIC_API_KEY), local/MODEL (loaded here), or with --url the name that its server "
            "knows."
        ),
    ],
    n: Annotated[int, typer.Option("--n", help="How many.")] = 64,
    url: Annotated[
        str | None,
        typer.Option(help="An OpenAI-compatible server, such as http://localhost:8000/v1."),
    ] = None,
    personas: Annotated[
        str | None,
        typer.Option(help="A TXT, JSONL, JSON or CSV file; PersonaHub from the hub by default."),
    ] = None,
    domain: Annotated[str | None, typer.Option(help="The role's domain of questions.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="A JSONL file that keeps every attempt; the same command then goes on."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the personas and task types drawn.")] = 0,
    as_json: Json = False,
    silent: Quiet = False,
) -> None:
    """Have a language model write role prompts, checked against rules; read them with --prompts."""
    with plainly(silent):
        endpoint = endpoints.connect(llm, url)
        made = prompts.generate(
            role, n, endpoint, prompts.load_personas(personas), domain=domain, seed=seed, out=out
        )
        content: dict[str, Any] = {
            "role": role,
            "domain": domain,
            "prompts": list(made.prompts),
            "attempts": made.attempts,
            "refused": made.refused,
            "acceptance": made.acceptance,
        }
        if out is not None:
            content["path"] = str(out)
        why = ", ".join(f"{count} {reason}" for reason, count in made.refused.items())
        text = "\n".join(made.prompts) + f"\n\n{len(made.prompts)} of {n} prompts, "
        text += f"{made.acceptance:.0%} of {made.attempts} attempts accepted"
        text += f" (refused: {why})" if why else ""
        tell(as_json, content, text)


@app.command()
def trait(
    name: Annotated[str, typer.Option(help="Of the trait, such as sycophantic.")],
    llm: Annotated[str, typer.Option(help="Who writes it, as for generate.")],
    out: Annotated[Path, typer.Option(help="The JSON file that is written.")],
    description: Annotated[str, typer.Option(help="What the trait is, in a few words.")] = "",
    pairs: Annotated[int, typer.Option(help="Of system prompts.")] = 5,
    questions: Annotated[int, typer.Option(help="How many.")] = 40,
    url: Annotated[
        str | None,
        typer.Option(help="An OpenAI-compatible server, such as http://localhost:8000/v1."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    as_json: Json = False,
    silent: Quiet = False,
) -> None:
    """Have a language model write the system prompts and questions of a trait, as one JSON file."""
    with plainly(silent):
        made = prompts.write_trait(
            name,
            endpoints.connect(llm, url),
            description=description,
            pairs=pairs,
            questions=questions,
            seed=seed,
        )
        path = made.save(out)
        content: dict[str, Any] = {
            "trait": name,
            "positive": list(made.positive),
            "negative": list(made.negative),
            "questions": list(made.questions),
            "path": str(path),
        }
        shown = "\n".join(
            f"+ {p}\n- {n}" for p, n in zip(made.positive, made.negative, strict=True)
        )
        tell(as_json, content, f"{shown}\n\n{len(made.questions)} questions, in {path}")
