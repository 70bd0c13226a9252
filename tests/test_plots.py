import pandas as pd
import pytest
import torch

import rolelens as rl
import tiny
from rolelens.patchscope import confusion, rates
from rolelens.stats import Separation
from rolelens.vectors import geometry
from test_scoring import QUESTIONS

RESULT = Separation("lawyer", (0, 4, 8), (0.5, 0.7, 0.9), (0.5, 0.6, 0.85), (0.5, 0.8, 0.95))


def test_separation_draws_the_numbers_it_was_given() -> None:
    figure = rl.plots.separation([RESULT, RESULT])
    band, line = figure.data[0], figure.data[1]
    assert list(line.x) == [0, 4, 8]
    assert list(line.y) == [0.5, 0.7, 0.9]
    assert list(band.y) == [0.5, 0.8, 0.95, 0.85, 0.6, 0.5]
    assert figure.layout.xaxis.title.text == "layer"
    assert figure.data[1].line.color != figure.data[3].line.color


@pytest.fixture
def swept(llama: rl.Lens) -> rl.Sweep:
    vectors = rl.role_vectors(llama, {"a": tiny.PROMPTS, "b": tiny.OTHERS}, base=tiny.PROMPTS[:2])
    return rl.sweep(llama, vectors, QUESTIONS, positions=[-2, -1])


def test_the_heatmap_draws_the_table(swept: rl.Sweep) -> None:
    figure = rl.plots.heatmap(swept, "b", "margin_gain")
    table = swept.table()
    assert len(figure.data) == 2
    for panel, alpha in zip(figure.data, (1.0, 3.0), strict=True):
        for i, position in enumerate(panel.y):
            for j, layer in enumerate(panel.x):
                row = table[
                    (table["role"] == "b")
                    & (table["layer"] == int(layer))
                    & (table["position"] == int(position))
                    & (table["alpha"] == alpha)
                ]
                assert panel.z[i][j] == pytest.approx(row["margin_gain"].item())
    assert figure.layout.coloraxis.cmin == -figure.layout.coloraxis.cmax


def test_projections_draw_both_groups() -> None:
    generator = torch.Generator().manual_seed(0)
    role, base = (torch.randn(n, 9, 4, generator=generator) for n in (20, 30))
    role[:, 0], base[:, 0] = 1.0, 1.0
    projected = rl.projections(role, base, role="lawyer")
    figure = rl.plots.projections(projected)
    assert len(figure.data) == 12
    titles = [note.text for note in figure.layout.annotations]
    assert titles == [f"layer {n}" for n in (1, 2, 4, 5, 7, 8)]
    assert list(figure.data[0].x) == projected.of_role[:, 1].tolist()
    assert list(figure.data[1].x) == projected.of_base[:, 1].tolist()
    with pytest.raises(rl.InputError, match="no layer 9"):
        rl.plots.projections(projected, layers=[9])


def test_maps_and_norms_draw_what_they_are_given(llama: rl.Lens) -> None:
    vectors = rl.role_vectors(llama, {"a": tiny.PROMPTS, "b": tiny.OTHERS}, base=tiny.PROMPTS[:2])
    figure = rl.plots.cosines(vectors, 2, -2)
    assert figure.data[0].z[0][1] == pytest.approx(float(vectors.cosines(2, -2)[0, 1]))
    assert list(figure.data[0].x) == ["a", "b"]
    lines = rl.plots.norms(vectors, -1)
    assert list(lines.data[1].y) == pytest.approx(vectors.relative_norms()[1, :, -1].tolist())
    with pytest.raises(rl.InputError, match="no position 5"):
        rl.plots.norms(vectors, 5)
    frame = pd.DataFrame([[0.5, 0.75]], index=[-1], columns=[3, 6])
    assert rl.plots.separation_map(frame, "a").data[0].z[0][1] == 0.75


def test_what_cannot_be_drawn_is_refused(swept: rl.Sweep) -> None:
    with pytest.raises(rl.InputError, match="no role 'c'"):
        rl.plots.heatmap(swept, "c")
    with pytest.raises(rl.InputError, match="no column 'marginn'; did you mean 'margin'"):
        rl.plots.heatmap(swept, "a", "marginn")


def test_geometry_is_drawn_as_computed() -> None:
    from test_geometry import DOMAINS, made

    vectors = made(shared=1.0, apart=1.0)
    found = geometry.pca(vectors, 2, -1)
    figure = rl.plots.pca(found, DOMAINS)
    assert [trace.name for trace in figure.data] == ["x", "y"]
    drawn = {role: x for trace in figure.data for role, x in zip(trace.text, trace.x, strict=True)}
    assert drawn == dict(zip(found.table["role"], found.table["x"], strict=True))
    assert f"{found.explained[0]:.0%}" in figure.layout.xaxis.title.text
    table = geometry.clustering(vectors, DOMAINS, permutations=10)
    within, between = rl.plots.clustering(table).data
    assert list(within.y) == table["within"].tolist()
    assert list(between.y) == table["between"].tolist()
    halves = geometry.reliability((vectors, made(1, shared=1.0)))
    figure = rl.plots.reliability(halves, "own")
    assert [trace.name for trace in figure.data] == list(vectors.roles)
    assert list(figure.data[1].y) == halves.loc[halves["role"] == "b", "own"].tolist()
    with pytest.raises(rl.InputError, match="no column 'mean'"):
        rl.plots.reliability(halves, "mean")
    cosines = geometry.agreement(vectors)
    panel = rl.plots.agreement(cosines, vectors.layers).data[0]
    assert panel.z[0][1] == pytest.approx(float(cosines[0, 1]))
    assert list(panel.x) == ["1", "2", "3"]


def test_the_learning_curve_has_its_band() -> None:
    drawn = torch.Generator().manual_seed(0)
    role, base = (torch.randn(40, 8, generator=drawn) + shift for shift in (1, 0))
    table = geometry.learning_curve(role, base, (4, 8, 16))
    band, curve = rl.plots.learning_curve(table).data
    assert curve.hovertemplate.startswith("prompts %{x}: cosine")
    assert list(curve.y) == table["cosine"].tolist()
    assert list(band.y) == table["high"].tolist() + table["low"].tolist()[::-1]


def test_rates_and_confusion_are_drawn_as_computed() -> None:
    from test_rates import GOOD, Named, readings

    table = rates(readings(), Named(), GOOD)
    own, nulls, others = rl.plots.rates(table).data
    assert list(own.y) == [*dict.fromkeys(table["role"])]
    assert list(own.x) == table["rate"].tolist()
    assert list(own.error_x.array) == (table["high"] - table["rate"]).tolist()
    assert nulls.x[0] == table["nulls"].iloc[0]
    assert list(others.x) == table["mismatched"].tolist()
    square = confusion(readings()[:-2], Named())
    panel = rl.plots.confusion(square).data[0]
    assert panel.z.tolist() == square.to_numpy().tolist()


def test_labels_of_crowded_roles_stand_apart() -> None:
    rows = [("software engineer", 0.0, 0.0), ("data scientist", 0.05, 0.0), ("nurse", 9.0, 9.0)]
    found = geometry.PCA(pd.DataFrame(rows, columns=["role", "x", "y"]), (0.6, 0.3))
    (trace,) = rl.plots.pca(found).data
    assert trace.textposition[0] != trace.textposition[1]
    assert trace.textposition[2] == "top center"
