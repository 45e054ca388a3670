"""Movements that are recorded and not yet on disk, laid over the rows that are."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.model import Movement

_UNWRITTEN = 1 << 62
"""Stands for the number that a movement does not have yet, where movements are put in order."""


def by_time(movement: Movement) -> tuple[int, int]:
    return movement.at, _UNWRITTEN if movement.seq is None else movement.seq


def distinct(movements: Iterable[Movement]) -> list[Movement]:
    """Each movement once. Of two objects with one number the later says what is true now.

    The writer's thread may give a number meanwhile, so each object is asked for it only once.
    """
    known: dict[int, Movement] = {}
    for movement in {id(movement): movement for movement in movements}.values():
        seq = movement.seq
        known[id(movement) if seq is None else -seq] = movement
    return list(known.values())


def merge(found: list[Movement], waiting: Iterable[Movement], since: int) -> list[Movement]:
    """Rows with what is in memory over them, by time. ``waiting`` must be looked at after the query: the
    writer gives a number before it commits, so whatever the query saw can be told by its number."""
    overlay = distinct(movement for movement in waiting if movement.at >= since)
    if not overlay:
        return found
    hidden = {movement.seq for movement in overlay}
    merged = [movement for movement in found if movement.seq not in hidden]
    merged.extend(overlay)
    merged.sort(key=by_time)
    return merged


class Overlay:
    """By person (counted heads have none: they stand under None) and by entitlement."""

    __slots__ = ("entitlements", "persons")

    def __init__(self) -> None:
        self.persons: dict[str | None, list[Movement]] = {}
        self.entitlements: dict[str | None, list[Movement]] = {}

    def cover(self, movement: Movement) -> None:
        """One more event with this movement is on its way."""
        _add(self.persons, movement.person, movement)
        if movement.entitlement is not None:
            _add(self.entitlements, movement.entitlement, movement)

    def uncover(self, movement: Movement) -> None:
        """One event with this movement is on disk."""
        _remove(self.persons, movement.person, movement)
        if movement.entitlement is not None:
            _remove(self.entitlements, movement.entitlement, movement)

    def all(self) -> list[Movement]:
        return distinct(movement for movements in self.persons.values() for movement in movements)


def _add(overlay: dict[str | None, list[Movement]], key: str | None, movement: Movement) -> None:
    there = overlay.get(key)
    if there is None:
        overlay[key] = [movement]
    else:
        there.append(movement)


def _remove(overlay: dict[str | None, list[Movement]], key: str | None, movement: Movement) -> None:
    there = overlay[key]
    if len(there) == 1:
        del overlay[key]
    else:
        del there[next(place for place, other in enumerate(there) if other is movement)]
