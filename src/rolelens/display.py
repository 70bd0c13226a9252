"""How objects show themselves: one line in a terminal, a small card in Jupyter.

Nothing is computed for it, and long texts are cut.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from math import isfinite
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


@dataclass(frozen=True)
class Line:
    """A prompt or an answer, token by token.

    Attributes:
        label: what stands before it.
        tokens: the index of each token in its sequence, its text and its number.
    """

    label: str
    tokens: Sequence[tuple[int, str, float]]


def token_html(lines: Iterable[Line], scale: float, what: str) -> str:
    """Texts coloured by a number of each token, which hovering tells.

    The same in Jupyter, in the explorer and in a report. Orange is above zero and blue below.

    Args:
        lines: the texts.
        scale: the size of a number at which colours are full.
        what: what the numbers are.
    """
    ends = "".join(
        f'<i style="font-style:normal;background:{_shade(share, 1.0)};padding:0 .5em;'
        f'white-space:nowrap">'
        f"{share * scale:+.3g}</i>"
        for share in (-1.0, -0.5, 0.0, 0.5, 1.0)
    )
    text = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.75;margin:.35em 0"
    rows = "".join(
        f'<div class="rl-line" style="{text}"><span class="rl-label" style="opacity:.6">'
        f"{escape(line.label)} </span>{''.join(_token(*token, scale) for token in line.tokens)}"
        "</div>"
        for line in lines
    )
    return (
        '<section class="rl-tokens" style="font-family:ui-monospace,monospace;font-size:.93em">'
        f'<p class="rl-scale" style="font-family:system-ui,sans-serif">{escape(what)}: {ends} '
        f'<span class="rl-told" aria-live="polite"></span></p>{rows}</section>'
    )


def _token(index: int, token: str, value: float, scale: float) -> str:
    """A token on a background of its colour."""
    text = escape(token).replace("\n", "↵\n")
    if not isfinite(value):
        return f'<span title="token {index}">{text}</span>'
    title = escape(f"{value:.4g} at token {index}")
    return f'<span style="background:{_shade(value, scale)}" title="{title}">{text}</span>'


def _shade(value: float, scale: float) -> str:
    colour = "213,94,0" if value > 0 else "0,114,178"
    return f"rgba({colour},{0.8 * min(abs(value) / scale, 1.0):.2f})"


def shipped(name: str) -> str:
    """A text file of this package, such as the script and the styles of its pages."""
    return (resources.files("rolelens") / "data" / name).read_text("utf-8")


def cut(text: str, limit: int = CELL) -> str:
    """The beginning of a text that is longer than so many characters."""
    return text if len(text) <= limit else f"{text[: limit - 4]} ..."
