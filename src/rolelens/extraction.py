"""Difference-in-means of residual streams of prompts: contrasts, role vectors and their nulls."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from rolelens import forward
from rolelens.errors import InputError, unique, unknown
from rolelens.forward import Tokens
from rolelens.lens import Lens, Prompts
from rolelens.predictors import singles_of, with_foretold
from rolelens.progress import track
from rolelens.prompts import digest
from rolelens.residuals import known_layers, known_positions, streamed
from rolelens.vectors import Directions, RunningMean, WeightedSums
from rolelens.vectors.controls import Folds, Halves, Kind, Nulls

Sets: TypeAlias = Mapping[str, Prompts]
"""Prompts of each name; those of ``"base"`` are what the others are measured against."""


def contrast(
    lens: Lens,
    positive: Prompts,
    negative: Prompts,
    *,
    name: str = "contrast",
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    raw: bool = False,
    kind: str = "contrast",
) -> Directions:
    """Difference-in-means of the residual stream between any two sets of prompts.

    Mean over the positive prompts minus mean over the negative ones, accumulated in float64. With
    one prompt in each it is that of activation addition (2308.10248).

    Args:
        lens: the model.
        positive: what the direction points to: texts, conversations or tokens.
        negative: what it points away from; its mean residual norm is recorded.
        name: what the direction stands for.
        layers: all of them by default.
        positions: post-instruction positions by default, or the last token where there are none.
        raw: take the prompts as texts that stand alone, without the chat format.
        kind: what the name is, such as ``"trait"``.

    Returns:
        Directions of one name.

    Raises:
        InputError: a set without prompts, an unknown or repeated layer or position, the name
            ``"base"``, or activations that are not finite.
    """
    for side, prompts in (("positive", positive), ("negative", negative)):
        _several(side, prompts, 1)
    _named([name], kind)
    measured = _measure(lens, {"base": negative, name: positive}, layers, positions, raw=raw)
    which = "raw texts" if raw else "prompts"
    contrast = f"positive {which} - negative {which}"
    return dataclasses.replace(measured, contrast=contrast, kind=kind)


def role_vectors(
    lens: Lens,
    roles: Sets,
    base: Prompts,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
) -> Directions:
    """Difference-in-means of the residual stream between role and base prompts.

    d[role, layer, position] = mu - nu (2502.12055 eq. 1-2), accumulated in float64. Base prompts
    run once however many roles there are; memory does not grow with the number of prompts.

    Args:
        lens: the model.
        roles: prompts of each role, as from :func:`rolelens.load_roles`.
        base: prompts without a role, as from :func:`rolelens.load_base`.
        layers: all of them by default.
        positions: post-instruction positions by default.

    Raises:
        InputError: an empty or single-prompt set, an unknown or repeated layer or position, or
            activations that are not finite.
    """
    return _measure(lens, _sets(roles, base), layers, positions)


def half_vectors(
    lens: Lens,
    roles: Sets,
    base: Prompts,
    *,
    seed: int = 0,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
) -> tuple[Directions, Directions]:
    """Difference-in-means from one random half of the prompts, and from the other.

    The cosine of the two in a cell is the split-half reliability of the direction: near 1 where
    more prompts would not change it. Every prompt runs once.

    Args:
        lens: the model.
        roles: prompts of each role, as for :func:`role_vectors`.
        base: prompts without a role; they are cut in halves, too.
        seed: together with the name of a set it decides its halves.
        layers: all of them by default.
        positions: post-instruction positions by default.

    Raises:
        InputError: as for :func:`role_vectors`, or fewer than four prompts of a role or base.
    """
    sets = _sets(roles, base)
    halves = Halves(_counts(sets), seed)
    return halves.of(_measure(lens, sets, layers, positions, halves.sums))


def fold_vectors(
    lens: Lens,
    roles: Sets,
    base: Prompts,
    *,
    k: int = 5,
    seed: int = 0,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
) -> list[Directions]:
    """Difference-in-means made again from all folds of the prompts but one, for each fold.

    :func:`rolelens.evidence.study_folds` asks whether they have the same best cell and effect.
    Every prompt runs once.

    Args:
        lens: the model.
        roles: prompts of each role, as for :func:`role_vectors`.
        base: prompts without a role; they are cut into folds, too.
        k: how many folds.
        seed: together with the name of a set it decides its folds.
        layers: all of them by default.
        positions: post-instruction positions by default.

    Raises:
        InputError: as for :func:`role_vectors`, fewer than 2 folds, or fewer prompts than folds.
    """
    sets = _sets(roles, base)
    folds = Folds(_counts(sets), k, seed)
    return folds.of(_measure(lens, sets, layers, positions, folds.sums))


def null_vectors(
    lens: Lens,
    roles: Sets,
    base: Prompts,
    *,
    kinds: Sequence[Kind] = get_args(Kind),
    n: int = 4,
    norms: Literal["matched", "raw"] = "matched",
    seed: int = 0,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
) -> Directions:
    """Null directions for roles: controls that are swept and evaluated exactly like a role.

    Every prompt runs once, whatever the number of nulls; memory does not grow with the number of
    prompts. What each kind holds fixed, and its caveats, are told in :mod:`rolelens.vectors.nulls`.

    Args:
        lens: the model.
        roles: prompts of each role, as for :func:`role_vectors`.
        base: prompts without a role.
        kinds: ``"gaussian"`` noise; ``"shuffled"`` labels of role and base prompts; one half of the
            ``"base"`` prompts against the other.
        n: nulls of each kind and role, named ``"shuffled 0 ~ lawyer"`` and so on; what each
            imitates is in ``nulls`` of the result.
        norms: ``"matched"`` gives every null the norm of the role's direction in each cell, so that
            equal alphas are equal strengths (a zero stays zero); ``"raw"`` leaves ``"shuffled"``
            and ``"base"`` as estimated, the latter then being the same for all roles: ``"base 0"``.
        seed: together with kind, role and number it decides a null.
        layers: all of them by default.
        positions: post-instruction positions by default.

    Raises:
        InputError: as for :func:`role_vectors`; an unknown kind, or one named twice; ``n`` below 1;
            unknown ``norms``; a role with the name of a null.
    """
    sets = _sets(roles, base)
    made = Nulls(_counts(sets), tuple(roles), kinds, n, norms, seed)
    return made.of(_measure(lens, sets, layers, positions, made.sums))


def controlled_vectors(
    lens: Lens,
    roles: Sets,
    base: Prompts,
    *,
    null_roles: Sequence[str] | None = None,
    n: int = 1,
    seed: int = 0,
) -> tuple[Directions, tuple[Directions, Directions], Directions]:
    """Role vectors with their halves and their nulls, from one run of the prompts.

    Args:
        lens: the model.
        roles: prompts of each role.
        base: prompts without a role.
        null_roles: the roles that have nulls; all by default.
        n: nulls of each kind and role.
        seed: as for :func:`half_vectors` and :func:`null_vectors`.

    Returns:
        What :func:`role_vectors`, :func:`half_vectors` and :func:`null_vectors` return.

    Raises:
        InputError: as for these.
    """
    sets = _sets(roles, base)
    some = tuple(roles if null_roles is None else null_roles)
    for role in some:
        if role not in roles:
            raise unknown("role", role, roles)
    halves = Halves(_counts(sets), seed)
    made = Nulls(_counts(sets), some, get_args(Kind), n, "matched", seed)
    vectors = _measure(lens, sets, None, None, halves.sums, made.sums)
    return vectors, halves.of(vectors), made.of(vectors)


def system_vectors(
    lens: Lens,
    roles: Sequence[str],
    prompts: Prompts,
    *,
    system: str = "You are a {role}.",
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
) -> Directions:
    """Difference-in-means between the same prompts with and without a role as system prompt.

    "Without" keeps the template's default: some templates, SmolLM2's and Qwen's among them, put a
    system prompt of their own where none is given, which the role then replaces. Where the chat
    template refuses system prompts, the role is put before the prompt.

    Args:
        lens: the model.
        roles: names of the roles.
        prompts: what the user says, as from :func:`rolelens.load_base`.
        system: the system prompt, with ``{role}`` in it.
        layers: all of them by default.
        positions: post-instruction positions by default.

    Raises:
        InputError: as for :func:`role_vectors`, or ``system`` does not name the role.
    """
    if isinstance(roles, str) or not roles:
        raise InputError(f"roles is {roles!r}; pass a list of at least one name.")
    if "{role}" not in system:
        raise InputError(f"system is {system!r}; it has to contain '{{role}}'.")
    _named(roles)
    prompts = _several("base", prompts)
    tokens = {"base": lens.encode(prompts)}
    for role in roles:
        tokens[role] = lens.encode(prompts, system=system.replace("{role}", role))
    vectors = _difference(lens, tokens, layers, positions)
    counted = dict.fromkeys(tokens, _counted(prompts))
    contrast = f"prompts with the system prompt {system!r} - the same with the template's default"
    return dataclasses.replace(vectors, prompts=counted, contrast=contrast)


def _sets(roles: Sets, base: Prompts) -> dict[str, Prompts]:
    """The prompts of ``"base"`` and of every role."""
    if not isinstance(roles, Mapping) or not roles:
        raise InputError("roles has to be a dict of at least one role, as from rl.load_roles().")
    _named(list(roles))
    sets = {"base": _several("base", base)}
    return sets | {name: _several(name, prompts) for name, prompts in roles.items()}


def _counts(sets: Sets) -> dict[str, int]:
    return {name: len(prompts) for name, prompts in sets.items()}


def _named(names: Sequence[str], kind: str = "role") -> None:
    if "base" in names:
        raise InputError(
            f"a {kind} cannot be called 'base'; that is the name of the prompts it is measured "
            "against."
        )
    unique(kind, names)


def _several(name: str, prompts: Prompts, least: int = 2) -> Prompts:
    several = isinstance(prompts, Sequence | Tokens) and not isinstance(prompts, str)
    if not several or len(prompts) < least:
        need = f"a list of at least {'two prompts' if least == 2 else 'one prompt'}"
        raise InputError(f"the prompts of {name!r} are {str(prompts)[:40]!r}; a mean needs {need}.")
    return prompts


def _counted(prompts: Prompts) -> tuple[int, str]:
    """How many prompts there are, and their hash."""
    texts: list[Any] = list(prompts.ids if isinstance(prompts, Tokens) else prompts)
    return len(texts), digest(
        [text if isinstance(text, str) else json.dumps(text, sort_keys=True) for text in texts]
    )


def _measure(
    lens: Lens,
    sets: Sets,
    layers: Sequence[int] | None,
    positions: Sequence[int] | None,
    *sums: Mapping[str, WeightedSums],
    raw: bool = False,
) -> Directions:
    """The difference-in-means of every set to the set ``"base"``, with what is known of them."""
    tokens = {name: lens.encode(prompts, raw=raw) for name, prompts in sets.items()}
    vectors = _difference(lens, tokens, layers, positions, *sums)
    counted = {name: _counted(prompts) for name, prompts in sets.items()}
    return dataclasses.replace(vectors, prompts=counted)


def _difference(
    lens: Lens,
    tokens: Mapping[str, Tokens],
    layers: Sequence[int] | None,
    positions: Sequence[int] | None,
    *sums: Mapping[str, WeightedSums],
) -> Directions:
    """Mean of every set minus the mean of the set ``"base"``, which runs once.

    ``sums`` take in the sets of their name on the way.
    """
    if len({prompts.n_post for prompts in tokens.values()}) > 1:
        raise InputError(
            "some of these prompts are encoded with other post-instruction tokens than others "
            f"({', '.join(f'{name}: {part.n_post}' for name, part in tokens.items())}), so that "
            "their positions would not be the same; encode all of them alike."
        )
    whole = Tokens.concat(list(tokens.values()))
    layers, positions = known_layers(lens, layers), known_positions(whole, positions)
    norm = RunningMean()
    means = {name: RunningMean() for name in tokens}
    place = [(name, n) for name, prompts in tokens.items() for n in range(len(prompts))]
    stream = streamed(lens, whole, layers, positions)
    last = positions.index(max(positions))
    few = singles_of(len(tokens), len(layers), lens.d_model)
    singles: dict[str, list[Tensor]] = {name: [] for name in tokens}
    for rows, x in track(stream, "vectors", total=len(forward.batches(whole))):
        for name in dict.fromkeys(place[row][0] for row in rows):
            inside = torch.tensor([place[row][0] == name for row in rows])
            means[name].add(x[inside])
            prompts = torch.tensor([place[row][1] for row in rows[inside]])
            singles[name].append(x[inside][prompts < few, :, last].float().cpu())
            for weighted in sums:
                if name in weighted:
                    weighted[name].add(x[inside], prompts)
            if name == "base":
                norm.add(x[inside].double().norm(dim=-1))
        forward.release_memory()
    nu = means.pop("base").mean
    made = Directions(
        directions=torch.stack([mean.mean - nu for mean in means.values()]).float().cpu(),
        names=tuple(means),
        layers=tuple(layers),
        positions=tuple(positions),
        resid_norm=norm.mean.float().cpu(),
        source=lens.source,
    )
    base = torch.cat(singles.pop("base"))
    return with_foretold(made, {name: (torch.cat(own), base) for name, own in singles.items()})
