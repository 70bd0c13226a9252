"""A direction read by the decoder of a sparse autoencoder, beside nulls."""

import math

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from rolelens import stats
from rolelens.errors import InputError
from rolelens.features.autoencoder import SparseAutoencoder
from rolelens.vectors import Direction, Directions, check_sources


def decoder_cosines(
    sae: SparseAutoencoder,
    d: Direction,
    *,
    nulls: Directions | None = None,
    randoms: int = 100,
    top: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """The features whose decoder rows are nearest to a direction, with what chance gives.

    Args:
        sae: the autoencoder, which reads where the direction lives.
        d: the direction.
        nulls: other directions of the same layer and site, such as those of other roles or of
            shuffled labels: the better null, as decoder rows point into few dimensions.
        randoms: Gaussian directions beside.
        top: how many features.
        seed: of the Gaussian directions.

    Returns:
        A row a feature: ``feature``, ``cosine``, ``p_random``: the rank of its size among the
        largest of each Gaussian direction, and with ``nulls`` ``p``, likewise among theirs. The
        frame's ``attrs`` have the mean of those largest (``random``, ``nulls``), and ``expected``,
        sqrt(2 ln F / d): what F rows of even spread would give.

    Raises:
        InputError: a direction that is zero or lives elsewhere, nulls of another layer, position or
            site, or numbers that make no sense.
    """
    layer, site = sae.place
    if (d.layer, d.site) != (layer, site):
        raise InputError(
            f"the direction of {d.name!r} lives at {d.site} of layer {d.layer}, and the autoencoder"
            f" reads {site} of layer {layer}; take the direction there."
        )
    if d.d_model != sae.d_in:
        raise InputError(
            f"the direction of {d.name!r} is {d.d_model} wide and the autoencoder {sae.d_in}; take "
            "both of one model."
        )
    if not 1 <= top <= sae.n_features or randoms < 1:
        raise InputError(
            f"top is {top} and randoms {randoms}; expected 1 to {sae.n_features} features and at "
            "least 1 random direction."
        )
    rows = torch.nn.functional.normalize(sae.w_dec.cpu().double(), dim=-1, eps=1e-300)
    cosines = rows @ d.unit.double().cpu()
    drawn = torch.randn(
        randoms, sae.d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    largest = {"random": _largest(rows, drawn)}
    if nulls is not None:
        largest["nulls"] = _largest(rows, _beside(nulls, d))
    table = []
    for feature in cosines.abs().topk(top).indices.tolist():
        size = abs(float(cosines[feature]))
        row = {"feature": feature, "cosine": float(cosines[feature])}
        row["p_random"] = stats.null_rank(size, largest["random"])
        if "nulls" in largest:
            row["p"] = stats.null_rank(size, largest["nulls"])
        table.append(row)
    frame = pd.DataFrame(table)
    frame.attrs = {name: sum(values) / len(values) for name, values in largest.items()}
    frame.attrs["expected"] = math.sqrt(2 * math.log(max(sae.n_features, 2)) / sae.d_in)
    return frame


def _largest(rows: Float[Tensor, "feature d"], nulls: Float[Tensor, "null d"]) -> list[float]:
    """The size of each null's largest cosine."""
    unit = torch.nn.functional.normalize(nulls, dim=-1, eps=1e-300)
    largest: list[float] = (rows @ unit.T).abs().amax(dim=0).tolist()
    return largest


def _beside(nulls: Directions, d: Direction) -> Float[Tensor, "null d"]:
    """Other directions where a direction lives; that of its own name is none."""
    check_sources(nulls.source, d.source)
    if nulls.site != d.site:
        raise InputError(
            f"the nulls live at {nulls.site!r} and the direction at {d.site!r}; take both of one "
            "site."
        )
    names = [name for name in nulls.names if name != d.name]
    if not names:
        raise InputError("the nulls are of the direction's own name only; pass others.")
    position = d.position if d.position in nulls.positions else None
    vectors = [nulls.direction(name, d.layer, position).vector for name in names]
    return torch.stack(vectors).double().cpu()
