"""Plotly figures of numbers computed elsewhere."""

from rolelens.plots.estimators import magnitudes, recovery
from rolelens.plots.readings import confusion, rates
from rolelens.plots.scores import heatmap, transfer
from rolelens.plots.separation import projections, separation, separation_map
from rolelens.plots.style import styled
from rolelens.plots.vectors import (
    agreement,
    clustering,
    cosines,
    learning_curve,
    norms,
    pca,
    reliability,
)

__all__ = [
    "agreement",
    "clustering",
    "confusion",
    "cosines",
    "heatmap",
    "learning_curve",
    "magnitudes",
    "norms",
    "pca",
    "projections",
    "rates",
    "recovery",
    "reliability",
    "separation",
    "separation_map",
    "styled",
    "transfer",
]
