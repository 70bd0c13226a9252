import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rolelens as rl
from rolelens.cli import app
from rolelens.prompts import write_trait

DATA = Path(__file__).parents[2] / "shared" / "data" / "persona_space"


def test_a_trait_is_one_file(tmp_path) -> None:
    trait = rl.Trait(
        "polite",
        ("Be polite.", "Say please."),
        ("Be rude.", "Never thank."),
        ("Who are you?",),
        "Is {answer} to {question} polite?",
    )
    path = trait.save(tmp_path / "polite.json")
    content = json.loads(path.read_text("utf-8"))
    assert content["instruction"][1] == {"pos": "Say please.", "neg": "Never thank."}
    assert rl.load_traits(path) == {"polite": trait}
    role = rl.Trait("pirate", ("You are a pirate.",))
    role.save(tmp_path / "pirate.json")
    assert rl.load_traits(tmp_path) == {"pirate": role, "polite": trait}


def test_files_that_hold_none_are_refused(tmp_path, unchecked: object) -> None:
    def file(content: object) -> Path:
        path = tmp_path / "x.json"
        path.write_text(json.dumps(content), "utf-8")
        return path

    for content, sentence in (
        ([], "expected a list under 'instruction'"),
        ({"instruction": [{"neg": "x"}]}, "with 'pos' in each"),
        ({"instruction": [{"pos": "a", "neg": "b"}, {"pos": "c"}]}, "give all or none"),
        ({"instruction": []}, "has no system prompts"),
        ({"instruction": [{"pos": "a"}], "eval_prompt": "{answer}"}, "has no {question}"),
        ({"instruction": [{"pos": 3}]}, "holds 3; pass texts"),
    ):
        with pytest.raises(rl.InputError, match=sentence):
            rl.load_traits(file(content))
    (tmp_path / "empty").mkdir()
    with pytest.raises(rl.InputError, match="holds no JSON files"):
        rl.load_traits(tmp_path / "empty")
    lines = tmp_path / "q.jsonl"
    lines.write_text('{"question": "Who?"}\n{"asked": "x"}\n', "utf-8")
    with pytest.raises(rl.InputError, match="line 2 has no 'question'"):
        rl.load_questions(lines)


def test_the_files_of_the_papers_are_read() -> None:
    if not DATA.is_dir():
        pytest.skip("roles and traits of the papers are not on this machine (../shared/data)")
    roles, traits = (rl.load_traits(DATA / name) for name in ("roles", "traits"))
    assert "default" in roles
    assert len(roles) == 138
    assert len(traits) == 60
    assert all(len(trait.negative) == 5 for trait in traits.values())
    assert len(rl.load_questions(DATA / "questions.jsonl")) == 240


class Writer:
    """An endpoint that writes what it is told to."""

    name = "writer"

    def __init__(self, *texts: str) -> None:
        self.texts, self.asked = list(texts), []

    def answer(self, prompt, *, system=None, max_tokens, temperature, seed) -> str:
        self.asked.append((prompt, seed))
        return self.texts.pop(0)


def written(pairs: int, questions: int) -> str:
    content = {
        "instruction": [{"pos": f"Flatter {n}.", "neg": f"Be frank {n}."} for n in range(pairs)],
        "questions": [f"Is my poem number {n} any good?" for n in range(questions)],
    }
    return f"Here it is:\n```json\n{json.dumps(content)}\n```"


def test_a_language_model_writes_a_trait_until_it_fits(tmp_path) -> None:
    writer = Writer("no JSON", written(1, 3), written(2, 2), written(3, 4))
    made = write_trait("servile", writer, pairs=2, questions=3, attempts=4)
    assert made.positive == ("Flatter 0.", "Flatter 1.")
    assert made.negative == ("Be frank 0.", "Be frank 1.")
    assert len(made.questions) == 3
    assert [seed for _, seed in writer.asked] == [0, 1, 2, 3]
    assert "servile" in writer.asked[0][0]
    assert rl.load_traits(made.save(tmp_path / "servile.json")) == {"servile": made}
    with pytest.raises(rl.InputError, match="writer wrote no trait .*at last: 1 pairs"):
        write_trait("servile", Writer(written(1, 3)), pairs=2, questions=3, attempts=1)
    with pytest.raises(rl.InputError, match="0 different questions that do not name"):
        write_trait("poem", Writer(written(2, 3)), pairs=2, questions=3, attempts=1)


def test_the_command_writes_the_file(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connected(model: str, url: str | None = None) -> Writer:
        assert (model, url) == ("openai/any", None)
        return Writer(written(2, 3))

    monkeypatch.setattr("rolelens.cli.prompts.endpoints.connect", connected)
    out = tmp_path / "servile.json"
    words = ["prompts", "trait", "--name", "servile", "--llm", "openai/any", "--out", str(out)]
    done = CliRunner().invoke(app, [*words, "--pairs", "2", "--questions", "3", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["negative"] == ["Be frank 0.", "Be frank 1."]
    assert rl.load_traits(out)["servile"].questions[0] == "Is my poem number 0 any good?"
