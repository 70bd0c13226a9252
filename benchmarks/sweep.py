"""The sweep beside a loop over cells: the same numbers first, then how long each takes.

Run it as ``make bench`` or ``python benchmarks/sweep.py --mmlu FOLDER`` (MMLU's CSV files; the
questions that come with rolelens otherwise).
"""

import argparse
import statistics
from typing import Any

import peers
import torch
from measure import flops, timed
from torch import Tensor

import rolelens as rl
from rolelens import embedded, forward, tasks
from rolelens.forward import common_prefix

LAYERS = tuple(range(24))
SUBJECT = "high_school_government_and_politics"
QUESTIONS = 64
SIZE = 16
"""Prompts of a peer's batch, when it is well batched."""


class Row:
    """One measurement: a grid, and the loop it is compared with."""

    def __init__(self, name: str, task: Any, tokens: str, positions: list[int], **loading: Any):
        self.name, self.tokens, self.positions = name, tokens, positions
        self.plain = rl.load("smollm2")
        self.lens = rl.load("smollm2", **loading) if loading else self.plain
        prompts, base = rl.load_roles()["lawyer"], rl.load_base()
        self.vectors = rl.role_vectors(
            self.plain, {"lawyer": list(prompts)[:32]}, base[:32], layers=LAYERS
        )
        self.prepared = tasks.prepare(self.plain, task, "letter")
        self.ids = self.prepared.tokens.ids
        self.n_post = len(self.plain.positions) if tokens == "post-instruction" else None

    def ours(self, layers: tuple[int, ...] = LAYERS) -> rl.Sweep:
        """The whole grid."""
        options = {"layers": layers, "positions": self.positions, "tokens": self.tokens}
        return rl.sweep(self.lens, self.vectors, self.prepared.task, **options)

    def loop(self, layer: int, position: int, alpha: float, size: int = SIZE) -> Tensor:
        """One cell of the loop, in float32."""
        delta = alpha * self.vectors["lawyer"].at(layer, position).vector
        letters = self.prepared.vocab
        model = self.plain.model
        return peers.transformer_lens(model, self.ids, letters, layer, delta, size, self.n_post)

    def bound(self) -> float:
        """Share of the loop's operations that are left when nothing shared is run twice.

        Weights times tokens, without padding and attention scores.
        """
        cfg = self.plain.model.cfg
        block = sum(p.numel() for p in self.plain.model.blocks[0].parameters())
        whole = sum(map(len, self.ids)) * (cfg.n_layers * block + cfg.d_vocab * cfg.d_model)
        prefix = common_prefix(self.ids)
        once = sum(len(ids) - prefix for ids in self.ids) + prefix  # unsteered
        each = len(self.ids) * self.n_post if self.n_post else once
        cells = len(LAYERS) * len(self.positions) * 2
        left = sum(each * (cfg.n_layers - layer) * block for layer in LAYERS[1:])
        left = left * len(self.positions) * 2 + once * cfg.n_layers * block
        return whole * cells / left

    def flops(self) -> float:
        """Operations of the whole grid: they are linear in the layer, so two layers are counted."""
        model, tokens, vocab = self.lens.model, self.prepared.tokens, self.prepared.vocab
        total, made = flops(
            lambda: forward.cells(model, tokens, LAYERS[1:], [self.tokens], vocab=vocab)
        )

        def edit(layer: int) -> forward.Edit:
            steering = rl.add(self.vectors["lawyer"].at(layer), tokens=self.tokens)
            return forward.Edit([steering.operations])

        low, high = (flops(lambda layer=layer: made.steered(edit(layer)))[0] for layer in (3, 21))
        per_layer = [high + (low - high) * (21 - layer) / 18 for layer in LAYERS[1:]]
        return total + sum(per_layer) * len(self.positions) * 2

    def measure(self, tolerance: float | None = 1e-3, checks: int = 3, counted: bool = True) -> str:
        """Check, time, count; a line of the table."""
        seconds, swept = timed(self.ours)
        cells = len(LAYERS) * len(self.positions) * 2
        checked = [(12, self.positions[0], 3.0), (3, self.positions[-1], 1.0), (21, -1, 3.0)]
        each, worst, same = [], 0.0, 0
        for key in checked[:checks]:
            one, expected = timed(lambda key=key: self.loop(*key))
            label = dict(zip(("layer", "position", "alpha"), key, strict=True))
            logprobs = swept.logprobs(name="lawyer", **label)
            worst = max(worst, float((logprobs - expected).abs().max()))
            same += int((logprobs.argmax(-1) == expected.argmax(-1)).sum())
            each.append(one)
        if tolerance is not None and worst > tolerance:
            raise SystemExit(f"{self.name}: the two differ by {worst:.1e}; no ratio is given.")
        slow = statistics.median(each) * cells
        agree = same / (checks * len(self.ids))
        ratio = "-"
        if counted:
            ratio = f"{cells * flops(lambda: self.loop(12, -1, 1.0))[0] / self.flops():.1f}x"
        return (
            f"| {self.name} | {cells} | {worst:.0e} | {agree:.1%} | {slow:.0f} | {seconds:.0f} | "
            f"{slow / seconds:.1f}x | {ratio} | {self.bound():.1f}x |"
        )


