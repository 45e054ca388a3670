"""Who is where, as other gates' entries become known."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from gateway.crowd import Crowd
from gateway.model import SECOND, Area, Movement, Venue
from gateway.world import World

NOON = 1_800_000_000 * SECOND + 12 * 3600 * SECOND
AREAS = ("hall", "annex")
WORLD = World(Venue(), [Area("hall"), Area("annex"), Area("tower", within="hall")], (), (), ())


class Told:
    """What is known so far, as the judgement asks for it."""

    def __init__(self) -> None:
        self.movements: list[Movement] = []

    def person(self, person: str, since: int) -> Sequence[Movement]:
        return sorted((m for m in self.movements if m.person == person and m.at >= since), key=_at)

    def entitlement(self, _entitlement: str, _since: int) -> Sequence[Movement]:
        return ()


def _at(movement: Movement) -> int:
    return movement.at


WAYS = [
    ("outside", "hall"),
    ("hall", "outside"),
    ("hall", "tower"),
    ("outside", "annex"),
    ("annex", "outside"),
]


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from("ABC"), st.integers(0, 3000), st.sampled_from(WAYS)), max_size=8),
        max_size=6,
    )
)
def test_told_in_any_order_and_any_portions_people_are_where_their_movements_put_them(
    batches: list[list[tuple[str, int, tuple[str, str]]]],
) -> None:
    """Usage that arrives late, out of order and many at once counts as if known from the start."""
    told, number, taken = Told(), 0, set()
    crowd = Crowd(WORLD, told, {})
    crowd.rebuild([], NOON)
    for batch in batches:
        movements = []
        for person, second, (from_, to) in batch:
            if second in taken:
                continue  # two at one instant have no order that two readings must share
            taken.add(second)
            number += 1
            at = NOON - 3600 * SECOND + second * SECOND
            movements.append(Movement(at, from_, to, person, holder=person, source=f"south/1/{number}"))
        told.movements += movements  # the snapshot has all of a batch before any of it is counted
        crowd.happened(movements, NOON)
    afresh = Crowd(WORLD, told, {})
    afresh.rebuild(sorted(told.movements, key=_at), NOON)
    for area in (*AREAS, "tower"):
        assert crowd.count(area, NOON) == afresh.count(area, NOON)
