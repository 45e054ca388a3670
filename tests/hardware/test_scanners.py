"""Scenario 1: a scanner of each kind, from its socket to the entry in the ledger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.hardware.gate import Gate
from tests.hardware.inside.strokes import typable
from tests.hardware.scanners import POINT, Scanner, plug_in, read, ready

RELAY, SENSOR = 1, 2
PULSE_MS = 700
"""Not the default, so that it is the configured time that is seen."""
# A visitor here takes as long as a busy host does.
PASSAGE = f"passage = {{ driver = 'gpio', chip = 'gate-lines', line = {SENSOR}, timeout_s = 60 }}\n"
LANE = POINT.format(
    relay=f"{{ driver = 'gpio', chip = 'gate-lines', line = {RELAY} }}", pulse=PULSE_MS, passage=PASSAGE
)

NEWLAND = 0x1EAB
KEYBOARDS_AND_PORT = [
    Scanner("wedge-us", "keyboard", "HR-Wedge-US", 0, {"serial": "W1"}, layout="us"),
    Scanner("wedge-de", "keyboard", "HR-Wedge-DE", 1, layout="de"),
    Scanner("wedge-fr", "keyboard", "HR-Wedge-FR", 2, layout="fr"),
    Scanner("port", "serialscanner", "Port-Scanner", 3, {"serial": "P1"}),
]
HID_POS = [
    Scanner("pos-a", "hidpos", "POS-A", 0, {"layout": "A"}),
    Scanner("pos-b", "hidpos", "POS-B", 1, {"layout": "B", "maker": "Newland", "vendor": NEWLAND}),
]

STABLE = {
    "wedge-us": "/dev/input/by-id/usb-Newland_HR-Wedge-US_W1-event-kbd",
    "wedge-de": "/dev/input/by-path/",
    "wedge-fr": "/dev/input/by-path/",
    "pos-a": "/dev/gateway/scanner-",
    "pos-b": "/dev/gateway/scanner-",
    "port": "/dev/serial/by-id/usb-Newland_Port-Scanner_P1-if00",
}
"""The beginning of the name by which each is to be configured."""


def _pieces(text: str, length: int = 20) -> list[str]:
    """Codes of so many characters; what the kernel keeps for a slow reader is fifteen keys."""
    return [text[at : at + length] for at in range(0, len(text), length)]


# Every character that the layout has, in the order of the keys.
CODES = {s.name: _pieces(typable(s.layout)) for s in KEYBOARDS_AND_PORT if s.layout}
# Codes that fit a report, fill it, need a second one for one byte, and need four.
CODES |= {
    name: [f"{name}-{'0123456789abcdefghijklmnopqrstuvwxyz' * 6}"[:length] for length in (8, 56, 57, 200)]
    for name in ("pos-a", "pos-b")
}
CODES["port"] = ["8K2MPX4T7Q", "https://venue.example/m/Ünïcode?" + "x" * 90]
CARDS = [code for codes in CODES.values() for code in codes]


class Table:
    """The gate at work, with a turnstile, and scanners of which one group at a time is plugged in."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.found: dict[str, dict[str, Any]] = {}
        """What `gateway devices` said of those that are plugged in."""
        self._scanners: list[Scanner] = []
        gate.guest.call("lines.make")
        gate.configure(LANE + '[[reader]]\nname = "none"\npoint = "north-in"\ndriver = "stdin"\n')
        gate.cards(CARDS)

    def lay(self, scanners: list[Scanner]) -> None:
        """Plugs these in, has them found, and configures them by the lines that are printed for them."""
        if scanners == self._scanners:
            return
        for scanner in self._scanners:
            scanner.scrap(self.gate)
        plug_in(self.gate, scanners)
        listed = self.gate.devices()
        self.found = {
            s.name: next(d for d in listed if s.label in d.get("description", "")) for s in scanners
        }
        self.gate.configure(LANE + "\n".join(s.lines(self.gate, self.found[s.name]) for s in scanners))
        self.gate.start()
        ready(self.gate, scanners)
        self._scanners = scanners


@pytest.fixture(scope="module")
def table(gate: Gate) -> Table:
    return Table(gate)


@pytest.mark.parametrize(
    ("group", "scanner"),
    [pytest.param(group, s, id=s.name) for group in (KEYBOARDS_AND_PORT, HID_POS) for s in group],
)
def test_from_the_socket_to_the_entry_in_the_ledger(
    table: Table, group: list[Scanner], scanner: Scanner, say: Callable[[str], None]
) -> None:
    """`gateway devices` finds it by a name that stays; each code that it reads arrives character for
    character, opens the lane for the configured time, and is an entry when somebody has walked through."""
    table.lay(group)
    device = table.found[scanner.name]
    assert device["driver"] == {"serialscanner": "serial"}.get(scanner.kind, scanner.kind)
    assert device["device"].startswith(STABLE[scanner.name])
    assert device["note"] == "", "something stands in the way of using it"
    typed = [_enter(table.gate, scanner, code)["typed"] for code in CODES[scanner.name]]
    if scanner.kind == "keyboard":
        say(f"{sum(each['reports'] for each in typed)} reports in {sum(each['ms'] for each in typed):.0f} ms")


def _enter(north: Gate, scanner: Scanner, code: str) -> dict[str, Any]:
    heard = len(north.guest.news)
    scan = read(north, scanner, code)
    assert (scan["verdict"], scan["credential"]) == ("granted", f"C{CARDS.index(code)}"), code
    assert scan["passage"] == "pending"

    on, off = [n for n in north.guest.heard("gpio", 2, heard) if n["line"] == RELAY]
    assert (on["value"], off["value"]) == (1, 0)
    assert PULSE_MS <= (off["at"] - on["at"]) / 1000 < PULSE_MS + 5000

    # As long as the arm turns: what is short is scenario 8's, and lost on a guest that stops for as long.
    north.guest.call("lines.signal", line=SENSOR, steps=[(True, 500), (False, 1)])
    outcome = north.guest.until(
        lambda: next((e for e in north.events(scan["seq"]) if e.get("of") == scan["seq"]), None),
        "what became of the entry",
    )
    assert outcome is not None
    assert outcome["passage"] == "taken"
    return scan
