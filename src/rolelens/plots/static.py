"""Figures as SVG: what stands in a page or an exported notebook without any script.

It draws what the figures of this package use: lines with bands, points, histograms and heatmaps, in
panels, with a legend or a colour bar. Every mark tells its numbers in a ``<title>``.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io
from plotly.colors import sample_colorscale

from rolelens.plots.marks import (
    DASHED,
    EMPTY,
    GREY,
    Axis,
    Number,
    around,
    beside,
    bins,
    dark,
    dashes,
    has_legend,
    listed,
    mark,
    missing,
    numeric,
    plain,
    rule,
    short,
    width,
    write,
)

DRAWN = ("scatter", "histogram", "heatmap")
WIDEST = 0.35
"""Share of a figure that its longest label may take."""


class Figure(go.Figure):  # type: ignore[misc]
    """A plotly figure that carries itself as SVG, too: for viewers that have no plotly."""

    def _ipython_display_(self) -> None:
        from IPython.display import display

        bundle = plotly.io.renderers._build_mime_bundle(self.to_dict())
        display({**bundle, "image/svg+xml": svg(self)}, raw=True)


def svg(figure: go.Figure) -> str:
    """A figure as one SVG element.

    Args:
        figure: one that this package makes.

    Raises:
        ValueError: it has a kind of trace that is not drawn.
    """
    return _Drawing(figure).drawn()


def widest(texts: Sequence[Any], size: Number) -> float:
    """About the pixels of the longest of some texts."""
    return max((width(str(text), size) for text in texts), default=0.0)


class _Drawing:
    """One figure on its way to SVG."""

    def __init__(self, figure: go.Figure) -> None:
        self.figure, self.layout = figure, figure.layout
        self.traces = list(figure.data)
        for trace in self.traces:
            if trace.type not in DRAWN:
                raise ValueError(f"a {trace.type} trace is not drawn as SVG")
        self.width = float(self.layout.width or 800)
        self.height = float(self.layout.height or 420)
        named = [t for t in self.traces if t.showlegend is not False and t.name and has_legend(t)]
        wanted = self.layout.showlegend
        self.legend = named if wanted or (wanted is None and len(named) > 1) else []
        self.bar: Any = self.layout.coloraxis if self.layout.coloraxis.colorscale else None
        self.axes = self._axes()

    def _axes(self) -> dict[str, Axis]:
        """The axes of all panels, by plotly's names."""
        margin = self.layout.margin
        labels = [str(v) for t in self.traces for v in listed(t.y) if isinstance(v, str)]
        angled = [str(v) for t in self.traces for v in listed(t.x) if isinstance(v, str)]
        left = max(margin.l or 80, min(40 + widest(labels, 13), WIDEST * self.width))
        right = float(margin.r or 30)
        if self.legend:
            right += 50 + min(widest([t.name for t in self.legend], 12), WIDEST * self.width)
        elif self.bar is not None:
            right += max(85, 22 + widest([self.bar.colorbar.title.text or ""], 12) - right)
        tilted = any(self.layout[a].tickangle for a in self.layout if str(a).startswith("xaxis"))
        bottom = float(margin.b or 60)
        if tilted:
            bottom = max(bottom, min(40 + 0.75 * widest(angled, 13), WIDEST * self.height))
        self.box = (float(left), float(margin.t or 80), self.width - right, self.height - bottom)
        axes: dict[str, Axis] = {}
        for trace in self.traces:
            for name, values in ((trace.xaxis or "x", trace.x), (trace.yaxis or "y", trace.y)):
                if name not in axes:
                    spec = self.layout[f"{name[0]}axis{name[1:]}"]
                    axes[name] = Axis(spec, *self._ends(name, spec.domain or (0.0, 1.0)))
                axes[name].values += listed(values)
            if trace.type == "histogram":
                bars = bins(trace)
                axes[trace.xaxis or "x"].values += [trace.xbins.start, trace.xbins.end]
                axes[trace.yaxis or "y"].values += [0.0, *(share for _, _, share in bars)]
            if trace.type == "scatter" and trace.error_x.array is not None:
                pairs = zip(trace.x, trace.error_x.array, trace.error_x.arrayminus, strict=True)
                axes[trace.xaxis or "x"].values += [e for x, u, d in pairs for e in (x + u, x - d)]
        for shape in self.layout.shapes or ():
            if shape.yref in axes:
                axes[shape.yref].values += [shape.y0, shape.y1]
            elif shape.xref in axes:
                axes[shape.xref].values += [shape.x0, shape.x1]
        for name, axis in axes.items():
            matched = axis.spec.matches
            if matched and matched in axes:
                axis.values += axes[matched].values
            axis.settle()
            if name[0] == "y" and any(t.type == "histogram" for t in self.traces):
                axis.low = 0.0
        return axes

    def _ends(self, name: str, domain: Sequence[Number]) -> tuple[float, float]:
        left, top, right, bottom = self.box
        if name[0] == "x":
            return left + domain[0] * (right - left), left + domain[1] * (right - left)
        return bottom - domain[0] * (bottom - top), bottom - domain[1] * (bottom - top)

    def drawn(self) -> str:
        """The whole element."""
        title = plain(str(self.layout.title.text or ""))
        begins = min(self.box[0], max(8.0, self.width - 8 - width(title, 16)))
        size = f'viewBox="0 0 {self.width:g} {self.height:g}" width="{self.width:g}"'
        style = "max-width:100%;height:auto;background:#fff;font-family:system-ui,sans-serif"
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="rl-figure" role="img" {size} '
            f'aria-label="{escape(title)}" style="{style}">',
            write(begins, 34, title, 16, "start", room=self.width - begins - 8),
            *self._grids(),
            *self._shapes(),
        ]
        drawers: dict[str, Callable[[Any, Axis, Axis], Iterator[str]]] = {
            "scatter": self._scatter,
            "histogram": self._histogram,
            "heatmap": self._heatmap,
        }
        for trace in self.traces:
            x, y = self.axes[trace.xaxis or "x"], self.axes[trace.yaxis or "y"]
            group = escape(str(trace.legendgroup or trace.name or ""))
            parts.append(
                f'<g class="rl-trace" data-group="{group}" opacity="{trace.opacity or 1}">'
            )
            parts += drawers[trace.type](trace, x, y)
            parts.append("</g>")
        parts += [*self._annotations(), *self._legend(), *self._colourbar(), "</svg>"]
        return "".join(parts)

    def _grids(self) -> Iterator[str]:
        panels = dict.fromkeys((t.xaxis or "x", t.yaxis or "y") for t in self.traces)
        for xname, yname in panels:
            x, y = self.axes[xname], self.axes[yname]
            (x0, x1), (y0, y1) = sorted((x.start, x.end)), sorted((y.start, y.end))
            for at, label in x.ticks():
                if not x.categories:
                    yield rule(at, y0, at, y1, GREY)
                if x.spec.showticklabels is not False:
                    turned = f' transform="rotate({x.spec.tickangle} {at:.1f} {y1 + 14:.1f})"'
                    tilt = turned if x.spec.tickangle else ""
                    anchor = "end" if tilt else "middle"
                    room = min(at, (self.height - y1 - 30) / 0.75) if tilt else math.inf
                    if x.categories and not tilt and not numeric(x.categories):
                        room = x.step - 4
                    yield write(at, y1 + 16, label, 12, anchor, extra=tilt, room=room)
            named = bool(y.spec.title.text)
            for at, label in y.ticks():
                if not y.categories:
                    yield rule(x0, at, x1, at, GREY)
                yield write(x0 - 7, at + 4, label, 12, "end", room=x0 - (29 if named else 11))
            if x.spec.title.text:
                below = 38 if not x.spec.tickangle else self.height - y1 - 14
                yield write((x0 + x1) / 2, y1 + below, str(x.spec.title.text), 13, "middle")
            if y.spec.title.text:
                labels = [label for _, label in y.ticks()]
                at, middle = max(x0 - 22 - widest(labels, 12), 14.0), (y0 + y1) / 2
                turn = f' transform="rotate(-90 {at:.1f} {middle:.1f})"'
                yield write(at, middle, str(y.spec.title.text), 13, "middle", extra=turn)

    def _shapes(self) -> Iterator[str]:
        left, top, right, bottom = self.box
        for shape in self.layout.shapes or ():
            dash = DASHED.get(shape.line.dash)
            if shape.yref in self.axes:
                y = self.axes[shape.yref].at(shape.y0)
                yield rule(left, y, right, y, shape.line.color, dash)
            else:
                x = self.axes[shape.xref].at(shape.x0)
                yield rule(x, top, x, bottom, shape.line.color, dash)

    def _annotations(self) -> Iterator[str]:
        left, top, right, bottom = self.box
        for note in self.layout.annotations or ():
            x = left + float(note.x) * (right - left)
            if note.yref == "paper":
                y = bottom - float(note.y) * (bottom - top) - 6
            else:
                y = self.axes[note.yref].at(note.y) - 5
            anchor = {"left": "start", "right": "end"}.get(note.xanchor or "center", "middle")
            room = around(x, anchor, self.width)
            yield write(x, y, plain(str(note.text)), 13, anchor, room=room)

    def _scatter(self, trace: Any, x: Axis, y: Axis) -> Iterator[str]:
        points = [
            (x.at(a), y.at(b), a, b)
            for a, b in zip(listed(trace.x), listed(trace.y), strict=True)
            if not missing(a) and not missing(b)
        ]
        mode = str(trace.mode or "lines")
        colour = trace.marker.color if isinstance(trace.marker.color, str) else trace.line.color
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _, _ in points)
        if trace.fill == "toself":
            yield f'<polygon points="{path}" fill="{trace.fillcolor}"/>'
            return
        if "lines" in mode:
            dash = DASHED.get(trace.line.dash or "")
            yield (
                f'<polyline points="{path}" fill="none" stroke="{trace.line.color}" '
                f'stroke-width="2"{dashes(dash)}/>'
            )
        if trace.error_x.array is not None:
            widths = zip(points, trace.error_x.array, trace.error_x.arrayminus, strict=True)
            for (_, py, a, _), up, down in widths:
                yield rule(x.at(a - down), py, x.at(a + up), py, colour)
        texts = listed(trace.text) or [""] * len(points)
        places = "top center" if trace.textposition is None else trace.textposition
        for n, (px, py, a, b) in enumerate(points):
            told = " ".join(filter(None, (str(trace.name or ""), str(texts[n]))))
            told = f"{told}: {short(a)}, {short(b)}".lstrip(": ")
            if "markers" in mode:
                drawn_in = colour or trace.line.color or GREY
                yield mark(trace.marker, drawn_in, px, py, told, a)
            if "text" in mode:
                place = places if isinstance(places, str) else places[n]
                yield beside(px, py, str(texts[n]), str(place), self.width)

    def _histogram(self, trace: Any, x: Axis, y: Axis) -> Iterator[str]:
        for low, high, share in bins(trace):
            if share:
                top, width = y.at(share), x.at(high) - x.at(low)
                yield (
                    f'<rect x="{x.at(low):.1f}" y="{top:.1f}" width="{width:.1f}" '
                    f'height="{y.at(0) - top:.1f}" fill="{trace.marker.color}"><title>'
                    f"{escape(str(trace.name))}: {share:.3g} from {low:.3g} to {high:.3g}"
                    "</title></rect>"
                )

    def _heatmap(self, trace: Any, x: Axis, y: Axis) -> Iterator[str]:
        values = np.array(trace.z, dtype=float)
        texts = None if trace.texttemplate is None else np.array(trace.text, dtype=object)
        panel = trace.yaxis or "y"
        for i, row in enumerate(listed(trace.y)):
            for j, column in enumerate(listed(trace.x)):
                value, px, py = values[i, j], x.at(column), y.at(row)
                fill = EMPTY if math.isnan(value) else self._colour(value)
                yield (
                    f'<rect class="rl-cell" data-panel="{panel}" data-x="{escape(str(column))}" '
                    f'data-y="{escape(str(row))}" x="{px - x.step / 2:.1f}" '
                    f'y="{py - y.step / 2:.1f}" width="{x.step:.1f}" height="{y.step:.1f}" '
                    f'fill="{fill}"><title>{escape(f"{column}, {row}: {value:.3f}")}</title></rect>'
                )
                if texts is not None and not math.isnan(value):
                    ink = "#fff" if dark(fill) else "#111"
                    size = max(8, min(13, x.step / 3.2))
                    yield write(px, py + size / 3, str(texts[i, j]), size, "middle", ink)

    def _ends_of_colours(self) -> tuple[float, float]:
        grids = [np.array(t.z, dtype=float) for t in self.traces if t.type == "heatmap"]
        low, high = self.bar.cmin, self.bar.cmax
        low = min(float(np.nanmin(grid)) for grid in grids) if low is None else float(low)
        high = max(float(np.nanmax(grid)) for grid in grids) if high is None else float(high)
        return low, high

    def _colour(self, value: float) -> str:
        low, high = self._ends_of_colours()
        share = min(max((value - low) / ((high - low) or 1.0), 0.0), 1.0)
        return str(sample_colorscale([list(pair) for pair in self.bar.colorscale], [share])[0])

    def _colourbar(self) -> Iterator[str]:
        if self.bar is None:
            return
        low, high = self._ends_of_colours()
        _, top, right, bottom = self.box
        tall = min(bottom - top, 220.0)
        x, steps = right + 22, 40
        yield write(x, top - 14, str(self.bar.colorbar.title.text or ""), 12, "start")
        for n in range(steps):
            value = high - (n + 0.5) / steps * (high - low)
            y = top + n * tall / steps
            yield (
                f'<rect x="{x:.1f}" y="{y:.1f}" width="16" height="{tall / steps + 0.5:.1f}" '
                f'fill="{self._colour(value)}"/>'
            )
        for share in (0.0, 0.5, 1.0):
            at = top + 4 + (1 - share) * tall
            yield write(x + 21, at, f"{low + share * (high - low):.3g}", 12, "start")

    def _legend(self) -> Iterator[str]:
        _, top, right, _ = self.box
        for n, trace in enumerate(self.legend):
            y = top + 10 + 20 * n
            group = escape(str(trace.legendgroup or trace.name))
            colour = trace.marker.color if isinstance(trace.marker.color, str) else trace.line.color
            yield f'<g class="rl-entry" data-group="{group}">'
            if trace.type == "scatter" and "lines" in str(trace.mode):
                dash = DASHED.get(trace.line.dash or "")
                yield rule(right + 14, y - 4, right + 38, y - 4, trace.line.color, dash, 2)
            else:
                yield mark(trace.marker, colour, right + 26, y - 4, "")
            room = self.width - right - 46
            yield write(right + 44, y, str(trace.name), 12, "start", room=room) + "</g>"
