"""Four scanners at once on a computer that is busy, and a wedge that types faster than the gate can read."""

from __future__ import annotations

from typing import Any

import pytest

from tests.hardware.gate import Gate
from tests.hardware.guest import Guest
from tests.hardware.mains import codes

SERIAL = ("s0", "s1", "s2")
WEDGE = "wedge"
EACH = 25
CODES = codes(4 * EACH + 3)
BEFORE, LOST, AFTER = CODES[-3:]
OVERFLOW = LOST * 12
"""84 keys, of which the kernel keeps 15 for the gate."""
CONFIG = """\
[gateway]
id = "north"
data_dir = "/var/lib/gateway"

[[lane]]
name = "north"
relay = { driver = "gpio", chip = "gate-lines", line = 1 }
pulse_ms = 50

[[point]]
name = "north-in"
lane = "north"
from = "outside"
to = "hall"
"""
READER = """
[[reader]]
name = "{name}"
point = "north-in"
driver = "{driver}"
device = "{device}"
"""


@pytest.fixture(scope="module")
def four(guest: Guest, gate: Gate) -> Gate:
    """A gate with three serial scanners and a wedge."""
    guest.call("lines.make")
    config = CONFIG
    for socket, name in enumerate(SERIAL):
        guest.call("serialscanner.make", name=name, serial=name)
        guest.call("serialscanner.plug", name=name, socket=socket)
        device = f"/dev/serial/by-id/usb-Newland_Serial_Scanner_{name}-if00"
        config += READER.format(name=name, driver="serial", device=device)
    guest.call("keyboard.make", name=WEDGE)
    guest.call("keyboard.plug", name=WEDGE, socket=len(SERIAL))
    device = "/dev/input/by-id/usb-Newland_Keyboard_Scanner-event-kbd"
    # The gap is not what is tested, and a guest may stand still for a while.
    config += READER.format(name=WEDGE, driver="keyboard", device=device) + "idle_ms = 2000\n"
    gate.configure(config)
    gate.cards(CODES)
    gate.start()
    guest.until(lambda: all(gate.reader_up(name) for name in (*SERIAL, WEDGE)), "all readers are up", 60)
    guest.call("load.silence", seconds=2.5)
    return gate


def credentials(scans: list[dict[str, Any]], reader: str) -> list[str]:
    return [scan["credential"] for scan in scans if scan["reader"] == reader]


def test_no_code_of_a_burst_on_four_scanners_is_lost(four: Gate) -> None:
    """What the scanners typed is what the ledger has: every code, once, each scanner's in its order, while
    programs compute and write to the disk."""
    guest, since, news = four.guest, four.last(), len(four.guest.news)
    scanners: list[list[Any]] = [
        ["serialscanner", name, CODES[n * EACH : (n + 1) * EACH]] for n, name in enumerate(SERIAL)
    ]
    # No visitor is faster than five codes a second. The kernel keeps 15 keys of a wedge for the gate, not two
    # codes, and a computer whose instructions are translated needs some time.
    rest = {**dict.fromkeys(SERIAL, 0.2), WEDGE: 0.5}
    scanners.append(["keyboard", WEDGE, CODES[3 * EACH : 4 * EACH]])
    guest.call("load.busy")
    guest.call("load.begin", scanners=scanners, rest=rest)
    guest.call("load.end", timeout=300)
    guest.call("load.calm")
    scans = four.scans(since, 4 * EACH, timeout=120)
    typed = guest.told("typed", news)
    assert len(typed) == 4 * EACH
    for name in (*SERIAL, WEDGE):
        read = [f"C{CODES.index(code['code'])}" for code in typed if code["scanner"] == name]
        assert credentials(scans, name) == read, name
    assert len(scans) == 4 * EACH
    assert [four.metric(f'gateway_reader_dropped_total{{reader="{n}"}}') for n in (*SERIAL, WEDGE)] == [0] * 4


def test_a_code_that_overflows_the_kernels_buffer_is_dropped_and_the_next_one_is_right(four: Gate) -> None:
    """The gate stands still (SIGSTOP) while a wedge types 84 keys: SYN_DROPPED. One scan is counted as
    dropped, none is made up of what was left, and the codes before and after are read."""
    guest, since = four.guest, four.last()
    dropped = f'gateway_reader_dropped_total{{reader="{WEDGE}"}}'
    before = four.metric(dropped)
    guest.call("load.type", kind="keyboard", name=WEDGE, code=BEFORE)
    four.scans(since, 1)
    guest.call("load.overflow", kind="keyboard", name=WEDGE, code=OVERFLOW)
    guest.until(lambda: four.metric(dropped) > before, "the scan is counted as dropped", 30)
    guest.call("load.silence", seconds=2.5)
    guest.call("load.type", kind="keyboard", name=WEDGE, code=AFTER)
    scans = four.scans(since, 2)
    assert credentials(scans, WEDGE) == [f"C{CODES.index(code)}" for code in (BEFORE, AFTER)]
    assert four.metric(dropped) == before + 1
