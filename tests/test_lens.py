import dataclasses
import re

import pytest
import torch

import oracles
import rolelens as rl
import tiny
from conftest import tiny_bridge, tiny_lens
from rolelens import forward
from test_evaluation import QUESTIONS

TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "system", "content": "Be brief and clear."},
    {"role": "user", "content": tiny.PROMPTS[0]},
    {"role": "assistant", "content": "A proof."},
    {"role": "user", "content": tiny.PROMPTS[3]},
]
"""Messages, of which all but the first are a conversation."""


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
    selections = ("all", "prompt", "post-instruction", "generated", "last", [3, 30])
    steerings = [rl.add(d, 3.0, tokens=tokens) for tokens in selections]
    mixed = [lens.generate(tiny.PROMPTS, hooks=one, max_new_tokens=8) for one in steerings]
    rows = [*steerings, rl.add(d, 30.0), rl.Steering()]
    asked = [prompt for prompt in tiny.PROMPTS for _ in rows]
    options = {"hooks": rl.by_row(rows * len(tiny.PROMPTS)), "max_new_tokens": 8}
    uncached = lens.generate(asked, cache=False, **options)
    alone = [
        text
        for prompt in tiny.PROMPTS
        for text in lens.generate([prompt] * len(rows), hooks=rl.by_row(rows), max_new_tokens=8)
    ]
    assert uncached == alone
    for n, texts in enumerate(mixed):
        assert texts == alone[n :: len(rows)]
    assert alone[-2 :: -len(rows)] != alone[-1 :: -len(rows)]


@pytest.mark.parametrize("tokens", ["absolute", "generated", "last", "post-instruction"])
def test_a_selection_changes_the_same_tokens_with_and_without_the_cache(
    llama: rl.Lens, tokens: str
) -> None:
    """Seen on the residual stream: what is added at each absolute position, step by step."""
    d = direction(llama)
    ids = llama.encode(tiny.PROMPTS[1:2]).ids[0]
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
            forward.batches(llama.encode(tiny.PROMPTS[1:2]))[0],
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
    with monkeypatch.context() as narrow:
        narrow.setattr(llama.model.cfg, "n_ctx", 60)
        llama.generate(tiny.PROMPTS, max_new_tokens=20)
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
    ids = llama.encode(tiny.PROMPTS[:1]).ids[0]
    steps = list(
        llama._decode(
            forward.batches(llama.encode(tiny.PROMPTS[:1]))[0],
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
        (["fine", "  "], "prompt 1 is '  ', which is not a prompt"),
        ({"lawyer": ["Hi."]}, "prompts is a dict; pass a list of texts or conversations"),
        (["fine", 3], "prompt 1 is 3, which is not a prompt"),
        (["word " * 200], "tokens and tiny-Llama reads at most 128; shorten it"),
        (TURNS, "prompt 0 is a single message; a conversation is a list of messages"),
        (["fine", []], "prompt 1 is a conversation without messages"),
        ([["user"]], "prompt 0 has 'user' among its messages"),
        ([[{"content": "Hi."}]], "each has to be a dict such as"),
        ([[{"role": "asistant", "content": "Hi."}]], "(in prompt 0) 'asistant'; did you mean"),
        ([[{"role": "user"}]], "message of the user whose content is None"),
        ([[{"role": "user", "content": " "}]], "whose content is ' '; it has to be a text"),
        ([TURNS[:2]], "prompt 0 ends with a message of the system; the last has to be of the user"),
        ([TURNS[3:4]], "prompt 0 ends with a message of the assistant; the last has to be"),
        (["<|turn|>user\nHi.<|end|>"], "prompt 0 .* is already in the chat format of tiny-Llama"),
        (["fine", "So <|turn|> it is."], "with '<|turn|>' in it; pass raw=True"),
        (["<|bos|>Hi."], "already in the chat format"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_prompts_are_refused(llama: rl.Lens, prompts, sentence: str) -> None:
    for use in (llama.encode, llama.generate, lambda prompts: rl.activations(llama, prompts)):
        with pytest.raises(rl.InputError, match=re.escape(sentence).replace(r"\.\*", ".*")):
            use(prompts)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"answers": ["yes"]}, "2 prompts and 1 answers do not pair up"),
        ({"answers": "no"}, "answers is the text 'no'; pass a list"),
        ({"answers": ["yes", ""]}, "answer 1 is '', which has no tokens"),
        ({"raw": True}, "prompt 1 is a list of messages, and raw=True takes texts"),
        ({"raw": True, "system": "Be kind."}, "raw prompts have no answers, no system prompt"),
        ({"system": "Be kind."}, "prompt 1 begins with a system message, and system is given"),
        ({"template_args": {"enable_thinkin": False}}, "template_args names 'enable_thinkin'"),
    ],
)
def test_bad_arguments_of_encode_are_refused(llama, arguments: dict, sentence: str) -> None:
    with pytest.raises(rl.InputError, match=sentence):
        llama.encode(["Hi.", TURNS[1:]], **arguments)


