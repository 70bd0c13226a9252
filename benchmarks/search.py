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
KINDS = (("all", "letter", 32), ("post-instruction", "letter", 128))
COSTED = ("psychology",)
COUNTED = 8
"""One question in so many is counted for the loop; its operations go with the tokens."""


def regret(lens: rl.Lens, vectors: rl.RoleVectors, bench: Any, only: list[str]) -> None:
    """Run a grid whole and by search; a line of the table for each way of scoring."""
    print(
        "| tokens | method | questions | cells | run | of their questions | regret (nats) |", end=""
    )
    print(" of best - median | of a random cell's regret | rho |\n" + "|---" * 10 + "|", flush=True)
    for tokens, method, n in (kind for kind in KINDS if kind[0] in only):
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


def cost(lens: rl.Lens, vectors: rl.RoleVectors, bench: Any, domains: dict[str, str]) -> None:
    """The paper's whole grid for the roles of a domain, on its questions."""
    print("\n| domain | roles | questions | cells | run exactly | seconds | FLOPs, of a loop |")
    print("|---" * 7 + "|", flush=True)
    for domain in COSTED:
        roles = [role for role in vectors.roles if domains[role] == domain]
        own = bench.domain(domain)
        made: list[Any] = []
        seconds, spent = timed(
            lambda roles=roles, own=own, made=made: flops(
                lambda: made.append(rl.search(lens, vectors[roles], own))
            )
        )
        prepared = scoring.prepare(lens, own, "letter")
        ids = sorted(prepared.tokens.ids, key=len)
        some = ids[COUNTED // 2 :: COUNTED]
        loop = flops(
            lambda some=some, prepared=prepared: peers.transformer_lens(
                lens.model, some, prepared.letters, 12, torch.zeros(lens.d_model), 1
            )
        )
        cells = len(made[0].grid.keys)
        loop *= sum(map(len, ids)) / sum(map(len, some)) * cells
        run = int((made[0].table["questions"] > 0).sum())
        print(
            f"| {domain} | {len(roles)} | {len(own)} | {cells} | {run} | {seconds:.0f} "
            f"| {spent / loop:.2%} |",
            flush=True,
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paper", type=Path, help="a folder with the paper's prompts and split")
    parser.add_argument("--only", default="all,post-instruction,cost")
    given = parser.parse_args()
    lens = rl.load("smollm2")
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
    regret(lens, vectors[list(roles)[:N_ROLES]], bench.domain("politics"), only)
    if "cost" in only:
        cost(lens, vectors, bench, {name: str(prompts.domain) for name, prompts in roles.items()})


if __name__ == "__main__":
    main()
