"""When to try again, and which event is to blame: the pure rules of the sync."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain, repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.sync.policy import LONGEST_RETRY_AFTER, Ask, Backoff, Event, Uploads, retry_after

SATURDAY = 1795255200_000_000
"""2026-11-21T10:00:00Z."""


@given(st.lists(st.floats(0, 1), min_size=12, max_size=12))
def test_back_off_is_between_its_least_and_a_ceiling_that_doubles(draws: list[float]) -> None:
    """Every wait is drawn from the whole range; the range doubles up to its end, and a success resets it."""
    numbers = iter(draws)
    backoff = Backoff(lambda: next(numbers), first=1, most=30, least=0.5)
    for ceiling, draw in zip((1, 2, 4, 8, 16, 30, 30, 30), draws, strict=False):
        assert backoff.next() == pytest.approx(0.5 + draw * (ceiling - 0.5))
    backoff.reset()
    assert backoff.next() <= 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("²", None),
        ("0", 0),
        (" 120 ", 120),
        ("3601", LONGEST_RETRY_AFTER),
        ("9" * 5000, LONGEST_RETRY_AFTER),
        ("Sat, 21 Nov 2026 10:00:30 GMT", 30),
        ("Sat, 21 Nov 2026 10:00:30 -0000", 30),
        ("Saturday, 21-Nov-26 10:00:30 GMT", 30),
        ("Sat, 21 Nov 2026 09:00:00 GMT", 0),
        ("Sat, 21 Nov 2099 10:00:00 GMT", LONGEST_RETRY_AFTER),
        ("Sat, 99 Nov 2026 10:00:00 GMT", None),
        ("Sat, 21 Nov 2026 10:00:30 +9999", None),
    ],
)
def test_retry_after(text: str | None, seconds: float | None) -> None:
    """Seconds or a date, never less than none and never more than an hour; what cannot be read is none."""
    assert retry_after(text, SATURDAY) == seconds


@given(st.text(max_size=40))
def test_retry_after_of_anything(text: str) -> None:
    """Whatever a server writes there, it is a number within the bounds, or none."""
    seconds = retry_after(text, SATURDAY)
    assert seconds is None or 0 <= seconds <= LONGEST_RETRY_AFTER


# --- uploads ----------------------------------------------------------------------------------------


@dataclass
class Site:
    """A gate with events and a central that cannot take some of them, as far as the rules can see them."""

    last: int
    poisoned: set[int]
    mark: int = 0
    got: list[int] = field(default_factory=list)
    in_turn: list[int] = field(default_factory=list)
    """Those of them that were sent from the mark on."""
    aside: list[int] = field(default_factory=list)
    requests: int = 0
    largest: int = 0

    def outbox(self, ask: Ask) -> list[Event]:
        since = self.mark if ask.since is None else ask.since
        rest = (seq for seq in range(since + 1, self.last + 1) if seq not in self.aside)
        return [Event(7, seq) for seq, _ in zip(rest, range(ask.most), strict=False)]

    def take(self, sent: list[Event]) -> None:
        self.got += [event.seq for event in sent]
        self.advance()

    def set_aside(self, event: Event) -> None:
        self.aside.append(event.seq)
        self.advance()

    def advance(self) -> None:
        done = {*self.got, *self.aside}
        while self.mark + 1 in done:
            self.mark += 1

    def step(self, uploads: Uploads, weather: str) -> None:
        """One request, in that weather: ``up``, ``broken`` (500 to everything) or ``away`` (no answer)."""
        ask = uploads.ask()
        sent = self.outbox(ask)
        if not sent:
            uploads.nothing()
            return
        self.requests += 1
        self.largest = max(self.largest, len(sent))
        if weather in ("away", "slow"):
            uploads.no_answer(slow=weather == "slow")
        elif weather == "broken" or self.poisoned.intersection(event.seq for event in sent):
            blamed = uploads.refused(sent)
            if blamed is not None:
                self.set_aside(blamed)
        else:
            self.in_turn += [event.seq for event in sent if ask.since is None]
            self.take(sent)
            uploads.taken(sent)


STRETCHES = st.lists(
    st.one_of(
        st.tuples(st.just("up"), st.integers(2, 9)),
        st.tuples(st.sampled_from(["broken", "away", "slow"]), st.integers(1, 40)),
        st.tuples(st.just("away"), st.just(1)),
    ),
    max_size=12,
)


@settings(max_examples=150)
@given(st.integers(1, 60), st.sets(st.integers(1, 60), max_size=12), STRETCHES, st.sampled_from([2, 8, 1000]))
def test_exactly_the_poisoned_ones_are_set_aside(
    last: int, poisoned: set[int], stretches: list[tuple[str, int]], most: int
) -> None:
    """Whatever the central cannot take and whenever it is away or broken (coming back for two requests at
    least): all others arrive, in order, and no other is set aside."""
    site = Site(last, poisoned - {last})
    uploads = Uploads(most)
    weather = chain(chain.from_iterable(repeat(*stretch) for stretch in stretches), repeat("up"))
    for now in weather:
        if site.mark == last or site.requests > 3000:
            break
        site.step(uploads, now)
    assert site.aside == sorted(site.poisoned & set(range(1, last + 1)))
    assert site.in_turn == sorted(set(site.in_turn))  # only witnesses are sent before their turn, and twice
    assert set(site.got) == set(range(1, last + 1)) - site.poisoned


def test_an_hour_of_500s_sets_nothing_aside() -> None:
    """A central that refuses everything for an hour is to blame itself; the tries become rare, and
    afterwards everything arrives."""
    site, uploads = Site(5000, set()), Uploads()
    backoff = Backoff(lambda: 0.5, first=1, most=30)
    now = 0.0
    while now < 3600:
        site.step(uploads, "broken")
        now += backoff.next() if uploads.ask().calm else 0.5
    assert (site.aside, site.got) == ([], [])
    assert site.requests < 600
    while site.mark < site.last:
        site.step(uploads, "up")
    assert sorted(set(site.got)) == list(range(1, 5001))
    assert not site.aside


def test_the_only_event_waits_for_another() -> None:
    """An event that the central refuses is not set aside while nothing tells whether it takes others; when
    another has come, it is."""
    site, uploads = Site(1, {1}), Uploads()
    for _ in range(200):
        site.step(uploads, "up")
        assert not site.aside
    site.last = 2
    while site.mark < 2:
        site.step(uploads, "up")
    assert (site.aside, set(site.got)) == ([1], {2})


def test_a_row_of_poisoned_events_is_passed_quickly() -> None:
    """A thousand bad ones in a row cost a few requests each, and the batches grow again after them."""
    site, uploads = Site(5000, set(range(1001, 2001))), Uploads()
    while site.mark < site.last:
        site.step(uploads, "up")
    assert site.aside == list(range(1001, 2001))
    assert site.requests < 10_000
    assert site.largest == 1000


def test_one_that_is_too_large_is_not_tried_twice_in_a_batch() -> None:
    """413 halves at once, and a batch that is refused with 500 is first tried again as it is."""
    batch = [Event(7, seq) for seq in range(1, 9)]
    large, broken = Uploads(8), Uploads(8)
    large.refused(batch, too_large=True)
    assert large.ask() == Ask(4)
    broken.refused(batch)
    assert broken.ask() == Ask(8, calm=True)
    broken.refused(batch)
    assert broken.ask() == Ask(4)


def test_a_slow_line_gets_smaller_batches() -> None:
    """Time-outs make the batches smaller, down to a bound; each success makes them larger again."""
    site, uploads = Site(9000, set()), Uploads()
    for _ in range(20):
        site.step(uploads, "slow")
    assert uploads.ask().most == 30
    while site.mark < site.last:
        site.step(uploads, "up")
    assert (site.largest, uploads.ask().most, site.aside) == (1000, 1000, [])


def test_a_central_that_fails_at_random_is_not_believed_at_once() -> None:
    """One refusal between two successes is no proof: the suspect is refused between takings three times."""
    uploads, suspect, other = Uploads(1), [Event(7, 1)], [Event(7, 2)]
    uploads.refused(suspect)
    uploads.refused(suspect)
    for _ in range(2):
        assert uploads.ask() == Ask(1, since=1)
        uploads.taken(other)
        assert uploads.ask() == Ask(1)
        assert uploads.refused(suspect) is None
    uploads.taken(other)
    uploads.taken(suspect)  # the third time it works
    assert uploads.ask() == Ask(1)
    uploads.refused(suspect)
    assert uploads.refused(suspect) is None