def test_an_answer_of_a_conversation_is_one_that_is_passed(llama: rl.Lens) -> None:
    begun = [*TURNS[1:], {"role": "assistant", "content": "Rice is"}]
    tokens = llama.encode([begun, "Hi."])
    expected = llama.encode([TURNS[1:]], ["Rice is"])
    assert (tokens.ids[0], tokens.prompt_lengths[0]) == (
        expected.ids[0],
        expected.prompt_lengths[0],
    )
    assert (tokens.ids[1:], tokens.prompt_lengths[1]) == (
        llama.encode(["Hi."]).ids,
        len(tokens.ids[1]),
    )
    options = {"max_new_tokens": 6}
    found = llama.generate([begun], **options)
    assert found == llama.generate([TURNS[1:]], begun="Rice is", **options)
    with pytest.raises(rl.InputError, match="another answer is given"):
        llama.encode([begun], ["No."])


def test_a_conversation_is_answered_as_plain_decoding_does(
    lens: rl.Lens, architecture: str
) -> None:
    tokenizer = tiny.tokenizer()
    ids = tokenizer.apply_chat_template(TURNS[1:], add_generation_prompt=True, return_dict=False)
    assert lens.encode([TURNS[1:]]).ids == (tuple(ids),)
    expected = oracles.greedy(tiny.reference(architecture), ids, 6)
    assert lens.generate([TURNS[1:], "Hi."], max_new_tokens=6)[0] == lens._text(expected)
    assert "".join(lens.stream(TURNS[1:], max_new_tokens=6)).rstrip("\ufffd") == lens._text(
        expected
    ).rstrip("\ufffd")


def test_a_raw_text_has_one_beginning(llama: rl.Lens) -> None:
    plain = llama.encode(["Hi."], raw=True).ids
    assert plain == llama.encode(["<|bos|>Hi."], raw=True).ids
    assert plain[0].count(0) == 1
    rendered = [llama.chat.render(prompt) for prompt in ("Hi.", TURNS[1:])]
    assert llama.encode(rendered, raw=True).ids == llama.encode(["Hi.", TURNS[1:]]).ids


def test_a_template_that_begins_with_bos_gets_it_once() -> None:
    lens = rl.Lens(tiny_bridge("Llama"), template="{{ bos_token }}" + tiny.TEMPLATE)
    ids = lens.encode(["Hi."]).ids
    assert ids[0].count(0) == 1
    rendered = lens.chat.render("Hi.")
    assert lens.encode([rendered, rendered.removeprefix("<|bos|>")], raw=True).ids == ids * 2


def test_arguments_of_the_template_change_the_positions(llama: rl.Lens) -> None:
    template = tiny.TEMPLATE + "{% if not thinking %}<|turn|>{% endif %}"
    lens = rl.Lens(llama.model, template=template.replace("not thinking", "quick"))
    plain, quick = lens.encode(["Hi."]), lens.encode(["Hi."], template_args={"quick": True})
    assert quick.ids[0] == (*plain.ids[0], 2)
    assert (plain.n_post, quick.n_post) == (len(lens.positions), len(lens.positions) + 1)
    found = rl.activations(lens, quick)
    assert found.shape[2] == quick.n_post
    with pytest.raises(rl.InputError, match="other post-instruction tokens than others"):
        rl.contrast(lens, quick, plain)


def test_encoded_prompts_are_taken_as_they_are(llama: rl.Lens, unchecked) -> None:
    tokens = llama.encode(tiny.PROMPTS)
    assert llama.encode(tokens) is tokens
    options = {"max_new_tokens": 4}
    assert llama.generate(tokens, **options) == llama.generate(tiny.PROMPTS, **options)
    with pytest.raises(rl.InputError, match="these prompts are encoded already"):
        llama.encode(tokens, raw=True)
    with pytest.raises(rl.InputError, match="encoded for tiny-Llama, and this is tiny-GPT2"):
        tiny_lens("GPT2").encode(tokens)


