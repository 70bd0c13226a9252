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
from rolelens import scoring

N_ROLES = 10
SUBGRID: dict[str, Any] = {"layers": [4, 8, 12, 16], "positions": [-5, -3, -1]}
KINDS: Any = (("all", "letter", 32), ("post-instruction", "letter", 128))
COSTED = "psychology"
COUNTED = 8
"""One question in so many is counted for the loop; its operations go with the tokens."""


def regret(
    lens: rl.Lens, vectors: rl.RoleVectors, bench: Any, kinds: list[tuple[str, str, int]]
) -> None:
    """Run a grid whole and by search; a line of the table for each way of scoring."""
    print(
        "| tokens | method | questions | cells | run | of their questions | regret (nats) |", end=""
    )
    print(" of best - median | of a random cell's regret | rho |\n" + "|---" * 10 + "|", flush=True)
    for tokens, method, n in kinds:
        questions = list(bench)[:n]
        options = {**SUBGRID, "tokens": tokens, "method": method}
        swept = rl.sweep(lens, vectors, questions, **options)
        search = rl.search(lens, vectors, questions, **options)
        lost, spread, drawn = [], [], []
        for role, cells in swept.table().groupby("role"):
            best = search.best(str(role))
            key = (str(role), best.direction.layer, best.direction.position, best.alpha)
            top = cells["margin"].max()
            lost.append(top - swept.cell(*key).margin)
            spread.append(top - cells["margin"].median())
            drawn.append(top - cells["margin"].mean())
        run = int((search.table["questions"] > 0).sum())
        asked = search.table["questions"].sum() / (len(search.table) * n)
        print(
            f"| {tokens} | {method} | {n} | {len(swept.grid.keys)} | {run} | {asked:.0%} "
            f"| {np.mean(lost):.4f} "
            f"| {np.mean(lost) / np.mean(spread):.1%} | {np.mean(lost) / np.mean(drawn):.1%} "
            f"| {search.quality['rho'].median():.2f} |",
            flush=True,
        )


def cost(
    lens: rl.Lens, vectors: rl.RoleVectors, bench: Any, domains: dict[str, str], store: Path | None
) -> None:
    """The paper's whole grid for some roles, each on the questions of its domain."""
    made: list[rl.Search] = []
    seconds, spent = timed(
        lambda: flops(
            lambda: made.append(rl.search(lens, vectors, bench, domains=domains, store=store))
        )
    )
    found, loop = made[0], 0.0
    for domain in sorted({domains[role] for role in vectors.roles}):
        prepared = scoring.prepare(lens, bench.domain(domain), "letter")
        ids = sorted(prepared.tokens.ids, key=len)
        some = ids[COUNTED // 2 :: COUNTED]
        once = flops(
            lambda some=some, prepared=prepared: peers.transformer_lens(
                lens.model, some, prepared.letters, 12, torch.zeros(lens.d_model), 1
            )
        )
        cells = sum(domains[key.role] == domain for key in found.grid.keys)
        loop += once * sum(map(len, ids)) / sum(map(len, some)) * cells
    run = int((found.table["questions"] > 0).sum())
    print("\n| roles | cells | run exactly | rho, median | minutes | FLOPs, of a loop |")
    print("|---" * 6 + "|")
    print(
        f"| {len(vectors.roles)} | {len(found.grid.keys)} | {run} "
        f"| {found.quality['rho'].median():.2f} | {seconds / 60:.0f} | {spent / loop:.2%} |",
        flush=True,
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paper", type=Path, help="a folder with the paper's prompts and split")
    parser.add_argument("--only", default="all,post-instruction,cost", help="grid: all 29 roles")
    parser.add_argument("--dtype", help="auto for bfloat16")
    parser.add_argument("--store", type=Path, help="keeps what the grid's search has finished")
    given = parser.parse_args()
    lens = rl.load("smollm2", dtype=given.dtype)
    if given.paper:
        roles = rl.load_roles(given.paper / "role_prompts")
        base = rl.load_base(given.paper / "base_prompts" / "train.json")[:128]
        bench = rl.load_benchmark(given.paper / "mmlu_paper_split")
    else:
        roles, base, bench = rl.load_roles(), rl.load_base(), rl.load_benchmark("mini")
    layers = range(int(0.8 * lens.n_layers))
    own = {name: list(prompts)[:64] for name, prompts in roles.items()}
    vectors = rl.role_vectors(lens, own, base, layers=layers)
    only = given.only.split(",")
    if kinds := [kind for kind in KINDS if kind[0] in only]:
        regret(lens, vectors[list(roles)[:N_ROLES]], bench.domain("politics"), kinds)
    domains = {name: str(prompts.domain) for name, prompts in roles.items()}
    if "cost" in only:
        some = [role for role in vectors.roles if domains[role] == COSTED]
        cost(lens, vectors[some], bench, domains, None)
    if "grid" in only:
        cost(lens, vectors, bench, domains, given.store)


if __name__ == "__main__":
    main()
