"""What could be a scanner on this machine, with the lines of configuration for each.

Serial ports come from pyserial, HID POS scanners from hidapi's ``hidraw`` module. Never import its ``hid``
module here: that is the libusb backend, which takes the device away from the kernel's driver. Keyboards come
from sysfs, which shows them also to a user who may not open them.
"""

from __future__ import annotations

import grp
import json
import os
import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import hidraw
from serial.tools import list_ports

from gateway.config import ReaderDriver

_POS_PAGE: Final = 0x8C
_POS_SCANNER: Final = 0x02
# Keys that a scanner must be able to type: digits, letters and Enter.
_TYPES: Final = (2, 11, 16, 25, 28, 30, 38, 44, 50)
_UNSTABLE: Final = "the name may change at a restart: give it one of its own by a udev rule (SYMLINK)"


@dataclass(slots=True, frozen=True)
class Found:
    """A device that may be a scanner."""

    driver: ReaderDriver
    device: str
    """The path to configure: one that stays the same, where there is one."""
    description: str
    note: str = ""
    """What stands in the way of using it, and what to do about it."""

    def toml(self, name: str, point: str) -> str:
        """The configuration of this scanner as a reader of that name at that access point."""
        lines = [
            "[[reader]]",
            f"name = {_quoted(name)}",
            f"point = {_quoted(point)}",
            f"driver = {_quoted(self.driver)}",
            f"device = {_quoted(self.device)}",
        ]
        if self.driver == "keyboard":
            lines.append('layout = "us"  # as the scanner is set: us, gb, de, fr, no, se, dk, fi, es, it')
        return "\n".join(lines) + "\n"


class Port(Protocol):
    """What is used of pyserial's description of a port."""

    device: str
    description: str
    serial_number: str | None
    vid: int | None
    pid: int | None


def scanners(dev: Path = Path("/dev"), sys: Path = Path("/sys")) -> list[Found]:
    """Every device that may be a scanner. Where there is none, or no right to look, the list is empty."""
    ports = [port for port in list_ports.comports() if _is_there(port.device, sys)]
    return [*hidpos_scanners(hidraw.enumerate(), dev), *keyboards(dev, sys), *serial_ports(ports, dev)]


def serial_ports(ports: Iterable[Port], dev: Path) -> list[Found]:
    """The ports, each by the name that will stay its own."""
    ports = sorted(ports, key=lambda port: port.device)
    twins = Counter((port.vid, port.pid, port.serial_number) for port in ports)
    found = []
    for port in ports:
        # Adapters without a serial number, such as CH340, all get one by-id name.
        single = bool(port.serial_number) and twins[port.vid, port.pid, port.serial_number] == 1
        usb = port.vid is not None
        device = _stable(port.device, dev / "serial", single) if usb else port.device
        note = _UNSTABLE if usb and device == port.device else ""
        description = "serial port" if port.description == "n/a" else port.description
        found.append(Found("serial", device, description, _notes(_permission(port.device), note)))
    return found


def keyboards(dev: Path, sys: Path) -> list[Found]:
    """Input devices that can type a code. A person's keyboard is one too; only a person can tell."""
    nodes = []
    for device in sorted(
        (sys / "class/input").glob("event*/device"), key=lambda path: int(path.parent.name[5:])
    ):
        keys = _keys(_line(device / "capabilities/key"))
        if all(keys >> key & 1 for key in _TYPES):
            ids = tuple(_line(device / "id" / part) for part in ("vendor", "product"))
            nodes.append((device.parent.name, _line(device / "name"), _line(device / "uniq"), ids))
    twins = Counter((ids, uniq) for _, _, uniq, ids in nodes)
    found = []
    for node, name, uniq, ids in nodes:
        path = str(dev / "input" / node)
        device_path = _stable(path, dev / "input", bool(uniq) and twins[ids, uniq] == 1)
        note = _UNSTABLE if device_path == path else ""
        description = f"{name} ({':'.join(ids)})"
        found.append(Found("keyboard", device_path, description, _notes(_permission(path), note)))
    return found


def hidpos_scanners(devices: Iterable[dict[str, object]], dev: Path) -> list[Found]:
    """The HID POS scanners among the devices that ``hidraw.enumerate`` lists."""
    found = []
    for info in devices:
        if info.get("usage_page") != _POS_PAGE or info.get("usage") != _POS_SCANNER:
            continue
        raw = info.get("path")
        path = raw.decode(errors="replace") if isinstance(raw, bytes) else str(raw)
        # udev names hidraw nodes by id only lately; /dev/gateway is for names of the venue's own rules.
        device = _link_to(path, dev / "gateway") or _stable(
            path, dev / "hidraw", bool(info.get("serial_number"))
        )
        names = (info.get("manufacturer_string"), info.get("product_string"))
        title = " ".join(str(name) for name in names if name) or "HID POS scanner"
        description = f"{title} ({info.get('vendor_id', 0):04x}:{info.get('product_id', 0):04x})"
        note = _UNSTABLE if device == path else ""
        found.append(Found("hidpos", device, description, _notes(_permission(path), note)))
    return found


def _is_there(path: str, sys: Path) -> bool:
    """The kernel makes nodes ttyS0 to ttyS31 for ports that the machine may not have: their type is 0."""
    return _line(sys / "class/tty" / os.path.basename(path) / "type") != "0"


def _stable(path: str, folder: Path, by_id: bool) -> str:
    """A name below ``by-id``, if that is this device's alone, else ``by-path`` (the port that it is plugged
    into), else any, else the path itself."""
    order = ("by-id", "by-path") if by_id else ("by-path", "by-id")
    return next((name for sub in order if (name := _link_to(path, folder / sub))), path)


def _link_to(path: str, folder: Path) -> str | None:
    real = os.path.realpath(path)
    try:
        names = sorted(folder.iterdir())
    except OSError:
        return None
    return next((str(name) for name in names if os.path.realpath(name) == real), None)


def _permission(path: str) -> str:
    if os.access(path, os.R_OK | os.W_OK):
        return ""
    try:
        status = os.stat(path)
    except OSError:
        return "there is no node for it in /dev"
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = str(status.st_gid)
    if group == "root" or not status.st_mode & 0o060:
        return 'no permission: add a udev rule (GROUP="gateway", MODE="0660")'
    return f"no permission: run as a member of the group {group}, or add a udev rule"


def _notes(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _keys(words: str) -> int:
    """The bitmap that sysfs writes as words of hexadecimal digits, the highest first; a word is a long."""
    bits = 0
    for word in words.split():
        bits = bits << 8 * struct.calcsize("@l") | int(word, 16)
    return bits


def _quoted(text: str) -> str:
    # A JSON string is a TOML basic string, but for the DEL character, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
