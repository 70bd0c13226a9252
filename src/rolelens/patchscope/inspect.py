"""Readers that let the model say nothing: what a direction writes, and where it is found."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch

from rolelens import forward
from rolelens.activations import activations
from rolelens.errors import InputError
from rolelens.lens import Lens
from rolelens.patchscope.readers import Reading, checked
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
        """
        several = checked(lens, directions)
        if self.n < 1:
            raise InputError(f"n is {self.n}; it has to be at least 1 token.")
        x = torch.stack([direction.vector for direction in several])
        logits = forward.unembed(lens.model, x.to(lens.model.cfg.device, lens.dtype)).cpu()
        rows = []
        ends: tuple[tuple[Literal["top", "bottom"], bool], ...] = (("top", True), ("bottom", False))
        for d, own in zip(several, logits, strict=True):
            for end, largest in ends:
                values, tokens = own.topk(self.n, largest=largest)
                for rank in range(self.n):
                    rows.append(
                        {
                            "role": d.role,
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

    Attributes:
        prompts: where it is looked for; prompts that the direction was not made from.
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
        positions = sorted({d.position or -1 for d in several})
        x = activations(lens, self.prompts, layers, positions)
        found = []
        for d in several:
            own = x[:, layers.index(d.layer), positions.index(d.position or -1)]
            order = (own @ d.unit).argsort(descending=True).tolist()
            near, far = order[: self.n], order[: -self.n - 1 : -1]
            texts = ["\n".join(self.prompts[k] for k in end) for end in (near, far)]
            found.append(Reading(texts[0], texts[1], "", d, f"nearest of {len(x)} prompts"))
        return found
