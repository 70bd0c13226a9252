"""Readers that generate no text: the tokens a direction writes, the prompts it points to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch

from rolelens import forward
from rolelens.errors import InputError
from rolelens.lens import Lens
from rolelens.patchscoping.readers import Reading, checked
from rolelens.residuals import activations
from rolelens.vectors import Direction


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
        several = checked(lens, directions)
        for direction in several:
            if direction.norm == 0:
                raise InputError(
                    f"the direction of {direction.name!r} at layer {direction.layer} is zero and "
                    "writes no token; take a higher layer."
                )
        x = torch.stack([direction.vector for direction in several])
        logits = forward.unembed(lens.model, x.to(lens.model.cfg.device, lens.dtype)).cpu()
        if not 1 <= self.n <= logits.shape[-1]:
            raise InputError(
                f"n is {self.n}; it has to be from 1 to {logits.shape[-1]}, the tokens there are."
            )
        rows = []
        ends: tuple[tuple[Literal["top", "bottom"], bool], ...] = (("top", True), ("bottom", False))
        for d, logits_of_one in zip(several, logits, strict=True):
            for end, largest in ends:
                values, tokens = logits_of_one.topk(self.n, largest=largest)
                for rank in range(self.n):
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

    def read(self, lens: Lens, directions: Sequence[Direction]) -> list[Reading]:
        """Read directions; the text is the top tokens, the baseline those of no direction."""
        several = checked(lens, directions)
        table = self.table(lens, several)
        top = table.loc[table["end"] == "top", "token"].str.strip().tolist()
        return [
            Reading(", ".join(top[k * self.n : (k + 1) * self.n]), "", "", d, "logit lens")
            for k, d in enumerate(several)
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
