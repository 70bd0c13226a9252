"""Language models that write prompts and judge answers: behind an API, or loaded here."""

import importlib
import json
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol, runtime_checkable

import rolelens
from rolelens.errors import InputError

KEYS = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}
"""The environment variable that holds each provider's key."""


class EndpointError(InputError):
    """A language model could not be asked, or did not answer."""


class EmptyAnswerError(EndpointError):
    """It answered without a text; another prompt may well give one."""


@runtime_checkable
class Endpoint(Protocol):
    """Anything that has a name and answers a prompt."""

    @property
    def name(self) -> str:
        """What its answers are recorded with."""

    def answer(
        self,
        prompt: str,
        *,
        system: str | None = None,
        max_tokens: int,
        temperature: float,
        seed: int | None,
    ) -> str:
        """Answer one prompt.

        Args:
            prompt: what the user says.
            system: a system prompt.
            max_tokens: length of the answer at most, thinking included.
            temperature: 0 is greedy.
            seed: of the sampling, where the API has one.

        Raises:
            EndpointError: it cannot be reached, refuses, or gives no text.
        """


def connect(
    model: str, url: str | None = None, *, timeout: float = 60.0, retries: int = 5
) -> Endpoint:
    """Connect to a language model behind an API, through the official ``openai`` and ``anthropic``.

    ``"local/MODEL"`` loads one here instead, as :func:`rolelens.load` does.

    Keys are read from the environment: ``OPENAI_API_KEY`` and ``ANTHROPIC_API_KEY``. Nothing is
    sent before the first prompt.

    Args:
        model: ``"openai/NAME"``, ``"anthropic/NAME"`` or ``"local/MODEL"``; with a url, the name
            that its server knows the model by.
        url: of an OpenAI-compatible server, such as ``http://localhost:8000/v1``; it needs no key,
            and is sent ``OPENAI_API_KEY`` if there is one.
        timeout: seconds that an answer may take.
        retries: how often a request is sent again after no connection, no answer in time, 429 or
            5xx, with exponential backoff or after what ``Retry-After`` says.

    Returns:
        The endpoint. Anthropic has no seed, so it is left out there; a temperature other than 1 is
        sent, and most of its newer models refuse one.

    Raises:
        InputError: a model that cannot be read, a key or a package that is missing.
    """
    if timeout <= 0 or retries < 0:
        raise InputError(
            f"timeout is {timeout} and retries is {retries}; timeout has to be above 0 and retries "
            "0 or more."
        )
    provider, _, known_as = model.partition("/")
    if url is not None:
        if not url.startswith(("http://", "https://")):
            raise InputError(f"url is {url!r}; it has to begin with http:// or https://.")
        provider, known_as = "openai", model
    if provider == "local" and known_as:
        return Loaded(rolelens.load(known_as))
    if provider not in KEYS or not known_as:
        raise InputError(
            f"no language model {model!r}; write 'openai/NAME', 'anthropic/NAME' or 'local/MODEL', "
            "or pass the url of an OpenAI-compatible server."
        )
    key = os.environ.get(KEYS[provider], "").strip()
    if not key and url is None:
        raise InputError(f"{model} needs a key; set the environment variable {KEYS[provider]}.")
    try:
        sdk = importlib.import_module(provider)
    except ImportError:
        raise InputError(
            f"{model} needs the package {provider!r}; pip install 'rolelens[endpoints]'."
        ) from None
    # The SDK refuses to send nothing at all as a key.
    options = {"api_key": key or "no-key", "timeout": timeout, "max_retries": retries}
    if provider == "anthropic":
        return _Anthropic(model, known_as, sdk, sdk.Anthropic(**options))
    options |= {} if url is None else {"base_url": url}
    return _OpenAI(model, known_as, sdk, sdk.OpenAI(**options), compatible=url is not None)


@dataclass(frozen=True)
class Loaded:
    """A model that is loaded here, as an endpoint.

    Attributes:
        lens: the model.
    """

    lens: "rolelens.Lens"

    @property
    def name(self) -> str:
        """``"local/NAME"``."""
        return f"local/{self.lens.name}"

    def answer(
        self,
        prompt: str,
        *,
        system: str | None = None,
        max_tokens: int,
        temperature: float,
        seed: int | None,
    ) -> str:
        """Answer one prompt; arguments as for :meth:`Endpoint.answer`."""
        (text,) = self.lens.generate(
            [prompt],
            system=system,
            max_new_tokens=max_tokens,
            temperature=temperature,
            seed=0 if seed is None else seed,
        )
        if not text:
            raise EmptyAnswerError(f"{self.name} gave no text; ask for something else.")
        return text


