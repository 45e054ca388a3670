"""The lane: tables of what happens, and random days that must keep its promises."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.model import SECOND, LaneMode, Passage
from gateway.turnstile.lane import MIN_GAP, Action, Forced, Hold, Lane, Pulse, Settled

PULSE, TIMEOUT = 300_000, 5 * SECOND
GAP = 150_000
READY = PULSE + GAP
TAKEN, NOT_TAKEN, ASSUMED = Passage.TAKEN, Passage.NOT_TAKEN, Passage.ASSUMED


def lane(second_grant: str = "queue", *, sensor: bool = True, max_queued: int = 8) -> Lane[str]:
    return Lane(
        "north",
        pulse=PULSE,
        timeout=TIMEOUT,
        sensor=sensor,
        second_grant=second_grant,  # type: ignore[arg-type]
        max_queued=max_queued,
    )


def test_a_grant_pulses_and_the_passage_settles_it():
    """With a sensor a grant is one pulse, and is taken when somebody goes through."""
    north = lane()
    assert north.grant("a", "in", 0) == [Pulse("a")]
    assert north.pending == ["a"]
    assert north.passed("in", SECOND) == [Settled("a", TAKEN)]
    assert north.pending == []


def test_without_a_sensor_a_grant_is_assumed_with_its_pulse():
    """No sensor: the passage is assumed at once."""
    assert lane(sensor=False).grant("a", "in", 0) == [Pulse("a"), Settled("a", ASSUMED)]


def test_a_passage_exactly_at_the_deadline_counts_and_one_later_does_not():
    """The window includes its last microsecond; after it the grant is not taken and the passage forced."""
    on_time = lane()
    on_time.grant("a", "in", 0)
    assert on_time.tick(TIMEOUT) == []
    assert on_time.passed(None, TIMEOUT) == [Settled("a", TAKEN)]
    late = lane()
    late.grant("a", "in", 0)
    assert late.next_deadline == TIMEOUT + 1
    assert late.passed(None, TIMEOUT + 1) == [Settled("a", NOT_TAKEN), Forced(None)]


def test_a_passage_answers_the_oldest_grant_of_its_direction():
    """Two people on their way in opposite directions are told apart by their sensors."""
    north = lane("extend")
    north.grant("a", "in", 0)
    north.grant("b", "out", 1)
    north.grant("c", "in", 2)
    assert north.passed("out", 10) == [Settled("b", TAKEN)]
    assert north.passed("in", 11) == [Settled("a", TAKEN)]
    assert north.passed(None, 12) == [Settled("c", TAKEN)]
    assert north.passed("in", 13) == [Forced("in")]


def test_a_passage_the_other_way_does_not_answer_the_grant():
    """Somebody who pushes out while one is let in is a forced passage; the grant stays open."""
    north = lane()
    north.grant("a", "in", 0)
    assert north.passed("out", 1) == [Forced("out")]
    assert north.pending == ["a"]


def test_queue_pulses_the_second_when_the_first_is_through_and_the_contact_was_off():
    """The second person's pulse comes after the first one's, with a gap that the turnstile can see, and
    the window begins with it."""
    north = lane()
    north.grant("a", "in", 0)
    assert north.grant("b", "in", 1000) == []
    assert north.passed("in", 100_000) == [Settled("a", TAKEN)]
    assert north.next_deadline == READY
    assert north.tick(READY - 1) == []
    assert north.tick(READY) == [Pulse("b")]
    assert north.next_deadline == READY + TIMEOUT + 1
    assert north.tick(READY + TIMEOUT) == []
    assert north.tick(READY + TIMEOUT + 1) == [Settled("b", NOT_TAKEN)]


def test_queue_goes_on_when_the_first_person_turns_back():
    """A time-out makes way for the next."""
    north = lane()
    north.grant("a", "in", 0)
    north.grant("b", "out", 1)
    assert north.tick(TIMEOUT + 1) == [Settled("a", NOT_TAKEN), Pulse("b")]


def test_a_passage_after_the_window_is_not_that_of_the_next_in_the_queue():
    """Who went through before the next pulse cannot have used it, also if the timer comes late."""
    north = lane()
    north.grant("a", "in", 0)
    north.grant("b", "in", 1)
    late = TIMEOUT + SECOND
    assert north.passed("in", late) == [Settled("a", NOT_TAKEN), Forced("in"), Pulse("b")]


def test_queue_without_a_sensor_spaces_the_pulses():
    """Without a sensor somebody walks for as long as the pulse."""
    north = lane(sensor=False)
    north.grant("a", "in", 0)
    assert north.grant("b", "in", 1) == []
    assert north.grant("c", "in", 2) == []
    assert north.tick(READY) == [Pulse("b"), Settled("b", ASSUMED)]
    assert north.tick(2 * READY) == [Pulse("c"), Settled("c", ASSUMED)]


def test_the_gap_between_short_pulses_is_long_enough_for_a_turnstile():
    """Half of a short pulse would be too short a gap."""
    short: Lane[str] = Lane("n", pulse=100_000, timeout=TIMEOUT, sensor=False, second_grant="queue")
    short.grant("a", "in", 0)
    short.grant("b", "in", 0)
    assert short.next_deadline == 100_000 + MIN_GAP


def test_queue_is_busy_when_it_is_full():
    """A full queue refuses; one that is granted all the same waits and is not lost."""
    north = lane(max_queued=1)
    north.grant("a", "in", 0)
    assert not north.busy
    north.grant("b", "in", 0)
    assert north.busy
    north.grant("c", "in", 0)
    assert north.pending == ["a", "b", "c"]


def test_extend_pulses_each_at_once_with_its_own_window():
    """extend: nobody waits, and each grant runs out by itself."""
    north = lane("extend")
    assert north.grant("a", "in", 0) == [Pulse("a")]
    assert north.grant("b", "in", SECOND) == [Pulse("b")]
    assert not north.busy
    assert north.tick(TIMEOUT + 1) == [Settled("a", NOT_TAKEN)]
    assert north.tick(TIMEOUT + SECOND + 1) == [Settled("b", NOT_TAKEN)]


def test_refuse_is_busy_until_the_person_is_through_and_the_contact_off():
    """refuse: busy from the pulse until the next one could be given."""
    north = lane("refuse")
    assert not north.busy
    north.grant("a", "in", 0)
    assert north.busy
    north.passed("in", 1000)
    assert north.busy
    assert north.next_deadline == READY
    north.tick(READY)
    assert not north.busy
    assert north.next_deadline is None


def test_refuse_queues_what_is_granted_all_the_same():
    """A grant that is recorded is never dropped by the policy."""
    north = lane("refuse")
    north.grant("a", "in", 0)
    assert north.grant("b", "in", 1) == []
    assert north.tick(TIMEOUT + 1) == [Settled("a", NOT_TAKEN), Pulse("b")]


def test_the_same_grant_again_begins_the_window_anew_without_a_second_pulse():
    """again: more time, not a second passage."""
    north = lane()
    north.grant("a", "in", 0)
    assert north.again("a", 4 * SECOND) == []
    assert north.tick(TIMEOUT + 1) == []
    assert north.tick(4 * SECOND + TIMEOUT + 1) == [Settled("a", NOT_TAKEN)]
    assert north.again("a", 10 * SECOND) == []


def test_a_waiting_grant_again_keeps_its_place():
    """again for one in the queue does nothing."""
    north = lane()
    north.grant("a", "in", 0)
    north.grant("b", "in", 1)
    north.grant("c", "in", 2)
    assert north.again("b", 3) == []
    assert north.pending == ["a", "b", "c"]


def test_not_taken_reported_from_outside():
    """A replay says what the sensor did not: the oldest grant of that direction is given back."""
    north = lane()
    north.grant("a", "in", 0)
    assert north.not_taken("out", 1) == []
    assert north.not_taken("in", 2) == [Settled("a", NOT_TAKEN)]
    assert north.not_taken("in", 3) == []


def test_free_holds_the_relay_and_counts_who_goes_through():
    """A free lane pulses nobody; a grant there is taken by the passage, anyone else is anonymous."""
    north = lane()
    assert north.set_mode(LaneMode.FREE, 0) == [Hold(True)]
    assert north.set_mode(LaneMode.FREE, 1) == []
    assert north.grant("a", "in", 2) == []
    assert north.passed("in", 3) == [Settled("a", TAKEN)]
    assert north.passed("in", 4) == [Forced("in")]
    assert north.grant("b", "in", 5) == []
    assert north.tick(5 + TIMEOUT + 1) == [Settled("b", NOT_TAKEN)]
    assert north.set_mode(LaneMode.NORMAL, 20 * SECOND) == [Hold(False)]


def test_a_free_lane_is_never_busy():
    """free refuses nobody, whatever the policy."""
    north = lane("refuse")
    north.set_mode(LaneMode.FREE, 0)
    north.grant("a", "in", 0)
    assert not north.busy


def test_free_without_a_sensor_assumes():
    """Nothing can be seen, so the grant counts at once."""
    north = lane(sensor=False)
    north.set_mode(LaneMode.FREE, 0)
    assert north.grant("a", "in", 1) == [Settled("a", ASSUMED)]


def test_setting_free_opens_the_way_for_those_who_wait():
    """Waiting grants need no pulse any more, and their windows begin."""
    north = lane()
    north.grant("a", "in", 0)
    north.grant("b", "in", 1)
    assert north.set_mode(LaneMode.FREE, 2) == [Hold(True)]
    assert north.passed("in", 3) == [Settled("a", TAKEN)]
    assert north.passed("in", 4) == [Settled("b", TAKEN)]


def test_after_free_the_next_pulse_waits_for_the_gap():
    """The turnstile must see the contact off before it can see a pulse."""
    north = lane()
    north.set_mode(LaneMode.FREE, 0)
    north.set_mode(LaneMode.NORMAL, SECOND)
    assert north.grant("a", "in", SECOND + 1) == []
    assert north.tick(SECOND + GAP) == [Pulse("a")]


def test_a_grant_of_the_free_time_that_was_not_used_is_pulsed_when_asked_for_again():
    """The lane was locked again before they walked: their one pulse comes with the next scan, once."""
    north = lane()
    north.set_mode(LaneMode.FREE, 0)
    north.grant("a", "in", 0)
    north.set_mode(LaneMode.NORMAL, 1000)
    assert north.again("a", SECOND) == [Pulse("a")]
    assert north.again("a", 2 * SECOND) == []
    assert north.passed("in", 3 * SECOND) == [Settled("a", TAKEN)]


def test_a_grant_of_the_free_time_asked_for_again_goes_before_those_who_came_later():
    """Its pulse is the next one, and the others stay in their order."""
    north = lane()
    north.set_mode(LaneMode.FREE, 0)
    north.grant("a", "in", 0)
    north.set_mode(LaneMode.NORMAL, 1000)
    assert north.grant("b", "in", 2000) == []
    assert north.again("a", SECOND) == [Pulse("a")]
    assert north.pending == ["a", "b"]


def test_closing_gives_back_who_waits_and_lets_who_walks_finish():
    """closed: nobody new is let in, nobody is caught in the gate."""
    north = lane()
    north.grant("a", "in", 0)
    north.grant("b", "in", 1)
    assert north.set_mode(LaneMode.CLOSED, 2) == [Settled("b", NOT_TAKEN)]
    assert north.passed("in", 3) == [Settled("a", TAKEN)]
    assert north.passed("in", 4) == [Forced("in")]
    assert north.grant("staff", "in", SECOND) == [Pulse("staff")]


def test_opened_by_hand_is_one_passage_in_any_direction():
    """open_once without a direction is answered by whoever goes through."""
    north = lane()
    assert north.open_once("hand", None, 0) == [Pulse("hand")]
    assert north.passed("out", 1) == [Settled("hand", TAKEN)]


def test_equal_grants_are_told_apart_by_identity():
    """Two grants that compare equal (two unknown people at an exit) are two grants."""
    north: Lane[list[int]] = Lane("n", pulse=PULSE, timeout=TIMEOUT, sensor=True, second_grant="extend")
    first: list[int] = []
    second: list[int] = []
    north.grant(first, "in", 0)
    north.grant(second, "in", 0)
    north.again(second, SECOND)
    (gone,) = north.tick(TIMEOUT + 1)
    assert isinstance(gone, Settled)
    assert gone.grant is first


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["grant", "grant", "again", "passed", "not_taken", "tick", "mode", "hand", "due"]),
        st.sampled_from(["in", "out", None]),
        st.sampled_from([0, 1, 1000, GAP, PULSE, READY, SECOND, TIMEOUT, TIMEOUT + 1]),
        st.sampled_from(list(LaneMode)),
        st.integers(0, 3),
    ),
    max_size=60,
)


class Day:
    """Drives a lane and keeps the books of what it promised."""

    def __init__(self, policy: str, sensor: bool) -> None:
        self.lane = lane(policy, sensor=sensor, max_queued=3)
        self.policy = policy
        self.at = 0
        self.granted: list[str] = []
        self.pulses: list[str] = []
        self.pulse_times: list[int] = []
        self.settled: dict[str, Passage] = {}
        self.passages = 0
        self.forced = 0
        self.held = False

    def book(self, actions: list[Action[str]]) -> None:
        for action in actions:
            match action:
                case Pulse(name):
                    assert name not in self.pulses, "a second pulse for one grant"
                    assert name not in self.settled, "a pulse for a grant that is over"
                    assert not self.held, "a pulse while the relay is held"
                    self.pulses.append(name)
                    self.pulse_times.append(self.at)
                case Settled(name, passage):
                    assert name not in self.settled, "settled twice"
                    self.settled[name] = passage
                case Forced():
                    self.forced += 1
                case Hold(on):
                    assert on != self.held, "told to do what it does already"
                    self.held = on

    def step(self, what: str, direction: str | None, wait: int, mode: LaneMode, which: int) -> None:
        self.at += wait
        north = self.lane
        if what in ("grant", "hand"):
            name = f"g{len(self.granted)}"
            self.granted.append(name)
            give = north.grant if what == "grant" else north.open_once
            self.book(give(name, direction, self.at))
        elif what == "again" and self.granted:
            name = self.granted[-1 - which % len(self.granted)]
            self.book(north.again(name, self.at))
        elif what == "passed":
            self.passages += 1
            self.book(north.passed(direction, self.at))
        elif what == "not_taken":
            self.book(north.not_taken(direction, self.at))
        elif what == "mode":
            self.book(north.set_mode(mode, self.at))
            assert north.mode is mode
        elif what == "due":
            self.run_on(1)
        else:
            self.book(north.tick(self.at))
        due = north.next_deadline
        assert due is None or due > self.at, "a deadline that has passed already"

    def run_on(self, times: int) -> None:
        for _ in range(times):
            due = self.lane.next_deadline
            if due is None:
                return
            self.at = max(self.at, due)
            before = (self.lane.pending, self.lane.busy, len(self.pulses))
            self.book(self.lane.tick(self.at))
            after = (self.lane.pending, self.lane.busy, len(self.pulses))
            later = self.lane.next_deadline
            assert after != before or later is None or later > due, "a deadline that moves nothing on"


@given(st.sampled_from(["queue", "extend", "refuse"]), st.booleans(), STEPS)
def test_any_day_settles_every_grant_once_and_pulses_it_at_most_once(policy, sensor, steps):
    """Whatever happens in whatever order: each grant is settled exactly once and pulsed at most once, every
    passage is either somebody's or forced, and time alone brings the lane to rest."""
    day = Day(policy, sensor)
    for step in steps:
        day.step(*step)
    day.run_on(500)
    assert day.lane.next_deadline is None
    assert day.lane.pending == []
    assert set(day.settled) == set(day.granted)
    taken = list(day.settled.values()).count(TAKEN)
    assert day.passages == taken + day.forced
    if not sensor:
        assert taken == 0
        assert day.forced == day.passages
    if policy != "extend":
        gaps = [b - a for a, b in zip(day.pulse_times, day.pulse_times[1:], strict=False)]
        assert all(gap >= READY for gap in gaps), "the turnstile would see one pulse for two people"
