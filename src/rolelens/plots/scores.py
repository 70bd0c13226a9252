"""Figures of sweeps and of held-out effects."""

from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rolelens.errors import InputError, unknown
from rolelens.plots.style import (
    DIVERGING,
    SEQUENTIAL,
    cells,
    coloraxis,
    filled,
    largest,
    panel,
    styled,
)

if TYPE_CHECKING:
    from rolelens.sweeps import Sweep

CELL = ("name", "layer", "position", "alpha")


def heatmap(sweep: "Sweep", name: str | None = None, value: str | None = None) -> go.Figure:
    """One number of all cells of a name, layers across and positions down, a panel an alpha.

    Args:
        sweep: the sweep.
        name: which name; the first by default.
        value: a column of numbers of ``sweep.table()``; the gain of the first measure by default.

    Raises:
        InputError: no cells, cells that are no grid, an unknown name, or no such column.
    """
    table = sweep.table()
    filled(table, "the sweep")
    if "steering" in table:
        raise InputError(
            "these cells are a list of steerings and no grid to draw; look at sweep.table()."
        )
    names = list(dict.fromkeys(table["name"]))
    name = names[0] if name is None else name
    if name not in names:
        raise unknown("name", name, names)
    columns = [str(column) for column in table.select_dtypes("number") if column not in CELL]
    column = next(c for c in columns if c.endswith("_gain")) if value is None else value
    if column not in columns:
        raise unknown("column", column, columns)
    rows = table[table["name"] == name]
    if rows["position"].isna().any():  # directions of no position
        rows = rows.assign(position=rows["position"].astype(object).fillna("none"))
    alphas = list(dict.fromkeys(rows["alpha"]))
    limit = largest(rows[column])
    gain = column.endswith("gain")
    figure = make_subplots(
        rows=len(alphas),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.12,
        subplot_titles=[f"alpha = {alpha:g}" for alpha in alphas],
    )
    for n, alpha in enumerate(alphas):
        grid = rows[rows["alpha"] == alpha].pivot(index="position", columns="layer", values=column)
        figure.add_trace(cells(grid), row=n + 1, col=1)
        figure.update_yaxes(title="position", type="category", row=n + 1, col=1)
        figure.update_xaxes(type="category", row=n + 1, col=1)
    figure.update_xaxes(title="layer", row=len(alphas), col=1)
    label = column.replace("_", " ")
    scale, ends = (DIVERGING, (-limit, limit)) if gain else (SEQUENTIAL, (None, None))
    figure.update_layout(coloraxis=coloraxis(label, scale, ends))
    measure = column.removesuffix("_gain")
    unsteered = f"unsteered {measure} {sweep.baseline.mean(measure):.3f}"
    title = f"{name}: {label} by cell ({len(sweep.baseline.items)} items, {unsteered})"
    height = 42 * max(rows["position"].nunique(), 2) + 40
    return styled(figure, title, height=180 + height * len(alphas))


def transfer(table: pd.DataFrame) -> go.Figure:
    """What each name does in each domain, from :func:`rolelens.evidence.transfer`.

    A star marks a gain that survives Holm's correction over all of them at 5 %.

    Raises:
        InputError: an empty table.
    """
    filled(table, "transfer")
    grid = table.pivot(index="name", columns="domain", values="gain")
    order = list(dict.fromkeys(table["name"]))
    grid = 100 * grid.loc[order]
    starred = table.assign(star=table["p_holm"].lt(0.05).map({True: "*", False: ""}))
    stars = starred.pivot(index="name", columns="domain", values="star").loc[order]
    limit = largest(grid)
    figure = panel(grid, "points", DIVERGING, (-limit, limit))
    figure.update_traces(text=stars.to_numpy(), texttemplate="%{text}", textfont={"size": 18})
    figure.update_xaxes(tickangle=-45)
    figure.update_yaxes(autorange="reversed")
    title = "Gain on held-out questions of each domain (* p < 0.05, Holm)"
    return styled(figure, title, height=260 + 22 * max(len(grid), 4))
