import re

import pandas as pd
import plotly.graph_objects as go
import pytest

import rolelens as rl
from rolelens.report import Report
from rolelens.vectors import Source

EVIL = "<script>alert('x')</script> & \"quotes\""


@pytest.fixture
def page(tmp_path) -> str:
    report = Report(EVIL, EVIL)
    for add in (report.heading, report.text, report.verdict):
        add(EVIL)
    report.texts([(EVIL, EVIL)])
    report.table(pd.DataFrame({"a_b": [1.23456], EVIL: [EVIL]}))
    report.figure(go.Figure(go.Scatter(x=[1], y=[2]), layout={"title": {"text": EVIL}}))
    report.provenance(Source("m", EVIL, "w", "Bridge", False, "float32", "t", "0"))
    return report.save(tmp_path / "deep" / "report.html").read_text()


def test_every_text_is_shown_as_text(page: str) -> None:
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;") == 11
    assert "<td>1.235</td>" in page
    assert "<th>a b</th>" in page


def test_the_page_needs_nothing_from_elsewhere(page: str) -> None:
    assert page.count("Plotly.newPlot(") >= 1
    outside = re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="([^"]*)"', page)
    assert outside == ["data:,"]
    assert len(page) > 1_000_000  # plotly.js itself


def test_a_path_that_cannot_be_written_is_one_sentence(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(rl.InputError, match="cannot be written"):
        Report("x").save(tmp_path / "file" / "report.html")
