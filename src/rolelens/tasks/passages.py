"""Texts that are scored by their log-probability."""

from dataclasses import dataclass
from typing import ClassVar

from rolelens.tasks.task import Task, checked_texts


@dataclass(frozen=True)
class Text:
    """One text, which a model reads as it is.

    Attributes:
        id: stable name.
        text: what is read.
        domain: what it is about.

    Raises:
        InputError: a field is no text, or the id or the text is empty.
    """

    id: str
    text: str
    domain: str = ""

    def __post_init__(self) -> None:
        checked_texts("text", self, ("id", "text"))


@dataclass(frozen=True, repr=False)
class Texts(Task[Text]):
    """Texts under a name; equal ones are tied."""

    kind: ClassVar[type] = Text

    def ties(self) -> list[list[object]]:
        """The text of each."""
        return [[item.text] for item in self]
