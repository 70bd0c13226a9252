"""Vectors in the formats of other libraries, made and run by those libraries' own code."""

import base64
import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import oracles
import rolelens as rl
import tiny
from conftest import Variant, shared
from foreign import foreign
from rolelens import interop

IDS = oracles.chat_ids(tiny.tokenizer(), tiny.PROMPTS[1])


def direction(layer: int, seed: int = 0, name: str = "d") -> rl.Direction:
    generator = torch.Generator().manual_seed(seed)
    return rl.Direction(torch.randn(32, generator=generator), layer, name=name)


def two_layers() -> rl.Steering:
    return rl.add(direction(2), 2.0) + rl.add(direction(3, 1), -1.5)


def hooked(steering: rl.Steering, architecture: str = "Llama") -> torch.Tensor:
    """Logits under rolelens' hooks."""
    lens = shared(Variant(architecture))
    with torch.inference_mode():
        return lens.model.run_with_hooks(
            torch.tensor([IDS]), fwd_hooks=steering, return_type="logits"
        )[0]


def as_steering(vectors: rl.Directions) -> rl.Steering:
    """What directions of several layers do, each added as it is."""
    return rl.Steering(step for layer in vectors.layers for step in rl.add(vectors.at(layer)).steps)


def same(vectors: rl.Directions, steering: rl.Steering) -> bool:
    """Whether directions are, bit for bit, what a steering adds."""
    wanted = {layer: step.vector for step in steering.steps for layer in step.layers}
    return sorted(wanted) == list(vectors.layers) and all(
        torch.equal(vectors.at(layer).vector, vector) for layer, vector in wanted.items()
    )


# GGUF


def test_a_control_vector_comes_back_bit_for_bit(tmp_path: Path, llama: rl.Lens) -> None:
    d = dataclasses.replace(direction(2), source=llama.source)
    steering = rl.add(d, 2.0) + rl.add(dataclasses.replace(direction(3, 1), source=llama.source))
    path = interop.write_control_vector(steering, tmp_path / "v.gguf")
    vectors = interop.read_control_vector(path, llama)
    assert same(vectors, steering)
    assert vectors.source == llama.source
    assert vectors.names == ("d",)
    torch.testing.assert_close(hooked(as_steering(vectors)), hooked(steering))


def test_a_control_vector_is_what_llama_cpp_reads(tmp_path: Path) -> None:
    """One-dimensional float32 ``direction.k`` with k of the block whose output it is added to."""
    import gguf

    path = interop.write_control_vector(two_layers(), tmp_path / "v.gguf", model_type="llama")
    reader = gguf.GGUFReader(path)
    assert [(one.name, list(one.shape)) for one in reader.tensors] == [
        ("direction.1", [32]),
        ("direction.2", [32]),
    ]
    assert all(one.tensor_type == gguf.GGMLQuantizationType.F32 for one in reader.tensors)
    fields = {key: one.contents() for key, one in reader.fields.items()}
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "llama"
    assert fields["controlvector.layer_count"] == 2
    assert fields["rolelens.kind"] == "add"
    assert fields["rolelens.hooks"] == ["blocks.2.hook_resid_pre", "blocks.3.hook_resid_pre"]
    np.testing.assert_array_equal(reader.tensors[0].data, 2.0 * direction(2).vector.numpy())


@pytest.mark.parametrize("layer", [0, 1])
def test_the_lowest_layers_have_no_control_vector(tmp_path: Path, layer: int) -> None:
    with pytest.raises(rl.InputError, match=f"in layer {layer}: llama.cpp adds .* layer 2 is"):
        interop.write_control_vector(rl.add(direction(layer)), tmp_path / "v.gguf")
    assert not list(tmp_path.iterdir())


def test_a_control_vector_of_another_model_is_refused(tmp_path: Path, llama: rl.Lens) -> None:
    other = dataclasses.replace(llama.source, model="other", weights="0" * 16)
    d = dataclasses.replace(direction(2), source=other)
    path = interop.write_control_vector(rl.add(d), tmp_path / "v.gguf")
    with pytest.raises(rl.InputError, match=r"measured elsewhere .* \(other and tiny-Llama\)"):
        interop.read_control_vector(path, llama)


