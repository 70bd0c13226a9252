"""What every cell would do, predicted to first order, and what predictions tell of exact scores."""

from collections.abc import Sequence

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from rolelens import forward
from rolelens.errors import InputError
from rolelens.forward import Selection
from rolelens.lens import Lens
from rolelens.scoring import Prepared, also_correct, true_options
from rolelens.sweep.grid import Grid, Key


def screen(
    lens: Lens,
    prepared: Prepared,
    baseline: Float[Tensor, "question option"],
    grid: Grid,
    cells: Sequence[Key],
    tokens: Selection = "all",
) -> Float[Tensor, "cell question"]:
    """Predict what every cell does to the margin of every question.

    The prediction is alpha dᵀ Σ_t ∂margin/∂x_t at the cell's layer: one forward and one backward
    pass a question, however many cells there are.

    Args:
        lens: the model.
        prepared: the questions.
        baseline: option log-probabilities of the unsteered model.
        grid: where the directions are.
        cells: what is predicted.
        tokens: which tokens are steered.

    Returns:
        The predicted change of the margin, in nats.

    Raises:
        InputError: directions are ablated, which is not a small change.
    """
    if grid.change != "add":
        raise InputError("ablation cannot be screened; run every cell with rl.sweep.")
    rows, weights, owners = _contrasts(prepared, baseline)
    layers = sorted({key.layer for key in cells})
    summed = torch.zeros(len(prepared.questions), len(layers), lens.d_model)
    found = forward.gradients(
        lens.model,
        prepared.tokens.take(rows),
        layers,
        tokens,
        vocab=prepared.letters if prepared.method == "letter" else None,
        weights=weights,
    )
    for batch, gradient in found:
        summed.index_add_(0, owners[batch], gradient)
    deltas = torch.stack([grid.direction(key).vector * key.alpha for key in cells])
    at = torch.tensor([layers.index(key.layer) for key in cells])
    predicted = torch.empty(len(cells), len(prepared.questions))
    for n in range(len(layers)):
        own = (at == n).nonzero()[:, 0]
        predicted[own] = einsum(deltas[own], summed[:, n], "cell d, question d -> cell question")
    return predicted


def controlled(
    gains: Float[Tensor, "cell scored"], predicted: Float[Tensor, "cell screened"]
) -> list[float]:
    """Mean gains on all screened questions, estimated from those that were scored.

    The predictions are a control variate: where they go with the exact gains, they tell how far the
    scored questions are from all of them. The first questions of both are the same.
    """
    n = min(gains.shape[1], predicted.shape[1])
    x, y = (
        values[:, :n] - values[:, :n].mean(dim=1, keepdim=True) for values in (predicted, gains)
    )
    slope = (x * y).sum() / x.square().sum().clamp(min=1e-12)
    shift = predicted.mean(dim=1) - predicted[:, :n].mean(dim=1)
    means: list[float] = (gains.mean(dim=1) + slope * shift).tolist()
    return means


def _contrasts(
    prepared: Prepared, baseline: Float[Tensor, "question option"]
) -> tuple[list[int], Float[Tensor, "row read"], Int[Tensor, " row"]]:
    """Rows and weights whose weighted scores add up to the margin of each question.

    The correct and the wrong option that are the best now stay the two that count.
    """
    answers = torch.tensor([question.answer for question in prepared.questions])
    true = true_options(answers, also_correct(prepared.questions), baseline.shape[1])
    answers = baseline.masked_fill(~true, -torch.inf).argmax(dim=1)
    wrong = baseline.masked_fill(true, -torch.inf).argmax(dim=1)
    n = len(answers)
    if prepared.method == "letter":
        weights = torch.zeros(n, len(prepared.letters))
        weights[torch.arange(n), answers], weights[torch.arange(n), wrong] = 1.0, -1.0
        return list(range(n)), weights, torch.arange(n)
    sizes = torch.tensor([len(question.options) for question in prepared.questions])
    first = sizes.cumsum(0) - sizes
    rows = torch.stack([first + answers, first + wrong], dim=1).flatten().tolist()
    signs = torch.tensor([1.0, -1.0]).repeat(n)
    if prepared.method == "cloze_norm":
        lengths = [
            len(prepared.tokens.ids[row]) - prepared.tokens.prompt_lengths[row] for row in rows
        ]
        signs = signs / torch.tensor(lengths)
    return rows, signs[:, None], torch.arange(n).repeat_interleave(2)
