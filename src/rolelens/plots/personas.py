"""Figures of the space that roles span, and of conversations in it."""

import pandas as pd
import plotly.graph_objects as go

from rolelens.plots.style import COLOURS, filled, line, styled
from rolelens.plots.vectors import LABEL, label_places

NAMED = 40
"""Names that are written beside their points; of more, they show on hovering alone."""


def persona_map(table: pd.DataFrame) -> go.Figure:
    """Roles on two components, coloured by their group; hovering shows what they are.

    Args:
        table: from ``space.map(layer)`` of a persona space.

    Raises:
        InputError: an empty table.
    """
    filled(table, "the map of roles")
    figure, named = go.Figure(), len(table) <= NAMED
    table = table.assign(where=label_places(table) if named else "top center")
    for cluster, rows in table.groupby("cluster", sort=True):
        default = cluster == 0
        colour = "#000000" if default else COLOURS[(int(str(cluster)) - 1) % (len(COLOURS) - 2)]
        figure.add_trace(
            go.Scatter(
                x=rows["x"],
                y=rows["y"],
                text=rows["name"],
                name="the model as itself" if default else f"group {cluster}",
                mode="markers+text" if default or named else "markers",
                textposition=rows["where"],
                textfont={"size": LABEL},
                marker={
                    "size": 13 if default else 9,
                    "color": colour,
                    "symbol": "star" if default else "circle",
                },
                customdata=rows[["axis", "nearest"]],
                hovertemplate="<b>%{text}</b><br>along the assistant axis: %{customdata[0]:.2f}"
                "<br>near: %{customdata[1]}<extra></extra>",
                cliponaxis=False,
            )
        )
    figure.update_xaxes(title="first component")
    figure.update_yaxes(title="second component")
    return styled(figure, "Roles, and the model as itself", height=660)


def drift(table: pd.DataFrame) -> go.Figure:
    """A conversation along directions, turn by turn, from :func:`rolelens.drift`.

    Raises:
        InputError: an empty table.
    """
    filled(table, "drift")
    figure = go.Figure()
    for n, ((name, layer), rows) in enumerate(table.groupby(["name", "layer"], sort=False)):
        said = rows.dropna(subset=["answer_mean"])
        turns, values = said["turn"].tolist(), said["answer_mean"].tolist()
        figure.add_trace(line(f"{name} of layer {layer}", turns, values, n, "", along="turn"))
    figure.update_xaxes(title="turn of the assistant", dtick=1)
    figure.update_yaxes(title="projection of the turn's mean")
    return styled(figure, "A conversation, turn by turn")
