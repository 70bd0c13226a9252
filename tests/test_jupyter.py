"""The explorer in JupyterLab, with a real kernel and the embedded model."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
import pytest

from test_browser import CHROMIUM, FLAGS

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
    pytest.mark.skipif(
        find_spec("jupyterlab") is None or find_spec("anywidget") is None,
        reason="JupyterLab or anywidget is not installed",
    ),
]
PATIENCE = 240_000
"""Milliseconds that a cell may take on a busy machine."""

LET_GO = """e => new Promise((told) => {
  const shown = document.querySelector('.rl-steered');
  const start = performance.now();
  let emptied = false;
  new MutationObserver((_, observer) => {
    if (!shown.textContent) emptied = true;
    else if (emptied) { observer.disconnect(); told(performance.now() - start); }
  }).observe(shown, { childList: true, characterData: true, subtree: true });
  e.dispatchEvent(new Event('change'));
})"""
"""Let go of the slider; milliseconds until the first token of the new text is on the page."""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """JupyterLab on a short notebook; its address."""
    source = nbformat.read(ROOT / "notebooks" / "05_your_own_contrast.ipynb", as_version=4)
    code = [cell for cell in source.cells if cell.cell_type == "code"]
    kept = [cell for cell in code if "rl.study" not in cell.source and "study." not in cell.source]
    for cell in kept:  # a sweep of a minute less
        cell.source = cell.source.replace("[8, 12, 16, 20]", "[12, 16]")
        cell.source = cell.source.replace("max_new_tokens=24", "max_new_tokens=8")
    nbformat.write(
        nbformat.v4.new_notebook(cells=kept, metadata=source.metadata), tmp_path / "n.ipynb"
    )
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    folders = {"JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"}
    environment = os.environ | {name: str(tmp_path / name.lower()) for name in folders}
    settings = tmp_path / "jupyter_config_dir/lab/user-settings/@jupyterlab/notebook-extension"
    settings.mkdir(parents=True)
    # Cells that are out of sight are drawn, too.
    shown = json.dumps({"windowingMode": "none"})
    (settings / "tracker.jupyterlab-settings").write_text(shown)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
               "--ServerApp.ip=127.0.0.1", "--IdentityProvider.token=", "--ServerApp.password=",
               "--LabApp.news_url=None", f"--ServerApp.root_dir={tmp_path}",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]  # fmt: skip
    with (tmp_path / "lab.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"{address}/api", timeout=1)
                    break
                except OSError:
                    time.sleep(0.25)
            yield f"{address}/lab/tree/n.ipynb?reset"
        finally:
            server.terminate()
            server.wait(20)


def test_the_explorer_in_jupyterlab(lab: str, tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    pictures = Path(os.environ.get("ROLELENS_PICTURES", tmp_path))
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page: Any = browser.new_page(viewport={"width": 1300, "height": 1500})
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.goto(lab)
        page.locator(".jp-Notebook").wait_for(timeout=60_000)
        # The indicator beside the kernel's name says idle before there is a connection.
        page.get_by_text("(ipykernel) | Idle").wait_for(timeout=PATIENCE)
        page.locator(".jp-Notebook").click()
        page.get_by_text("Run", exact=True).first.click()
        page.get_by_text("Run All Cells", exact=True).click()
        page.screenshot(path=pictures / "lab.png")
        root = page.locator(".rolelens").first
        root.wait_for(timeout=PATIENCE)
        root.scroll_into_view_if_needed()
        steered, state = root.locator(".rl-steered"), root.locator(".rl-state")

        root.locator(".rl-run").click()
        expect(state).to_have_text("done", timeout=60_000)
        before = steered.inner_text()
        assert before
        assert root.locator(".rl-unsteered").inner_text()
        page.screenshot(path=pictures / "explorer-compare.png")

        slider = root.locator("input[data-key=alpha]")
        slider.evaluate("e => { e.value = 4; e.dispatchEvent(new Event('input')); }")
        expect(root.locator(".rl-strength")).to_contain_text("%", timeout=10_000)
        waited = []
        for alpha in (4.0, 3.5, 3.0, 2.5):  # the last three while an answer is being written
            slider.evaluate(
                "(e, alpha) => { e.value = alpha; e.dispatchEvent(new Event('input')); }", alpha
            )
            waited.append(slider.evaluate(LET_GO))
        (pictures / "first-token.json").write_text(json.dumps({"milliseconds": waited}))
        expect(state).to_have_text("done", timeout=60_000)
        assert steered.inner_text() != before

        root.locator(".rl-run").click()
        expect(state).to_have_text("running", timeout=10_000)
        root.locator("[data-page=compare] .rl-stop").click()
        expect(state).to_have_text("stopped", timeout=10_000)

        root.locator("[data-tab=look]").click()
        page.screenshot(path=pictures / "explorer-look.png")
        cell = root.locator(".rl-heat .rl-cell").nth(2)
        layer = cell.get_attribute("data-x")
        cell.click()
        expect(root.locator("select[data-key=layer]")).to_have_value(layer)
        expect(state).to_have_text("done", timeout=60_000)

        root.locator("[data-tab=chat]").click()
        for n, said in enumerate(("Good day.", "What is a river?"), 1):
            root.locator(".rl-say input").fill(said)
            root.locator(".rl-say input").press("Enter")
            expect(root.locator(".rl-chart svg circle")).to_have_count(2 * n, timeout=60_000)
        page.screenshot(path=pictures / "explorer-chat.png")
        assert root.locator(".rl-error").inner_text() == ""
        browser.close()
    ours = [text for text in complaints if "rolelens" in text or "anywidget" in text.lower()]
    assert ours == []
    (pictures / "console.json").write_text(json.dumps(complaints))
