"""Numbers as people and models write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolelens.tasks import final_number
from rolelens.tasks.numbers import Number, last_number, only_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She makes 9 * 2 = $18 every day.\n#### 18", 18),
        ("The answer is 1,250.", 1250),
        ("The answer is $3.50, not 4.", 3.5),
        ("So 10-3 leaves 7", 7),
        ("10-3", 3),
        ("It falls to -4", -4),
        ("the answer is \\boxed{-12}", -12),
        ("Answer: 7 apples, out of 12", 7),
        ("The answer is clear: 5 + 6 = 11", 11),
        ("The answer is 9 * 2 = 18.", 18),
        ("The answer is 20 + 30 = 50\nfor 3 of them", 50),
        ("It costs $.50", 0.5),
        ("The answer is .5.", 0.5),
        ("The answer is unknown after 3 tries? no: the answer is none", 3),
        ("none at all", None),
        ("1/2", 0.5),
        ("so 1 1/2 hours", 1.5),
        ("so -1 1/2 hours", -1.5),
        ("2½ cups", 2.5),
        ("½", 0.5),
        ("$-\\frac{3}{4}$", -0.75),
        ("1\\frac12", 1.5),
        ("\\boxed{\\dfrac{1}{2}} for 3 = 3", 0.5),
        ("12/60 = 0.2", 0.2),
        ("1/0", None),
        ("1e-05", 1e-5),
        ("-1e-05", -1e-5),
        ("1.2 × 10^5", 1.2e5),
        ("1.2 \\times 10^{-5}", 1.2e-5),
        ("2^5", 32),
        ("x^2", None),
        ("9^99999", None),
        ("9^" + "9" * 5000, None),
        ("5 cm^2", 5),
        ("5 m2", 5),
        ("5\\text{ cm}^2", 5),
        ("\\sqrt{2}", None),
        ("12\\pi", None),
        ("1,5", 1.5),
        ("3,50 €", 3.5),
        ("0,500", 0.5),
        ("12345,678", 12345.678),
        ("1,2345", 1.2345),
        ("1,2,3", 3),
        ("1,234", 1234),
        ("1,234.50", 1234.5),
        ("$1,234.50.", 1234.5),
        ("12,34,567", 1234567),
        ("1.234,50", 1234.5),
        ("1.234.567", 1234567),
        ("10\\,000", 10000),
        ("10{,}000", 10000),
        ("10\u202f000", 10000),
        ("-$5", -5),
        ("$-5", -5),
        ("−7", -7),
        ("COVID-19", 19),
        ("Rs.50", 50),
        ("25%", 25),
        ("25\\%", 25),
        ("2 million", 2e6),
        ("$5k", 5000),
        ("5 km", 5),
        ("**Answer:** 18 of 20", 18),
        ("The answer is **18**.", 18),
        ("The answer is:\n18", 18),
        ("#### Step 3: add\n18+5=23", 23),
    ],
)
def test_the_final_number(text: str, number: float | None) -> None:
    assert final_number(text) == (None if number is None else pytest.approx(number, rel=1e-12))


WAYS = (
    "{}",
    "The answer is {}.",
    "the answer is {} of 12",
    "{} it is.",
    "So 3 + 4, then\n#### {}",
    "2 + 2 = {}",
    "\\boxed{{{}}}",
    "**Answer:** {}",
    "${}$",
    "It weighs {} kg",
    "It falls by {}%",
)


@given(st.integers(-(10**12), 10**12), st.sampled_from(WAYS), st.sampled_from(["d", ",", ".2f"]))
def test_whole_numbers_are_read_as_they_are_written(n: int, way: str, form: str) -> None:
    text = format(n, form)
    assert final_number(way.format(text)) == n
    assert final_number(way.format(text.replace("-", "−"))) == n
    assert only_number(text).value == n


@given(st.floats(-1e15, 1e15), st.sampled_from(WAYS), st.sampled_from(["", ",", "r", ".17e"]))
def test_decimals_are_read_as_they_are_written(x: float, way: str, form: str) -> None:
    text = repr(x) if form == "r" else format(x, form)
    assert final_number(way.format(text)) == pytest.approx(x, rel=1e-12, abs=0)


@given(st.integers(0, 99), st.integers(1, 999), st.integers(2, 999), st.sampled_from(WAYS))
def test_fractions_are_read_as_they_are_written(whole: int, top: int, below: int, way: str) -> None:
    for form in (f"{top}/{below}", f"\\frac{{{top}}}{{{below}}}"):
        assert final_number(way.format(form)) == pytest.approx(top / below)
        assert final_number(way.format(f"-{form}")) == pytest.approx(-top / below)
    if top < below:
        assert final_number(way.format(f"{whole} {top}/{below}")) == pytest.approx(
            whole + top / below
        )


@given(st.text(st.sampled_from("0123456789,./-+$%^{}=e \\kπ√½\nx"), max_size=40))
def test_any_text_is_read(text: str) -> None:
    value = final_number(text)
    assert value is None or abs(value) < float("inf")


def test_a_percentage_equals_its_hundredth() -> None:
    share = last_number("25 per cent")
    assert share == Number(25.0, True)
    assert share.equals(Number(0.25, False))
    assert Number(0.25, False).equals(share)
    assert not Number(0.25, False).equals(Number(25.0, False))
    assert not share.equals(Number(0.25, True))
