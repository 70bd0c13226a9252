"""Figures of sweeps and of held-out effects."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rolelens.errors import unknown
from rolelens.plots.style import DIVERGING, SEQUENTIAL, cells, coloraxis, panel, styled
from rolelens.sweep import Sweep


def heatmap(sweep: Sweep, role: str | None = None, value: str = "accuracy_gain") -> go.Figure:
    """One number of every cell, layers across and positions down, a panel an alpha.

    Args:
        sweep: the sweep.
        role: which role; the first by default.
        value: a column of ``sweep.table()``.
    """
    table = sweep.table()
    role = sweep.roles[0] if role is None else role
    if role not in sweep.roles:
        raise unknown("role", role, sweep.roles)
    if value not in table.columns[4:]:
        raise unknown("column", value, table.columns[4:])
    own = table[table["role"] == role]
    limit = float(own[value].abs().max()) or 1.0
    gain = value.endswith("gain")
    figure = make_subplots(
        rows=len(sweep.alphas),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.12,
        subplot_titles=[f"alpha = {alpha:g}" for alpha in sweep.alphas],
    )
    for n, alpha in enumerate(sweep.alphas):
        grid = own[own["alpha"] == alpha].pivot(index="position", columns="layer", values=value)
        figure.add_trace(cells(grid), row=n + 1, col=1)
        figure.update_yaxes(title="position", type="category", row=n + 1, col=1)
        figure.update_xaxes(type="category", row=n + 1, col=1)
    figure.update_xaxes(title="layer", row=len(sweep.alphas), col=1)
    label = value.replace("_", " ")
    scale, ends = (DIVERGING, (-limit, limit)) if gain else (SEQUENTIAL, (None, None))
    figure.update_layout(coloraxis=coloraxis(label, scale, ends))
    rows = sum(max(len(sweep.positions), 2) for _ in sweep.alphas)
    n = len(sweep.baseline.questions)
    title = f"{role}: {label} by cell ({n} questions, unsteered {sweep.baseline.accuracy:.3f})"
    return styled(figure, title, height=180 + 42 * rows + 40 * len(sweep.alphas))


def transfer(table: pd.DataFrame) -> go.Figure:
    """What every role does in every domain, from :func:`rolelens.evidence.transfer`.

    A star marks a gain that survives Holm's correction over all of them at 5 %.
    """
    grid = table.pivot(index="role", columns="domain", values="gain")
    order = list(dict.fromkeys(table["role"]))
    grid = 100 * grid.loc[order]
    starred = table.assign(star=table["p_holm"].lt(0.05).map({True: "*", False: ""}))
    stars = starred.pivot(index="role", columns="domain", values="star").loc[order]
    limit = float(grid.abs().max().max()) or 1.0
    figure = panel(grid, "points", DIVERGING, (-limit, limit))
    figure.update_traces(text=stars.to_numpy(), texttemplate="%{text}", textfont={"size": 18})
    figure.update_xaxes(tickangle=-45)
    figure.update_yaxes(autorange="reversed")
    title = "Gain on held-out questions of every domain (* p < 0.05, Holm)"
    return styled(figure, title, height=260 + 22 * max(len(grid), 4))
