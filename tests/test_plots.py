import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import rolelens as rl
import tiny
from rolelens import plots
from rolelens.patchscoping import confusion, rates
from rolelens.stats import Projections, Separation
from rolelens.vectors import geometry
from rolelens.vectors.estimators import Labelled

RESULT = Separation("lawyer", (0, 4, 8), (0.5, 0.7, 0.9), (0.5, 0.6, 0.85), (0.5, 0.8, 0.95))


def test_separation_draws_the_numbers_it_was_given() -> None:
    figure = plots.separation([RESULT, RESULT])
    band, line = figure.data[0], figure.data[1]
    assert list(line.x) == [0, 4, 8]
    assert list(line.y) == [0.5, 0.7, 0.9]
    assert list(band.y) == [0.5, 0.8, 0.95, 0.85, 0.6, 0.5]
    assert figure.layout.xaxis.title.text == "layer"
    assert figure.data[1].line.color != figure.data[3].line.color


class Swept:
    """What a heatmap needs of a sweep."""

    baseline = SimpleNamespace(items=["?"] * 5, mean=lambda measure: 0.25)

    def __init__(self, positions: tuple = (-2, -1), gain: float = 1.0) -> None:
        rng = np.random.default_rng(0)
        cells = itertools.product("ab", (0, 1, 2), positions, (1.0, 3.0))
        rows = pd.DataFrame(cells, columns=["name", "layer", "position", "alpha"])
        self.rows = rows.assign(margin=0.0, margin_gain=gain * rng.normal(size=len(rows)))

    def table(self) -> pd.DataFrame:
        return self.rows


@pytest.fixture
def swept() -> Swept:
    return Swept()


def test_the_heatmap_draws_the_table(swept: Swept) -> None:
    figure = plots.heatmap(swept, "b", "margin_gain")
    table = swept.table()
    assert len(figure.data) == 2
    for panel, alpha in zip(figure.data, (1.0, 3.0), strict=True):
        for i, position in enumerate(panel.y):
            for j, layer in enumerate(panel.x):
                row = table[
                    (table["name"] == "b")
                    & (table["layer"] == int(layer))
                    & (table["position"] == int(position))
                    & (table["alpha"] == alpha)
                ]
                assert panel.z[i][j] == pytest.approx(row["margin_gain"].item())
    assert figure.layout.coloraxis.cmin == -figure.layout.coloraxis.cmax
    assert "5 items, unsteered margin 0.250" in figure.layout.title.text
    of_none = plots.heatmap(Swept((None,)), value="margin_gain")
    assert list(of_none.data[0].y) == ["none"]
    assert of_none.data[0].z[0][2] == Swept((None,)).rows["margin_gain"][4]
    nothing = plots.heatmap(Swept(gain=float("nan")), value="margin_gain")
    assert (nothing.layout.coloraxis.cmin, nothing.layout.coloraxis.cmax) == (-1, 1)


def test_projections_draw_both_groups() -> None:
    generator = torch.Generator().manual_seed(0)
    role, base = (torch.randn(n, 9, 4, generator=generator) for n in (20, 30))
    role[:, 0], base[:, 0] = 1.0, 1.0
    projected = rl.projections(role, base, name="lawyer")
    figure = plots.projections(projected)
    assert len(figure.data) == 12
    titles = [note.text for note in figure.layout.annotations]
    assert titles == [f"layer {n}" for n in (1, 2, 4, 5, 7, 8)]
    assert list(figure.data[0].x) == projected.positive[:, 1].tolist()
    assert list(figure.data[1].x) == projected.base[:, 1].tolist()
    with pytest.raises(rl.InputError, match="no layer 9"):
        plots.projections(projected, layers=[9])


