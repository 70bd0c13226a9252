"""What every task has: items under a name, domains, and parts that share no item."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np

from rolelens.display import Card, Shown, cut
from rolelens.errors import InputError, checked_seed, unknown


@runtime_checkable
class Item(Protocol):
    """One thing that is asked."""

    @property
    def id(self) -> str:
        """Stable name."""

    @property
    def domain(self) -> str:
        """What it is about."""


I = TypeVar("I", bound=Item)  # noqa: E741
S = TypeVar("S", bound="Task[Any]")
"""A kind of task; beartype, which the tests run under, knows no ``Self`` in single methods."""
Metric: TypeAlias = Callable[[Any, Any], Any]
"""A number for an item and what the model answers: of a question the log-probabilities of its
options (nats, a tensor), of a problem the text, of a text its log-probability a token (nats)."""


@dataclasses.dataclass(frozen=True, repr=False)
class Task(Shown, Sequence[I], Generic[I]):
    """Items under a name.

    Attributes:
        name: of the task.
        items: what is asked, each with an id that no other has.

    Raises:
        InputError: there are no items, one is of another kind, or two share an id.
    """

    kind: ClassVar[type] = object
    name: str
    items: tuple[I, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", tuple(self.items))
        if not self.items:
            raise InputError(f"{self.name!r} has no items; at least one is needed.")
        ids: set[str] = set()
        for item in self.items:
            if not isinstance(item, self.kind):
                raise InputError(
                    f"{str(item)[:60]!r} in {self.name!r} is no {self.kind.__name__}; pass "
                    f"{self.kind.__name__} items."
                )
            if item.id in ids:
                raise InputError(
                    f"two items of {self.name!r} share the id {item.id!r}; give every item an id "
                    "that no other has."
                )
            ids.add(item.id)

    def card(self) -> Card:
        """Name, number of items, domains, and the first item."""
        names = self.domains
        facts = {
            "name": self.name,
            "items": str(len(self)),
            "domains": ", ".join(name or "none" for name in names[:8])
            + (", ..." if names[8:] else ""),
            "first": cut(str(getattr(self.items[0], "text", self.items[0])), 80),
        }
        return Card(type(self).__name__, facts, "rl.evaluate(lens, task), task.split()")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self)} items)"

    def __getitem__(self, index: int) -> I:  # type: ignore[override]
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[I]:
        return iter(self.items)

    def ties(self) -> list[list[object]]:
        """For each item, keys; items that share one, such as the same text, stay together."""
        return [[item.id] for item in self.items]

    def asked(self, item: I) -> object:
        """What is asked with an item, as plain values: what :attr:`sha` covers."""
        return dataclasses.asdict(item)  # type: ignore[call-overload]

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains, sorted."""
        return tuple(sorted({item.domain for item in self.items}))

    @property
    def sha(self) -> str:
        """Hash of everything that is asked; the name is not."""
        plain = [self.asked(item) for item in self.items]
        return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:16]

    def take(self: S, indices: Sequence[int], name: str | None = None) -> S:
        """Some of the items, under another name if one is given.

        Raises:
            InputError: there is no such item, or one is named twice.
        """
        for index in indices:
            if not 0 <= index < len(self):
                raise InputError(
                    f"{self.name!r} has no item {index}; it has items 0 to {len(self) - 1}."
                )
        chosen = tuple(self.items[index] for index in indices)
        return dataclasses.replace(self, items=chosen, name=name or self.name)

    def domain(self: S, *names: str) -> S:
        """The items of some domains.

        Raises:
            InputError: there is no such domain.
        """
        for name in names:
            if name not in self.domains:
                raise unknown("domain", name, self.domains)
        kept = [n for n, item in enumerate(self.items) if item.domain in names]
        return self.take(kept, f"{self.name}/{'+'.join(names)}")

    def split(self: S, share: float = 0.5, seed: int = 0) -> tuple[S, S]:
        """Cut into a selection part and a test part, the same share of every domain.

        Items that are tied, such as questions with the same text, stay on one side.

        Args:
            share: of the items that goes into the first part.
            seed: of the shuffling.

        Raises:
            InputError: a share that leaves a part empty.
        """
        first = self._share(share, seed)
        halves = [
            [n for n in range(len(self)) if (n in first) == inside] for inside in (True, False)
        ]
        if not all(halves):
            raise InputError(
                f"{len(self)} items in {len(self._tied())} groups that stay together and "
                f"{len(self.domains)} domains are too few to split with share {share}."
            )
        return (
            self.take(halves[0], f"{self.name}, selection"),
            self.take(halves[1], f"{self.name}, test"),
        )

    def folds(self: S, n: int, seed: int = 0) -> list[tuple[S, S]]:
        """Cut into ``n`` parts as :meth:`split` does; each is the test part once.

        Returns:
            Pairs of a selection part, the other folds, and a test part.

        Raises:
            InputError: fewer than 2 parts, or more than there are items.
        """
        if not isinstance(n, int) or not 2 <= n <= len(self):
            raise InputError(f"n is {n!r}; {len(self)} items make 2 to {len(self)} folds.")
        rest = self
        parts: list[set[str]] = []
        for left in range(n, 1, -1):
            part, rest = rest.split(1 / left, seed)
            parts.append({item.id for item in part})
        parts.append({item.id for item in rest})
        return [
            (
                self._where(part, False, f"{self.name}, all but fold {k}"),
                self._where(part, True, f"{self.name}, fold {k}"),
            )
            for k, part in enumerate(parts)
        ]

    def _where(self: S, ids: set[str], inside: bool, name: str) -> S:
        return self.take([n for n, item in enumerate(self) if (item.id in ids) == inside], name)

    def _share(self, share: float, seed: int) -> set[int]:
        """The items of the first part."""
        if not isinstance(share, int | float) or not 0 < share < 1:
            raise InputError(f"share is {share!r}; it has to be a number between 0 and 1.")
        rng = np.random.default_rng(checked_seed(seed))
        groups = self._tied()
        first: set[int] = set()
        for name in self.domains:
            here = [group for group in groups if self.items[group[0]].domain == name]
            wanted = round(share * sum(map(len, here)))
            taken = 0
            for index in rng.permutation(len(here)):
                if taken + len(here[index]) <= wanted:
                    first |= set(here[index])
                    taken += len(here[index])
        return first

    def _tied(self) -> list[list[int]]:
        """Groups of items that are tied, directly or through others."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        places: dict[object, int] = {}
        rows, columns = [], []
        for n, keys in enumerate(self.ties()):
            for key in keys:
                rows.append(n)
                columns.append(len(self) + places.setdefault(key, len(places)))
        size = len(self) + len(places)
        graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(size, size))
        _, labels = connected_components(graph, directed=False)
        groups: dict[int, list[int]] = {}
        for n, label in enumerate(labels[: len(self)].tolist()):
            groups.setdefault(label, []).append(n)
        return list(groups.values())


def checked_texts(
    kind: str, item: Any, filled: Sequence[str], others: Sequence[str] = ("domain",)
) -> None:
    """Refuse an item with a field that is no text, or that is empty and must not be.

    Args:
        kind: what the item is, for the error.
        item: the item.
        filled: names of the fields that hold more than blanks.
        others: names of the fields that may be empty.

    Raises:
        InputError: it has such a field.
    """
    for field in (*filled, *others):
        value = getattr(item, field)
        if not isinstance(value, str):
            raise InputError(f"{kind} {item.id!r} has the {field} {value!r}; pass a text.")
        if field in filled and not value.strip():
            raise InputError(f"{kind} {item.id!r} has an empty {field}; fill it in.")
