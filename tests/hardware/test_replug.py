"""Scenario 3: scanners are pulled out and plugged in again, in the middle of codes and under other numbers.

Six scanners, two of each kind of the same make and without a serial number: only their sockets differ.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.hardware.gate import Gate
from tests.hardware.scanners import POINT, Scanner, gone, plug_in, read, ready, samples, states

LEFT = [
    Scanner("wedge-left", "keyboard", "Twin-Wedge", 0, layout="us"),
    Scanner("pos-left", "hidpos", "Twin-POS", 1),
    Scanner("port-left", "serialscanner", "Twin-Port", 2, {"serial": ""}),
]
RIGHT = [
    Scanner("wedge-right", "keyboard", "Twin-Wedge", 3, layout="us"),
    Scanner("pos-right", "hidpos", "Twin-POS", 4),
    Scanner("port-right", "serialscanner", "Twin-Port", 5, {"serial": ""}),
]
TWINS = [pytest.param(left, right, id=left.kind) for left, right in zip(LEFT, RIGHT, strict=True)]
CODE = "8K2MPX4T7Q"
LONG = f"{CODE}-{'0123456789' * 19}"
"""Four reports of a HID POS scanner."""
CARDS = [CODE, LONG, *(LONG[:length] for length in range(1, 10)), LONG[:56], LONG[:112], LONG[:168]]
"""What is left of a torn code would admit, if a scan were made of it."""
TIMES = 20


@pytest.fixture(scope="module")
def names(gate: Gate) -> dict[str, dict[str, Any]]:
    """What `gateway devices` says of each. Which of two twins is which the technician sees by the socket: the
    listed name has its number."""
    plug_in(gate, LEFT + RIGHT)
    listed = gate.devices()
    found = {}
    for scanner in LEFT + RIGHT:
        socket = f"dummy_hcd.{scanner.socket}-"
        bus = gate.guest.run(f"cat /sys/devices/platform/dummy_hcd.{scanner.socket}/usb*/busnum").ok().strip()
        mine = [
            d
            for d in listed
            if scanner.label in d.get("description", "")
            and (socket in d["device"] or d["device"].endswith(f"/scanner-{bus}-1"))
        ]
        assert len(mine) == 1, (scanner, listed)
        found[scanner.name] = mine[0]
    return found


@pytest.fixture(scope="module")
def north(gate: Gate, names: dict[str, dict[str, Any]]) -> Gate:
    """The gate with all six configured by those lines."""
    point = POINT.format(relay='{ driver = "memory" }', pulse=50, passage="")
    gate.configure(
        point + "".join(s.lines(gate, names[s.name]) + "repeat_delay_s = 0\n\n" for s in LEFT + RIGHT)
    )
    gate.cards(CARDS)
    gate.start()
    ready(gate, LEFT + RIGHT)
    return gate


def _node(gate: Gate, names: dict[str, dict[str, Any]], scanner: Scanner) -> str:
    """The kernel's name for it now."""
    return gate.guest.run(f"basename $(readlink '{names[scanner.name]['device']}')").ok().strip()


def _told(gate: Gate, name: str) -> tuple[int, int]:
    """How often the log said that this reader was unplugged, and that it was ready."""
    mine = gate.guest.run(f"journalctl -b -u gateway -o json --no-pager GATEWAY_READER={name}").lines()
    events = [
        line["GATEWAY_EVENT"] for line in mine if ": unplugged" in line.get("GATEWAY_REASON", ": unplugged")
    ]
    return events.count("reader is down"), events.count("reader is ready")


def test_two_of_the_same_make_are_told_apart_by_their_socket(
    north: Gate, names: dict[str, dict[str, Any]]
) -> None:
    """`gateway devices` names the two apart, and each scan comes from the reader that it was made at."""
    assert len({names[s.name]["device"] for s in LEFT + RIGHT}) == len(LEFT + RIGHT)
    for scanner in LEFT + RIGHT:
        assert read(north, scanner, CODE)["verdict"] == "granted"


def test_unplugging_in_the_middle_of_codes(north: Gate) -> None:
    """Twenty times: no scan is made of what came before the scanner was pulled out, metric and log say that
    it is gone and that it is back, and the next code is right."""
    told = {s.name: _told(north, s.name) for s in LEFT}
    counted = dict.fromkeys(told, 0.0)
    for round_ in range(TIMES):
        seq, before = north.last(), samples(north)
        for scanner in LEFT:
            # One to nine characters, with the last key down; one to three of four reports.
            scanner.type(north, LONG, torn=1 + round_ % (3 if scanner.kind == "hidpos" else 9))
        gone(north, LEFT)
        after = samples(north)
        for scanner in LEFT:
            counter = f'gateway_reader_dropped_total{{reader="{scanner.name}"}}'
            counted[scanner.name] += after[counter] - before[counter]
            scanner.plug(north)
        ready(north, LEFT)
        assert [e for e in north.events(seq) if e["kind"] == "scan"] == []
        again = LEFT[round_ % len(LEFT)]
        scan = read(north, again, LONG if again.kind == "hidpos" else CODE)
        assert (scan["verdict"], scan["credential"]) == ("granted", "C1" if again.kind == "hidpos" else "C0")
    for name, (downs, ups) in told.items():
        want = (downs + TIMES, ups + TIMES)
        north.guest.until(
            lambda name=name, want=want: _told(north, name) == want, f"{want} in the log of {name}"
        )
    # On a busy host the guest may be too slow to read what had come of a code, or see it in two pieces.
    assert all(torn >= TIMES / 2 for torn in counted.values()), counted
    assert states(north, RIGHT) == {1}, "the others were left alone"


@pytest.mark.parametrize(("left", "right"), TWINS)
def test_it_comes_back_under_another_number(
    north: Gate, names: dict[str, dict[str, Any]], left: Scanner, right: Scanner
) -> None:
    """Both are pulled out and plugged in the other way round: the kernel's numbers (event4, hidraw1, ttyACM0)
    have changed hands, and each scan still comes from the reader of its socket."""
    numbers = {s.name: _node(north, names, s) for s in (left, right)}
    for scanner in (left, right):
        scanner.unplug(north)
    gone(north, [left, right])
    # Who is plugged in first gets the lower number.
    for scanner in sorted((left, right), key=lambda s: int(re.sub(r"\D", "", numbers[s.name])), reverse=True):
        scanner.plug(north)
        ready(north, [scanner])
    assert _node(north, names, left) == numbers[right.name]
    assert _node(north, names, right) == numbers[left.name]
    for scanner in (left, right):
        assert read(north, scanner, CODE)["verdict"] == "granted"


@pytest.mark.parametrize(("left", "right"), TWINS)
def test_the_socket_counts_and_not_the_scanner(north: Gate, left: Scanner, right: Scanner) -> None:
    """A scanner that takes the other one's socket takes its place."""
    for scanner in (left, right):
        scanner.unplug(north)
    gone(north, [left, right])
    left.plug(north, right.socket)
    ready(north, [right])
    assert read(north, left, CODE, by=right.name)["verdict"] == "granted"
    right.plug(north, left.socket)
    ready(north, [left])
    assert read(north, right, CODE, by=left.name)["verdict"] == "granted"
