"""Directions and steerings on the model hub, with a card that says what they are.

A repository, or a folder like one, holds ``directions.safetensors`` or ``steering.safetensors`` as
rolelens saves them, and a README.md made here.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

from rolelens import hub
from rolelens.errors import InputError, writing
from rolelens.hooks import Steering
from rolelens.vectors import Directions, Source

Shared: TypeAlias = Directions | Steering
FILES: Mapping[str, Any] = {
    "directions.safetensors": Directions.load,
    "steering.safetensors": Steering.load,
}
LIMITS = """\
- Vectors belong to the model that they were measured on, chat template included; rolelens refuses
  them on another.
- What was measured is listed under *Effects*, and nothing beyond it is claimed. The best of many
  cells is partly luck.
"""


def save_pretrained(
    shared: Shared,
    folder: str | Path,
    *,
    title: str = "",
    effects: Sequence[object] = (),
    figure: str | Path | None = None,
) -> Path:
    """Write a folder in the layout of a hub repository; returns it.

    Args:
        shared: directions, or a steering.
        folder: where.
        title: of the card; the names by default.
        effects: what was measured, a line each, such as results of ``rl.compare``, which print with
            their intervals.
        figure: a picture of the separation, copied into the card.

    Raises:
        InputError: something else is passed, there is no such picture, or the folder cannot be
            written.
    """
    place = Path(folder)
    if not isinstance(shared, Directions | Steering):
        raise InputError(
            f"a {type(shared).__name__} cannot be shared; pass Directions, or a Steering."
        )
    picture = None if figure is None else Path(figure)
    if picture is not None and not picture.is_file():
        raise InputError(f"no picture {str(picture)!r}; check the path, or leave figure out.")
    name = "directions.safetensors" if isinstance(shared, Directions) else "steering.safetensors"
    shared.save(place / name)
    with writing(place / "README.md"):
        shown = "" if picture is None else f"separation{picture.suffix}"
        if picture is not None:
            shutil.copyfile(picture, place / shown)
        (place / "README.md").write_text(_card(shared, title, effects, shown), encoding="utf-8")
    return place


def push_to_hub(
    shared: Shared,
    repo_id: str,
    *,
    private: bool = False,
    api: Any = None,
    **card: Any,
) -> str:
    """Put directions or a steering on the hub; returns the repository's name.

    Args:
        shared: directions, or a steering.
        repo_id: such as ``"me/lawyer-vectors"``; made where it is not there.
        private: whether only you see it, where it is made.
        api: a ``huggingface_hub.HfApi``; by default one with the token of this machine.
        card: as for :func:`save_pretrained`.

    Raises:
        InputError: as for :func:`save_pretrained`; the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    with TemporaryDirectory() as folder:
        save_pretrained(shared, folder, **card)
        client = api or HfApi()
        try:
            client.create_repo(repo_id, private=private, exist_ok=True)
            client.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message="Vectors of rolelens"
            )
        except Exception as error:  # the client raises many classes
            raise InputError(
                f"{repo_id!r} could not be written ({error}); log in with 'hf auth login', or "
                "write a folder with save_pretrained."
            ) from error
    return repo_id


def from_pretrained(
    name: str | Path, *, revision: str | None = None, cache_dir: str | Path | None = None
) -> Shared:
    """Directions or a steering of a hub repository, or of a folder like one.

    Args:
        name: a folder, or such as ``"me/lawyer-vectors"``.
        revision: a branch, tag or commit of the repository.
        cache_dir: where downloads are kept.

    Raises:
        InputError: there is no such folder or repository, or it holds no vectors of rolelens.
    """
    place = Path(name)
    if not place.is_dir():
        from huggingface_hub import snapshot_download

        try:
            with hub.impatient() as answers:
                place = Path(
                    snapshot_download(
                        str(name),
                        revision=revision,
                        cache_dir=cache_dir,
                        allow_patterns=[*FILES, "README.md"],
                    )
                )
        except Exception as error:  # the client raises many classes
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            if answers.missed:
                reason = f"the hub did not answer within {answers.limit:g} s"
            raise InputError(
                f"there is no folder {str(name)!r}, and no such repository could be reached "
                f"({reason}); check the name."
            ) from error
    elif revision is not None:
        raise InputError(f"revision is {revision!r}, and {str(name)!r} is a folder; leave it out.")
    for file, load in FILES.items():
        if (place / file).is_file():
            shared: Shared = load(place / file)
            return shared
    raise InputError(
        f"{str(name)!r} holds neither {' nor '.join(FILES)}; name one that push_to_hub or "
        "save_pretrained wrote."
    )


def _card(shared: Shared, title: str, effects: Sequence[object], figure: str) -> str:
    """The card, as Markdown with the hub's header."""
    if isinstance(shared, Directions):
        source = shared.source
        names = ", ".join(shared.tried)
        what = [
            f"Directions in the residual stream (`{shared.site}`): {shared.contrast}.",
            "",
            f"- names: {names}",
            f"- layers: {', '.join(map(str, shared.layers))}",
            f"- positions: {', '.join(map(str, shared.positions))}",
            *([f"- nulls: {', '.join(shared.nulls)}"] if shared.nulls else []),
            "",
            "| prompts of | number | hash |",
            "|---|---|---|",
            *(f"| {name} | {count} | `{sha}` |" for name, (count, sha) in shared.prompts.items()),
        ]
        used = f'd = vectors["{shared.names[0]}"].at(layer={shared.layers[-1]})'
        use = ["vectors = from_pretrained(NAME)", used, "hooks = rl.add(d, alpha=1.0)"]
    else:
        source = next((step.direction.source for step in shared.steps), None)
        names = shared.name
        what = ["What is done to the model:", "", *(f"- {step}" for step in shared.steps)]
        use = ["hooks = from_pretrained(NAME)"]
    name = source.model if source else "MODEL"
    code = ["import rolelens as rl", "from rolelens.interop import from_pretrained", ""]
    code += [f'lens = rl.load("{name}")', *use, 'lens.generate(["What is a river?"], hooks=hooks)']
    lines = [
        *_header(source),
        f"# {title or names}",
        "",
        *what,
        "",
        *_measured_on(source),
        *([f"![Separation by layer]({figure})", ""] if figure else []),
        "## Use",
        "",
        "```python",
        *code,
        "```",
        "",
        "## Effects",
        "",
        *([f"- {effect}" for effect in effects] or ["None was measured."]),
        "",
        "## Limits",
        "",
        LIMITS,
    ]
    return "\n".join(lines)


def _header(source: Source | None) -> list[str]:
    base = [f"base_model: {json.dumps(source.model)}"] if source and "/" in source.model else []
    return ["---", "library_name: rolelens", "tags: [steering, rolelens]", *base, "---"]


def _measured_on(source: Source | None) -> list[str]:
    if source is None:
        return ["The model that they were measured on is not known.", ""]
    centred = "centred" if source.centred else "raw"
    return [
        f"Measured on {source.model} ({source.origin}; embedding `{source.weights}`, {centred} "
        f"writing weights, chat template `{source.template}`) in {source.dtype}, with rolelens "
        f"{source.version}.",
        "",
    ]
