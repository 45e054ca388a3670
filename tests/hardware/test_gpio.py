"""GPIO lines on a real kernel: relays whose pulses the kernel times, sensors that bounce, stick or are gone.

Lane ``low`` is wired as most relay modules and turnstiles are: the relay is on while its line is low, and
the sensor is a dry contact to ground behind the chip's own resistor. Lane ``high`` is the other way round,
and its relay's line is found by name. Lane ``bare`` has no scanner, and a sensor without a resistor. The chip
is found by its label.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.hardware.gate import Gate
from tests.hardware.guest import Guest

RELAY = {"low": 0, "high": 2}
SENSOR = {"low": 1, "high": 3}
BARE = 5
"""The sensor of a lane without a scanner."""
PULSE_MS = {"low": 500, "high": 250}
ON = {"low": 0, "high": 1}
"""The level of the relay's line while it is on."""
CLOSED = {"low": False, "high": True}
"""Whether the sensor's contact pulls its line up when somebody passes."""
TIMEOUT_S = 15
DEBOUNCE_MS = 50
"""A guest stands still for 10 ms often enough, and what is held for longer than this is no bounce."""
CODES = [f"8K2MPX4T{n:02}" for n in range(60)]

CONFIGURATION = f"""
[gateway]
id = "north"
data_dir = "/var/lib/gateway"

[[lane]]
name = "low"
pulse_ms = {PULSE_MS["low"]}
relay = {{ driver = "gpio", chip = "gate-lines", line = 0, active_low = true }}
[lane.passage]
driver = "gpio"
chip = "gate-lines"
line = 1
active_low = true
bias = "pull_up"
debounce_ms = {DEBOUNCE_MS}
timeout_s = {TIMEOUT_S}

[[lane]]
name = "high"
pulse_ms = {PULSE_MS["high"]}
relay = {{ driver = "gpio", chip = "gate-lines", line = "turnstile" }}
[lane.passage]
driver = "gpio"
chip = "gate-lines"
line = 3
bias = "pull_down"
debounce_ms = {DEBOUNCE_MS}
timeout_s = {TIMEOUT_S}

[[lane]]
name = "bare"
relay = {{ driver = "gpio", chip = "gate-lines", line = 4 }}
passage = {{ driver = "gpio", chip = "gate-lines", line = {BARE}, timeout_s = {TIMEOUT_S} }}

[[point]]
name = "bare-in"
lane = "bare"
from = "outside"
to = "hall"

[[point]]
name = "low-in"
lane = "low"
from = "outside"
to = "hall"

[[point]]
name = "high-in"
lane = "high"
from = "outside"
to = "hall"
"""


@dataclass
class Bench:
    """The gate with two lanes on GPIO lines."""

    guest: Guest
    gate: Gate
    codes: Any = field(default_factory=lambda: iter(CODES))

    def scan(self, lane: str) -> dict[str, Any]:
        """Somebody holds a ticket of their own before the lane's scanner. Gives the event, granted."""
        last = self.gate.last()
        self.guest.call("serialscanner.type", name=lane, code=next(self.codes))
        event = self.gate.scans(last, 1)[0]
        assert (event["lane"], event["verdict"]) == (lane, "granted")
        return event

    def pulsed(self, lane: str, since: int) -> None:
        """The line was set on and off, once each, as far apart as configured, by the kernel's own time."""

        def sets() -> list[dict[str, Any]]:
            return [n for n in self.guest.told("gpio", since) if n["line"] == RELAY[lane]]

        self.guest.until(lambda: len(sets()) >= 2, f"a pulse at {lane}", 30)
        on, off = sets()
        assert (on["value"], off["value"]) == (ON[lane], 1 - ON[lane])
        # The end is never early; how late it comes is the busy guest's affair, up to seconds.
        length = (off["at"] - on["at"]) / 1000
        assert PULSE_MS[lane] - 20 <= length <= PULSE_MS[lane] + 2000, (on, off)

    def untouched(self, lane: str, since: int) -> bool:
        return not [n for n in self.guest.told("gpio", since) if n["line"] == RELAY[lane]]

    def contact(self, lane: str, *steps: tuple[bool, float]) -> list[int]:
        """Moves the sensor's contact: closed or not, for so many ms each."""
        levels = [(closed is CLOSED[lane], held) for closed, held in steps]
        return self.guest.call("lines.signal", line=SENSOR[lane], steps=levels)

    def walk(self, lane: str) -> None:
        """Somebody goes through, slowly enough for a guest that stalls."""
        self.contact(lane, (True, 300), (False, 2 * DEBOUNCE_MS))

    def passages(self, since: int, count: int) -> list[dict[str, Any]]:
        """The passages after an event, as soon as there are so many."""

        def enough() -> list[dict[str, Any]]:
            found = [e for e in self.gate.events(since) if e["kind"] == "passage"]
            return found if len(found) >= count else []

        return self.guest.until(enough, f"{count} passages after event {since}", TIMEOUT_S + 30)

    def outcome(self, event: dict[str, Any]) -> str:
        """What became of a grant: the one passage that is recorded after it."""
        (passage,) = self.passages(event["seq"], 1)
        assert passage["of"] == event["seq"]
        return str(passage["passage"])

    def admits(self, lane: str) -> None:
        """A scan, one pulse, one passage."""
        since = len(self.guest.news)
        event = self.scan(lane)
        self.pulsed(lane, since)
        self.walk(lane)
        assert self.outcome(event) == "taken"

    def counted(self, lane: str, outcome: str) -> float:
        return self.gate.metric(f'gateway_passages_total{{lane="{lane}",outcome="{outcome}"}}')

    def works(self, lane: str) -> bool:
        """Relay and sensor are driven."""
        fault = self.gate.metric(f'gateway_lane_state{{lane="{lane}",state="fault"}}')
        sensor = self.gate.metric(f'gateway_input_up{{input="passage sensor of {lane}"}}')
        return fault == 0 and sensor == 1

    def broken(self, lane: str) -> bool:
        """Neither is."""
        fault = self.gate.metric(f'gateway_lane_state{{lane="{lane}",state="fault"}}')
        sensor = self.gate.metric(f'gateway_input_up{{input="passage sensor of {lane}"}}')
        return fault == 1 and sensor == 0

    def ready(self) -> None:
        for lane in RELAY:
            self.guest.until(lambda lane=lane: self.gate.reader_up(lane), f"the scanner of {lane}")


