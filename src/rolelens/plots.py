"""Plotly figures of numbers computed elsewhere."""

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rolelens.errors import unknown
from rolelens.stats import Separation
from rolelens.sweep import Sweep

# Okabe-Ito: told apart with every common colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
DIVERGING = "RdBu_r"
WIDTH = 900


def separation(results: Separation | Sequence[Separation]) -> go.Figure:
    """AUROC of held-out role prompts against base prompts, layer by layer, with a 95 % band."""
    several = [results] if isinstance(results, Separation) else list(results)
    figure = go.Figure()
    for n, result in enumerate(several):
        colour = COLOURS[n % len(COLOURS)]
        layers = list(result.layers)
        figure.add_trace(
            go.Scatter(
                x=layers + layers[::-1],
                y=list(result.high) + list(result.low)[::-1],
                fill="toself",
                fillcolor=colour,
                opacity=0.2,
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
                legendgroup=result.role,
            )
        )
        figure.add_trace(
            go.Scatter(
                x=layers,
                y=list(result.auroc),
                name=result.role,
                legendgroup=result.role,
                mode="lines+markers",
                line={"color": colour},
                marker={"size": 5},
                hovertemplate="layer %{x}: AUROC %{y:.3f}<extra>" + result.role + "</extra>",
            )
        )
    figure.add_hline(y=0.5, line_dash="dot", line_color="#666666", annotation_text="chance")
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="AUROC (held-out prompts)")
    return styled(figure, "Role prompts against base prompts, by layer (band: 95 % bootstrap)")


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
        figure.add_trace(
            go.Heatmap(
                z=grid.to_numpy(),
                x=[str(layer) for layer in grid.columns],
                y=[str(position) for position in grid.index],
                coloraxis="coloraxis",
                hovertemplate="layer %{x}, position %{y}: %{z:.3f}<extra></extra>",
            ),
            row=n + 1,
            col=1,
        )
        figure.update_yaxes(title="position", type="category", row=n + 1, col=1)
        figure.update_xaxes(type="category", row=n + 1, col=1)
    figure.update_xaxes(title="layer", row=len(sweep.alphas), col=1)
    label = value.replace("_", " ")
    figure.update_layout(
        coloraxis={
            "colorscale": DIVERGING if gain else "Viridis",
            "cmin": -limit if gain else None,
            "cmax": limit if gain else None,
            "colorbar": {"title": label},
        }
    )
    rows = sum(max(len(sweep.positions), 2) for _ in sweep.alphas)
    n = len(sweep.baseline.questions)
    title = (
        f"{role}: {label} of every cell ({n} questions, unsteered {sweep.baseline.accuracy:.3f})"
    )
    return styled(figure, title, height=180 + 42 * rows + 40 * len(sweep.alphas))


def styled(figure: go.Figure, title: str, height: int = 420) -> go.Figure:
    """Give a figure the look that all have."""
    figure.update_layout(
        template="plotly_white",
        title={"text": title, "font": {"size": 16}, "x": 0, "xref": "paper", "xanchor": "left"},
        font={"size": 13},
        width=WIDTH,
        height=height,
        margin={"l": 70, "r": 30, "t": 70, "b": 60},
    )
    return figure
