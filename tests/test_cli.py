from pathlib import Path

import pytest
from typer.testing import CliRunner

import rolelens as rl
import tiny
from rolelens.cli import app


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model in a folder."""
    folder = tmp_path_factory.mktemp("model")
    tiny.hf_model("Llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result.output


def test_help_names_every_command() -> None:
    for command in ("demo", "extract", "patchscope"):
        assert command in run("--help")
        assert "--model" in run(command, "--help")


def test_extract_then_patchscope(tmp_path: Path, model: str) -> None:
    file = str(tmp_path / "v.safetensors")
    out = run("extract", file, "--role", "lawyer", "--role", "nurse", "--model", model)
    assert "2 roles" in out
    vectors = rl.RoleVectors.load(file)
    assert vectors.roles == ("lawyer", "nurse")
    options = ["--role", "nurse", "--layer", "2", "--max-new-tokens", "5", "--model", model]
    text = run("patchscope", file, *options)
    lens = rl.load(model)
    reading = rl.patchscope(lens, vectors["nurse"].at(2), max_new_tokens=5)
    assert f"steered: {reading.text}" in text
    assert f"unsteered: {reading.baseline}" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["extract", "v", "--role", "lawyr"], "no role 'lawyr'; did you mean 'lawyer'"),
        (["extract", "v", "--prompts", "none.csv"], "no file 'none.csv'"),
        (["patchscope", "none", "--role", "x", "--layer", "1"], "no file 'none' with role vectors"),
        (["demo", "--model", "no/such/model"], "no model 'no/such/model' could be loaded"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments: list[str], sentence: str) -> None:
    out = run(*arguments, code=2)
    assert sentence in out
    assert "Traceback" not in out
    assert len([line for line in out.splitlines() if line.startswith("rolelens:")]) == 1
