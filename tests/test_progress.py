import sys

import pytest

from rolelens.progress import quiet, track


def test_bars_are_shown_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(track([1, 2], "counting")) == [1, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    list(track([1, 2], "counting"))
    assert "counting" in capsys.readouterr().err
    with quiet():
        list(track([1, 2], "counting"))
    assert capsys.readouterr().err == ""
