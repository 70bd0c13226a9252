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
    for add in (report.headline, report.heading, report.text, report.verdict):
        add(EVIL)
    report.verdicts([EVIL], EVIL)
    report.texts([(EVIL, EVIL)])
    report.table(pd.DataFrame({"a_b": [1.23456], EVIL: [EVIL]}))
    report.figure(go.Figure(go.Scatter(x=[1], y=[2]), layout={"title": {"text": EVIL}}))
    report.provenance(Source("m", EVIL, "w", "Bridge", False, "float32", "t", "0"))
    return report.save(tmp_path / "deep" / "report.html").read_text()


def test_every_text_is_shown_as_text(page: str) -> None:
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;") == 14
    assert "<td>1.235</td>" in page
    assert "<th>a b</th>" in page


def test_the_page_needs_nothing_from_elsewhere(page: str) -> None:
    assert page.count("<svg") == 1
    outside = re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="([^"]*)"', page)
    assert outside == ["data:,"]
    assert len(page) < 40_000


def test_a_path_that_cannot_be_written_is_one_sentence(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(rl.InputError, match="cannot be written"):
        Report("x").save(tmp_path / "file" / "report.html")


def test_the_answer_comes_first_and_sections_are_listed(tmp_path) -> None:
    report = Report("What?", "lead")
    for heading in ("One", "Two", "Two"):
        report.heading(heading)
    report.headline("Nothing.")
    page = report.save(tmp_path / "r.html").read_text()
    assert page.index('class="headline"') < page.index("<nav") < page.index("<h2")
    names = re.findall(r'<h2 id="([^"]+)"', page)
    assert len(set(names)) == 3
    assert re.findall(r'<a href="#([^"]+)"', page) == names


def test_wide_tables_may_be_as_wide_as_the_window(tmp_path) -> None:
    report = Report("What?")
    report.table(pd.DataFrame([[1.0] * 12], columns=[f"c{n}" for n in range(12)]))
    report.table(pd.DataFrame({"a": [None], "b": [float("nan")], "c": ["word " * 20]}))
    page = report.save(tmp_path / "r.html").read_text()
    assert page.count('class="table wide"') == 1
    assert "<td></td><td></td><td class=long>" in page
