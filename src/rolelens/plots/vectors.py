"""Figures of how directions lie to each other."""

from collections.abc import Mapping
from typing import TypeAlias

import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from scipy.stats import spearmanr
from torch import Tensor

from rolelens.errors import InputError, unknown
from rolelens.plots.style import COLOURS, DIVERGING, band, filled, line, panel, styled
from rolelens.vectors import Directions
from rolelens.vectors.direction import position_text
from rolelens.vectors.geometry import PCA

Box: TypeAlias = tuple[float, float, float, float]
NUMBERED = 16
"""Names at most whose cosines are written into the cells."""
LABEL, PLANE = 11, 520
"""Size of the labels of a plane of names, and how wide and high it is about, in pixels."""


def cosines(vectors: Directions, layer: int, position: int | None = None) -> go.Figure:
    """Cosine similarity of every two names in one cell; the last position by default."""
    similarity = vectors.cosines(layer, position)
    frame = pd.DataFrame(similarity.numpy(), index=vectors.names, columns=vectors.names)
    figure = panel(frame, "cosine", DIVERGING, (-1.0, 1.0))
    figure.update_xaxes(tickangle=-45)
    figure.update_yaxes(autorange="reversed")
    if len(vectors.names) <= NUMBERED:
        figure.update_traces(text=frame.round(2).astype(str).to_numpy(), texttemplate="%{text}")
    where = position_text(vectors.positions[vectors.column(position)])
    title = f"Cosine between the directions of layer {layer}, position {where}"
    return styled(figure, title, height=max(420, 260 + 22 * len(vectors.names)))


def norms(vectors: Directions, position: int | None = None) -> go.Figure:
    """Norm of each name's direction as a share of the norm of the residual stream, by layer."""
    column = vectors.column(position)
    shares = vectors.relative_norms()[:, :, column]
    figure = go.Figure()
    for n, name in enumerate(vectors.names):
        figure.add_trace(line(name, list(vectors.layers), shares[n].tolist(), n, "share"))
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="‖d‖ / mean ‖x‖", rangemode="tozero")
    where = position_text(vectors.positions[column])
    title = f"Norm of the directions against the residual stream, position {where}"
    return styled(figure, title, height=max(420, 160 + 20 * len(vectors.names)))


def pca(result: PCA, domains: Mapping[str, str] | None = None) -> go.Figure:
    """Directions on two principal components, from :func:`rolelens.vectors.geometry.pca`.

    Args:
        result: the components.
        domains: the domain of each name, which colours it.

    Raises:
        InputError: a name has no domain.
    """
    for name in result.names if domains else ():
        if domains and name not in domains:
            raise InputError(f"{name!r} has no domain; pass one for it, or no domains at all.")
    figure, table = go.Figure(), result.table()
    table = table.assign(where=label_places(table))
    groups = table["name"].map(dict(domains)) if domains else pd.Series("", table.index)
    for n, (domain, rows) in enumerate(table.groupby(groups, sort=False)):
        figure.add_trace(
            go.Scatter(
                x=rows["x"],
                y=rows["y"],
                text=rows["name"],
                name=str(domain),
                mode="markers+text",
                textposition=rows["where"],
                textfont={"size": LABEL},
                marker={"size": 9, "color": COLOURS[n % len(COLOURS)]},
                cliponaxis=False,
                showlegend=bool(domains),
            )
        )
    for axis, share, update in (
        ("first", result.explained[0], figure.update_xaxes),
        ("second", result.explained[1], figure.update_yaxes),
    ):
        update(title=f"{axis} component ({share:.0%} of the variance)")
    return styled(figure, "Directions on their principal components", height=PLANE + 140)


