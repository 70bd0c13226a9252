"""Figures of what a steering changes: side effects, and the parts that carry an effect."""

import pandas as pd
import plotly.graph_objects as go

from rolelens.plots.style import COLOURS, filled, largest, styled

GREY = COLOURS[-1]


def effects(table: pd.DataFrame, nulls: pd.DataFrame) -> go.Figure:
    """Changes beside those of nulls, a row a measure.

    Measures have different units, so that each row is in units of the largest change of any null:
    what lies between the two lines, chance does as well.

    Args:
        table: of :class:`rolelens.evidence.SideEffects`.
        nulls: its ``nulls``.

    Raises:
        InputError: an empty table.
    """
    filled(table, "side effects")
    several = "steering" in table
    unit = table.groupby(["task", "measure"], sort=False)["null_most"].max()
    unit = unit.where(unit > 0)
    rows = [" ".join(place) for place in unit.index]
    figure = go.Figure()

    def add(part: pd.DataFrame, name: str, marker: dict[str, object]) -> None:
        places = pd.MultiIndex.from_frame(part[["task", "measure"]])
        figure.add_trace(
            go.Scatter(
                x=part["change"].to_numpy() / unit.reindex(places).to_numpy(),
                y=[" ".join(place) for place in places],
                mode="markers",
                name=name,
                marker=marker,
            )
        )

    columns = ["task", "measure", "null", "change"]
    add(nulls[columns].drop_duplicates(), "nulls", {"size": 7, "color": GREY, "symbol": "x"})
    groups = [("steering", table)]
    if several:
        groups = [(str(name), part) for name, part in table.groupby("steering", sort=False)]
    for n, (name, part) in enumerate(groups):
        add(part, name, {"size": 9, "color": COLOURS[n % (len(COLOURS) - 1)]})
    for end in (-1, 1):
        figure.add_vline(x=end, line={"color": GREY, "dash": "dot", "width": 1})
    widest = max(1.2, 1.1 * max(largest(pd.Series(trace.x)) for trace in figure.data))
    figure.update_xaxes(title="change / largest change of a null", range=[-widest, widest])
    figure.update_yaxes(autorange="reversed", type="category")
    title = "Changes beside those of nulls (dotted: the largest of these)"
    figure = styled(figure, title, height=max(420, 160 + 26 * len(rows)))
    figure.update_layout(margin={"l": 220})
    return figure


def parts(table: pd.DataFrame) -> go.Figure:
    """What each patched part carries alone, beside its prediction and the changes of nulls.

    Args:
        table: of :class:`rolelens.features.Attribution`, or some of its rows.

    Raises:
        InputError: an empty table.
    """
    filled(table, "parts")
    names = [
        f"{kind}{'' if pd.isna(index) else f' {int(index)}'}, layer {layer}"
        for kind, layer, index in zip(table["kind"], table["layer"], table["index"], strict=True)
    ]
    figure = go.Figure()
    shown = [("exact", "patched alone", "circle", 10), ("predicted", "predicted", "diamond", 8)]
    shown += [("null", "nulls (bars: as large as any)", "x", 8)] if "null" in table else []
    for n, (column, name, symbol, size) in enumerate(shown):
        bars: dict[str, object] | None = None
        if column == "null":
            bars = {
                "type": "data",
                "symmetric": False,
                "array": table["null_most"] - table["null"],
                "arrayminus": table["null_most"] + table["null"],
            }
        figure.add_trace(
            go.Scatter(
                x=table[column],
                y=names,
                mode="markers",
                name=name,
                marker={"size": size, "color": (*COLOURS[:2], GREY)[n], "symbol": symbol},
                error_x=bars,
            )
        )
    figure.add_vline(x=0, line={"color": GREY, "dash": "dot", "width": 1})
    figure.update_xaxes(title="effect on the measure")
    figure.update_yaxes(autorange="reversed", type="category")
    figure = styled(figure, "What parts carry alone", height=max(420, 160 + 26 * len(names)))
    figure.update_layout(margin={"l": 180})
    return figure
