"""Which relay boards and GPIO chips are here, by what the system knows of them.

No serial port is opened and nothing is written to any device: FF asks an LCUS board for its state, begins
a command on a KMTronic board, and is an address on a Modbus line. What kind of board hangs on a serial
adapter is therefore for the technician to say, and every kind it may be is offered.
"""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass

from serial.tools import list_ports

NUMATO = 0x2A19
ADAPTERS = {
    0x1A86: "CH340/CH341 adapter",
    0x0403: "FTDI adapter",
    0x10C4: "CP210x adapter",
    0x067B: "PL2303 adapter",
}
"""USB vendors of the serial adapters that relay boards and RS-485 lines are built with."""


@dataclass(slots=True, frozen=True)
class FoundBoard:
    """Something that a relay may hang on."""

    name: str
    path: str
    relays: tuple[str, ...]
    """Configuration, one per relay that the board has or per kind of board that it may be."""

    def toml(self) -> list[str]:
        """Lines to choose from for a ``[[lane]]``."""
        return [f"relay = {{ {relay} }}" for relay in self.relays]


def boards() -> list[FoundBoard]:
    """Everything found; empty on a machine with nothing. Devices without permission are left out."""
    return [*_usb_boards(), *_serial_boards(), *_gpio_chips()]


def stable_path(device: str) -> str:
    """The name of a serial port that survives replugging: by-id, or by-path where two equal adapters
    without a serial number would share one by-id name."""
    by_id = _link_to("/dev/serial/by-id", device)
    # A CH340 has no serial number: its by-id name belongs to whichever of two came last.
    if by_id is not None and "usb-1a86_" not in by_id:
        return by_id
    return _link_to("/dev/serial/by-path", device) or by_id or device


def _link_to(folder: str, device: str) -> str | None:
    target = os.path.realpath(device)
    return next((link for link in sorted(glob.glob(f"{folder}/*")) if os.path.realpath(link) == target), None)


def _usb_boards() -> list[FoundBoard]:
    from gateway.turnstile.usbrelay import board_id, list_boards

    found = []
    for board in list_boards():
        identity = board_id(board.path)
        where = f'board = "{identity}"' if identity else f'device = "{board.path}"'
        relays = (f'driver = "usbrelay", {where}, channel = {n}' for n in range(1, board.channels + 1))
        # A hidraw number changes, the id does not: without it the lines below are second best.
        name = (
            identity or "whose id cannot be read: run this as root, or give it to your group by a udev rule"
        )
        found.append(FoundBoard(f"{board.product} {name}", board.path, tuple(relays)))
    return found


def _serial_boards() -> list[FoundBoard]:
    found = []
    for port in sorted(list_ports.comports()):
        path = stable_path(port.device)
        if port.vid == NUMATO:
            kinds: tuple[str, ...] = (f'driver = "serial", board = "numato", device = "{path}", channel = 1',)
            found.append(FoundBoard(f"Numato {port.product or 'board'}", path, kinds))
        elif port.vid in ADAPTERS:
            kinds = serial_choices(path)
            found.append(FoundBoard(f"{ADAPTERS[port.vid]} ({port.product or 'no name'})", path, kinds))
    return found


def serial_choices(path: str) -> tuple[str, ...]:
    """What may hang on a serial adapter."""
    return (
        f'driver = "serial", board = "lcus", device = "{path}", channel = 1',
        f'driver = "serial", board = "kmtronic", device = "{path}", channel = 1',
        f'driver = "modbus", board = "waveshare", device = "{path}", address = 1, channel = 1',
        f'driver = "modbus", board = "lctech", device = "{path}", address = 255, channel = 1',
    )


def _gpio_chips() -> list[FoundBoard]:
    from gateway.turnstile.gpio import list_chips

    return [
        FoundBoard(
            f"GPIO chip {label} ({lines} lines)",
            path,
            (f'driver = "gpio", chip = "{label}", line = {min(17, lines - 1)}',),
        )
        for path, label, lines in list_chips()
    ]
