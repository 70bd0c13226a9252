"""Figures of how role vectors lie to each other."""

from collections.abc import Mapping
from typing import TypeAlias

import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from rolelens.errors import unknown
from rolelens.plots.style import COLOURS, DIVERGING, band, line, panel, styled
from rolelens.vectors import RoleVectors
from rolelens.vectors.geometry import PCA

Box: TypeAlias = tuple[float, float, float, float]
LABEL, PLANE = 11, 520
"""Size of the labels of a plane of roles, and how wide and high it is about, in pixels."""


def cosines(vectors: RoleVectors, layer: int, position: int = -1) -> go.Figure:
    """Cosine similarity of every two roles in one cell."""
    found = vectors.cosines(layer, position)
    frame = pd.DataFrame(found.numpy(), index=vectors.roles, columns=vectors.roles)
    figure = panel(frame, "cosine", DIVERGING, (-1.0, 1.0))
    figure.update_xaxes(tickangle=-45)
    figure.update_yaxes(autorange="reversed")
    title = f"Cosine between role vectors at layer {layer}, position {position}"
    return styled(figure, title, height=max(420, 260 + 22 * len(vectors.roles)))


def norms(vectors: RoleVectors, position: int = -1) -> go.Figure:
    """Norm of every role's direction as a share of the norm of the residual stream, by layer."""
    if position not in vectors.positions:
        raise unknown("position", position, vectors.positions)
    shares = vectors.relative_norms()[:, :, vectors.positions.index(position)]
    figure = go.Figure()
    for n, role in enumerate(vectors.roles):
        figure.add_trace(line(role, list(vectors.layers), shares[n].tolist(), n, "share"))
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="‖d‖ / mean ‖x‖", rangemode="tozero")
    title = f"Norm of the role vectors against the residual stream, position {position}"
    return styled(figure, title, height=max(420, 160 + 20 * len(vectors.roles)))


def pca(found: PCA, domains: Mapping[str, str] | None = None) -> go.Figure:
    """Roles on two principal components, from :func:`rolelens.vectors.geometry.pca`.

    Args:
        found: the components.
        domains: the domain of each role, which colours it.
    """
    figure, table = go.Figure(), found.table.assign(where=_places(found.table))
    groups = table["role"].map(dict(domains)) if domains else pd.Series("", table.index)
    for n, (domain, own) in enumerate(table.groupby(groups, sort=False)):
        figure.add_trace(
            go.Scatter(
                x=own["x"],
                y=own["y"],
                text=own["role"],
                name=str(domain),
                mode="markers+text",
                textposition=own["where"],
                textfont={"size": LABEL},
                marker={"size": 9, "color": COLOURS[n % len(COLOURS)]},
                cliponaxis=False,
                showlegend=bool(domains),
            )
        )
    for axis, share, update in (
        ("first", found.explained[0], figure.update_xaxes),
        ("second", found.explained[1], figure.update_yaxes),
    ):
        update(title=f"{axis} component ({share:.0%} of the variance)")
    return styled(figure, "Role vectors on their principal components", height=PLANE + 140)


def _places(table: pd.DataFrame) -> list[str]:
    """Where each role's label stands, so that it covers as little as possible of what is there."""
    ends = [(table[axis].min(), table[axis].max()) for axis in "xy"]
    scales = [PLANE / ((high - low) or 1.0) for low, high in ends]
    points = [(x * scales[0], y * scales[1]) for x, y in zip(table["x"], table["y"], strict=True)]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    chosen = []
    for (x, y), role in zip(points, table["role"], strict=True):
        width, height = 0.6 * LABEL * len(role), 1.4 * LABEL
        boxes = {
            "top center": (x - width / 2, y + 5, x + width / 2, y + 5 + height),
            "bottom center": (x - width / 2, y - 5 - height, x + width / 2, y - 5),
            "middle right": (x + 6, y - height / 2, x + 6 + width, y + height / 2),
            "middle left": (x - 6 - width, y - height / 2, x - 6, y + height / 2),
        }
        best = min(boxes, key=lambda name: sum(_overlap(boxes[name], other) for other in taken))
        chosen.append(best)
        taken.append(boxes[best])
    return chosen


def _overlap(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def clustering(table: pd.DataFrame) -> go.Figure:
    """Cosine within and between domains, from :func:`rolelens.vectors.geometry.clustering`."""
    figure = go.Figure()
    for n, name in enumerate(("within", "between")):
        layers, values = table["layer"].tolist(), table[name].tolist()
        figure.add_trace(line(f"{name} domains", layers, values, n, "cosine"))
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="mean cosine of two roles")
    return styled(figure, "Roles of one domain and of different domains")


def reliability(table: pd.DataFrame, value: str = "cosine") -> go.Figure:
    """Split-half cosine by layer, from :func:`rolelens.vectors.geometry.reliability`.

    Args:
        table: the cosines.
        value: ``cosine``, or ``own`` for what the roles do not share.
    """
    if value not in table:
        raise unknown("column", value, table.columns)
    figure = go.Figure()
    for n, (role, own) in enumerate(table.groupby("role", sort=False)):
        layers, values = own["layer"].tolist(), own[value].tolist()
        figure.add_trace(line(str(role), layers, values, n, "cosine"))
    figure.update_xaxes(title="layer")
    lowest = min(0.0, float(table[value].min()))
    figure.update_yaxes(title="cosine of two halves", range=[lowest - 0.05, 1.05])
    what = "without what the roles share" if value == "own" else "of the prompts' halves"
    height = max(420, 160 + 20 * table["role"].nunique())
    return styled(figure, f"Split-half reliability, {what}", height=height)


def agreement(
    cosines: Float[Tensor, "layer layer"], layers: tuple[int, ...] | None = None
) -> go.Figure:
    """Cosine between layers, from :func:`rolelens.vectors.geometry.agreement`."""
    names = list(layers or range(len(cosines)))
    frame = pd.DataFrame(cosines.numpy(), index=names, columns=names)
    figure = panel(frame, "cosine", DIVERGING, (-1.0, 1.0))
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="layer", autorange="reversed")
    return styled(figure, "Cosine of a role's directions at two layers (mean of roles)", height=620)


def learning_curve(table: pd.DataFrame) -> go.Figure:
    """Cosine by the number of prompts, from :func:`rolelens.vectors.geometry.learning_curve`."""
    sizes, low, high, cosine = (
        table[name].tolist() for name in ("prompts", "low", "high", "cosine")
    )
    figure = go.Figure(band(sizes, low, high, COLOURS[0], "cosine"))
    figure.add_trace(line("cosine", sizes, cosine, 0, "cosine", along="prompts"))
    figure.update_xaxes(title="prompts of each set", type="log", tickvals=sizes)
    figure.update_yaxes(title="cosine of two directions")
    title = "How alike directions from other prompts are (band: 5 % to 95 % of draws)"
    return styled(figure, title).update_layout(showlegend=False)
