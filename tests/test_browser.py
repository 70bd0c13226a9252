"""Pages in a real browser: they draw everything, ask for nothing and complain of nothing."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

import rolelens as rl
import tiny
from rolelens.display import shipped
from rolelens.report import Report
from rolelens.vectors.geometry import pca

QUESTIONS = [
    rl.Question("q1", "Which is red?", ("blood", "grass", "the clear sky", "snow"), 0, "colour"),
    rl.Question("q2", "Who sings?", ("a stone", "a bird", "a lamp"), 1, "sound"),
]

CHROMIUM = (
    shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


class Watched:
    """A page, and what it complained of or asked for."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda m: self.complaints.append(m.text) if m.type != "log" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: self.complaints.append("a script in a text ran"))
        page.on("request", lambda request: self.requests.append(request.url))

    def check(self) -> None:
        assert self.complaints == []
        inside = ("file:", "data:", "blob:")
        assert [url for url in self.requests if not url.startswith(inside)] == []


@pytest.fixture
def watched() -> Iterator[Watched]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield Watched(browser.new_page(viewport={"width": 1000, "height": 1400}))
        browser.close()


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
    page.tokens(rl.project(llama, ["<script>alert(1)</script>"], vectors["b"].at(2)))
    page.table(pd.DataFrame({"name": ["a", "b", "c"], "gain": [0.1, -2.0, 10.0]}))
    return page.save(tmp_path / "report.html")


def test_the_report_in_chromium(report: Path, watched: Watched) -> None:
    page = watched.page
    page.goto(report.as_uri())
    figures = page.locator("svg.rl-figure")
    assert figures.count() == 6
    for n in range(6):
        box, body = figures.nth(n).bounding_box(), page.locator("main").bounding_box()
        assert box["width"] == pytest.approx(body["width"] - 32, abs=2)  # as wide as the text
        assert figures.nth(n).locator("polyline, rect, circle").count() >= 1
    assert "<script>alert(1)</script>" in page.locator("dd").first.inner_text()
    assert page.locator("h1").inner_text() == "What <script>alert(1)</script> does"
    assert page.locator(".lead").inner_text() == "<b>lead</b>"
    watched.check()


def test_tokens_are_told_lines_hidden_and_tables_sorted(report: Path, watched: Watched) -> None:
    page = watched.page
    page.goto(report.as_uri())
    token = page.locator(".rl-line span[title]").nth(3)
    token.hover()
    assert page.locator(".rl-told").inner_text() == token.get_attribute("title")
    curve = page.locator("svg.rl-figure").nth(4)
    entry, trace = curve.locator(".rl-entry").last, curve.locator(".rl-trace").last
    entry.click()
    assert not trace.is_visible()
    entry.click()
    assert trace.is_visible()
    header = page.locator("th", has_text="gain")
    for order in (["-2.000", "0.100", "10.000"], ["10.000", "0.100", "-2.000"]):
        header.click()
        assert page.locator("td:nth-child(2)").all_inner_texts() == order
    watched.check()


LONG = ("a person who " * 30, "W" * 120, "研究者" * 40)


def figures_named(name: str) -> list[go.Figure]:
    """Figures in which a name stands in the title, in a legend, along axes and beside points."""
    generator = torch.Generator().manual_seed(0)
    names = (name, "b " + name, "c")
    drawn = torch.randn(3, 4, 1, 8, generator=generator)
    vectors = rl.Directions(drawn, names, (0, 1, 2, 3), (-1,), torch.ones(4, 1))
    groups = [torch.randn(12, 4, 8, generator=generator) + n for n in (0.5, 0.0)]
    projected = rl.projections(*groups, name=name)
    columns = ("name", "rate", "low", "high", "nulls", "mismatched")
    rates = pd.DataFrame([(n, 0.5, 0.4, 0.6, 0.1, 0.0) for n in names], columns=columns)
    return [
        rl.plots.projections(projected),
        rl.plots.separation([rl.separation(projected)] * 2),
        rl.plots.cosines(vectors, 2),
        rl.plots.norms(vectors),
        rl.plots.rates(rates),
        rl.plots.pca(pca(vectors, 2)),
        rl.plots.turns(["user", "assistant"], [1.0, 2.0], name),
    ]


def test_no_text_leaves_its_figure(watched: Watched, tmp_path: Path) -> None:
    figures = [figure for name in (*LONG, "short") for figure in figures_named(name)]
    page = tmp_path / "page.html"
    drawings = "".join(f"<p>{rl.plots.svg(figure)}</p>" for figure in figures)
    page.write_text(
        f'<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">{drawings}',
        encoding="utf-8",
    )
    watched.page.goto(page.as_uri())
    outside = watched.page.evaluate(
        """() => [...document.querySelectorAll("svg")].flatMap((svg, n) => {
          const box = svg.getBoundingClientRect();
          return [...svg.querySelectorAll("text")].filter((text) => {
            const own = text.getBoundingClientRect();
            return own.left < box.left - 1 || own.right > box.right + 1
              || own.top < box.top - 1 || own.bottom > box.bottom + 1;
          }).map((text) => `figure ${n}: ${text.textContent}`);
        })"""
    )
    assert outside == []
    watched.check()


