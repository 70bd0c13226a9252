"""The explorer: from letting go of the slider to the first token of the steered text.

The kernel's share is measured through the widget's traits, as a message of the browser sets them.
With ``--lab`` a headless Chromium lets go of the slider in JupyterLab and waits for the text there.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
from measure import table, timed
from transformers import AutoModelForCausalLM

import rolelens as rl
from rolelens import embedded

PROMPTS = {
    "short": "What should I do this weekend?",
    "long": "Tell me what you think of this. " + "The river finds the sea in the end. " * 25,
}
TRIES = 12


async def released(explorer: Any, alpha: float) -> float:
    """Seconds from a choice and a command, as a browser sends them, to the first token."""
    first = asyncio.Event()

    def heard(change: Any) -> None:
        if change["new"]["steered"] and not change["old"]["steered"]:
            first.set()

    explorer.observe(heard, "texts")
    start = time.perf_counter()
    explorer.choice = {**explorer.choice, "alpha": alpha}
    explorer.command = {"do": "compare", "id": str(start)}
    await first.wait()
    seconds = time.perf_counter() - start
    explorer.unobserve(heard, "texts")
    return seconds


async def ended(explorer: Any) -> None:
    """Wait until nothing runs."""
    while explorer.state == "running":
        await asyncio.sleep(0.01)


async def tried(explorer: Any) -> dict[str, list[float]]:
    """Releases when nothing runs, and while an answer is being written."""
    idle, busy = [], []
    for n in range(TRIES):
        idle.append(await released(explorer, 1.0 + 0.1 * n))
        await asyncio.sleep(0.3)
        busy.append(await released(explorer, 3.0 + 0.1 * n))
        await ended(explorer)
    return {"nothing": idle, "an answer": busy}


def kernel() -> None:
    """Print what the kernel takes, beside a plain pass of the prompt."""
    lens = rl.load("smollm2")
    roles, base = rl.load_roles(), rl.load_base()
    vectors = rl.role_vectors(lens, {"lawyer": roles["lawyer"].prompts[:16]}, base[:16])
    plain = AutoModelForCausalLM.from_pretrained(embedded.folder()).eval()
    rows = []
    for name, prompt in PROMPTS.items():
        ids = torch.tensor([lens.encode([prompt]).ids[0]])
        with torch.no_grad():
            spent = median(
                timed(lambda ids=ids: plain(ids, use_cache=True))[0] for _ in range(TRIES)
            )
        explorer = rl.explore(lens, vectors, prompt=prompt, max_new_tokens=24)
        for running, seconds in asyncio.run(tried(explorer)).items():
            rows.append(
                {
                    "prompt": f"{name}, {ids.shape[1]} tokens",
                    "running before": running,
                    "prompt pass (s)": spent,
                    "first token (s)": median(seconds),
                    "slowest (s)": max(seconds),
                    "beyond the pass (s)": median(seconds) - spent,
                }
            )
    table(pd.DataFrame(rows), digits=3)


def lab() -> None:
    """Print what Chromium measured on the page: the test of the explorer in JupyterLab tells it."""
    test = Path(__file__).parents[1] / "tests" / "test_jupyter.py"
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"ROLELENS_PICTURES": folder}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)]
        subprocess.run(command, check=True, env=environment)
        told = json.loads((Path(folder) / "first-token.json").read_text())
    print("in JupyterLab, milliseconds: " + ", ".join(f"{ms:.0f}" for ms in told["milliseconds"]))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lab", action="store_true", help="in JupyterLab, too")
    given = parser.parse_args()
    kernel()
    if given.lab:
        lab()


if __name__ == "__main__":
    main()
