"""A small trained adapter after every block: the trained reference beside directions."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rolelens import forward, tasks
from rolelens.display import Card, Shown
from rolelens.errors import InputError, checked_seed
from rolelens.forward import Hook
from rolelens.lens import Lens
from rolelens.progress import track
from rolelens.residuals import known_layers
from rolelens.sweeps.screening import contrasts
from rolelens.tasks import Choices, NumberedOptions, Passages, Question
from rolelens.vectors import Source, check_sources
from rolelens.vectors.files import reading, write_tensors


@dataclass(frozen=True, eq=False, repr=False)
class Adapter(Shown):
    """Bottlenecks after blocks: h <- h + W_up SiLU(W_down h) (2603.00425).

    Attributes:
        layers: the blocks after which they stand.
        down: W_down of each.
        up: W_up of each, zero before training.
        source: the model it was trained on.
        losses: mean loss of each step of the training, in nats.
    """

    layers: tuple[int, ...]
    down: Float[Tensor, "layer rank d_model"]
    up: Float[Tensor, "layer d_model rank"]
    source: Source
    losses: tuple[float, ...] = ()

    @property
    def hooks(self) -> list[Hook]:
        """What ``hooks=`` takes: it acts on every token, prompts and answers alike."""
        return [
            (f"blocks.{layer}.hook_resid_post", partial(_shifted, self.down[n], self.up[n]))
            for n, layer in enumerate(self.layers)
        ]

    @property
    def n_parameters(self) -> int:
        """Trained numbers."""
        return self.down.numel() + self.up.numel()

    def check(self, lens: Lens) -> None:
        """Refuse another model than the one it was trained on."""
        check_sources(self.source, lens.source)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file; returns the path."""
        header = {
            "adapter": list(self.layers),
            "source": dataclasses.asdict(self.source),
            "losses": list(self.losses),
        }
        return write_tensors(Path(path), {"down": self.down, "up": self.up}, header)

    @classmethod
    def load(cls, path: str | Path) -> "Adapter":
        """Read what :meth:`save` wrote.

        Raises:
            InputError: there is no such file, or it does not hold an adapter.
        """
        with reading(Path(path), "an adapter") as (header, tensors):
            return cls(
                tuple(header["adapter"]),
                tensors["down"],
                tensors["up"],
                Source(**header["source"]),
                tuple(header["losses"]),
            )

    def card(self) -> Card:
        """Size and loss."""
        facts = {
            "blocks": str(len(self.layers)),
            "rank": str(self.down.shape[1]),
            "parameters": str(self.n_parameters),
        }
        if self.losses:
            facts["loss"] = f"{self.losses[0]:.3f} -> {self.losses[-1]:.3f}"
        return Card("Adapter", facts, "rl.evaluate(lens, task, adapter.hooks)")


def correct_logprob(question: Question, logprobs: Float[Tensor, " option"]) -> Float[Tensor, ""]:
    """A metric: the log-probability of the correct options among all, in nats."""
    shares = logprobs.log_softmax(dim=-1)
    return shares[[question.answer, *question.also]].logsumexp(dim=0)


def train_adapter(
    lens: Lens,
    task: Any,
    *,
    rank: int = 8,
    layers: Sequence[int] | None = None,
    rate: float = 9e-4,
    steps: int = 100,
    batch: int = 8,
    method: str | None = None,
    seed: int = 0,
    **options: Unpack[NumberedOptions],
) -> Adapter:
    """Train an adapter to raise what items are worth; the model itself stays as it is.

    Train on one half of a task (``task.split()``) and compare on the other, as directions are.

    Args:
        lens: the model.
        task: questions, whose correct options are made likelier, or texts; with ``metric=`` that is
            raised, which has to be differentiable.
        rank: width of the bottlenecks.
        layers: blocks after which they stand; all by default.
        rate: learning rate of Adam.
        steps: of Adam.
        batch: items of a step.
        method: how the options of questions are scored.
        seed: of the weights and the batches.
        options: how the task is put.

    Raises:
        InputError: answers that are generated, numbers below 1, an unknown layer, or as for
            :func:`rolelens.evaluate`.
    """
    if min(rank, steps, batch) < 1 or not rate > 0:
        raise InputError(
            f"rank is {rank}, steps {steps}, batch {batch} and rate {rate}; each has to be above 0."
        )
    chosen = known_layers(lens, layers)
    loaded = task if isinstance(task, tasks.Task) else tasks.load_task(task)
    if isinstance(loaded, tasks.Questions) and options.get("metric") is None:
        options["metric"] = correct_logprob
    prepared = tasks.prepare(lens, loaded, method, **options)
    if not isinstance(prepared, Choices | Passages):
        raise InputError(f"answers to {loaded.name!r} have no gradient; ask questions or texts.")
    drawn = torch.Generator().manual_seed(checked_seed(seed))
    d = lens.d_model
    like = lens.model.unembed.W_U
    down = torch.randn(len(chosen), rank, d, generator=drawn) / d**0.5
    down = down.to(like.device).requires_grad_()
    up = torch.zeros(len(chosen), d, rank, device=like.device, requires_grad=True)
    adapter = Adapter(tuple(chosen), down, up, lens.source)
    adam = torch.optim.Adam([down, up], lr=rate)
    rng = np.random.default_rng(seed)
    losses = []
    for _ in track(range(steps), "adapter", total=steps):
        size = min(batch, len(loaded))
        some = prepared.take(sorted(rng.choice(len(loaded), size=size, replace=False).tolist()))
        losses.append(-_step(lens, some, adapter, adam))
    return Adapter(
        adapter.layers, down.detach().cpu(), up.detach().cpu(), lens.source, tuple(losses)
    )


def _step(lens: Lens, some: Choices | Passages, adapter: Adapter, adam: torch.optim.Adam) -> float:
    """One step of Adam; returns what the items were worth before it."""
    plain = [(name, partial(_apart, fn)) for name, fn in adapter.hooks]
    records = tasks.run_records(lens, some, plain)
    scored = some.scored(range(len(some.task)), records)
    name = scored.measures[0]
    rows, weights, _ = contrasts(some, records, name)
    tokens = some.tokens.take(rows)
    adam.zero_grad()
    for batch in forward.batches(tokens):
        _, score = forward.graph(
            lens.model, batch, (), some.vocab, weights[batch.rows], adapter.hooks
        )
        with torch.enable_grad():
            (-score / len(some.task)).backward()  # type: ignore[no-untyped-call]
    adam.step()
    return scored.mean(name)


def _shifted(down: Tensor, up: Tensor, x: Tensor, hook: Any = None) -> Tensor:
    down, up = down.to(x), up.to(x)
    return x + torch.nn.functional.silu(x @ down.T) @ up.T


def _apart(fn: Any, x: Tensor, hook: Any = None) -> Tensor:
    with torch.no_grad():
        shifted: Tensor = fn(x)
    return shifted
