"""Texts that try to be something else, in all HTML that is written, in a real browser."""

import html
import random
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

import rolelens as rl
import tiny
from faults.conftest import Tally
from rolelens.report import Report
from rolelens.vectors import Source
from test_browser import CHROMIUM, FLAGS

HOSTILE = [
    "<script>window.injected=1</script>",
    "</script><script>window.injected=1</script>",
    "<img src=x onerror=window.injected=1>",
    '"><svg onload=window.injected=1>',
    "' onmouseover='window.injected=1",
    "<a href='javascript:window.injected=1' id=injected>a</a>",
    "<a href='https://example.org' id=injected>a</a>",
    "<iframe srcdoc='<script>parent.injected=1</script>'></iframe>",
    "<style>body{display:none}</style>",
    "<!-- <b id=injected>",
    "]]><b id=injected>b</b>",
    "</td></table><b id=injected>b</b>",
    "</title><b id=injected>b</b>",
    "{{ 7 * 7 }}{% for x in [] %}",
    "{{ ''.__class__.__mro__ }}",
    "${window.injected=1}`",
    "%{x}%{customdata}<extra>e</extra>",
    "nul \x00<b id=injected>b</b>",
    "\u202ereversed\u202c \u2066 <b id=injected>b</b>",
    "\ufeff<b id=injected>b</b>",
    "&lt;b id=injected&gt;",
    "$\\text{math}$ \\(x\\)",
]
HUGE = "<b id=injected>" + "x" * 3000


@pytest.fixture
def pages(llama: rl.Lens, tmp_path: Path) -> list[Path]:
    """A report, the cards and the coloured tokens of every text."""
    made = []
    for n, text in enumerate([*HOSTILE, HUGE]):
        report = Report(text, text)
        for add in (report.heading, report.text, report.verdict):
            add(text)
        report.texts([(text, text)])
        report.table(pd.DataFrame({text: [text, "a"], "b": [1.0, 2.0]}))
        report.provenance(Source(text, text, text, text, False, text, text, text))
        vectors = rl.role_vectors(
            llama, {text: tiny.PROMPTS, "b": tiny.PROMPTS[:3]}, base=tiny.OTHERS
        )
        generator = torch.Generator().manual_seed(0)
        groups = [torch.randn(12, 4, 8, generator=generator) + shift for shift in (0.5, 0.0)]
        projected = rl.projections(*groups, name=text)
        transfer = pd.DataFrame(
            {"name": [text, "b"], "domain": [text, text], "gain": [0.1, 0.2], "p_holm": [0.01, 1.0]}
        )
        for figure in (
            rl.plots.norms(vectors),
            rl.plots.cosines(vectors, 2),
            rl.plots.projections(projected),
            rl.plots.separation(rl.separation(projected)),
            rl.plots.transfer(transfer),
            go.Figure(go.Scatter(x=[text], y=[1], text=[text], mode="markers+text")),
        ):
            report.figure(figure)
        path = tmp_path / f"{n}.html"
        report.save(path)
        made.append(path)
        steering = rl.add(vectors[text].at(2, -1), 1.0)
        cards = [
            vectors._repr_html_(),
            vectors[text].at(2, -1)._repr_html_(),
            steering._repr_html_(),
            rl.project(
                llama, [text[:60].replace("\x00", " ")], vectors["b"].at(2, -1)
            )._repr_html_(),
            rl.RolePrompts(text, text, (text,))._repr_html_(),
        ]
        cell = tmp_path / f"cards-{n}.html"
        cell.write_text("<meta charset=utf-8>" + "".join(cards), encoding="utf-8")
        made.append(cell)
    return made


FOREIGN = """() => ({
    marked: document.querySelectorAll('#injected').length,
    ran: window.injected === undefined ? 0 : 1,
    scripts: [...document.scripts].filter(s => s.src).length,
    frames: document.querySelectorAll('iframe, object, embed, base, form').length,
    handlers: [...document.querySelectorAll('*')].filter(
        e => [...e.attributes].some(a => a.name.startsWith('on'))).length,
    links: [...document.querySelectorAll('a')].filter(a => a.getAttribute('href')
        || a.getAttributeNS('http://www.w3.org/1999/xlink', 'href')).length,
    hidden: getComputedStyle(document.body).display === 'none' ? 1 : 0,
})"""


@pytest.mark.fault("hostile text in a page, in Chromium")
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_nothing_is_injected(pages: list[Path], tally: Tally) -> None:
    from playwright.sync_api import sync_playwright

    complaints: list[str] = []
    requests: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append("a dialog"))
        page.on("request", lambda request: requests.append(request.url))
        for n, path in enumerate(pages):
            page.goto(path.as_uri())
            if not path.stem.startswith("cards"):
                page.wait_for_function("document.querySelectorAll('figure svg, svg').length >= 6")
                text = [*HOSTILE, HUGE][n // 2].replace("\x00", "\ufffd")
                assert page.locator("h2").first.text_content() == text
                assert page.locator("td").first.text_content() == text
            for _ in range(2):
                found = page.evaluate(FOREIGN)
                assert not any(found.values()), (path, found)
                for mark in page.locator("svg circle").all()[:2]:
                    mark.dispatch_event("mouseover")
            tally["nothing injected"] += 1
        browser.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []


def test_the_pages_hold_the_texts_escaped(pages: list[Path]) -> None:
    """Without a browser: no mark of ours stands in a page as a tag."""
    chance = random.Random(0)
    for path in chance.sample(pages, 10):
        content = path.read_text(encoding="utf-8")
        assert "<b id=injected>" not in content
        assert "<script>window" not in content
        assert "onerror=window" not in content or html.escape("<img src=x onerror") in content
