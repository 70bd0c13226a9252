"""Plotly figures of numbers computed elsewhere."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from rolelens.errors import unknown
from rolelens.stats import Projections, Separation
from rolelens.sweep import Sweep
from rolelens.vectors import RoleVectors

# Okabe-Ito: told apart with every common colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
DASHES = ("solid", "dash", "dot", "dashdot")
SEQUENTIAL, DIVERGING = "Cividis", "RdBu_r"
WIDTH = 800


def projections(projected: Projections, layers: Sequence[int] | None = None) -> go.Figure:
    """Histograms of held-out prompts on the direction from base to role, a panel a layer.

    Args:
        projected: from :func:`rolelens.projections`.
        layers: which layers; six, evenly spread over those with any spread, by default.
    """
    if layers is None:
        live = [n for n in range(len(projected.layers)) if projected.of_role[:, n].abs().max() > 0]
        spread = torch.linspace(0, len(live) - 1, min(6, len(live))).round().int().tolist()
        layers = [projected.layers[live[n]] for n in spread]
    for layer in layers:
        if layer not in projected.layers:
            raise unknown("layer", layer, projected.layers)
    columns = 3
    rows = -(-len(layers) // columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=[f"layer {layer}" for layer in layers],
        vertical_spacing=0.3 / rows,
    )
    groups = ((projected.role, projected.of_role), ("base", projected.of_base))
    for n, layer in enumerate(layers):
        column = projected.layers.index(layer)
        both = torch.cat([values[:, column] for _, values in groups])
        low, high = float(both.min()), float(both.max())
        for k, (name, values) in enumerate(groups):
            figure.add_trace(
                go.Histogram(
                    x=values[:, column].tolist(),
                    name=name,
                    legendgroup=name,
                    showlegend=n == 0,
                    histnorm="probability",
                    xbins={"start": low, "end": high * 1.0001, "size": (high - low) / 20 or 1},
                    marker={"color": COLOURS[k]},
                    opacity=0.6,
                ),
                row=n // columns + 1,
                col=n % columns + 1,
            )
    figure.update_layout(barmode="overlay")
    figure.update_yaxes(title="share of prompts", col=1)
    figure.update_xaxes(title="projection", row=rows)
    title = f"Held-out prompts projected on '{projected.role}' minus base (residual units)"
    return styled(figure, title, height=120 + 240 * rows)


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
        figure.add_trace(_line(result.role, layers, list(result.auroc), n, "AUROC"))
    figure.add_hline(y=0.5, line_dash="dot", line_color="#666666", annotation_text="chance")
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="AUROC (held-out prompts)")
    return styled(figure, "Role prompts against base prompts, by layer (band: 95 % bootstrap)")


def separation_map(auroc: pd.DataFrame, role: str = "role") -> go.Figure:
    """AUROC by layer and position, from :func:`rolelens.stats.separation_map`."""
    figure = _panel(auroc, "AUROC", SEQUENTIAL, (0.5, 1.0))
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="position")
    title = f"'{role}' against base prompts: AUROC of held-out prompts"
    return styled(figure, title, height=200 + 42 * max(len(auroc), 3))


def cosines(vectors: RoleVectors, layer: int, position: int = -1) -> go.Figure:
    """Cosine similarity of every two roles in one cell."""
    found = vectors.cosines(layer, position)
    frame = pd.DataFrame(found.numpy(), index=vectors.roles, columns=vectors.roles)
    figure = _panel(frame, "cosine", DIVERGING, (-1.0, 1.0))
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
        figure.add_trace(_line(role, list(vectors.layers), shares[n].tolist(), n, "share"))
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="‖d‖ / mean ‖x‖", rangemode="tozero")
    title = f"Norm of the role vectors against the residual stream, position {position}"
    return styled(figure, title, height=max(420, 160 + 20 * len(vectors.roles)))


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
        figure.add_trace(_cells(grid), row=n + 1, col=1)
        figure.update_yaxes(title="position", type="category", row=n + 1, col=1)
        figure.update_xaxes(type="category", row=n + 1, col=1)
    figure.update_xaxes(title="layer", row=len(sweep.alphas), col=1)
    label = value.replace("_", " ")
    scale, ends = (DIVERGING, (-limit, limit)) if gain else (SEQUENTIAL, (None, None))
    figure.update_layout(coloraxis=_coloraxis(label, scale, ends))
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
    figure = _panel(grid, "points", DIVERGING, (-limit, limit))
    figure.update_traces(text=stars.to_numpy(), texttemplate="%{text}", textfont={"size": 18})
    figure.update_xaxes(tickangle=-45)
    figure.update_yaxes(autorange="reversed")
    title = "Gain on held-out questions of every domain (* p < 0.05, Holm)"
    return styled(figure, title, height=260 + 22 * max(len(grid), 4))


def styled(figure: go.Figure, title: str, height: int = 420) -> go.Figure:
    """Give a figure the look that all have."""
    figure.update_layout(
        template="plotly_white",
        title={"text": title, "font": {"size": 16}, "x": 0, "xref": "paper", "xanchor": "left"},
        font={"size": 13},
        width=WIDTH,
        height=height,
        margin={"l": 80, "r": 30, "t": 80, "b": 60},
    )
    return figure


def _line(name: str, layers: list[int], values: list[float], n: int, label: str) -> go.Scatter:
    """A line of one role; beyond eight, colours come back with another dash."""
    return go.Scatter(
        x=layers,
        y=values,
        name=name,
        legendgroup=name,
        mode="lines+markers",
        line={
            "color": COLOURS[n % len(COLOURS)],
            "dash": DASHES[n // len(COLOURS) % len(DASHES)],
        },
        marker={"size": 5},
        hovertemplate=f"layer %{{x}}: {label} %{{y:.3f}}<extra>{name}</extra>",
    )


def _cells(frame: pd.DataFrame) -> go.Heatmap:
    return go.Heatmap(
        z=frame.to_numpy(),
        x=[str(name) for name in frame.columns],
        y=[str(name) for name in frame.index],
        coloraxis="coloraxis",
        hovertemplate="%{x}, %{y}: %{z:.3f}<extra></extra>",
    )


def _panel(
    frame: pd.DataFrame, label: str, scale: str, ends: tuple[float | None, float | None]
) -> go.Figure:
    figure = go.Figure(_cells(frame))
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category")
    figure.update_layout(coloraxis=_coloraxis(label, scale, ends))
    return figure


def _coloraxis(
    label: str, scale: str, ends: tuple[float | None, float | None]
) -> dict[str, object]:
    return {"colorscale": scale, "cmin": ends[0], "cmax": ends[1], "colorbar": {"title": label}}
