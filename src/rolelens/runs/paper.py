"""The experiment of 2502.12055 on any model, with what its claims need."""

import time
from pathlib import Path
from typing import Any

import pandas as pd

from rolelens import evidence, plots
from rolelens.activations import null_vectors, role_vectors
from rolelens.benchmarks import Benchmark, load_benchmark
from rolelens.evidence import Study
from rolelens.lens import Lens
from rolelens.progress import Say
from rolelens.prompts import RolePrompts, load_base, load_roles
from rolelens.report import Report
from rolelens.scoring import Method

TABLE_3 = {
    "role": "role",
    "domain": "domain",
    "questions": "held-out questions",
    "before": "unsteered",
    "after": "steered",
    "gain": "gain",
    "low": "95 % low",
    "high": "95 % high",
    "optimism": "optimism",
    "permuted": "gain, options permuted",
    "perplexity": "perplexity ratio",
    "p": "McNemar p",
    "p_holm": "p (Holm)",
    "p_bh": "p (BH)",
    "outside": "gain elsewhere",
    "interaction": "interaction",
    "interaction_p_holm": "its p (Holm)",
}
TABLE_5 = {
    "role": "role",
    "domain": "domain",
    "before": "unsteered",
    "after": "ablated",
    "gain": "change",
    "low": "95 % low",
    "high": "95 % high",
    "random": "random direction",
    "outside": "change elsewhere",
    "interaction": "interaction",
    "interaction_p_holm": "its p (Holm)",
}
PROMPTED = {
    "role": "role",
    "domain": "domain",
    "before": "unsteered",
    "after": "prompted",
    "gain": "gain",
    "low": "95 % low",
    "high": "95 % high",
    "p_holm": "p (Holm)",
}


def paper(
    lens: Lens,
    out: str | Path,
    *,
    data: str | Path | None = None,
    method: Method = "letter",
    n_nulls: int = 1,
    say: Say = print,
    **options: Any,
) -> Path:
    """Run the whole experiment, and report what survives.

    Args:
        lens: the model.
        out: folder for the vectors, the stores, the tables and the report. The same call goes on
            there.
        data: a folder with ``role_prompts``, ``base_prompts/train.json`` and
            ``mmlu_paper_split`` as in the authors' repository; the shipped prompts and questions
            by default.
        method: how options are scored.
        n_nulls: nulls of each kind for one role of each domain.
        say: takes what is told on the way.
        options: for :func:`rolelens.evidence.study`.

    Returns:
        Path of the report.
    """
    start, out = time.monotonic(), Path(out)
    roles, base, bench = _data(data)
    domains = {name: str(own.domain) for name, own in roles.items()}
    say(f"Vectors of {len(roles)} roles and their nulls")
    vectors = role_vectors(lens, roles, base)
    vectors.save(out / "vectors.safetensors")
    imitated = {domains[name]: name for name in reversed(roles)}.values()
    nulls = null_vectors(lens, {name: roles[name] for name in imitated}, base, n=n_nulls)
    folder = out / "stores"
    study = evidence.study(
        lens, vectors, bench, domains, nulls=nulls, method=method, folder=folder, say=say, **options
    )
    study.save(out / "tables")
    for line in study.verdicts:
        say(f"    {line}")
    path = _report(lens, study, bench, method).save(out / "report.html").resolve()
    say(f"Done in {(time.monotonic() - start) / 60:.1f} minutes. The report: {path}")
    return path


def _data(
    folder: str | Path | None,
) -> tuple[dict[str, RolePrompts], list[str], Benchmark]:
    if folder is None:
        return load_roles(), load_base(), load_benchmark("mini")
    root = Path(folder)
    roles = load_roles(root / "role_prompts")
    most = max(map(len, roles.values()))
    base = load_base(root / "base_prompts" / "train.json")[:most]
    return roles, base, load_benchmark(root / "mmlu_paper_split")


def _report(lens: Lens, study: Study, bench: Benchmark, method: Method) -> Report:
    report = Report(
        f"Role vectors in {lens.name}",
        f"Cells chosen on one part of {len(bench)} questions and tried on the rest; {method}.",
    )
    report.heading("What was found")
    for line in study.verdicts:
        report.verdict(line)
    report.heading("What the unsteered model can do")
    report.table(
        pd.DataFrame(
            [
                {
                    "domain": domain,
                    "questions": own.questions,
                    "accuracy": own.accuracy,
                    "95 % low": own.low,
                    "95 % high": own.high,
                    "guessing": own.chance,
                    "best constant letter": f"{own.letter} {own.constant:.3f}",
                    "detectable change": own.detectable,
                }
                for domain, own in study.headroom.items()
            ]
        )
    )
    if len(study.table):
        _findings(study, report)
    report.provenance(lens.source)
    return report


def _findings(study: Study, report: Report) -> None:
    report.heading("Role vectors on questions of their domain (the paper's Table 3)")
    report.text(
        "Optimism is the gain where the cell was chosen minus the gain on other questions. "
        "p-values are corrected over all roles. The interaction is the gain in the domain minus "
        "the gain in the others."
    )
    report.table(_columns(study.table, TABLE_3))
    report.heading("Every role in every domain")
    report.figure(plots.transfer(study.transfer))
    report.heading("Chosen cells, and nulls that were searched in the same way")
    report.text(
        "Strength is the norm of what is added, as a share of the norm of the residual stream. "
        "Rank is the share of the domain's nulls that gained as much margin where cells were "
        "chosen, the role itself counted: a description, which few nulls cannot make significant."
    )
    cells = study.chosen[~study.chosen["role"].str.contains(" ~ ")]
    names = ["role", "domain", "layer", "position", "alpha", "strength"]
    report.table(cells[[*names, "accuracy_gain", "margin_gain", "rank", "floor"]])
    if len(study.ablation):
        report.heading("Directions removed (the paper's Table 5)")
        report.table(_columns(study.ablation, TABLE_5))
    report.heading("The role as a prompt, without steering")
    report.table(_columns(study.prompted, PROMPTED))


def _columns(table: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    known = {old: new for old, new in names.items() if old in table}
    return table[list(known)].rename(columns=known)
