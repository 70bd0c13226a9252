"""Questions that cells are chosen on, others that they are tried on, and all that is tried."""

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from rolelens.benchmarks import Benchmark, Question
from rolelens.evidence.effects import answered
from rolelens.forward import Selection
from rolelens.hooks import add
from rolelens.lens import Lens
from rolelens.scoring import Method, Scores, evaluate, perplexity
from rolelens.sweep import Key, score_cells, search
from rolelens.vectors import RoleVectors, concat
from rolelens.vectors.nulls import factor, imitated

Stores = Callable[[str], Path | None]
PROMPT = "You are a {role}."
READ = 2048
"""Tokens of the text whose perplexity is measured."""


@dataclass(frozen=True)
class Fold:
    """Questions that cells are chosen on, questions they are tried on, and what is tried."""

    lens: Lens
    vectors: RoleVectors
    roles: Sequence[str]
    places: Mapping[str, str]
    selection: Benchmark
    test: Benchmark
    tokens: Selection
    method: Method
    seed: int
    number: int
    store: Stores

    def searched(self, grid: Mapping[str, Any]) -> tuple[pd.DataFrame, dict[str, Key]]:
        """The best cell of every role and null."""
        found = search(
            self.lens,
            self.vectors,
            self.selection,
            domains=self.places,
            **grid,
            tokens=self.tokens,
            method=self.method,
            seed=self.seed,
            store=self.store(f"search-{self.number}"),
        )
        best = found.table[found.table["chosen"]].assign(fold=self.number)
        cells = {role: found.best(role) for role in self.vectors.roles}
        keys = {
            role: Key(role, cell.direction.layer, cell.direction.position or -1, cell.alpha)
            for role, cell in cells.items()
        }
        return best.drop(columns=["chosen", "predicted"]), keys

    def tried(self, keys: Mapping[str, Key]) -> tuple[Scores, list[pd.DataFrame]]:
        """The chosen cells of the roles, in all domains."""
        cells = [keys[role] for role in self.roles]
        return self._scored("test", self.vectors, self.test, cells, tokens=self.tokens)

    def permuted(self, keys: Mapping[str, Key]) -> list[pd.DataFrame]:
        """The chosen cells of the roles, in their domains, with the options in another order."""
        frames = []
        for domain, roles in self._by_domain(self.roles).items():
            asked = self.test.domain(domain).permuted(self.seed)
            cells = [keys[role] for role in roles]
            name = f"permuted-{domain}"
            frames += self._scored(name, self.vectors, asked, cells, tokens=self.tokens)[1]
        return frames

    def disturbed(self, keys: Mapping[str, Key]) -> list[pd.DataFrame]:
        """Nulls in the chosen cells of the roles (``beside``), as strong, in the roles' domains."""
        frames = []
        nulls = self._by_domain([name for name in self.vectors.roles if imitated(name)])
        for domain, roles in self._by_domain(self.roles).items():
            pairs = [(role, null) for role in roles for null in nulls.get(domain, ())]
            if not pairs:
                continue
            asked = self.test.domain(domain)
            cells = [self._instead(null, keys[role]) for role, null in pairs]
            name = f"nulls-{domain}"
            found = self._scored(name, self.vectors, asked, cells, tokens=self.tokens)[1]
            frames += [own.assign(beside=role) for (role, _), own in zip(pairs, found, strict=True)]
        return frames

    def _by_domain(self, names: Sequence[str]) -> dict[str, list[str]]:
        """Roles or nulls, by their domain."""
        found: dict[str, list[str]] = {}
        for name in names:
            found.setdefault(self.places[name], []).append(name)
        return found

    def _instead(self, null: str, key: Key) -> Key:
        """The cell of a role, with a null in its place that is as strong."""
        scale = factor(self.vectors, null, key.role, key.layer, key.position)
        return key._replace(role=null, alpha=key.alpha * scale)

    def read(self, keys: Mapping[str, Key], text: str) -> pd.DataFrame:
        """How much less well a text is predicted in the chosen cells."""
        plain = perplexity(self.lens, text, max_tokens=READ).value
        rows = []
        for role in self.roles:
            _, layer, position, alpha = keys[role]
            d = self.vectors.direction(role, layer, position)
            steered = perplexity(self.lens, text, add(d, alpha), max_tokens=READ).value
            rows.append({"role": role, "perplexity": steered / plain})
        return pd.DataFrame(rows)

    def ablated(self, keys: Mapping[str, Key], most: int, randoms: int) -> list[pd.DataFrame]:
        """The chosen directions removed, and random ones, on some questions of each domain."""
        kept = [q for d in self.test.domains for q in self._some(d, most)]
        drawn = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(randoms, *self.vectors.directions.shape[1:], generator=drawn)
        names = tuple(f"random {n}" for n in range(randoms))
        beside = dataclasses.replace(
            self.vectors, directions=noise, roles=names, contrast="random directions"
        )
        own = self.vectors[list(self.roles)]
        cells = [keys[role]._replace(alpha=1.0) for role in self.roles]
        cells += [cells[0]._replace(role=name) for name in names]
        vectors = concat(own, beside) if randoms else own
        asked = Benchmark(f"{self.test.name}, {most} a domain", tuple(kept))
        return self._scored("ablation", vectors, asked, cells, change="ablate")[1]

    def _scored(
        self, name: str, vectors: RoleVectors, asked: Benchmark, cells: list[Key], **options: Any
    ) -> tuple[Scores, list[pd.DataFrame]]:
        """The scores of the unsteered model, and the answers in every cell."""
        store = self.store(f"{name}-{self.number}")
        before, after = score_cells(
            self.lens, vectors, asked, cells, method=self.method, store=store, **options
        )
        return before, [answered(key.role, before, after[key]) for key in cells]

    def _some(self, domain: str, most: int) -> list[Question]:
        """Questions of a domain, drawn from all of its subjects."""
        own = self.test.domain(domain).questions
        drawn = random.Random(f"{self.seed} {domain}").sample(range(len(own)), min(most, len(own)))
        return [own[n] for n in sorted(drawn)]

    def prompted(self, before: Scores) -> list[pd.DataFrame]:
        """Every role as a prompt, on the questions of its domain: as system prompt and as prefix.

        Where the chat template refuses system prompts, the two are one.
        """
        frames = []
        for role in self.roles:
            domain, text = self.places[role], PROMPT.format(role=role)
            forms: dict[str, dict[str, Any]] = {"prefix": {"prefix": f"{text}\n\n"}}
            if self.lens.chat.takes_system:
                forms["system"] = {"system": text}
            for form, said in forms.items():
                told = evaluate(self.lens, self.test.domain(domain), method=self.method, **said)
                frames.append(answered(role, before.domain(domain), told).assign(form=form))
        return frames
