import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import rolelens as rl
import tiny
from rolelens.cli import app
from rolelens.patchscope import Addition, LogitLens, Reader, SelfIE, TokenIdentity


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model in a folder."""
    folder = tmp_path_factory.mktemp("model")
    hf_model = tiny.hf_model("Llama")
    hf_model.config.max_position_embeddings = 1024
    hf_model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def vectors(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Vectors of two roles."""
    file = str(tmp_path_factory.mktemp("vectors") / "v.safetensors")
    out = run("extract", file, "--role", "lawyer", "--role", "nurse", "--model", model)
    assert "2 x 4 x 11 x 32" in out
    return file


def test_help_names_every_command() -> None:
    commands = "demo extract evaluate sweep search patchscope report models roles".split()
    for command in commands:
        assert command in run("--help")
        assert "--help" in run(command, "--help")


def test_patchscope_prints_what_the_library_reads(model: str, vectors: str) -> None:
    options = ["--role", "nurse", "--layer", "2", "--max-new-tokens", "5", "--model", model]
    text = run("patchscope", vectors, *options)
    direction = rl.RoleVectors.load(vectors)["nurse"].at(2)
    reading = rl.patchscope(rl.load(model), direction, Addition(max_new_tokens=5))
    assert f"steered: {reading.text}" in text
    assert f"unsteered: {reading.baseline}" in text
    told = json.loads(run("patchscope", vectors, *options, "--json"))
    assert told["steered"] == reading.text


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("token-identity", TokenIdentity(max_new_tokens=5)),
        ("selfie", SelfIE(max_new_tokens=5)),
        ("logit-lens", LogitLens()),
    ],
)
def test_patchscope_takes_other_readers(
    model: str, vectors: str, name: str, reader: Reader
) -> None:
    options = ["--role", "nurse", "--layer", "2", "--max-new-tokens", "5", "--model", model]
    text = run("patchscope", vectors, *options, "--reader", name)
    reading = rl.patchscope(rl.load(model), rl.RoleVectors.load(vectors)["nurse"].at(2), reader)
    assert f"steered: {reading.text}" in text


def test_extract_takes_system_prompts_and_layers(model: str, tmp_path: Path) -> None:
    file = str(tmp_path / "s.safetensors")
    out = run(
        "extract",
        file,
        "--role",
        "pirate",
        "--system",
        "--layers",
        "1-2",
        "--model",
        model,
        "--json",
    )
    assert json.loads(out) == {"path": file, "roles": ["pirate"], "layers": [1, 2]}
    assert "You are a {role}." in rl.RoleVectors.load(file).contrast


def test_evaluate_prints_what_the_library_scores(model: str, vectors: str) -> None:
    bench = rl.load_benchmark("mini").domain("law")
    lens = rl.load(model)
    options = ["mini", "--domain", "law", "--model", model, "--json"]
    plain = json.loads(run("evaluate", *options))
    assert plain["accuracy"] == rl.evaluate(lens, bench).accuracy
    assert [row["domain"] for row in plain["domains"]] == ["law"]
    direction = rl.RoleVectors.load(vectors)["nurse"].at(2)
    steer = ["--vectors", vectors, "--role", "nurse", "--layer", "2", "--method", "cloze"]
    for option, hooks in (
        (["--alpha", "3"], rl.add(direction, 3.0)),
        (["--ablate"], rl.ablate(direction, lens)),
    ):
        told = json.loads(run("evaluate", *options, *steer, *option))
        expected = rl.evaluate(lens, bench, hooks, method="cloze")
        assert told["margin"] == pytest.approx(expected.margin)
    assert "accuracy" in run("evaluate", *options[:-1])


