"""Separation, intervals and tests. Pure mathematics: no model is known here."""

from rolelens.stats.calibration import (
    confident_errors,
    entropies,
    expected_calibration_error,
    reliability,
)
from rolelens.stats.inference import (
    LEVEL,
    Estimate,
    adjusted,
    bootstrap,
    detectable,
    detectable_mean,
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
from rolelens.stats.linearity import probes
from rolelens.stats.separability import (
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
    "confident_errors",
    "detectable",
    "detectable_mean",
    "entropies",
    "expected_calibration_error",
    "in_points",
    "interaction",
    "mcnemar",
    "null_rank",
    "paired",
    "paired_bootstrap",
    "points_between",
    "probes",
    "projections",
    "reached",
    "reliability",
    "separation",
    "separation_map",
    "sign_flip",
    "wilson",
]
