"""Figures of what directions read as."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from rolelens.plots.style import COLOURS, SEQUENTIAL, filled, line, panel, styled


def rates(table: pd.DataFrame) -> go.Figure:
    """How often roles are read as themselves, from :func:`rolelens.patchscoping.rates`.

    Bars are 95 % intervals; beside them the rates of nulls and of mismatched roles.

    Raises:
        InputError: an empty table.
    """
    filled(table, "rates")
    roles = table["name"].tolist()
    figure = go.Figure()
    figure.add_trace(
        go.Scatter(
            x=table["rate"],
            y=roles,
            mode="markers",
            name="directions of the role",
            marker={"size": 9, "color": COLOURS[0]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": table["high"] - table["rate"],
                "arrayminus": table["rate"] - table["low"],
            },
        )
    )
    for n, (column, name) in enumerate((("nulls", "nulls"), ("mismatched", "other roles"))):
        figure.add_trace(
            go.Scatter(
                x=table[column],
                y=roles,
                mode="markers",
                name=name,
                marker={"size": 9, "color": COLOURS[n + 1], "symbol": ("x", "diamond")[n]},
            )
        )
    figure.update_xaxes(title="share read as the role", range=[-0.02, 1.02])
    figure.update_yaxes(autorange="reversed", type="category")
    title = "Directions read as their role, beside chance (bars: 95 %)"
    return styled(figure, title, height=max(420, 160 + 24 * len(roles)))


def confusion(table: pd.DataFrame) -> go.Figure:
    """As which role each role is read, from :func:`rolelens.patchscoping.confusion`."""
    figure = panel(table, "share", SEQUENTIAL, (0.0, 1.0))
    figure.update_xaxes(title="read as", tickangle=-45)
    figure.update_yaxes(title="direction of", autorange="reversed")
    return styled(figure, "As which role directions are read", height=260 + 22 * len(table))


def turns(
    roles: Sequence[str], projections: Sequence[float | None], what: str = "direction"
) -> go.Figure:
    """What every turn of a conversation projects to, in the order in which they were said.

    Args:
        roles: who says each turn.
        projections: the mean of its tokens (residual units); None where it is not known.
        what: on which direction.
    """
    figure = go.Figure()
    for n, role in enumerate(dict.fromkeys(roles)):
        places = [
            k
            for k, (r, value) in enumerate(zip(roles, projections, strict=True))
            if r == role and value is not None
        ]
        values = [float(projections[k] or 0.0) for k in places]
        figure.add_trace(line(role, [k + 1 for k in places], values, n, "projection", along="turn"))
    figure.add_hline(y=0.0, line_dash="dot", line_color="#666666")
    figure.update_xaxes(title="turn")
    figure.update_yaxes(title="mean projection")
    return styled(figure, f"Turns projected on {what}", height=300).update_layout(width=520)
