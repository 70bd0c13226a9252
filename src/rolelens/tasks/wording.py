"""How a question is put to a model."""

from collections.abc import Iterator

from rolelens.tasks.questions import LETTERS, Question


def letter_prompt(question: Question) -> str:
    """The paper's multiple-choice prompt: question, lettered options, request for the letter.

    Shots stand before it, under MMLU's heading. A question with a prompt has that one.
    """
    if question.prompt is not None:
        return question.prompt
    own = "\n".join([question.text, *_lettered(question), *_REQUEST])
    if not question.shots:
        return own
    return "\n\n".join([_heading(question), *map(_answered, question.shots), own])


def cloze_prompt(question: Question) -> str:
    """The question alone; shots stand before it, each with its correct option."""
    shots = [f"{shot.text}\n{shot.options[shot.answer]}" for shot in question.shots]
    return "\n\n".join([*shots, question.text])


_REQUEST = ("Answer with the letter of the correct answer.", "Answer:")


def _heading(question: Question) -> str:
    about = (question.subject or question.domain).replace("_", " ")
    known = f" about {about}" if about else ""
    return f"The following are multiple choice questions (with answers){known}."


def _answered(shot: Question) -> str:
    return "\n".join([shot.text, *_lettered(shot), f"Answer: {LETTERS[shot.answer]}"])


def _lettered(question: Question) -> Iterator[str]:
    for letter, option in zip(LETTERS, question.options, strict=False):
        yield f"{letter}. {option}"
