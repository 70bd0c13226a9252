"""Steered answers in batches, beside one prompt at a time in TransformerLens.

``python benchmarks/generation.py --problems FOLDER`` takes a JSONL file of problems; arithmetic
otherwise. The prompts have several lengths.
"""

import argparse
import statistics
from typing import Any

import torch
from measure import timed

import rolelens as rl
from rolelens.tasks import STEPWISE

NEW, SINGLE = 64, 8
"""Tokens of an answer; so many prompts are answered one by one, which stand for all."""


def alone(lens: rl.Lens, prompt: str, hooks: list[Any]) -> str:
    """TransformerLens' own generation of one prompt under hooks."""
    model: Any = lens.model
    ids = torch.tensor([lens.encode([prompt]).ids[0]])
    with model.hooks(fwd_hooks=hooks):
        out = model.generate(
            ids, max_new_tokens=NEW, do_sample=False, verbose=False, return_type="tokens"
        )
    return str(lens.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def main() -> None:
    """Print the ratios, and how many texts are the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", default="arithmetic")
    parser.add_argument("--number", type=int, default=64)
    given = parser.parse_args()
    lens = rl.load("smollm2")
    task = rl.load_task(given.problems, template=STEPWISE)
    problems = task.take(range(min(given.number, len(task))))
    prompts = [problems.prompt(problem) for problem in problems]
    vectors = rl.role_vectors(
        lens, {"lawyer": list(rl.load_roles()["lawyer"])[:32]}, rl.load_base()[:32], layers=[12]
    )
    hooks = rl.add(vectors["lawyer"].at(12, -1), 1.0)
    lens.generate(prompts[:2], hooks=hooks, max_new_tokens=2)
    seconds, texts = timed(lambda: lens.generate(prompts, hooks=hooks, max_new_tokens=NEW))
    some = range(0, len(prompts), max(1, len(prompts) // SINGLE))
    each, same = [], 0
    for n in some:
        one, text = timed(lambda n=n: alone(lens, prompts[n], hooks))
        each.append(one)
        same += text == texts[n]
    whole = statistics.mean(each) * len(prompts)
    print("| prompts | one by one (s) | rolelens (s) | ratio | same text |\n" + "|---" * 5 + "|")
    print(
        f"| {len(prompts)} of {problems.name}, {NEW} new tokens | {whole:.0f} | {seconds:.0f} | "
        f"{whole / seconds:.1f}x | {same} of {len(each)} |"
    )


if __name__ == "__main__":
    main()
