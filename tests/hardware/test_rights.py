"""Who may open what: udev's rules and the unit's DeviceAllow, on nodes that the kernel and udev have made."""

from __future__ import annotations

import re

import pytest

from tests.hardware.gate import Gate
from tests.hardware.guest import Guest

CONFIGURATION = """\
[gateway]
id = "north"
data_dir = "/var/lib/gateway"

[[lane]]
name = "north"
relay = {{ driver = "gpio", chip = "gate-lines", line = 1 }}

[[point]]
name = "north-in"
lane = "north"
from = "outside"
to = "hall"

[[reader]]
name = "serial"
point = "north-in"
driver = "serial"
device = "/dev/serial/by-id/usb-Newland_Serial_Scanner_SN03-if00"

[[reader]]
name = "wedge"
point = "north-in"
driver = "keyboard"
device = "/dev/input/by-id/usb-Newland_Keyboard_Scanner_SN01-event-kbd"
idle_ms = 1000

[[reader]]
name = "pos"
point = "north-in"
driver = "hidpos"
device = "{pos}"
"""
OTHERS = ("technician", "nobody", "gateway-sync", "clerk")
"""Users who must not; the clerk is in the groups that Debian gives devices to."""


@pytest.fixture(scope="module")
def plugged(guest: Guest) -> dict[str, str]:
    """Four scanners and the GPIO lines: what each is, and its node."""
    guest.call("lines.make")
    guest.call("keyboard.make", name="wedge", serial="SN01")
    guest.call("hidpos.make", name="pos", vendor=0x1234, product=0x0001, maker="Nobody", serial="SN02")
    guest.call("serialscanner.make", name="serial")
    guest.call("keyboard.make", name="typist", vendor=0x1234, product=0x0002, maker="Nobody", serial="SN04")
    nodes = {"lines": "/dev/gpiochip0"}
    for socket, name in enumerate(("wedge", "pos", "serial", "typist")):
        before = _nodes(guest)
        kind = {"pos": "hidpos", "serial": "serialscanner"}.get(name, "keyboard")
        guest.call(f"{kind}.plug", name=name, socket=socket)
        awaited = {"pos": ["hidraw"], "serial": ["ttyACM"]}.get(name, ["event", "hidraw"])

        def came(before: set[str] = before, awaited: list[str] = awaited) -> list[str] | None:
            new = sorted(_nodes(guest) - before)
            return new if all(any(kind in node for node in new) for kind in awaited) else None

        for node in guest.until(came, f"nodes of {name}"):
            nodes[f"{name} {'hidraw' if 'hidraw' in node else 'port'}"] = node
    guest.run("udevadm settle").ok()
    return nodes


def _nodes(guest: Guest) -> set[str]:
    return set(guest.run("ls -d /dev/input/event* /dev/hidraw* /dev/ttyACM* 2>/dev/null").out.split())


def test_devices_are_the_gates_and_no_other_users(guest: Guest, plugged: dict[str, str]) -> None:
    """The gate's user reads and writes scanners and GPIO lines; nobody else does but root, in whatever group
    of Debian's; and what only types, of no maker of scanners, is not the gate's as a raw device."""
    guest.run("useradd --groups dialout,input,plugdev,tty,video clerk").ok()
    for user in ("gateway", *OTHERS):
        test = "; ".join(f"test -r {node} -a -w {node} && echo '{name}'" for name, node in plugged.items())
        may = guest.run(f"setpriv --reuid {user} --regid {user if user != 'nobody' else 'nogroup'}"
                        f" --init-groups sh -c \"{test}\"; true", timeout=120).ok()  # fmt: skip
        wanted = set(plugged) - {"typist hidraw"} if user == "gateway" else set()
        assert set(may.splitlines()) == wanted, user


def test_desktop_and_modem_software_keep_off(guest: Guest, plugged: dict[str, str]) -> None:
    """A known scanner is marked for libinput and ModemManager to leave alone; a keyboard of another maker is
    not, for it may be a person's."""

    def says(name: str, mark: str) -> bool:
        return mark in guest.run(f"udevadm info --query=property --name={plugged[name]}").ok().split()

    assert says("wedge port", "LIBINPUT_IGNORE_DEVICE=1")
    assert says("serial port", "ID_MM_DEVICE_IGNORE=1")
    assert not says("typist port", "LIBINPUT_IGNORE_DEVICE=1")


def test_devices_that_come_after_the_start_of_the_gate(
    guest: Guest, gate: Gate, plugged: dict[str, str]
) -> None:
    """A serial scanner whose driver nothing has loaded when the gate is started, a keyboard and a HID POS
    scanner are plugged in under the hardened unit: each is opened by the gate and admits."""
    links = guest.run("ls /dev/gateway/*").ok().split()
    [pos] = [link for link in links if guest.run(f"readlink -f {link}").ok().strip() == plugged["pos hidraw"]]
    for name in ("wedge", "pos", "serial", "typist"):
        guest.call("gadget.unplug", name=name)
    guest.run("udevadm settle; rmmod cdc_acm").ok()
    gate.configure(CONFIGURATION.format(pos=pos))
    gate.cards(["8K2MPX4T7Q"])
    gate.start()
    assert "cdc_acm" not in guest.run("lsmod").ok()
    for socket, (reader, kind) in enumerate(
        (("wedge", "keyboard"), ("pos", "hidpos"), ("serial", "serialscanner"))
    ):
        assert not gate.reader_up(reader)
        guest.call(f"{kind}.plug", name=reader, socket=socket)
        guest.until(lambda reader=reader: gate.reader_up(reader), f"{reader} is up")
    for kind, name in (("keyboard", "wedge"), ("hidpos", "pos"), ("serialscanner", "serial")):
        last = gate.last()

        def scanned(kind: str = kind, name: str = name, last: int = last) -> bool:
            # A code that begins right after the reader has opened is skipped by design.
            guest.call(f"{kind}.type", name=name, code="8K2MPX4T7Q")
            return bool(guest.until(lambda: gate.last() > last, "an event", timeout=10, every=1))

        guest.until(scanned, f"a scan of {name}")
        [event, *_] = [e for e in gate.events(last) if e["kind"] == "scan"]
        assert (event["reader"], event["verdict"]) == (name, "granted")


def test_nothing_is_typed_into_a_login(guest: Guest, gate: Gate) -> None:
    """While the gate has a keyboard scanner, a login prompt on the console sees nothing of a code; without
    the gate it would."""
    assert guest.run("systemctl start getty@tty1 && systemctl is-active getty@tty1").ok().strip() == "active"
    guest.run("chvt 1; true")

    def screen() -> str:
        return re.sub(r"\s+", " ", guest.run("cat /dev/vcs1").ok())

    guest.until(lambda: "login:" in screen(), "a login prompt")
    guest.until(lambda: gate.reader_up("wedge"), "the wedge is up")
    last = gate.last()
    guest.call("keyboard.type", name="wedge", code="UNKNOWN7X")
    guest.until(lambda: gate.last() > last, "the code was scanned")
    assert "UNKNOWN7X" not in screen()
    gate.stop()
    guest.call("keyboard.type", name="wedge", code="SEEN4ALL")
    guest.until(lambda: "SEEN4ALL" in screen(), "the login prompt sees it now")
