"""How often a study claims something where nothing is: 201 roles, answers drawn at random.

The planted model of the tests, whose role decides the answers of one domain, is asked questions
whose correct options are drawn anew for every study; so no direction can help or hurt. It is
steered so strongly that many answers change: an exact test of few changed answers hardly ever
claims anything.
"""

import argparse
import random
import sys
from pathlib import Path

import pandas as pd
from scipy import stats
from transformer_lens.model_bridge import TransformerBridge

import rolelens as rl
from rolelens import evidence, progress

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import planted
import tiny

ROLES = {"mathematician": "math", "lawyer": "law", "painter": "art"}
QUESTIONS = 240
"""Of each domain; half of them are held out."""
ALPHA = 100.0


def size(discordant: int) -> float:
    """Share of false positives at 5 % that the exact test has with so many changed answers."""
    tails = 2 * stats.binom.cdf(range(discordant // 2 + 1), discordant, 0.5)
    return float(max((tail for tail in tails if tail < 0.05), default=0.0))


def main() -> None:
    """Print what was claimed, and the interval it has to be in."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=67)
    studies = parser.parse_args().studies
    model, tokenizer = planted.model(), tiny.tokenizer()
    bridge = TransformerBridge.boot_transformers(
        "planted", hf_model=model, tokenizer=tokenizer, device="cpu"
    )
    lens = rl.Lens(bridge)
    prompts = {role: planted.prompts(domain, 24) for role, domain in ROLES.items()}
    vectors = rl.role_vectors(lens, prompts, planted.prompts(None, 24))
    tables = []
    for seed in range(studies):
        rng = random.Random(seed)
        questions = [
            rl.Question(**(row | {"answer": rng.randrange(4)}))
            for row in planted.questions(QUESTIONS, seed)
        ]
        with progress.quiet():
            study = rl.study(
                lens,
                vectors,
                questions,
                ROLES,
                seed=seed,
                layers=[1, 2],
                positions=[-1],
                alphas=[ALPHA],
                ablated=0,
                anyway=True,
            )
        answers, effects = study.table("answers"), study.table()
        changed = evidence.changes(answers).abs()
        inside = answers["domain"] == answers["name"].map(ROLES)
        counts = changed[inside].groupby(answers["name"]).sum()
        tables.append(effects.assign(changed=effects["name"].map(counts)))
    table = pd.concat(tables, ignore_index=True)
    n = len(table)
    low, high = (int(end) for end in stats.binom.interval(0.95, n, 0.05))
    exact = sum(size(int(k)) for k in table["changed"]) / n
    print(
        "| what | roles | below 5 % | 95 % of the time, if it is 5 % | expected of the exact test |"
    )
    print("|---" * 5 + "|")
    claims = int((table["p"] < 0.05).sum())
    print(f"| McNemar p | {n} | {claims} | {low} to {high} | {n * exact:.1f} |")
    claims = int((table["interaction_p"] < 0.05).sum())
    print(f"| interaction p | {n} | {claims} | {low} to {high} | - |")
    holm = sum(bool((effects["p_holm"] < 0.05).any()) for effects in tables)
    low, high = (int(end) for end in stats.binom.interval(0.95, studies, 0.05))
    print(
        f"| any role of a study, Holm | {studies} studies | {holm} | {low} to {high} at most | - |"
    )


if __name__ == "__main__":
    main()
