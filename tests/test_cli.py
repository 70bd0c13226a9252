import json
import os
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import rolelens as rl
import tiny
from rolelens import loading
from rolelens.cli import app
from rolelens.patchscoping import (
    Addition,
    JacobianLens,
    LogitLens,
    Reader,
    SelfIE,
    TokenIdentity,
)

GRID = ["--layers", "1,2", "--positions=-1"]
QUESTIONS = [
    {"question": question, "options": options, "answer": answer, "domain": domain}
    for domain, question, options, answer in (
        ("law", "Which is red?", ["blood", "grass", "snow"], "A"),
        ("law", "Who sings?", ["a stone", "a lamp", "a bird"], "C"),
        ("law", "Which is far?", ["the sea", "the door", "a hand"], "A"),
        ("medicine", "Which is cold?", ["fire", "ice", "steam"], "B"),
        ("medicine", "Which is sweet?", ["salt", "chalk", "honey"], "C"),
        ("medicine", "Which is loud?", ["thunder", "fog", "moss"], "A"),
    )
]
PROBLEMS = [
    {"question": "How much is 2 + 3?", "answer": "5"},
    {"question": "Two birds, then one more: how many?", "answer": "3"},
]
BASE = [*tiny.OTHERS, "Count to ten.", "Which way is north?"]
TEXTS = [{"text": "The river finds the sea."}, {"text": "A lighthouse stands in the fog."}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model in a folder."""
    folder = tmp_path_factory.mktemp("model")
    hf_model = tiny.hf_model("Llama")
    hf_model.config.max_position_embeddings = 1024
    hf_model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def lens(model: str) -> rl.Lens:
    """The model of that folder."""
    return rl.load(model)


@pytest.fixture(autouse=True)
def loaded_once(model: str, lens: rl.Lens, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands find the model of the folder loaded already, but for another dtype or device."""
    load = loading.load

    def known(name: str, **options: object) -> rl.Lens:
        is_plain = name == model and not any(options.values())
        return lens if is_plain else load(name, **options)

    monkeypatch.setattr(loading, "load", known)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Small files: questions, problems, texts and prompts."""
    folder = tmp_path_factory.mktemp("sources")
    content = {
        "questions": QUESTIONS,
        "problems": PROBLEMS,
        "texts": TEXTS,
        "base": BASE,
        "roles": [
            {"role": role, "domain": domain, "prompt": prompt}
            for role, domain, prompts in (
                ("lawyer", "law", tiny.PROMPTS),
                ("nurse", "medicine", [prompt + " Now." for prompt in tiny.PROMPTS]),
            )
            for prompt in prompts
        ],
    }
    files = {name: folder / f"{name}.json" for name in content}
    for name, file in files.items():
        file.write_text(json.dumps(content[name]))
    return {name: str(file) for name, file in files.items()}


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def vectors(model: str, sources: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Vectors of two roles."""
    file = str(tmp_path_factory.mktemp("vectors") / "v.safetensors")
    prompts = ["--prompts", sources["roles"], "--base", sources["base"]]
    out = run("extract", file, *prompts, "--model", model)
    assert "2 x 4 x 11 x 32" in out
    return file


def test_help_names_every_command() -> None:
    commands = "demo extract contrast steer chat evaluate sweep search paper patchscope report "
    commands += "models roles"
    listed = run("--help")
    for command in commands.split():
        assert command in listed
        assert "--help" in run(command, "--help")


def test_the_version_is_told() -> None:
    assert run("--version") == f"rolelens {rl.__version__}\n"


def test_extract_takes_shipped_roles_and_prompts_of_ones_own(
    lens: rl.Lens, vectors: str, sources: dict[str, str]
) -> None:
    expected = rl.role_vectors(lens, rl.load_roles(sources["roles"]), BASE)
    assert rl.Directions.load(vectors).sha == expected.sha
    assert rl.Directions.load(vectors).names == ("lawyer", "nurse")


def test_dtype_and_device_are_passed_on(
    model: str, sources: dict[str, str], tmp_path: Path
) -> None:
    file = str(tmp_path / "v.safetensors")
    options = ["--base", sources["base"], "--model", model, "--force"]
    prompts = ["--prompts", sources["roles"], "--role", "nurse"]
    run("extract", file, *prompts, *options, "--dtype", "bfloat16", "--device", "cpu")
    assert rl.Directions.load(file).source.dtype == "bfloat16"
    refused = run("extract", file, *prompts, *options, "--dtype", "float12", code=2)
    assert "dtype is 'float12'; pass a torch dtype" in refused
    refused = run("extract", file, *prompts, *options, "--device", "abacus", code=2)
    assert "device is 'abacus'; it has to be one such as 'cpu'" in refused


def test_contrast_writes_what_the_library_measures(
    lens: rl.Lens, model: str, sources: dict[str, str], tmp_path: Path
) -> None:
    file, positive = str(tmp_path / "c.safetensors"), tmp_path / "p.json"
    positive.write_text(json.dumps(tiny.PROMPTS))
    command = ["contrast", file, str(positive), sources["base"], "--name", "formal"]
    told = json.loads(run(*command, "--layers", "1,2", "--model", model, "--json"))
    assert told == {"path": file, "names": ["formal"], "layers": [1, 2]}
    expected = rl.contrast(lens, tiny.PROMPTS, BASE, name="formal", layers=[1, 2])
    assert rl.Directions.load(file).sha == expected.sha
    run(*command, "--raw", "--force", "--model", model)
    expected = rl.contrast(lens, tiny.PROMPTS, BASE, name="formal", raw=True)
    assert rl.Directions.load(file).sha == expected.sha


def test_patchscope_prints_what_the_library_reads(lens: rl.Lens, model: str, vectors: str) -> None:
    options = ["--layer", "2", "--max-new-tokens", "5", "--model", model]
    text = run("patchscope", vectors, "--name", "nurse", *options)
    direction = rl.Directions.load(vectors)["nurse"].at(2)
    reading = rl.patchscope(lens, direction, Addition(max_new_tokens=5))
    assert f"steered: {reading.text}" in text
    assert f"unsteered: {reading.baseline}" in text
    told = json.loads(run("patchscope", vectors, "--role", "nurse", *options, "--json"))
    assert told["steered"] == reading.text


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("token-identity", TokenIdentity(max_new_tokens=5)),
        ("selfie", SelfIE(max_new_tokens=5)),
        ("logit-lens", LogitLens()),
        ("jacobian-lens", JacobianLens()),
    ],
)
def test_patchscope_takes_other_readers(
    lens: rl.Lens, model: str, vectors: str, name: str, reader: Reader
) -> None:
    options = ["--name", "nurse", "--layer", "2", "--max-new-tokens", "5", "--model", model]
    text = run("patchscope", vectors, *options, "--reader", name)
    reading = rl.patchscope(lens, rl.Directions.load(vectors)["nurse"].at(2), reader)
    assert f"steered: {reading.text}" in text


