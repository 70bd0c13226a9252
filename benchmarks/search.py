"""The search beside the exhaustive sweep: operations, and how much worse its cells are."""

import argparse
import time
from typing import Any

import numpy as np
from torch.utils.flop_counter import FlopCounterMode

import rolelens as rl

N_ROLES, N_QUESTIONS = 10, 32
GRID: dict[str, Any] = {
    "layers": [4, 8, 12, 16, 20],
    "positions": [-5, -3, -2, -1],
    "alphas": (1.0, 3.0),
    "tokens": "post-instruction",
}


def counted(run: Any) -> tuple[float, float, Any]:
    """Operations of matrix products, seconds, result."""
    start = time.perf_counter()
    with FlopCounterMode(display=False) as counter:
        out = run()
    return float(counter.get_total_flops()), time.perf_counter() - start, out


def main() -> None:
    """Print the regret of the search, by margin, on a grid small enough to run whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mmlu", help="a folder of MMLU CSV files")
    given = parser.parse_args()
    lens, every, base = rl.load("smollm2"), rl.load_roles(), rl.load_base()
    roles = {name: list(every[name])[:32] for name in list(every)[:N_ROLES]}
    vectors = rl.role_vectors(lens, roles, base[:32], layers=GRID["layers"])
    if given.mmlu:
        bench = rl.load_benchmark(given.mmlu, subjects="high_school_government_and_politics")
    else:
        bench = rl.load_benchmark("mini")
    questions = list(bench)[:N_QUESTIONS]
    cost, seconds, swept = counted(lambda: rl.sweep(lens, vectors, questions, **GRID))
    own, less, search = counted(lambda: rl.search(lens, vectors, questions, **GRID))
    table = swept.table()
    regret, spread, drawn = [], [], []
    for role, cells in table.groupby("role"):
        best = search.best(role)
        key = (role, best.direction.layer, best.direction.position, best.alpha)
        regret.append(cells["margin"].max() - swept.cell(*key).margin)
        spread.append(cells["margin"].max() - cells["margin"].median())
        drawn.append(cells["margin"].max() - cells["margin"].mean())
    run = int((search.table["questions"] > 0).sum())
    print(
        f"{len(table)} cells of {N_ROLES} roles on {N_QUESTIONS} questions; the search ran {run} "
        f"exactly: {own / cost:.0%} of the operations, {less / seconds:.0%} of the time.\n"
        f"rank correlation of the screen: {search.quality['rho'].median():.2f} (median)\n"
        f"margin regret {np.mean(regret):.4f} nats: {np.mean(regret) / np.mean(spread):.1%} of "
        f"(best - median), {np.mean(regret) / np.mean(drawn):.1%} of a random cell's regret "
        f"({np.mean(drawn):.4f})"
    )


if __name__ == "__main__":
    main()