def mixed(lens: rl.Lens, task: Any) -> str:
    """Operations of steerings that act on three layers each, beside the same hooks cell by cell."""
    names = ("lawyer", "nurse")
    prompts = {name: list(rl.load_roles()[name])[:16] for name in names}
    vectors = rl.role_vectors(lens, prompts, rl.load_base()[:16], layers=LAYERS)
    steerings = []
    for layer in (6, 12, 18):
        d, e = (vectors[name].at(layer, -1) for name in names)
        three = [layer, layer + 1, layer + 2]
        steerings += [
            rl.add(d, 1.0, layers=three) + rl.ablate(e, lens, layers=three),
            rl.ablate(d, lens, layers=three),
            rl.add(d, 3.0, layers=three, tokens="post-instruction"),
        ]
    prepared = tasks.prepare(lens, task, "letter")
    letters, model = prepared.vocab, lens.model

    def loop(steering: Any) -> Tensor:
        def run(rows: list[int], padded: Tensor) -> Tensor:
            lengths = torch.tensor([len(prepared.tokens.ids[i]) for i in rows])
            batch = forward.Batch(torch.tensor(rows), padded, lengths, lengths, len(lens.positions))
            with forward.told(batch, torch.arange(padded.shape[1])):
                logits: Tensor = model.run_with_hooks(padded, fwd_hooks=list(steering))
            return logits

        return peers.scored(prepared.tokens.ids, letters, SIZE, run)

    whole, expected = flops(lambda: [loop(steering) for steering in steerings])
    shared, swept = flops(lambda: rl.sweep(lens, steerings, task, method="letter"))
    worst = max(
        float((swept.logprobs(s) - one).abs().max())
        for s, one in zip(steerings, expected, strict=True)
    )
    if worst > 1e-3:
        raise SystemExit(f"the two differ by {worst:.1e}; no ratio is given.")
    ratio = f"{worst:.0e} nats apart, FLOP ratio {whole / shared:.1f}x"
    return f"{len(steerings)} steerings of three layers each: {ratio}"


def first_written(row: Row) -> list[str]:
    """Seconds a cell of every peer, in float32, beside ours."""
    from transformers import AutoModelForCausalLM

    seconds, _ = timed(lambda: row.ours((12,)))
    model = AutoModelForCausalLM.from_pretrained(embedded.folder()).eval()
    delta = row.vectors["lawyer"].at(12, -1).vector
    letters, lines = row.prepared.vocab, []
    expected = row.loop(12, -1, 1.0)
    for name, run in {
        "run_with_hooks": lambda size: row.loop(12, -1, 1.0, size),
        "steering-vectors 0.12.2": lambda size: peers.steering_vectors(
            model, row.ids, letters, 12, delta, size
        ),
    }.items():
        for kind, size in (("as first written", 1), ("well batched", SIZE)):
            try:
                one, logprobs = timed(lambda run=run, size=size: run(size))
            except ImportError:
                lines.append(f"| {name}, {kind} | not installed | |")
                continue
            if (logprobs - expected).abs().max() > 1e-3:
                raise SystemExit(f"{name} gives other numbers; no ratio is given.")
            lines.append(f"| {name}, {kind} | {one:.1f} | {2 * one / seconds:.1f}x |")
    return lines


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mmlu", help="a folder of MMLU CSV files (dev and test)")
    parser.add_argument("--only", default="zero,bf16,post,shots,list,peers")
    given = parser.parse_args()
    only = given.only.split(",")

    def task(shots: int = 0) -> Any:
        if given.mmlu is None:
            return list(rl.load_task("mini"))[:QUESTIONS]
        return list(rl.load_task(given.mmlu, subjects=SUBJECT, shots=shots))[:QUESTIONS]

    head = "| grid | cells | max abs. difference (nats) | same answer | loop (s) | rolelens (s) |"
    print(head + " ratio | FLOP ratio | FLOP bound |\n|---|---|---|---|---|---|---|---|---|")
    if "zero" in only:
        print(Row("zero-shot, all tokens", task(), "all", [-1]).measure(), flush=True)
    if "bf16" in only:
        row = Row("the same in bfloat16", task(), "all", [-1], dtype=torch.bfloat16)
        print(row.measure(None, counted=False), flush=True)
    if "post" in only:
        positions = [-6, -5, -4, -3, -2, -1]
        print(Row("post-instruction", task(), "post-instruction", positions).measure(), flush=True)
    if "shots" in only and given.mmlu:
        print(
            Row("5-shot, all tokens", task(5), "all", [-1]).measure(checks=1, counted=False),
            flush=True,
        )
    if "list" in only:
        print("\n" + mixed(rl.load("smollm2"), task()[:16]), flush=True)
    if "peers" in only:
        print("\n| peer, one cell at layer 12 | seconds | ratio |\n|---|---|---|")
        print("\n".join(first_written(Row("peers", task(), "all", [-1]))), flush=True)


if __name__ == "__main__":
    main()
