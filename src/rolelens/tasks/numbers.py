"""Numbers as people and models write them."""

import math
import re
import unicodedata
from typing import NamedTuple

from rolelens.errors import InputError

_MINUS = str.maketrans(dict.fromkeys("−–‐‑﹣－", "-"))
_SCALES = {
    "hundred": 1e2, "thousand": 1e3, "k": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12,
}  # fmt: skip
_GROUPED = r"[1-9]\d{0,2}(?:,\d{3})+(?!,?\d)|[1-9]\d?(?:,\d\d)+,\d{3}(?!,?\d)"
_PLAIN = rf"(?:{_GROUPED}|\d+)"
_NUMBER = re.compile(
    rf"""
    (?<!\d)(?<!\^)(?<!\^\{{)(?<!\^-)(?<!\^\{{-)(?<!√)(?<!sqrt\{{)   # no digit of a power or a root
    (?P<sign>(?<![\w)])-)? [$€£¥₹]?
    (?>
        (?P<whole>{_PLAIN})[ ]+(?P<numerator>\d+)[ ]?/[ ]?(?P<below>\d+)(?!\d|\.\d)
        | (?P<points>\d{{1,3}}(?:\.\d{{3}})+,\d+ | \d{{1,3}}(?:\.\d{{3}}){{2,}}(?!\d|\.\d))
        | (?P<comma>(?<!\d,)(?!{_GROUPED})\d+,\d+(?!,?\d))
        | (?P<plain>{_PLAIN}(?:\.\d+)? | (?<![\w.])\.\d+)
          (?P<exponent>[eE][-+]?\d+(?!\w))?
          (?:[ ]?\^[ ]?\{{?(?P<power>-?\d+)\}}?)?
    )
    (?:[ ]?(?:×|x|\*|·|\\times|\\cdot)[ ]?10[ ]?\^[ ]?\{{?(?P<ten>-?\d+)\}}?)?
    (?:[ ]?/[ ]?(?P<denominator>{_PLAIN}(?:\.\d+)?))?
    (?:[ -]?(?P<scale>hundred|thousand|million|billion|trillion)s?\b | (?P<k>k)\b)?
    (?P<percent>[ ]?%|[ ]?per[ ]?cent\b)?
    (?![ ]?(?:\\pi\b|π|\\sqrt|√))                              # nor a part of an expression
    """,
    re.VERBOSE,
)
_MARK = re.compile(r"####(?=\s*[-$€£¥₹.\d])|answer\**(?: is|:)|(?P<boxed>\\boxed\{)", re.IGNORECASE)
_SYMBOLS = re.compile(r"[√π^+*=<>~]|/(?![A-Za-z])|\\(?!text|mathrm|boxed|[ ;:])")


class Number(NamedTuple):
    """A number that stands in a text.

    Attributes:
        value: of the number; a percent sign is a unit, so that of ``25%`` it is 25.
        percent: whether it is written as a percentage.
    """

    value: float
    percent: bool

    def equals(self, other: "Number") -> bool:
        """Whether two numbers are the same, but for rounding in the sixth place or later.

        Whole numbers have to be equal. A percentage also equals its hundredth where the other is
        none: ``25%`` is 25 and 0.25.
        """
        if _close(self.value, other.value):
            return True
        if self.percent == other.percent:
            return False
        share, plain = (self, other) if self.percent else (other, self)
        return _close(share.value / 100, plain.value)


def final_number(text: str) -> float | None:
    r"""The number that a text ends up with; None where there is none.

    What follows the last ``####``, ``answer is`` or ``boxed{`` on its line, and there the last
    ``=`` of a calculation; else the last number. Understood are thousands separators (``1,250``,
    ``12,34,567``, ``1.234,50``), a decimal comma (``1,5``), fractions and mixed numbers (``1/2``,
    ``1 1/2``, ``½``, ``\frac{1}{2}``), exponents (``1e-05``, ``1.2 × 10^5``), powers (``2^5``),
    ``2 million``, currency signs and the minus signs of Unicode. A percent sign and other units
    are passed over.
    """
    number = last_number(text)
    return None if number is None else number.value


