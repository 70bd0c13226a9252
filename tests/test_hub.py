"""Models of a hub, which here is a server on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hub_server
import tiny


def loaded(folder: Path, cache: Path, names: list[tuple[str, str | None]], **env: str) -> list:
    """What loading gives in a process whose hub is the folder's server."""
    env = hub_server.environment(folder, cache) | env
    done = subprocess.run(
        [sys.executable, "-c", hub_server.LOAD, json.dumps(names)],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_hub_models_are_loaded_with_their_commit_and_refused_in_a_sentence(tmp_path) -> None:
    folder = tmp_path / "model"
    tiny.hf_model("Llama").save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    names = [("owner/tiny", None), ("owner/tiny", "v9"), ("gated/model", None), ("missing/m", None)]
    origin, revision, gated, missing = loaded(folder, tmp_path / "cache", names)
    assert origin == f"owner/tiny@{hub_server.COMMIT}"
    assert "revision is 'v9', and 'owner/tiny' has no such branch" in revision["refused"]
    assert "'gated/model' is gated: accept its terms" in gated["refused"]
    assert "no model 'missing/m'" in missing["refused"]
    # What is in the cache is loaded without a hub, and recorded alike; the rest says why not.
    names = [("owner/tiny", None), ("owner/other", None)]
    origin, other = loaded(folder, tmp_path / "cache", names, HF_HUB_OFFLINE="1")
    assert origin == f"owner/tiny@{hub_server.COMMIT}"
    assert "no model 'owner/other' could be loaded (the hub cannot be reached" in other["refused"]
