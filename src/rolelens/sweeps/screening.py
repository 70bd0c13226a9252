"""What every cell would do, predicted to first order, and what predictions tell of exact scores."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from rolelens import forward
from rolelens.errors import InputError
from rolelens.forward import Selection
from rolelens.lens import Lens
from rolelens.sweeps.cells import Cell
from rolelens.sweeps.runners import Gradient, gradient
from rolelens.tasks import Choices, Passages, Prepared, Records, Scored, metric_name
from rolelens.tasks.scores import option_margins, true_options


def screen(
    lens: Lens, prepared: Prepared, baseline: Records, cells: Sequence[Cell], by: str
) -> Float[Tensor, "cell item"]:
    """What every cell does to a measure of every item, see :class:`Screening`."""
    every = range(len(prepared.task))
    budget = forward.token_budget(lens.model, lens.n_ctx)
    screening = Screening(prepared, every, baseline, cells, by, budget)
    for call in screening.calls:
        screening.add(call, gradient(lens, prepared, call))
    return screening.predicted()


class Screening:
    """What every cell does to a measure of every item, predicted.

    The prediction is Σ alpha dᵀ Σ_t ∂measure/∂x_t over the layers and tokens of each cell: one
    forward and one backward pass an item, however many cells there are.

    Attributes:
        calls: the batches whose gradients are wanted; what is added up does not depend on who
            gives them, or when.
    """

    def __init__(
        self,
        prepared: Prepared,
        items: Sequence[int],
        baseline: Records,
        cells: Sequence[Cell],
        by: str,
        budget: int,
    ) -> None:
        """Say what is predicted.

        Args:
            prepared: the task.
            items: which items of it.
            baseline: what was scored of the unsteered model on them.
            cells: the cells.
            by: the measure; of ``"accuracy"`` the margin is predicted.
            budget: tokens of one batch, at most.
        """
        assert isinstance(prepared, Choices | Passages)
        part = prepared.take(items)
        rows, weights, owners = contrasts(part, baseline, by)
        steps = [operation for cell in cells for operation in cell.steering.operations]
        self._cells, self._n_items = cells, len(items)
        self._layers = tuple(sorted({layer for step in steps for layer, _ in step.points}))
        self._selections: tuple[Selection, ...] = tuple(dict.fromkeys(s.tokens for s in steps))
        of_task = prepared.rows(items)
        batches = [batch.rows for batch in forward.batches(part.tokens.take(rows), budget)]
        self.calls = [
            Gradient(
                tuple(of_task[rows[row]] for row in batch.tolist()),
                weights[batch].numpy(),
                self._layers,
                self._selections,
            )
            for batch in batches
        ]
        self._owners = [owners[batch] for batch in batches]
        self._given: dict[Gradient, Tensor] = {}
        self._added = 0
        self._summed = torch.empty(0)

    def add(self, call: Gradient, given: npt.NDArray[np.float32]) -> None:
        """Take the gradients of a batch; they are added up in the order of the batches."""
        self._given[call] = torch.from_numpy(given.copy())  # Ray gives what may not be written
        while self._added < len(self.calls) and self.calls[self._added] in self._given:
            gradients = self._given.pop(self.calls[self._added])
            if not self._added:
                self._summed = torch.zeros(self._n_items, *gradients.shape[1:])
            self._summed.index_add_(0, self._owners[self._added], gradients)
            self._added += 1

    @property
    def complete(self) -> bool:
        """Whether all batches are there."""
        return self._added == len(self.calls)

    def predicted(self) -> Float[Tensor, "cell item"]:
        """The predicted change, once all batches are there."""
        predicted = torch.zeros(len(self._cells), self._n_items)
        if not self.calls:
            return predicted
        acting: dict[tuple[int, int], tuple[list[int], list[Tensor]]] = {}
        for n, cell in enumerate(self._cells):
            for operation in cell.steering.operations:
                for layer, _ in operation.points:
                    place = (
                        self._selections.index(operation.tokens),
                        self._layers.index(layer),
                    )
                    index, vectors = acting.setdefault(place, ([], []))
                    index.append(n)
                    vectors.append(operation.vector.float())
        for (selection, at), (index, vectors) in acting.items():
            gradient = self._summed[:, selection, at]
            change = einsum(torch.stack(vectors), gradient, "cell d, item d -> cell item")
            predicted.index_add_(0, torch.tensor(index), change)
        return predicted


def check_predictable(prepared: Prepared, cells: Sequence[Cell]) -> None:
    """Refuse what cannot be predicted from gradients.

    Raises:
        InputError: answers are generated, or a cell does more than to add to the residual stream.
    """
    if not isinstance(prepared, Choices | Passages):
        raise InputError(
            f"answers to {prepared.task.name!r} cannot be predicted from gradients; score every "
            "cell with rl.sweep."
        )
    for cell in cells:
        for step in cell.steering.steps:
            if step.kind != "add" or step.direction.site != "resid_pre":
                raise InputError(
                    f"{str(step)!r} is no addition to the residual stream, so it cannot be "
                    "predicted from gradients; score every cell with rl.sweep."
                )


def check_gradient(scored: Scored[Any], by: str) -> None:
    """Refuse a metric that cannot be differentiated.

    Raises:
        InputError: it gives no tensor that depends on the answer.
    """
    if scored.metric is not None and by == metric_name(scored.metric):
        leaf = torch.as_tensor(scored.answer(0)).clone().requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of what is refused here in one sentence
            value = scored.metric(scored.items[0], leaf)
        if not isinstance(value, Tensor) or value.grad_fn is None:
            raise InputError(
                f"the metric {by!r} gives {type(value).__name__} without a gradient; let it return "
                "a tensor computed from the answer, or score every cell with rl.sweep."
            )


def controlled(
    gains: Float[Tensor, "cell scored"], predicted: Float[Tensor, "cell screened"]
) -> list[float]:
    """Mean gains on all screened items, estimated from those that were scored.

    The predictions are a control variate: where they go with the exact gains, they tell how far the
    scored items are from all of them. The first items of both are the same.
    """
    n = min(gains.shape[1], predicted.shape[1])
    x, y = (
        values[:, :n] - values[:, :n].mean(dim=1, keepdim=True) for values in (predicted, gains)
    )
    slope = (x * y).sum() / x.square().sum().clamp(min=1e-12)
    shift = predicted.mean(dim=1) - predicted[:, :n].mean(dim=1)
    means: list[float] = (gains.mean(dim=1) + slope * shift).tolist()
    return means


@torch.enable_grad()  # whatever was set outside, or left by a Ctrl-C within torch
def contrasts(
    prepared: Choices | Passages, baseline: Records, by: str
) -> tuple[list[int], Float[Tensor, "row read"], Int[Tensor, " row"]]:
    """Rows of tokens and weights whose weighted scores change as the measure does.

    Of a margin the correct and the wrong option that are the best now stay the two that count.
    """
    slopes = _slopes(prepared, baseline, by)
    if prepared.vocab is not None:
        # Logits act on the log-probabilities through the softmax.
        leaf = torch.from_numpy(baseline.copy()).nan_to_num(neginf=-1e9).requires_grad_()
        (leaf.log_softmax(dim=-1) * slopes).sum().backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        wide = torch.zeros(len(slopes), len(prepared.vocab))
        wide[:, : slopes.shape[1]] = leaf.grad.masked_fill(
            torch.from_numpy(baseline) == -np.inf, 0.0
        )
        return list(range(len(slopes))), wide, torch.arange(len(slopes))
    lengths = torch.tensor(
        [
            len(ids) - n
            for ids, n in zip(prepared.tokens.ids, prepared.tokens.prompt_lengths, strict=True)
        ]
    )
    if isinstance(prepared, Choices):
        sizes = torch.tensor([len(question.options) for question in prepared.task])
        firsts = sizes.cumsum(0) - sizes
        option = torch.arange(len(lengths)) - firsts[prepared.owners]
        weights = slopes[prepared.owners, option]
        if prepared.method == "cloze_norm":
            weights = weights / lengths
    else:
        counts = torch.zeros(len(prepared.task)).index_add_(0, prepared.owners, lengths.float())
        weights = slopes[prepared.owners, 0] / counts[prepared.owners]
    rows = weights.nonzero()[:, 0]
    return rows.tolist(), weights[rows, None], prepared.owners[rows]


def _slopes(
    prepared: Choices | Passages, baseline: Records, by: str
) -> Float[Tensor, "item column"]:
    """How the measure changes with what is kept of each item, at the unsteered model."""
    leaf = torch.from_numpy(baseline.copy()).requires_grad_()
    if prepared.metric is not None and by == metric_name(prepared.metric):
        total = torch.zeros(())
        for n, item in enumerate(prepared.task):
            width = len(item.options) if isinstance(prepared, Choices) else 1
            answer = leaf[n, :width] if isinstance(prepared, Choices) else leaf[n, 0]
            total = total + prepared.metric(item, answer)
    elif isinstance(prepared, Choices):
        total = option_margins(leaf, true_options(tuple(prepared.task), leaf.shape[1])).sum()
    else:
        total = leaf.sum()
    total.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return leaf.grad.nan_to_num()
