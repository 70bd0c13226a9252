"""Reading many directions at once, beside one by one.

One by one is plain Hugging Face generation under a forward hook, as a notebook has it.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from measure import timed
from transformers import AutoModelForCausalLM, AutoTokenizer

import rolelens as rl
from rolelens import embedded
from rolelens.patchscoping import Addition, TokenIdentity

NEW, EVERY = 20, 29
"""Tokens of an answer; one direction in so many is read one by one, which stands for all."""


def one_by_one(
    model: Any, tokenizer: Any, ids: list[int], direction: rl.Direction, alpha: float | None
) -> str:
    """Add ``alpha`` times the direction at every token, or put it in the last token's place."""

    def hook(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, d = args[0], direction.vector
        if alpha is not None:
            return (x + alpha * d.to(x), *args[1:])
        if x.shape[1] == 1:
            return args
        x = x.clone()
        x[:, -1] = d / d.norm() * x[:, -1].norm()
        return (x, *args[1:])

    handle = model.model.layers[direction.layer].register_forward_pre_hook(hook)
    try:
        out = model.generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False)
    finally:
        handle.remove()
    return str(tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)).strip()


def main() -> None:
    """Print the ratios, and how many texts are the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=Path, help="a file from rolelens extract")
    given = parser.parse_args()
    lens = rl.load("smollm2")
    if given.vectors:
        vectors = rl.Directions.load(given.vectors)
    else:
        vectors = rl.role_vectors(lens, rl.load_roles(), rl.load_base())
    layers = [layer for layer in vectors.layers if 0 < layer <= 24]
    directions = [vectors[role].at(layer) for role in vectors.names for layer in layers]
    model = AutoModelForCausalLM.from_pretrained(embedded.folder()).eval()
    tokenizer = AutoTokenizer.from_pretrained(embedded.folder())
    readers: tuple[tuple[str, Addition | TokenIdentity, float | None], ...] = (
        ("token identity", TokenIdentity(max_new_tokens=NEW), None),
        ("addition", Addition(max_new_tokens=NEW), 3.0),
    )
    print("| reader | directions | one by one (s) | rolelens (s) | ratio | same text |")
    print("|---" * 6 + "|", flush=True)
    for name, reader, alpha in readers:
        tokens = lens.encode([reader.prompt], raw=alpha is None)
        seconds, readings = timed(lambda reader=reader: rl.patchscope(lens, directions, reader))
        spent, same, some = 0.0, 0, range(0, len(directions), EVERY)
        for n in some:
            one, text = timed(
                lambda n=n, ids=tokens.ids[0], alpha=alpha: one_by_one(
                    model, tokenizer, ids, directions[n], alpha
                )
            )
            spent += one
            same += text == readings[n].text.strip()
        whole = spent / len(some) * len(directions)
        print(
            f"| {name} | {len(directions)} | {whole:.0f} | {seconds:.0f} | {whole / seconds:.1f}x "
            f"| {same} of {len(some)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
