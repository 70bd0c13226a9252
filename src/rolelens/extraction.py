"""Role vectors and their nulls, measured: difference-in-means of residual streams of prompts."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch

from rolelens import forward
from rolelens.activations import axes, streamed
from rolelens.errors import InputError, unknown
from rolelens.forward import Tokens
from rolelens.lens import Lens
from rolelens.progress import track
from rolelens.prompts import digest
from rolelens.vectors import RoleVectors, RunningMean, WeightedSums
from rolelens.vectors.controls import Halves, Kind, Nulls


def role_vectors(
    lens: Lens,
    roles: Mapping[str, Sequence[str]],
    base: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
) -> RoleVectors:
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
        InputError: an empty or single-prompt set, an unknown layer or position, or activations
            that are not finite.
    """
    return _measure(lens, _sets(roles, base), layers, positions)


def half_vectors(
    lens: Lens,
    roles: Mapping[str, Sequence[str]],
    base: Sequence[str],
    *,
    seed: int = 0,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
) -> tuple[RoleVectors, RoleVectors]:
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


def null_vectors(
    lens: Lens,
    roles: Mapping[str, Sequence[str]],
    base: Sequence[str],
    *,
    kinds: Sequence[Kind] = get_args(Kind),
    n: int = 4,
    norms: Literal["matched", "raw"] = "matched",
    seed: int = 0,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
) -> RoleVectors:
    """Null directions for roles: controls that are swept and evaluated exactly like a role.

    Every prompt runs once, whatever the number of nulls; memory does not grow with the number of
    prompts. What each kind holds fixed, and its caveats, are told in :mod:`rolelens.vectors.nulls`.

    Args:
        lens: the model.
        roles: prompts of each role, as for :func:`role_vectors`.
        base: prompts without a role.
        kinds: ``"gaussian"`` noise; ``"shuffled"`` labels of role and base prompts; one half of the
            ``"base"`` prompts against the other.
        n: nulls of each kind and role, named ``"shuffled 0 ~ lawyer"`` and so on.
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
    roles: Mapping[str, Sequence[str]],
    base: Sequence[str],
    *,
    null_roles: Sequence[str] | None = None,
    n: int = 1,
    seed: int = 0,
) -> tuple[RoleVectors, tuple[RoleVectors, RoleVectors], RoleVectors]:
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
    found = _measure(lens, sets, None, None, halves.sums, made.sums)
    return found, halves.of(found), made.of(found)


def system_vectors(
    lens: Lens,
    roles: Sequence[str],
    prompts: Sequence[str],
    *,
    system: str = "You are a {role}.",
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
) -> RoleVectors:
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
    tokens = {"base": lens.tokenize(prompts)}
    for role in roles:
        tokens[role] = lens.tokenize(prompts, system=system.replace("{role}", role))
    found = _contrast(lens, tokens, layers, positions)
    counted = dict.fromkeys(tokens, (len(prompts), digest(prompts)))
    contrast = f"prompts with the system prompt {system!r} - the same with the template's default"
    return dataclasses.replace(found, prompts=counted, contrast=contrast)


def _sets(roles: Mapping[str, Sequence[str]], base: Sequence[str]) -> dict[str, Sequence[str]]:
    """The prompts of ``"base"`` and of every role."""
    if not isinstance(roles, Mapping) or not roles:
        raise InputError("roles has to be a dict of at least one role, as from rl.load_roles().")
    _named(list(roles))
    sets = {"base": _several("base", base)}
    return sets | {name: _several(name, prompts) for name, prompts in roles.items()}


def _counts(sets: Mapping[str, Sequence[str]]) -> dict[str, int]:
    return {name: len(prompts) for name, prompts in sets.items()}


def _named(roles: Sequence[str]) -> None:
    if "base" in roles:
        raise InputError("a role cannot be called 'base'; that is the name of the base prompts.")
    if len(set(roles)) < len(roles):
        raise InputError(f"the roles are {list(roles)}; name each once.")


def _several(name: str, prompts: Sequence[str]) -> Sequence[str]:
    if isinstance(prompts, str) or len(prompts) < 2:
        raise InputError(
            f"the prompts of {name!r} are {str(prompts)[:40]!r}; a mean needs a list of at least "
            "two prompts."
        )
    return prompts


def _measure(
    lens: Lens,
    sets: Mapping[str, Sequence[str]],
    layers: Sequence[int] | None,
    positions: Sequence[int] | None,
    *sums: Mapping[str, WeightedSums],
) -> RoleVectors:
    tokens = {name: lens.tokenize(prompts) for name, prompts in sets.items()}
    found = _contrast(lens, tokens, layers, positions, *sums)
    counted = {name: (len(prompts), digest(prompts)) for name, prompts in sets.items()}
    return dataclasses.replace(found, prompts=counted)


def _contrast(
    lens: Lens,
    tokens: Mapping[str, Tokens],
    layers: Sequence[int] | None,
    positions: Sequence[int] | None,
    *sums: Mapping[str, WeightedSums],
) -> RoleVectors:
    """Mean of every set minus the mean of the set ``"base"``, which runs once.

    ``sums`` take in the sets of their name on the way.
    """
    layers, positions = axes(lens, layers, positions)
    norm = RunningMean()
    means = {name: RunningMean() for name in tokens}
    place = [(name, n) for name, own in tokens.items() for n in range(len(own))]
    every = Tokens.concat(list(tokens.values()))
    stream = streamed(lens, every, layers, positions)
    for rows, x in track(stream, "role vectors", total=len(forward.batches(every))):
        for name in dict.fromkeys(place[row][0] for row in rows):
            own = torch.tensor([place[row][0] == name for row in rows])
            means[name].add(x[own])
            prompts = torch.tensor([place[row][1] for row in rows[own]])
            for several in sums:
                if name in several:
                    several[name].add(x[own], prompts)
            if name == "base":
                norm.add(x[own].double().norm(dim=-1))
        forward.release_memory()
    nu = means.pop("base").mean
    return RoleVectors(
        directions=torch.stack([mean.mean - nu for mean in means.values()]).float().cpu(),
        roles=tuple(means),
        layers=tuple(layers),
        positions=tuple(positions),
        resid_norm=norm.mean.float().cpu(),
        source=lens.source,
    )
