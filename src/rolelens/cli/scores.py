"""Commands that score tasks: plain, in a whole grid, and by search."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from rolelens import prompts
from rolelens.cli.options import (
    LUCK,
    Ablate,
    Address,
    Alpha,
    Alphas,
    Device,
    Domains,
    DryRun,
    Dtype,
    Gpus,
    Json,
    Layer,
    Layers,
    MaxNewTokens,
    Method,
    Model,
    Name,
    Names,
    OfVectors,
    Out,
    Position,
    Positions,
    Prompts,
    Quiet,
    RunnerName,
    SaveBest,
    Shots,
    SteeringFile,
    Stored,
    TaskName,
    Threads,
    TokenSelection,
    Vectors,
    Workers,
    check_out,
    grid,
    plainly,
    read_text,
    tell,
)
from rolelens.errors import unknown


def evaluate(
    task: TaskName = "mini",
    steering: SteeringFile = None,
    vectors: OfVectors = None,
    name: Name = None,
    layer: Layer = None,
    position: Position = None,
    alpha: Alpha = None,
    remove: Ablate = False,
    domain: Domains = None,
    shots: Shots = 0,
    method: Method = None,
    max_new_tokens: MaxNewTokens = None,
    model: Model = "smollm2",
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
    silent: Quiet = False,
) -> None:
    """Score a task, steered or not, by domain with 95 % intervals."""
    from rolelens import tasks
    from rolelens.cli.parts import load_items, load_model, load_steering, task_options

    with plainly(silent):
        items = load_items(task, shots, domain)
        steered = load_steering(steering, vectors, name, layer, position, alpha, remove)
        lens = load_model(model, dtype, device)
        done = steered(lens)
        scored = tasks.evaluate(lens, items, done, method, **task_options(max_new_tokens))
        table = scored.table().reset_index()
        content = {
            "task": items.name,
            "steering": str(done),
            **{measure: scored.mean(measure) for measure in scored.measures},
            "interval": scored.interval,
            "domains": table.to_dict("records"),
        }
        text = f"{table.round(3).to_string(index=False)}\n\n{scored}\nsteering: {done}"
        tell(as_json, content, text)


def sweep(
    vectors: Annotated[
        Path | None, typer.Argument(help="A file of 'rolelens extract' or 'contrast'.")
    ] = None,
    task: TaskName = "mini",
    name: Names = None,
    domain: Domains = None,
    shots: Shots = 0,
    layers: Layers = None,
    positions: Positions = None,
    alphas: Annotated[
        str | None, typer.Option(help="Strengths, raw: 1,3 by default; 1 where d is ablated.")
    ] = None,
    tokens: TokenSelection = "all",
    method: Method = None,
    max_new_tokens: MaxNewTokens = None,
    change: Annotated[
        str,
        typer.Option(
            help="add (x + alpha d, at its layer), add_rescaled (norm kept), ablate (d removed "
            "everywhere), or cap, floor, fix (the projection on d, below, above or at alpha)."
        ),
    ] = "add",
    by: Annotated[
        str | None, typer.Option(help="What the best cell is best in; accuracy, where there is.")
    ] = None,
    out: Out = None,
    save_best: SaveBest = None,
    store: Stored = None,
    status: Annotated[
        Path | None, typer.Option(help="Say how far the sweep in this file is, and do nothing.")
    ] = None,
    runner: RunnerName = "local",
    workers: Workers = None,
    threads: Threads = None,
    address: Address = None,
    gpus: Gpus = None,
    model: Model = "smollm2",
    dtype: Dtype = None,
    device: Device = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    silent: Quiet = False,
) -> None:
    """Score a task in every cell of a grid of names, layers, positions and alphas."""
    from rolelens import sweeps, tasks
    from rolelens.cli import parts
    from rolelens.sweeps.runners import runner_of

    with plainly(silent):
        if status is not None:
            progress = sweeps.status(status)
            tell(as_json, progress.facts(), str(progress))
            return
        check_out(out)
        chosen = parts.load_vectors(vectors, name)
        parts.check_save_best(save_best, chosen)
        items = parts.load_items(task, shots, domain)
        scoring = runner_of(runner, workers, threads, address, gpus)
        lens = parts.load_model(model, dtype, device)
        prepared = tasks.prepare(lens, items, method, **parts.task_options(max_new_tokens))
        asked: dict[str, Any] = {
            **grid(layers, positions, alphas),
            "tokens": parts.checked_tokens(tokens),
            "change": change,
        }
        taking = partial(sweeps.estimate, lens, chosen, prepared, **asked)
        if dry_run:
            parts.tell_estimate(as_json, taking())
            return
        with parts.foretold(lambda seconds: taking(seconds=seconds), silent or scoring is not None):
            result = sweeps.sweep(lens, chosen, prepared, **asked, store=store, runner=scoring)
        table = result.table()
        measures = result.baseline.measures
        if out is not None:
            parts.write(table, out)
        if by is not None and by not in measures:
            raise unknown("measure", by, measures)
        order = [*measures] if by is None else [by, *measures]
        ranked = table.sort_values(order, ascending=False).head(10).round(3)
        content: dict[str, Any] = {
            "unsteered": {measure: result.baseline.mean(measure) for measure in measures},
            "cells": table.to_dict("records"),
        }
        text = f"{ranked.to_string(index=False)}\n\n{result.baseline}\n{LUCK}"
        if save_best is not None:
            content, text = parts.save_steering(
                result.best(by=by).steering, save_best, content, text
            )
        tell(as_json, content, text)


def search(
    vectors: Vectors,
    task: TaskName = "mini",
    name: Names = None,
    own_domain: Annotated[
        bool, typer.Option("--own-domain", help="Score each role on the questions of its domain.")
    ] = False,
    domain: Domains = None,
    shots: Shots = 0,
    layers: Layers = None,
    positions: Positions = None,
    alphas: Alphas = "1,3",
    tokens: TokenSelection = "all",
    method: Method = None,
    by: Annotated[
        str | None, typer.Option(help="What the best cell is best in; of questions the margin.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order of the items.")] = 0,
    out: Out = None,
    save_best: SaveBest = None,
    store: Stored = None,
    role_prompts: Prompts = None,
    runner: RunnerName = "local",
    workers: Workers = None,
    threads: Threads = None,
    address: Address = None,
    gpus: Gpus = None,
    model: Model = "smollm2",
    dtype: Dtype = None,
    device: Device = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    silent: Quiet = False,
) -> None:
    """Find the best cell of every name, scoring only the most promising cells exactly."""
    from rolelens import sweeps, tasks
    from rolelens.cli import parts
    from rolelens.sweeps.runners import runner_of

    with plainly(silent):
        check_out(out)
        chosen = parts.load_vectors(vectors, name)
        parts.check_save_best(save_best, chosen)
        domains = None
        if own_domain:
            roles = prompts.load_roles(role_prompts)
            known = {role: of_role.domain for role, of_role in roles.items()}
            domains = {role: known[role] or "" for role in chosen.names if known.get(role)}
        items = parts.load_items(task, shots, domain)
        scoring = runner_of(runner, workers, threads, address, gpus)
        lens = parts.load_model(model, dtype, device)
        asked: dict[str, Any] = {
            "domains": domains,
            **grid(layers, positions, alphas),
            "tokens": parts.checked_tokens(tokens),
        }
        prepared = tasks.prepare(lens, items, method)
        taking = partial(sweeps.estimate, lens, chosen, prepared, **asked, searching=True)
        if dry_run:
            parts.tell_estimate(as_json, taking())
            return
        with parts.foretold(lambda seconds: taking(seconds=seconds), silent or scoring is not None):
            result = sweeps.search(
                lens, chosen, prepared, **asked, by=by, seed=seed, store=store, runner=scoring
            )
        table = result.table()
        if out is not None:
            parts.write(table, out)
        best = table[table["chosen"]].drop(columns="chosen")
        content: dict[str, Any] = {
            "chosen": best.to_dict("records"),
            "screen": result.quality.to_dict("records"),
        }
        text = f"{best.round(3).to_string(index=False)}\n\n"
        text += f"{result.quality.round(2).to_string(index=False)}\n\n{result}\n{LUCK}"
        if save_best is not None:
            steering = result.best(chosen.names[0]).steering
            content, text = parts.save_steering(steering, save_best, content, text)
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
    role: Annotated[
        list[str] | None, typer.Option(help="A role; repeat for several. All by default.")
    ] = None,
    domain: Domains = None,
    questions: Annotated[
        int | None, typer.Option(help="So many questions of each domain; all by default.")
    ] = None,
    method: Method = None,
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
    runner: RunnerName = "local",
    workers: Workers = None,
    threads: Threads = None,
    address: Address = None,
    gpus: Gpus = None,
    model: Model = "smollm2",
    dtype: Dtype = None,
    device: Device = None,
    dry_run: DryRun = False,
    silent: Quiet = False,
) -> None:
    """Run the role-vectors paper on a model, and report what survives.

    All of it takes hours; with --role, --domain and --questions it takes minutes.
    """
    from rolelens import runs, tasks
    from rolelens.cli.parts import foretold, load_model, tell_estimate
    from rolelens.sweeps.runners import runner_of
    from rolelens.vectors import Directions

    with plainly(silent):
        stored = None if vectors is None else Directions.load(vectors)
        read = None if text is None else read_text(text)
        scoring = runner_of(runner, workers, threads, address, gpus)
        lens = load_model(model, dtype, device)
        asked: dict[str, Any] = {
            "data": data,
            "roles": role,
            "domains": domain,
            "questions": questions,
            "vectors": stored,
            "method": tasks.checked_method(method),
            "n_nulls": nulls,
            "folds": folds,
            "text": read,
            "ablated": ablated,
            "anyway": anyway,
            **grid(layers, positions, alphas),
            "seed": seed,
        }
        taking = partial(runs.estimate_paper, lens, **asked)
        if dry_run:
            tell_estimate(False, taking())
            return
        quietly = silent or scoring is not None
        with foretold(lambda seconds: taking(seconds=seconds), quietly) as expected:
            runs.paper(
                lens,
                out,
                **asked,
                runner=scoring,
                expected=expected,
                say=lambda line: None if silent else print(line, flush=True),
            )
