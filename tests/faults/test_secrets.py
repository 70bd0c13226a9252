"""Keys stay where they belong, and names never lead out of a folder."""

import logging
import random
import traceback
from pathlib import Path

import pytest

import rolelens as rl
from chat_server import Reply, Request, chat, serving
from faults.conftest import Tally
from rolelens import prompts
from rolelens.endpoints import connect
from rolelens.evidence.fold import _slug

SECRET = "sk-a-secret-that-nobody-may-see"
PERSONAS = ["A nurse who likes tea", "A nurse who likes trains"]
NAMES = [
    "../../outside", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "C:\\x", "~root", "a\x00b",
    "con", "x" * 400, "ü" * 200, "\u202e", "a b", "a_b", "$(touch x)", "`x`", "-rf", "*", "a\nb",
    "%2e%2e%2f", "\ud800",
]  # fmt: skip


@pytest.mark.fault("a server that sends the key back")
def test_a_key_is_in_nothing_that_is_written(
    tmp_path, monkeypatch, capfd, caplog, times, tally: Tally
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    caplog.set_level(logging.DEBUG)
    chance, out, told = random.Random(0), tmp_path / "out.jsonl", []

    def reply(request: Request) -> Reply:
        sent = request.headers["authorization"]
        status = chance.choice([200, 400, 401, 403, 404, 429, 500])
        if status == 200:
            return chat("Explain how rivers shape the land over time?")
        return Reply({"error": {"message": f"no: {sent}"}, "detail": sent}, status)

    with serving(reply) as server:
        endpoint = connect("m", server.url, retries=0)
        for _ in range(times(30, 100)):
            try:
                prompts.generate("nurse", 2, endpoint, PERSONAS, out=out, max_attempts=4)
                tally["answered"] += 1
            except rl.InputError as error:
                told += traceback.format_exception(error)
                tally["failed in a sentence without the key"] += 1
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    seen = [*written, *told, caplog.text, *capfd.readouterr(), repr(endpoint)]
    assert not [text for text in seen if SECRET in text]


def test_a_domain_names_a_file_in_the_folder(tmp_path: Path) -> None:
    slugs = [_slug(name) for name in NAMES]
    for slug in slugs:
        path = tmp_path / f"sweep-{slug}0.db"
        assert path.resolve().parent == tmp_path.resolve()
        path.write_text("")
        assert len(path.name.encode()) < 200
    assert len({*slugs}) == len(slugs)


def test_a_study_of_hostile_names_writes_where_it_was_told(llama, tmp_path: Path) -> None:
    names = ["../../outside", "a/b"]
    roles = {name: [f"What of {n}?" for n in range(6 + k)] for k, name in enumerate(names)}
    vectors = rl.role_vectors(llama, roles, base=["Sing.", "Who was here?", "Tell me."])
    asked = [
        rl.Question(f"../{n}", f"Number {n}?", ("one", "two"), n % 2, names[n % 2])
        for n in range(16)
    ]
    folder = tmp_path / "in" / "here"
    study = rl.study(
        llama,
        vectors,
        asked,
        dict(zip(names, names, strict=True)),
        layers=[1, 2],
        positions=[-1],
        anyway=True,
        ablated=0,
        prompted=False,
        choose="sweep",
        folder=folder,
    )
    study.save(folder / "tables")
    assert {path.name for path in tmp_path.iterdir()} == {"in"}
    assert {path.name for path in (tmp_path / "in").iterdir()} == {"here"}
    assert rl.load_study(folder / "tables").cells.keys() == study.cells.keys()
