"""How objects show themselves: one line in a terminal, a small card in Jupyter.

Nothing is computed for it, and long texts are cut.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from textwrap import shorten

LINE, CELL = 200, 1000
"""Characters of a fact at most, in a terminal and in Jupyter."""


@dataclass(frozen=True)
class Card:
    """What an object is, the facts one wants of it, and what to call next."""

    title: str
    facts: Mapping[str, str]
    then: str


class Shown(ABC):
    """Gives ``repr`` and the HTML of Jupyter from one card, which holds what is known already."""

    @abstractmethod
    def card(self) -> Card:
        """What is shown."""

    def __repr__(self) -> str:
        card = self.card()
        facts = ", ".join(
            f"{name} {shorten(value, LINE, placeholder=' ...')}"
            for name, value in card.facts.items()
        )
        return f"{card.title}({facts})  # next: {card.then}"

    def _repr_html_(self) -> str:
        card = self.card()
        cell = "padding:2px 14px 2px 0;text-align:left;vertical-align:top"
        rows = "".join(
            f'<tr><td style="{cell};opacity:.65">{escape(name)}</td>'
            f'<td style="{cell}">{escape(cut(value))}</td></tr>'
            for name, value in card.facts.items()
        )
        return (
            '<div style="border-left:3px solid #0072B2;padding:2px 12px;margin:4px 0">'
            f"<b>{escape(card.title)}</b>"
            f'<table style="margin:2px 0">{rows}</table>'
            f'<span style="opacity:.65">next: <code>{escape(card.then)}</code></span></div>'
        )


def cut(text: str, limit: int = CELL) -> str:
    """The beginning of a text that is longer than so many characters."""
    return text if len(text) <= limit else f"{text[: limit - 4]} ..."
