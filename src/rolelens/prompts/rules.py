"""The rules that a new role prompt is held to."""

import re
from collections.abc import Sequence

from rolelens.errors import unknown
from rolelens.prompts.personas import naming

TASKS = {
    "explain": "explain",
    "describe": "describe",
    "design": "design",
    "what is": "what (?:is|are)",
    "how to": "how (?:to|do|can|should)",
    "analyze": "analy[sz]e",
    "compare": "compare",
    "create": "create",
    "solve": "solve",
    "recommend": "recommend",
}
"""The task types of 2502.12055, and what a prompt of each may begin with."""

_WRAPPED = [
    re.compile(pattern, re.DOTALL | re.IGNORECASE)
    for pattern in (
        r".*</think>(?P<rest>.*)",
        r"(?:[#>]+|[-*•]|\d+[.)])\s+(?P<rest>.*)",
        r"(?:user )?prompt\s*:(?P<rest>.*)",
        r"(?P<mark>\*\*|__|[*_`])(?P<inner>.+?)(?P=mark)(?P<rest>.*)",
        r'"(?P<rest>[^"]*)"|“(?P<low>[^”]*)”|\'(?P<single>.*)\'|«(?P<angle>.*)»',
    )
]
# Not list[int], nor [A-Z].
_PLACEHOLDER = re.compile(r"(?<!\w)\[[^\[\]]*[^\W\d_]{3}[^\[\]]*\]")
_REFUSAL = re.compile(r"\bas an ai\b|\bi(?:['’]| a)m sorry\b|\bi (?:cannot|can['’]t)\b", re.I)


def check(text: str, role: str, task: str, known: Sequence[str] = ()) -> str | None:
    """Say why an answer is no prompt to be used, or nothing where it is one.

    It has to be one line of 4 to 60 words that begins with the task type and does not name the
    role, without a refusal or a placeholder in [brackets]. It has to differ from the known ones in
    more than case and punctuation, with a Jaccard index of the words of 0.8 at most.

    Args:
        text: the answer; what ``clean`` takes off is not held against it.
        role: the role's name.
        task: one of ``TASKS``.
        known: the prompts accepted before.

    Raises:
        InputError: no such task type.
    """
    if task not in TASKS:
        raise unknown("task type", task, TASKS)
    prompt = clean(text)
    words = set(re.findall(r"\w+", prompt.lower()))
    if _REFUSAL.search(prompt):
        return "a refusal"
    if len(prompt.splitlines()) > 1:
        return "several lines"
    if not 4 <= len(prompt.split()) <= 60:
        return "not 4 to 60 words"
    if not re.match(rf"{TASKS[task]}\b", prompt, re.IGNORECASE):
        return "another task type"
    if naming(role, plural=True).search(prompt):
        return "names the role"
    if _PLACEHOLDER.search(prompt):
        return "a placeholder"
    if _bare(prompt) in map(_bare, known):
        return "a duplicate"
    for other in known:
        others = set(re.findall(r"\w+", other.lower()))
        if len(words & others) > 0.8 * len(words | others):
            return "nearly a duplicate"
    return None


def clean(text: str) -> str:
    """Take off what models put around a prompt: a label, a number, markdown, quotation marks."""
    before, text = None, text.strip()
    while text != before:
        before = text
        for pattern in _WRAPPED:
            if match := pattern.fullmatch(text):
                parts = match.groupdict()
                parts.pop("mark", None)
                text = "".join(part for part in parts.values() if part).strip()
    return text


def _bare(prompt: str) -> str:
    return re.sub(r"[\W_]", "", prompt.lower())
