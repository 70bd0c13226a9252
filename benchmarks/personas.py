"""Roles and traits over SmolLM2's own answers: what their directions say, beside chance.

``python benchmarks/personas.py DATA WORK``: DATA holds ``persona_space`` (``roles/``, ``traits/``
and ``questions.jsonl`` of 2601.10387) and the paper's ``role_prompts`` and ``base_prompts``; WORK
keeps what is answered and measured, and the same call goes on there. ``--only`` runs some stages.
"""

import argparse
import dataclasses
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from measure import table, timed
from scipy.stats import rankdata

import rolelens as rl
from rolelens import personas, prompts, stats
from rolelens.patchscoping import Embedding, Overlap, answers, vocabulary
from rolelens.personas import Asked, PersonaSpace, SelfJudge, answered
from rolelens.vectors.nulls import gaussian

LAYERS = (8, 13, 18)
"""Named before anything was measured: about a third, a half and three fifths of the depth."""
QUESTIONS = 20
"""Of the 240, drawn at random, that all roles are asked."""
TRAITS, FIT, UNSEEN = 20, 10, 6
"""Traits, and how many of a trait's questions its direction is made of and tried on."""
SYSTEMS = 3
"""Of a trait's five pairs of system prompts, those that its direction is made of."""
DRAWS = 50


def roles_stage(lens: rl.Lens, data: Path, work: Path, given: argparse.Namespace) -> None:
    """Directions of the roles over answers; the file of answers goes on where it stopped."""
    roles = prompts.load_traits(data / "persona_space" / "roles")
    names = sorted(name for name in roles if name != "default")
    if given.roles is not None:
        names = sorted(random.Random(0).sample(names, len(names))[: given.roles])
    questions = prompts.load_questions(data / "persona_space" / "questions.jsonl")
    start = time.perf_counter()
    found = personas.role_answers(
        lens,
        {name: roles[name] for name in ("default", *names)},
        random.Random(0).sample(questions, QUESTIONS)[: given.questions],
        layers=list(LAYERS) if given.few_layers else None,
        max_new_tokens=given.tokens,
        store=work / "answers.jsonl",
    )
    seconds = time.perf_counter() - start
    made = len(found.answers)
    print(f"{made} answers of {len(names)} roles and the default: {seconds:.0f} s\n", flush=True)
    personas.persona_space(found).save(work / "space.safetensors")


def space_stage(lens: rl.Lens, data: Path, work: Path, given: argparse.Namespace) -> None:
    """The space of the roles, beside its nulls, and the paper's roles in it."""
    space = PersonaSpace.load(work / "space.safetensors")
    print(f"{len(space.vectors.names)} roles\n")
    table(space.axis_table(list(LAYERS)), 3)
    alike = dataclasses.replace(space.vectors)
    halves = [half.directions[:, :, 0].double() for half in space.halves]
    split = torch.cosine_similarity(*halves, dim=-1)
    rest = [half - half.mean(dim=0) for half in halves]
    split_rest = torch.cosine_similarity(*rest, dim=-1)
    rows = []
    for layer in LAYERS:
        column = alike.layers.index(layer)
        both = zip(("whole", "without their mean"), (split, split_rest), strict=True)
        rows += [
            {
                "layer": layer,
                "roles": what,
                "split-half cosine, median": float(cosines[:, column].median()),
                "lowest": float(cosines[:, column].min()),
            }
            for what, cosines in both
        ]
    table(pd.DataFrame(rows), 3)
    for layer in LAYERS:
        print(f"layer {layer}\n")
        table(space.components(layer, 6), 3)
    layer = LAYERS[1]
    points = space.map(layer)
    table(points.sort_values("axis")[["name", "axis", "cluster", "nearest"]].iloc[[*range(12)]], 2)
    table(points.sort_values("axis")[["name", "axis", "cluster", "nearest"]].iloc[-12:], 2)
    vectors = _paper_vectors(lens, data, work)
    placed = space.place(vectors, layer)
    table(placed, 2)
    noise = space.place(gaussian(vectors, n=1), layer)
    low, high = stats.paired_bootstrap(placed["inside"].tolist())
    print(
        f"inside: {placed['inside'].mean():.3f} ({low:.3f} to {high:.3f}); of random directions "
        f"{noise['inside'].mean():.3f}; highest cosine {placed['cosine'].mean():.3f} and "
        f"{noise['cosine'].mean():.3f}\n",
        flush=True,
    )


