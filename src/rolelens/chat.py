"""How a prompt is put to a model: its chat template, or a plain format where it has none."""

import functools
import hashlib
import warnings
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError

from rolelens.errors import InputError

PLAIN = "Question: {prompt}\nAnswer:"
DATE = datetime(2024, 7, 26)
"""What a template is told when it asks for today's date, so that results do not depend on it."""

# Endings that no tokenizer merges alike with what follows: what all share at the end is template.
_PROBES = ("a", "What is it?", "Stop.", "7", "(x)", "über")


class ChatFormat:
    """Renders and tokenizes single-turn prompts.

    Attributes:
        template: the tokenizer's chat template, or None: then the plain format is used.
        n_post: number of post-instruction tokens, the template's tokens after the instruction.
        sha: hash of the template.
        joiner: what stands between a prompt and its answer.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self._tokenizer = tokenizer
        self._name = name
        self.template: str | None = getattr(tokenizer, "chat_template", None)
        if self.template is None:
            warnings.warn(
                f"{name} has no chat template; prompts are put as {PLAIN!r}.", stacklevel=4
            )
        self.joiner = " " if self.template is None else ""
        self.sha = hashlib.sha256(str(self.template or PLAIN).encode()).hexdigest()[:16]
        self.n_post = _common_suffix([self.ids(probe) for probe in _PROBES])
        if self.n_post == 0:
            raise InputError(
                f"the chat template of {name} puts no token after the instruction, so there is no "
                "post-instruction position; set tokenizer.chat_template to one that does."
            )

    def render(self, prompt: str, system: str | None = None) -> str:
        """The text the model reads, up to where its answer begins.

        Args:
            prompt: what the user says.
            system: a system prompt; the template's default stays where there is none. It goes
                before the prompt where the template takes none.
        """
        if self.template is None:
            # Scoring prompts end in "Answer:" themselves, as in the paper.
            prompt = prompt.removesuffix("Answer:").rstrip()
            return PLAIN.format(prompt=f"{system}\n\n{prompt}" if system else prompt)
        messages = [{"role": "user", "content": prompt}]
        if system is None:
            return self._apply(messages)
        if self.takes_system:
            return self._apply([{"role": "system", "content": system}, *messages])
        return self._apply([{"role": "user", "content": f"{system}\n\n{prompt}"}])

    @functools.cached_property
    def takes_system(self) -> bool:
        """Whether the template takes a system prompt: some refuse one, and some leave it out."""
        if self.template is None:
            return False
        system = "Be kind."
        messages = [{"role": "system", "content": system}, {"role": "user", "content": "a"}]
        try:
            return system in self._apply(messages)
        except InputError:
            return False

    def ids(self, prompt: str, system: str | None = None) -> tuple[int, ...]:
        """Token ids of the rendered prompt."""
        return self._encode(self.render(prompt, system))

    def raw_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a text outside any conversation.

        A beginning-of-sequence token stands before it, as everywhere in TransformerLens.
        """
        return tuple(self._tokenizer(text, add_special_tokens=True).input_ids)

    def ids_with_answer(
        self, prompt: str, answer: str, system: str | None = None
    ) -> tuple[tuple[int, ...], int]:
        """Token ids of the rendered prompt and an answer to it, and how many are the prompt's."""
        before = self.render(prompt, system)
        start = self._encode(before)
        return start + self._following(before, start, self.joiner + answer), len(start)

    def continuation(self, prompt: str, text: str, system: str | None = None) -> tuple[int, ...]:
        """Token ids of a text that follows a prompt as it is, with nothing between.

        Where its first letters merge with the prompt's last ones, it is tokenized alone.
        """
        before = self.render(prompt, system)
        return self._following(before, self._encode(before), text)

    def _following(self, before: str, start: tuple[int, ...], text: str) -> tuple[int, ...]:
        whole = self._encode(before + text)
        if whole[: len(start)] == start:
            return whole[len(start) :]
        return tuple(self._tokenizer(text, add_special_tokens=False).input_ids)

    def _encode(self, text: str) -> tuple[int, ...]:
        # A template writes the special tokens itself; adding them again would double the BOS.
        special = self.template is None
        return tuple(self._tokenizer(text, add_special_tokens=special).input_ids)

    def _apply(self, messages: Sequence[dict[str, str]]) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=True,
                chat_template=_dated(self.template),
                date_string=DATE.strftime("%d %b %Y"),
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise InputError(
                f"the chat template of {self._name} failed ({error}); set tokenizer.chat_template "
                "to a working one, or to None for the plain format."
            ) from error
        return text


def _dated(template: str | None) -> str | None:
    """Give a template that asks for today's date a fixed one.

    transformers passes no functions into a template, so the clock is shadowed by a macro.
    """
    if template is None or "strftime_now" not in template:
        return template
    replaced = "".join(f"|replace('%{c}', '{DATE.strftime('%' + c)}')" for c in "aAbBdejmyYHIMSp")
    macro = "{%- macro strftime_now(form) -%}{{ form" + replaced + " }}{%- endmacro %}{{ '' }}"
    return macro + template


def _common_suffix(sequences: Sequence[Sequence[int]]) -> int:
    n = 0
    shortest = min(map(len, sequences))
    while n < shortest and len({sequence[-1 - n] for sequence in sequences}) == 1:
        n += 1
    return n
