"""One self-contained HTML page a run: opens offline, and shows every text as text."""

from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from rolelens.errors import write_whole
from rolelens.vectors import Source


class Report:
    """Blocks that are added one after the other and saved as one HTML file."""

    def __init__(self, title: str, lead: str = "") -> None:
        self._title = title
        self._lead = lead
        self._blocks: list[tuple[str, Any]] = []
        self._provenance: list[str] = []

    def heading(self, text: str) -> None:
        """Start a section."""
        self._blocks.append(("heading", text))

    def text(self, text: str) -> None:
        """A paragraph."""
        self._blocks.append(("text", text))

    def verdict(self, text: str) -> None:
        """A paragraph that states a result."""
        self._blocks.append(("verdict", text))

    def texts(self, labelled: list[tuple[str, str]]) -> None:
        """Texts side by side with their labels."""
        self._blocks.append(("texts", labelled))

    def figure(self, figure: go.Figure) -> None:
        """A plotly figure, drawn by the one copy of plotly.js in the page; its texts are texts."""
        html = go.Figure(_plain(figure.to_plotly_json())).to_html(
            full_html=False, include_plotlyjs=False, config={"displaylogo": False}
        )
        self._blocks.append(("figure", Markup(html)))

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

    def save(self, path: str | Path) -> Path:
        """Write the page; returns its path."""
        template = (resources.files("rolelens") / "data" / "report.html").read_text("utf-8")
        page = (
            jinja2.Environment(autoescape=True)
            .from_string(template)
            .render(
                title=self._title,
                lead=self._lead,
                blocks=self._blocks,
                provenance=self._provenance,
                plotly_js=Markup(get_plotlyjs()),
            )
        )
        return write_whole(Path(path), page.replace("\x00", "\ufffd"))  # HTML has no NUL


def _plain(content: Any, name: str = "") -> Any:
    """A figure in which no text is markup: plotly.js takes tags such as links from all of them."""
    if isinstance(content, dict):
        return {key: _plain(value, key) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value, name) for value in content]
    if isinstance(content, np.ndarray) and content.dtype.kind in "OU":
        return [_plain(value, name) for value in content.tolist()]
    if isinstance(content, str) and not name.endswith("template"):
        return content.replace("&", "&amp;").replace("<", "&lt;")
    return content


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float | np.floating) else str(value)
