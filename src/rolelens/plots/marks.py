"""What SVG figures are drawn with: axes, lines, marks and texts."""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, TypeAlias

import numpy as np

GREY, INK, EMPTY = "#dfe3e8", "#2a3f5f", "#eeeeee"
DASHED = {"dash": "9,5", "dot": "2,4", "dashdot": "9,4,2,4"}
Number: TypeAlias = int | float
LETTER = 0.56
"""Width of a letter as a share of its size."""


@dataclass
class Axis:
    """One axis of a panel: where a value stands, and its ticks."""

    spec: Any
    start: Number
    end: Number
    values: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.categories: list[str] = []
        self.low = self.high = 0.0

    def settle(self) -> None:
        """Fix the range once all values are known."""
        category = self.spec.type == "category" or any(isinstance(v, str) for v in self.values)
        if category:
            self.categories = list(dict.fromkeys(map(str, self.values)))
            self.low, self.high = -0.5, len(self.categories) - 0.5
        else:
            known = [self._number(v) for v in self.values if v is not None]
            known = [v for v in known if math.isfinite(v)] or [0.0, 1.0]
            self.low, self.high = min(known), max(known)
            if self.spec.rangemode == "tozero":
                self.low, self.high = min(self.low, 0.0), max(self.high, 0.0)
            pad = 0.05 * (self.high - self.low) or 0.5
            if self.spec.range is not None:
                self.low, self.high = (float(end) for end in self.spec.range)
            else:
                tight = self.spec.rangemode == "tozero" and self.low == 0
                self.low, self.high = self.low - (0 if tight else pad), self.high + pad
        if self.spec.autorange == "reversed":
            self.start, self.end = self.end, self.start

    def _number(self, value: Any) -> float:
        return math.log10(float(value)) if self.spec.type == "log" else float(value)

    def at(self, value: Any) -> float:
        """Where a value stands, in pixels."""
        if self.categories:
            number = float(self.categories.index(str(value)))
        else:
            number = self._number(value)
        return self.start + (number - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def step(self) -> float:
        """Pixels of a category."""
        return abs(self.end - self.start) / max(len(self.categories), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Where ticks stand, and what they say."""
        if self.categories:
            every = max(1, math.ceil(26 / self.step)) if numeric(self.categories) else 1
            shown = self.categories[::every]
            return [(self.at(name), name) for name in shown]
        if self.spec.tickvals is not None:
            return [(self.at(v), f"{v:g}") for v in self.spec.tickvals]
        rough = (self.high - self.low) / max(abs(self.end - self.start) / 75, 2)
        size = 10 ** math.floor(math.log10(rough))
        size *= next(factor for factor in (1, 2, 5, 10) if factor * size >= rough * 0.999)
        first = math.ceil(self.low / size - 1e-9)
        count = int((self.high - first * size) / size + 1e-9)
        return [
            (self.at((first + n) * size), f"{(first + n) * size:.6g}") for n in range(count + 1)
        ]


def numeric(names: Sequence[str]) -> bool:
    """Whether all names are whole numbers."""
    return all(name.lstrip("-").isdigit() for name in names)


def has_legend(trace: Any) -> bool:
    """Whether a trace can stand in a legend."""
    if trace.type == "scatter":
        return bool(trace.fill != "toself")
    return bool(trace.type == "histogram")


def listed(values: Any) -> list[Any]:
    """Values as plain Python ones."""
    return [] if values is None else [v.item() if hasattr(v, "item") else v for v in values]


def missing(value: Any) -> bool:
    """Whether there is no value."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def short(value: Any) -> str:
    """A value in few letters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def plain(text: str) -> str:
    """A text of plotly without its HTML."""
    return text.replace("<b>", "").replace("</b>", "").replace("<br>", " ")


def bins(trace: Any) -> list[tuple[float, float, float]]:
    """The bars of a histogram: their ends, and their share of the values."""
    values = np.array(listed(trace.x), dtype=float)
    start, end, size = (float(v) for v in (trace.xbins.start, trace.xbins.end, trace.xbins.size))
    edges = np.arange(start, end + size, size)
    counts, _ = np.histogram(values, edges)
    return [
        (float(low), float(high), float(count) / max(len(values), 1))
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]


def write(
    x: Number,
    y: Number,
    text: str,
    size: Number,
    anchor: str,
    ink: str = INK,
    extra: str = "",
    room: Number = math.inf,
) -> str:
    """A text, cut to the pixels that there are for it; then its ``<title>`` is the whole."""
    shown = fitted(text, size, room)
    whole = "" if shown == text else f"<title>{escape(text)}</title>"
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}" '
        f'fill="{ink}"{extra}>{escape(shown)}{whole}</text>'
    )


def width(text: str, size: Number) -> float:
    """About the pixels that a text takes."""
    wide = sum(c in "WMmw@%—" or unicodedata.east_asian_width(c) in "WF" for c in text)
    return size * LETTER * (len(text) + 0.8 * wide + 0.35 * sum(map(str.isupper, text)))


def fitted(text: str, size: Number, room: Number) -> str:
    """A text, or as much of it as there is room for."""
    if width(text, size) <= room:
        return text
    while text and width(text + "…", size) > room:
        text = text[:-1]
    return text.rstrip() + "…"


def around(x: Number, anchor: str, end: Number) -> float:
    """The pixels that a text at x has from 0 to an end."""
    return {"start": end - x, "end": x}.get(anchor, 2 * min(x, end - x))


def rule(
    x0: Number,
    y0: Number,
    x1: Number,
    y1: Number,
    ink: str,
    dash: str | None = None,
    wide: Number = 1,
) -> str:
    """A straight line."""
    return (
        f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{ink}" '
        f'stroke-width="{wide:g}"{dashes(dash)}/>'
    )


def dashes(dash: str | None) -> str:
    """How a line is dashed."""
    return f' stroke-dasharray="{dash}"' if dash else ""


def mark(marker: Any, colour: str, x: Number, y: Number, told: str, of: Any = None) -> str:
    """A point of plotly's marker, which tells something and may be named."""
    r = float(getattr(marker, "size", None) or 8) / 2
    symbol = getattr(marker, "symbol", None)
    shade = f'fill="{colour}" fill-opacity="{marker.opacity or 1}"'
    title = f"<title>{escape(told)}</title>" if told else ""
    if symbol == "x":
        d = f"M{x - r:.1f},{y - r:.1f}l{2 * r:g},{2 * r:g}m0,{-2 * r:g}l{-2 * r:g},{2 * r:g}"
        return f'<path d="{d}" stroke="{colour}" stroke-width="2">{title}</path>'
    if symbol == "diamond":
        d = f"M{x:.1f},{y - r:.1f}l{r:g},{r:g}l{-r:g},{r:g}l{-r:g},{-r:g}z"
        return f'<path d="{d}" {shade}>{title}</path>'
    named = "" if of is None else f' data-x="{escape(str(of))}"'
    return f'<circle{named} cx="{x:.1f}" cy="{y:.1f}" r="{r:g}" {shade}>{title}</circle>'


def beside(x: Number, y: Number, text: str, place: str, end: Number) -> str:
    """A text beside a point of a drawing that ends somewhere to the right."""
    dx, dy, anchor = {
        "top center": (0.0, -8.0, "middle"),
        "bottom center": (0.0, 17.0, "middle"),
        "middle right": (8.0, 4.0, "start"),
        "middle left": (-8.0, 4.0, "end"),
    }.get(place, (0.0, -8.0, "middle"))
    return write(x + dx, y + dy, text, 11, anchor, room=around(x + dx, anchor, end))


def dark(colour: str) -> bool:
    """Whether white is read better than black on a colour."""
    parts = [float(v) for v in colour.removeprefix("rgb(").rstrip(")").split(",")]
    return 0.3 * parts[0] + 0.59 * parts[1] + 0.11 * parts[2] < 120