def traits_stage(lens: rl.Lens, data: Path, work: Path, given: argparse.Namespace) -> None:
    """Whether the projection of a prompt's last token predicts what the answer shows."""
    traits = _traits(data, given.traits)
    made = _trait_vectors(lens, work, traits, given.tokens)
    tried = _tried(lens, work, traits, given.tokens)
    scores, calibrations = _scores(lens, made, tried)
    table(calibrations)
    print(f"split-half cosine by layer: {_reliability(made)}\n")
    states = rl.activations(
        lens, [_messages(one) for one in tried["asked"]], list(LAYERS), positions=[-1]
    )[:, :, 0]
    means = rl.activations(
        lens,
        [_messages(one) for one in tried["asked"]],
        list(LAYERS),
        positions="mean",
        answers=tried["answer"].tolist(),
    )
    rows = []
    for at, layer in enumerate(LAYERS):
        for where, x in (("prompt's last token", states), ("answer's mean", means)):
            for what in ("all", "within a side"):
                found = _correlations(made, x[:, at].double(), layer, tried, scores, what)
                rows.append({"layer": layer, "read at": where, "points": what, **found})
    table(pd.DataFrame(rows))


def flags_stage(lens: rl.Lens, data: Path, work: Path, given: argparse.Namespace) -> None:
    """Whether planted rows of a training set are told from the others."""
    traits = _traits(data, given.traits)
    made = _trait_vectors(lens, work, traits, given.tokens)
    tried = _tried(lens, work, traits, given.tokens)
    plain = [one for one in tried["asked"] if one.side == "none"]
    sampled = answered(
        lens,
        plain,
        max_new_tokens=given.tokens,
        temperature=0.8,
        seed=1,
        store=work / "sampled.jsonl",
    )
    own = {one.question: text for one, text in _pairs(tried) if one.side == "none"}
    ordinary = [(one, text) for one, text in zip(plain, sampled, strict=True) if text]
    planted = [(one, text) for one, text in _pairs(tried) if one.side == "positive" and text]
    layer, rng = LAYERS[1], random.Random(0)
    rows: list[dict[str, Any]] = []
    for name in traits:
        mine = [pair for pair in planted if pair[0].name == name]
        sets = {
            "its own answers, sampled": [pair for pair in ordinary if pair[0].name == name],
            "answers of other traits": rng.sample(
                [pair for pair in planted if pair[0].name != name], 2 * UNSEEN
            ),
        }
        everything = [*mine, *(pair for several in sets.values() for pair in several)]
        dataset = [{"prompt": one.question, "answer": text} for one, text in everything]
        theirs = [own[one.question] for one, _ in everything]
        d = made.vectors.direction(name, layer)
        flags = rl.flag(lens, dataset, d, own=theirs)
        start = len(mine)
        for against, several in sets.items():
            chosen = [*range(len(mine)), *range(start, start + len(several))]
            start += len(several)
            part = dataclasses.replace(flags, table=flags.table[flags.table["row"].isin(chosen)])
            row: dict[str, Any] = {"trait": name, "against": against}
            for by in ("shift", "projection"):
                row[by] = part.separates(range(len(mine)), by).auroc[0]
            rows.append(row)
        means = rl.activations(
            lens,
            [row["prompt"] for row in dataset],
            layers=[layer],
            positions="mean",
            answers=[row["answer"] for row in dataset],
        )[: len(mine) + len(sets["its own answers, sampled"]), 0].double()
        others = [made.vectors.direction(other, layer) for other in traits if other != name]
        for against, nulls in (
            ("null: other traits' directions", others),
            ("null: random directions", [d.random_like(seed) for seed in range(DRAWS)]),
        ):
            along = torch.stack([null.unit.double() @ means.T for null in nulls])
            aurocs = [_auroc(x[: len(mine)], x[len(mine) :]) for x in along]
            rows.append(
                {"trait": name, "against": against, "projection": float(np.mean(aurocs))}
                | {"size": float(np.mean([abs(value - 0.5) + 0.5 for value in aurocs]))}
            )
    frame = pd.DataFrame(rows)
    told = []
    for against, group in frame.groupby("against", sort=False):
        row = {"rows": against}
        for column in ("shift", "projection", "size"):
            row[column] = _interval(group[column].dropna().tolist())
        told.append(row)
    table(pd.DataFrame(told))
    hard = frame[frame["against"] == "answers of other traits"].sort_values("shift")
    table(hard[["trait", "shift", "projection"]])