def test_a_control_vector_of_another_shape_is_refused(tmp_path: Path, llama: rl.Lens) -> None:
    wide = rl.add(rl.Direction(torch.ones(33), 2))
    with pytest.raises(rl.InputError, match="33 wide and reach layer 2, and tiny-Llama is 32 wide"):
        interop.read_control_vector(
            interop.write_control_vector(wide, tmp_path / "wide.gguf"), llama
        )
    high = interop.write_control_vector(rl.add(direction(4)), tmp_path / "high.gguf")
    with pytest.raises(rl.InputError, match="reach layer 4, and .* layers 0 to 3"):
        interop.read_control_vector(high, llama)


def test_other_files_are_no_control_vectors(tmp_path: Path) -> None:
    import gguf

    with pytest.raises(rl.InputError, match="no file"):
        interop.read_control_vector(tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_text("text")
    with pytest.raises(rl.InputError, match="no GGUF file that can be read"):
        interop.read_control_vector(tmp_path / "text.gguf")
    for architecture, tensor, said in [
        ("llama", "direction.1", "of 'llama' and not of 'controlvector'"),
        ("controlvector", "blk.0.weight", "holds 'blk.0.weight'"),
    ]:
        writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), architecture)
        writer.add_tensor(tensor, np.ones(4, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(rl.InputError, match=said):
            interop.read_control_vector(tmp_path / "m.gguf")


# repeng


def test_repeng_does_what_hooks_do(tmp_path: Path) -> None:
    repeng = foreign("repeng")
    steering = rl.add(direction(1), 2.0) + two_layers()
    vector = interop.to_repeng(steering, "llama")
    assert isinstance(vector, repeng.ControlVector)
    model = repeng.ControlModel(tiny.hf_model("Llama"), list(vector.directions))
    model.set_control(vector, 1.0)
    with torch.inference_mode():
        found = model(torch.tensor([IDS])).logits[0]
    assert (found - hooked(steering)).abs().max() <= 1e-4
    assert same(interop.from_repeng(vector), steering)


def test_files_of_repeng_are_read(tmp_path: Path) -> None:
    repeng = foreign("repeng")
    rows = {k: np.random.default_rng(k).normal(size=32).astype(np.float32) for k in range(3)}
    vector = repeng.ControlVector(model_type="llama", directions=rows)
    vector.export_gguf(tmp_path / "v.gguf")
    vectors = interop.read_control_vector(tmp_path / "v.gguf")
    assert vectors.layers == (1, 2, 3)
    model = repeng.ControlModel(tiny.hf_model("Llama"), [0, 1, 2])
    model.set_control(vector, 1.0)
    with torch.inference_mode():
        found = model(torch.tensor([IDS])).logits[0]
    assert (found - hooked(as_steering(vectors))).abs().max() <= 1e-4
    ours = interop.write_control_vector(two_layers(), tmp_path / "ours.gguf")
    read = repeng.ControlVector.import_gguf(ours)
    assert read.model_type == "llama"
    assert same(interop.from_repeng(read), two_layers())


# steering-vectors


@pytest.mark.parametrize("architecture", ["Llama", "GPT2"])
def test_steering_vectors_does_what_hooks_do(architecture: str) -> None:
    library = foreign("steering_vectors")
    vector = interop.to_steering_vector(two_layers())
    model = tiny.hf_model(architecture)
    with vector.apply(model), torch.inference_mode():
        found = model(torch.tensor([IDS])).logits[0]
    assert (found - hooked(two_layers(), architecture)).abs().max() <= 1e-4
    assert same(interop.from_steering_vector(vector), two_layers())
    elsewhere = library.SteeringVector({1: torch.ones(32)}, "mlp")
    with pytest.raises(rl.InputError, match="layer type 'mlp'"):
        interop.from_steering_vector(elsewhere)


def test_a_vector_that_steering_vectors_trained_is_read(tmp_path: Path) -> None:
    """Trained by its own code: the mean difference of what enters the next layer."""
    library = foreign("steering_vectors")
    model, tokenizer = tiny.hf_model("Llama"), tiny.tokenizer()
    pairs = [("Sing me a song.", "Prove it."), ("Who was here first?", "Name five birds.")]
    train = library.train_steering_vector
    vector = train(model, tokenizer, pairs, layers=[1, 2], show_progress=False)
    torch.save(vector.layer_activations, tmp_path / "v.pt")
    for vectors in (
        interop.from_steering_vector(vector),
        interop.read_layer_activations(tmp_path / "v.pt"),
    ):
        assert vectors.layers == (2, 3)
        for layer in vectors.layers:
            ends = [
                [oracles.hidden(model, tokenizer(text).input_ids)[layer, -1] for text in pair]
                for pair in pairs
            ]
            expected = torch.stack([one - other for one, other in ends]).mean(dim=0)
            assert oracles.relative(vectors.at(layer).vector, expected) < 1e-4


def test_layer_activations_come_back_and_code_is_never_run(tmp_path: Path) -> None:
    path = interop.write_layer_activations(two_layers(), tmp_path / "v.pt")
    assert same(interop.read_layer_activations(path), two_layers())
    blocks = torch.load(path, weights_only=True)
    assert sorted(blocks) == [1, 2]
    ran = tmp_path / "ran"

    class Bad:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return (open, (str(ran), "w"))

    (tmp_path / "bad.pt").write_bytes(pickle.dumps({1: Bad()}))
    torch.save({1: Bad()}, tmp_path / "zip.pt")
    for name in ("bad.pt", "zip.pt"):
        with pytest.raises(rl.InputError, match="would run what it says"):
            interop.read_layer_activations(tmp_path / name)
    assert not ran.exists()
    torch.save([torch.ones(3)], tmp_path / "list.pt")
    with pytest.raises(rl.InputError, match="holds a list"):
        interop.read_layer_activations(tmp_path / "list.pt")
    torch.save({1: torch.ones(3), 2: torch.ones(4)}, tmp_path / "widths.pt")
    with pytest.raises(rl.InputError, match="all of one width"):
        interop.read_layer_activations(tmp_path / "widths.pt")


# persona vectors


def test_persona_vectors_are_rows_of_hidden_states(tmp_path: Path) -> None:
    """A file as the paper's code writes it: means of ``hidden_states`` of answers, all layers."""
    model, tokenizer = tiny.reference("Llama"), tiny.tokenizer()

    def mean(prompt: str, answer: str) -> list[torch.Tensor]:
        n = len(tokenizer.encode(prompt, add_special_tokens=False))
        ids = tokenizer(prompt + answer, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            states = model(**ids, output_hidden_states=True).hidden_states
        return [state[:, n:].mean(dim=1) for state in states]

    positive, negative = mean("Who sings? ", "A bird sings."), mean("Who sings? ", "Nobody does.")
    rows = [(one - other).mean(0).float() for one, other in zip(positive, negative, strict=True)]
    torch.save(torch.stack(rows, dim=0), tmp_path / "evil_response_avg_diff.pt")
    vectors = interop.read_persona_vectors(tmp_path / "evil_response_avg_diff.pt")
    assert vectors.names == ("evil",)
    assert vectors.layers == (0, 1, 2, 3)
    # Its steerer adds row l to the output of block l - 1.
    block = oracles.blocks(tiny.hf_model("Llama"))
    steered = tiny.hf_model("Llama")
    block = oracles.blocks(steered)[2]
    handle = block.register_forward_hook(lambda m, a, out: out + 2.0 * rows[3])
    found = oracles.logits(steered, IDS)
    handle.remove()
    assert (found - hooked(rl.add(vectors.at(3), 2.0))).abs().max() <= 1e-4
    path = interop.write_persona_vectors(vectors, tmp_path / "again.pt", n_layers=4)
    again = torch.load(path, weights_only=True)
    assert torch.equal(again[:-1], torch.stack(rows)[:-1])
    assert again[-1].isnan().all()
    assert interop.read_persona_vectors(path, "evil").sha == vectors.sha


def test_what_are_no_persona_vectors_is_refused(tmp_path: Path) -> None:
    torch.save(torch.ones(3), tmp_path / "one.pt")
    with pytest.raises(rl.InputError, match=r"tensor of shape \(3,\), and persona vectors are"):
        interop.read_persona_vectors(tmp_path / "one.pt")
    torch.save({"a": 1}, tmp_path / "dict.pt")
    with pytest.raises(rl.InputError, match="holds a dict"):
        interop.read_persona_vectors(tmp_path / "dict.pt")
    with pytest.raises(rl.InputError, match="reach layer 3, and the model has 2 layers"):
        interop.write_persona_vectors(
            interop.read_layer_activations(
                interop.write_layer_activations(two_layers(), tmp_path / "v.pt")
            ),
            tmp_path / "w.pt",
            n_layers=2,
        )


def test_folders_of_the_package_persona_vectors(tmp_path: Path) -> None:
    library = foreign("persona_vectors.steering")
    store = foreign("persona_vectors.artifacts").ActivationStore("tiny", tmp_path)
    made = {kind: torch.randn(5, 4, 32) for kind in ("biography", "templated")}
    for kind, rows in made.items():
        store.save(kind, "p1", "Ada", rows, [f"q{n}" for n in range(5)])
    told = library.compute_steering_vector("p1", "tiny", 2, tmp_path, verbose=False)
    folder = library.save_steering_vector(told, tmp_path / "p1", verbose=False)
    d = interop.read_persona_folder(folder)
    assert (d.layer, d.name) == (3, "p1")
    expected = made["biography"].mean(0)[2] - made["templated"].mean(0)[2]
    torch.testing.assert_close(d.vector, expected)
    again = library.load_steering_vector(interop.write_persona_folder(d, tmp_path / "again", 2.0))
    assert torch.equal(again["steering_vector"], told["steering_vector"])
    assert (again["layer"], again["suggested_alpha"]) == (2, 2.0)


def test_a_folder_without_a_persona_is_refused(tmp_path: Path) -> None:
    with pytest.raises(rl.InputError, match="does not hold a persona's steering vector"):
        interop.read_persona_folder(tmp_path)
    with pytest.raises(rl.InputError, match="layer 1 is the lowest"):
        interop.write_persona_folder(direction(0), tmp_path / "p")


# CAA


def test_files_of_caa_are_outputs_of_blocks(tmp_path: Path) -> None:
    """Files as its code names and writes them; it adds them to what leaves a block."""
    model = tiny.hf_model("Llama")
    rows = {k: torch.randn(32) for k in (1, 2)}
    folder = tmp_path / "sycophancy"
    folder.mkdir()
    for k, row in rows.items():
        torch.save(row, folder / f"vec_layer_{k}_Llama-2-7b-chat-hf.pt")
    vectors = interop.read_caa(folder)
    assert (vectors.names, vectors.layers) == (("sycophancy",), (2, 3))
    handle = oracles.blocks(model)[1].register_forward_hook(lambda m, a, out: out + rows[1])
    found = oracles.logits(model, IDS)
    handle.remove()
    assert (found - hooked(rl.add(vectors.at(2)))).abs().max() <= 1e-4
    paths = interop.write_caa(vectors, tmp_path / "again", "Llama-2-7b-chat-hf")
    assert [path.name for path in paths] == sorted(path.name for path in folder.iterdir())
    assert interop.read_caa(tmp_path / "again", name="sycophancy").sha == vectors.sha


def test_what_are_no_files_of_caa_is_refused(tmp_path: Path) -> None:
    with pytest.raises(rl.InputError, match="has no files vec_layer_K_MODEL.pt"):
        interop.read_caa(tmp_path)
    for model in ("a", "b"):
        torch.save(torch.ones(4), tmp_path / f"vec_layer_1_{model}.pt")
    with pytest.raises(rl.InputError, match="vectors of a, b; say which, as in model='a'"):
        interop.read_caa(tmp_path)
    assert interop.read_caa(tmp_path, model="b").layers == (2,)
    torch.save(torch.ones(3, 4), tmp_path / "p.pt")
    lowest = interop.read_persona_vectors(tmp_path / "p.pt")
    with pytest.raises(rl.InputError, match="from layer 0"):
        interop.write_caa(lowest, tmp_path / "w", "m")


# vLLM


def test_edits_of_boot_vllm_are_what_transformer_lens_takes() -> None:
    from transformer_lens.model_bridge.sources.vllm.intervention_specs import validate_spec
    from transformer_lens.model_bridge.sources.vllm.worker_extension import _apply_intervention

    edits = json.loads(json.dumps(interop.to_boot_vllm(two_layers())))
    assert list(edits) == ["blocks.1.hook_out", "blocks.2.hook_out"]
    steered = tiny.hf_model("Llama")
    for hook, spec in edits.items():
        scale, bias = torch.ones(32), torch.zeros(32)
        _apply_intervention(scale, bias, validate_spec(hook, spec, width=32))
        block = oracles.blocks(steered)[int(hook.split(".")[1])]
        block.register_forward_hook(lambda m, a, out, s=scale, b=bias: out * s + b)
    found = oracles.logits(steered, IDS)
    assert (found - hooked(two_layers())).abs().max() <= 1e-4


def test_steering_vectors_of_vllm_lens_are_what_its_types_take() -> None:
    types = foreign("vllm_lens._helpers.types")
    (plain,) = json.loads(json.dumps(interop.to_vllm_lens(two_layers())))
    vector = types.SteeringVector.model_validate(plain)
    assert (vector.layer_indices, vector.scale, vector.norm_match) == ([1, 2], 1.0, False)
    assert torch.equal(vector.activations[0], 2.0 * direction(2).vector)
    steered = tiny.hf_model("Llama")
    for k, place in vector.layer_index_map.items():
        added = vector.scale * vector.activations[place]
        oracles.blocks(steered)[k].register_forward_hook(lambda m, a, out, v=added: out + v)
    assert (oracles.logits(steered, IDS) - hooked(two_layers())).abs().max() <= 1e-4


def test_steering_vectors_of_vllm_lens_are_plain_values() -> None:
    (plain,) = interop.to_vllm_lens(two_layers())
    data = np.frombuffer(base64.b64decode(plain["activations"]["data"]), dtype=np.float32)
    expected = torch.stack([2.0 * direction(2).vector, -1.5 * direction(3, 1).vector])
    np.testing.assert_array_equal(data.reshape(plain["activations"]["shape"]), expected.numpy())


# What no format of vectors holds

WRITERS: dict[str, Callable[[rl.Steering, Path], Any]] = {
    "GGUF": lambda s, path: interop.write_control_vector(s, path),
    "repeng": lambda s, path: interop.to_repeng(s, "llama"),
    "SteeringVector": lambda s, path: interop.to_steering_vector(s),
    "layer_activations": lambda s, path: interop.write_layer_activations(s, path),
    "boot_vllm": lambda s, path: interop.to_boot_vllm(s),
    "vllm-lens": lambda s, path: interop.to_vllm_lens(s),
    "steered": lambda s, path: interop.write_steered(s, path, shared(Variant("Llama"))),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda lens: rl.add(direction(2), tokens="generated"), "on tokens 'generated'"),
        (lambda lens: rl.add(direction(2), tokens=(3, 4)), r"on tokens \[3, 4\]"),
        (lambda lens: rl.ablate(direction(2), lens), "can only add a direction"),
        (lambda lens: rl.replace(direction(2), tokens="all"), "can only add a direction"),
        (
            lambda lens: rl.add(direction(2)) + rl.add(direction(2, 1)),
            "one direction a layer, and this steering adds several in layer 2",
        ),
        (
            lambda lens: rl.add(dataclasses.replace(direction(2), site="attn_out")),
            "lives at 'attn_out'",
        ),
        (lambda lens: rl.add(direction(2), 0.0), "does nothing"),
    ],
)
def test_the_rest_is_refused(
    tmp_path: Path, llama: rl.Lens, writer: str, make: Any, said: str
) -> None:
    with pytest.raises(rl.InputError, match=said):
        WRITERS[writer](make(llama), tmp_path / "file")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("writer", [name for name in WRITERS if name != "GGUF"])
def test_layer_zero_is_the_output_of_no_block(tmp_path: Path, writer: str) -> None:
    with pytest.raises(rl.InputError, match="in layer 0: .* layer 1 is the lowest"):
        WRITERS[writer](rl.add(direction(0)), tmp_path / "file")