def test_extract_takes_system_prompts_and_layers(
    model: str, sources: dict[str, str], tmp_path: Path
) -> None:
    file = str(tmp_path / "s.safetensors")
    options = ["--system", "--base", sources["base"], "--layers", "1-2", "--model", model]
    out = run("extract", file, "--role", "pirate", *options, "--json")
    assert json.loads(out) == {"path": file, "names": ["pirate"], "layers": [1, 2]}
    assert "You are a {role}." in rl.Directions.load(file).contrast


def test_evaluate_prints_what_the_library_scores(
    lens: rl.Lens, model: str, vectors: str, sources: dict[str, str], tmp_path: Path
) -> None:
    task = rl.load_task(sources["questions"]).domain("law")
    options = [sources["questions"], "--domain", "law", "--model", model, "--json"]
    plain = json.loads(run("evaluate", *options))
    assert plain["accuracy"] == rl.evaluate(lens, task).accuracy
    assert [row["domain"] for row in plain["domains"]] == ["law"]
    direction = rl.Directions.load(vectors)["nurse"].at(2)
    steer = ["--vectors", vectors, "--name", "nurse", "--layer", "2", "--method", "cloze"]
    both = rl.add(direction, 3.0, layers=[1, 2]) + rl.ablate(direction, lens)
    saved = ["--steering", str(both.save(tmp_path / "s.safetensors")), "--method", "cloze"]
    for arguments, steering in (
        ([*steer, "--alpha", "3"], rl.add(direction, 3.0)),
        ([*steer, "--ablate"], rl.ablate(direction, lens)),
        (saved, both),
    ):
        told = json.loads(run("evaluate", *options, *arguments))
        expected = rl.evaluate(lens, task, steering, method="cloze")
        assert told["margin"] == pytest.approx(expected.margin)
        assert told["steering"] == str(steering)
    assert "accuracy" in run("evaluate", *options[:-1])


