"""A report in a real browser: it draws everything, asks for nothing and complains of nothing."""

import shutil
from pathlib import Path

import plotly.graph_objects as go
import pytest
import torch

import rolelens as rl
import tiny
from rolelens.report import Report

QUESTIONS = [
    rl.Question("q1", "Which is red?", ("blood", "grass", "the clear sky", "snow"), 0, "colour"),
    rl.Question("q2", "Who sings?", ("a stone", "a bird", "a lamp"), 1, "sound"),
]

CHROMIUM = (
    shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture
def report(llama: rl.Lens, tmp_path: Path) -> Path:
    """Every figure there is, and a prompt that is a script."""
    roles = {"<script>alert(1)</script>": tiny.PROMPTS, "b": tiny.OTHERS + tiny.PROMPTS[:3]}
    vectors = rl.role_vectors(llama, roles, base=tiny.OTHERS)
    generator = torch.Generator().manual_seed(0)
    groups = [torch.randn(12, 4, 3, 8, generator=generator) + n for n in (0.5, 0.0)]
    projected = rl.projections(groups[0][:, :, 0], groups[1][:, :, 0], name="<i>a</i>")
    auroc = rl.stats.separation_map(*groups, layers=range(4), positions=[-3, -2, -1])
    result = rl.sweep(llama, vectors, QUESTIONS, positions=[-2, -1])
    page = Report("What <script>alert(1)</script> does", "<b>lead</b>")
    page.texts([("prompt", "<script>alert(1)</script>")])
    for figure in (
        rl.plots.projections(projected),
        rl.plots.separation(rl.separation(projected)),
        rl.plots.separation_map(auroc),
        rl.plots.cosines(vectors, 2),
        rl.plots.norms(vectors),
        rl.plots.heatmap(result),
    ):
        assert isinstance(figure, go.Figure)
        page.figure(figure)
    return page.save(tmp_path / "report.html")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_report_in_chromium(report: Path) -> None:
    from playwright.sync_api import sync_playwright

    complaints: list[str] = []
    requests: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1000, "height": 1400})
        page.on("console", lambda m: complaints.append(m.text) if m.type != "log" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append("a script in a text ran"))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(report.as_uri())
        page.wait_for_function("document.querySelectorAll('.main-svg').length >= 6")
        figures = page.locator(".js-plotly-plot")
        assert figures.count() == 6
        for n in range(6):
            assert figures.nth(n).locator(".main-svg").count() >= 1
            marks = figures.nth(n).locator(".trace, .heatmaplayer image, .barlayer .point")
            assert marks.count() >= 1, f"figure {n} is empty"
        assert "<script>alert(1)</script>" in page.locator("dd").first.inner_text()
        assert page.locator("h1").inner_text() == "What <script>alert(1)</script> does"
        assert page.locator(".lead").inner_text() == "<b>lead</b>"
        browser.close()
    assert complaints == []
    outside = [url for url in requests if not url.startswith(("file:", "data:", "blob:"))]
    assert outside == []