def test_sweep_writes_its_table(model: str, vectors: str, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "cells.csv"
    grid = ["--role", "nurse", "--layers", "1,2", "--positions", "-1", "--alphas", "1,3"]
    text = run(
        "sweep", vectors, "mini", "--domain", "law", *grid, "--out", str(out), "--model", model
    )
    assert "confirm it on other questions" in text
    table = pd.read_csv(out)
    assert len(table) == 4
    bench = rl.load_benchmark("mini").domain("law")
    swept = rl.sweep(
        rl.load(model), rl.RoleVectors.load(vectors)["nurse"], bench, layers=[1, 2], positions=[-1]
    )
    assert table["margin"].tolist() == pytest.approx(swept.table()["margin"].tolist())


def test_a_stored_sweep_tells_how_far_it_is(model: str, vectors: str, tmp_path: Path) -> None:
    store = str(tmp_path / "s.db")
    grid = ["--domain", "law", "--layers", "1,2", "--positions=-1", "--role", "nurse"]
    command = ["sweep", vectors, "mini", *grid, "--store", store, "--model", model, "--json"]
    first = json.loads(run(*command))
    told = json.loads(run("sweep", "--status", store, "--json"))
    assert told["done"] == told["pieces"] >= 3
    assert told["cells"] == 5  # and the unsteered model
    assert "pieces 3 of 3" in run("sweep", "--status", store) or told["pieces"] > 3
    assert json.loads(run(*command)) == first
    assert "alphas" in run("sweep", "--help")
    refused = run(*command, "--tokens", "prompt", code=2)
    assert 'tokens "all" -> "prompt"' in refused
    assert "no vectors; name a file" in run("sweep", code=2)
    assert "no file 'none.db' with a sweep" in run("sweep", "--status", "none.db", code=2)


def test_search_finds_a_cell_for_every_role(model: str, vectors: str, tmp_path: Path) -> None:
    out = tmp_path / "t.csv"
    grid = ["--layers", "1,2", "--positions=-1", "--own-domain", "--method", "cloze"]
    text = run("search", vectors, "mini", *grid, "--out", str(out), "--model", model)
    assert "confirm it on other questions" in text
    assert "lawyer" in text
    table = pd.read_csv(out)
    assert table.groupby("role")["chosen"].sum().to_dict() == {"lawyer": 1, "nurse": 1}
    assert table[table["chosen"]]["questions"].tolist() == [40, 40]
    told = json.loads(run("search", vectors, "mini", *grid, "--model", model, "--json"))
    assert {row["role"] for row in told["chosen"]} == {"lawyer", "nurse"}


def test_where_nothing_can_be_written_nothing_is_computed(vectors: str, tmp_path: Path) -> None:
    for command in (["sweep", vectors], ["search", vectors]):
        said = run(*command, "--out", str(tmp_path), "--model", "none/here", code=2)
        assert f"{tmp_path} is a folder; name a file in it." in said
    assert "is a folder" in run("extract", str(tmp_path), "--model", "none/here", code=2)


def test_report_and_lists(model: str, vectors: str, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    assert str(out) in run("report", vectors, "--out", str(out), "--model", model, "--quiet")
    assert "How large, and how alike" in out.read_text()
    assert "smollm2" in json.loads(run("models", "--json"))
    roles = json.loads(run("roles", "--json"))
    assert roles["lawyer"] == {"domain": "law", "prompts": 64}
    assert "psychologist" in run("roles")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["extract", "v", "--role", "lawyr"], "no role 'lawyr'; did you mean 'lawyer'"),
        (["extract", "v", "--prompts", "none.csv"], "no file 'none.csv'"),
        (["patchscope", "none", "--role", "x", "--layer", "1"], "no file 'none' with role vectors"),
        (
            ["evaluate", "mini", "--method", "guess"],
            "method is 'guess'; it has to be one of letter",
        ),
        (["evaluate", "mini", "--domain", "maths"], "no domain 'maths'; did you mean 'math'"),
        (["evaluate", "mini", "--role", "nurse"], "--role, --layer and --ablate need --vectors"),
        (["extract", "v", "--layers", "a,b"], "--layers is 'a,b'; it has to be numbers"),
        (["report", "none"], "no file 'none' with role vectors"),
        (
            ["patchscope", "v", "--role", "x", "--layer", "1", "--reader", "selfi"],
            "no reader 'selfi'; did you mean 'selfie'",
        ),
        (
            ["patchscope", "v", "--role", "x", "--layer", "1", "--reader", "selfie", "--alpha=2"],
            "--alpha and --prompt are of the addition; --reader is 'selfie'",
        ),
        (["demo", "--model", "no/such/model"], "no model 'no/such/model' could be loaded"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments: list[str], sentence: str) -> None:
    out = run(*arguments, code=2)
    assert sentence in out
    assert "Traceback" not in out
    assert len([line for line in out.splitlines() if line.startswith("rolelens:")]) == 1
