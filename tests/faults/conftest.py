"""How many faults are tried, and the table of what became of them."""

import os
from collections import Counter
from collections.abc import Callable

import pytest

from rolelens.errors import InputError

FULL = os.environ.get("FAULTS") == "full"
"""Set by ``make faults``; else a part of each campaign runs."""

Tally = Counter[str]


def sentence(error: BaseException) -> str:
    """What a user is told: one sentence of an InputError, else the test fails."""
    assert type(error) is InputError, f"{type(error).__name__}: {error}"
    message = str(error)
    assert message.endswith("."), message
    assert "\n" not in message, message
    assert len(message) < 2000, message
    return message


@pytest.fixture
def times() -> Callable[[int, int], int]:
    """The number of faults to try: in every run, and in full."""
    return lambda some, full: full if FULL else some


@pytest.fixture
def tally(request: pytest.FixtureRequest, record_property: Callable[..., None]) -> object:
    """Counts outcomes by name; they end up in the table."""
    outcomes: Tally = Counter()
    yield outcomes
    title = request.node.get_closest_marker("fault").args[0]
    record_property("fault", [title, dict(outcomes)])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of ``docs/reliability.md``."""
    reports = [report for kind in terminalreporter.stats.values() for report in kind]
    rows: dict[str, Tally] = {}
    for report in reports:
        for name, value in getattr(report, "user_properties", []):
            if name == "fault" and getattr(report, "when", "") == "teardown":
                rows.setdefault(value[0], Counter()).update(value[1])
    if rows:
        terminalreporter.write_sep("=", "faults")
        terminalreporter.write_line("| fault | times | outcomes |\n|---|---|---|")
    for title, outcomes in sorted(rows.items()):
        told = ", ".join(f"{n} {outcome}" for outcome, n in outcomes.most_common())
        terminalreporter.write_line(f"| {title} | {outcomes.total()} | {told} |")