def predictors_stage(lens: rl.Lens, data: Path, work: Path, given: argparse.Namespace) -> None:
    """Whether what predicts steering goes with what a study finds, over the paper's roles."""
    roles = rl.load_roles(data / "role_prompts")
    base = list(rl.load_base(data / "base_prompts" / "train.json"))[:64]
    names = list(roles)[: given.roles]
    vectors = _paper_vectors(lens, data, work)
    kept = work / "predictors.csv"
    known = pd.read_csv(kept) if kept.exists() else pd.DataFrame({"name": []})
    for name in [name for name in names if name not in set(known["name"])]:
        predicted = rl.steerability(
            lens,
            list(roles[name])[:64],
            base,
            name=name,
            layers=list(LAYERS),
            positions=[-1],
        )
        known = pd.concat([known, predicted])
        known.to_csv(kept, index=False)
    told = answers(lens, names, max_new_tokens=40)
    texts = dict.fromkeys(names, ())
    for role, text in zip(told.roles, told.prompted, strict=True):
        texts[role] = (*texts[role], text)
    kept = work / "studies.csv"
    found = pd.read_csv(kept) if kept.exists() else pd.DataFrame({"name": []})
    for name in [name for name in names if name not in set(found["name"])]:
        found = pd.concat([found, pd.DataFrame([_study(lens, vectors, name, texts)])])
        found.to_csv(kept, index=False)
    table(found.round(3), 3)
    rows = []
    for effect in ("gain", "beyond null", "beyond other roles' texts"):
        for predictor in ("agreement", "discriminability", "auroc", "norm"):
            both = found.merge(known, on=["name", "layer"])
            rho = stats.correlation(both[predictor].tolist(), both[effect].tolist())
            rows.append(
                {"effect": effect, "predictor": predictor, "roles": len(both)}
                | {"rho": rho.value, "low": rho.low, "high": rho.high, "p": rho.p}
            )
    table(pd.DataFrame(rows))


def suggest_stage(lens: rl.Lens, data: Path, work: Path, given: argparse.Namespace) -> None:
    """How long it takes to say where to begin, over all layers and positions."""
    roles, base = rl.load_roles(), list(rl.load_base())[:24]
    rows = []
    for name in ("nurse", "mathematician"):
        vectors = rl.role_vectors(lens, {name: list(roles[name])[:24]}, base)[name]
        busy = time.process_time()
        seconds, found = timed(lambda vectors=vectors: rl.suggest(lens, vectors, "mini"))
        busy = time.process_time() - busy
        rows.append({"role": name, "seconds": seconds, "processor": busy, "why": found.reason})
    table(pd.DataFrame(rows), 0)


STAGES = {
    "roles": roles_stage,
    "space": space_stage,
    "traits": traits_stage,
    "flags": flags_stage,
    "predictors": predictors_stage,
    "suggest": suggest_stage,
}


def _study(
    lens: rl.Lens, vectors: rl.Directions, name: str, texts: dict[str, Sequence[str]]
) -> dict[str, Any]:
    """What a study finds of one role: how much likelier texts in the role become."""
    task = rl.load_task(
        [rl.tasks.Text(f"{name} {n}", text) for n, text in enumerate(texts[name]) if text]
    )
    study = rl.study(
        lens,
        vectors[name],
        task,
        nulls=gaussian(vectors[name], n=4),
        layers=list(LAYERS),
        positions=[-1],
        alphas=[0.5, 1.0, 2.0],
    )
    (effect,) = study.effects
    cell = study.best(name)
    others = [text for other in texts if other != name for text in texts[other][:1] if text]
    elsewhere = rl.load_task([rl.tasks.Text(f"o{n}", text) for n, text in enumerate(others)])
    gains = [
        rl.evaluate(lens, elsewhere, hooks=hooks).measure(effect.measure).mean()
        for hooks in (cell.steering, [])
    ]
    nulls = study.table("nulls")
    change = (nulls["after"] - nulls["before"]).mean()
    return {
        "name": name,
        "layer": cell.steering.steps[0].direction.layer,
        "alpha": cell.steering.steps[0].alpha,
        "gain": effect.gain,
        "p": effect.p,
        "beyond null": effect.gain - change,
        "beyond other roles' texts": effect.gain - float(gains[0] - gains[1]),
    }


