"""Commands about vectors: make, describe and read them; the demo."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from rolelens import embedded, loading, prompts, runs
from rolelens.cli.options import (
    Base,
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
from rolelens.errors import InputError
from rolelens.errors import unknown as unknown_name
from rolelens.extraction import role_vectors, system_vectors
from rolelens.patchscope import PROMPT, Addition, LogitLens, Reader, SelfIE, TokenIdentity
from rolelens.patchscope import patchscope as read
from rolelens.vectors import RoleVectors


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the vectors and the report.")] = Path(
        "rolelens-demo"
    ),
    model: Model = "smollm2",
    silent: Quiet = False,
) -> None:
    """Run the main job, from prompts to a report; about five minutes on two cores."""
    with plainly(silent):
        print(f"Loading {model} (the embedded model is fetched at the first run)", flush=True)
        runs.demo(loading.load(model), out, say=lambda line: print(line, flush=True))


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
    model: Model = "smollm2",
    as_json: Json = False,
    silent: Quiet = False,
) -> None:
    """Compute role vectors and save them with their provenance."""
    with plainly(silent):
        check_out(out)
        known = prompts.load_roles(role_prompts)
        chosen = role or list(known)
        for name in [] if system else chosen:
            if name not in known:
                raise unknown_name("role", name, known)
        grid = numbers("--layers", layers, int)
        lens, generic = loading.load(model), prompts.load_base(base)
        if system:
            vectors = system_vectors(lens, chosen, generic, layers=grid)
        else:
            own = {name: known[name] for name in chosen}
            vectors = role_vectors(lens, own, generic, layers=grid)
        path = vectors.save(out)
        content = {"path": str(path), "roles": vectors.roles, "layers": vectors.layers}
        tell(as_json, content, f"{vectors}\nsaved in {path}")


def patchscope(
    vectors: Vectors,
    role: Annotated[str, typer.Option(help="Whose vector is read.")],
    layer: Annotated[int, typer.Option(help="The layer it was measured at.")],
    position: Annotated[int, typer.Option(help="Post-instruction position, -1 is the last.")] = -1,
    reader: Annotated[
        str, typer.Option(help="addition, token-identity, selfie or logit-lens.")
    ] = "addition",
    alpha: Annotated[
        float | None, typer.Option(help="Strength of the addition, raw; 3 by default.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help=f"Question of the addition; {PROMPT!r} by default.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="Length of an answer at most, in tokens.")
    ] = 40,
    model: Model = "smollm2",
    as_json: Json = False,
    silent: Quiet = False,
) -> None:
    """Read a vector as text: add it at a question about nothing, or another reader."""
    with plainly(silent):
        chosen = _reader(reader, alpha, prompt, max_new_tokens)
        direction = RoleVectors.load(vectors)[role].at(layer, position)
        reading = read(loading.load(model), direction, chosen)
        content = {
            "prompt": reading.prompt,
            "unsteered": reading.baseline,
            "steered": reading.text,
            "reader": reading.how,
        }
        lines = [reading.prompt] if reading.prompt else []
        lines += [f"unsteered: {reading.baseline}"] if reading.baseline else []
        tell(as_json, content, "\n\n".join([*lines, f"steered: {reading.text}"]))


def _reader(name: str, alpha: float | None, prompt: str | None, max_new_tokens: int) -> Reader:
    readers: dict[str, Callable[[], Reader]] = {
        "addition": lambda: Addition(
            3.0 if alpha is None else alpha, prompt or PROMPT, max_new_tokens=max_new_tokens
        ),
        "token-identity": lambda: TokenIdentity(max_new_tokens=max_new_tokens),
        "selfie": lambda: SelfIE(max_new_tokens=max_new_tokens),
        "logit-lens": LogitLens,
    }
    if name not in readers:
        raise unknown_name("reader", name, readers)
    if name != "addition" and (alpha is not None or prompt):
        raise InputError(f"--alpha and --prompt are of the addition; --reader is {name!r}.")
    return readers[name]()


def report(
    vectors: Vectors,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    layer: Annotated[
        int | None, typer.Option(help="Where text is steered; at 55 % of the depth by default.")
    ] = None,
    role_prompts: Prompts = None,
    base: Base = None,
    model: Model = "smollm2",
    as_json: Json = False,
    silent: Quiet = False,
) -> None:
    """Describe a file of vectors on one HTML page: texts, separation, norms, cosines."""
    with plainly(silent):
        check_out(out)
        path = runs.describe(
            loading.load(model),
            RoleVectors.load(vectors),
            prompts.load_roles(role_prompts),
            prompts.load_base(base),
            out,
            layer=layer,
            say=lambda line: None if silent or as_json else print(line, flush=True),
        )
        tell(as_json, {"path": str(path)}, f"The report: {path}")


def models(as_json: Json = False) -> None:
    """List what --model takes on this machine: the embedded model and cached hub models."""
    found = dict.fromkeys(embedded.NAMES, embedded.ORIGIN) | loading.cached_models()
    text = "\n".join(f"{name}  ({origin})" for name, origin in found.items())
    tell(as_json, found, f"{text}\nor any hub id, local folder or .gguf file")


def roles(
    role_prompts: Prompts = None,
    as_json: Json = False,
) -> None:
    """List the roles, their domains and how many prompts each has."""
    with plainly():
        known = prompts.load_roles(role_prompts)
        content = {n: {"domain": own.domain, "prompts": len(own)} for n, own in known.items()}
        lines = [f"{n:24}{own.domain or '-':18}{len(own):4} prompts" for n, own in known.items()]
        tell(as_json, content, "\n".join(lines))
