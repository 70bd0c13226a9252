"""Figures of role prompts against base prompts."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from rolelens.errors import unknown
from rolelens.plots.style import COLOURS, SEQUENTIAL, band, line, panel, styled
from rolelens.stats import Projections, Separation


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
        figure.add_trace(band(layers, result.low, result.high, colour, result.role))
        figure.add_trace(line(result.role, layers, list(result.auroc), n, "AUROC"))
    figure.add_hline(y=0.5, line_dash="dot", line_color="#666666", annotation_text="chance")
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="AUROC (held-out prompts)")
    return styled(figure, "Role prompts against base prompts, by layer (band: 95 % bootstrap)")


def separation_map(auroc: pd.DataFrame, role: str = "role") -> go.Figure:
    """AUROC by layer and position, from :func:`rolelens.stats.separation_map`."""
    figure = panel(auroc, "AUROC", SEQUENTIAL, (0.5, 1.0))
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="position")
    title = f"'{role}' against base prompts: AUROC of held-out prompts"
    return styled(figure, title, height=200 + 42 * max(len(auroc), 3))
