"""Which time is judged by when the clock may be wrong."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.clock import TrustedClock
from gateway.model import SECOND
from gateway.venuetime import DAY

NOW = 1_800_000_000 * SECOND


def test_a_clock_behind_the_newest_known_time_is_not_believed() -> None:
    """A gateway that wakes up in 1970 judges by the newest known time, carried on by the monotonic clock."""
    clock = TrustedClock(NOW, 5 * SECOND)
    assert clock.read(0, 65 * SECOND, synchronised=False) == NOW + 60 * SECOND
    assert clock.suspect


def test_a_clock_that_is_right_is_believed_and_raises_the_floor() -> None:
    """A synchronised time becomes the newest known one."""
    clock = TrustedClock(NOW, 0)
    assert clock.read(NOW + DAY, 0, synchronised=True) == NOW + DAY
    assert not clock.suspect
    assert clock.read(NOW, SECOND, synchronised=True) == NOW + DAY + SECOND
    assert clock.suspect


def test_a_clock_far_ahead_is_suspect_and_raises_no_floor() -> None:
    """An unsynchronised clock in 2036 does not make everything after it look like the past."""
    clock = TrustedClock(NOW, 0)
    assert clock.read(NOW + 3000 * DAY, SECOND, synchronised=False) == NOW + 3000 * DAY
    assert clock.suspect
    assert clock.read(NOW + 2 * SECOND, 2 * SECOND, synchronised=True) == NOW + 2 * SECOND
    assert not clock.suspect


def test_a_small_step_back_is_no_suspicion() -> None:
    """Synchronisation may step the clock a little; judged time still never goes back."""
    clock = TrustedClock(NOW, 0, slack=SECOND)
    assert clock.read(NOW - SECOND // 2, 0, synchronised=True) == NOW
    assert not clock.suspect


def test_a_signed_time_replaces_the_floor() -> None:
    """What the central signs lowers a floor that was too high."""
    clock = TrustedClock(NOW + 100 * DAY, 0)
    clock.trust(NOW, 0)
    assert clock.read(NOW + SECOND, SECOND, synchronised=False) == NOW + SECOND
    assert not clock.suspect


@given(st.lists(st.tuples(st.integers(0, 10 * DAY), st.integers(0, 60 * SECOND)), max_size=20))
def test_synchronised_time_never_goes_back(steps: list[tuple[int, int]]) -> None:
    """Whatever the wall clock does, judged times follow each other."""
    clock, monotonic, last = TrustedClock(NOW, 0), 0, 0
    for wall, passed in steps:
        monotonic += passed
        read = clock.read(NOW - 5 * DAY + wall, monotonic, synchronised=True)
        assert read >= last
        last = read


@given(st.integers(-DAY, DAY), st.integers(0, DAY))
def test_peeking_learns_nothing(ahead: int, passed: int) -> None:
    """Asking what time it is to be judged by leaves the clock as it was."""
    clock = TrustedClock(NOW, 0)
    peeked = clock.peek(NOW + ahead, passed)
    assert clock.peek(NOW + ahead, passed) == peeked == max(NOW + ahead, NOW + passed)
