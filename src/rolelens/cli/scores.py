"""Commands that score benchmarks: plain, in a whole grid, and by search."""

from pathlib import Path
from typing import Annotated

import typer

from rolelens import loading, prompts, runs, scoring
from rolelens.benchmarks import load_benchmark
from rolelens.cli.options import (
    LUCK,
    Alphas,
    Bench,
    Domains,
    Json,
    Layers,
    Method,
    Model,
    Out,
    Positions,
    Prompts,
    Quiet,
    Roles,
    Shots,
    Stored,
    TokenSelection,
    Vectors,
    check_out,
    grid,
    held,
    plainly,
    read_text,
    tell,
    write,
)
from rolelens.errors import InputError
from rolelens.hooks import ablate, add
from rolelens.sweep import search as run_search
from rolelens.sweep import status as store_status
from rolelens.sweep import sweep as run_sweep
from rolelens.vectors import RoleVectors


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
    domain: Domains = None,
    method: Method = "letter",
    model: Model = "smollm2",
    as_json: Json = False,
    silent: Quiet = False,
) -> None:
    """Score a benchmark, steered or not: accuracy by domain with 95 % intervals."""
    with plainly(silent):
        bench = load_benchmark(benchmark)
        bench = bench.domain(*domain) if domain else bench
        lens = loading.load(model)
        hooks = []
        if vectors is None and (role is not None or layer is not None or remove):
            raise InputError("--role, --layer and --ablate need --vectors: name a file of vectors.")
        if vectors is not None:
            loaded = RoleVectors.load(vectors)
            if layer is None or role is None:
                raise InputError("--vectors needs --role and --layer: name what to steer with.")
            direction = loaded.direction(role, layer, position)
            hooks = ablate(direction, lens) if remove else add(direction, alpha)
        scores = scoring.evaluate(lens, bench, hooks, scoring.checked_method(method))
        table = scores.table().reset_index()
        content = {
            "accuracy": scores.accuracy,
            "interval": scores.interval,
            "margin": scores.margin,
            "domains": table.to_dict("records"),
        }
        tell(as_json, content, f"{table.round(3).to_string(index=False)}\n\n{scores}")


def sweep(
    vectors: Annotated[
        Path | None, typer.Argument(help="A file written by 'rolelens extract'.")
    ] = None,
    benchmark: Bench = "mini",
    role: Roles = None,
    domain: Domains = None,
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
    with plainly(silent):
        if status is not None:
            found = store_status(status)
            tell(as_json, found.facts(), str(found))
            return
        check_out(out)
        chosen = held(vectors, role)
        bench = load_benchmark(benchmark, shots=shots)
        swept = run_sweep(
            loading.load(model),
            chosen,
            bench.domain(*domain) if domain else bench,
            **grid(layers, positions, alphas),
            tokens=tokens,  # type: ignore[arg-type]
            method=scoring.checked_method(method),
            change=change,  # type: ignore[arg-type]
            store=store,
        )
        table = swept.table()
        if out is not None:
            write(table, out)
        ranked = table.sort_values(["accuracy", "margin"], ascending=False).head(10).round(3)
        content = {"unsteered": swept.baseline.accuracy, "cells": table.to_dict("records")}
        text = f"{ranked.to_string(index=False)}\n\n{swept.baseline}\n"
        text += LUCK
        tell(as_json, content, text)


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
    alphas: Alphas = "1,3",
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
    with plainly(silent):
        check_out(out)
        chosen = held(vectors, role)
        domains = None
        if own_domain:
            known = prompts.load_roles(role_prompts)
            found_domains = {name: known[name].domain for name in chosen.roles if name in known}
            domains = {name: own for name, own in found_domains.items() if own}
        found = run_search(
            loading.load(model),
            chosen,
            load_benchmark(benchmark, shots=shots),
            domains=domains,
            **grid(layers, positions, alphas),
            tokens=tokens,  # type: ignore[arg-type]
            method=scoring.checked_method(method),
            by=by,  # type: ignore[arg-type]
            seed=seed,
            store=store,
        )
        if out is not None:
            write(found.table, out)
        best = found.table[found.table["chosen"]].drop(columns="chosen")
        content = {
            "chosen": best.to_dict("records"),
            "screen": found.quality.to_dict("records"),
        }
        text = f"{best.round(3).to_string(index=False)}\n\n"
        text += f"{found.quality.round(2).to_string(index=False)}\n\n{found}\n"
        text += LUCK
        tell(as_json, content, text)


def paper(
    out: Annotated[Path, typer.Option(help="Folder for everything; the same command goes on.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="A folder with role_prompts, base_prompts and mmlu_paper_split as in the authors' "
            "repository; the shipped prompts and questions by default."
        ),
    ] = None,
    vectors: Annotated[
        Path | None,
        typer.Option(
            help="Stored vectors in place of those that the prompts give, also of another model of "
            "the same shape."
        ),
    ] = None,
    method: Method = "letter",
    nulls: Annotated[int, typer.Option(help="Nulls of each kind for a role of each domain.")] = 1,
    folds: Annotated[
        int | None, typer.Option(help="Cross-validate in so many folds, in place of one split.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="A text file whose perplexity is measured under steering.")
    ] = None,
    ablated: Annotated[
        int, typer.Option(help="Held-out questions a domain that ablation is tried on; 0: none.")
    ] = 50,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Search where the model is at chance, too.")
    ] = False,
    layers: Layers = None,
    positions: Positions = None,
    alphas: Alphas = "1,3",
    seed: Annotated[int, typer.Option(help="Of the split, the search and the nulls.")] = 0,
    auto_dtype: Annotated[
        bool, typer.Option("--auto-dtype", help="bfloat16 where the machine is faster in it.")
    ] = False,
    model: Model = "smollm2",
    silent: Quiet = False,
) -> None:
    """Run the role-vectors paper on a model, and report what survives; takes hours."""
    with plainly(silent):
        runs.paper(
            loading.load(model, dtype="auto" if auto_dtype else None),
            out,
            data=data,
            vectors=None if vectors is None else RoleVectors.load(vectors),
            method=scoring.checked_method(method),
            n_nulls=nulls,
            folds=folds,
            text=None if text is None else read_text(text),
            ablated=ablated,
            anyway=anyway,
            **grid(layers, positions, alphas),
            seed=seed,
            say=lambda line: None if silent else print(line, flush=True),
        )
