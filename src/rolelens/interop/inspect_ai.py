"""Inspect: a steered model as one of its model providers, so that its evaluations run steered.

``inspect eval FILE --model rolelens/smollm2 -M steering=FILE`` names a model as ``rl.load`` does,
and a file of ``Steering.save``. To import this module registers the provider, where ``inspect_ai``
is there; Inspect does that by itself.
"""

import functools
import importlib.util
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rolelens.errors import InputError
from rolelens.forward import Tokens
from rolelens.hooks import Steering
from rolelens.lens import Lens
from rolelens.loading import load

NEW_TOKENS = 256
"""Length of an answer at most where a task does not say."""
TOGETHER = 0.05
"""How long the first of several questions waits for the others, in seconds."""
HELD = {"max_tokens", "temperature", "top_p", "seed", "stop_seqs", "system_message"}
"""What a configuration may say of how an answer is written; Inspect puts the system message."""
AROUND = {"max_retries", "timeout", "attempt_timeout", "stream_idle_timeout", "max_connections"}
AROUND |= {"adaptive_connections", "max_tool_output", "reasoning_history", "cache", "batch"}
"""What it may say of what Inspect does around that."""


@dataclass(eq=False)
class _Asked:
    """A question that waits for its answer."""

    tokens: Tokens
    settings: tuple[int, float, float, int]
    seed: int
    ids: list[int] | None = None


class Answers:
    """What Inspect asks of a model, of one under a steering: messages in, a text out.

    It is joined with Inspect's own base class where that is there. Questions that arrive while
    others are answered are answered together. Answers are greedy where no temperature is told.

    Attributes:
        lens: the model.
        steering: what is done to it; every answer's metadata names it.
    """

    def __init__(self, lens: Lens, steering: Steering | None = None) -> None:
        """Take a model and what is done to it.

        Raises:
            InputError: they do not belong together.
        """
        import anyio

        inspects: Any = super().__init__
        inspects(lens.name)
        self.model_name = lens.name
        self.lens = lens
        self.steering = Steering() if steering is None else steering
        self.steering.check(lens.source, lens.n_layers)
        self._waiting: list[_Asked] = []
        self._lock = anyio.Lock()

    async def generate(
        self, input: list[Any], tools: list[Any], tool_choice: Any, config: Any
    ) -> Any:
        """Answer a conversation.

        Raises:
            InputError: tools, anything but texts, or a setting that rolelens has not; a prompt that
                does not fit into the context.
        """
        from inspect_ai.model import ModelOutput, ModelUsage

        if tools:
            raise InputError(
                f"the task offers tools ({', '.join(tool.name for tool in tools)}), and rolelens "
                "writes texts alone; take a task without tools."
            )
        settings = config.model_dump(exclude_none=True)
        unknown = settings.keys() - HELD - AROUND
        if unknown:
            raise InputError(
                f"the task sets {', '.join(sorted(unknown))}, which rolelens has not; it takes "
                f"{', '.join(sorted(HELD))}."
            )
        tokens = self.lens.encode([[_message(one) for one in input]])
        length = len(tokens.ids[0])
        longest = settings.get("max_tokens", NEW_TOKENS)
        asked = _Asked(
            tokens,
            (
                longest,
                settings.get("temperature", 0.0),
                settings.get("top_p", 1.0),
                length - tokens.prompt_lengths[0],
            ),
            settings.get("seed", random.getrandbits(32)),
        )
        ids = await self._answered(asked)
        ended = "stop"
        if len(ids) == longest:
            ended = "max_tokens"
        elif length + len(ids) == self.lens.n_ctx:
            ended = "model_length"
        text = str(self.lens.tokenizer.decode(ids, skip_special_tokens=True)).strip()
        places = [text.index(stop) for stop in settings.get("stop_seqs", ()) if stop in text]
        if places:
            text, ended = text[: min(places)], "stop"
        output = ModelOutput.from_content(self.model_name, text, stop_reason=ended)
        output.usage = ModelUsage(
            input_tokens=length, output_tokens=len(ids), total_tokens=length + len(ids)
        )
        output.metadata = {"steering": str(self.steering), "steering_sha": self.steering.sha}
        return output

    async def _answered(self, asked: _Asked) -> list[int]:
        """The tokens of an answer, written together with those that wait as well."""
        import anyio

        self._waiting.append(asked)
        try:
            await anyio.sleep(TOGETHER)
            async with self._lock:
                if asked.ids is None:
                    alike = [one for one in self._waiting if one.settings == asked.settings]
                    await anyio.to_thread.run_sync(
                        self._write, [one for one in alike if one.ids is None]
                    )
        finally:
            self._waiting.remove(asked)
        return asked.ids or []

    def _write(self, together: Sequence[_Asked]) -> None:
        """Answer questions of equal settings."""
        longest, temperature, top_p, _ = together[0].settings
        written = self.lens.continued(
            Tokens.concat([one.tokens for one in together]),
            hooks=self.steering,
            max_new_tokens=longest,
            temperature=temperature,
            top_p=top_p,
            seed=[one.seed for one in together],
        )
        for one, ids in zip(together, written, strict=True):
            one.ids = ids

    def max_connections(self) -> int:
        """How many questions Inspect asks at once."""
        return 64