def _paper_vectors(lens: rl.Lens, data: Path, work: Path) -> rl.Directions:
    """Directions of the paper's roles over 64 prompts each."""
    kept = work / "paper.safetensors"
    if not kept.exists():
        roles = rl.load_roles(data / "role_prompts")
        base = list(rl.load_base(data / "base_prompts" / "train.json"))[:64]
        some = {name: list(texts)[:64] for name, texts in roles.items()}
        rl.role_vectors(lens, some, base, layers=list(LAYERS), positions=[-1]).save(kept)
    return rl.Directions.load(kept)


def _traits(data: Path, n: int) -> dict[str, rl.Trait]:
    traits = prompts.load_traits(data / "persona_space" / "traits")
    drawn = random.Random(0).sample(sorted(traits), len(traits))
    return {name: traits[name] for name in sorted(drawn[:n])}


def _asked_of(trait: rl.Trait) -> list[str]:
    """A trait's questions in random order: those it is made of, then those it is tried on."""
    return random.Random(trait.name).sample(trait.questions, FIT + UNSEEN)


def _trait_vectors(
    lens: rl.Lens, work: Path, traits: dict[str, rl.Trait], tokens: int
) -> personas.AnswerVectors:
    """Directions over answers to some questions under some system prompts; nothing is left out."""
    some = {
        name: dataclasses.replace(
            trait,
            positive=trait.positive[:SYSTEMS],
            negative=trait.negative[:SYSTEMS],
            questions=tuple(_asked_of(trait)[:FIT]),
        )
        for name, trait in traits.items()
    }
    return personas.trait_vectors(
        lens, some, layers=list(LAYERS), max_new_tokens=tokens, store=work / "traits.jsonl"
    )


def _tried(lens: rl.Lens, work: Path, traits: dict[str, rl.Trait], tokens: int) -> pd.DataFrame:
    """Answers to other questions, under other system prompts of both sides and under none."""
    asked = []
    for name, trait in traits.items():
        for n, question in enumerate(_asked_of(trait)[FIT:]):
            turn = SYSTEMS + n % (len(trait.positive) - SYSTEMS)
            asked += [
                Asked(name, "positive", trait.positive[turn], question),
                Asked(name, "none", "", question),
                Asked(name, "negative", trait.negative[turn], question),
            ]
    texts = answered(lens, asked, max_new_tokens=tokens, store=work / "tried.jsonl")
    frame = pd.DataFrame({"asked": asked, "answer": texts})
    frame["name"] = [one.name for one in asked]
    frame["side"] = [one.side for one in asked]
    return frame[frame["answer"] != ""].reset_index(drop=True)


def _scores(
    lens: rl.Lens, made: personas.AnswerVectors, tried: pd.DataFrame
) -> tuple[Any, pd.DataFrame]:
    """How much each answer shows its trait by words, and how far each judge tells the sides."""
    judged: dict[str, list[float]] = {"word overlap": [], "embedding overlap": [], "itself": []}
    for name in made.vectors.names:
        rows = made.answers[made.answers["name"] == name]
        sides = {
            side: rows.loc[rows["side"] == side, "answer"].tolist()
            for side in ("positive", "negative")
        }
        words = vocabulary(sides, [])
        texts = tried.loc[tried["name"] == name, "answer"].tolist()
        for judge in (Overlap(words), Embedding(lens, words)):
            both = [judge.score(texts, [side] * len(texts)) for side in sides]
            judged[judge.name] += [yes - no for yes, no in zip(*both, strict=True)]
    asked = [(rl.Trait(one.name, ("-",)), one.question, text) for one, text in _pairs(tried)]
    judged["itself"] = SelfJudge(lens).score(*map(list, zip(*asked, strict=True)))
    rows = []
    for judge_name, values in judged.items():
        aurocs = []
        for name in made.vectors.names:
            sides = [
                torch.tensor(np.array(values)[(tried["name"] == name) & (tried["side"] == side)])
                for side in ("positive", "negative")
            ]
            aurocs.append(_auroc(*sides))
        low, high = stats.paired_bootstrap(aurocs)
        rows.append({"judge": judge_name, "AUROC": np.mean(aurocs), "low": low, "high": high})
    return np.array(judged["word overlap"]), pd.DataFrame(rows)