@pytest.fixture(scope="module")
def bench(guest: Guest, gate: Gate) -> Bench:
    """Two scanners and a chip; the gate runs."""
    guest.call("lines.make", names={RELAY["high"]: "turnstile"})
    text = CONFIGURATION
    for socket, lane in enumerate(RELAY):
        guest.call("serialscanner.make", name=lane, serial=lane)
        guest.call("serialscanner.plug", name=lane, socket=socket)
        device = f"/dev/serial/by-id/usb-Newland_Serial_Scanner_{lane}-if00"
        text += f'[[reader]]\nname = "{lane}"\npoint = "{lane}-in"\ndriver = "serial"\ndevice = "{device}"\n'
    gate.configure(text)
    gate.cards(CODES)
    gate.start()
    bench = Bench(guest, gate)
    bench.ready()
    for lane in RELAY:
        guest.until(lambda lane=lane: bench.works(lane), f"lane {lane}")
    return bench


def test_relays_rest_off_and_resistors_are_set(bench: Bench) -> None:
    """After the start an active-low relay's line is high and the other's is low, and neither was pulsed; the
    sensors' lines are pulled as their bias says, and nobody passed."""
    guest = bench.guest
    assert [guest.call("lines.value", line=RELAY[lane]) for lane in ("low", "high")] == [1, 0]
    for lane in RELAY:
        levels = {n["value"] for n in guest.told("gpio") if n["line"] == RELAY[lane]}
        assert levels <= {1 - ON[lane]}
    pulls = [guest.call("lines.pulled", line=SENSOR[lane]) for lane in ("low", "high")]
    assert pulls == ["pull-up", "pull-down"]
    assert [e["kind"] for e in bench.gate.events() if e["kind"] == "passage"] == []


@pytest.mark.parametrize("lane", RELAY)
def test_a_scan_pulses_the_line_for_the_configured_time(bench: Bench, lane: str) -> None:
    """One pulse for each grant, timed by the kernel, at the line's own polarity; the other line rests."""
    other = "high" if lane == "low" else "low"
    since = len(bench.guest.news)
    bench.admits(lane)
    assert bench.untouched(other, since)
    bench.admits(lane)


@pytest.mark.parametrize("lane", RELAY)
def test_a_contact_that_bounces_is_one_passage(bench: Bench, lane: str) -> None:
    """Closed for 100 ms, with a handful of bounces at both ends: one passage, and none left over for the
    person behind."""
    bounces = [(True, 0.5), (False, 0.5)] * 4
    steps = [*bounces, (True, 100.0), (False, 0.5), *bounces, (False, 2.0 * DEBOUNCE_MS)]
    for _ in range(10):
        event = bench.scan(lane)
        at = bench.contact(lane, *steps)
        bench.passages(event["seq"], 1)
        gaps = [later - earlier for earlier, later in itertools.pairwise(at)]
        held = gaps.pop(len(bounces))
        assert held >= 100_000
        # A stall of the guest may have stretched a bounce to what is none: then another try.
        if max(gaps) < DEBOUNCE_MS * 1000 / 2:
            break
    else:
        pytest.fail(f"the guest is too busy to bounce a contact: {gaps}")
    bench.admits(lane)
    passages = [e["passage"] for e in bench.gate.events(event["seq"]) if e["kind"] == "passage"]
    assert passages == ["taken", "taken"]


