"""Plotly figures of numbers computed elsewhere."""

from rolelens.plots.changes import effects, parts
from rolelens.plots.curves import projections, separation, separation_map
from rolelens.plots.personas import drift, persona_map
from rolelens.plots.readings import confusion, rates, turns
from rolelens.plots.scores import heatmap, transfer
from rolelens.plots.static import svg
from rolelens.plots.style import styled
from rolelens.plots.vectors import (
    agreement,
    clustering,
    cosines,
    learning_curve,
    magnitudes,
    norms,
    pca,
    reliability,
)

__all__ = [
    "agreement",
    "clustering",
    "confusion",
    "cosines",
    "drift",
    "effects",
    "heatmap",
    "learning_curve",
    "magnitudes",
    "norms",
    "parts",
    "pca",
    "persona_map",
    "projections",
    "rates",
    "reliability",
    "separation",
    "separation_map",
    "styled",
    "svg",
    "transfer",
    "turns",
]
