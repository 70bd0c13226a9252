"""A hub that takes a request and never answers: one sentence, and soon."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hub_server
import tiny
from faults.conftest import Tally

LIMIT = 1.0
"""Seconds that a request waits here."""
REQUESTS = 20
"""Of one load that is answered, some more or fewer."""
LOAD = f"""
import json, sys, time
from huggingface_hub import constants
constants.HF_HUB_DOWNLOAD_TIMEOUT = {LIMIT}
import rolelens as rl
from rolelens import interop

kinds = {{
    "model": lambda name: rl.load(name, device="cpu").source.template,
    "data": lambda name: len(rl.load_task(name)),
    "vectors": lambda name: interop.from_pretrained(name).names,
}}
for kind, name in json.loads(sys.argv[1]):
    begun = time.monotonic()
    try:
        told = kinds[kind](name)
    except rl.InputError as error:
        told = {{"refused": str(error)}}
    print(json.dumps([told, time.monotonic() - begun]), flush=True)
"""


def loaded(folder: Path, cache: Path, asked: list[tuple[str, str]]) -> list[tuple[Any, float]]:
    """What loading one after the other gives in a process of its own, and the seconds it took."""
    env = hub_server.environment(folder, cache)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps(asked)],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.mark.fault("a hub that stops answering")
def test_a_hub_that_does_not_answer_is_told(tmp_path: Path, times, tally: Tally) -> None:
    """From whatever request on: a whole model, or one sentence; then what is cached serves."""
    folder = tmp_path / "model"
    tiny.hf_model("Llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    lapses = times([0, 15], range(REQUESTS + 5))
    asked = [("model", "owner/tiny")]
    asked += [("model", f"answers-{n}/tiny") for n in lapses]
    asked += [("model", "silence/tiny"), ("model", "owner/tiny"), ("data", "mmlu")]
    asked += [("vectors", "owner/vectors")]
    (right, _), *told = loaded(folder, tmp_path / "cache", asked)
    assert isinstance(right, str)
    *lapsed, silent, cached, data, vectors = told
    assert cached[0] == right
    refused = [what for what, _ in lapsed if what != right]
    for what in [*refused, silent[0], data[0], vectors[0]]:
        message = what["refused"]
        assert message.endswith("."), message
        assert "\n" not in message, message
        assert "the hub did not answer within 1 s" in message or "stopped answering" in message
    assert lapsed[0][0] in refused
    assert max(seconds for _, seconds in told) < 40 * LIMIT + 20, told
    tally["refused in one sentence"] += len(refused) + 3
    tally["read right"] += len(told) - len(refused) - 3