def test_maps_and_norms_draw_what_they_are_given(llama: rl.Lens) -> None:
    vectors = rl.role_vectors(llama, {"a": tiny.PROMPTS, "b": tiny.OTHERS}, base=tiny.PROMPTS[:2])
    figure = plots.cosines(vectors, 2, -2)
    assert figure.data[0].z[0][1] == pytest.approx(float(vectors.cosines(2, -2)[0, 1]))
    assert list(figure.data[0].x) == ["a", "b"]
    lines = plots.norms(vectors, -1)
    assert list(lines.data[1].y) == pytest.approx(vectors.relative_norms()[1, :, -1].tolist())
    with pytest.raises(rl.InputError, match="no position 5"):
        plots.norms(vectors, 5)
    frame = pd.DataFrame([[0.5, 0.75]], index=[-1], columns=[3, 6])
    assert plots.separation_map(frame, "a").data[0].z[0][1] == 0.75


def test_what_cannot_be_drawn_is_refused(swept: Swept) -> None:
    with pytest.raises(rl.InputError, match="no name 'c'"):
        plots.heatmap(swept, "c")
    listed = Swept()
    listed.rows = listed.rows.assign(steering="add")
    with pytest.raises(rl.InputError, match="a list of steerings and no grid to draw"):
        plots.heatmap(listed)
    with pytest.raises(rl.InputError, match="no column 'marginn'; did you mean 'margin'"):
        plots.heatmap(swept, "a", "marginn")
    with pytest.raises(rl.InputError, match="no column 'layer'"):
        plots.heatmap(swept, "a", "layer")
    swept.rows = swept.rows[:0]
    with pytest.raises(rl.InputError, match="table of the sweep has no rows"):
        plots.heatmap(swept)
    zeros = Projections("a", (0,), torch.zeros(3, 1), torch.zeros(3, 1))
    with pytest.raises(rl.InputError, match="all projections of 'a' are zero"):
        plots.projections(zeros)
    with pytest.raises(rl.InputError, match="no separation to draw"):
        plots.separation([])
    with pytest.raises(rl.InputError, match="1 layers do not fit cosines of 2"):
        plots.agreement(torch.ones(2, 2), (3,))


@pytest.mark.parametrize(
    "figure",
    [
        plots.clustering,
        plots.confusion,
        plots.learning_curve,
        plots.magnitudes,
        plots.rates,
        plots.reliability,
        plots.separation_map,
        plots.transfer,
    ],
    ids=lambda figure: figure.__name__,
)
def test_empty_tables_are_refused(figure) -> None:
    with pytest.raises(rl.InputError, match="has no rows to draw; compute it of more"):
        figure(pd.DataFrame())


def test_geometry_is_drawn_as_computed() -> None:
    from test_geometry import DOMAINS, made

    vectors = made(shared=1.0, apart=1.0)
    result = geometry.pca(vectors, 2, -1)
    figure = plots.pca(result, DOMAINS)
    assert [trace.name for trace in figure.data] == ["x", "y"]
    drawn = {role: x for trace in figure.data for role, x in zip(trace.text, trace.x, strict=True)}
    assert drawn == dict(zip(result.names, result.coordinates[:, 0].tolist(), strict=True))
    with pytest.raises(rl.InputError, match="'e' has no domain"):
        plots.pca(result, dict.fromkeys("abcd", "x"))
    assert f"{result.explained[0]:.0%}" in figure.layout.xaxis.title.text
    table = geometry.clustering(vectors, DOMAINS, permutations=10)
    within, between = plots.clustering(table).data
    assert list(within.y) == table["within"].tolist()
    assert list(between.y) == table["between"].tolist()
    halves = geometry.reliability((vectors, made(1, shared=1.0)))
    figure = plots.reliability(halves, "without_shared")
    assert [trace.name for trace in figure.data] == list(vectors.names)
    assert list(figure.data[1].y) == halves.loc[halves["name"] == "b", "without_shared"].tolist()
    with pytest.raises(rl.InputError, match="no column 'mean'"):
        plots.reliability(halves, "mean")
    cosines = geometry.agreement(vectors)
    panel = plots.agreement(cosines, vectors.layers).data[0]
    assert panel.z[0][1] == pytest.approx(float(cosines[0, 1]))
    assert list(panel.x) == ["1", "2", "3"]


