"""Separation, intervals and tests. Pure mathematics: no model is known here."""

from rolelens.stats.inference import (
    LEVEL,
    Estimate,
    adjusted,
    bootstrap,
    detectable,
    in_points,
    interaction,
    mcnemar,
    null_rank,
    paired,
    paired_bootstrap,
    points_between,
    reached,
    sign_flip,
    wilson,
)
from rolelens.stats.separation import (
    Projections,
    Separation,
    projections,
    separation,
    separation_map,
)

__all__ = [
    "LEVEL",
    "Estimate",
    "Projections",
    "Separation",
    "adjusted",
    "bootstrap",
    "detectable",
    "in_points",
    "interaction",
    "mcnemar",
    "null_rank",
    "paired",
    "paired_bootstrap",
    "points_between",
    "projections",
    "reached",
    "separation",
    "separation_map",
    "sign_flip",
    "wilson",
]
