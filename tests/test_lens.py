import dataclasses

import pytest
import torch

import oracles
import rolelens as rl
import tiny
from conftest import tiny_bridge, tiny_lens
from rolelens import embedded, forward
from test_scoring import QUESTIONS


def direction(lens: rl.Lens) -> rl.Direction:
    return rl.role_vectors(lens, {"a": tiny.PROMPTS}, base=tiny.OTHERS)["a"].at(2, -1)


def test_greedy_text_equals_plain_decoding(lens: rl.Lens, architecture: str) -> None:
    model, tokenizer = tiny.reference(architecture), tiny.tokenizer()
    found = lens.generate(tiny.PROMPTS, max_new_tokens=8)
    for prompt, text in zip(tiny.PROMPTS, found, strict=True):
        ids = oracles.greedy(model, oracles.chat_ids(tokenizer, prompt), 8)
        ends = [n for n, i in enumerate(ids) if i in (1, 3)]
        expected = tokenizer.decode(ids[: ends[0] if ends else None], skip_special_tokens=True)
        assert text == expected.strip()


def test_steered_text_is_the_same_with_and_without_cache_and_one_by_one(lens: rl.Lens) -> None:
    d = direction(lens)
    for tokens in ("all", "prompt", "post-instruction", "generated", "last", [3, 30]):
        hooks = rl.add(d, 3.0, tokens=tokens)
        cached = lens.generate(tiny.PROMPTS, hooks=hooks, max_new_tokens=8)
        assert cached == lens.generate(tiny.PROMPTS, hooks=hooks, max_new_tokens=8, cache=False)
        alone = [lens.generate([p], hooks=hooks, max_new_tokens=8)[0] for p in tiny.PROMPTS]
        assert cached == alone
    assert lens.generate(tiny.PROMPTS, hooks=rl.add(d, 30.0), max_new_tokens=8) != lens.generate(
        tiny.PROMPTS, max_new_tokens=8
    )


@pytest.mark.parametrize("tokens", ["absolute", "generated", "last", "post-instruction"])
def test_a_selection_changes_the_same_tokens_with_and_without_the_cache(
    llama: rl.Lens, tokens: str
) -> None:
    """Seen on the residual stream: what is added at each absolute position, step by step."""
    d = direction(llama)
    ids = llama.tokenize(tiny.PROMPTS[1:2]).ids[0]
    n = len(ids)
    selection = [2, n + 1, n + 4] if tokens == "absolute" else tokens

    def changed(cache: bool) -> set[int]:
        found: set[int] = set()
        clean: list[torch.Tensor] = []
        name = "blocks.2.hook_resid_pre"

        def before(x, hook):
            clean.append(x.clone())

        def after(x, hook):
            now = forward.running.get()
            moved = (x - clean.pop()).norm(dim=-1)[0]
            expected = 3 * d.norm
            for position, size in zip(now.positions.tolist(), moved.tolist(), strict=True):
                assert size == 0 or size == pytest.approx(expected, rel=1e-3)
                if size:
                    found.add(position)

        hooks = [(name, before), *rl.add(d, 3.0, tokens=selection), (name, after)]
        steps = llama._decode(
            forward.batches(llama.tokenize(tiny.PROMPTS[1:2]))[0],
            hooks,
            12,
            lambda logits, going: torch.full((1,), 7),
            cache,
        )
        assert len(list(steps)) == 12
        return found

    wanted = {
        "absolute": {2, n + 1, n + 4},
        "generated": set(range(n, n + 11)),  # the last token generated is never run
        "last": set(range(n - 1, n + 11)),
        "post-instruction": set(range(n - len(llama.positions), n)),
    }
    assert changed(cache=True) == changed(cache=False) == wanted[tokens]


def test_the_context_steers_like_the_argument(llama: rl.Lens) -> None:
    hooks = rl.add(direction(llama), 3.0)
    by_argument = llama.generate(tiny.PROMPTS, hooks=hooks, max_new_tokens=8)
    ids = torch.tensor([[4, 5, 6]])
    with torch.no_grad():
        raw = llama.model.run_with_hooks(ids, fwd_hooks=hooks)
        with llama.steered(hooks):
            assert llama.generate(tiny.PROMPTS, max_new_tokens=8) == by_argument
            torch.testing.assert_close(llama.model(ids), raw)
        assert not torch.allclose(llama.model(ids), raw)


def test_sampling_depends_on_the_seed_and_not_on_the_batch(llama: rl.Lens) -> None:
    options = {"temperature": 1.0, "top_p": 0.9, "max_new_tokens": 8}
    first = llama.generate(tiny.PROMPTS[:1] * 3, seed=1, **options)
    assert first == llama.generate(tiny.PROMPTS[:1] * 3, seed=1, **options)
    assert first != llama.generate(tiny.PROMPTS[:1] * 3, seed=2, **options)
    assert len(set(first)) > 1
    mixed = llama.generate([tiny.PROMPTS[0], *tiny.PROMPTS[1:]], seed=1, **options)
    assert mixed[0] == first[0]


