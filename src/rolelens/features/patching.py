"""Which parts of a model carry what a steering does: a screen by gradients, then exact patches."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rolelens import forward, tasks
from rolelens.display import Card, Shown
from rolelens.errors import InputError, unknown
from rolelens.features.autoencoder import SparseAutoencoder
from rolelens.features.parts import KINDS, Kind, Part, change, hooks_read, predictions
from rolelens.forward import Hook, Hooks, Tokens
from rolelens.hooks import Steering
from rolelens.lens import Lens
from rolelens.progress import track
from rolelens.sweeps.screening import contrasts
from rolelens.tasks import Choices, NumberedOptions, Passages, Prepared, Records


@dataclass(frozen=True, eq=False, repr=False)
class Attribution(Shown):
    """What parts of a model carry the effect of a steering.

    Attributes:
        measure: what effects are told in: its mean change over the items.
        effect: of the whole steering.
        predicted: effect of each part to first order, the largest first: the gradient of the
            unsteered model times what steering changes there.
        exact: of those that were patched: the effect of that change alone, in the unsteered model.
        null: of those, the effects of null steerings' changes, a column a null.
        how: ``"top"`` or ``"random"``: why a part was patched.
    """

    measure: str
    effect: float
    predicted: Mapping[Part, float]
    exact: Mapping[Part, float]
    null: Mapping[Part, tuple[float, ...]]
    how: Mapping[Part, str]

    def table(self) -> pd.DataFrame:
        """A row a patched part, those with the largest exact effect first.

        ``kind``, ``layer``, ``index`` (of a head or feature), ``predicted`` and ``exact`` effect,
        its ``share`` of the whole steering's, ``how`` it was picked, and with null steerings the
        mean (``null``) and the largest size (``null_most``) of theirs.
        """
        rows = []
        for part in sorted(self.exact, key=lambda part: -abs(self.exact[part])):
            row = {
                **dataclasses.asdict(part),
                "predicted": self.predicted[part],
                "exact": self.exact[part],
                "share": self.exact[part] / self.effect if self.effect else float("nan"),
                "how": self.how[part],
            }
            if self.null:
                row["null"] = float(np.mean(self.null[part]))
                row["null_most"] = float(np.abs(self.null[part]).max())
            rows.append(row)
        return pd.DataFrame(rows)

    def screened(self) -> pd.DataFrame:
        """A row for every part with its predicted effect, the largest first."""
        rows = [
            {**dataclasses.asdict(part), "predicted": value}
            for part, value in self.predicted.items()
        ]
        return pd.DataFrame(rows)

    @property
    def gap(self) -> float:
        """Mean size of predicted minus exact effects, over those that were patched."""
        table = self.table()
        return float((table["predicted"] - table["exact"]).abs().mean())

    def card(self) -> Card:
        """The whole effect, and the part that carries most."""
        first = self.table().iloc[0]
        name = f"{first['kind']} of layer {first['layer']}"
        if first["index"] is not None and first["index"] == first["index"]:
            name = f"{first['kind']} {int(first['index'])} of layer {first['layer']}"
        facts = {
            "effect of the steering": f"{self.effect:+.4g} in {self.measure}",
            "largest part": f"{name}: {first['exact']:+.4g}",
            "patched": f"{len(self.exact)} of {len(self.predicted)}",
            "mean gap of the prediction": f"{self.gap:.3g}",
        }
        return Card("Attribution", facts, "attribution.table()")


def attribute(
    lens: Lens,
    steering: Steering,
    task: Any,
    *,
    sae: SparseAutoencoder | None = None,
    kinds: Sequence[Kind] | None = None,
    nulls: Sequence[Steering] = (),
    by: str | None = None,
    method: str | None = None,
    top: int = 8,
    randoms: int = 4,
    seed: int = 0,
    **options: Unpack[NumberedOptions],
) -> Attribution:
    """Find out which features, blocks, heads and MLPs carry the effect of a steering.

    Attribution patching predicts, from one backward pass, what each part's change under steering
    does alone (a "block" is all that it adds to the stream; "direct" is what stays in the stream
    of what was steered, past all blocks; "error" is what no feature explains). The parts with the
    largest prediction are then patched exactly: their change is added in the unsteered model. Some
    other parts are patched at random beside, to see what the screen misses. Effects of parts do
    not add up where parts act on one another.

    Args:
        lens: the model.
        steering: what is done.
        task: questions or texts, or what :func:`rolelens.load_task` takes.
        sae: an autoencoder at or above the steered layer, whose features are parts.
        kinds: of parts: ``feature``, ``error``, ``direct``, ``block``, ``attention``, ``mlp``,
            ``head``; all that there are by default.
        nulls: other steerings as strong, whose changes are patched in the same parts: a part that
            carries theirs as well is not the role's.
        by: the measure; the margin of questions by default, or a metric that can be differentiated.
        method: how the options of questions are scored.
        top: parts of each kind that are patched exactly.
        randoms: others of each kind, drawn at random, that are patched too.
        seed: of the drawing.
        options: how the task is put.

    Raises:
        InputError: answers that are generated, a steering that does nothing, an autoencoder below
            the steered layer, an unknown kind, or as for :func:`rolelens.evaluate`.
    """
    chosen = _kinds(kinds, sae)
    prepared = tasks.prepare(lens, task, method, **options)
    if not isinstance(prepared, Choices | Passages):
        raise InputError(
            f"answers to {prepared.task.name!r} have no gradient; ask questions or texts."
        )
    if top < 1 or randoms < 0:
        raise InputError(f"top is {top} and randoms {randoms}; expected 1 or more, and 0 or more.")
    for one in (steering, *nulls):
        _check(lens, one, sae)
    baseline = tasks.run_records(lens, prepared)
    measure, before = _measure(prepared, baseline, by)
    after = _measure(prepared, tasks.run_records(lens, prepared, steering), by)[1]
    predicted = _screened(lens, prepared, baseline, steering, sae, chosen, measure)
    order = sorted(predicted, key=lambda part: -abs(predicted[part]))
    picked = _picked(order, top, randoms, seed)
    steerings = (steering, *nulls)
    records = _patched(lens, prepared, steerings, sae, chosen, list(picked))
    effects = {key: _measure(prepared, found, by)[1] - before for key, found in records.items()}
    return Attribution(
        measure,
        after - before,
        predicted={part: predicted[part] for part in order},
        exact={part: effects[part, 0] for part in picked},
        null={part: tuple(effects[part, n] for n in range(1, len(steerings))) for part in picked}
        if nulls
        else {},
        how=picked,
    )


def _kinds(kinds: Sequence[Kind] | None, sae: SparseAutoencoder | None) -> tuple[Kind, ...]:
    if kinds is None:
        return tuple(kind for kind in KINDS if sae is not None or kind not in ("feature", "error"))
    if isinstance(kinds, str) or not kinds:
        raise InputError(f"kinds is {kinds!r}; pass a list such as ['feature', 'head'].")
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("kind of part", kind, KINDS)
        if kind in ("feature", "error") and sae is None:
            raise InputError(f"parts of the kind {kind!r} need an autoencoder; pass sae=.")
    return tuple(dict.fromkeys(kinds))


def _check(lens: Lens, steering: Steering, sae: SparseAutoencoder | None) -> None:
    if not isinstance(steering, Steering) or steering.is_zero:
        raise InputError(
            f"{str(steering)[:60]!r} does nothing that could be carried; pass a steering such as "
            "rl.add(d, 3.0)."
        )
    steering.check(lens.source, lens.n_layers)
    if sae is not None:
        layer, _ = sae.check(lens)
        if layer < steering.layer:
            raise InputError(
                f"the autoencoder reads layer {layer}, and the steering begins at layer "
                f"{steering.layer}, so that it would see nothing of it; take one at or above."
            )


def _measure(prepared: Prepared, records: Records, by: str | None) -> tuple[str, float]:
    """The name of the measure, and its mean."""
    scored = prepared.scored(range(len(prepared.task)), records)
    margins = isinstance(prepared, Choices) and prepared.metric is None
    name = by or ("margin" if margins else scored.measures[0])
    if name == "accuracy":
        raise InputError("accuracy has no gradient; attribute the margin.")
    return name, scored.mean(name)


def _screened(
    lens: Lens,
    prepared: Choices | Passages,
    baseline: Records,
    steering: Steering,
    sae: SparseAutoencoder | None,
    kinds: Sequence[Kind],
    by: str,
) -> dict[Part, float]:
    """The predicted effect of each part, averaged over the items."""
    rows, weights, _ = contrasts(prepared, baseline, by)
    lowest = steering.layer
    names = hooks_read(lens, sae, kinds, lowest)
    summed: dict[tuple[Kind, int], Tensor] = {}
    batches = forward.point_gradients(
        lens.model,
        prepared.tokens.take(rows),
        names,
        vocab=prepared.vocab,
        weights=weights,
        lowest=lowest,
    )
    for batch, plain, slopes in batches:
        steered = forward.point_states(lens.model, batch, names, steering)
        found = predictions(lens, sae, kinds, lowest, (plain, steered), slopes)
        for key, values in found.items():
            summed[key] = summed[key] + values if key in summed else values
    out: dict[Part, float] = {}
    for (kind, layer), values in summed.items():
        means = (values / len(prepared.task)).tolist()
        for index, value in enumerate(means):
            # A feature that steering does not change carries nothing.
            if kind != "feature" or value:
                out[Part(kind, layer, index if kind in ("feature", "head") else None)] = value
    return out


def _picked(order: Sequence[Part], top: int, randoms: int, seed: int) -> dict[Part, str]:
    """The first parts of each kind, and some of the others."""
    rng = np.random.default_rng(seed)
    picked: dict[Part, str] = {}
    for kind in dict.fromkeys(part.kind for part in order):
        parts = [part for part in order if part.kind == kind]
        picked |= dict.fromkeys(parts[:top], "top")
        rest = parts[top:]
        drawn = rng.permutation(len(rest))[:randoms]
        picked |= dict.fromkeys((rest[n] for n in drawn), "random")
    return picked


def _patched(
    lens: Lens,
    prepared: Choices | Passages,
    steerings: Sequence[Steering],
    sae: SparseAutoencoder | None,
    kinds: Sequence[Kind],
    parts: Sequence[Part],
) -> dict[tuple[Part, int], Records]:
    """What the model answers while a part alone changes as under each of the steerings."""
    names = hooks_read(lens, sae, kinds, steerings[0].layer)
    reads: dict[tuple[Part, int], dict[int, Tensor]] = {
        (part, n): {} for part in parts for n in range(len(steerings))
    }
    batches = forward.batches(prepared.tokens)
    for batch in track(batches, "patches", total=len(batches)):
        some = prepared.tokens.take(batch.rows.tolist())
        plain = forward.point_states(lens.model, batch, names)
        for n, steering in enumerate(steerings):
            steered = forward.point_states(lens.model, batch, names, steering)
            for part in parts:
                hooks = _Added(*change(lens, sae, part, plain, steered))
                for row, found in zip(
                    batch.rows.tolist(), _read(lens, prepared, some, hooks), strict=True
                ):
                    reads[part, n][row] = found
    return {
        key: tasks.checked_records(
            prepared.values(
                torch.nn.utils.rnn.pad_sequence(
                    [rows[row] for row in range(len(prepared.tokens))], batch_first=True
                )
            ).numpy()
        )
        for key, rows in reads.items()
    }


def _read(
    lens: Lens, prepared: Choices | Passages, tokens: Tokens, hooks: Hooks
) -> list[Float[Tensor, " read"]]:
    """What is read off the model for each row."""
    if prepared.vocab is not None:
        return list(
            forward.next_token_logits(lens.model, tokens, vocab=prepared.vocab, hooks=hooks)
        )
    return forward.answer_logprobs(lens.model, tokens, hooks=hooks)


class _Added:
    """Hooks by row that add a change at one hook, token by token.

    Attributes:
        selections: the tokens that are edited.
        n: how many rows there are.
    """

    selections = ("all",)

    def __init__(self, name: str, change: Float[Tensor, "row position ..."]) -> None:
        self._name, self._change, self.n = name, change, len(change)

    def __call__(self, rows: Int[Tensor, " row"]) -> list[Hook]:
        """The hook of some rows."""
        return [(self._name, partial(self._add, rows))]

    def _add(self, rows: Int[Tensor, " row"], x: Tensor, hook: Any = None) -> Tensor:
        now = forward.running.get()
        assert now is not None
        positions = now.positions.expand(len(rows), -1).to(self._change.device)
        there = rows.to(self._change.device)[:, None]
        return x + self._change[there, positions].to(x)
