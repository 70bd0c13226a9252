"""Models of a hub: which are here, and why one cannot be had."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SILENCES = 2
"""Requests that a hub may leave unanswered."""


def cached_models() -> dict[str, str]:
    """Hub models in the local cache, and where each is."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return {}
    return {r.repo_id: str(r.repo_path) for r in sorted(repos, key=str) if r.repo_type == "model"}


def commit(name: str, revision: str | None) -> str | None:
    """The commit of a hub model that the local cache has of a revision, the newest by default."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(path).parent.name if isinstance(path, str) else None


@dataclass
class Answers:
    """Whether a hub answers.

    Attributes:
        limit: seconds that a request waits.
        any: it has answered something.
        unanswered: when requests were sent since it last did.
    """

    limit: float
    any: bool = False
    unanswered: list[float] = field(default_factory=list)

    @property
    def missed(self) -> int:
        """Requests in a row that waited so long for nothing."""
        now = time.monotonic()
        return sum(now - begun >= self.limit for begun in self.unanswered)


@contextmanager
def impatient() -> Iterator[Answers]:
    """Take a hub that does not answer for one that is not there.

    The hub's client sends some requests without a time-out, and asks on for minutes after others.
    Inside, a request waits for ``HF_HUB_DOWNLOAD_TIMEOUT`` seconds (10 by default), and after two
    that waited so long for nothing the client is told that it is offline: what is in the local
    cache is taken from there, the rest is refused.
    """
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import OfflineModeIsEnabled

    answers = Answers(float(constants.HF_HUB_DOWNLOAD_TIMEOUT))

    def asked(request: Any) -> None:
        if answers.missed >= SILENCES:
            raise OfflineModeIsEnabled(f"{request.url.host} does not answer")
        answers.unanswered.append(time.monotonic())
        wanted = request.extensions.get("timeout", {})
        kinds = ("connect", "read", "write", "pool")
        waits = {kind: min(wanted.get(kind) or answers.limit, answers.limit) for kind in kinds}
        request.extensions["timeout"] = waits

    def answered(_: Any) -> None:
        answers.any = True
        answers.unanswered.clear()

    session = get_session()
    added = {"request": asked, "response": answered}
    hooks = session.event_hooks
    session.event_hooks = {when: [*hooks[when], hook] for when, hook in added.items()}
    try:
        yield answers
    finally:
        hooks = session.event_hooks
        session.event_hooks = {
            when: [hook for hook in hooks[when] if hook is not ours] for when, ours in added.items()
        }


def explanation(error: BaseException, name: str, revision: str | None, where: str) -> str | None:
    """Why a model could not be loaded, and what to do, in one sentence; None: nothing is known.

    Args:
        error: what was raised, with its causes.
        name: the model.
        revision: of the hub.
        where: the devices that it was to be loaded on.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        RevisionNotFoundError,
    )

    from rolelens.forward import is_out_of_memory

    for cause in _causes(error):
        if isinstance(cause, GatedRepoError):
            return (
                f"{name!r} is gated: accept its terms on its page of the hub, then log in with "
                "'hf auth login' or set HF_TOKEN."
            )
        if isinstance(cause, RevisionNotFoundError):
            return (
                f"revision is {revision!r}, and {name!r} has no such branch, tag or commit; leave "
                "it out for the newest."
            )
        if is_out_of_memory(cause):
            return (
                f"{name!r} does not fit into the memory of {where}; load it in a smaller dtype, "
                "over several devices (device_map='auto') or with quantization_config."
            )
    return None


def is_unreachable(error: BaseException) -> bool:
    """Whether a hub was not reached, and the model is not in the local cache."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    kinds = LocalEntryNotFoundError | OfflineModeIsEnabled
    return any(isinstance(cause, kinds) for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
