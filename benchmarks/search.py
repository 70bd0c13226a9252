"""The search beside the exhaustive sweep: how much worse its cells are, and what it costs.

``python benchmarks/search.py --paper FOLDER`` takes the paper's own prompts and split (subfolders
``role_prompts``, ``base_prompts`` and ``mmlu_paper_split``); rolelens' own otherwise.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import peers
import torch
from measure import flops, timed

import rolelens as rl
from rolelens import tasks

N_ROLES = 10
SUBGRID: dict[str, Any] = {"layers": [4, 8, 12, 16], "positions": [-5, -3, -1]}
KINDS: Any = (("all", "letter", 32), ("post-instruction", "letter", 128))
COUNTED = 8
"""One question in so many is counted for the loop; its operations go with the tokens."""


def regret(
    lens: rl.Lens, vectors: rl.Directions, task: Any, kinds: list[tuple[str, str, int]]
) -> None:
    """Run a grid whole and by search; a line of the table for each way of tasks."""
    print(
        "| tokens | method | questions | cells | run | of their questions | regret (nats) |", end=""
    )
    print(" of best - median | of a random cell's regret | rho |\n" + "|---" * 10 + "|", flush=True)
    for tokens, method, n in kinds:
        questions = list(task)[:n]
        options = {**SUBGRID, "tokens": tokens, "method": method}
        swept = rl.sweep(lens, vectors, questions, **options)
        search = rl.search(lens, vectors, questions, **options)
        lost, spread, drawn = [], [], []
        for role, cells in swept.table().groupby("name"):
            best = search.best(str(role))
            top = cells["margin"].max()
            lost.append(top - swept.cell(best.steering).margin)
            spread.append(top - cells["margin"].median())
            drawn.append(top - cells["margin"].mean())
        table = search.table()
        run = int((table["items"] > 0).sum())
        share = table["items"].sum() / (len(table) * n)
        print(
            f"| {tokens} | {method} | {n} | {len(swept.cells)} | {run} | {share:.0%} "
            f"| {np.mean(lost):.4f} "
            f"| {np.mean(lost) / np.mean(spread):.1%} | {np.mean(lost) / np.mean(drawn):.1%} "
            f"| {search.quality['rho'].median():.2f} |",
            flush=True,
        )


def cost(
    lens: rl.Lens,
    vectors: rl.Directions,
    task: Any,
    domains: dict[str, list[str]],
    store: Path | None,
) -> None:
    """The paper's whole grid for the roles of some domains, each on the questions of its own."""
    print("\n| domain | roles | questions | cells | run exactly | rho, median | minutes ", end="")
    print("| FLOPs, of a loop |\n" + "|---" * 8 + "|", flush=True)
    total = np.zeros(7)
    for domain, roles in domains.items():
        questions = task.domain(domain)
        file = store and store.with_name(f"{store.stem} {domain}{store.suffix}")
        seconds, (spent, made) = timed(
            lambda chosen=vectors[roles], questions=questions, file=file: flops(
                lambda: rl.search(lens, chosen, questions, store=file)
            )
        )
        prepared = tasks.prepare(lens, questions, "letter")
        ids = sorted(prepared.tokens.ids, key=len)
        some = ids[COUNTED // 2 :: COUNTED]
        once, _ = flops(
            lambda some=some, prepared=prepared: peers.transformer_lens(
                lens.model, some, prepared.vocab, 12, torch.zeros(lens.d_model), 1
            )
        )
        cells = made.table()
        loop = once * sum(map(len, ids)) / sum(map(len, some)) * len(cells)
        rho, run = made.quality["rho"].median(), (cells["items"] > 0).sum()
        row = np.array([len(roles), len(questions), len(cells), run, seconds / 60, spent, loop])
        total += row
        print(costs(domain, row, f"{rho:.2f}"), flush=True)
    if len(domains) > 1:
        print(costs("all", total, ""), flush=True)


def costs(name: str, row: Any, rho: str) -> str:
    """A line of the table."""
    roles, questions, cells, run, minutes, spent, loop = row
    return (
        f"| {name} | {roles:.0f} | {questions:.0f} | {cells:.0f} | {run:.0f} | {rho} "
        f"| {minutes:.1f} | {spent / loop:.2%} |"
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paper", type=Path, help="a folder with the paper's prompts and split")
    parser.add_argument("--only", default="all,post-instruction,cost")
    parser.add_argument("--domains", default="psychology", help="of the cost; all for every one")
    parser.add_argument("--dtype", help="auto for bfloat16")
    parser.add_argument(
        "--store",
        type=Path,
        help="keeps what is finished, a file a domain; the costs are of what is left to run",
    )
    given = parser.parse_args()
    lens = rl.load("smollm2", dtype=given.dtype)
    if given.paper:
        roles = rl.load_roles(given.paper / "role_prompts")
        base = rl.load_base(given.paper / "base_prompts" / "train.json")[:128]
        task = rl.load_task(given.paper / "mmlu_paper_split")
    else:
        roles, base, task = rl.load_roles(), rl.load_base(), rl.load_task("mini")
    layers = range(int(0.8 * lens.n_layers))
    first = {name: list(prompts)[:64] for name, prompts in roles.items()}
    vectors = rl.role_vectors(lens, first, base, layers=layers)
    only = given.only.split(",")
    if kinds := [kind for kind in KINDS if kind[0] in only]:
        regret(lens, vectors[list(roles)[:N_ROLES]], task.domain("politics"), kinds)
    if "cost" in only:
        domains: dict[str, list[str]] = {}
        for name, prompts in roles.items():
            domains.setdefault(str(prompts.domain), []).append(name)
        chosen = sorted(domains) if given.domains == "all" else given.domains.split(",")
        cost(lens, vectors, task, {name: domains[name] for name in chosen}, given.store)


if __name__ == "__main__":
    main()
