"""The command line: reads arguments, calls the library, prints what it returns."""

import contextlib
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from rolelens import embedded, loading, prompts, runs, scoring
from rolelens.activations import role_vectors, system_vectors
from rolelens.benchmarks import load_benchmark
from rolelens.errors import InputError, writing
from rolelens.errors import unknown as unknown_name
from rolelens.hooks import ablate, add
from rolelens.patchscope import PROMPT
from rolelens.patchscope import patchscope as read
from rolelens.progress import quiet
from rolelens.sweep import search as run_search
from rolelens.sweep import status as store_status
from rolelens.sweep import sweep as run_sweep
from rolelens.vectors import RoleVectors

app = typer.Typer(
    name="rolelens",
    help="What does a role do inside a language model? Extract role vectors, steer and ablate with "
    "them, sweep them against benchmarks and read them back as text.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

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
Shots = Annotated[int, typer.Option(help="Solved examples before each question (MMLU's dev).")]
Layers = Annotated[
    str | None, typer.Option(help="Such as 8,12,16 or 0-23; the first 80 % by default.")
]
Positions = Annotated[str | None, typer.Option(help="Such as -2,-1; all by default.")]
TokenSelection = Annotated[str, typer.Option(help="all, prompt, post-instruction or generated.")]
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
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
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
    except KeyboardInterrupt:
        again = f" To go on: rolelens {shlex.join(sys.argv[1:])}" if "--store" in sys.argv else ""
        print(f"rolelens: interrupted.{again}", file=sys.stderr)
        raise typer.Exit(130) from None


def _tell(as_json: bool, content: dict[str, Any], text: str) -> None:
    print(json.dumps(content) if as_json else text)


def _numbers(name: str, text: str | None, kind: type) -> list[Any] | None:
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
        runs.demo(loading.load(model), out, say=lambda line: print(line, flush=True))


@app.command()
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
    with _plainly(silent):
        known = prompts.load_roles(role_prompts)
        chosen = role or list(known)
        for name in [] if system else chosen:
            if name not in known:
                raise unknown_name("role", name, known)
        grid = _numbers("--layers", layers, int)
        lens, generic = loading.load(model), prompts.load_base(base)
        if system:
            vectors = system_vectors(lens, chosen, generic, layers=grid)
        else:
            own = {name: known[name] for name in chosen}
            vectors = role_vectors(lens, own, generic, layers=grid)
        path = vectors.save(out)
        content = {"path": str(path), "roles": vectors.roles, "layers": vectors.layers}
        _tell(as_json, content, f"{vectors}\nsaved in {path}")


@app.command()
def evaluate(
    benchmark: Bench = "mini",
    vectors: Annotated[
        Path | None, typer.Option(help="Steer with a file written by 'rolelens extract'.")
    ] = None,
    role: Annotated[str | None, typer.Option(help="Whose vector, with --vectors.")] = None,
    layer: Annotated[int | None, typer.Option(help="Its layer, with --vectors.")] = None,
    position: Annotated[int, typer.Option(help="Post-instruction position, -1 is the last.")] = -1,
    alpha: Annotated[float, typer.Option(help="Strength, raw.")] = 1.0,
    remove: Annotated[
        bool, typer.Option("--ablate", help="Ablate the vector instead of adding it.")
    ] = False,
    domain: Annotated[
        list[str] | None, typer.Option(help="A domain; repeat for several. All by default.")
    ] = None,
    method: Method = "letter",
    model: Model = "smollm2",
    as_json: Json = False,
    silent: Quiet = False,
) -> None:
    """Score a benchmark, steered or not: accuracy by domain with 95 % intervals."""
    with _plainly(silent):
        bench = load_benchmark(benchmark)
        bench = bench.domain(*domain) if domain else bench
        lens = loading.load(model)
        hooks = []
        if vectors is None and (role is not None or layer is not None or remove):
            raise InputError("--role, --layer and --ablate need --vectors: name a file of vectors.")
        if vectors is not None:
            held = RoleVectors.load(vectors)
            if layer is None or role is None:
                raise InputError("--vectors needs --role and --layer: name what to steer with.")
            direction = held.direction(role, layer, position)
            hooks = ablate(direction, lens) if remove else add(direction, alpha)
        scores = scoring.evaluate(lens, bench, hooks, scoring.checked_method(method))
        table = scores.table().reset_index()
        content = {
            "accuracy": scores.accuracy,
            "interval": scores.interval,
            "margin": scores.margin,
            "domains": table.to_dict("records"),
        }
        _tell(as_json, content, f"{table.round(3).to_string(index=False)}\n\n{scores}")


@app.command()
def sweep(
    vectors: Annotated[
        Path | None, typer.Argument(help="A file written by 'rolelens extract'.")
    ] = None,
    benchmark: Bench = "mini",
    role: Roles = None,
    domain: Annotated[
        list[str] | None, typer.Option(help="A domain; repeat for several. All by default.")
    ] = None,
    shots: Shots = 0,
    layers: Layers = None,
    positions: Positions = None,
    alphas: Annotated[
        str | None, typer.Option(help="Strengths, raw: 1,3 by default; 1 where d is ablated.")
    ] = None,
    tokens: TokenSelection = "all",
    method: Method = "letter",
    change: Annotated[
        str, typer.Option(help="add (x + alpha d, at its layer) or ablate (d removed everywhere).")
    ] = "add",
    out: Out = None,
    store: Stored = None,
    status: Annotated[
        Path | None, typer.Option(help="Say how far the sweep in this file is, and do nothing.")
    ] = None,
    model: Model = "smollm2",
    as_json: Json = False,
    silent: Quiet = False,
) -> None:
    """Score a benchmark in every cell of a grid of roles, layers, positions and alphas."""
    with _plainly(silent):
        if status is not None:
            found = store_status(status)
            _tell(as_json, found.facts(), str(found))
            return
        held = _held(vectors, role)
        bench = load_benchmark(benchmark, shots=shots)
        swept = run_sweep(
            loading.load(model),
            held,
            bench.domain(*domain) if domain else bench,
            layers=_numbers("--layers", layers, int),
            positions=_numbers("--positions", positions, int),
            alphas=_numbers("--alphas", alphas, float),
            tokens=tokens,  # type: ignore[arg-type]
            method=scoring.checked_method(method),
            change=change,  # type: ignore[arg-type]
            store=store,
        )
        table = swept.table()
        if out is not None:
            _write(table, out)
        ranked = table.sort_values(["accuracy", "margin"], ascending=False).head(10).round(3)
        content = {"unsteered": swept.baseline.accuracy, "cells": table.to_dict("records")}
        text = f"{ranked.to_string(index=False)}\n\n{swept.baseline}\n"
        text += "The best of many cells is partly luck: confirm it on other questions."
        _tell(as_json, content, text)


@app.command()
def search(
    vectors: Vectors,
    benchmark: Bench = "mini",
    role: Roles = None,
    own_domain: Annotated[
        bool, typer.Option("--own-domain", help="Score each role on the questions of its domain.")
    ] = False,
    shots: Shots = 0,
    layers: Layers = None,
    positions: Positions = None,
    alphas: Annotated[str, typer.Option(help="Strengths, raw.")] = "1,3",
    tokens: TokenSelection = "all",
    method: Method = "letter",
    by: Annotated[str, typer.Option(help="What the best cell is best in.")] = "margin",
    seed: Annotated[int, typer.Option(help="Of the order of the questions.")] = 0,
    out: Out = None,
    store: Stored = None,
    role_prompts: Prompts = None,
    model: Model = "smollm2",
    as_json: Json = False,
    silent: Quiet = False,
) -> None:
    """Find the best cell of every role, scoring only the most promising cells exactly."""
    with _plainly(silent):
        held = _held(vectors, role)
        domains = None
        if own_domain:
            known = prompts.load_roles(role_prompts)
            found_domains = {name: known[name].domain for name in held.roles if name in known}
            domains = {name: own for name, own in found_domains.items() if own}
        found = run_search(
            loading.load(model),
            held,
            load_benchmark(benchmark, shots=shots),
            domains=domains,
            layers=_numbers("--layers", layers, int),
            positions=_numbers("--positions", positions, int),
            alphas=_numbers("--alphas", alphas, float),
            tokens=tokens,  # type: ignore[arg-type]
            method=scoring.checked_method(method),
            by=by,  # type: ignore[arg-type]
            seed=seed,
            store=store,
        )
        if out is not None:
            _write(found.table, out)
        chosen = found.table[found.table["chosen"]].drop(columns="chosen")
        content = {
            "chosen": chosen.to_dict("records"),
            "screen": found.quality.to_dict("records"),
        }
        text = f"{chosen.round(3).to_string(index=False)}\n\n"
        text += f"{found.quality.round(2).to_string(index=False)}\n\n{found}\n"
        text += "The best of many cells is partly luck: confirm it on other questions."
        _tell(as_json, content, text)


@app.command()
def patchscope(
    vectors: Vectors,
    role: Annotated[str, typer.Option(help="Whose vector is read.")],
    layer: Annotated[int, typer.Option(help="The layer it is added at.")],
    position: Annotated[int, typer.Option(help="Post-instruction position, -1 is the last.")] = -1,
    alpha: Annotated[float, typer.Option(help="Strength, raw.")] = 3.0,
    prompt: Annotated[str, typer.Option(help="The question.")] = PROMPT,
    max_new_tokens: Annotated[int, typer.Option(help="Length of the answer, in tokens.")] = 40,
    model: Model = "smollm2",
    as_json: Json = False,
    silent: Quiet = False,
) -> None:
    """Read a vector as text: add it at a question about nothing."""
    with _plainly(silent):
        direction = RoleVectors.load(vectors)[role].at(layer, position)
        reading = read(
            loading.load(model),
            direction,
            alpha=alpha,
            prompt=prompt,
            max_new_tokens=max_new_tokens,
        )
        content = {"prompt": prompt, "unsteered": reading.baseline, "steered": reading.text}
        text = f"{prompt}\n\nunsteered: {reading.baseline}\n\nsteered: {reading.text}"
        _tell(as_json, content, text)


@app.command()
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
    with _plainly(silent):
        path = runs.describe(
            loading.load(model),
            RoleVectors.load(vectors),
            prompts.load_roles(role_prompts),
            prompts.load_base(base),
            out,
            layer=layer,
            say=lambda line: None if silent or as_json else print(line, flush=True),
        )
        _tell(as_json, {"path": str(path)}, f"The report: {path}")


@app.command()
def models(as_json: Json = False) -> None:
    """List what --model takes on this machine: the embedded model and cached hub models."""
    found = dict.fromkeys(embedded.NAMES, embedded.ORIGIN) | loading.cached_models()
    text = "\n".join(f"{name}  ({origin})" for name, origin in found.items())
    _tell(as_json, found, f"{text}\nor any hub id, local folder or .gguf file")


@app.command()
def roles(
    role_prompts: Prompts = None,
    as_json: Json = False,
) -> None:
    """List the roles, their domains and how many prompts each has."""
    with _plainly():
        known = prompts.load_roles(role_prompts)
        content = {n: {"domain": own.domain, "prompts": len(own)} for n, own in known.items()}
        lines = [f"{n:24}{own.domain or '-':18}{len(own):4} prompts" for n, own in known.items()]
        _tell(as_json, content, "\n".join(lines))


def _held(vectors: Path | None, role: list[str] | None) -> RoleVectors:
    if vectors is None:
        raise InputError("no vectors; name a file written by 'rolelens extract'.")
    held = RoleVectors.load(vectors)
    return held[role] if role else held


def _write(table: pd.DataFrame, path: Path) -> None:
    with writing(path):
        table.to_csv(path, index=False)


if __name__ == "__main__":
    app()
