"""Devices, device maps and dtypes that are asked for."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

import oracles
import rolelens as rl
import tiny
from rolelens import placement


@pytest.fixture
def gpus(monkeypatch) -> None:
    """Two GPUs, as far as PyTorch says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_devices_that_are_not_there_are_one_sentence(gpus) -> None:
    assert placement.checked_device(None).type == "cuda"
    assert placement.checked_device("cuda:1").index == 1
    with pytest.raises(
        rl.InputError, match="device is 'cuda:2', and the last GPU here is 'cuda:1'"
    ):
        placement.checked_device("cuda:2")
    with pytest.raises(rl.InputError, match="device is 'mps', and there is none here"):
        placement.checked_device("mps")


def test_bfloat16_is_for_devices_that_compute_in_it(gpus, monkeypatch) -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    for computes in (True, False):
        with monkeypatch.context() as patched:
            patched.setattr(placement, "computes_bfloat16", lambda device: computes)  # noqa: B023
            expected = torch.bfloat16 if computes else torch.float32
            for device in (gpu, cpu):
                assert placement.checked_dtype("auto", device) == expected
            assert placement.checked_dtype(None, gpu) == expected
            assert placement.checked_dtype(None, cpu) == torch.float32
    assert placement.checked_dtype("float16", gpu) == torch.float16


def test_device_maps_that_cannot_be_used_are_one_sentence(gpus) -> None:
    assert placement.checked_map("auto") == "auto"
    assert placement.checked_map({"": 1}) == {"": 1}
    wrong = {
        "device_map is 'spread'; use one of 'auto', 'balanced'": "spread",
        r"device_map is \{\}; pass 'auto'": {},
        "device_map puts 'model.norm' on disk": {"": 0, "model.norm": "disk"},
        "device_map puts '' on 1.5, which is no device": {"": 1.5},
        "device is 'cuda:3', and the last GPU": {"": 3},
        "puts some modules on the CPU and others not": {"model": 0, "lm_head": "cpu"},
    }
    for message, device_map in wrong.items():
        with pytest.raises(rl.InputError, match=message):
            placement.checked_map(device_map)


def test_a_model_is_placed_by_a_device_map(tmp_path) -> None:
    tiny.hf_model("Llama").save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    lens = rl.load(tmp_path, device_map={"": "cpu"})
    ids = oracles.chat_ids(tiny.tokenizer(), "Prove it.")
    expected = lens._text(oracles.greedy(tiny.reference("Llama"), ids, 5))
    assert lens.generate(["Prove it."], max_new_tokens=5) == [expected]
    left = {"model.embed_tokens": "cpu", "model.layers": "cpu", "lm_head": "cpu"}
    with pytest.raises(rl.InputError, match=r"device_map names no device for .*model\.norm"):
        rl.load(tmp_path, device_map=left)
    with pytest.raises(rl.InputError, match="device is 'cpu' and device_map is given, too"):
        rl.load(tmp_path, device="cpu", device_map="auto")


def test_offloaded_weights_are_refused(tmp_path) -> None:
    """By accelerate's own doing, from a model that is in memory."""
    from accelerate import cpu_offload

    model = tiny.hf_model("Llama")
    cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(rl.InputError, match="offloaded"):
        rl.load(model, tokenizer=tiny.tokenizer())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_model_gives_its_own_numbers(bits: int, tmp_path) -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    torch.manual_seed(0)
    config = LlamaConfig(**tiny.reference("Llama").config.to_dict() | sizes)
    LlamaForCausalLM(config).eval().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    quantised = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
    lens = rl.load(tmp_path, device="cpu", quantization_config=quantised)
    reference = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        quantization_config=quantised,
        device_map={"": "cpu"},
        attn_implementation="eager",
        dtype=torch.float32,
    )
    assert any("bitsandbytes" in type(part).__module__ for part in reference.modules())
    ids = torch.tensor([list(lens.encode(["Prove it."]).ids[0])])
    with torch.no_grad():
        hidden = reference(ids, output_hidden_states=True).hidden_states
    found = rl.activations(lens, ["Prove it."], positions=[-1])[0, :, 0]
    expected = torch.stack([x[0, -1].float() for x in hidden[: lens.n_layers]])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
