from rolelens.errors import unknown


def test_near_matches_come_before_lists() -> None:
    assert str(unknown("role", "docter", ["doctor", "lawyer"])) == (
        "no role 'docter'; did you mean 'doctor'?"
    )
    assert str(unknown("layer", 99, range(14))) == (
        "no layer 99; there are: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 2 more."
    )
    assert str(unknown("role", "x", [])) == "no role 'x'; there are: none."
