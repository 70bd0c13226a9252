"""Architectures beyond the matrix of the other tests: each is right or refused."""

import contextlib
import copy
from typing import Any

import pytest
import torch
import transformers

import oracles
import rolelens as rl
import tiny
from conftest import tiny_lens

QUESTIONS = [
    rl.Question("q1", "Which is red?", ("blood", "grass", "the clear sky", "snow"), 0),
    rl.Question("q2", "Which of these is cold to the touch, and wet?", ("fire", "ice"), 1),
    rl.Question("q3", "Who sings?", ("a stone", "a bird", "a lamp"), 1),
]
RESUMED = (
    "Olmo2",
    "Phi3",
    "Mixtral",
    "Qwen3Moe",
    "GptOss",
    "Llama4",
    "DeepseekV3",
    "Granite",
    "Cohere2",
)

_lenses: dict[str, rl.Lens] = {}


@pytest.fixture(params=RESUMED)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def lens(architecture: str) -> rl.Lens:
    if architecture not in _lenses:
        _lenses[architecture] = tiny_lens(architecture)
    return _lenses[architecture]


@pytest.fixture
def model(architecture: str) -> Any:
    return tiny.reference(architecture)


def directions(lens: rl.Lens) -> rl.Directions:
    return rl.role_vectors(lens, {"a": tiny.PROMPTS}, base=tiny.OTHERS)


def test_activations_equal_plain_ones(lens: rl.Lens, model: Any) -> None:
    found = rl.activations(lens, tiny.PROMPTS, layers=range(4))
    for n, prompt in enumerate(tiny.PROMPTS):
        expected = oracles.hidden(model, oracles.chat_ids(tiny.tokenizer(), prompt))
        expected = expected[:4, -len(lens.positions) :]
        torch.testing.assert_close(found[n], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["letter", "cloze"])
def test_cells_equal_plain_hooks(lens: rl.Lens, model: Any, method: str, recwarn) -> None:
    vectors = directions(lens)["a"]
    steerings = [
        rl.add(vectors.at(2, -1), 3.0),
        rl.add(vectors.at(1, -2), 2.0, tokens="post-instruction"),
        rl.ablate(vectors.at(2, -1), lens),
    ]
    result = rl.sweep(lens, steerings, QUESTIONS, method=method)
    assert not [w for w in recwarn if "cannot be resumed" in str(w.message)]
    prepared = rl.tasks.prepare(lens, rl.load_task(QUESTIONS), method)
    for steering in steerings:
        (step,) = steering.steps
        d, found = step.direction, result.logprobs(steering)
        row = 0
        for n, question in enumerate(QUESTIONS):
            options = []
            for _ in range(len(question.options) if method == "cloze" else 1):
                ids = prepared.tokens.ids[row]
                length = prepared.tokens.prompt_lengths[row]
                where = slice(None)
                if step.tokens == "post-instruction":
                    where = slice(length - len(lens.positions), length)
                if step.kind == "add":
                    hooked: Any = oracles.added(model, d.layer, step.alpha * d.vector, where)
                else:
                    hooked = oracles.ablated(model, d.vector)
                with hooked:
                    if method == "cloze":
                        each = oracles.option_logprob(model, ids[:length], ids[length:])
                        options.append(each.sum())
                    else:
                        last = oracles.logits(model, ids)[-1]
                        chosen = list(prepared.vocab[: len(question.options)])
                        options = list(last[chosen].log_softmax(-1))
                row += 1
            expected = torch.stack(options)
            if method == "letter":
                given = found[n, : len(expected)].log_softmax(-1)
            else:
                given = found[n, : len(expected)]
            torch.testing.assert_close(given, expected, atol=1e-3, rtol=1e-4)


def check_text(lens: rl.Lens, model: Any, d: rl.Direction) -> None:
    """Steered text is that of plain decoding without a cache."""
    found = lens.generate(tiny.PROMPTS, hooks=rl.add(d, 3.0), max_new_tokens=10)
    for n, prompt in enumerate(tiny.PROMPTS):
        ids = oracles.chat_ids(tiny.tokenizer(), prompt)
        with oracles.added(model, 2, 3.0 * d.vector):
            assert found[n] == lens._text(oracles.greedy(model, ids, 10))