def last_number(text: str) -> Number | None:
    """The number that a text ends up with, as :func:`final_number` finds it."""
    text = _normal(text)
    marks = list(_MARK.finditer(text))
    if marks:
        line = text[marks[-1].end() :].strip().partition("\n")[0]
        if marks[-1]["boxed"]:
            line = line.partition("}")[0]
        for part in (line.rpartition("=")[2], line):
            if numbers := _numbers(part):
                return numbers[0][1]
    numbers = _numbers(text)
    return numbers[-1][1] if numbers else None


def only_number(text: str) -> Number:
    """The one number of an answer key, such as ``"18"``, ``"$1,250"`` or ``"x = 1/2 hours"``.

    Args:
        text: the key; of one with ``####`` or ``=``, what follows the last of them.

    Raises:
        InputError: it has no number or several, or one that can be read in two ways (``1,5``), or
            it is an expression.
    """
    key = _normal(text).rpartition("####")[2].rpartition("=")[2].strip(" *")
    numbers = _numbers(key)
    if len(numbers) != 1:
        raise _unusable(text, "has several numbers" if numbers else "has no number")
    match, number = numbers[0]
    around = f"{key[: match.start()]} {key[match.end() :]}"
    if match["comma"]:
        raise _unusable(text, "may be a decimal or a list")
    if re.search(r"\d", around) or _SYMBOLS.search(around.replace("$", "")):
        raise _unusable(text, "is more than a number")
    return number


def _unusable(text: str, why: str) -> InputError:
    return InputError(
        f"the answer {text[:60]!r} {why}; write one number, with a point before its decimals, or "
        "pass a verifier of your own."
    )


def _normal(text: str) -> str:
    """A text with one minus sign, plain fractions and no formatting inside its numbers."""
    text = text.translate(_MINUS).replace("⁄", "/")
    text = re.sub(r"[¼-¾⅐-⅞]", lambda m: " " + unicodedata.normalize("NFKC", m[0]), text)
    text = text.replace("⁄", "/").replace("{,}", ",")
    text = re.sub(r"\\[,!]", "", text).replace("\\$", "$").replace("\\%", "%")
    text = re.sub(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))", "", text)
    text = re.sub(r"[\u00a0\u2009\u202f]", " ", text)
    text = re.sub(r"(?<=\d)\s*(?=\\[dtc]?frac)", " ", text)
    text = re.sub(r"\\[dtc]?frac\s*(\d)\s*(\d)", r"\1/\2", text)
    text = re.sub(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2", text)
    return re.sub(r"\b([kcdm]?m|ft|in|yd)\}?(?:\^?\{?[23]\b\}?|[²³])", r"\1", text)


def _numbers(text: str) -> list[tuple[re.Match[str], Number]]:
    """The finite numbers of a text, and where they stand."""
    read = [
        (match, Number(_value(match), bool(match["percent"]))) for match in _NUMBER.finditer(text)
    ]
    return [(match, number) for match, number in read if math.isfinite(number.value)]


def _value(match: re.Match[str]) -> float:
    try:
        if match["whole"]:
            above, below = float(match["numerator"]), float(match["below"])
            value = above / below + (_float(match["whole"]) if above < below else 0)
        elif match["points"]:
            value = float(match["points"].replace(".", "").replace(",", "."))
        elif match["comma"]:
            value = float(match["comma"].replace(",", "."))
        else:
            value = _float(match["plain"] + (match["exponent"] or ""))
            value = value ** int(match["power"]) if match["power"] else value
        value *= 10.0 ** int(match["ten"] or 0)
        value *= _SCALES.get(match["scale"] or match["k"] or "", 1.0)
        value /= _float(match["denominator"] or "1")
    except (OverflowError, ValueError, ZeroDivisionError):
        return math.nan
    return -value if match["sign"] else value


def _float(digits: str) -> float:
    return float(digits.replace(",", ""))


def _close(a: float, b: float) -> bool:
    if a.is_integer() and b.is_integer():
        return a == b
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-6 * min(1.0, abs(a), abs(b)))
