"""The examples and notebooks run, and the stored outputs are those of the stored code."""

import ast
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import rolelens as rl

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
sys.path.insert(0, str(ROOT / "notebooks"))
import build


@pytest.mark.model
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("steer_a_chat", ["unsteered: ", "as doctor: "]),
        ("find_the_layer", ["layer 29  AUROC", "lawyer: surely above 0.9 first at layer"]),
        ("read_a_vector", ["What does ♦ represent?", "mathematician: ", "random: "]),
    ],
)
def test_an_example_runs(name: str, said: list[str]) -> None:
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for text in said:
        assert text in out


def test_every_example_is_tested() -> None:
    files = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert files == {"steer_a_chat", "find_the_layer", "read_a_vector"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_code_of_a_notebook_names_what_is_there(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rolelens"):
            exec(ast.unparse(node), {})
        if not isinstance(node, ast.Attribute):
            continue
        *parents, root = reversed(ast.unparse(node).split("."))
        if root == "rl" and all(name.isidentifier() for name in parents):
            part: object = rl
            for name in reversed(parents):
                part = getattr(part, name)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_current_and_visible_without_plotly(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata["rolelens_sources"] == build.sources(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert all(output.output_type != "error" for output in outputs)
    assert not [o for o in outputs if o.get("name") == "stderr"]
    drawn = [o.data for o in outputs if "application/vnd.plotly.v1+json" in o.get("data", {})]
    assert drawn
    assert all("image/png" in data for data in drawn)


QUARTER = """import dataclasses

roles, base = rl.load_roles(), rl.load_base()[:32]
for name, prompts in roles.items():
    roles[name] = dataclasses.replace(prompts, prompts=prompts.prompts[: len(prompts) // 4])
"""
"""A quarter of all prompts."""
PROMPTS = "roles, base = rl.load_roles(), rl.load_base()\n"
SHORTER = {
    "01_role_vectors": {PROMPTS: QUARTER, "[4, 8, 12, 16],": "[8, 16],"},
    "02_layerwise_separation": {
        PROMPTS: QUARTER,
        "len(prompts) == 64": "len(prompts) == 16",
        "(4, 8, 16, 32)": "(4, 8)",
        "x[:16]": "x[:4]",
    },
    "03_patchscoping": {"range(4, 28, 3)": "(16,)"},
    "04_roast": {"repeats=5": "repeats=1", "range(k, k + 40)": "range(k, k + 24)"},
    "05_your_own_contrast": {
        "[8, 12, 16, 20]": "[12, 16]",
        "positions=[-2, -1],\n    alphas": "positions=[-1],\n    alphas",
        "max_new_tokens=24": "max_new_tokens=8",
    },
    "06_features": {
        "[:32]": "[:8]",
        "[32:44]": "[32:36]",
        "[:48], list(base)[48:72]": "[:12], list(base)[48:56]",
        "steps=400": "steps=20",
        "shuffles=99": "shuffles=9",
        "top=4,\n    randoms=1": "top=1,\n    randoms=1",
    },
    "07_side_effects": {
        "[:32]": "[:16]",
        "[:16] for name": "[:8] for name",
        "len(mini), 8": "len(mini), 64",
        "for job in several": "for job in several[:2]",
        "range(6)": "range(2)",
        "n=2": "n=1",
        "(0.2, 0.4, 0.8, 1.6)": "(0.4,)",
        "reply_tokens=12": "reply_tokens=2",
    },
    "08_persona_space": {"max_new_tokens=20": "max_new_tokens=6", "tokens=32": "tokens=6"},
}
"""What is smaller in the tests, where what a notebook finds does not matter but that it runs."""


@pytest.mark.model
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    for long, short in SHORTER.get(path.stem, {}).items():
        cells = [cell for cell in notebook.cells if long in cell.source + "\n"]
        assert cells, long
        for cell in cells:
            cell.source = (cell.source + "\n").replace(long, short)
    shortened = tmp_path / path.name
    nbformat.write(notebook, shortened)
    monkeypatch.setenv("PLOTLY_RENDERER", "json")
    command = [
        sys.executable,
        "-c",
        "import build, sys; build.execute(build.Path(sys.argv[1]), 'json')",
    ]
    subprocess.run([*command, str(shortened)], check=True, cwd=ROOT / "notebooks")
