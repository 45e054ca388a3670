"""USB relay boards on the real USB stack: every byte that reached a board is held against what it should be.

Three boards and three scanners: a dcttech board (lane usb), a plain LCUS board (lane lcus) and one with the
firmware that answers (lane answers), each with a passage sensor on a GPIO line.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.hardware.gate import Gate
from tests.hardware.guest import Guest

LANES = {"usb": 0, "lcus": 1, "answers": 2}
"""Each lane's board and scanner; the number is the line of its passage sensor, and the board's socket."""
PULSE_MS = {"usb": 3000, "lcus": 400, "answers": 300}
"""The first is long enough for a board to be pulled out in it."""
ON = {"usb": "ff01000000000000", "lcus": "a00101a2", "answers": "a00103a4"}
OFF = {"usb": "fd01000000000000", "lcus": "a00100a1", "answers": "a00102a3"}
TIMEOUT_S = 60
CODES = [f"8K2MPX4T{n:02}" for n in range(40)]


@dataclass
class Bench:
    """The gate with its boards, and what was expected of them so far."""

    guest: Guest
    gate: Gate
    checked: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LANES, 0))
    """How many commands of each board were looked at: no test skips one."""
    codes: Any = field(default_factory=lambda: iter(CODES))

    def commands(self, lane: str) -> list[dict[str, Any]]:
        """What reached a board since it was last checked."""
        news = [n for n in self.guest.told("board") if n["board"] == lane]
        return news[self.checked[lane] :]

    def expect(self, lane: str, *commands: str, timeout: float = 30) -> list[dict[str, Any]]:
        """Waits for these commands, and for no others in between."""
        count = len(commands)
        self.guest.until(lambda: len(self.commands(lane)) >= count, f"{count} commands at {lane}", timeout)
        found = self.commands(lane)[:count]
        assert [n["command"] for n in found] == list(commands), found
        self.checked[lane] += count
        return found

    def expect_only(self, lane: str, allowed: str, until: Any, why: str, timeout: float = 60) -> int:
        """Waits until something is so; the board hears ``allowed`` meanwhile, how often is its retries'
        affair. Gives how often."""
        self.guest.until(until, why, timeout)
        found = self.commands(lane)
        assert {n["command"] for n in found} <= {allowed}, found
        self.checked[lane] += len(found)
        return len(found)

    def scan(self, lane: str) -> dict[str, Any]:
        """Somebody holds a ticket of their own before the lane's scanner. Gives the event, granted."""
        last = self.gate.last()
        self.guest.call("serialscanner.type", name=f"{lane}-scanner", code=next(self.codes))
        event = self.gate.scans(last, 1)[0]
        assert (event["lane"], event["verdict"]) == (lane, "granted")
        return event

    def outcome(self, event: dict[str, Any]) -> str:
        """What became of a grant, as the ledger has it; it may have one outcome only."""

        def settled() -> list[dict[str, Any]]:
            return [e for e in self.gate.events(event["seq"]) if e["kind"] == "passage"]

        def found() -> list[str]:
            return [e["passage"] for e in settled() if e.get("of") == event["seq"]]

        outcomes = self.guest.until(found, f"the outcome of event {event['seq']}", 60)
        assert len(outcomes) == 1
        return outcomes[0]

    def walk(self, lane: str) -> None:
        """Somebody goes through: the sensor's contact closes for 300 ms."""
        self.guest.call("lines.signal", line=LANES[lane], steps=[(True, 300), (False, 1)])

    def admits(self, lane: str) -> None:
        """A scan at a healthy lane: the board hears on and off, once each, as far apart as the pulse is long;
        the passage is taken."""
        typed = self.guest.call("time.monotonic_ns") // 1000
        event = self.scan(lane)
        on, off = self.expect(lane, ON[lane], OFF[lane])
        self.walk(lane)
        assert self.outcome(event) == "taken"
        assert typed < on["at"]
        # The board's clock starts when its program gets its turn: half is for a host that is busy.
        length = (off["at"] - on["at"]) / 1000
        assert PULSE_MS[lane] / 2 <= length <= PULSE_MS[lane] + 2000, (on, off)

    def fault(self, event: dict[str, Any]) -> str:
        """What the ledger says went wrong with a grant; said once."""

        def found() -> list[str]:
            events = self.gate.events(event["seq"])
            return [e["detail"] for e in events if e["kind"] == "fault" and e.get("of") == event["seq"]]

        details = self.guest.until(found, f"a fault of event {event['seq']}", 30)
        assert len(details) == 1
        return details[0]

    def lost(self, lane: str) -> bool:
        return self.gate.metric(f'gateway_lane_state{{lane="{lane}",state="fault"}}') == 1

    def works(self, lane: str) -> bool:
        return not self.lost(lane)


