"""What rolelens is measured against, as a user writes it first and well batched."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def batches(ids: Sequence[Sequence[int]], size: int) -> list[tuple[list[int], Tensor]]:
    """Prompts by length, right-padded; in the order they came where one runs at a time."""
    order = sorted(range(len(ids)), key=lambda i: len(ids[i])) if size > 1 else range(len(ids))
    out = []
    for n in range(0, len(ids), size):
        rows = list(order)[n : n + size]
        padded = torch.zeros(len(rows), max(len(ids[i]) for i in rows), dtype=torch.long)
        for row, i in enumerate(rows):
            padded[row, : len(ids[i])] = torch.tensor(ids[i])
        out.append((rows, padded))
    return out


def scored(
    ids: Sequence[Sequence[int]],
    letters: Sequence[int],
    size: int,
    run: Callable[[list[int], Tensor], Tensor],
) -> Tensor:
    """Log-probabilities of the letters at the end of each prompt, from the logits of batches."""
    out = torch.empty(len(ids), len(letters))
    for rows, padded in batches(ids, size):
        with torch.no_grad():
            logits = run(rows, padded)
        for row, i in enumerate(rows):
            out[i] = logits[row, len(ids[i]) - 1, list(letters)].float().log_softmax(-1)
    return out


def transformer_lens(
    model: Any,
    ids: Sequence[Sequence[int]],
    letters: Sequence[int],
    layer: int,
    delta: Tensor,
    size: int,
    n_post: int | None = None,
) -> Tensor:
    """Log-probabilities of the letters under steering, by ``run_with_hooks``."""

    def run(rows: list[int], padded: Tensor) -> Tensor:
        lengths = torch.tensor([len(ids[i]) for i in rows])[:, None]
        at = torch.arange(padded.shape[1])
        steered = (at < lengths) & (at >= (lengths - n_post if n_post else 0))

        def add(x: Tensor, hook: Any) -> Tensor:
            return x + steered[..., None].to(x) * delta.to(x)

        logits: Tensor = model.run_with_hooks(
            padded, fwd_hooks=[(f"blocks.{layer}.hook_resid_pre", add)]
        )
        return logits

    return scored(ids, letters, size, run)


def steering_vectors(
    model: Any,
    ids: Sequence[Sequence[int]],
    letters: Sequence[int],
    layer: int,
    delta: Tensor,
    size: int,
) -> Tensor:
    """The same with the steering-vectors library, whose layer is the block before."""
    from steering_vectors import SteeringVector

    def run(rows: list[int], padded: Tensor) -> Tensor:
        logits: Tensor = model(padded, use_cache=False).logits
        return logits

    with SteeringVector({layer - 1: delta.to(model.dtype)}).apply(model):
        return scored(ids, letters, size, run)
