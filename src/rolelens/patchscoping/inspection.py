"""Readers that generate no text: the tokens a direction writes, the prompts it points to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rolelens import forward
from rolelens.errors import InputError
from rolelens.lens import Lens, Prompts
from rolelens.patchscoping.readers import Reading, checked
from rolelens.prompts import load_base
from rolelens.residuals import activations
from rolelens.vectors import Direction
from rolelens.vectors.direction import RESID_PRE

AVERAGED = 8
"""Base prompts that a Jacobian is a mean over by default."""


@dataclass(frozen=True)
class LogitLens:
    """The tokens that a direction writes: through the final norm and the unembedding.

    Attributes:
        n: tokens at either end.
    """

    n: int = 10

    def table(self, lens: Lens, directions: Sequence[Direction]) -> pd.DataFrame:
        """The ends of the vocabulary, for several directions.

        Returns:
            A row for each direction, end (``top``, ``bottom``) and rank: ``token``, ``logit``.

        Raises:
            InputError: no directions, those of another model, a zero direction, which writes no
                token more than others, or more tokens than the vocabulary has.
        """
        several = _written(lens, directions)
        return _ends(lens, several, torch.stack([d.vector for d in several]), self.n)

    def read(self, lens: Lens, directions: Sequence[Direction]) -> list[Reading]:
        """Read directions; the text is the top tokens, the baseline those of no direction."""
        return _top(self.table(lens, directions), checked(lens, directions), self.n, "logit lens")


@dataclass(frozen=True)
class JacobianLens:
    """The tokens that a direction makes likelier from there on (J-lens, Gurnee et al. 2026).

    The direction goes through the mean Jacobian from its layer to the output of the last block, and
    then through the final norm and the unembedding: a logit lens that knows what the layers between
    do. ``J d`` is the mean over prompts and source tokens of the sum over the tokens from there on.

    Attributes:
        prompts: what the Jacobian is a mean over, in the chat format; base prompts by default.
        n: tokens at either end.
        skip: tokens at the beginning of each prompt that are left out, as is the last.
        fitted: a :class:`transformer_lens.tools.analysis.JacobianLens` of this model, in place of
            prompts. It holds the whole Jacobian of each layer, which takes d_model backward passes
            a prompt to fit; without it each direction takes one pass in forward mode a prompt.
    """

    prompts: Prompts | None = None
    n: int = 10
    skip: int = 16
    fitted: Any = None

    def table(self, lens: Lens, directions: Sequence[Direction]) -> pd.DataFrame:
        """The ends of the vocabulary, for several directions.

        Returns:
            As of :meth:`LogitLens.table`.

        Raises:
            InputError: as for :meth:`LogitLens.table`; directions of another site than the residual
                stream, prompts that are too short, both prompts and a fitted lens, or one of
                another model.
        """
        several = _written(lens, directions)
        for direction in several:
            if direction.site != RESID_PRE:
                raise InputError(
                    f"the Jacobian lens reads directions of the residual stream, and that of "
                    f"{direction.name!r} lives at {direction.site!r}; use another reader."
                )
        return _ends(lens, several, self._transported(lens, several), self.n)

    def read(self, lens: Lens, directions: Sequence[Direction]) -> list[Reading]:
        """Read directions; the text is the top tokens, the baseline those of no direction."""
        several = checked(lens, directions)
        return _top(self.table(lens, several), several, self.n, "Jacobian lens")

    def _transported(
        self, lens: Lens, several: Sequence[Direction]
    ) -> Float[Tensor, "direction d_model"]:
        """Each direction times the Jacobian of its layer."""
        if self.fitted is None:
            prompts = list(load_base())[:AVERAGED] if self.prompts is None else self.prompts
            return forward.transported(
                lens.model,
                lens.encode(prompts),
                torch.stack([d.vector for d in several]),
                [d.layer for d in several],
                skip=self.skip,
            )
        if self.prompts is not None:
            raise InputError("prompts and a fitted lens are passed; leave one of them out.")
        known = self.fitted.source_layers
        for d in several:
            if d.layer - 1 not in known:  # what enters a layer has left the one before
                raise InputError(
                    f"the fitted lens has no layer {d.layer - 1}, which the direction of "
                    f"{d.name!r} leaves; it has {known[0]} to {known[-1]}."
                )
        try:
            self.fitted.validate_model(lens.model)
        except (TypeError, ValueError) as error:
            raise InputError(f"the fitted lens does not fit {lens.name}: {error}") from error
        return torch.stack([self.fitted.transport(d.vector, d.layer - 1) for d in several])


def _written(lens: Lens, directions: Sequence[Direction]) -> list[Direction]:
    """Directions of this model that write something."""
    several = checked(lens, directions)
    for direction in several:
        if direction.norm == 0:
            raise InputError(
                f"the direction of {direction.name!r} at layer {direction.layer} is zero and "
                "writes no token; take a higher layer."
            )
    return several


def _ends(
    lens: Lens, several: Sequence[Direction], x: Float[Tensor, "direction d_model"], n: int
) -> pd.DataFrame:
    """Both ends of the vocabulary, where each direction's last state is unembedded."""
    logits = forward.unembed(lens.model, x.to(lens.model.cfg.device, lens.dtype)).cpu()
    if not 1 <= n <= logits.shape[-1]:
        raise InputError(
            f"n is {n}; it has to be from 1 to {logits.shape[-1]}, the tokens there are."
        )
    rows = []
    ends: tuple[tuple[Literal["top", "bottom"], bool], ...] = (("top", True), ("bottom", False))
    for d, logits_of_one in zip(several, logits, strict=True):
        for end, largest in ends:
            values, tokens = logits_of_one.topk(n, largest=largest)
            for rank in range(n):
                rows.append(
                    {
                        "name": d.name,
                        "layer": d.layer,
                        "position": d.position,
                        "end": end,
                        "rank": rank,
                        "token": lens.tokenizer.decode([int(tokens[rank])]),
                        "logit": float(values[rank]),
                    }
                )
    return pd.DataFrame(rows)


