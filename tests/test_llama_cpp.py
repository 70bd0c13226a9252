"""Control vectors run by llama.cpp itself, against hooks, on the embedded model.

llama.cpp comes with the package llama-cpp-python, which is compiled where it is installed.
"""

import ctypes
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
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The embedded model as it is, in 4 bits, and the same weights in float32."""
    foreign("llama_cpp")
    folder = tmp_path_factory.mktemp("gguf")
    with embedded._gguf_file(folder) as packed:
        in_float32(packed, folder / "float32.gguf")
        (folder / "q4_1.gguf").write_bytes(packed.read_bytes())
    return {path.stem: path for path in folder.glob("*.gguf")}


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


def opened(path: Path) -> Any:
    """A model in llama.cpp, with keys and values in float32."""
    library = foreign("llama_cpp")
    kind = library.GGML_TYPE_F32
    return library.Llama(
        str(path), n_ctx=512, n_threads=1, n_threads_batch=1, type_k=kind, type_v=kind,
        flash_attn=False, verbose=False,
    )  # fmt: skip


def set_vector(model: Any, path: Path | None) -> None:
    """Hand a file's ``direction.k`` to llama.cpp: row k - 1 of a buffer over all its layers."""
    import gguf

    library = foreign("llama_cpp")
    if path is None:
        assert library.llama_set_adapter_cvec(model._ctx.ctx, None, 0, 0, -1, -1) == 0
        return
    layers = library.llama_model_n_layer(model._model.model)
    rows = np.zeros((layers - 1, model.n_embd()), dtype=np.float32)
    for tensor in gguf.GGUFReader(path).tensors:
        rows[int(tensor.name.removeprefix("direction.")) - 1] = tensor.data
    data = rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    told = library.llama_set_adapter_cvec(
        model._ctx.ctx, data, rows.size, model.n_embd(), 1, layers
    )
    assert told == 0


def run(model: Any, ids: list[int], steps: int) -> tuple[torch.Tensor, list[int]]:
    """Logits at the end of a prompt, and greedy tokens after it."""
    library = foreign("llama_cpp")
    model.reset()
    first, written, step = None, [], ids
    for _ in range(steps):
        model.eval(step)
        read = library.llama_get_logits_ith(model._ctx.ctx, -1)
        logits = torch.from_numpy(np.ctypeslib.as_array(read, (model.n_vocab(),)).copy())
        first = logits if first is None else first
        step = [int(logits.argmax())]
        written += step
    assert first is not None
    return first, written


def compared(lens: rl.Lens, path: Path, folder: Path) -> list[dict[str, Any]]:
    """llama.cpp on a file beside hooks, unsteered and steered: logits, and tokens that agree."""
    vectors = rl.contrast(lens, ["Sir, may I ask?"], ["hey you"], name="formal")
    steering = (
        rl.add(vectors.at(16), 1.0) + rl.add(vectors.at(20), 0.5) + rl.add(vectors.at(2), 1.0)
    )
    vector = interop.write_control_vector(steering, folder / "v.gguf")
    tokens = lens.encode([PROMPT])
    ids = list(tokens.ids[0])
    model = opened(path)
    rows = []
    for done, file in ((rl.Steering(), None), (steering, vector)):
        set_vector(model, file)
        logits, written = run(model, ids, STEPS)
        with torch.inference_mode(), lens.steered(done):
            expected = lens.model(torch.tensor([ids]), return_type="logits")[0, -1]
        ours = lens.continued(tokens, hooks=done, max_new_tokens=STEPS)[0]
        theirs = lens._ended(written)
        same = next(
            (n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
            min(len(ours), len(theirs)),
        )
        rows.append(
            {
                "logits": float((logits - expected).abs().max()),
                "spread": float(expected.std()),
                "ours": ours,
                "theirs": theirs,
                "same": same,
            }
        )
        print(
            f"{path.stem}, {done or 'unsteered'}: largest difference of logits "
            f"{rows[-1]['logits']:.3g} (their standard deviation is {rows[-1]['spread']:.3g}), "
            f"{same} greedy tokens the same of {len(ours)}"
        )
    model.close()
    return rows


def test_llama_cpp_does_what_hooks_do(
    files: dict[str, Path], smollm2: rl.Lens, tmp_path: Path
) -> None:
    rows = compared(smollm2, files["float32"], tmp_path)
    assert rows[0]["ours"] != rows[1]["ours"]
    for row in rows:
        assert row["logits"] <= 5e-3
        assert row["theirs"] == row["ours"]


def test_with_weights_of_four_bits_it_differs_as_much_unsteered(
    files: dict[str, Path], smollm2: rl.Lens, tmp_path: Path
) -> None:
    """llama.cpp rounds activations to 8 bits there, and hooks run on dequantised weights."""
    unsteered, steered = compared(smollm2, files["q4_1"], tmp_path)
    assert unsteered["logits"] > 0.01
    assert steered["logits"] <= 3 * unsteered["logits"]
