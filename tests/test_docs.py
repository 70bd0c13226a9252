"""What the documents say in code can be imported and exists."""

import re
from pathlib import Path

import pytest

import rolelens as rl

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def code(path: Path) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.S))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_imports_and_names_are_there(path: Path) -> None:
    text = code(path)
    for line in re.findall(r"^(?:import|from) .*$", text, re.M):
        known: dict[str, object] = {}
        exec(line, known)
        for name in (known.keys() - {"__builtins__"}) & set(re.findall(r"(\w+)\.\w+\(", text)):
            for attribute in re.findall(rf"\b{name}\.(\w+)", text):
                assert hasattr(known[name], attribute), f"{name}.{attribute}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_names_in_the_text_are_there(path: Path) -> None:
    for dotted in set(re.findall(r"\brl\.([a-zA-Z_]\w*(?:\.[a-zA-Z_]\w*)*)", path.read_text())):
        found: object = rl
        for part in dotted.split("."):
            found = getattr(found, part)
