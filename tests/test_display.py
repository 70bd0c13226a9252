import pytest
import torch

import rolelens as rl
import tiny
from rolelens.patchscoping import Addition
from rolelens.prompts import Generated, RolePrompts, load_roles
from rolelens.rollouts import contrast_pairs
from rolelens.stats import projections, separation
from rolelens.vectors.geometry import pca

QUESTIONS = [rl.Question("1", "Is it?", ("yes", "no"), 0)]


@pytest.fixture
def objects(llama: rl.Lens) -> dict[str, object]:
    vectors = rl.role_vectors(llama, {"<b>a</b>": tiny.PROMPTS}, base=tiny.OTHERS)
    d = vectors["<b>a</b>"].at(2)
    prompts = RolePrompts("<b>a</b>", None, ("Who is it?",) * 900)
    projected = projections(torch.randn(9, 2, 4), torch.randn(9, 2, 4), name="<b>a</b>")
    three = rl.role_vectors(llama, dict.fromkeys("abc", tiny.PROMPTS), base=tiny.OTHERS)
    three = rl.Directions(
        torch.randn(three.directions.shape),
        *(three.names, three.layers, three.positions),
        three.resid_norm,
    )
    return {
        "Lens": llama,
        "Directions": vectors,
        "Direction": d,
        "Scores": rl.evaluate(llama, QUESTIONS),
        "RolePrompts": prompts,
        "Roles": load_roles(),
        "Generated": Generated(prompts, {"a duplicate": 3}),
        "Projections": projected,
        "Separation": separation(projected),
        "PCA": pca(three, 2),
        "Questions": rl.load_task(QUESTIONS),
        "Cell": rl.sweep(llama, [rl.add(d)], QUESTIONS).best(),
        "Contrast": contrast_pairs(llama, ["Who?", "What?"], ["a", "b"], ["c", "d"]),
        "Reading": rl.patchscope(llama, d, Addition(max_new_tokens=3)),
    }


def test_every_object_says_what_it_is_and_what_to_call_next(objects: dict[str, object]) -> None:
    for name, shown in objects.items():
        plain, html = repr(shown), shown._repr_html_()
        assert plain.startswith(f"{name}(")
        assert "# next: " in plain or name == "Questions"  # which has a line of its own
        assert "\n" not in plain
        assert len(plain) < 700
        assert f"<b>{name}</b>" in html
        assert "next: <code>" in html
        assert "<b>a</b>" not in html
    assert "accuracy" in repr(objects["Scores"])
    assert "1 x 4 x 11 x 32" in repr(objects["Directions"])
    assert f"norm {objects['Direction'].norm:.3g}" in repr(objects["Direction"])
    assert "prompts 900 of 903 attempts, refused 3 a duplicate" in repr(objects["Generated"])
    assert "roles 29 (bailiff, biologist, chemist, data analyst, ...)" in repr(objects["Roles"])


def test_a_direction_without_provenance_is_shown(llama: rl.Lens) -> None:
    assert "share" not in repr(rl.Direction(torch.ones(3), layer=1))


def test_long_texts_are_cut() -> None:
    d = rl.Direction(torch.ones(3), layer=1)
    reading = rl.Reading("word <i>\n" * 500, "no", "?", d, "test")
    plain, html = repr(reading), reading._repr_html_()
    assert len(plain) < 400
    assert "word <i> word <i>" in plain
    assert " ..." in plain
    assert len(html) < 3000
    assert "<i>" not in html
    assert reading.text in html.replace("&lt;", "<") or " ..." in html
    assert reading.text.count("word") == 500
