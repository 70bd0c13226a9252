"""How often role vectors are read as their role, beside nulls, for every reader and judge.

A judge that fails its calibration judges the first reader's texts only, for the agreement.

``python benchmarks/rates.py --paper FOLDER`` takes the paper's own prompts (subfolders
``role_prompts`` and ``base_prompts``); rolelens' own otherwise.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from measure import table

import rolelens as rl
from rolelens.patchscoping import (
    Addition,
    Embedding,
    LogitLens,
    Overlap,
    Reader,
    SelfIE,
    TokenIdentity,
    YesNo,
    agreement,
    answers,
    calibrate,
    tally,
    verdicts,
    vocabulary,
)

READERS: dict[str, Reader] = {
    "addition": Addition(max_new_tokens=20),
    "token identity": TokenIdentity(),
    "SelfIE": SelfIE(max_new_tokens=12),
    "logit lens": LogitLens(),
}


def main() -> None:
    """Print the calibrations, the rates over all roles, and those of each role."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paper", type=Path, help="a folder with the paper's prompts")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--every", type=int, default=1, help="read one layer in so many")
    given = parser.parse_args()
    lens = rl.load(given.model)
    folder = given.paper
    roles = rl.load_roles(folder / "role_prompts") if folder else rl.load_roles()
    generic = list(
        rl.load_base(folder / "base_prompts" / "train.json") if folder else rl.load_base()
    )
    base = generic[:128]
    top = int(0.8 * lens.n_layers)
    layers = range(1, top, given.every)
    vectors = rl.role_vectors(lens, roles, base, layers=layers, positions=[-1])
    nulls = rl.null_vectors(
        lens, roles, base, kinds=("gaussian", "shuffled"), n=1, layers=layers, positions=[-1]
    )
    words = vocabulary(roles, base)
    judges: list[Any] = [
        Overlap(words),
        Embedding(lens, words),
        YesNo(lens),
    ]
    tried = answers(lens, list(roles))
    known = {judge.name: calibrate(judge, tried) for judge in judges}
    print(f"{lens.name}: {len(roles)} roles, layers {layers[0]} to {layers[-1]}, position -1\n")
    for calibration in known.values():
        print(f"- {calibration}")
    print(flush=True)
    directions = [
        several[name].at(at)
        for several in (vectors, nulls)
        for name in several.names
        for at in layers
    ]
    summary, given_verdicts, best = [], {}, []
    for name, reader in READERS.items():
        readings = rl.patchscope(lens, directions, reader)
        for judge in judges:
            calibration = known[judge.name]
            first = name == next(iter(READERS))
            if not (first or calibration.trusted):
                continue
            judged = verdicts(readings, judge, calibration.threshold)
            if first:
                given_verdicts[judge.name] = judged["verdict"].tolist()
            if calibration.trusted:
                counts = tally(judged)
                best.append((f"{name}, {judge.name}", counts))
                summary.append({"reader": name, "judge": judge.name, **counts.iloc[-1]})
        print(f"({name}: read and judged)", file=sys.stderr, flush=True)
    columns = ["reader", "judge", "n", "rate", "low", "high", "nulls", "mismatched", "difference"]
    frame = pd.DataFrame(summary, columns=[*columns, "difference_low", "difference_high"])
    table(frame)
    table(agreement(given_verdicts))
    for name, counts in best[:1]:
        print(f"{name}:\n")
        table(counts.iloc[:-1, : len(counts.columns) - 2])


if __name__ == "__main__":
    main()