MODEL = """
export class Model {
  constructor(state) { this.state = state; this.heard = {}; this.saved = []; }
  get(name) { return this.state[name]; }
  set(name, value) { this.state[name] = value; this.changed = [...(this.changed || []), name]; }
  save_changes() {
    for (const name of this.changed || []) {
      this.saved.push([name, this.state[name]]);
      this.tell(name);
    }
    this.changed = [];
  }
  on(event, heard) { (this.heard[event] ||= []).push(heard); }
  off(event, heard) { this.heard[event] = this.heard[event].filter((other) => other !== heard); }
  tell(name) { for (const heard of this.heard[`change:${name}`] || []) heard(); }
  arrive(name, value) { this.state[name] = value; this.tell(name); }
}
"""
"""What a notebook gives a widget: values that are read, set, saved and listened to."""


@pytest.fixture
def widget(llama: rl.Lens, tmp_path: Path, watched: Watched) -> Watched:
    """The explorer's script in a page, with what a kernel would have sent it."""
    pytest.importorskip("anywidget")
    vectors = rl.role_vectors(llama, {"<i>a</i>": tiny.PROMPTS, "b": tiny.OTHERS}, tiny.OTHERS)
    sweep = rl.sweep(llama, vectors, QUESTIONS, layers=[1, 2], positions=[-2, -1])
    explorer = rl.explore(llama, vectors, sweep=sweep, prompt="<b>Who?</b>")
    names = ("options", "alphas", "choice", "strength", "code", "texts", "state", "error", "turns",
             "drawn", "panels", "swept", "command")  # fmt: skip
    state = {name: getattr(explorer, name) for name in names}
    script = shipped("rolelens.js").replace("export default { render };", "").replace("export ", "")
    script += MODEL.replace("export ", "")
    script += f"window.model = new Model({json.dumps(state).replace('<', chr(92) + 'u003c')});"
    script += "window.drop = render({ model: window.model, el: document.body });"
    file = tmp_path / "widget.html"
    file.write_text(
        f'<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><style>'
        f'{shipped("rolelens.css")}</style><body><script type="module">{script}</script></body>',
        encoding="utf-8",
    )
    watched.page.goto(file.as_uri())
    return watched


def saved(page: Any, name: str) -> Any:
    """The last value of a name that the script sent to the kernel."""
    return page.evaluate(
        "(name) => window.model.saved.filter((s) => s[0] === name).at(-1)?.[1]", name
    )


def test_the_script_shows_what_the_kernel_sends(widget: Watched) -> None:
    page = widget.page
    assert page.locator(".rl-prompt").input_value() == "<b>Who?</b>"
    assert page.locator("select[data-key=name] option").all_inner_texts() == ["<i>a</i>", "b"]
    page.evaluate("window.model.arrive('texts', {steered: '<b>x</b> y', unsteered: 'z'})")
    assert page.locator(".rl-steered").inner_text() == "<b>x</b> y"
    page.evaluate("window.model.arrive('state', 'running')")
    assert page.locator("[data-page=compare] .rl-stop").is_enabled()
    page.evaluate("window.model.arrive('error', 'No <b>.')")
    assert page.locator(".rl-error").inner_text() == "No <b>."
    page.evaluate("window.model.arrive('strength', {text: 'Adds 90%', warned: true})")
    assert "rl-warned" in page.locator(".rl-strength").get_attribute("class")
    page.evaluate("window.drop(); window.model.arrive('error', 'late')")
    assert page.locator(".rl-error").inner_text() == "No <b>."
    widget.check()


def test_the_script_sends_what_people_do(widget: Watched) -> None:
    page = widget.page
    slider = page.locator("input[data-key=alpha]")
    slider.evaluate("e => { e.value = -2; e.dispatchEvent(new Event('input')); }")
    assert saved(page, "choice")["alpha"] == -2
    assert saved(page, "command") is None  # nothing runs before the slider is let go
    slider.evaluate("e => e.dispatchEvent(new Event('change'))")
    assert saved(page, "command")["do"] == "compare"
    page.locator("select[data-key=layer]").select_option(index=1)
    assert saved(page, "choice")["layer"] == 1
    page.locator("select[data-key=position]").select_option(index=0)
    assert saved(page, "choice")["position"] == page.evaluate(
        "window.model.get('options').position[0]"
    )
    page.locator(".rl-prompt").fill("Hi")
    assert saved(page, "choice")["prompt"] == "Hi"
    page.evaluate("window.model.arrive('state', 'running')")
    page.locator("[data-page=compare] .rl-stop").click()
    assert saved(page, "command")["do"] == "stop"
    page.locator("[data-tab=look]").click()
    cell = page.locator(".rl-heat .rl-cell[data-x='2'][data-y='-2']").last
    cell.click()
    choice = saved(page, "choice")
    assert (choice["layer"], choice["position"], choice["alpha"]) == (2, -2, 3)
    assert saved(page, "command")["do"] == "compare"
    page.locator("[data-tab=look]").click()
    page.locator(".rl-curve circle[data-x='3']").first.click()
    assert saved(page, "choice")["layer"] == 3
    assert page.locator(".rl-here").count() == 1
    page.locator("[data-tab=chat]").click()
    page.locator(".rl-say input").fill("Good day")
    page.locator(".rl-say input").press("Enter")
    assert (saved(page, "command")["do"], saved(page, "command")["text"]) == ("say", "Good day")
    page.evaluate("window.model.arrive('turns', [{role: 'user', content: '<i>', projection: 1}])")
    assert page.locator(".rl-user").inner_text() == "<i>"
    widget.check()
