"""How a prompt is put to a model: its chat template, a plain format, or the text as it is."""

import functools
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

from jinja2 import TemplateError

from rolelens.errors import InputError, unknown

Message: TypeAlias = Mapping[str, Any]
"""One turn of a conversation: ``{"role": "system" | "user" | "assistant", "content": text}``."""
Prompt: TypeAlias = str | Sequence[Message]
"""What the user says, or a conversation. A conversation that ends with a turn of the assistant is
a prompt with an answer that has been begun."""

ROLES = ("system", "user", "assistant")
PLAIN = "Question: {prompt}\nAnswer:"
TEXT = "text"
"""Names the format in which a prompt is put as it is."""
DATE = datetime(2024, 7, 26)
"""What a template is told when it asks for today's date, so that results do not depend on it."""

# Endings that no tokenizer merges alike with what follows: what all share at the end is template.
_PROBES = ("a", "What is it?", "Stop.", "7", "(x)", "über")


class ChatFormat:
    """Renders and tokenizes prompts.

    Attributes:
        template: the chat template, or None: then there is the plain format, or none at all.
        is_text: whether prompts are put as they are.
        n_post: number of post-instruction tokens, the template's tokens after the instruction.
        sha: hash of the template.
    """

    def __init__(self, tokenizer: Any, name: str, template: str | None = None) -> None:
        """Take a format.

        Args:
            tokenizer: the model's.
            name: of the model, for messages.
            template: a Jinja chat template; ``"text"``: prompts are put as they are; by default
                that of the tokenizer, or the plain format where it has none, with a warning.

        Raises:
            InputError: the template fails, or leaves the prompt out.
        """
        self._tokenizer = tokenizer
        self._name = name
        self.is_text = template == TEXT
        self.template = template or getattr(tokenizer, "chat_template", None)
        if self.is_text:
            self.template = None
        elif self.template is None:
            warnings.warn(
                f"{name} has no chat template; prompts are put as {PLAIN!r}. Load it with "
                f"template={TEXT!r} to put them as they are.",
                stacklevel=4,
            )
        written = TEXT if self.is_text else str(self.template or PLAIN)
        self.sha = hashlib.sha256(written.encode()).hexdigest()[:16]
        self.n_post = len(self.post())

    @functools.cached_property
    def takes_system(self) -> bool:
        """Whether the template takes a system prompt: some refuse one, and some leave it out."""
        if self.template is None:
            return False
        system = "Be kind."
        try:
            return system in self._apply([_turn("system", system), _turn("user", "a")])
        except InputError:
            return False

    @functools.cached_property
    def frame(self) -> tuple[str, str]:
        """What the template writes before an instruction, and after it."""
        if self.template is None:
            return "", ""
        before, found, after = self._apply([_turn("user", _PROBES[1])]).rpartition(_PROBES[1])
        if not found:
            raise InputError(
                f"the chat template of {self._name} leaves the prompt out; pass one that writes "
                "messages[-1]['content']."
            )
        return before, after

    @functools.cached_property
    def markers(self) -> tuple[str, ...]:
        """The special tokens that the template writes around an instruction."""
        special = [
            token.content
            for token in self._tokenizer.added_tokens_decoder.values()
            if token.special
        ]
        ends = (self._tokenizer.bos_token, self._tokenizer.eos_token)
        whole = "".join(self.frame)
        markers = [token for token in special if token.strip() and token in whole]
        # A beginning or end of sequence may be no more than that, unless it opens a turn, too.
        return tuple(m for m in markers if m not in ends or whole.count(m) > 1)

    def post(self, template_args: Mapping[str, Any] | None = None) -> tuple[int, ...]:
        """The post-instruction tokens, which may depend on arguments of the template."""
        key = json.dumps(template_args or {}, sort_keys=True, default=repr)
        if key not in self._posts:
            _ = self.frame
            probes = [self.ids(probe, template_args=template_args) for probe in _PROBES]
            n = 0 if self.is_text else _common_suffix(probes)
            self._posts[key] = probes[0][len(probes[0]) - n :]
        return self._posts[key]

    @functools.cached_property
    def _posts(self) -> dict[str, tuple[int, ...]]:
        return {}

    def render(
        self,
        prompt: Prompt,
        system: str | None = None,
        template_args: Mapping[str, Any] | None = None,
    ) -> str:
        """The text the model reads, up to where its answer begins.

        Args:
            prompt: what the user says, or a conversation that ends with the user.
            system: a system prompt; the template's default stays where there is none. It goes
                before the first turn of the user where the template takes none.
            template_args: what the template is told besides, such as ``enable_thinking``.

        Raises:
            InputError: the template fails, or leaves a message out.
        """
        for name in template_args or {}:
            if name not in (self.template or ""):
                raise InputError(
                    f"template_args names {name!r}, of which the chat template of {self._name} "
                    "knows nothing; leave it out or mend its spelling."
                )
        if self.is_text and not isinstance(prompt, str):
            raise InputError(
                f"{self._name} takes prompts as they are (template={TEXT!r}), so that there is no "
                "format for a list of messages; pass texts, or load it with a chat template."
            )
        turns = [_turn("user", prompt)] if isinstance(prompt, str) else [dict(m) for m in prompt]
        if system is not None:
            turns.insert(0, _turn("system", system))
        if turns[0]["role"] == "system" and len(turns) > 1 and not self.takes_system:
            first, second, *rest = turns
            joined = "\n\n".join(filter(None, (first["content"], second["content"])))
            turns = [second | {"content": joined}, *rest]
        if self.is_text:
            return str(turns[-1]["content"])
        if self.template is None:
            return _plain(turns)
        text = self._apply(turns, template_args)
        for turn in turns:
            # What was thought before an answer is left out on purpose by templates that know it.
            content = turn["content"].rpartition("</think>")[2].strip()
            if content not in text:
                raise InputError(
                    f"the chat template of {self._name} leaves out the message {content[:40]!r} "
                    f"of the {turn['role']}; leave it out as well, or pass another template."
                )
        return text

    def ids(
        self,
        prompt: Prompt,
        system: str | None = None,
        template_args: Mapping[str, Any] | None = None,
    ) -> tuple[int, ...]:
        """Token ids of the rendered prompt."""
        return self._encode(self.render(prompt, system, template_args))

    def raw_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a text outside any conversation.

        A beginning-of-sequence token stands before it, as everywhere in TransformerLens, unless
        the text begins with its own, or as the template does.
        """
        return self._tokens(text, special=not self._is_opened(text))

    def ids_with_answer(
        self,
        prompt: Prompt,
        answer: str,
        system: str | None = None,
        template_args: Mapping[str, Any] | None = None,
    ) -> tuple[tuple[int, ...], int]:
        """Token ids of the rendered prompt and an answer to it, and how many are the prompt's.

        A space stands between them where the format puts nothing there and neither brings one.
        """
        before = self.render(prompt, system, template_args)
        start = self._encode(before)
        bare = self.template is None or not self.n_post
        apart = before[-1:].isspace() or answer[:1].isspace() or not answer
        following = f" {answer}" if bare and not apart else answer
        return start + self._following(before, start, following), len(start)

    def continuation(self, prompt: str, text: str, system: str | None = None) -> tuple[int, ...]:
        """Token ids of a text that follows a prompt as it is, with nothing between.

        Where its first letters merge with the prompt's last ones, it is tokenized alone.
        """
        before = self.render(prompt, system)
        return self._following(before, self._encode(before), text)

    def check_unrendered(self, where: str, text: str) -> None:
        """Refuse a text that is in the chat format already: it would be put into it twice.

        Raises:
            InputError: it is.
        """
        marked = [marker for marker in self.markers if marker in text]
        if not self.is_text and (marked or self._is_opened(text)):
            raise InputError(
                f"{where} ({text[:40]!r}...) is already in the chat format of {self._name}"
                f"{f', with {marked[0]!r} in it' if marked else ''}; pass raw=True to take texts "
                "as they are, or a list of messages."
            )

    def _is_opened(self, text: str) -> bool:
        """Whether a text begins as a sequence does, or as the template begins one."""
        bos = self._tokenizer.bos_token or ""
        if bos and text.startswith(bos):
            return True
        before, _ = self.frame
        if bos and before.startswith(bos):
            return False
        opening = before.strip()
        return bool(opening and text.startswith(opening)) or text.startswith(self.markers)

    def _following(self, before: str, start: tuple[int, ...], text: str) -> tuple[int, ...]:
        whole = self._encode(before + text)
        if whole[: len(start)] == start:
            return whole[len(start) :]
        return self._tokens(text, special=False)

    def _encode(self, text: str) -> tuple[int, ...]:
        # A template writes the special tokens itself; adding them again would double the BOS.
        if self.is_text:
            return self.raw_ids(text)
        return self._tokens(text, special=self.template is None)

    def _tokens(self, text: str, *, special: bool) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=special).input_ids)

    def _apply(
        self, turns: Sequence[Message], template_args: Mapping[str, Any] | None = None
    ) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                [dict(turn) for turn in turns],
                tokenize=False,
                add_generation_prompt=True,
                chat_template=_dated(self.template),
                **{"date_string": DATE.strftime("%d %b %Y"), **(template_args or {})},
            )
        except (TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
            raise InputError(
                f"the chat template of {self._name} failed ({error}); pass another one, or "
                f"template={TEXT!r} to put prompts as they are."
            ) from error
        return text


def conversation(prompt: Any, n: int) -> tuple[Prompt, str | None]:
    """A prompt up to where the model answers, and the answer that has been begun, if any.

    Args:
        prompt: a text or a list of messages.
        n: its place among the prompts, for messages.

    Raises:
        InputError: it is neither, or a message has no such role or no content.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise InputError(f"prompt {n} is {prompt!r}, which is not a prompt; pass a text.")
        return prompt, None
    if isinstance(prompt, Mapping):
        raise InputError(
            f"prompt {n} is a single message; a conversation is a list of messages, so pass a list "
            "of such lists."
        )
    if not isinstance(prompt, Sequence):
        raise InputError(
            f"prompt {n} is {prompt!r}, which is not a prompt; pass a text or a list of messages."
        )
    if len(prompt) == 0:
        raise InputError(f"prompt {n} is a conversation without messages; pass at least one.")
    for message in prompt:
        if not isinstance(message, Mapping) or "role" not in message:
            raise InputError(
                f"prompt {n} has {message!r} among its messages; each has to be a dict such as "
                "{'role': 'user', 'content': 'Hello.'}."
            )
        if message["role"] not in ROLES:
            raise unknown(f"role of messages (in prompt {n})", message["role"], ROLES)
        content = message.get("content")
        if not isinstance(content, str) or not content.strip():
            raise InputError(
                f"prompt {n} has a message of the {message['role']} whose content is {content!r}; "
                "it has to be a text."
            )
    *before, last = prompt
    if last["role"] == "assistant" and before and before[-1]["role"] == "user":
        return before, str(last["content"])
    if last["role"] != "user":
        raise InputError(
            f"prompt {n} ends with a message of the {last['role']}; the last has to be of the "
            "user, or an answer of the assistant to the user, which is then continued."
        )
    return prompt, None


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _plain(turns: Sequence[Message]) -> str:
    """Questions and answers, one after the other."""
    text = ""
    for turn in turns:
        if turn["role"] == "assistant":
            text += f" {turn['content'].strip()}\n\n"
        else:
            text += PLAIN.format(prompt=_unframed(turn["content"]))
    return text


def _unframed(prompt: str) -> str:
    """A prompt without the ending of the plain format, which prompts of scoring bring, too."""
    return prompt.removesuffix("Answer:").rstrip()


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