def label_places(table: pd.DataFrame) -> list[str]:
    """Where each name's label stands, so that it covers as little as possible of what is there."""
    ends = [(table[axis].min(), table[axis].max()) for axis in "xy"]
    scales = [PLANE / ((high - low) or 1.0) for low, high in ends]
    points = [(x * scales[0], y * scales[1]) for x, y in zip(table["x"], table["y"], strict=True)]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    chosen = []
    for (x, y), label in zip(points, table["name"], strict=True):
        width, height = 0.6 * LABEL * len(label), 1.4 * LABEL
        boxes = {
            "top center": (x - width / 2, y + 5, x + width / 2, y + 5 + height),
            "bottom center": (x - width / 2, y - 5 - height, x + width / 2, y - 5),
            "middle right": (x + 6, y - height / 2, x + 6 + width, y + height / 2),
            "middle left": (x - 6 - width, y - height / 2, x - 6, y + height / 2),
        }
        best = min(boxes, key=lambda place: sum(_overlap(boxes[place], box) for box in taken))
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
    filled(table, "clustering")
    figure = go.Figure()
    for n, name in enumerate(("within", "between")):
        layers, values = table["layer"].tolist(), table[name].tolist()
        figure.add_trace(line(f"{name} domains", layers, values, n, "cosine"))
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="mean cosine of two names")
    return styled(figure, "Directions of one domain and of different domains")


def reliability(table: pd.DataFrame, value: str = "cosine") -> go.Figure:
    """Split-half cosine by layer, from :func:`rolelens.vectors.geometry.reliability`.

    Args:
        table: the cosines.
        value: ``cosine``, or ``without_shared`` for what the names do not share.

    Raises:
        InputError: an empty table, or it has no such column.
    """
    filled(table, "reliability")
    if value not in table:
        raise unknown("column", value, table.columns)
    figure = go.Figure()
    for n, (name, rows) in enumerate(table.groupby("name", sort=False)):
        layers, values = rows["layer"].tolist(), rows[value].tolist()
        figure.add_trace(line(str(name), layers, values, n, "cosine"))
    figure.update_xaxes(title="layer")
    lowest = min(0.0, float(table[value].min()))
    figure.update_yaxes(title="cosine of two halves", range=[lowest - 0.05, 1.05])
    without = value == "without_shared"
    what = "without what the names share" if without else "of the prompts' halves"
    height = max(420, 160 + 20 * table["name"].nunique())
    return styled(figure, f"Split-half reliability, {what}", height=height)


def agreement(
    cosines: Float[Tensor, "layer layer"], layers: tuple[int, ...] | None = None
) -> go.Figure:
    """Cosine between layers, from :func:`rolelens.vectors.geometry.agreement`."""
    labels = list(layers or range(len(cosines)))
    if len(labels) != len(cosines):
        raise InputError(f"{len(labels)} layers do not fit cosines of {len(cosines)}; name each.")
    frame = pd.DataFrame(cosines.numpy(), index=labels, columns=labels)
    figure = panel(frame, "cosine", DIVERGING, (-1.0, 1.0))
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="layer", autorange="reversed")
    return styled(figure, "Cosine of a name's directions at two layers (mean of names)", height=620)


def learning_curve(table: pd.DataFrame) -> go.Figure:
    """Cosine by the number of prompts, from :func:`rolelens.vectors.geometry.learning_curve`."""
    filled(table, "learning curve")
    sizes, low, high, cosine = (
        table[name].tolist() for name in ("prompts", "low", "high", "cosine")
    )
    figure = go.Figure(band(sizes, low, high, COLOURS[0], "cosine"))
    figure.add_trace(line("cosine", sizes, cosine, 0, "cosine", along="prompts"))
    figure.update_xaxes(title="prompts of each set", type="log", tickvals=sizes)
    figure.update_yaxes(title="cosine of two directions")
    title = "How alike directions from other prompts are (band: 5 % to 95 % of draws)"
    return styled(figure, title).update_layout(showlegend=False)


def magnitudes(table: pd.DataFrame) -> go.Figure:
    """How large each question's difference is beside how far it points where the others do.

    Args:
        table: from :func:`rolelens.vectors.geometry.magnitudes`.

    Raises:
        InputError: an empty table.
    """
    filled(table, "magnitudes")
    rho = float(spearmanr(table["magnitude"], table["consistency"]).statistic)
    figure = go.Figure(
        go.Scatter(
            x=table["magnitude"],
            y=table["consistency"],
            mode="markers",
            marker={"size": 8, "color": COLOURS[0], "opacity": 0.7},
            text=[str(group) for group in table["group"]],
            hovertemplate="question %{text}: norm %{x:.3g}, cosine %{y:.2f}<extra></extra>",
        )
    )
    figure.update_xaxes(title="norm of a question's difference", rangemode="tozero")
    figure.update_yaxes(title="cosine with the other questions'")
    return styled(figure, f"Magnitude and consistency (rank correlation {rho:.2f})")
