"""The command that writes a steering for other programs."""

from pathlib import Path
from typing import Annotated

import typer

from rolelens.cli.options import Device, Dtype, Json, Quiet, plainly, tell
from rolelens.errors import InputError, unknown

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
    from rolelens.cli.parts import load_model, write_steering, write_with_model
    from rolelens.hooks import Steering

    with plainly(silent):
        if to not in FORMATS:
            raise unknown("format", to, FORMATS)
        given = {"--model": model, "--dtype": dtype, "--device": device}
        unused = [option for option, value in given.items() if value is not None]
        if unused and to not in OF_MODELS:
            raise InputError(f"{unused[0]} has no effect on the format {to!r}; leave it out.")
        loaded = Steering.load(steering)
        if to in OF_MODELS:
            lens = load_model(model or "smollm2", dtype, device)
            write_with_model(to, lens, loaded, out)
        else:
            write_steering(to, loaded, out)
        content = {"path": str(out), "format": to, "steering": str(loaded)}
        tell(as_json, content, f"{loaded}\nwritten to {out}, {FORMATS[to]}")
