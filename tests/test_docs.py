"""What the documents say in code runs, and what they name is there."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

import rolelens as rl
import tiny
from conftest import HAS_HOOKED, hooked_transformer

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
RUN = [ROOT / "README.md", ROOT / "docs" / "how-to.md"]
LINES = 5
"""Lines of code in a block of the how-to at most."""


def blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.S)


def save_model(folder: Path) -> None:
    """A tiny model with as many layers as the documents name of the embedded one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**tiny.reference("Llama").config.to_dict() | {"num_hidden_layers": 22})
    config.max_position_embeddings = 512
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)


@pytest.fixture
def namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Where a document's blocks run: models loaded by name are tiny; sets and answers are short."""
    load, load_task, load_roles, load_base = rl.load, rl.load_task, rl.load_roles, rl.load_base
    generate = rl.Lens.generate
    save_model(tmp_path / "path" / "to" / "model")
    monkeypatch.chdir(tmp_path)

    def loaded(model: Any, **options: Any) -> rl.Lens:
        return load("path/to/model" if isinstance(model, str) else model, **options)

    def short_task(source: Any) -> rl.Task:
        task = load_task(source)
        return task.take(range(0, len(task), 5)) if source == "mini" else task

    def short_roles() -> dict[str, rl.RolePrompts]:
        return {
            role: dataclasses.replace(prompts, prompts=prompts.prompts[:8])
            for role, prompts in load_roles().items()
        }

    def short_answers(lens: rl.Lens, prompts: Any, **options: Any) -> list[str]:
        return generate(lens, prompts, **options | {"max_new_tokens": 4})

    monkeypatch.setattr(rl, "load", loaded)
    monkeypatch.setattr(rl.Lens, "generate", short_answers)
    monkeypatch.setattr(rl, "load_task", short_task)
    monkeypatch.setattr(rl, "load_roles", short_roles)
    monkeypatch.setattr(rl, "load_base", lambda: load_base()[:8])
    return {}


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.name)
def test_what_a_document_says_runs(
    path: Path, namespace: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for number, block in enumerate(blocks(path), 1):
        if "HookedTransformer" in block:
            continue  # which not every TransformerLens has
        code = compile(block, f"{path.name}, block {number}", "exec")
        exec(code, namespace)
    assert capsys.readouterr().out


@pytest.mark.skipif(not HAS_HOOKED, reason="this TransformerLens has no HookedTransformer")
def test_the_block_with_a_hooked_transformer_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformer_lens import HookedTransformer

    made = hooked_transformer("GPT2")
    monkeypatch.setattr(HookedTransformer, "from_pretrained", lambda name: made)
    (block,) = [text for text in blocks(RUN[1]) if "HookedTransformer" in text]
    known: dict[str, Any] = {"rl": rl}
    exec(block, known)
    assert known["hooked"].model is made


def test_a_way_to_do_something_takes_five_lines() -> None:
    path = ROOT / "docs" / "how-to.md"
    assert len(blocks(path)) > 15
    for block in blocks(path):
        lines = [line for line in block.splitlines() if line.strip()]
        assert len(lines) <= LINES, block


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_imports_and_names_are_there(path: Path) -> None:
    text = "\n".join(blocks(path))
    for line in re.findall(r"^(?:import|from) .*$", text, re.M):
        if "HookedTransformer" in line and not HAS_HOOKED:
            continue
        known: dict[str, object] = {}
        exec(line, known)
        for name in (known.keys() - {"__builtins__"}) & set(re.findall(r"(\w+)\.\w+\(", text)):
            for attribute in re.findall(rf"\b{name}\.(\w+)", text):
                assert hasattr(known[name], attribute), f"{name}.{attribute}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_names_in_the_text_are_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.name == "CHANGELOG.md":  # which names what is gone in its first column
        text = re.sub(r"^\| [^|]* \|", "|", text, flags=re.M)
    for dotted in set(re.findall(r"\brl\.([a-zA-Z_]\w*(?:\.[a-zA-Z_]\w*)*)", text)):
        part: object = rl
        for name in dotted.split("."):
            part = getattr(part, name)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_a_document_links_to_are_there(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_commands_of_the_readme_have_their_options() -> None:
    from typer.main import get_command

    from rolelens.cli import app

    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^rolelens (.*)$", text, re.M)
    assert len(lines) > 8
    for line in lines:
        command: Any = get_command(app)
        words = line.split("#")[0].split()
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        options = {option for parameter in command.params for option in parameter.opts}
        for word in words:
            if word.startswith("--"):
                assert word.split("=")[0] in options, f"{line}: {word}"
