"""The command that writes a steering for other programs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from rolelens import interop
from rolelens.cli.options import Device, Dtype, Json, Quiet, load_model, plainly, tell
from rolelens.errors import InputError, unknown, writing
from rolelens.hooks import Steering
from rolelens.lens import Lens

FORMATS = {
    "hf": "a folder with a checkpoint that plain transformers loads, the steering in its weights",
    "gguf": "a control vector of llama.cpp",
    "steering-vectors": "layer_activations of the library steering-vectors, as a .pt of tensors",
    "lm-eval": "a file for the model 'steered' of lm-evaluation-harness",
    "boot-vllm": "edits of TransformerLens' boot_vllm, as JSON",
    "vllm-lens": "steering vectors of the plugin vllm-lens, as JSON",
    "hub": "a folder in the layout of a hub repository, with a card",
}
OF_MODELS = ("hf", "lm-eval")
"""Formats that are made with the model at hand."""


def export(
    steering: Annotated[
        Path, typer.Argument(help="A file of --save-best, or of Steering.save in Python.")
    ],
    out: Annotated[Path, typer.Argument(help="The file or folder to write.")],
    to: Annotated[str, typer.Option(help="; ".join(f"{k}: {v}" for k, v in FORMATS.items()))],
    model: Annotated[
        str | None, typer.Option(help="The model, for hf and lm-eval; 'smollm2' by default.")
    ] = None,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
    silent: Quiet = False,
) -> None:
    """Write a steering in the format of another program, or say why that cannot hold it."""
    with plainly(silent):
        if to not in FORMATS:
            raise unknown("format", to, FORMATS)
        given = {"--model": model, "--dtype": dtype, "--device": device}
        unused = [option for option, value in given.items() if value is not None]
        if unused and to not in OF_MODELS:
            raise InputError(f"{unused[0]} has no effect on the format {to!r}; leave it out.")
        loaded = Steering.load(steering)
        if to in OF_MODELS:
            _with_model(to, load_model(model or "smollm2", dtype, device), loaded, out)
        else:
            _WRITERS[to](loaded, out)
        content = {"path": str(out), "format": to, "steering": str(loaded)}
        tell(as_json, content, f"{loaded}\nwritten to {out}, {FORMATS[to]}")


def _with_model(to: str, lens: Lens, steering: Steering, out: Path) -> None:
    if to == "hf":
        interop.bake(lens, steering, out)
    else:
        interop.write_steered(steering, out, lens)


def _as_json(translate: Callable[[Steering], object]) -> Callable[[Steering, Path], object]:
    def write(steering: Steering, out: Path) -> None:
        content = json.dumps(translate(steering))
        with writing(out):
            out.write_text(content, encoding="utf-8")

    return write


_WRITERS: dict[str, Callable[[Steering, Path], object]] = {
    "gguf": interop.write_control_vector,
    "steering-vectors": interop.write_layer_activations,
    "boot-vllm": _as_json(interop.to_boot_vllm),
    "vllm-lens": _as_json(interop.to_vllm_lens),
    "hub": interop.save_pretrained,
}