def test_evaluate_takes_problems_and_texts(
    lens: rl.Lens, model: str, sources: dict[str, str]
) -> None:
    command = ["--model", model, "--json"]
    told = json.loads(run("evaluate", sources["problems"], "--max-new-tokens", "4", *command))
    expected = rl.evaluate(lens, sources["problems"], max_new_tokens=4)
    assert told["accuracy"] == expected.accuracy
    assert told["domains"][0]["items"] == 2
    told = json.loads(run("evaluate", sources["texts"], *command))
    assert told["logprob"] == pytest.approx(rl.evaluate(lens, sources["texts"]).mean())


def test_sweep_writes_its_table(
    lens: rl.Lens, model: str, vectors: str, sources: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "cells.csv"
    options = ["--name", "nurse", *GRID, "--alphas", "1,3", "--out", str(out), "--model", model]
    text = run("sweep", vectors, sources["questions"], *options)
    assert "confirm it on other items" in text
    table = pd.read_csv(out)
    assert len(table) == 4
    nurse, task = rl.Directions.load(vectors)["nurse"], rl.load_task(sources["questions"])
    result = rl.sweep(lens, nurse, task, layers=[1, 2], positions=[-1])
    assert table["margin"].tolist() == pytest.approx(result.table()["margin"].tolist())


@pytest.mark.parametrize("change", ["add", "ablate"])
def test_the_best_of_a_sweep_is_handed_on_as_it_was_scored(
    lens: rl.Lens, model: str, vectors: str, sources: dict[str, str], tmp_path: Path, change: str
) -> None:
    file, options = str(tmp_path / "best.safetensors"), ["--model", model, "--json"]
    grid = [*GRID, "--change", change, "--tokens", "prompt", "--save-best", file, *options]
    task = sources["questions"]
    told = json.loads(run("sweep", vectors, task, "--name", "nurse", "--by", "margin", *grid))
    best = rl.Steering.load(file)
    assert told["best"] == {"steering": str(best), "path": file}
    assert {(step.kind, step.tokens) for step in best.steps} == {(change, "prompt")}
    top = max(told["cells"], key=lambda cell: cell["margin"])
    told = json.loads(run("evaluate", task, "--steering", file, *options))
    assert told["margin"] == pytest.approx(top["margin"], abs=1e-3)
    refused = run("sweep", vectors, task, *grid, code=2)
    assert "--save-best writes one steering, and there are 2 names (lawyer, nurse)" in refused


def test_a_sweep_by_workers_is_that_of_this_process(
    model: str, vectors: str, sources: dict[str, str]
) -> None:
    command = ["sweep", vectors, sources["questions"], "--name", "nurse", *GRID, "--json"]
    command += ["--model", model]
    by_workers = [*command, "--runner", "processes", "--workers", "1", "--threads", "1"]
    assert json.loads(run(*by_workers)) == json.loads(run(*command))
    refused = run(*command, "--workers", "2", code=2)
    assert "workers is 2, which has no effect on runner='local'" in refused


def test_a_sweep_of_problems_and_of_texts(
    model: str, vectors: str, sources: dict[str, str]
) -> None:
    command = ["--name", "nurse", "--layers", "2", "--positions=-1", "--model", model, "--json"]
    problems = run("sweep", vectors, sources["problems"], "--max-new-tokens", "4", *command)
    assert {"accuracy", "accuracy_gain"} <= json.loads(problems)["cells"][0].keys()
    texts = run("sweep", vectors, sources["texts"], *command)
    assert {"logprob", "logprob_gain"} <= json.loads(texts)["cells"][0].keys()
    refused = run("sweep", vectors, sources["texts"], *command, "--by", "margin", code=2)
    assert "no measure 'margin'; there are: logprob." in refused


def test_a_stored_sweep_tells_how_far_it_is(model: str, vectors: str, tmp_path: Path) -> None:
    store = str(tmp_path / "s.db")
    grid = ["--domain", "law", *GRID, "--name", "nurse"]
    command = ["sweep", vectors, "mini", *grid, "--store", store, "--model", model, "--json"]
    first = json.loads(run(*command))
    told = json.loads(run("sweep", "--status", store, "--json"))
    assert told["done"] == told["pieces"] >= 3
    assert told["cells"] == 5  # and the unsteered model
    assert "pieces 3 of 3" in run("sweep", "--status", store) or told["pieces"] > 3
    assert json.loads(run(*command)) == first
    assert rl.load_sweep(store).table()["margin"].tolist() == pytest.approx(
        [cell["margin"] for cell in first["cells"]]
    )
    refused = run(*command, "--tokens", "prompt", code=2)
    assert "holds another run" in refused
    assert "no vectors; name a file" in run("sweep", code=2)
    assert "no file 'none.db' with a sweep" in run("sweep", "--status", "none.db", code=2)


def test_search_finds_a_cell_for_every_role(
    lens: rl.Lens, model: str, vectors: str, sources: dict[str, str], tmp_path: Path
) -> None:
    task, out, file = sources["questions"], tmp_path / "t.csv", str(tmp_path / "best.safetensors")
    options = [*GRID, "--own-domain", "--method", "cloze", "--model", model]
    text = run("search", vectors, task, *options, "--out", str(out))
    assert "confirm it on other items" in text
    assert "lawyer" in text
    table = pd.read_csv(out)
    assert table.groupby("name")["chosen"].sum().to_dict() == {"lawyer": 1, "nurse": 1}
    assert table[table["chosen"]]["items"].tolist() == [3, 3]
    saved = ["--name", "nurse", "--save-best", file, "--json"]
    (chosen,) = json.loads(run("search", vectors, task, *options, *saved))["chosen"]
    medicine = rl.load_task(task).domain("medicine")
    expected = rl.evaluate(lens, medicine, rl.Steering.load(file), "cloze").margin
    assert chosen["margin"] == pytest.approx(expected, abs=1e-3)


def test_search_of_what_is_generated_is_refused(
    model: str, vectors: str, sources: dict[str, str]
) -> None:
    refused = run("search", vectors, sources["problems"], *GRID, "--model", model, code=2)
    assert "cannot be predicted from gradients; score every cell with rl.sweep." in refused


def test_where_nothing_can_be_written_nothing_is_computed(vectors: str, tmp_path: Path) -> None:
    for command in (["sweep", vectors], ["search", vectors]):
        refused = run(*command, "--out", str(tmp_path), "--model", "none/here", code=2)
        assert f"{tmp_path} is a folder; name a file in it." in refused
    for command in (["extract", str(tmp_path)], ["contrast", str(tmp_path), "a", "b"]):
        assert "is a folder" in run(*command, "--model", "none/here", code=2)


def test_report_and_lists(
    model: str, vectors: str, sources: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "r.html"
    prompts = ["--prompts", sources["roles"], "--base", sources["base"]]
    options = [*prompts, "--out", str(out), "--model", model, "--quiet"]
    assert str(out) in run("report", vectors, *options)
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
        (["contrast", "v", "none.csv", "none.csv"], "no file 'none.csv'"),
        (["patchscope", "none", "--name", "x", "--layer", "1"], "no file 'none' with directions"),
        (["evaluate", "mini", "--domain", "maths"], "no domain 'maths'; did you mean 'math'"),
        (["evaluate", "mini", "--name", "nurse"], "--name is about a direction of --vectors"),
        (["evaluate", "mini", "--alpha", "2"], "--alpha is about a direction of --vectors"),
        (["evaluate", "mini", "--steering", "none"], "no file 'none' with a steering"),
        (
            ["evaluate", "mini", "--steering", "a", "--vectors", "b"],
            "--vectors and --steering both say how to steer",
        ),
        (["extract", "v", "--layers", "a,b"], "--layers is 'a,b'; it has to be numbers"),
        (["report", "none"], "no file 'none' with directions"),
        (
            ["patchscope", "v", "--name", "x", "--layer", "1", "--reader", "selfi"],
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


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--method", "guess"], "method is 'guess'; it has to be one of letter"),
        (["--max-new-tokens", "5"], "max_new_tokens is 5, which has no effect on 'questions'"),
        (["--vectors", "VECTORS", "--name", "nurse"], "--vectors needs --name and --layer"),
        (
            ["--vectors", "VECTORS", "--name", "nures", "--layer", "1"],
            "no role 'nures'; did you mean 'nurse'",
        ),
        (
            ["--vectors", "VECTORS", "--name", "nurse", "--layer", "1", "--ablate", "--alpha=2"],
            "--alpha is 2.0, and --ablate has no strength",
        ),
    ],
)
def test_evaluate_refuses_what_has_no_effect(
    model: str, vectors: str, sources: dict[str, str], arguments: list[str], sentence: str
) -> None:
    given = [vectors if argument == "VECTORS" else argument for argument in arguments]
    assert sentence in run("evaluate", sources["questions"], *given, "--model", model, code=2)


def test_steer_answers_beside_the_unsteered_model(
    lens: rl.Lens, model: str, vectors: str, tmp_path: Path
) -> None:
    options = ["--max-new-tokens", "5", "--model", model]
    named = ["--vectors", vectors, "--name", "nurse", "--layer", "2", "--alpha", "3"]
    told = json.loads(run("steer", "Who is it?", "And now?", *named, *options, "--json"))
    steering = rl.add(rl.Directions.load(vectors)["nurse"].at(2), 3.0)
    prompts = ["Who is it?", "And now?"]
    for key, hooks in (("unsteered", rl.Steering()), ("steered", steering)):
        expected = lens.generate(prompts, hooks=hooks, max_new_tokens=5)
        assert [row[key] for row in told["answers"]] == expected
    assert told["steering"] == str(steering)
    saved = str(steering.save(tmp_path / "s.safetensors"))
    text = run("steer", "Who is it?", "--steering", saved, *options)
    assert f"steered: {told['answers'][0]['steered']}" in text
    assert "nothing to steer with" in run("steer", "Hi", *options, code=2)


def test_chat_goes_on_with_what_was_said(lens: rl.Lens, model: str, vectors: str) -> None:
    named = ["--vectors", vectors, "--name", "nurse", "--layer", "2"]
    command = ["chat", *named, "--max-new-tokens", "5", "--model", model, "--quiet"]
    result = CliRunner().invoke(app, command, input="Who is it?\nAnd now?\n\n")
    assert result.exit_code == 0, result.output
    steering = rl.add(rl.Directions.load(vectors)["nurse"].at(2), 1.0)
    turns = [{"role": "user", "content": "Who is it?"}]
    (first,) = lens.generate([turns], hooks=steering, max_new_tokens=5)
    turns += [{"role": "assistant", "content": first}, {"role": "user", "content": "And now?"}]
    (second,) = lens.generate([turns], hooks=steering, max_new_tokens=5)
    assert result.stdout == f"{first}\n{second}\n"


def test_a_file_of_vectors_is_overwritten_only_when_asked(
    model: str, sources: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "v.safetensors"
    command = ["extract", str(file), "--prompts", sources["roles"], "--base", sources["base"]]
    command += ["--role", "nurse", "--model", model]
    umask = os.umask(0o027)
    try:
        run(*command)
    finally:
        os.umask(umask)
    assert file.stat().st_mode & 0o777 == 0o640
    before = file.stat().st_mtime_ns
    assert f"{file} exists already; name another file, or pass --force." in run(*command, code=2)
    assert file.stat().st_mtime_ns == before
    run(*command, "--force")
    assert file.stat().st_mtime_ns > before


def test_notes_are_one_sentence_and_quiet_leaves_them_out(
    sources: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "base-model"
    tiny.hf_model("Llama").save_pretrained(folder)
    tiny.tokenizer(None).save_pretrained(folder)
    command = ["evaluate", sources["texts"], "--model", str(folder)]
    noted = CliRunner().invoke(app, command)
    assert noted.exit_code == 0, noted.output
    assert "note: " in noted.stderr
    assert "has no chat template" in noted.stderr
    assert ".py:" not in noted.stderr
    assert CliRunner().invoke(app, [*command, "--quiet"]).stderr == ""


def test_ranges_that_count_down_are_told(model: str) -> None:
    refused = run("extract", "v", "--layers", "5-2", "--model", model, code=2)
    assert "--layers is '5-2', which counts down; write the lower number first: 2-5." in refused


def test_files_that_are_missing_or_empty_are_named(model: str, tmp_path: Path) -> None:
    (tmp_path / "nodir").mkdir()
    missing = str(tmp_path / "nodir")
    refused = run(
        "paper", "--out", str(tmp_path / "o"), "--data", missing, "--model", model, code=2
    )
    assert f"no '{missing}/role_prompts'; data is a folder with role_prompts" in refused
    empty = tmp_path / "empty.json"
    empty.write_text("[]")
    refused = run("contrast", str(tmp_path / "c"), str(empty), str(empty), code=2)
    assert f"{empty} holds no prompt" in refused


def test_shell_completion_can_be_installed() -> None:
    assert "--install-completion" in run("--help")


def test_the_columns_of_questions_of_ones_own_are_told() -> None:
    told = " ".join(run("evaluate", "--help").replace("│", " ").split())
    for column in ("question", "answer", "options", "text", "domain"):
        assert column in told
