"""Commands about vectors: make, describe and read them; the demo."""

from pathlib import Path
from typing import Annotated

import typer

from rolelens import embedded, hub, prompts
from rolelens.cli.options import (
    Base,
    Device,
    Dtype,
    Force,
    Json,
    Model,
    Prompts,
    Quiet,
    Vectors,
    check_out,
    numbers,
    plainly,
    tell,
)
from rolelens.errors import unknown as unknown_name


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the vectors and the report.")] = Path(
        "rolelens-demo"
    ),
    model: Model = "smollm2",
    dtype: Dtype = None,
    device: Device = None,
    silent: Quiet = False,
) -> None:
    """Run the main job, from prompts to a report; about five minutes on two cores."""
    from rolelens import runs
    from rolelens.cli.parts import load_model

    with plainly(silent):
        print(f"Loading {model} (the embedded model is fetched at the first run)", flush=True)
        runs.demo(load_model(model, dtype, device), out, say=lambda line: print(line, flush=True))


def extract(
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    role: Annotated[
        list[str] | None, typer.Option(help="A role; repeat for several. All by default.")
    ] = None,
    role_prompts: Prompts = None,
    base: Base = None,
    layers: Annotated[
        str | None, typer.Option(help="Such as 8,12,16 or 0-23; all by default.")
    ] = None,
    system: Annotated[
        bool,
        typer.Option(
            help="Contrast the base prompts with and without 'You are a {role}.' instead."
        ),
    ] = False,
    force: Force = False,
    model: Model = "smollm2",
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
    silent: Quiet = False,
) -> None:
    """Compute role vectors and save them with their provenance."""
    from rolelens import extraction
    from rolelens.cli.parts import load_model, save_vectors

    with plainly(silent):
        check_out(out, force=force)
        known = prompts.load_roles(role_prompts)
        chosen = role or list(known)
        for name in [] if system else chosen:
            if name not in known:
                raise unknown_name("role", name, known)
        wanted, generic = numbers("--layers", layers, int), prompts.load_base(base)
        lens = load_model(model, dtype, device)
        if system:
            vectors = extraction.system_vectors(lens, chosen, generic, layers=wanted)
        else:
            sets = {name: known[name] for name in chosen}
            vectors = extraction.role_vectors(lens, sets, generic, layers=wanted)
        save_vectors(vectors, out, as_json)


def contrast(
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    positive: Annotated[
        str, typer.Argument(help="Prompts that it points to: a JSON, JSONL or CSV file, a hub id.")
    ],
    negative: Annotated[str, typer.Argument(help="Prompts that it points away from, likewise.")],
    name: Annotated[str, typer.Option(help="What the direction stands for.")] = "contrast",
    layers: Annotated[
        str | None, typer.Option(help="Such as 8,12,16 or 0-23; all by default.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Take the prompts as texts, without the chat format.")
    ] = False,
    force: Force = False,
    model: Model = "smollm2",
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
    silent: Quiet = False,
) -> None:
    """Compute the difference-in-means between any two sets of prompts, and save it."""
    from rolelens import extraction
    from rolelens.cli.parts import load_model, save_vectors

    with plainly(silent):
        check_out(out, force=force)
        wanted = numbers("--layers", layers, int)
        sets = prompts.load_base(positive), prompts.load_base(negative)
        lens = load_model(model, dtype, device)
        vectors = extraction.contrast(lens, *sets, name=name, layers=wanted, raw=raw)
        save_vectors(vectors, out, as_json)


def patchscope(
    vectors: Vectors,
    name: Annotated[str, typer.Option("--name", "--role", help="Whose direction is read.")],
    layer: Annotated[int, typer.Option(help="The layer it was measured at.")],
    position: Annotated[int | None, typer.Option(help="Its position; the last by default.")] = None,
    reader: Annotated[
        str, typer.Option(help="addition, token-identity, selfie, logit-lens or jacobian-lens.")
    ] = "addition",
    alpha: Annotated[
        float | None, typer.Option(help="Strength of the addition, raw; 3 by default.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="Question of the addition; 'What does ♦ represent?' by default."),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="Length of an answer at most, in tokens.")
    ] = 40,
    model: Model = "smollm2",
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
    silent: Quiet = False,
) -> None:
    """Read a vector as text: add it at a question about nothing, or another reader."""
    from rolelens import patchscoping
    from rolelens.cli.parts import load_model, reader_of
    from rolelens.vectors import Directions

    with plainly(silent):
        chosen = reader_of(reader, alpha, prompt, max_new_tokens)
        direction = Directions.load(vectors).direction(name, layer, position)
        reading = patchscoping.patchscope(load_model(model, dtype, device), direction, chosen)
        content = {
            "prompt": reading.prompt,
            "unsteered": reading.baseline,
            "steered": reading.text,
            "reader": reading.how,
        }
        lines = [reading.prompt] if reading.prompt else []
        lines += [f"unsteered: {reading.baseline}"] if reading.baseline else []
        tell(as_json, content, "\n\n".join([*lines, f"steered: {reading.text}"]))


def report(
    vectors: Vectors,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    layer: Annotated[
        int | None, typer.Option(help="Where text is steered; at 55 % of the depth by default.")
    ] = None,
    role_prompts: Prompts = None,
    base: Base = None,
    model: Model = "smollm2",
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
    silent: Quiet = False,
) -> None:
    """Describe a file of vectors on one HTML page: texts, separation, norms, cosines."""
    from rolelens import runs
    from rolelens.cli.parts import load_model
    from rolelens.vectors import Directions

    with plainly(silent):
        check_out(out)
        known = Directions.load(vectors), prompts.load_roles(role_prompts), prompts.load_base(base)
        path = runs.describe(
            load_model(model, dtype, device),
            *known,
            out,
            layer=layer,
            say=lambda line: None if silent or as_json else print(line, flush=True),
        )
        tell(as_json, {"path": str(path)}, f"The report: {path}")


def models(as_json: Json = False) -> None:
    """List what --model takes on this machine: the embedded model and cached hub models."""
    known = dict.fromkeys(embedded.NAMES, embedded.ORIGIN) | hub.cached_models()
    text = "\n".join(f"{name}  ({origin})" for name, origin in known.items())
    tell(as_json, known, f"{text}\nor any hub id, local folder or .gguf file")


def roles(
    role_prompts: Prompts = None,
    as_json: Json = False,
) -> None:
    """List the roles, their domains and how many prompts each has."""
    with plainly():
        known = prompts.load_roles(role_prompts)
        content = {
            name: {"domain": of_role.domain, "prompts": len(of_role)}
            for name, of_role in known.items()
        }
        lines = [
            f"{name:24}{of_role.domain or '-':18}{len(of_role):4} prompts"
            for name, of_role in known.items()
        ]
        tell(as_json, content, "\n".join(lines))
