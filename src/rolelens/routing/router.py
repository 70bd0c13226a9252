"""A linear router over the last token of the prompt, and whether it wins anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rolelens import stats, tasks
from rolelens.display import Card, Shown
from rolelens.errors import InputError
from rolelens.forward import Tokens
from rolelens.hooks import ByRow, Steering, by_row
from rolelens.lens import Lens, Prompts
from rolelens.residuals import activations, known_layers
from rolelens.routing.library import Library, halves, values_of_library
from rolelens.tasks import Generated, NumberedOptions, Prepared, Tokenised

PENALTIES = tuple(float(x) for x in np.logspace(-1, 6, 15))
"""Of the ridge regression; the one with the best leave-one-out error is taken."""


@dataclass(frozen=True, eq=False, repr=False)
class Router(Shown):
    """Predicts for each prompt what every steering of a library would gain, and takes the best.

    Attributes:
        library: the steerings by name; a prompt for which none gains is left alone.
        layer: whose input at the prompt's last token is read, unsteered.
        weights: predicted gain of each steering, a row each.
        bias: likewise.
    """

    library: Mapping[str, Steering]
    layer: int
    weights: Float[Tensor, "steering d_model"]
    bias: Float[Tensor, " steering"]

    def gains(self, x: Float[Tensor, "prompt d_model"]) -> Float[Tensor, "prompt steering"]:
        """Predicted gains, from activations of the prompts' last tokens."""
        predicted: Tensor = x.to(self.weights) @ self.weights.T + self.bias
        return predicted

    def picks(self, x: Float[Tensor, "prompt d_model"]) -> list[int]:
        """For each prompt the place of a steering in the library, from 1 on; 0 for none."""
        gains = self.gains(x)
        picked: list[int] = (
            torch.cat([torch.zeros(len(gains), 1).to(gains), gains], dim=1).argmax(dim=1).tolist()
        )
        return picked

    def steer(self, lens: Lens, prompts: Prompts) -> ByRow:
        """What ``hooks=`` takes: the steering of each prompt, in one batch."""
        read = activations(lens, prompts, layers=[self.layer], positions=[-1])[:, 0, 0]
        known = [Steering(), *self.library.values()]
        return by_row([known[n] for n in self.picks(read)])

    def card(self) -> Card:
        """The library and the layer."""
        facts = {"library": ", ".join(self.library), "reads": f"layer {self.layer}, last token"}
        return Card("Router", facts, "lens.generate(prompts, hooks=router.steer(lens, prompts))")


@dataclass(frozen=True, eq=False, repr=False)
class Routed(Shown):
    """A router beside what it has to beat, on items that it was not trained on.

    Attributes:
        router: the router.
        measure: what items are worth.
        frame: a row a policy, see :meth:`table`.
        picks: the steering that was picked for each test item.
    """

    router: Router
    measure: str
    frame: pd.DataFrame
    picks: tuple[str, ...]

    def table(self) -> pd.DataFrame:
        """A row a policy: its ``value``, and its ``gain`` over always the best single steering.

        ``low`` to ``high`` is the 95 % paired bootstrap interval of the gain. Policies are
        ``unsteered``; ``single``, chosen on the training items; ``random``, any steering for any
        item; ``router``; and ``oracle``, which knows the answers.
        """
        return self.frame

    def card(self) -> Card:
        """Each policy's value."""
        facts = {
            str(row["policy"]): f"{row['value']:.4g} {self.measure} ({row['gain']:+.3g}; "
            f"{row['low']:+.3g} to {row['high']:+.3g})"
            for _, row in self.frame.iterrows()
        }
        return Card("Routed", facts, "routed.table(), routed.router")


