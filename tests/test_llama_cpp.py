"""Control vectors run by llama.cpp itself, against hooks, on the embedded model.

llama.cpp comes with the package llama-cpp-py-sync. The embedded GGUF file is written in float32
first: with its own 4-bit weights llama.cpp rounds activations as well, and texts part ways.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rolelens as rl
from foreign import foreign
from rolelens import embedded, interop

STEPS = 200
PROMPT = "What should I do this weekend?"

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The embedded model in llama.cpp, on two threads, with keys and values in float32."""
    bindings = foreign("llama_cpp_py_sync._cffi_bindings")
    library = foreign("llama_cpp_py_sync.llama")
    try:
        bindings.get_lib()
    except (RuntimeError, OSError) as error:
        pytest.skip(f"llama.cpp cannot be loaded ({error})")
    folder = tmp_path_factory.mktemp("gguf")
    with embedded._gguf_file(folder) as packed:
        in_float32(packed, folder / "float32.gguf")
    made = library.Llama(
        str(folder / "float32.gguf"), n_ctx=512, n_threads=2, type_k="f32", type_v="f32"
    )
    yield made
    made.close()


def in_float32(path: Path, target: Path) -> None:
    """The same GGUF file with every tensor in float32."""
    import gguf

    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(str(target), reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        value = 0 if field.name == "general.file_type" else field.contents()
        writer.add_key_value(field.name, value, kind, sub_type=inner)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def set_vector(model: Any, path: Path | None) -> None:
    """Hand a file's ``direction.k`` to llama.cpp: row k - 1 of a buffer over all its layers."""
    import gguf

    lib, ffi = model._lib, model._ffi
    if path is None:
        assert lib.llama_set_adapter_cvec(model._ctx, ffi.NULL, 0, 0, -1, -1) == 0
        return
    rows = np.zeros((model.n_layer - 1, model.n_embd), dtype=np.float32)
    for tensor in gguf.GGUFReader(path).tensors:
        rows[int(tensor.name.removeprefix("direction.")) - 1] = tensor.data
    data = ffi.cast("float *", ffi.from_buffer(rows))
    told = lib.llama_set_adapter_cvec(model._ctx, data, rows.size, model.n_embd, 1, model.n_layer)
    assert told == 0


def run(model: Any, ids: list[int], steps: int) -> tuple[torch.Tensor, list[int]]:
    """Logits at the end of a prompt, and greedy tokens after it."""
    lib, ffi = model._lib, model._ffi
    lib.llama_memory_clear(lib.llama_get_memory(model._ctx), True)
    first, written, past, step = None, [], 0, ids
    for _ in range(steps):
        past = model._eval_tokens(list(step), past)
        read = ffi.buffer(lib.llama_get_logits_ith(model._ctx, -1), 4 * model.n_vocab)
        logits = torch.frombuffer(bytearray(read), dtype=torch.float32)
        first = logits if first is None else first
        step = [int(logits.argmax())]
        written += step
    assert first is not None
    return first, written


def test_llama_cpp_does_what_hooks_do(llama_cpp: Any, smollm2: rl.Lens, tmp_path: Path) -> None:
    vectors = rl.contrast(smollm2, ["Sir, may I ask?"], ["hey you"], name="formal")
    steering = (
        rl.add(vectors.at(16), 1.0) + rl.add(vectors.at(20), 0.5) + rl.add(vectors.at(2), 1.0)
    )
    path = interop.write_control_vector(steering, tmp_path / "v.gguf")
    ids = list(smollm2.encode([PROMPT]).ids[0])
    for done, file in ((rl.Steering(), None), (steering, path)):
        set_vector(llama_cpp, file)
        logits, written = run(llama_cpp, ids, STEPS)
        with torch.inference_mode(), smollm2.steered(done):
            expected = smollm2.model(torch.tensor([ids]), return_type="logits")[0, -1]
        assert (logits - expected).abs().max() <= 5e-3
        text = smollm2.generate([PROMPT], hooks=done, max_new_tokens=STEPS)[0]
        assert smollm2._text(written) == text
