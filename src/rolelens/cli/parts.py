"""Parts of commands that need the library; a command imports them when it runs."""

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from rolelens import forward, interop, loading
from rolelens.cli.options import check_out, tell
from rolelens.errors import InputError, unknown, writing
from rolelens.forward import Named
from rolelens.hooks import Steering, ablate, add
from rolelens.lens import Lens
from rolelens.patchscoping import (
    PROMPT,
    Addition,
    JacobianLens,
    LogitLens,
    Reader,
    SelfIE,
    TokenIdentity,
)
from rolelens.sweeps import Estimate, duration
from rolelens.tasks import AnyTask, Options, load_task
from rolelens.vectors import Directions

LONG = 2e13
"""Operations of a run that takes minutes on a few cores."""


@contextlib.contextmanager
def foretold(estimate: Callable[[float], Estimate], silent: bool) -> Iterator[float | None]:
    """Say before a long run what it will take, and after it what it took; gives the seconds.

    Args:
        estimate: estimates the run, from its speed measured for some seconds.
        silent: say nothing.
    """
    quick = None if silent else estimate(0.0)
    if quick is None or quick.operations < LONG:
        yield None
        return
    before = estimate(10.0)
    print(f"rolelens: {before}", file=sys.stderr, flush=True)
    start = time.monotonic()
    yield before.seconds
    took = duration(time.monotonic() - start)
    expected = duration(before.seconds or 0.0)
    print(f"rolelens: took {took}; estimated {expected}", file=sys.stderr, flush=True)


def tell_estimate(as_json: bool, estimate: Estimate) -> None:
    """Print what a run would take."""
    tell(as_json, dataclasses.asdict(estimate) | {"seconds": estimate.seconds}, str(estimate))


def load_model(model: str, dtype: str | None, device: str | None) -> Lens:
    """The model that the options name."""
    return loading.load(model, dtype=dtype, device=device)


def load_vectors(vectors: Path | None, names: list[str] | None) -> Directions:
    """The directions of a file, of some names if any are given."""
    if vectors is None:
        raise InputError("no vectors; name a file written by 'rolelens extract' or 'contrast'.")
    loaded = Directions.load(vectors)
    return loaded[names] if names else loaded


def load_steering(
    steering: Path | None,
    vectors: Path | None,
    name: str | None,
    layer: int | None,
    position: int | None,
    alpha: float | None,
    remove: bool,
) -> Callable[[Lens], Steering]:
    """What the options say is done, read and checked before any model is loaded.

    Returns:
        The steering, once there is a model to check it on.

    Raises:
        InputError: options that have no effect or contradict each other, or files that cannot be
            read.
    """
    given = {"--name": name, "--layer": layer, "--position": position, "--alpha": alpha}
    given["--ablate"] = remove or None
    unused = [option for option, value in given.items() if value is not None]
    if vectors is None and unused:
        raise InputError(f"{unused[0]} is about a direction of --vectors; name a file of vectors.")
    if vectors is not None and steering is not None:
        raise InputError("--vectors and --steering both say how to steer; give one of them.")
    saved = Steering() if steering is None else Steering.load(steering)
    loaded = None if vectors is None else Directions.load(vectors)

    def on(lens: Lens) -> Steering:
        done = saved
        if loaded is not None:
            if name is None or layer is None:
                raise InputError(
                    "--vectors needs --name and --layer: say which direction to steer with."
                )
            if remove and alpha is not None:
                raise InputError(
                    f"--alpha is {alpha}, and --ablate has no strength; leave one out."
                )
            d = loaded.direction(name, layer, position)
            done = ablate(d, lens) if remove else add(d, 1.0 if alpha is None else alpha)
        done.check(lens.source, lens.n_layers)
        return done

    return on


def load_items(task: str, shots: int, domains: list[str] | None) -> AnyTask:
    """The task that is named, of some domains if any are given."""
    loaded = load_task(task, shots=shots)
    return loaded.domain(*domains) if domains else loaded


def task_options(max_new_tokens: int | None) -> Options:
    """How a task is put, as far as options say."""
    return {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}


def checked_tokens(tokens: str) -> Named:
    """A selection of tokens."""
    return forward.checked_selection(tokens)  # type: ignore[arg-type]


def check_save_best(path: Path | None, vectors: Directions) -> None:
    """Refuse, before hours of work, what could not be written after them."""
    check_out(path)
    if path is not None and len(vectors.names) > 1:
        raise InputError(
            f"--save-best writes one steering, and there are {len(vectors.names)} names "
            f"({', '.join(vectors.names[:4])}{', ...' if len(vectors.names) > 4 else ''}); name "
            "one with --name."
        )


def write(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV."""
    with writing(path):
        table.to_csv(path, index=False)


def reader_of(name: str, alpha: float | None, prompt: str | None, max_new_tokens: int) -> Reader:
    """The reader that the options name."""
    readers: dict[str, Callable[[], Reader]] = {
        "addition": lambda: Addition(
            3.0 if alpha is None else alpha, prompt or PROMPT, max_new_tokens=max_new_tokens
        ),
        "token-identity": lambda: TokenIdentity(max_new_tokens=max_new_tokens),
        "selfie": lambda: SelfIE(max_new_tokens=max_new_tokens),
        "logit-lens": LogitLens,
        "jacobian-lens": JacobianLens,
    }
    if name not in readers:
        raise unknown("reader", name, readers)
    if name != "addition" and (alpha is not None or prompt):
        raise InputError(f"--alpha and --prompt are of the addition; --reader is {name!r}.")
    return readers[name]()


def save_steering(
    steering: Steering, path: Path, content: dict[str, Any], text: str
) -> tuple[dict[str, Any], str]:
    """Write a steering, and say so in what is told."""
    steering.save(path)
    told = {**content, "best": {"steering": str(steering), "path": str(path)}}
    return told, f"{text}\nThe best, in {path}: {steering}"


def save_vectors(vectors: Directions, out: Path, as_json: bool) -> None:
    """Write vectors, and tell what and where."""
    path = vectors.save(out)
    content = {"path": str(path), "names": vectors.names, "layers": vectors.layers}
    tell(as_json, content, f"{vectors}\nsaved in {path}")


def write_with_model(to: str, lens: Lens, steering: Steering, out: Path) -> None:
    """Write a steering in a format that is made with the model at hand."""
    if to == "hf":
        interop.bake(lens, steering, out)
    else:
        interop.write_steered(steering, out, lens)


def write_steering(to: str, steering: Steering, out: Path) -> None:
    """Write a steering in another format."""
    writers: dict[str, Callable[[Steering, Path], object]] = {
        "gguf": interop.write_control_vector,
        "steering-vectors": interop.write_layer_activations,
        "boot-vllm": _as_json(interop.to_boot_vllm),
        "vllm-lens": _as_json(interop.to_vllm_lens),
        "hub": interop.save_pretrained,
    }
    writers[to](steering, out)


def _as_json(translate: Callable[[Steering], object]) -> Callable[[Steering, Path], object]:
    def write(steering: Steering, out: Path) -> None:
        content = json.dumps(translate(steering))
        with writing(out):
            out.write_text(content, encoding="utf-8")

    return write
