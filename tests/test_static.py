"""Figures as SVG: what stands where, counted and measured in the drawing itself."""

import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

import rolelens as rl
from rolelens import plots
from rolelens.plots.static import Figure
from rolelens.plots.style import panel, styled
from rolelens.stats import Projections, Separation

EVIL = "<script>alert(1)</script>"
NAMESPACE = "{http://www.w3.org/2000/svg}"


def drawn(figure: go.Figure) -> ElementTree.Element:
    return ElementTree.fromstring(plots.svg(figure))


def tags(root: ElementTree.Element, tag: str, **attributes: str) -> list[ElementTree.Element]:
    found = root.iter(f"{NAMESPACE}{tag}")
    return [e for e in found if all(e.get(k) == v for k, v in attributes.items())]


def test_points_stand_where_their_numbers_are() -> None:
    result = Separation("lawyer", (0, 4, 8), (0.5, 0.7, 0.9), (0.5, 0.6, 0.8), (0.5, 0.8, 1.0))
    root = drawn(plots.separation(result))
    points = [(float(c.get("cx")), float(c.get("cy"))) for c in tags(root, "circle")]
    assert len(points) == 3
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2)
    assert y2 < y0  # more is higher
    (band,) = tags(root, "polygon")
    corners = [tuple(map(float, pair.split(","))) for pair in band.get("points").split()]
    assert corners[2][1] == pytest.approx(y0 + (y2 - y0) / 0.4 * 0.5, abs=0.3)  # 1.0 at layer 8
    (chance,) = [e for e in tags(root, "line") if e.get("stroke") == "#666666"]
    assert float(chance.get("y1")) == pytest.approx(y0, abs=0.2)
    assert [c.get("data-x") for c in tags(root, "circle")] == ["0", "4", "8"]


def test_cells_of_a_heatmap_have_their_place_their_number_and_their_colour() -> None:
    frame = pd.DataFrame(
        [[0.0, 1.0, math.nan], [0.5, 0.25, 0.0]], index=[-2, -1], columns=[4, 8, 12]
    )
    root = drawn(styled(panel(frame, "gain", "Cividis", (0.0, 1.0)), "t"))
    cells = tags(root, "rect", **{"class": "rl-cell"})
    where = {(c.get("data-x"), c.get("data-y")): c for c in cells}
    assert len(where) == 6
    assert where["8", "-2"].find(f"{NAMESPACE}title").text == "8, -2: 1.000"
    assert where["4", "-2"].get("fill") == where["12", "-1"].get("fill")
    assert where["12", "-2"].get("fill") == "#eeeeee"
    lefts = [float(where[x, "-1"].get("x")) for x in ("4", "8", "12")]
    assert lefts == sorted(lefts)
    assert float(where["4", "-2"].get("y")) > float(where["4", "-1"].get("y"))  # first row below


def test_bars_of_a_histogram_are_shares_of_the_prompts() -> None:
    generator = torch.Generator().manual_seed(0)
    two = [torch.randn(n, 2, generator=generator) for n in (30, 20)]
    root = drawn(plots.projections(Projections("a", (1, 2), *two)))
    groups = [g for g in tags(root, "g") if g.get("data-group") == "a"]
    for group in groups[:2]:
        told = [rect.find(f"{NAMESPACE}title").text for rect in group.iter(f"{NAMESPACE}rect")]
        if told:
            shares = [float(text.split(": ")[1].split(" from")[0]) for text in told]
            assert sum(shares) == pytest.approx(1.0, abs=0.02)


def test_every_text_is_escaped_and_nothing_leaves_the_drawing() -> None:
    result = Separation(EVIL, (0, 1), (0.5, 0.6), (0.4, 0.5), (0.6, 0.7))
    figure = plots.separation([result, result]).update_layout(title_text=EVIL)
    text = plots.svg(figure)
    assert "<script" not in text
    root = ElementTree.fromstring(text)
    _, _, width, height = map(float, root.get("viewBox").split())
    for part in tags(root, "text"):
        assert -20 <= float(part.get("x")) <= width + 1
        assert 0 <= float(part.get("y")) <= height + 1


