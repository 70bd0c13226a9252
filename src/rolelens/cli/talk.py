"""Commands that show what steering does to text: one prompt, or a conversation."""

import sys
from collections.abc import Iterable
from typing import Annotated

import typer

from rolelens.cli.options import (
    Ablate,
    Alpha,
    Device,
    Dtype,
    Json,
    Layer,
    Model,
    Name,
    OfVectors,
    Position,
    Quiet,
    SteeringFile,
    plainly,
    tell,
)
from rolelens.errors import InputError

Length = Annotated[int, typer.Option(help="Length of an answer at most, in tokens.")]
System = Annotated[str | None, typer.Option(help="A system prompt.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
Seed = Annotated[int, typer.Option(help="Of the sampling.")]


def steer(
    prompts: Annotated[list[str], typer.Argument(help="What the user says; several are answered.")],
    steering: SteeringFile = None,
    vectors: OfVectors = None,
    name: Name = None,
    layer: Layer = None,
    position: Position = None,
    alpha: Alpha = None,
    remove: Ablate = False,
    system: System = None,
    max_new_tokens: Length = 64,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    model: Model = "smollm2",
    dtype: Dtype = None,
    device: Device = None,
    as_json: Json = False,
    silent: Quiet = False,
) -> None:
    """Answer prompts, steered beside unsteered."""
    from rolelens.cli.parts import load_model, load_steering
    from rolelens.hooks import Steering

    with plainly(silent):
        if steering is None and vectors is None:
            raise InputError("nothing to steer with; name a file with --vectors or --steering.")
        steered = load_steering(steering, vectors, name, layer, position, alpha, remove)
        lens = load_model(model, dtype, device)
        done = steered(lens)
        plain, changed = (
            lens.generate(
                prompts,
                hooks=hooks,
                system=system,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=seed,
            )
            for hooks in (Steering(), done)
        )
        answers = [
            {"prompt": prompt, "unsteered": before, "steered": after}
            for prompt, before, after in zip(prompts, plain, changed, strict=True)
        ]
        lines = [
            f"{row['prompt']}\n\nunsteered: {row['unsteered']}\n\nsteered: {row['steered']}\n"
            for row in answers
        ]
        content = {"steering": str(done), "answers": answers}
        tell(as_json, content, "\n".join([*lines, f"steering: {done}"]))


def chat(
    steering: SteeringFile = None,
    vectors: OfVectors = None,
    name: Name = None,
    layer: Layer = None,
    position: Position = None,
    alpha: Alpha = None,
    remove: Ablate = False,
    system: System = None,
    max_new_tokens: Length = 256,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    model: Model = "smollm2",
    dtype: Dtype = None,
    device: Device = None,
    silent: Quiet = False,
) -> None:
    """Talk with the model, steered or not; an empty line, Ctrl-D or Ctrl-C ends it."""
    from rolelens.chat import Message
    from rolelens.cli.parts import load_model, load_steering

    with plainly(silent):
        steered = load_steering(steering, vectors, name, layer, position, alpha, remove)
        lens = load_model(model, dtype, device)
        done = steered(lens)
        if not silent:
            print(f"{lens.name}, steering: {done}. An empty line ends it.", file=sys.stderr)
        turns: list[Message] = []
        while said := _asked():
            turns.append({"role": "user", "content": said})
            stream = lens.stream(
                turns,
                hooks=done,
                system=system,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=seed,
            )
            turns.append({"role": "assistant", "content": _told(stream)})


def _asked() -> str:
    """The next line of the user; nothing at the end of the input."""
    if sys.stdin.isatty():
        print("> ", end="", flush=True)
    return sys.stdin.readline().strip()


def _told(stream: Iterable[str]) -> str:
    """An answer, printed as it is written."""
    pieces = []
    for piece in stream:
        print(piece, end="", flush=True)
        pieces.append(piece)
    print()
    return "".join(pieces)
