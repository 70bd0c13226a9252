"""Figures of estimators."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy.stats import spearmanr

from rolelens.plots.style import COLOURS, line, styled

TITLES = {
    "questions": "questions",
    "anisotropy": "anisotropy of the noise",
    "spread": "unevenness of the questions",
}


def recovery(table: pd.DataFrame) -> go.Figure:
    """Cosine of estimated directions with the true one, a panel for each thing that is varied.

    Args:
        table: from :func:`rolelens.vectors.recovery.recovery`.
    """
    varied = list(dict.fromkeys(table["varied"]))
    figure = make_subplots(rows=1, cols=len(varied), shared_yaxes=True, horizontal_spacing=0.04)
    for column, name in enumerate(varied, 1):
        own = table[table["varied"] == name]
        for n, (estimator, rows) in enumerate(own.groupby("estimator", sort=False)):
            x, y = rows["value"].tolist(), rows["cosine"].tolist()
            drawn = line(str(estimator), x, y, n, "cosine", along=TITLES.get(name, name))
            drawn.showlegend = column == 1
            figure.add_trace(drawn, row=1, col=column)
        figure.update_xaxes(title=TITLES.get(name, name), row=1, col=column)
        if name == "questions":
            figure.update_xaxes(type="log", tickvals=own["value"].unique(), row=1, col=column)
    figure.update_yaxes(title="cosine with the true direction", row=1, col=1)
    styled(figure, "How well a planted direction is found", height=520)
    figure.update_layout(legend={"orientation": "h", "y": -0.22, "x": 0})
    return figure


def magnitudes(table: pd.DataFrame) -> go.Figure:
    """How large each question's difference is beside how far it points where the others do.

    Args:
        table: from :func:`rolelens.vectors.geometry.magnitudes`.
    """
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