@dataclass(frozen=True)
class _Remote(ABC):
    """What the two APIs share: their SDKs are generated alike, and raise the same classes."""

    name: str
    known_as: str = field(repr=False)
    sdk: Any = field(repr=False)
    client: Any = field(repr=False)

    def answer(
        self,
        prompt: str,
        *,
        system: str | None = None,
        max_tokens: int,
        temperature: float,
        seed: int | None,
    ) -> str:
        try:
            reply = self._ask(prompt, system, max_tokens, temperature, seed)
        except self.sdk.APITimeoutError:
            reason = f"did not answer within {self.client.timeout:g} s"
            self._fail(f"{reason}, {self._times}; try again later, or pass a longer timeout")
        except self.sdk.APIConnectionError as error:
            reason = self._without_key(str(error.__cause__ or error).strip().rstrip("."))
            self._fail(f"cannot be reached ({reason}); check the network and the url")
        except self.sdk.APIStatusError as error:
            self._fail(self._refusal(error.status_code, error.body))
        except (self.sdk.APIError, json.JSONDecodeError):
            self._nonsense()
        try:
            text, end = self._read(reply)
        except (AttributeError, IndexError, TypeError):
            self._nonsense()
        if text is not None and not isinstance(text, str):
            self._nonsense()
        if not text or not text.strip():
            raise EmptyAnswerError(
                f"{self.name} gave no text (it ended with {end!r}); ask for something else, or "
                "allow more tokens."
            )
        return text.strip()

    @abstractmethod
    def _ask(
        self, prompt: str, system: str | None, max_tokens: int, temperature: float, seed: int | None
    ) -> Any:
        """The reply, as the SDK reads it."""

    @abstractmethod
    def _read(self, reply: Any) -> tuple[Any, Any]:
        """Its text and why that ended."""

    @property
    def _times(self) -> str:
        return f"asked {self.client.max_retries + 1} times"

    def _refusal(self, status: int, body: object) -> str:
        if status == 401:
            variable = KEYS[self.sdk.__name__]
            return f"does not accept the key (401); check the environment variable {variable}"
        error = body.get("error", body) if isinstance(body, dict) else None
        reason = error.get("message") if isinstance(error, dict) else error
        reason = " ".join(reason.split())[:200].rstrip(".") if isinstance(reason, str) else ""
        code = f"({status}: {self._without_key(reason)})" if reason else f"({status})"
        if status == 403:
            return f"does not allow this {code}; check what the key may do"
        if status == 404:
            return f"is not there {code}; check the model's name and the url"
        if status == 429:
            return f"takes no more requests {code}, {self._times}; try again later"
        if status >= 500:
            return f"failed {code}, {self._times}; try again later"
        return f"refused the request {code}; change what it names"

    def _without_key(self, text: str) -> str:
        return text.replace(self.client.api_key, "***")

    def _nonsense(self) -> NoReturn:
        self._fail("did not answer as its API should; check the url (most end in /v1)")

    def _fail(self, what: str) -> NoReturn:
        # Without the cause: what a server sends back may hold the key.
        raise EndpointError(f"{self.name} {what}.") from None


@dataclass(frozen=True)
class _OpenAI(_Remote):
    """OpenAI's chat completions, or a server that is compatible with them."""

    compatible: bool = field(repr=False)

    def _ask(
        self, prompt: str, system: str | None, max_tokens: int, temperature: float, seed: int | None
    ) -> Any:
        # OpenAI's newer models refuse max_tokens, and other servers do not know its successor.
        limit = "max_tokens" if self.compatible else "max_completion_tokens"
        options: dict[str, Any] = {limit: max_tokens} | ({} if seed is None else {"seed": seed})
        messages = [] if system is None else [{"role": "system", "content": system}]
        return self.client.chat.completions.create(
            model=self.known_as,
            messages=[*messages, {"role": "user", "content": prompt}],
            temperature=temperature,
            **options,
        )

    def _read(self, reply: Any) -> tuple[Any, Any]:
        choice = reply.choices[0]
        return choice.message.content, choice.finish_reason


@dataclass(frozen=True)
class _Anthropic(_Remote):
    """Anthropic's messages; they have no seed."""

    def _ask(
        self, prompt: str, system: str | None, max_tokens: int, temperature: float, seed: int | None
    ) -> Any:
        options: dict[str, Any] = {} if system is None else {"system": system}
        if temperature != 1:
            # Only this version of the API knows temperatures; 1 is the default of all versions.
            options["extra_headers"] = {"anthropic-version": "2023-06-01"}
            options["extra_body"] = {"temperature": temperature}
        return self.client.messages.create(
            model=self.known_as,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=max_tokens,
            **options,
        )

    def _read(self, reply: Any) -> tuple[Any, Any]:
        texts = [block.text for block in reply.content if block.type == "text"]
        return "".join(texts), reply.stop_reason
