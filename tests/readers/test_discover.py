"""Finding scanners, on trees of files made like /dev and /sys."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from gateway.readers.discover import Found, hidpos_scanners, keyboards, scanners, serial_ports


@dataclass
class FakePort:
    """What pyserial says of a port."""

    device: str
    description: str = "n/a"
    serial_number: str | None = None
    vid: int | None = None
    pid: int | None = None


def node(path: Path, *links: Path, mode: int = 0o660) -> str:
    """A device node with names that point at it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    path.chmod(mode)
    for link in links:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(path, link.parent))
    return str(path)


def input_device(sys: Path, number: int, name: str, keys: str, uniq: str = "") -> None:
    """An input device in sysfs."""
    device = sys / f"class/input/event{number}/device"
    (device / "capabilities").mkdir(parents=True)
    (device / "id").mkdir()
    (device / "name").write_text(name + "\n")
    (device / "uniq").write_text(uniq + "\n")
    (device / "capabilities/key").write_text(keys + "\n")
    (device / "id/vendor").write_text("0c2e\n")
    (device / "id/product").write_text("0b61\n")


KEYBOARD = "1000000000007 ff9f207ac14057ff febeffdfffefffff fffffffffffffffe"
MOUSE = "1f0000 0 0 0 0"


def test_nothing_there(tmp_path: Path) -> None:
    """On a machine without devices, and without /dev and /sys, nothing is found and nothing raised."""
    assert [found for found in scanners(tmp_path, tmp_path) if found.driver != "serial"] == []
    assert keyboards(tmp_path, tmp_path) == []
    assert serial_ports([], tmp_path) == []
    assert hidpos_scanners([], tmp_path) == []
    assert isinstance(scanners(), list)


def test_serial_ports_with_a_serial_number_are_named_by_it(tmp_path: Path) -> None:
    """A USB port with a serial number of its own is found by id, wherever it is plugged in."""
    by_id = tmp_path / "serial/by-id/usb-Maker_Scanner_77-if00"
    by_path = tmp_path / "serial/by-path/platform-1.2"
    path = node(tmp_path / "ttyACM0", by_path, by_id)
    (found,) = serial_ports([FakePort(path, "Scanner", "77", 0x1234, 1)], tmp_path)
    assert found == Found("serial", str(by_id), "Scanner")


def test_twins_are_named_by_the_place_that_they_are_plugged_into(tmp_path: Path) -> None:
    """Adapters without a serial number, and with the same one, are found by path."""
    ports = []
    for number, serial in enumerate([None, "", "5", "5"]):
        by_id = [tmp_path / f"serial/by-id/usb-{serial}"] if number in (0, 2) else []
        path = node(tmp_path / f"ttyUSB{number}", tmp_path / f"serial/by-path/usb-0:1.{number}", *by_id)
        ports.append(FakePort(path, "USB Serial", serial, 0x1A86, 0x7523))
    found = serial_ports(reversed(ports), tmp_path)
    assert [one.device for one in found] == [f"{tmp_path}/serial/by-path/usb-0:1.{n}" for n in range(4)]


def test_other_serial_ports(tmp_path: Path) -> None:
    """A built-in port keeps its own name; a USB port without any other name comes with a warning."""
    built_in, usb = node(tmp_path / "ttyAMA0"), node(tmp_path / "ttyUSB0")
    found = serial_ports([FakePort(built_in), FakePort(usb, "Adapter", None, 1, 2)], tmp_path)
    assert found[0] == Found("serial", built_in, "serial port")
    assert found[1].device == usb
    assert "may change at a restart" in found[1].note


def test_keyboards(tmp_path: Path) -> None:
    """What can type letters, digits and Enter is listed, by id if it is the only one with that number."""
    dev, sys = tmp_path / "dev", tmp_path / "sys"
    by_id = dev / "input/by-id/usb-Maker_Scanner_77-event-kbd"
    node(dev / "input/event2", dev / "input/by-path/usb-0:1-event-kbd", by_id)
    twins = [dev / f"input/by-path/usb-0:{place}-event-kbd" for place in (2, 3)]
    node(dev / "input/event3", twins[0], dev / "input/by-id/usb-Maker_Scanner-event-kbd")
    node(dev / "input/event10", twins[1])
    input_device(sys, 10, "Scanner", KEYBOARD)
    input_device(sys, 2, "Scanner 77", KEYBOARD, "77")
    input_device(sys, 3, "Scanner", KEYBOARD)
    input_device(sys, 4, "Mouse", MOUSE)
    input_device(sys, 5, "Power Button", "10000000000000 0")
    assert keyboards(dev, sys) == [
        Found("keyboard", str(by_id), "Scanner 77 (0c2e:0b61)"),
        Found("keyboard", str(twins[0]), "Scanner (0c2e:0b61)"),
        Found("keyboard", str(twins[1]), "Scanner (0c2e:0b61)"),
    ]


def test_a_keyboard_whose_node_is_missing(tmp_path: Path) -> None:
    """A device that the kernel knows and /dev has not is listed with what is wrong."""
    input_device(tmp_path, 0, "Scanner", KEYBOARD)
    (found,) = keyboards(tmp_path / "dev", tmp_path)
    assert "no node" in found.note


def test_hid_pos_scanners(tmp_path: Path) -> None:
    """Only HID POS scanners are listed, by a name of the venue's own where a rule gives one."""
    named, plain = tmp_path / "gateway/scanner", tmp_path / "hidraw1"
    node(tmp_path / "hidraw0", named)
    node(plain)
    common: dict[str, object] = {"vendor_id": 0x0C2E, "product_id": 0x0907, "serial_number": ""}
    pos: dict[str, object] = common | {"usage_page": 0x8C, "usage": 2, "product_string": "Voyager"}
    found = hidpos_scanners(
        [
            pos | {"path": str(tmp_path / "hidraw0").encode(), "manufacturer_string": "Maker"},
            pos | {"path": str(plain).encode(), "product_string": None},
            common | {"path": b"/dev/hidraw2", "usage_page": 1, "usage": 6},
        ],
        tmp_path,
    )
    assert found[0] == Found("hidpos", str(named), "Maker Voyager (0c2e:0907)")
    assert (found[1].device, found[1].description) == (str(plain), "HID POS scanner (0c2e:0907)")
    assert "udev rule" in found[1].note
    assert len(found) == 2


def test_lines_of_configuration() -> None:
    """The lines are TOML that gives back what was put in, whatever characters the names have."""
    found = Found("keyboard", '/dev/input/by-id/usb-"A"\\\x7fé-event-kbd', "Scanner")
    (table,) = tomllib.loads(found.toml("north-scanner", "north-in"))["reader"]
    assert table == {
        "name": "north-scanner",
        "point": "north-in",
        "driver": "keyboard",
        "device": found.device,
        "layout": "us",
    }
    serial = Found("serial", "/dev/ttyACM0", "Scanner").toml("a", "b")
    assert tomllib.loads(serial)["reader"] == [
        {"name": "a", "point": "b", "driver": "serial", "device": "/dev/ttyACM0"}
    ]