def test_prompts_of_several_lengths_are_answered_together(llama: rl.Lens, monkeypatch) -> None:
    seen: list[int] = []
    decode = forward.decode

    def counted(model, batch, *args, **options):
        seen.append(len(batch.rows))
        return decode(model, batch, *args, **options)

    monkeypatch.setattr(forward, "decode", counted)
    found = llama.generate(tiny.PROMPTS, max_new_tokens=4)
    assert seen == [len(tiny.PROMPTS)]
    llama.generate(tiny.PROMPTS, max_new_tokens=llama.n_ctx)
    assert max(seen[1:]) < len(tiny.PROMPTS)  # where there is little room, each has all of it
    raw = [("blocks.2.hook_resid_pre", lambda x, hook: x)]
    with llama.steered(raw):
        assert llama.generate(tiny.PROMPTS, max_new_tokens=4) == found


@pytest.mark.parametrize("cache", [True, False])
def test_rows_of_one_prompt_share_its_pass(lens: rl.Lens, cache: bool) -> None:
    torch.manual_seed(0)
    steering = rl.add(rl.Direction(torch.randn(lens.d_model), layer=1), 2.0, tokens="all")
    rows: list[int] = []
    counting = [("blocks.0.hook_resid_pre", lambda x, hook: rows.append(len(x)))]
    asked = [tiny.PROMPTS[n] for n in (0, 1, 0, 2, 0)]
    options = {"max_new_tokens": 6, "cache": cache}
    alone = {prompt: lens.generate([prompt], hooks=steering, **options)[0] for prompt in set(asked)}
    found = lens.generate(asked, hooks=[*counting, *steering], **options)
    assert found == [alone[prompt] for prompt in asked]
    assert rows[0] <= 3  # of prompts, of several lengths or of one
    rows.clear()
    same = lens.generate(asked[:1] * 4, hooks=[*counting, *steering], **options)
    assert same == [alone[asked[0]]] * 4
    assert rows[:2] == [1, 4]


def test_each_prompt_may_have_its_own_system_prompt(llama: rl.Lens) -> None:
    said = ["Be kind.", "Be brief and clear.", "Be kind."]
    options = {"max_new_tokens": 5}
    found = llama.generate(tiny.PROMPTS[:3], system=said, **options)
    alone = [
        llama.generate([prompt], system=own, **options)[0]
        for prompt, own in zip(tiny.PROMPTS[:3], said, strict=True)
    ]
    assert found == alone
    with pytest.raises(rl.InputError, match="3 prompts and 2 system prompts do not pair up"):
        llama.generate(tiny.PROMPTS[:3], system=said[:2])


def test_streaming_gives_the_text_of_generate(llama: rl.Lens) -> None:
    hooks = rl.add(direction(llama), 2.0)
    pieces = list(llama.stream(tiny.PROMPTS[0], hooks=hooks, max_new_tokens=12))
    assert "".join(pieces).rstrip("\ufffd") == llama.generate(
        tiny.PROMPTS[:1], hooks=hooks, max_new_tokens=12
    )[0].rstrip("\ufffd")
    assert len(pieces) > 1


def test_generation_stops_at_the_context_length(llama: rl.Lens) -> None:
    ids = llama.tokenize(tiny.PROMPTS[:1]).ids[0]
    steps = list(
        llama._decode(
            forward.batches(llama.tokenize(tiny.PROMPTS[:1]))[0],
            (),
            10_000,
            lambda logits, going: torch.full((1,), 7),
            True,
        )
    )
    assert len(ids) + len(steps) == llama.n_ctx


def test_a_full_context_leaves_no_room_for_an_answer(llama: rl.Lens) -> None:
    full = next(
        text
        for text in ("z " * n + "z" * m for n in range(120) for m in (0, 1))
        if text and len(llama.chat.ids(text)) == llama.n_ctx
    )
    with pytest.raises(rl.InputError, match="fills the context of tiny-Llama"):
        llama.generate([full])


def test_positions_are_those_of_the_template(llama: rl.Lens) -> None:
    ids = oracles.chat_ids(tiny.tokenizer(), "anything?")
    text = tiny.tokenizer().decode(ids[llama.positions[0] :])
    assert text == "<|end|>\n<|turn|>assistant\n"


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        ([], "there are no prompts"),
        ("one text", "pass a list of texts"),
        (["fine", "  "], "'  ' is not a prompt"),
        (["word " * 200], "tokens and tiny-Llama reads at most 128; shorten it"),
    ],
)
def test_bad_prompts_are_refused(llama: rl.Lens, prompts, sentence: str) -> None:
    with pytest.raises(rl.InputError, match=sentence):
        llama.tokenize(prompts)


def test_bad_sampling_is_refused(llama: rl.Lens, unchecked) -> None:
    with pytest.raises(rl.InputError, match="temperature is -1"):
        llama.generate(["Hi."], temperature=-1.0)
    with pytest.raises(rl.InputError, match="max_new_tokens is 0"):
        llama.generate(["Hi."], max_new_tokens=0)
    with pytest.raises(rl.InputError, match="dtype is 'half'"):
        rl.load("smollm2", dtype="half")


