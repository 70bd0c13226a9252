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
        ("{{ messages[0]['content'] }}", "puts no token after the instruction"),
    ],
)
def test_a_broken_template_is_one_sentence(template: str, sentence: str) -> None:
    with pytest.raises(rl.InputError, match=sentence):
        chat(template)
