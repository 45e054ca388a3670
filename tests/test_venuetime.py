"""The venue's calendar: days, bounds and daylight saving."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.model import HOUR, MINUTE
from gateway.venuetime import DAY, Calendar, instant, utc

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia")
FIRST, LAST = (instant(datetime(year, 1, 1, tzinfo=UTC)) for year in (2011, 2030))
instants = st.integers(FIRST, LAST)


def at(text: str) -> int:
    return instant(datetime.fromisoformat(text))


def day(text: str) -> int:
    return date.fromisoformat(text).toordinal()


def test_a_venue_day_runs_from_its_start_to_the_next() -> None:
    """With the day at 04:00, 01:30 on Saturday belongs to Friday."""
    calendar = Calendar("Europe/Berlin", 4 * 60)
    assert calendar.day(at("2026-11-28T01:30:00+01:00")) == day("2026-11-27")
    assert calendar.day(at("2026-11-28T03:59:59.999999+01:00")) == day("2026-11-27")
    assert calendar.day(at("2026-11-28T04:00:00+01:00")) == day("2026-11-28")


@pytest.mark.parametrize(
    ("starts", "text"),
    [
        (2 * 60 + 30, "2026-03-29T03:00:00+02:00"),  # jumped over: at the jump
        (2 * 60 + 30, "2026-10-25T02:30:00+02:00"),  # comes twice: at the first
        (0, "2026-03-29T00:00:00+01:00"),
    ],
)
def test_a_day_that_begins_while_the_clock_changes(starts: int, text: str) -> None:
    """A start that the clock jumps over is the jump, one that comes twice is the first."""
    calendar = Calendar("Europe/Berlin", starts)
    assert calendar.day_start(day(text[:10])) == at(text)


def test_the_second_time_of_a_double_hour_is_still_the_new_day() -> None:
    """After the day has begun, the clock that is put back does not bring the day before back."""
    calendar = Calendar("Europe/Berlin", 2 * 60 + 30)
    assert calendar.day(at("2026-10-25T02:40:00+02:00")) == day("2026-10-25")
    assert calendar.day(at("2026-10-25T02:10:00+01:00")) == day("2026-10-25")


@pytest.mark.parametrize(("text", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-06-01", 24)])
def test_days_have_the_hours_that_they_have(text: str, hours: int) -> None:
    """A day on which clocks change is an hour shorter or longer."""
    calendar = Calendar("Europe/Berlin")
    assert calendar.day_start(day(text) + 1) - calendar.day_start(day(text)) == hours * HOUR


@given(st.sampled_from(ZONES), st.integers(0, 23 * 60 + 59), instants)
def test_every_instant_lies_in_its_day(zone: str, starts: int, when: int) -> None:
    """Days follow each other without gap or overlap, in every zone."""
    calendar = Calendar(zone, starts)
    found = calendar.day(when)
    assert calendar.day_start(found) <= when < calendar.day_start(found + 1)


@given(st.sampled_from(ZONES), st.lists(instants, min_size=1, max_size=8))
def test_local_time_is_what_the_zone_says_in_any_order_of_asking(zone: str, whens: list[int]) -> None:
    """What is remembered from one question never spoils the next."""
    calendar = Calendar(zone)
    for when in whens:
        local = utc(when).astimezone(ZoneInfo(zone))
        assert calendar.local_date(when) == local.date().toordinal()
        clock = timedelta(hours=local.hour, minutes=local.minute, seconds=local.second)
        assert calendar.clock(when) == clock // timedelta(microseconds=1) + local.microsecond


def test_bounds() -> None:
    """A date begins with its venue day and runs through it; an instant is itself."""
    calendar = Calendar("Europe/Berlin", 4 * 60)
    date_bound = day("2026-12-31") * 2
    assert calendar.starts(date_bound) == at("2026-12-31T04:00:00+01:00")
    assert calendar.ends(date_bound) == at("2027-01-01T04:00:00+01:00")
    exact = at("2026-06-01T10:00:00Z")
    assert calendar.starts(exact * 2 + 1) == calendar.ends(exact * 2 + 1) == exact


def test_grace_after_an_instant_keeps_the_local_time() -> None:
    """Grace over the change of clocks ends at the same time on the wall, not so many hours later."""
    calendar = Calendar("Europe/Berlin")
    until = at("2026-10-24T18:00:00+02:00")
    assert calendar.grace_ends(until * 2 + 1, 2) == at("2026-10-26T18:00:00+01:00")
    assert calendar.grace_ends(day("2026-10-24") * 2, 2) == at("2026-10-27T00:00:00+01:00")


def test_a_transition_is_found_to_the_second() -> None:
    """The change of the offset within a span of days, or none."""
    calendar = Calendar("Europe/Berlin")
    change = at("2026-10-25T03:00:00+02:00")
    assert calendar.transition(change - DAY, change + DAY) == change
    assert calendar.transition(change + MINUTE, change + DAY) is None
