"""Figures of prompts of a name against base prompts."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from rolelens.errors import InputError, unknown
from rolelens.plots.style import COLOURS, SEQUENTIAL, band, line, panel, styled
from rolelens.stats import Projections, Separation


def projections(projected: Projections, layers: Sequence[int] | None = None) -> go.Figure:
    """Histograms of held-out prompts on the direction from base, a panel a layer.

    Args:
        projected: from :func:`rolelens.projections`.
        layers: which layers; six, evenly spread over those with any spread, by default.

    Raises:
        InputError: an unknown layer, or all projections are zero.
    """
    if layers is None:
        nonzero = projected.positive.abs().amax(dim=0).nonzero().flatten().tolist()
        if not nonzero:
            raise InputError(
                f"all projections of {projected.name!r} are zero, as at layer 0; take higher "
                "layers."
            )
        spread = torch.linspace(0, len(nonzero) - 1, min(6, len(nonzero))).round().int().tolist()
        layers = [projected.layers[nonzero[n]] for n in spread]
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
    groups = ((projected.name, projected.positive), ("base", projected.base))
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
    title = f"Held-out prompts projected on '{projected.name}' minus base (residual units)"
    return styled(figure, title, height=120 + 240 * rows)


def separation(results: Separation | Sequence[Separation]) -> go.Figure:
    """AUROC of held-out prompts against base prompts, layer by layer, with a 95 % band.

    Raises:
        InputError: an empty list.
    """
    several = [results] if isinstance(results, Separation) else list(results)
    if not several:
        raise InputError("there is no separation to draw; pass at least one.")
    figure = go.Figure()
    for n, result in enumerate(several):
        colour = COLOURS[n % len(COLOURS)]
        layers = list(result.layers)
        figure.add_trace(band(layers, result.low, result.high, colour, result.name))
        figure.add_trace(line(result.name, layers, list(result.auroc), n, "AUROC"))
    figure.add_hline(y=0.5, line_dash="dot", line_color="#666666", annotation_text="chance")
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="AUROC (held-out prompts)")
    return styled(figure, "Prompts against base prompts, by layer (band: 95 % bootstrap)")


def separation_map(auroc: pd.DataFrame, name: str = "role") -> go.Figure:
    """AUROC by layer and position, from :func:`rolelens.stats.separation_map`."""
    figure = panel(auroc, "AUROC", SEQUENTIAL, (0.5, 1.0))
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="position")
    title = f"'{name}' against base prompts: AUROC of held-out prompts"
    return styled(figure, title, height=200 + 42 * max(len(auroc), 3))