def fit_router(
    lens: Lens,
    library: Library,
    prepared: Prepared,
    gains: Float[Tensor, "steering item"],
    layer: int | None = None,
) -> Router:
    """Fit a ridge regression of what each steering gains on the prompt's last token.

    Args:
        lens: the model.
        library: steerings by name.
        prepared: the training items.
        gains: what every steering gains over the unsteered model, of each item.
        layer: whose input is read; the lowest that any steering edits by default.

    Raises:
        InputError: fewer than three items, or an unknown layer.
    """
    from sklearn.linear_model import RidgeCV

    if len(prepared.task) < 3:
        raise InputError(f"{len(prepared.task)} items are too few to fit a router; pass 3 or more.")
    lowest = min(steering.layer for steering in library.values())
    (chosen,) = known_layers(lens, [lowest if layer is None else layer])
    x = last_tokens(lens, prepared, chosen).double()
    mean, spread = x.mean(dim=0), x.std(dim=0).clamp(min=1e-9)
    model = RidgeCV(alphas=PENALTIES).fit(((x - mean) / spread).numpy(), gains.T.double().numpy())
    weights = torch.from_numpy(np.atleast_2d(model.coef_)) / spread
    bias = torch.from_numpy(np.atleast_1d(model.intercept_)) - weights @ mean
    return Router(dict(library), chosen, weights, bias)


def try_router(
    lens: Lens,
    library: Library,
    task: Any,
    *,
    layer: int | None = None,
    by: str | None = None,
    method: str | None = None,
    share: float = 0.5,
    seed: int = 0,
    **options: Unpack[NumberedOptions],
) -> Routed:
    """Train a router on one part of the items and try it on the other, beside simpler policies.

    See first whether there is anything to win: :func:`rolelens.routing.oracle_gap`.

    Args:
        lens: the model.
        library: steerings by name.
        task: what is asked.
        layer: whose input at the prompt's last token the router reads.
        by: the measure it is trained on and judged by; the margin of questions by default.
        method: how the options of questions are scored.
        share: of the items that are trained on.
        seed: of the split.
        options: how the task is put.

    Raises:
        InputError: as for :func:`rolelens.routing.oracle_gap` and :func:`fit_router`.
    """
    prepared = tasks.prepare(lens, task, method, **options)
    train, test = halves(prepared, share, seed)
    names, measure, values = values_of_library(lens, library, prepared, by)
    gains = values[1:, train] - values[0, train]
    router = fit_router(lens, library, prepared.take(train), gains, layer)
    picks = router.picks(last_tokens(lens, prepared.take(test), router.layer).double())
    held = values[:, test]
    single = held[int(values[:, train].mean(dim=1).argmax())]
    policies = {
        "unsteered": held[0],
        "single": single,
        "random": held[1:].mean(dim=0),
        "router": held[torch.tensor(picks), torch.arange(len(test))],
        "oracle": held.amax(dim=0),
    }
    rows = []
    for policy, worth in policies.items():
        gain = worth - single
        low, high = stats.paired_bootstrap(gain.tolist())
        rows.append(
            {
                "policy": policy,
                "value": float(worth.mean()),
                "gain": float(gain.mean()),
                "low": low,
                "high": high,
            }
        )
    return Routed(router, measure, pd.DataFrame(rows), tuple(names[n] for n in picks))


def last_tokens(lens: Lens, prepared: Prepared, layer: int) -> Float[Tensor, "item d_model"]:
    """What enters a layer at the last token of each item's prompt.

    Raises:
        InputError: items without a prompt of their own.
    """
    if isinstance(prepared, Generated):
        tokens = lens.encode(list(prepared.prompts), system=prepared.system)
    elif isinstance(prepared, Tokenised):
        first = [prepared.rows([item])[0] for item in range(len(prepared.task))]
        some = prepared.tokens.take(first)
        pairs = zip(some.ids, some.prompt_lengths, strict=True)
        ids = tuple(row[:length] for row, length in pairs)
        tokens = Tokens(ids, some.prompt_lengths, some.n_post, some.source)
    else:
        raise InputError(f"{prepared.task.name!r} scores itself, so that no prompt is known of it.")
    read: Sequence[Tensor] | Tensor = activations(lens, tokens, layers=[layer], positions=[-1])
    assert isinstance(read, Tensor)
    return read[:, 0, 0]