def test_a_prompt_that_moves_the_positions_is_refused(llama: rl.Lens) -> None:
    lens = rl.Lens(llama.model, template="{{ messages[0]['content'] }}ing a song:")
    assert lens.encode(["Prove it"]).n_post == len(lens.positions)
    with pytest.raises(rl.InputError, match="prompt 1 does not end with the"):
        lens.encode(["Prove it", "S"])


def test_steering_that_touches_no_token_is_refused(llama: rl.Lens, unchecked) -> None:
    d = direction(llama)
    for arguments, sentence in (
        ({"hooks": d}, "hooks is a Direction; pass steering"),
        ({"hooks": rl.add(d, tokens="post-instruction"), "raw": True}, "'post-instruction', which"),
        ({"hooks": rl.add(d, tokens="generated"), "max_new_tokens": 1}, "tokens is 'generated'"),
        ({"hooks": rl.add(d, tokens=[99]), "max_new_tokens": 2}, "nothing would be steered"),
    ):
        with pytest.raises(rl.InputError, match=sentence):
            llama.generate(["Hi."], **arguments)
    with pytest.raises(rl.InputError, match="nothing would be steered"):
        list(llama.stream("Hi.", hooks=rl.add(d, tokens="generated"), max_new_tokens=1))
    installed = llama.steered(rl.add(d, tokens="generated"))
    with installed, pytest.raises(rl.InputError, match="nothing would be steered"):
        llama.generate(["Hi."], max_new_tokens=1)
    llama.generate(["Hi."], hooks=rl.add(d, tokens="generated"), max_new_tokens=2)


def test_bad_sampling_is_refused(llama: rl.Lens, unchecked) -> None:
    with pytest.raises(rl.InputError, match="temperature is -1"):
        llama.generate(["Hi."], temperature=-1.0)
    with pytest.raises(rl.InputError, match="max_new_tokens is 0"):
        llama.generate(["Hi."], max_new_tokens=0)
    with pytest.raises(rl.InputError, match="dtype is 'half'"):
        rl.load("smollm2", dtype="half")


def test_row_hooks_cannot_steer_a_context(llama: rl.Lens, unchecked) -> None:
    d = direction(llama)
    for hooks, sentence in (
        (rl.by_row([rl.add(d)]), "row-wise hooks need rows"),
        (d, "hooks is a Direction; pass steering"),
        ([("blocks.9.hook_resid_pre", lambda x, hook: x)], "no hook 'blocks.9.hook_resid_pre'"),
    ):
        with pytest.raises(rl.InputError, match=sentence), llama.steered(hooks):
            pass


def test_a_selection_works_at_once_in_a_steered_context() -> None:
    lens = tiny_lens("Llama")
    hooks = rl.add(rl.Direction(torch.ones(32), layer=1), tokens="post-instruction")
    question = [rl.Question("q", "Who?", ("you", "me"), 0)]
    with lens.steered(hooks):
        inside = rl.evaluate(lens, question)
    assert torch.equal(inside.logprobs, rl.evaluate(lens, question, hooks).logprobs)


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
        rl.evaluate(llama, QUESTIONS, rl.add(vectors["a"].at(1, -1), 5.0))
    adopted = llama.adopt(vectors)
    assert torch.equal(adopted.directions, vectors.directions)
    assert adopted.contrast == "role prompts - base prompts, in other"
    steered = rl.evaluate(llama, QUESTIONS, rl.add(adopted["a"].at(1, -1), 5.0))
    d = dataclasses.replace(vectors["a"].at(1, -1), source=None)
    expected = rl.evaluate(llama, QUESTIONS, rl.add(d, 5.0))
    assert torch.equal(steered.logprobs, expected.logprobs)


def test_vectors_of_another_shape_are_not_adopted(llama: rl.Lens) -> None:
    wide = rl.Directions(torch.ones(1, 1, 1, 7), ("a",), (1,), (-1,), torch.ones(1, 1))
    with pytest.raises(rl.InputError, match="7 wide and reach layer 1, and .* is 32 wide"):
        llama.adopt(wide)
    deep = rl.Directions(torch.ones(1, 1, 1, llama.d_model), ("a",), (99,), (-1,), torch.ones(1, 1))
    with pytest.raises(rl.InputError, match="reach layer 99"):
        llama.adopt(deep)
