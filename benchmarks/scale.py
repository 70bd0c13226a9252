"""What runs of the paper's grid would take on many workers, simulated from measured costs.

The simulation cuts the run into the pieces and shards that rolelens would, and lets workers, the
driver and its store act on them in order of time. It computes no scores.
"""

import argparse
import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
from measure import table

from rolelens.sweeps.engine import KEPT_BYTES, PIECE_BATCHES
from rolelens.sweeps.halving import ends_of, entrants
from rolelens.sweeps.runners.pool import AHEAD
from rolelens.sweeps.runners.shards import cut

DOMAINS = {  # the paper's roles, and its questions, by domain
    "econ": (3, 492),
    "eecs": (5, 247),
    "law": (2, 200),
    "math": (3, 287),
    "medicine": (5, 241),
    "natural_science": (6, 590),
    "politics": (4, 200),
    "psychology": (1, 200),
}
ALPHAS, POSITIONS, TOKENS, TEMPLATE = 2, 5, 130, 30
"""Of the grid; tokens of a question, and those that all begin with."""
SCREENED, BACKWARD = 128, 3.0
"""Items of each domain that a search screens; a screen in forward passes."""


@dataclass(frozen=True)
class Model:
    """A model, and the worker that it runs on.

    Attributes:
        name: what it is.
        parameters: how many.
        layers: how many.
        width: of the residual stream.
        gpus: of a worker; layers run one after the other, so that it is as fast as one of them.
    """

    name: str
    parameters: float
    layers: int
    width: int
    gpus: int

    @property
    def live(self) -> range:
        """Layers whose cells are scored: the first 80 %, without layer 0."""
        return range(1, int(0.8 * self.layers))


@dataclass(frozen=True)
class Costs:
    """What things take.

    Attributes:
        rate: operations a second, of a worker.
        start: seconds until Python and torch are there.
        read: bytes a second that a worker loads.
        piece: seconds of the driver for a piece, its transaction included.
        row: seconds of the driver for a row of the store.
        budget: tokens of one batch.
    """

    rate: float
    start: float
    read: float
    piece: float
    row: float
    budget: int = 16384


@dataclass(frozen=True)
class Round:
    """Pieces that are there at once; the next round waits for all of them.

    Attributes:
        costs: of each, in tokens through all blocks.
        again: what its shard runs beside, in the same unit.
        groups: of which items it is.
        rows: that it writes.
    """

    costs: list[float]
    again: list[float]
    groups: list[int]
    rows: list[int]


MODELS = [Model("8 B", 8e9, 32, 4096, 1), Model("70 B", 70e9, 80, 8192, 2)]


