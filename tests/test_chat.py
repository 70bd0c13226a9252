import warnings

import pytest

import rolelens as rl
import tiny
from rolelens.chat import ChatFormat

DATED = (
    "Today is {{ strftime_now('%d %B %Y') }}. {{ date_string }}[U]{{ messages[0]['content'] }}[A]"
)


def chat(template: str | None) -> ChatFormat:
    tokenizer = tiny.tokenizer(template)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ChatFormat(tokenizer, "test")


def test_todays_date_is_a_fixed_one() -> None:
    assert chat(DATED).render("Hi.") == "Today is 26 July 2024. 26 Jul 2024[U]Hi.[A]"


def test_bos_stands_once_in_template_and_plain_format() -> None:
    with_bos = chat("{{ bos_token }}" + tiny.TEMPLATE)
    assert with_bos.ids("Hi.").count(0) == 1
    assert chat(None).ids("Hi.").count(0) <= 1


def test_a_model_without_template_gets_the_plain_format_and_says_so() -> None:
    tokenizer = tiny.tokenizer(None)
    with pytest.warns(UserWarning, match="test has no chat template; prompts are put as"):
        plain = ChatFormat(tokenizer, "test")
    assert plain.render("Who sings?") == "Question: Who sings?\nAnswer:"
    assert plain.render("A. x\nAnswer:") == "Question: A. x\nAnswer:"
    assert plain.render("Hi.", system="Be kind.") == "Question: Be kind.\n\nHi.\nAnswer:"
    assert tokenizer.decode(plain.ids("Hi.")[-plain.n_post :]) == "\nAnswer:"
    whole, start = plain.ids_with_answer("Hi.", "yes")
    assert tokenizer.decode(whole[start:]) == " yes"


def test_a_template_that_refuses_a_system_prompt_gets_a_prefix() -> None:
    refusing = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    rendered = chat(refusing + tiny.TEMPLATE).render("Hi.", system="Be kind.")
    silent = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}|turn|"
    assert chat(silent).render("Hi.", system="Be kind.") == "Be kind.\n\nHi.|turn|"
    assert chat(tiny.TEMPLATE).takes_system
    assert not chat(silent).takes_system
    assert not chat(refusing + tiny.TEMPLATE).takes_system
    assert rendered == "<|turn|>user\nBe kind.\n\nHi.<|end|>\n<|turn|>assistant\n"
    assert "<|turn|>system\nBe kind." in chat(tiny.TEMPLATE).render("Hi.", system="Be kind.")


def test_an_answer_follows_its_prompt() -> None:
    whole, start = chat(tiny.TEMPLATE).ids_with_answer("Hi.", "yes")
    assert whole[:start] == chat(tiny.TEMPLATE).ids("Hi.")
    assert tiny.tokenizer().decode(whole[start:]) == "yes"


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{{ raise_exception('out of order') }}", "chat template of test failed .*out of order"),
        ("Hello, {{ messages[0]['role'] }}!", "chat template of test leaves the prompt out"),
        ("chatml", "leaves the prompt out; pass one that writes"),
    ],
)
def test_a_broken_template_is_one_sentence(template: str, sentence: str) -> None:
    with pytest.raises(rl.InputError, match=sentence):
        chat(template)


def test_an_identity_template_has_no_post_instruction_tokens() -> None:
    tokenizer = tiny.tokenizer("{{ messages[-1]['content'] }}")
    identity = ChatFormat(tokenizer, "test")
    assert identity.n_post == 0
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi."}], return_dict=False
    )
    assert list(identity.ids("Hi.")) == expected
    assert identity.render("Hi.", system="Be kind.") == "Be kind.\n\nHi."
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    turns[1]["content"] = "An answer."
    with pytest.raises(rl.InputError, match="leaves out the message 'An answer.' of the assistant"):
        identity.render(turns)


def test_an_answer_is_put_apart_where_the_format_puts_nothing_between() -> None:
    identity = chat("{{ messages[-1]['content'] }}")
    text = ChatFormat(tiny.tokenizer(), "test", template="text")
    for form in (identity, text, chat(None)):
        for answer in ("yes", " yes"):
            whole, start = form.ids_with_answer("Hi.", answer)
            assert tiny.tokenizer().decode(whole[start:]) == " yes"
    whole, start = text.ids_with_answer("Hi.\n", "yes")
    assert tiny.tokenizer().decode(whole[start:]) == "yes"


def test_the_plain_format_puts_turns_after_each_other() -> None:
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "You."},
        {"role": "user", "content": "Me?"},
    ]
    expected = "Question: Be kind.\n\nWho?\nAnswer: You.\n\nQuestion: Me?\nAnswer:"
    assert chat(None).render(turns) == expected


def test_thoughts_that_a_template_leaves_out_may_be_left_out() -> None:
    template = tiny.TEMPLATE.replace(
        "message['content']", "message['content'].split('</think>')[-1]"
    )
    turns = [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "<think>Hm.</think>You."},
        {"role": "user", "content": "Me?"},
    ]
    assert "You." in chat(template).render(turns)