def configuration(gate: Gate, found: list[dict[str, Any]]) -> str:
    """What `gateway devices` printed, with the names filled in, and the sensors."""
    chip = next(f for f in found if f["type"] == "relay" and "gate-lines" in f["name"])
    assert 'chip = "gate-lines"' in chip["toml"][0]
    dcttech = next(f for f in found if f.get("name") == "USBRelay2 BITFT")
    adapters = [f for f in found if f["type"] == "relay" and f["name"].startswith("CH340")]
    # Two adapters without a serial number are told apart by the port that they are plugged into.
    plain, feedback = sorted(adapters, key=lambda f: f["path"])
    assert plain["path"] != feedback["path"]
    answering = feedback["toml"][0].replace('"lcus"', '"lcus_feedback"')
    relays = {"usb": dcttech["toml"][0], "lcus": plain["toml"][0], "answers": answering}
    text = '[gateway]\nid = "north"\ndata_dir = "/var/lib/gateway"\n'
    for lane, line in LANES.items():
        scanner = next(f for f in found if f.get("driver") == "serial" and f"_{lane}-if" in f["device"])
        sensor = f'driver = "gpio", chip = "gate-lines", line = {line}, bias = "pull_down"'
        text += f"""
[[lane]]
name = "{lane}"
{relays[lane]}
pulse_ms = {PULSE_MS[lane]}
passage = {{ {sensor}, timeout_s = {TIMEOUT_S} }}
[[point]]
name = "{lane}-in"
lane = "{lane}"
from = "outside"
to = "hall"
{gate.lines_for(f"{lane}-scanner", f"{lane}-in", scanner)}"""
    return text


@pytest.fixture(scope="module")
def bench(guest: Guest, gate: Gate) -> Bench:
    """Boards and scanners plugged in, found, configured with the lines that were printed; the gate runs."""
    guest.call("lines.make")
    guest.call("dcttech.make", name="usb")
    guest.call("lcus.make", name="lcus")
    guest.call("lcus.make", name="answers", feedback=True)
    boards = {"usb": "dcttech", "lcus": "lcus", "answers": "lcus"}
    for (lane, socket), at in zip(LANES.items(), itertools.count(len(LANES))):
        guest.call(f"{boards[lane]}.plug", name=lane, socket=socket)
        guest.call("serialscanner.make", name=f"{lane}-scanner", serial=lane)
        guest.call("serialscanner.plug", name=f"{lane}-scanner", socket=at)
    nodes = "ls /dev/hidraw0 /dev/ttyUSB0 /dev/ttyUSB1 /dev/ttyACM0 /dev/ttyACM1 /dev/ttyACM2"
    guest.until(lambda: guest.run(f"udevadm settle; {nodes}").code == 0, "the nodes of all devices", 120)
    gate.configure(configuration(gate, gate.devices()))
    gate.cards(CODES)
    gate.start()
    bench = Bench(guest, gate)
    for lane in LANES:
        guest.until(lambda lane=lane: gate.reader_up(f"{lane}-scanner"), f"the scanner of {lane}")
        guest.until(lambda lane=lane: bench.works(lane), f"the lane {lane}")
    return bench


@pytest.mark.parametrize("lane", LANES)
def test_a_scan_switches_the_board_on_and_off_once(bench: Bench, lane: str) -> None:
    """At the start a board hears off and nothing else; then each scan is one pulse of the configured length,
    the passage is taken, and serial boards are spoken to at 9600 baud, as near as they need."""
    for said in bench.expect(lane, OFF[lane]):
        assert abs(said.get("baud", 9600) - 9600) < 288, said
    bench.admits(lane)
    bench.admits(lane)


