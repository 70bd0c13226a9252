"""The look that all figures have."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from rolelens.errors import InputError
from rolelens.plots.static import Figure

# Okabe-Ito: told apart with all common kinds of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
DASHES = ("solid", "dash", "dot", "dashdot")
SEQUENTIAL, DIVERGING = "Cividis", "RdBu_r"
WIDTH = 800


def styled(figure: go.Figure, title: str, height: int = 420) -> Figure:
    """Give a figure the look that all have, and a static form."""
    figure.update_layout(
        template="plotly_white",
        title={"text": title, "font": {"size": 16}, "x": 0, "xref": "paper", "xanchor": "left"},
        font={"size": 13},
        width=WIDTH,
        height=height,
        margin={"l": 80, "r": 30, "t": 80, "b": 60},
    )
    return Figure(figure)


def line(
    name: str,
    x: Sequence[int | float],
    values: list[float],
    n: int,
    label: str,
    *,
    along: str = "layer",
) -> go.Scatter:
    """A line of one name; beyond eight, colours come back with another dash."""
    return go.Scatter(
        x=x,
        y=values,
        name=name,
        legendgroup=name,
        mode="lines+markers",
        line={
            "color": COLOURS[n % len(COLOURS)],
            "dash": DASHES[n // len(COLOURS) % len(DASHES)],
        },
        marker={"size": 5},
        hovertemplate=f"{along} %{{x}}: {label} %{{y:.3f}}<extra>%{{fullData.name}}</extra>",
    )


def band(
    x: Sequence[int | float], low: Sequence[float], high: Sequence[float], colour: str, name: str
) -> go.Scatter:
    """What lies between two lines, shown and hidden with the line of that name."""
    return go.Scatter(
        x=[*x, *x[::-1]],
        y=[*high, *low[::-1]],
        fill="toself",
        fillcolor=colour,
        opacity=0.2,
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=name,
    )


def filled(table: pd.DataFrame, what: str) -> None:
    """Refuse to draw a table without rows.

    Raises:
        InputError: it has none.
    """
    if table.empty:
        raise InputError(f"the table of {what} has no rows to draw; compute it of more.")


def largest(table: pd.DataFrame | pd.Series) -> float:
    """The largest absolute number of a table, for an axis; 1 where there is none above 0."""
    sizes = table.to_numpy(dtype=float, na_value=float("nan"))
    return float(np.nanmax(np.abs(sizes), initial=0.0)) or 1.0


def cells(frame: pd.DataFrame) -> go.Heatmap:
    """A heatmap of a table, on the colour axis of the figure."""
    return go.Heatmap(
        z=frame.to_numpy(),
        x=[str(name) for name in frame.columns],
        y=[str(name) for name in frame.index],
        coloraxis="coloraxis",
        hovertemplate="%{x}, %{y}: %{z:.3f}<extra></extra>",
    )


def panel(
    frame: pd.DataFrame, label: str, scale: str, ends: tuple[float | None, float | None]
) -> go.Figure:
    """A figure of one heatmap.

    Raises:
        InputError: an empty table.
    """
    filled(frame, label)
    figure = go.Figure(cells(frame))
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category")
    figure.update_layout(coloraxis=coloraxis(label, scale, ends))
    return figure


def coloraxis(label: str, scale: str, ends: tuple[float | None, float | None]) -> dict[str, object]:
    """A colour axis with a label and ends."""
    return {"colorscale": scale, "cmin": ends[0], "cmax": ends[1], "colorbar": {"title": label}}