def test_row_hooks_cannot_steer_a_context(llama: rl.Lens, unchecked) -> None:
    hooks = rl.add_rows([direction(llama)], [1.0])
    with pytest.raises(rl.InputError, match="row-wise hooks need rows"), llama.steered(hooks):
        pass


def test_a_local_folder_is_loaded(tmp_path) -> None:
    tiny.hf_model("Llama").save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    lens = rl.load(tmp_path, device="cpu")
    expected = tiny_lens("Llama").generate(tiny.PROMPTS, max_new_tokens=6)
    assert lens.generate(tiny.PROMPTS, max_new_tokens=6) == expected
    assert lens.source.dtype == "float32"
    half = rl.load(tmp_path, dtype=torch.bfloat16)
    assert half.source.dtype == "bfloat16"
    assert rl.activations(half, tiny.PROMPTS).dtype == torch.float32


def test_a_bridge_is_taken_as_it_is() -> None:
    model = tiny_lens("Qwen2").model
    assert rl.load(model).model is model


def test_a_selection_works_at_once_in_a_steered_context() -> None:
    lens = tiny_lens("Llama")
    hooks = rl.add(rl.Direction(torch.ones(32), layer=1), tokens="post-instruction")
    question = [rl.Question("q", "Who?", ("you", "me"), 0)]
    with lens.steered(hooks):
        inside = rl.evaluate(lens, question)
    assert torch.equal(inside.logprobs, rl.evaluate(lens, question, hooks).logprobs)


def test_bad_devices_and_files_are_one_sentence(tmp_path) -> None:
    with pytest.raises(rl.InputError, match="device is 'gpu'"):
        rl.load("smollm2", device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(rl.InputError, match="there is no GPU here"):
            rl.load("smollm2", device="cuda")
    (tmp_path / "x.gguf").write_bytes(b"not a model")
    with pytest.raises(rl.InputError, match="could be loaded"):
        rl.load(tmp_path / "x.gguf")
    with pytest.raises(rl.InputError, match="move or cast a TransformerLens model"):
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


@pytest.mark.model
def test_steered_text_of_the_embedded_model_is_the_same_with_and_without_cache(
    smollm2: rl.Lens,
) -> None:
    roles, base = rl.load_roles(), rl.load_base()
    vectors = rl.role_vectors(
        smollm2, {"doctor": roles["doctor"][:16]}, base=base[:16], layers=range(17)
    )
    prompts = ["What should I do this weekend?", "Hello!", "Tell me about your day."]
    hooks = rl.add(vectors["doctor"].at(16), 3.0)
    cached = smollm2.generate(prompts, hooks=hooks, max_new_tokens=20)
    assert cached == smollm2.generate(prompts, hooks=hooks, max_new_tokens=20, cache=False)
    assert cached == [smollm2.generate([p], hooks=hooks, max_new_tokens=20)[0] for p in prompts]
    assert cached != smollm2.generate(prompts, max_new_tokens=20)


def test_vectors_of_a_model_of_the_same_shape_are_adopted(llama: rl.Lens) -> None:
    bridge = tiny_bridge("Llama")
    with torch.no_grad():
        for weights in bridge.parameters():
            weights.add_(0.1 * weights.flip(0))
    other = rl.Lens(bridge, name="other")
    vectors = rl.role_vectors(other, {"a": tiny.PROMPTS}, base=tiny.OTHERS)
    with pytest.raises(rl.InputError, match="was measured elsewhere"):
        rl.sweep(llama, vectors, QUESTIONS, layers=[1], positions=[-1])
    adopted = llama.adopt(vectors)
    assert torch.equal(adopted.directions, vectors.directions)
    assert adopted.contrast == "role prompts - base prompts, in other"
    swept = rl.sweep(llama, adopted, QUESTIONS, layers=[1], positions=[-1], alphas=[5.0])
    d = dataclasses.replace(vectors["a"].at(1, -1), source=None)
    expected = rl.evaluate(llama, QUESTIONS, rl.add(d, 5.0))
    torch.testing.assert_close(swept.cell("a", 1, -1, 5.0).logprobs, expected.logprobs)


def test_vectors_of_another_shape_are_not_adopted(llama: rl.Lens) -> None:
    wide = rl.RoleVectors(torch.ones(1, 1, 1, 7), ("a",), (1,), (-1,), torch.ones(1, 1))
    with pytest.raises(rl.InputError, match="7 wide and reach layer 1, and .* is 32 wide"):
        llama.adopt(wide)
    deep = rl.RoleVectors(
        torch.ones(1, 1, 1, llama.d_model), ("a",), (99,), (-1,), torch.ones(1, 1)
    )
    with pytest.raises(rl.InputError, match="reach layer 99"):
        llama.adopt(deep)