def scored(model: Model, costs: Costs, asked: Sequence[tuple[Sequence[int], int]]) -> Round:
    """A round: for each domain, how many cells there are at each layer, and on how many items."""
    kept = 2 * len(model.live) * model.width
    out = Round([], [], [], [])
    group = 0
    for cells, items in asked:
        together = max(1, KEPT_BYTES // kept // TOKENS)
        for begin in range(0, items, together):
            n = min(together, items - begin)
            tokens = n * (TOKENS - TEMPLATE) + TEMPLATE
            fitting = KEPT_BYTES // 2 // (TEMPLATE * kept)
            size = max(1, min(PIECE_BATCHES * costs.budget // tokens, fitting))
            for layer, many in zip(model.live, cells, strict=True):
                for first in range(0, many, size):
                    of_piece = min(size, many - first)
                    out.costs.append(tokens * of_piece * (1 - layer / model.layers))
                    out.again.append(float(tokens))
                    out.groups.append(group)
                    out.rows.append(of_piece * n)
            group += 1
    return out


def sweeping(model: Model, costs: Costs) -> list[Round]:
    """Every cell on every question of its role's domain."""
    asked = [
        ([roles * ALPHAS * POSITIONS] * len(model.live), items) for roles, items in DOMAINS.values()
    ]
    return [scored(model, costs, asked)]


def searching(model: Model, costs: Costs) -> list[Round]:
    """The unsteered model, the screen, the first round and the halvings of all domains."""
    everything = sum(items for _, items in DOMAINS.values())
    unsteered = Round([], [], [], [])
    for begin in range(0, everything, 20):
        unsteered.costs.append(20.0 * TOKENS)
        unsteered.again.append(0.0)
        unsteered.groups.append(begin)
        unsteered.rows.append(20)
    batches = [
        min(costs.budget // TOKENS, SCREENED - begin)
        for _ in DOMAINS
        for begin in range(0, SCREENED, costs.budget // TOKENS)
    ]
    passes = [BACKWARD * n * TOKENS for n in batches]
    nothing = [0] * len(batches)
    rounds = [unsteered, Round(passes, [0.0] * len(batches), list(range(len(batches))), nothing)]
    per_name = len(model.live) * ALPHAS * POSITIONS
    alive = {domain: entrants(per_name)[0] * roles for domain, (roles, _) in DOMAINS.items()}
    for turn in range(4):
        asked = []
        for domain, (_, items) in DOMAINS.items():
            ends = ends_of(items)
            if turn < len(ends):
                if turn:
                    alive[domain] -= alive[domain] // 2
                begin = ends[turn - 1] if turn else 0
                asked.append((_spread(alive[domain], len(model.live)), ends[turn] - begin))
        if asked:
            rounds.append(scored(model, costs, asked))
    return rounds


def _spread(cells: int, layers: int) -> list[int]:
    """Cells of each layer, as evenly as can be."""
    return [cells // layers + (n < cells % layers) for n in range(layers)]


def simulated(model: Model, costs: Costs, rounds: Sequence[Round], workers: int) -> float:
    """Seconds until the last piece is kept."""
    loaded = costs.start + 2 * model.parameters / costs.read
    seconds = 2 * model.parameters / costs.rate  # of a token through all blocks
    clock, free = 0.0, [loaded] * workers
    for asked in rounds:
        waiting = deque(
            deque(
                (asked.costs[n], asked.again[n] if k == 0 else 0.0, asked.rows[n])
                for k, n in enumerate(shard)
            )
            for shard in cut(asked.costs, asked.again, asked.groups, workers)
        )
        mine: list[deque[tuple[float, float, int]]] = [deque() for _ in range(workers)]
        queued = [0] * workers
        events: list[tuple[float, int, int]] = []

        def feed(worker: int, now: float) -> None:
            while queued[worker] < AHEAD:  # noqa: B023
                if not mine[worker]:  # noqa: B023
                    if not waiting:  # noqa: B023
                        return
                    mine[worker] = waiting.popleft()  # noqa: B023
                cost, again, rows = mine[worker].popleft()  # noqa: B023
                free[worker] = max(free[worker], now) + (cost + again) * seconds
                queued[worker] += 1  # noqa: B023
                heapq.heappush(events, (free[worker], worker, rows))  # noqa: B023

        for worker in range(workers):
            feed(worker, clock)
        while events:
            told, worker, rows = heapq.heappop(events)
            clock = max(clock, told)
            queued[worker] -= 1
            feed(worker, clock)
            clock += costs.piece + rows * costs.row
    return clock


def main() -> None:
    """Print a table for each model and kind of run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tflops", type=float, default=400.0, help="of a worker")
    parser.add_argument("--start", type=float, default=12.0, help="seconds of Python and torch")
    parser.add_argument("--read", type=float, default=2.0, help="GB a second that are loaded")
    parser.add_argument("--piece", type=float, default=8.0, help="ms of the driver a piece")
    parser.add_argument("--rows", type=float, default=150_000, help="written a second")
    parser.add_argument("--most", type=int, nargs="+", default=[1, 8, 64, 512], help="workers")
    given = parser.parse_args()
    costs = Costs(
        given.tflops * 1e12, given.start, given.read * 1e9, given.piece / 1e3, 1 / given.rows
    )
    for model in MODELS:
        of_model = replace(costs, read=costs.read)
        for name, plan in (("sweep", sweeping), ("search", searching)):
            rounds = plan(model, of_model)
            n = sum(len(asked.costs) for asked in rounds)
            rows = sum(sum(asked.rows) for asked in rounds)
            alone = simulated(model, of_model, rounds, 1)
            endless = replace(of_model, piece=0.0, row=0.0)
            ready = replace(of_model, start=0.0, read=1e18)
            print(
                f"\n{model.name}, {name}: {n} pieces, {rows} rows, {model.gpus} GPU(s) a worker\n"
            )
            lines = []
            for workers in given.most:
                took = simulated(model, of_model, rounds, workers)
                loading = took - simulated(model, ready, rounds, workers)
                writing = took - simulated(model, endless, rounds, workers)
                efficiency = alone / took / workers
                lines.append((workers, took / 60, f"{efficiency:.0%}", loading, writing))
            columns = [
                "workers",
                "minutes",
                "efficiency",
                "s less if loaded",
                "s less if unwritten",
            ]
            table(pd.DataFrame(lines, columns=columns), 1)


if __name__ == "__main__":
    main()
