"""The hub's layout: folders with cards, and a local cache as its client keeps one."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

import rolelens as rl
import tiny
from rolelens import interop

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def vectors(llama: rl.Lens) -> rl.Directions:
    return rl.role_vectors(llama, {"lawyer": tiny.PROMPTS}, base=tiny.OTHERS)


class LocalHub:
    """Stands for the hub's upload: what is pushed lies where the hub's client keeps downloads."""

    def __init__(self, cache: Path) -> None:
        self.cache, self.private = cache, {}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.private[repo_id] = private

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        assert repo_id in self.private
        place = self.cache / f"models--{repo_id.replace('/', '--')}"
        shutil.copytree(folder_path, place / "snapshots" / COMMIT)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(COMMIT)


def test_what_is_pushed_comes_back(tmp_path: Path, vectors: rl.Directions) -> None:
    hub = LocalHub(tmp_path)
    assert interop.push_to_hub(vectors, "me/lawyer", api=hub, private=True) == "me/lawyer"
    assert hub.private == {"me/lawyer": True}
    read = interop.from_pretrained("me/lawyer", cache_dir=tmp_path)
    assert isinstance(read, rl.Directions)
    assert (read.sha, read.source, read.prompts) == (vectors.sha, vectors.source, vectors.prompts)
    steering = rl.add(vectors.at(2), 3.0, tokens="generated")
    interop.push_to_hub(steering, "me/steering", api=hub)
    assert interop.from_pretrained("me/steering", cache_dir=tmp_path) == steering
    commit = interop.from_pretrained("me/steering", revision=COMMIT, cache_dir=tmp_path)
    assert commit == steering


def test_the_card_says_what_is_known(tmp_path: Path, vectors: rl.Directions) -> None:
    picture = tmp_path / "figure.png"
    picture.write_bytes(b"png")
    effects = ["mini, law: 0.40 -> 0.45 (95 % interval -2 to 12 points, p = 0.20)"]
    folder = interop.save_pretrained(
        vectors, tmp_path / "v", title="Lawyers", effects=effects, figure=picture
    )
    card = (folder / "README.md").read_text()
    source, (count, sha) = vectors.source, vectors.prompts["lawyer"]
    for said in (
        "# Lawyers",
        f"| lawyer | {count} | `{sha}` |",
        f"embedding `{source.weights}`",
        f"chat template `{source.template}`",
        "![Separation by layer](separation.png)",
        f"- {effects[0]}",
        'vectors["lawyer"].at(layer=3)',
        "## Limits",
    ):
        assert said in card
    assert (folder / "separation.png").read_bytes() == b"png"
    plain = interop.save_pretrained(rl.add(vectors.at(2)), tmp_path / "s")
    card = (plain / "README.md").read_text()
    assert "- add 1 x (lawyer of layer 2, position -1) in layer 2, tokens all" in card
    assert "None was measured." in card


def test_the_card_of_a_hub_model_names_it(tmp_path: Path, vectors: rl.Directions) -> None:
    on_hub = dataclasses.replace(vectors.source, model="org/name")
    folder = interop.save_pretrained(dataclasses.replace(vectors, source=on_hub), tmp_path / "v")
    header = (folder / "README.md").read_text().split("---")[1]
    assert 'base_model: "org/name"' in header


def test_the_code_of_the_card_runs(
    tmp_path: Path, vectors: rl.Directions, llama: rl.Lens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rl, "load", lambda name: llama)
    for shared in (vectors, rl.add(vectors.at(2), 3.0)):
        folder = interop.save_pretrained(shared, tmp_path / type(shared).__name__)
        code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
        exec(code, {"NAME": folder})


def test_what_is_no_repository_is_refused(tmp_path: Path, vectors: rl.Directions) -> None:
    with pytest.raises(rl.InputError, match="no such repository could be reached"):
        interop.from_pretrained("me/nothing", cache_dir=tmp_path)
    with pytest.raises(rl.InputError, match="holds neither directions.safetensors nor"):
        interop.from_pretrained(tmp_path)
    with pytest.raises(rl.InputError, match="revision is 'main', and .* is a folder"):
        interop.from_pretrained(tmp_path, revision="main")
    with pytest.raises(rl.InputError, match="no picture"):
        interop.save_pretrained(vectors, tmp_path / "v", figure=tmp_path / "none.png")

    class Refusing(LocalHub):
        def create_repo(self, *_: Any, **__: Any) -> None:
            raise PermissionError("401 Unauthorized")

    with pytest.raises(rl.InputError, match="could not be written .401 Unauthorized"):
        interop.push_to_hub(vectors, "me/v", api=Refusing(tmp_path))


@pytest.mark.usefixtures("unchecked")
def test_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(rl.InputError, match="a dict cannot be shared"):
        interop.save_pretrained({}, tmp_path)  # type: ignore[arg-type]
