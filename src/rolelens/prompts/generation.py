"""New role prompts, written by a language model and held to rules."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rolelens.display import Card, Shown
from rolelens.endpoints import EmptyAnswerError, Endpoint, EndpointError
from rolelens.errors import InputError, writing
from rolelens.progress import track
from rolelens.prompts.personas import matching
from rolelens.prompts.rules import TASKS, check, clean
from rolelens.prompts.sets import RolePrompts

MAX_TOKENS = 1024
"""Of an answer: a prompt is shorter, and what a model thinks before it counts as well."""

_INSTRUCTION = """\
Somebody is described like this:

{persona}

Write ONE prompt that this person might give to an AI assistant, about something they do, know or \
need. The prompt begins with "{task}". It is specific, one or two sentences of at most 40 words, \
and can be understood on its own. It does not mention the description, nor the words "{role}", and \
has no placeholders. Answer with the prompt and nothing else: no label, no quotation marks, no \
explanation."""


@dataclass(frozen=True, repr=False)
class Generated(Shown):
    """New role prompts, and how the attempts at them ended.

    Attributes:
        prompts: the accepted ones.
        refused: how many were refused, by reason.
    """

    prompts: RolePrompts
    refused: dict[str, int]

    @property
    def attempts(self) -> int:
        """How often the language model was called for a prompt."""
        return len(self.prompts) + sum(self.refused.values())

    @property
    def acceptance(self) -> float:
        """Share of the attempts that were accepted."""
        return len(self.prompts) / self.attempts

    def card(self) -> Card:
        """Role, prompts, and what was refused."""
        refused = ", ".join(f"{count} {reason}" for reason, count in self.refused.items())
        facts = {
            "role": self.prompts.role,
            "prompts": f"{len(self.prompts)} of {self.attempts} attempts",
            "refused": refused or "none",
        }
        return Card("Generated", facts, "rl.role_vectors(lens, {role: result.prompts}, base)")


def generate(
    role: str,
    n: int,
    endpoint: Endpoint,
    personas: Iterable[str],
    *,
    domain: str | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    out: str | Path | None = None,
    attempts_per_prompt: int = 4,
    max_attempts: int | None = None,
) -> Generated:
    """Have a language model write role prompts, as 2502.12055 does.

    Every attempt draws one of the personas that name the role and one of the ten task types, asks
    for what such a person might ask an assistant, and holds the answer to the rules of ``check``.

    Args:
        role: its name.
        n: how many prompts.
        endpoint: who writes them: from ``rolelens.endpoints.connect``, or anything with ``name``
            and ``answer``.
        personas: from ``load_personas``; those that name the role are used.
        domain: of the role, for ``load_roles``.
        seed: of the draws, and of the sampling where the endpoint has one.
        temperature: of the sampling.
        out: a JSONL file that every attempt is appended to when it is made. The same call goes on
            after the last one, with the draws that an unbroken run has, also to a larger ``n``.
        attempts_per_prompt: how many attempts are made at most for each of the ``n``.
        max_attempts: how many are made at most in all, in place of ``n`` times that.

    Returns:
        What was accepted, which is less than ``n`` where the attempts ran out.

    Raises:
        EndpointError: the endpoint failed; the prompts so far are in ``out``.
        InputError: no persona names the role, ``out`` was made by another call, or nothing at all
            was accepted.
    """
    limit = n * attempts_per_prompt if max_attempts is None else max_attempts
    if n < 1 or limit < 1:
        raise InputError(f"n is {n} and attempts at most {limit}; both have to be above 0.")
    everybody = list(personas)
    pool = matching(everybody, role)
    if not pool:
        raise InputError(
            f"none of {len(everybody)} personas names {role!r}; pass other personas, that do."
        )

    def draw(attempt: int) -> tuple[str, str, int]:
        stream = random.Random(f"{seed}/{role}/{attempt}")
        return stream.choice(pool), stream.choice(list(TASKS)), stream.getrandbits(31)

    settings = {
        "role": role,
        "domain": domain,
        "model": endpoint.name,
        "seed": seed,
        "temperature": temperature,
    }
    path = None if out is None else Path(out)
    held = [] if path is None else _held(path, settings, draw)
    prompts: list[str] = []
    refused: Counter[str] = Counter()

    def ask(attempt: int) -> dict[str, Any]:
        persona, task, sampling = draw(attempt)
        row = settings | {"attempt": attempt, "persona": persona, "task": task}
        prompt = _INSTRUCTION.format(persona=persona, task=task.capitalize(), role=role)
        try:
            answer = endpoint.answer(
                prompt, max_tokens=MAX_TOKENS, temperature=temperature, seed=sampling
            )
            reason = check(answer, role, task, prompts)
        except EmptyAnswerError:
            answer, reason = "", "no text"
        except EndpointError as error:
            kept = "pass out= to keep the prompts made before"
            if path is not None:
                kept = f"{len(prompts)} prompts are kept in {path}, and the same call goes on"
            raise EndpointError(f"{str(error).rstrip('.')}; {kept}.") from error
        row |= {"refused": reason, "answer": answer} if reason else {"prompt": clean(answer)}
        if path is not None:
            with writing(path), path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        return row

    def accepted() -> Iterator[str]:
        for attempt in range(1, limit + 1):
            row = held[attempt - 1] if attempt <= len(held) else ask(attempt)
            if "prompt" in row:
                yield row["prompt"]
            else:
                refused[row["refused"]] += 1
            if len(prompts) == n:
                return

    for prompt in track(accepted(), f"Prompts of {role!r}", total=n):
        prompts.append(prompt)
    if not prompts:
        reason, count = refused.most_common(1)[0]
        raise InputError(
            f"{endpoint.name} wrote no usable prompt of {role!r} in {limit} attempts ({count} "
            f"times: {reason}); use a model that follows instructions better."
        )
    return Generated(RolePrompts(role, domain, tuple(prompts)), dict(refused))


def _held(
    path: Path, settings: Mapping[str, object], draw: Callable[[int], tuple[str, str, int]]
) -> list[dict[str, Any]]:
    """The attempts that a file holds, if this very call made it."""
    if not path.exists():
        return []
    with writing(path):
        content = path.read_bytes()
    rows: list[dict[str, Any]] = []
    *lines, last = content.split(b"\n")
    for line in lines:
        rows.append(_row(path, len(rows) + 1, line, settings, draw))
    if not last:
        return rows
    # The last write may have been cut off; then the attempt is made again.
    start = f'{{"role": {json.dumps(settings["role"])}'.encode()
    try:
        json.loads(last)
    except ValueError:
        if not last.startswith(start[: len(last)]):
            raise _other(path, len(rows) + 1) from None
        with writing(path), path.open("r+b") as file:
            file.truncate(len(content) - len(last))
        return rows
    rows.append(_row(path, len(rows) + 1, last, settings, draw))
    with writing(path), path.open("ab") as file:
        file.write(b"\n")
    return rows


def _row(
    path: Path,
    number: int,
    line: bytes,
    settings: Mapping[str, object],
    draw: Callable[[int], tuple[str, str, int]],
) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict) or not settings.keys() <= row.keys():
        raise _other(path, number)
    for name, value in settings.items():
        if row[name] != value:
            raise InputError(
                f"{path} was made with {name} {row[name]!r} and this call has {value!r}; pass the "
                "same, or name another file."
            )
    known = isinstance(row.get("prompt", row.get("refused")), str)
    if row.get("attempt") != number or not known:
        raise _other(path, number)
    if (row.get("persona"), row.get("task")) != draw(number)[:2]:
        raise InputError(
            f"{path}, line {number} was made with other personas; pass the same, or name another "
            "file."
        )
    return row


def _other(path: Path, number: int) -> InputError:
    return InputError(
        f"{path}, line {number} is not attempt {number} at a prompt; name a new file, or one that "
        "this call made."
    )
