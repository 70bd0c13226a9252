"""How well estimators find a known direction, where data are few, stretched or uneven.

Draws the figure of docs/roast.md: ``python benchmarks/recovery.py --out docs/recovery.png`` (the
ending says the format; images need ``kaleido``).
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from rolelens.errors import InputError
from rolelens.plots.style import line, styled
from rolelens.vectors.estimators import (
    LDA,
    DifferenceInMeans,
    Estimator,
    GroupedMean,
    Labelled,
    Logistic,
    MassMean,
    PairedPCA,
)

ESTIMATORS: Mapping[str, Estimator] = {
    "difference in means": DifferenceInMeans(),
    "grouped mean (ROAST)": GroupedMean(),
    "grouped mean, not normalised": GroupedMean(normalised=False),
    "PCA of differences": PairedPCA(),
    "logistic": Logistic(c=0.1),
    "mass mean": MassMean(),
    "LDA": LDA(),
}
CONDITIONS: Mapping[str, tuple[int | float, ...]] = {
    "questions": (10, 20, 40, 80, 160),
    "anisotropy": (0.0, 0.5, 1.0, 1.5, 2.0),
    "spread": (0.0, 0.5, 1.0, 1.5, 2.0),
}
"""What is varied, and the values it takes; the others then have their defaults."""
TITLES = {
    "questions": "questions",
    "anisotropy": "anisotropy of the noise",
    "spread": "unevenness of the questions",
}


def planted(
    questions: int = 40,
    anisotropy: float = 0.0,
    spread: float = 0.0,
    *,
    d: int = 64,
    rollouts: int = 8,
    shift: float = 1.5,
    offset: float = 1.0,
    seed: int = 0,
) -> tuple[Labelled, torch.Tensor]:
    """Gaussian activations of right and wrong answers whose true direction is known.

    An answer to question q is o_q + m_q (± shift/2 w + noise), the sign by whether it is right.

    Args:
        questions: how many; of the answers to each at least one is right and one is wrong, and how
            many are is drawn.
        anisotropy: how fast the variance of the noise falls off: that of the k-th of its (random)
            axes goes as k^-anisotropy; the total stays the same.
        spread: standard deviation of log m_q: how uneven the questions' magnitudes are.
        d: dimensions.
        rollouts: answers to a question.
        shift: distance of the two means, in standard deviations of isotropic noise.
        offset: standard deviation of o_q, where a question lies.
        seed: of everything.

    Returns:
        The activations, and w, of norm 1.
    """
    if questions < 1 or rollouts < 2:
        raise InputError(
            f"questions is {questions} and rollouts is {rollouts}; at least 1 and 2 are needed."
        )
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(d)
    w /= np.linalg.norm(w)
    variances = np.arange(1, d + 1) ** -float(anisotropy)
    variances *= d / variances.sum()
    axes = np.linalg.qr(rng.standard_normal((d, d)))[0]
    groups = np.arange(questions).repeat(rollouts)
    n_right = rng.integers(1, rollouts, size=questions)
    right = np.tile(np.arange(rollouts), questions) < n_right[groups]
    magnitude = np.exp(spread * rng.standard_normal(questions))[groups, None]
    where = offset * rng.standard_normal((questions, d))[groups]
    noise = rng.standard_normal((len(groups), d)) * np.sqrt(variances) @ axes.T
    x = where + magnitude * (np.where(right, 0.5, -0.5)[:, None] * shift * w + noise)
    activations, question = torch.from_numpy(x), torch.from_numpy(groups)
    labelled = Labelled(activations[right], activations[~right], question[right], question[~right])
    return labelled, torch.from_numpy(w)


def recovery(
    estimators: Mapping[str, Estimator] = ESTIMATORS,
    conditions: Mapping[str, Sequence[int | float]] = CONDITIONS,
    *,
    repeats: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """Cosine of every estimator's direction with the true one, under several conditions.

    Args:
        estimators: by name.
        conditions: values of ``questions``, ``anisotropy`` or ``spread`` of :func:`planted`.
        repeats: data sets for each value; the same ones for all estimators.
        seed: of the data.

    Returns:
        A row for each estimator and value: mean ``cosine`` over the repeats, and its 5 % and 95 %
        quantiles ``low`` and ``high``.
    """
    rows = []
    for varied, values in conditions.items():
        if varied not in CONDITIONS:
            raise InputError(f"{varied!r} cannot be varied; there are: {', '.join(CONDITIONS)}.")
        for value in values:
            given = {varied: int(value) if varied == "questions" else float(value)}
            drawn = [planted(**given, seed=seed + n) for n in range(repeats)]  # type: ignore[arg-type]
            for name, estimator in estimators.items():
                cosines = [
                    float(torch.cosine_similarity(estimator.fit(labelled), truth, dim=0))
                    for labelled, truth in drawn
                ]
                low, high = np.quantile(cosines, [0.05, 0.95])
                mean = float(np.mean(cosines))
                row = {"estimator": name, "varied": varied, "value": value}
                rows.append(row | {"cosine": mean, "low": low, "high": high})
    return pd.DataFrame(rows)


def drawing(table: pd.DataFrame) -> go.Figure:
    """Cosine of estimated directions with the true one, a panel for each thing that is varied.

    Args:
        table: from :func:`recovery`.
    """
    varied = list(dict.fromkeys(table["varied"]))
    figure = make_subplots(rows=1, cols=len(varied), shared_yaxes=True, horizontal_spacing=0.04)
    for column, name in enumerate(varied, 1):
        panel = table[table["varied"] == name]
        for n, (estimator, rows) in enumerate(panel.groupby("estimator", sort=False)):
            x, y = rows["value"].tolist(), rows["cosine"].tolist()
            trace = line(str(estimator), x, y, n, "cosine", along=TITLES[name])
            trace.showlegend = column == 1
            figure.add_trace(trace, row=1, col=column)
        figure.update_xaxes(title=TITLES[name], row=1, col=column)
        if name == "questions":
            figure.update_xaxes(type="log", tickvals=panel["value"].unique(), row=1, col=column)
    figure.update_yaxes(title="cosine with the true direction", row=1, col=1)
    styled(figure, "How well a planted direction is found", height=520)
    figure.update_layout(legend={"orientation": "h", "y": -0.22, "x": 0})
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/recovery.png"))
    parser.add_argument("--repeats", type=int, default=10, help="data sets for each value")
    options = parser.parse_args()
    figure = drawing(recovery(repeats=options.repeats))
    if options.out.suffix == ".html":
        figure.write_html(options.out)
    else:
        figure.write_image(options.out)
    print(f"{options.out} is drawn")


if __name__ == "__main__":
    main()