def _message(message: Any) -> dict[str, str]:
    """A message of Inspect's as one of rolelens."""
    content = message.content
    others = [] if isinstance(content, str) else [one.type for one in content]
    if set(others) - {"text"} or message.role not in ("system", "user", "assistant"):
        raise InputError(
            f"a message of role {message.role!r} holds {', '.join(others) or 'a text'}, and "
            "rolelens reads texts of the system, the user and the assistant; take a task of those."
        )
    return {"role": message.role, "content": message.text}


@functools.cache
def _registered() -> tuple[Any, Any]:
    """The class of the provider, and what makes a model that Inspect knows: registered here.

    Raises:
        InputError: Inspect is not installed.
    """
    try:
        from inspect_ai.model import ModelAPI, modelapi
    except ImportError as error:
        raise InputError(
            f"Inspect cannot be imported ({error}); run \"pip install 'rolelens[inspect]'\"."
        ) from error
    return type("SteeredAPI", (Answers, ModelAPI), {}), modelapi("rolelens")(lambda: _named)


def inspect_model(lens: Lens, steering: Steering | None = None) -> Any:
    """A model under a steering, as ``inspect_ai.eval(..., model=...)`` takes it.

    ``get_model("rolelens/NAME", steering=FILE)`` is the same by names. It takes no object: Inspect
    keeps models by the plain values of their arguments, so that two steerings would be one to it.

    Raises:
        InputError: they do not belong together; Inspect is not installed.
    """
    steered, made = _registered()
    api = steered(lens, steering)
    from inspect_ai.model import GenerateConfig, Model

    return Model(made(lens.name, held=api), GenerateConfig(), {"steering": str(api.steering)})


def _named(
    model_name: str,
    base_url: str | None = None,
    api_key: str | None = None,
    config: Any = None,
    steering: Any = None,
    dtype: str | None = None,
    device: str | None = None,
    held: Answers | None = None,
    **unknown: Any,
) -> Any:
    """The model of a command line, or one that is held in memory."""
    if held is not None:
        return held
    if unknown or base_url:
        names = sorted([*unknown, *(["base_url"] if base_url else [])])
        raise InputError(
            f"the model's arguments name {', '.join(names)}; rolelens takes steering (a file), "
            "dtype and device."
        )
    if not isinstance(steering, str | None):
        raise InputError(
            f"steering is a {type(steering).__name__}, and Inspect tells models apart by plain "
            "values alone; name a file, or call rolelens.interop.inspect_ai.inspect_model."
        )
    lens = load(model_name, dtype=dtype, device=device)
    return _registered()[0](lens, Steering.load(steering) if steering else None)


if importlib.util.find_spec("inspect_ai"):
    _registered()