def test_a_passage_without_a_grant_is_forced(bench: Bench) -> None:
    """The sensor fires and nobody was let in: recorded as forced, counted, and no relay moves."""
    since, last, before = len(bench.guest.news), bench.gate.last(), bench.counted("low", "forced")
    bench.walk("low")
    (passage,) = bench.passages(last, 1)
    assert (passage["passage"], passage["lane"], passage.get("of")) == ("forced", "low", None)
    assert bench.counted("low", "forced") == before + 1
    assert bench.untouched("low", since)
    bench.admits("low")


def test_a_sensor_that_stays_closed(bench: Bench) -> None:
    """It is one passage when it closes, and none when it opens; who is let in meanwhile is pulsed for and
    taken back after the time, and the lane goes on."""
    event = bench.scan("low")
    bench.contact("low", (True, 1))
    assert bench.outcome(event) == "taken"
    since = len(bench.guest.news)
    event = bench.scan("low")
    bench.pulsed("low", since)
    assert bench.outcome(event) == "not_taken"
    last = bench.gate.last()
    bench.contact("low", (False, 2 * DEBOUNCE_MS))
    bench.admits("low")
    passages = [e["passage"] for e in bench.gate.events(last) if e["kind"] == "passage"]
    assert passages == ["taken"]


def test_a_chip_that_goes_and_comes_back_under_another_number(bench: Bench) -> None:
    """Relays and sensors on it are lost, with events and log lines; who scans is taken back. Back under its
    label it serves again, whatever number the kernel gave it, with its relays off; nobody passed."""
    guest, gate = bench.guest, bench.gate
    last = gate.last()
    before = guest.call("lines.name")
    guest.call("lines.alive", label="gate-lines", on=False)
    for lane in (*RELAY, "bare"):
        guest.until(lambda lane=lane: bench.broken(lane), f"lane {lane} is lost")
    lost = [e for e in gate.events(last) if e["kind"] == "fault"]
    assert sorted(e["lane"] for e in lost) == ["bare", "high", "low"]
    assert all("gone" in e["detail"] for e in lost), lost
    assert gate.journal().count("input is lost") >= 2
    event = bench.scan("high")
    assert bench.outcome(event) == "not_taken"
    details = [e["detail"] for e in gate.events(event["seq"]) if e["kind"] == "fault" and e.get("of")]
    assert len(details) == 1
    assert "no pulse was given" in details[0]
    # The number that it had is another chip's now, or still the dead one's in the kernel.
    guest.call("lines.make", label="other", lines=4)
    since = len(guest.news)
    assert guest.call("lines.alive", label="gate-lines", on=True) != before
    for lane in RELAY:
        guest.until(lambda lane=lane: bench.works(lane), f"lane {lane} is back")
    assert {n["value"] for n in guest.told("gpio", since) if n["line"] == RELAY["low"]} <= {1}
    assert [guest.call("lines.value", line=RELAY[lane]) for lane in ("low", "high")] == [1, 0]
    assert [e for e in gate.events(event["seq"]) if e["kind"] == "passage" and "of" not in e] == []
    bench.admits("low")
    bench.admits("high")
    assert not [n for n in guest.told("gpio", since) if n["label"] == "other"]


def test_lines_that_somebody_else_holds(bench: Bench) -> None:
    """The gate starts all the same; that lane is at fault, the event names line and holder, and the other
    lane works. When the lines are let go of, the lane works without a restart. A sensor that is closed at the
    start is nobody's passage."""
    guest, gate = bench.guest, bench.gate
    gate.stop()
    said = len(gate.journal())
    for line in (RELAY["high"], SENSOR["high"]):
        guest.call("lines.take", line=line)
    guest.call("lines.pull", line=BARE, up=True)
    gate.start()
    bench.ready()
    guest.until(lambda: bench.broken("high"), "lane high is at fault")
    for lane in ("low", "bare"):
        guest.until(lambda lane=lane: bench.works(lane), f"lane {lane}")
    fault = next(e for e in reversed(gate.events()) if e["kind"] == "fault")
    assert fault["lane"] == "high"
    journal = gate.journal()[said:]
    for line, text in (("'turnstile'", fault["detail"]), (str(SENSOR["high"]), journal)):
        assert f"line {line} of /dev/gpiochip" in text
        assert "is in use by sysfs" in text
    event = bench.scan("high")
    assert bench.outcome(event) == "not_taken"
    bench.admits("low")
    guest.call("lines.signal", line=BARE, steps=[(False, 100), (True, 100)])
    passages = bench.passages(event["seq"], 3)
    assert [(e["lane"], e["passage"]) for e in passages] == [
        ("high", "not_taken"),
        ("low", "taken"),
        ("bare", "forced"),
    ]
    for line in (RELAY["high"], SENSOR["high"]):
        guest.call("lines.let_go", line=line)
    guest.until(lambda: bench.works("high"), "lane high is back")
    bench.admits("high")