def test_the_learning_curve_has_its_band() -> None:
    drawn = torch.Generator().manual_seed(0)
    role, base = (torch.randn(40, 8, generator=drawn) + shift for shift in (1, 0))
    table = geometry.learning_curve(role, base, (4, 8, 16))
    band, curve = plots.learning_curve(table).data
    assert curve.hovertemplate.startswith("prompts %{x}: cosine")
    assert list(curve.y) == table["cosine"].tolist()
    assert list(band.y) == table["high"].tolist() + table["low"].tolist()[::-1]


def test_rates_and_confusion_are_drawn_as_computed() -> None:
    from test_rates import GOOD, Named, readings

    table = rates(readings(), Named(), GOOD)
    roles, nulls, others = plots.rates(table).data
    assert list(roles.y) == [*dict.fromkeys(table["name"])]
    assert list(roles.x) == table["rate"].tolist()
    assert list(roles.error_x.array) == (table["high"] - table["rate"]).tolist()
    assert nulls.x[0] == table["nulls"].iloc[0]
    assert list(others.x) == table["mismatched"].tolist()
    square = confusion(readings()[:-2], Named())
    panel = plots.confusion(square).data[0]
    assert panel.z.tolist() == square.to_numpy().tolist()


def test_magnitudes_are_drawn_as_computed() -> None:
    groups = torch.arange(12) % 6
    labelled = Labelled(torch.randn(12, 5), torch.randn(12, 5), groups, groups)
    table = geometry.magnitudes(labelled)
    assert list(plots.magnitudes(table).data[0].x) == table["magnitude"].tolist()
    assert list(plots.magnitudes(table).data[0].y) == table["consistency"].tolist()


def test_labels_of_crowded_roles_stand_apart() -> None:
    names = ("software engineer", "data scientist", "nurse")
    x = torch.tensor([[0.0, 0.0], [0.05, 0.0], [9.0, 9.0]])
    result = geometry.PCA(names, x, (0.6, 0.3), 1, -1)
    (trace,) = plots.pca(result).data
    assert trace.textposition[0] != trace.textposition[1]
    assert trace.textposition[2] == "top center"


def test_effects_are_drawn_in_units_of_the_largest_null() -> None:
    rows = [("q", "accuracy", 0.2, 0.1), ("q", "entropy", -0.3, 0.6), ("text", "perplexity", 9, 0)]
    table = pd.DataFrame(rows, columns=["task", "measure", "change", "null_most"])
    of_nulls = [(0, "q", "accuracy", -0.1), (1, "q", "accuracy", 0.05), (0, "q", "entropy", 0.6)]
    nulls = pd.DataFrame(of_nulls, columns=["null", "task", "measure", "change"])
    beside, own = plots.effects(table, nulls).data
    np.testing.assert_allclose(own.x, [2, -0.5, np.nan])
    assert list(own.y) == ["q accuracy", "q entropy", "text perplexity"]
    np.testing.assert_allclose(beside.x, [-1, 0.5, 1])
    two = pd.concat([table.assign(steering="a"), table.assign(steering="b")])
    both = plots.effects(two, pd.concat([nulls.assign(steering=s) for s in "ab"]))
    assert plots.svg(both).count("stroke-dasharray") == 2
    assert [trace.name for trace in both.data] == ["nulls", "a", "b"]
    assert len(both.data[0].x) == 3
    with pytest.raises(rl.InputError, match="no rows to draw"):
        plots.effects(table[:0], nulls)


def test_parts_are_drawn_beside_nulls() -> None:
    table = pd.DataFrame(
        {
            "kind": ["feature", "mlp"],
            "layer": [3, 2],
            "index": [7.0, np.nan],
            "predicted": [0.5, -0.1],
            "exact": [0.4, -0.2],
            "null": [0.1, 0.0],
            "null_most": [0.3, 0.1],
        }
    )
    exact, predicted, null = plots.parts(table).data
    assert list(exact.y) == ["feature 7, layer 3", "mlp, layer 2"]
    assert list(exact.x) == [0.4, -0.2]
    assert list(predicted.x) == [0.5, -0.1]
    np.testing.assert_allclose(null.x + null.error_x.array, [0.3, 0.1])
    np.testing.assert_allclose(null.x - null.error_x.arrayminus, [-0.3, -0.1])
    assert len(plots.parts(table.drop(columns=["null", "null_most"])).data) == 2
