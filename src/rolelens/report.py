"""One self-contained HTML page a run: opens offline, and shows every text as text."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from rolelens.display import shipped
from rolelens.errors import write_whole
from rolelens.plots import svg
from rolelens.residuals import TokenTable
from rolelens.vectors import Source


class Report:
    """Blocks that are added one after the other and saved as one HTML file.

    Figures are drawn as SVG, which prints and needs no script; numbers show when a mark is pointed
    at, a click into a legend hides a line, and a click into a table's header sorts it.
    """

    def __init__(self, title: str, lead: str = "") -> None:
        self._title = title
        self._lead = lead
        self._headline = ""
        self._blocks: list[tuple[str, Any]] = []
        self._contents: list[tuple[str, str]] = []
        self._provenance: list[str] = []

    def headline(self, text: str) -> None:
        """The answer to the page's question, which stands first."""
        self._headline = text

    def heading(self, text: str) -> None:
        """Start a section, which the table of contents names."""
        plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"
        name = f"{plain}-{len(self._contents) + 1}"
        self._contents.append((name, text))
        self._blocks.append(("heading", (name, text)))

    def text(self, text: str) -> None:
        """A paragraph."""
        self._blocks.append(("text", text))

    def verdict(self, text: str) -> None:
        """A paragraph that states a result."""
        self._blocks.append(("verdict", text))

    def verdicts(self, texts: Sequence[str], summary: str) -> None:
        """Many results, folded under a line that says what they are."""
        self._blocks.append(("verdicts", (summary, list(texts))))

    def texts(self, labelled: list[tuple[str, str]]) -> None:
        """Texts side by side with their labels."""
        self._blocks.append(("texts", labelled))

    def tokens(self, table: TokenTable) -> None:
        """Texts coloured by what their tokens project to, as Jupyter shows them."""
        self._blocks.append(("raw", Markup(table._repr_html_())))

    def figure(self, figure: go.Figure) -> None:
        """A figure of :mod:`rolelens.plots`, as wide as the text."""
        self._blocks.append(("figure", Markup(svg(figure))))

    def table(self, frame: pd.DataFrame) -> None:
        """A table, floats with three decimals; the index is not shown."""
        rows = [[_cell(value) for value in row] for row in frame.itertuples(index=False)]
        columns = [str(name).replace("_", " ") for name in frame.columns]
        self._blocks.append(("table", {"columns": columns, "rows": rows}))

    def provenance(self, source: Source) -> None:
        """Say at the end what was measured."""
        self._provenance.append(
            f"Model {source.model} ({source.origin}), {source.model_class}, {source.dtype}; "
            f"chat template {source.template}; rolelens {source.version}."
        )

    def note(self, text: str) -> None:
        """A line at the end, on how the page came to be."""
        self._provenance.append(text)

    def save(self, path: str | Path) -> Path:
        """Write the page; returns its path."""
        page = (
            jinja2.Environment(autoescape=True)
            .from_string(shipped("report.html"))
            .render(
                title=self._title,
                lead=self._lead,
                headline=self._headline,
                blocks=self._blocks,
                contents=self._contents if len(self._contents) > 2 else [],
                provenance=self._provenance,
                styles=Markup(shipped("rolelens.css")),
                script=Markup(shipped("rolelens.js")),
            )
        )
        return write_whole(Path(path), page.replace("\x00", "\ufffd"))  # HTML has no NUL


def _cell(value: object) -> str:
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:.3f}"
    return "" if value is None else str(value)