def test_a_label_that_does_not_fit_is_cut_and_told_whole() -> None:
    name = "a person who " * 20
    vectors = rl.Directions(torch.randn(2, 1, 1, 4), (name, "b"), (3,), (-1,), torch.ones(1, 1))
    root = drawn(plots.cosines(vectors, 3))
    cut = [t for t in tags(root, "text") if t.find(f"{NAMESPACE}title") is not None]
    assert {t.find(f"{NAMESPACE}title").text for t in cut} == {name}
    assert len(cut) == 2  # along both axes
    for part in cut:
        assert part.text.endswith("…")
        assert name.startswith(part.text[:-1])
        assert len(part.text) > 10
    assert "b" in [t.text for t in tags(root, "text")]
    cells = tags(root, "rect", **{"class": "rl-cell"})
    assert min(float(cell.get("width")) for cell in cells) > 50  # and the drawing has its room


def test_logarithmic_axes_and_named_points() -> None:
    table = pd.DataFrame({"prompts": [4, 8, 16], "low": [0.1, 0.2, 0.3], "high": [0.3, 0.4, 0.5],
                          "cosine": [0.2, 0.3, 0.4]})  # fmt: skip
    xs = [float(c.get("cx")) for c in tags(drawn(plots.learning_curve(table)), "circle")]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    columns = ("name", "rate", "low", "high", "nulls", "mismatched")
    rows = [("a", 0.5, 0.4, 0.6, 0.1, 0.0), ("b", 0.2, 0.1, 0.3, 0.1, 0.2)]
    rates = pd.DataFrame(rows, columns=columns)
    root = drawn(plots.rates(rates))
    assert {"a", "b", "nulls", "other roles"} <= {t.text for t in tags(root, "text")}


def test_a_trace_that_is_not_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="a pie trace is not drawn"):
        plots.svg(go.Figure(go.Pie(values=[1, 2])))


def test_a_figure_shows_itself_as_svg_beside_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    import IPython.display

    shown: list[dict[str, object]] = []
    monkeypatch.setattr(IPython.display, "display", lambda data, raw: shown.append(data))
    figure = plots.separation(Separation("a", (0, 1), (0.5, 0.6), (0.4, 0.5), (0.6, 0.7)))
    assert isinstance(figure.update_layout(height=300), Figure)
    figure._ipython_display_()
    assert shown[0]["image/svg+xml"] == plots.svg(figure)


def test_cosines_are_written_into_the_cells() -> None:
    vectors = rl.Directions(
        torch.tensor([[[[1.0, 0.0]]], [[[0.6, 0.8]]]]), ("a", "b"), (3,), (-1,), torch.ones(1, 1)
    )
    texts = [t.text for t in tags(drawn(plots.cosines(vectors, 3)), "text")]
    assert texts.count("0.6") == 2
    many = rl.Directions(
        torch.randn(20, 1, 1, 4), tuple(f"n{k}" for k in range(20)), (3,), (-1,), torch.ones(1, 1)
    )
    assert "0.6" not in [t.text for t in tags(drawn(plots.cosines(many, 3)), "text")]


def test_turns_of_a_conversation() -> None:
    root = drawn(plots.turns(["user", "assistant", "user", "assistant"], [1.0, 2.0, None, 4.0]))
    ys = [float(c.get("cy")) for c in tags(root, "circle")]
    assert len(ys) == 3
    rise = np.diff(sorted(ys, reverse=True))
    assert rise[1] == pytest.approx(2 * rise[0], abs=0.3)


def test_texts_stand_where_they_are_told_or_above() -> None:
    points = {"x": [0, 1], "y": [0, 1], "text": ["a", "b"], "mode": "markers+text"}
    for places in (None, "middle left", np.array(["top center", "bottom center"])):
        drawn = plots.svg(go.Figure(go.Scatter(**points, textposition=places)))
        assert ">a</text>" in drawn
        assert ">b</text>" in drawn