@pytest.mark.parametrize(("lane", "module"), [("usb", "dcttech"), ("lcus", "lcus")])
def test_a_board_that_is_unplugged_and_comes_back(bench: Bench, lane: str, module: str) -> None:
    """The lane is at fault and the ledger says why; whoever scans there is taken back and the others go in.
    The board that comes back hears off, and no pulse that was lost."""
    guest, gate = bench.guest, bench.gate
    other = "lcus" if lane == "usb" else "usb"
    last = gate.last()
    if lane == "usb":  # in the middle of a pulse: without power the relay falls off by itself
        walking = bench.scan(lane)
        bench.expect(lane, ON[lane])
    guest.call(f"{module}.unplug", name=lane)
    guest.until(lambda: bench.lost(lane), f"lane {lane} at fault")
    faults = [e for e in gate.events(last) if e["kind"] == "fault"]
    assert [(e["lane"], "of" in e) for e in faults] == [(lane, False)], faults
    assert "relay is lost" in gate.journal()
    if lane == "usb":
        bench.walk(lane)
        assert bench.outcome(walking) == "taken"
    nobody = bench.scan(lane)
    assert "no pulse was given" in bench.fault(nobody)
    assert bench.outcome(nobody) == "not_taken"
    bench.admits(other)
    guest.call(f"{module}.plug", name=lane, socket=LANES[lane])
    guest.until(lambda: bench.works(lane), f"lane {lane} is back")
    bench.expect(lane, OFF[lane])
    bench.admits(lane)


@pytest.mark.parametrize("mood", ["refused", "unanswered"])
def test_a_board_that_refuses(bench: Bench, mood: str) -> None:
    """A command that the board stalls (EPIPE), or leaves without an answer until the kernel gives up, is the
    lane's fault and the event says so; the others go on meanwhile; the pulse is not tried again."""
    guest = bench.guest
    guest.call("dcttech.mood", name="usb", mood=mood)
    event = bench.scan("usb")
    bench.admits("lcus")
    why = bench.fault(event)
    assert "not repeated" in why
    assert {"refused": "refused", "unanswered": "did not answer"}[mood] in why
    assert bench.outcome(event) == "not_taken"
    guest.until(lambda: bench.lost("usb"), "lane usb at fault")
    bench.admits("answers")
    assert guest.call("dcttech.state", name="usb") == 0
    guest.call("dcttech.mood", name="usb", mood="well")
    # What it heard while it refused stayed with the sender; of what it takes now, all must be off.
    guest.until(lambda: bench.works("usb"), "lane usb is back")
    heard = [n["command"] for n in bench.commands("usb")]
    bench.checked["usb"] += len(heard)
    assert mood in heard
    assert set(heard) - {mood} == {OFF["usb"]}
    bench.admits("usb")


def test_a_board_that_obeys_and_does_not_answer(bench: Bench) -> None:
    """The pulse may have been given, so it is not given again; the relay is put off, the event says why, and
    the lane is back when the board answers again."""
    guest = bench.guest
    guest.call("lcus.answers", name="answers", answers=False)
    event = bench.scan("answers")
    bench.expect("answers", ON["answers"])
    assert "whether it pulsed is unknown, not repeated" in bench.fault(event)
    assert bench.outcome(event) == "not_taken"
    bench.expect("answers", OFF["answers"])
    guest.until(lambda: guest.call("lcus.state", name="answers") == 0, "the relay is off")
    assert bench.lost("answers")
    bench.admits("lcus")
    guest.call("lcus.answers", name="answers", answers=True)
    bench.expect_only("answers", OFF["answers"], lambda: bench.works("answers"), "lane answers is back")
    bench.admits("answers")


def test_nothing_else_reached_a_board(bench: Bench) -> None:
    """The bytes that were checked above are all there were; stopping puts every relay off once more."""
    bench.gate.stop()
    for lane in LANES:
        bench.expect(lane, OFF[lane])
        assert bench.commands(lane) == []