def _correlations(
    made: personas.AnswerVectors,
    x: torch.Tensor,
    layer: int,
    tried: pd.DataFrame,
    scores: Any,
    what: str,
) -> dict[str, str]:
    """Rank correlation of projection and score, trait by trait, as a mean over traits."""
    names = made.vectors.names
    units = torch.stack([made.vectors.direction(name, layer).unit.double() for name in names])
    noise = torch.randn(DRAWS, x.shape[1], generator=torch.Generator().manual_seed(0)).double()
    own, others, random_sizes, other_sizes = [], [], [], []
    for n, name in enumerate(names):
        mine = np.array(tried["name"] == name)
        sides = tried["side"][mine].tolist()
        y = scores[mine]
        each = [(d @ x[mine].T).numpy() for d in (units, noise)]
        if what != "all":
            y = _within(y[None], sides)[0]
            each = [_within(values, sides) for values in each]
        rhos, random_rhos = (_rhos(values, y) for values in each)
        own.append(rhos[n])
        rest = np.delete(rhos, n)
        others.append(rest.mean())
        other_sizes.append(np.abs(rest).mean())
        random_sizes.append(np.abs(random_rhos).mean())
    beyond = [a - b for a, b in zip(own, other_sizes, strict=True)]
    return {
        "rho": _interval(own),
        "other traits": _interval(others),
        "other traits, size": _interval(other_sizes),
        "random, size": _interval(random_sizes),
        "rho minus size of others": _interval(beyond),
    }


def _within(values: Any, sides: Sequence[str]) -> Any:
    """Values without the mean of their side."""
    out = np.array(values, dtype=float)
    for side in set(sides):
        inside = np.array([one == side for one in sides])
        out[:, inside] -= out[:, inside].mean(axis=1, keepdims=True)
    return out


def _rhos(values: Any, y: Any) -> Any:
    """Spearman's rho of each row with the same scores."""
    ranks = rankdata(values, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    other = rankdata(y) - (len(y) + 1) / 2
    return ranks @ other / np.sqrt((ranks**2).sum(axis=1) * (other**2).sum())


def _auroc(positive: torch.Tensor, negative: torch.Tensor) -> float:
    above = (positive[:, None] > negative).double() + 0.5 * (positive[:, None] == negative)
    return float(above.mean())


def _reliability(made: personas.AnswerVectors) -> str:
    means = made.reliability().groupby("layer")["cosine"].median()
    return ", ".join(f"layer {layer} {value:.2f}" for layer, value in means.items())


def _interval(values: Sequence[float]) -> str:
    """A mean over traits with its 95 % bootstrap interval over traits."""
    if not len(values):
        return "-"
    low, high = stats.paired_bootstrap(list(values))
    return f"{np.mean(values):.2f} ({low:.2f} to {high:.2f})"


def _messages(one: Asked) -> list[dict[str, str]]:
    system = [{"role": "system", "content": one.system}] if one.system else []
    return [*system, {"role": "user", "content": one.question}]


def _pairs(tried: pd.DataFrame) -> list[tuple[Asked, str]]:
    return list(zip(tried["asked"], tried["answer"], strict=True))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--roles", type=int, help="that many of them, for a share of the time")
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--traits", type=int, default=TRAITS)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer at most")
    parser.add_argument("--few-layers", action="store_true", help=f"read layers {LAYERS} alone")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    lens = rl.load("smollm2", dtype=torch.float32)
    for name in given.only:
        seconds, _ = timed(lambda stage=STAGES[name]: stage(lens, given.data, given.work, given))
        print(f"({name}: {seconds:.0f} s)\n", flush=True)


if __name__ == "__main__":
    main()
