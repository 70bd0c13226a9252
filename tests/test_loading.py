import subprocess
from collections.abc import Iterator

import pytest
import torch

import oracles
import rolelens as rl
import tiny
from conftest import tiny_bridge, tiny_lens
from rolelens import embedded, loading


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Nothing is installed: no process is started."""
    started: list[object] = []
    monkeypatch.setattr(subprocess.Popen, "__init__", lambda self, *args, **_: started.append(args))
    yield started
    assert not started


@pytest.fixture
def folder(tmp_path):
    """A tiny model on disk."""
    tiny.hf_model("Llama").save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_loading_installs_nothing(folder, no_process, monkeypatch) -> None:
    """Not even where a processor fails to load for want of torchvision."""
    helpers = pytest.importorskip("transformer_lens.model_bridge.sources.transformers.helpers")
    from transformer_lens.model_bridge import TransformerBridge

    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    boot, asked = TransformerBridge.boot_transformers, []

    def multimodal(*args, **options):
        asked.append(helpers._ensure_torchvision())
        return boot(*args, **options)

    monkeypatch.setattr(TransformerBridge, "boot_transformers", staticmethod(multimodal))
    before = helpers._ensure_torchvision
    rl.load(folder, device="cpu")
    rl.load(tiny.hf_model("Llama"), tokenizer=tiny.tokenizer())
    assert asked == [False, False]
    assert helpers._ensure_torchvision is before


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_transformers_model_in_memory_gives_its_own_numbers(architecture: str) -> None:
    model, tokenizer = tiny.hf_model(architecture), tiny.tokenizer()
    model.config.architectures = None
    lens = rl.load(model, tokenizer=tokenizer)
    ids = oracles.chat_ids(tokenizer, tiny.PROMPTS[1])
    expected = oracles.logits(tiny.reference(architecture), ids)
    with torch.no_grad():
        torch.testing.assert_close(
            lens.model(torch.tensor([ids]))[0], expected, rtol=1e-4, atol=1e-4
        )
    found = rl.activations(lens, [tiny.PROMPTS[1]], positions="all")[0]
    assert oracles.relative(found, oracles.hidden(tiny.reference(architecture), ids)) < 1e-5
    assert (
        next(model.parameters()).data_ptr()
        == next(lens.model.original_model.parameters()).data_ptr()
    )


def test_a_model_in_memory_keeps_its_dtype_and_its_tokenizer_as_it_is_now() -> None:
    tokenizer = tiny.tokenizer("[U]{{ messages[-1]['content'] }}[A]")  # a file has this template
    tokenizer.chat_template, kept = tiny.TEMPLATE, tokenizer.chat_template
    try:
        lens = rl.load(tiny.hf_model("Qwen2").to(torch.bfloat16), tokenizer=tokenizer)
    finally:
        tokenizer.chat_template = kept
    assert lens.source.dtype == "bfloat16"
    assert list(lens.encode(["Hi."]).ids[0]) == oracles.chat_ids(tiny.tokenizer(), "Hi.")
    assert lens.encode(["Hi."], raw=True).ids[0][0] == 0


def test_what_cannot_be_wrapped_is_one_sentence() -> None:
    model, tokenizer = tiny.hf_model("Llama"), tiny.tokenizer()
    for given, options, sentence in (
        (model, {}, "the LlamaForCausalLM has no tokenizer; pass it as well"),
        (model.train(), {"tokenizer": tokenizer}, "is in training mode"),
        (model, {"tokenizer": tokenizer, "dtype": "float32"}, "move, cast or quantise"),
        (torch.nn.Linear(2, 2), {}, "a Linear is no model that can be loaded"),
        (tiny_bridge("Llama"), {"tokenizer": tokenizer}, "brings its own tokenizer"),
        ("smollm2", {"tokenizer": tokenizer}, "tokenizer is for a transformers model in memory"),
        ("smollm2", {"revision": "main"}, "revision is 'main', and 'smollm2' is no model of a hub"),
    ):
        with pytest.raises(rl.InputError, match=sentence):
            rl.load(given, **options)
    rl.load(model.eval(), tokenizer=tokenizer)
    with pytest.raises(rl.InputError, match="is wrapped by TransformerLens already"):
        rl.load(model, tokenizer=tokenizer)
    model.train()
    bridge = tiny_bridge("Llama")
    bridge.original_model.train()
    with pytest.raises(rl.InputError, match="is in training mode, in which dropout"):
        rl.Lens(bridge)


def test_a_base_model_takes_texts_as_they_are(folder, recwarn) -> None:
    tiny.tokenizer(None).save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    lens = rl.load(folder, device="cpu", template="text")
    assert not recwarn.list
    assert lens.positions == (-1,)
    ids = [0, *tiny.tokenizer()("The river finds", add_special_tokens=False).input_ids]
    assert lens.encode(["The river finds"]).ids == (tuple(ids),)
    assert lens.encode(["<|bos|>The river finds"]).ids == (tuple(ids),)
    model = tiny.reference("Llama")
    found = rl.activations(lens, ["The river finds"])[0, :, 0]
    assert oracles.relative(found, oracles.hidden(model, ids)[:, -1]) < 1e-5
    expected = oracles.greedy(model, ids, 6)
    assert lens.generate(["The river finds"], max_new_tokens=6) == [lens._text(expected)]
    with pytest.raises(rl.InputError, match="takes prompts as they are .* list of messages"):
        lens.encode([[{"role": "user", "content": "Hi."}]])
    d = rl.Direction(torch.ones(lens.d_model), 1)
    with pytest.raises(rl.InputError, match="nothing would be steered"):
        lens.generate(["Hi."], hooks=rl.add(d, tokens="post-instruction"))
    with pytest.warns(UserWarning, match="has no chat template; prompts are put as"):
        plain = rl.load(folder, device="cpu")
    assert plain.source.template != lens.source.template
    chat = rl.load(folder, device="cpu", template=tiny.TEMPLATE)
    assert chat.positions == tuple(range(-11, 0))
    assert list(chat.encode(["Hi."]).ids[0]) == oracles.chat_ids(tiny.tokenizer(), "Hi.")


def test_a_local_folder_is_loaded(folder) -> None:
    lens = rl.load(folder, device="cpu")
    expected = tiny_lens("Llama").generate(tiny.PROMPTS, max_new_tokens=6)
    assert lens.generate(tiny.PROMPTS, max_new_tokens=6) == expected
    assert lens.source.dtype == "float32"
    half = rl.load(folder, device="cpu", dtype="bfloat16")
    assert half.source.dtype == "bfloat16"
    for dtype in ("half", "int8", torch.int8):
        with pytest.raises(rl.InputError, match="dtype is .* pass a torch dtype, one of 'float32'"):
            rl.load(folder, dtype=dtype)
    with pytest.raises(rl.InputError, match="revision is 'main', and .* is no model of a hub"):
        rl.load(folder, revision="main")
    assert rl.activations(half, tiny.PROMPTS).dtype == torch.float32


def test_a_bridge_is_taken_as_it_is() -> None:
    model = tiny_lens("Qwen2").model
    assert rl.load(model).model is model


def test_bad_devices_and_files_are_one_sentence(tmp_path) -> None:
    with pytest.raises(rl.InputError, match="device is 'gpu'"):
        rl.load("smollm2", device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(rl.InputError, match="there is no GPU here"):
            rl.load("smollm2", device="cuda")
    (tmp_path / "x.gguf").write_bytes(b"not a model")
    with pytest.raises(rl.InputError, match="could be loaded"):
        rl.load(tmp_path / "x.gguf")
    with pytest.raises(rl.InputError, match="move, cast or quantise a TransformerLens model"):
        rl.load(tiny_lens("Llama").model, dtype=torch.bfloat16)


def test_centred_weights_are_noticed() -> None:
    model = tiny_lens("GPT2").model
    assert not rl.Lens(model).source.centred
    model.enable_compatibility_mode()
    assert rl.Lens(model).source.centred


@pytest.mark.parametrize("name", ["no-such-owner/no-such-model", "no/such/folder"])
def test_an_unknown_model_is_one_sentence(name: str) -> None:
    with pytest.raises(rl.InputError, match=f"no model '{name}' could be loaded"):
        rl.load(name)
    with pytest.raises(rl.InputError, match="no model 'smolm2' .*; did you mean 'smollm2'"):
        rl.load("smolm2")
    with pytest.raises(rl.InputError, match="no file 'missing.gguf'"):
        rl.load("missing.gguf")


def test_a_gguf_file_that_does_not_name_its_class_is_loaded(tmp_path, monkeypatch) -> None:
    """As transformers reads Gemma 3's."""
    model = tiny.hf_model("Gemma3")
    model.config.architectures = None
    (tmp_path / "x.gguf").write_bytes(b"read below")
    monkeypatch.setattr(embedded, "read_gguf", lambda path: (model, tiny.tokenizer()))
    lens = rl.load(tmp_path / "x.gguf", device="cpu")
    ids = oracles.chat_ids(tiny.tokenizer(), "Prove it.")
    expected = oracles.greedy(tiny.reference("Gemma3"), ids, 5)
    assert lens.generate(["Prove it."], max_new_tokens=5) == [lens._text(expected)]


@pytest.mark.model
def test_a_gguf_file_is_the_embedded_model(smollm2: rl.Lens, tmp_path) -> None:
    with embedded._gguf_file(tmp_path) as path:
        lens = rl.load(path)
    assert lens.source.origin == "SmolLM2-135M-Instruct.Q4_1.gguf, dequantised"
    prompt = ["What is the capital of France?"]
    assert lens.generate(prompt, max_new_tokens=8) == smollm2.generate(prompt, max_new_tokens=8)
