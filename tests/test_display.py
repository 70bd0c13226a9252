import pytest
import torch

import rolelens as rl
import tiny
from rolelens.patchscope import Addition
from test_scoring import QUESTIONS


@pytest.fixture
def objects(llama: rl.Lens) -> dict[str, object]:
    vectors = rl.role_vectors(llama, {"<b>a</b>": tiny.PROMPTS}, base=tiny.OTHERS)
    d = vectors["<b>a</b>"].at(2)
    return {
        "Lens": llama,
        "RoleVectors": vectors,
        "Direction": d,
        "Scores": rl.evaluate(llama, QUESTIONS),
        "Sweep": rl.sweep(llama, vectors, QUESTIONS, positions=[-1]),
        "Reading": rl.patchscope(llama, d, Addition(max_new_tokens=3)),
    }


def test_every_object_says_what_it_is_and_what_to_call_next(objects: dict[str, object]) -> None:
    for name, shown in objects.items():
        plain, html = repr(shown), shown._repr_html_()
        assert plain.startswith(f"{name}(")
        assert "# next: " in plain
        assert "\n" not in plain or name == "Reading"
        assert f"<b>{name}</b>" in html
        assert "next: <code>" in html
        assert "<b>a</b>" not in html
    assert "accuracy" in repr(objects["Scores"])
    assert "1 x 4 x 11 x 32" in repr(objects["RoleVectors"])
    assert f"norm {objects['Direction'].norm:.3g}" in repr(objects["Direction"])
    assert "unsteered accuracy" in repr(objects["Sweep"])


def test_a_direction_without_provenance_is_shown(llama: rl.Lens) -> None:
    assert "share" not in repr(rl.Direction(torch.ones(3), layer=1))