def test_steered_text_equals_plain_decoding(lens: rl.Lens, model: Any) -> None:
    check_text(lens, model, directions(lens)["a"].at(2, -1))


@pytest.mark.parametrize("architecture", ["Mamba", "Mamba2", "Qwen3Next"])
def test_other_caches_are_right_or_refused(architecture: str) -> None:
    model = tiny.reference(architecture)
    with contextlib.suppress(rl.InputError):
        lens = tiny_lens(architecture)
        found = rl.activations(lens, tiny.PROMPTS, layers=[2])
        for n, prompt in enumerate(tiny.PROMPTS):
            ids = oracles.chat_ids(tiny.tokenizer(), prompt)
            expected = oracles.post_block_inputs(model, ids)[2][-len(lens.positions) :]
            torch.testing.assert_close(found[n, 0], expected, atol=1e-4, rtol=1e-4)
        d = directions(lens)["a"].at(2, -1)
        check_text(lens, model, d)
        scores = rl.evaluate(lens, QUESTIONS, rl.add(d, 3.0), "cloze").logprobs
        tokens, row = rl.tasks.prepare(lens, rl.load_task(QUESTIONS), "cloze").tokens, 0
        for n, question in enumerate(QUESTIONS):
            for option in range(len(question.options)):
                ids, length = tokens.ids[row], tokens.prompt_lengths[row]
                with oracles.added(model, 2, 3.0 * d.vector):
                    each = oracles.option_logprob(model, ids[:length], ids[length:])
                torch.testing.assert_close(scores[n, option], each.sum(), atol=1e-3, rtol=1e-4)
                row += 1


@pytest.fixture
def gemma3n(monkeypatch) -> tuple[rl.Lens, Any]:
    """Gemma 3n without the towers that text never passes; its vision tower needs timm."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.supported_architectures import gemma3n as adapter
    from transformers.models.gemma3n import modeling_gemma3n as modeling

    class Towers:
        @staticmethod
        def from_config(config: Any) -> torch.nn.Module:
            if isinstance(config, transformers.Gemma3nTextConfig):
                return modeling.Gemma3nTextModel(config)
            return torch.nn.Identity()

    monkeypatch.setattr(adapter.Gemma3nArchitectureAdapter, "required_libraries", [])
    monkeypatch.setattr(modeling, "AutoModel", Towers)
    torch.manual_seed(0)
    config = transformers.Gemma3nConfig(text_config=tiny.GEMMA_3N, audio_config={})
    config.architectures = ["Gemma3nForConditionalGeneration"]
    config._attn_implementation = "eager"
    model = transformers.Gemma3nForConditionalGeneration(config).eval()
    bridge = TransformerBridge.boot_transformers(
        "tiny-Gemma3n", hf_model=copy.deepcopy(model), tokenizer=tiny.tokenizer(), device="cpu"
    )
    return rl.Lens(bridge), model


def test_gemma_3n_is_steered_in_its_active_stream(gemma3n: tuple[rl.Lens, Any]) -> None:
    lens, model = gemma3n
    d = directions(lens)["a"].at(2, -1)

    def add(_: Any, args: Any, kwargs: Any) -> Any:
        stack = args[0].clone()
        stack[model.config.text_config.altup_active_idx] += 3.0 * d.vector
        return (stack, *args[1:]), kwargs

    found = lens.generate(tiny.PROMPTS, hooks=rl.add(d, 3.0), max_new_tokens=10)
    assert found != lens.generate(tiny.PROMPTS, max_new_tokens=10)
    block = model.model.language_model.layers[2]
    handle = block.register_forward_pre_hook(add, with_kwargs=True)
    with contextlib.ExitStack() as stack:
        stack.callback(handle.remove)
        for prompt, text in zip(tiny.PROMPTS, found, strict=True):
            ids = oracles.chat_ids(tiny.tokenizer(), prompt)
            assert text == lens._text(oracles.greedy(model, ids, 10))


def test_scores_of_gemma_3n_are_refused(gemma3n: tuple[rl.Lens, Any]) -> None:
    """Its logits are those of the mean of its streams."""
    lens, _ = gemma3n
    with pytest.raises(rl.InputError, match="not a final norm, a matrix"):
        rl.evaluate(lens, QUESTIONS)
