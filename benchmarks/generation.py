"""Steered answers in batches, beside batched Hugging Face ``generate`` under forward hooks.

``python benchmarks/generation.py --problems FOLDER`` takes a JSONL file of problems; arithmetic
otherwise. The prompts have several lengths.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from measure import timed
from torch import Tensor

import rolelens as rl
from rolelens import embedded
from rolelens.tasks import STEPWISE

NEW, CELLS = 64, 24
"""Tokens of an answer; cells of a generation task."""


@contextmanager
def added(model: Any, layer: int, delta: Tensor) -> Iterator[None]:
    """A plain forward hook: x + delta where a block begins."""
    block = model.model.layers[layer]
    handle = block.register_forward_pre_hook(lambda _, args: (args[0] + delta, *args[1:]))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def ablated(model: Any, unit: Tensor) -> Iterator[None]:
    """Plain forward hooks: x - d̂ (d̂ᵀ x) at block inputs, attention and MLP outputs."""

    def removed(x: Tensor) -> Tensor:
        return x - (x @ unit)[..., None] * unit

    handles = []
    for block in model.model.layers:
        handles += [
            block.register_forward_pre_hook(lambda _, args: (removed(args[0]), *args[1:])),
            block.self_attn.register_forward_hook(lambda *a: (removed(a[2][0]), *a[2][1:])),
            block.mlp.register_forward_hook(lambda *a: removed(a[2])),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def transformers_generate(model: Any, tokenizer: Any, ids: Any, **options: Any) -> list[str]:
    """Batched ``generate`` as a user writes it: padded on the left, with a mask."""
    width = max(map(len, ids))
    padded = torch.full((len(ids), width), tokenizer.pad_token_id or 0)
    mask = torch.zeros_like(padded)
    for row, prompt in enumerate(ids):
        padded[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    options = {"do_sample": False, "max_new_tokens": NEW, "use_cache": True} | options
    with torch.no_grad():
        padded, mask = padded.to(model.device), mask.to(model.device)
        out = model.generate(padded, attention_mask=mask, **options)
    return [t.strip() for t in tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)]


def compared(
    name: str, theirs: Callable[[], list[str]], ours: Callable[[], list[str]], times: int
) -> None:
    """A line of the table: both in turn, so that a busy machine slows both."""
    pairs, same, number = [], 0, 0
    for _ in range(times):
        slow, expected = timed(theirs)
        fast, texts = timed(ours)
        pairs.append((slow, fast))
        number = len(texts)
        same = sum(a == b for a, b in zip(expected, texts, strict=True))
    ratio = statistics.median(slow / fast for slow, fast in pairs)
    slow, fast = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"| {name} | {slow:.1f} | {fast:.1f} | {ratio:.2f}x | {same} of {number} |", flush=True)


def main() -> None:
    """Print the ratios, and how many texts are the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", default="arithmetic")
    parser.add_argument("--number", type=int, default=64)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--only", default="add,ablate,sample,cells")
    given = parser.parse_args()
    only = given.only.split(",")
    from transformers import AutoModelForCausalLM

    lens = rl.load("smollm2")
    plain = AutoModelForCausalLM.from_pretrained(embedded.folder()).eval()
    task = rl.load_task(given.problems, template=STEPWISE)
    problems = task.take(range(min(given.number, len(task))))
    prompts = [problems.prompt(problem) for problem in problems]
    ids = lens.encode(prompts).ids
    some = list(rl.load_roles()["lawyer"])[:32]
    vectors = rl.role_vectors(lens, {"lawyer": some}, rl.load_base()[:32], layers=[8, 12, 16, 20])
    d = vectors["lawyer"].at(12, -1)
    unit = d.vector / d.norm

    def answers(hooks: Any, **options: Any) -> list[str]:
        return lens.generate(prompts, hooks=hooks, max_new_tokens=NEW, **options)

    def peer(**options: Any) -> list[str]:
        return transformers_generate(plain, lens.tokenizer, ids, **options)

    def steered_peer() -> list[str]:
        with added(plain, 12, d.vector):
            return peer()

    def ablated_peer() -> list[str]:
        with ablated(plain, unit):
            return peer()

    lens.generate(prompts[:2], max_new_tokens=2)
    steering = rl.add(d, 1.0)
    print("| 64 new tokens | peer (s) | rolelens (s) | ratio | same text |\n" + "|---" * 5 + "|")
    if "add" in only:
        compared("addition at one layer", steered_peer, lambda: answers(steering), given.times)
    if "ablate" in only:
        ablation = rl.ablate(d, lens)
        compared("ablation everywhere", ablated_peer, lambda: answers(ablation), given.times)
    if "sample" in only:
        name = "sampled (rolelens), beside greedy (rolelens)"
        sampled = {"temperature": 1.0, "top_p": 0.95}
        compared(name, lambda: answers(steering), lambda: answers(steering, **sampled), given.times)
    if "cells" in only:
        few = problems.take(range(8))
        grid = {"positions": [-1], "alphas": [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]}
        alone = [few.prompt(problem) for problem in few]

        def one_by_one() -> list[str]:
            every = []
            for layer in vectors.layers:
                for alpha in grid["alphas"]:
                    hooks = rl.add(vectors["lawyer"].at(layer, -1), alpha)
                    every += lens.generate(alone, hooks=hooks, max_new_tokens=NEW)
            return every

        def swept() -> list[str]:
            result = rl.sweep(lens, vectors, few, max_new_tokens=NEW, **grid)
            return [text for cell in result.cells for (text,) in result.cell(cell).texts]

        name = f"{CELLS} cells on 8 problems, beside a generate a cell"
        compared(name, one_by_one, swept, 1)


if __name__ == "__main__":
    main()
