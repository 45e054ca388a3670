"""The areas of a venue as a tree: which lie within which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gateway.model import HOUR, OUTSIDE, Area


@dataclass(slots=True, frozen=True)
class AreaAt:
    """An area with those around and inside it."""

    id: str
    up: tuple[str, ...]
    """Itself and every area that it lies within."""
    down: frozenset[str]
    """Itself and every area that lies within it."""
    capacity: int | None
    presence: int | None
    """How long presence lasts, microseconds; None: until the venue day ends."""


class Areas(dict[str, AreaAt]):
    """The tree of areas. An area that no record describes is an area without capacity."""

    def __init__(self, areas: Iterable[Area]) -> None:
        records = self.records = {area.id: area for area in areas}
        ups = {id_: _chain(id_, records) for id_ in records}
        super().__init__(
            (
                id_,
                AreaAt(
                    id_,
                    up,
                    frozenset(other for other, chain in ups.items() if id_ in chain),
                    records[id_].capacity,
                    None if (h := records[id_].presence_hours) is None else round(h * HOUR),
                ),
            )
            for id_, up in ups.items()
        )
        self.longest_presence = max((a.presence or 0 for a in self.values()), default=0)
        self[OUTSIDE] = AreaAt(OUTSIDE, (), frozenset((OUTSIDE,)), None, None)

    def __missing__(self, id_: str) -> AreaAt:
        # Named only as another's ``within``, by a point or by a usage record.
        down = {id_} | {a.id for a in self.values() if id_ in a.up}
        found = self[id_] = AreaAt(id_, (id_,), frozenset(down), None, None)
        return found

    def known(self) -> list[str]:
        """Every area that a record describes or a point leads to, without the street."""
        return [a for a in self if a != OUTSIDE]

    def capacities(self, area: str) -> tuple[tuple[str, int], ...]:
        """How many an area and each that it lies within may hold, where that is limited."""
        return tuple((a, c) for a in self[area].up if (c := self[a].capacity) is not None)

    def inside(self, areas: Iterable[str]) -> frozenset[str]:
        """These areas and all that lie within them."""
        return frozenset().union(*(self[a].down for a in areas))

    def is_exit(self, from_: str, to: str) -> bool:
        """Whether the way leads to the street or to an area that the first one lies within."""
        return to == OUTSIDE or (from_ != to and to in self[from_].up)


def _chain(id_: str, records: Mapping[str, Area]) -> tuple[str, ...]:
    chain = [id_]
    while (parent := records[chain[-1]].within if chain[-1] in records else None) is not None:
        if parent in chain or parent == OUTSIDE:
            break  # areas that lie within each other: the circle is cut where it closes
        chain.append(parent)
    return tuple(chain)