def _top(table: pd.DataFrame, several: Sequence[Direction], n: int, how: str) -> list[Reading]:
    """The tokens at the upper end as a text."""
    top = table.loc[table["end"] == "top", "token"].str.strip().tolist()
    return [
        Reading(", ".join(top[k * n : (k + 1) * n]), "", "", d, how) for k, d in enumerate(several)
    ]


@dataclass(frozen=True)
class NearestPrompts:
    """The prompts whose residual stream projects highest onto a direction.

    The projection is taken at the direction's position; at the last one where it has none.

    Attributes:
        prompts: which prompts are searched; such that the direction was not made from.
        n: how many are named.
    """

    prompts: Sequence[str]
    n: int = 3

    def read(self, lens: Lens, directions: Sequence[Direction]) -> list[Reading]:
        """Read directions; the text is the nearest prompts, the baseline the farthest."""
        several = checked(lens, directions)
        if not 1 <= self.n <= len(self.prompts):
            raise InputError(f"n is {self.n}; there are {len(self.prompts)} prompts to name.")
        layers = sorted({d.layer for d in several})
        places = [-1 if d.position is None else d.position for d in several]
        positions = sorted(set(places))
        x = activations(lens, self.prompts, layers, positions)
        readings = []
        for d, place in zip(several, places, strict=True):
            streams = x[:, layers.index(d.layer), positions.index(place)]
            order = (streams @ d.unit).argsort(descending=True).tolist()
            near, far = order[: self.n], order[: -self.n - 1 : -1]
            texts = ["\n".join(self.prompts[k] for k in end) for end in (near, far)]
            readings.append(Reading(texts[0], texts[1], "", d, f"nearest of {len(x)} prompts"))
        return readings
