"""Plumbing to a real server: the embedded model behind ``transformers serve``."""

import json
import math
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import rolelens as rl
from rolelens import embedded, endpoints, prompts
from rolelens.patchscoping import EndpointYesNo, answers, blind_scores, calibrate

PERSONAS = ["A chess grandmaster who writes about endgames.", "A retired chess grandmaster."]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[tuple[str, str]]:
    """Address and model of a running server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = str(embedded.folder())
    log = tmp_path_factory.mktemp("server") / "log"
    command = [Path(sys.executable).with_name("transformers"), "serve", folder]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*map(str, command), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        url = f"http://127.0.0.1:{port}/v1"
        until = time.monotonic() + 180
        while True:
            try:
                endpoints.connect(folder, url, retries=0).answer(
                    "Hello", max_tokens=4, temperature=0.0, seed=0
                )
                break
            except endpoints.EndpointError:
                if process.poll() is not None or time.monotonic() > until:
                    pytest.fail(f"the server did not start:\n{log.read_text()[-2000:]}")
                time.sleep(1)
        yield url, folder
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.model
def test_a_real_server_writes_prompts(server: tuple[str, str], tmp_path: Path) -> None:
    url, folder = server
    endpoint = endpoints.connect(folder, url)
    out = tmp_path / "grandmaster.jsonl"
    try:
        made = prompts.generate(
            "chess grandmaster", 3, endpoint, PERSONAS, out=out, max_attempts=12
        )
        attempts, accepted = made.attempts, len(made.prompts)
        assert made.acceptance == accepted / attempts
    except rl.InputError:  # so small a model may follow no rule at all
        attempts, accepted = 12, 0
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if "attempt" in row]
    assert len(rows) == attempts <= 12
    assert sum("refused" not in row for row in rows) == accepted
    print(f"{accepted} of {attempts} attempts accepted")


TEXTS = [
    ("I object, your honour: the contract was never signed.", "lawyer"),
    ("I object, your honour: the contract was never signed.", "nurse"),
    ("Take two tablets a day, and call me if the fever does not go down.", "doctor"),
    ("The symbol ♦ represents a diamond, one of the four suits of cards.", "economist"),
]


@pytest.mark.model
def test_a_real_server_judges_as_plain_generation_does(server: tuple[str, str]) -> None:
    url, folder = server
    judge = EndpointYesNo(endpoints.connect(folder, url))
    texts, roles = zip(*TEXTS, strict=True)
    found = blind_scores(judge, texts, roles)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for score, text, role in zip(found, texts, roles, strict=True):
        asked = (
            f"This is what a language model answered:\n\n{text}\n\nIs the model being steered "
            f"toward the {role} role? Answer with Yes or No.\nAnswer:"
        )
        chat = [{"role": "user", "content": asked}]
        ids = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        ).input_ids
        out = model.generate(ids, max_new_tokens=16, do_sample=False)
        said = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).lower()
        expected = 1.0 if said.startswith("yes") else 0.0 if said.startswith("no") else math.nan
        assert score == pytest.approx(expected, nan_ok=True), said


@pytest.mark.model
def test_a_judge_behind_a_server_is_calibrated(server: tuple[str, str]) -> None:
    url, folder = server
    judge = EndpointYesNo(endpoints.connect(folder, url))
    lens = rl.load("smollm2")
    tried = answers(lens, ["lawyer"], ["Hello.", "Who are you?"], max_new_tokens=8)
    found = calibrate(judge, tried)
    assert 0 <= found.auroc <= 1
    assert found.answers == 2
