"""The dcttech USB relay board (16c0:05df): plug it in, hear what it was told, pull it out.

A HID device with one unnumbered feature report of eight bytes. Each command that arrives comes to the host
as ``{"stream":"board","board":NAME,"command":"ff01000000000000","at":µs}``, and one that was refused or
left without an answer as ``"refused"`` or ``"unanswered"`` in the place of its bytes, which stay with the
sender. The bytes are those of reference/hardware.md 4.1, on the wire of a board with V-USB.
"""

import struct
import threading
import time

import gadget
import usbfunction
import wire

REPORT = bytes.fromhex("0600ff0901a101150026ff00750895080900b20201c0")
HID = struct.pack("<BBHBBBH", 9, 0x21, 0x101, 0, 1, 0x22, len(REPORT))
GET_DESCRIPTOR, GET_REPORT, SET_REPORT = (0x81, 0x06), (0xA1, 0x01), (0x21, 0x09)
ON, OFF, ALL_ON, ALL_OFF = 0xFF, 0xFD, 0xFE, 0xFC


class Board:
    def __init__(self, name: str, ident: str, channels: int) -> None:
        self.name, self.ident, self.channels = name, ident.encode(), channels
        self.mood = "well"
        self.state = 0
        self.spoken = threading.Event()
        self.function = usbfunction.Function(
            name,
            usbfunction.interface(3, usbfunction.endpoint(0x81, 3, 8, 20), extra=HID),
            self.asked,
            self.given,
            vendor=0x16C0,
            product=0x05DF,
            maker="www.dcttech.com",
            label=f"USBRelay{channels}",
        )
        self.function.on_plugged = self.plugged

    def plugged(self, plugged: bool) -> None:
        """Without power all relays fall off."""
        self.state = 0

    def asked(self, request: usbfunction.Request) -> bytes:
        what = (request.kind, request.request)
        if what == GET_DESCRIPTOR and request.value >> 8 == 0x22:
            return REPORT
        if what in (GET_REPORT, SET_REPORT) and self.mood != "well":
            if what == SET_REPORT:
                self.say(command=self.mood)
            if self.mood == "unanswered":
                raise usbfunction.Silent(self.spoken)
            raise usbfunction.Refused
        if what == GET_REPORT:
            return self.ident + bytes((0, 0, self.state))
        if request.inward:
            raise usbfunction.Refused
        return b""

    def given(self, request: usbfunction.Request, data: bytes) -> None:
        if (request.kind, request.request) != SET_REPORT:
            return
        bit, every = 1 << data[1] - 1 if data[1] else 0, (1 << self.channels) - 1
        if data[0] in (ON, ALL_ON):
            self.state |= bit if data[0] == ON else every
        elif data[0] in (OFF, ALL_OFF):
            self.state &= ~(bit if data[0] == OFF else every)
        self.say(command=data.hex())

    def say(self, **news: str) -> None:
        wire.say({"stream": "board", "board": self.name, **news, "at": time.monotonic_ns() // 1000})


_boards: dict[str, Board] = {}


def make(name: str, ident: str = "BITFT", channels: int = 2) -> None:
    _boards[name] = Board(name, ident, channels)


plug, unplug = gadget.plug, gadget.unplug


def mood(name: str, mood: str) -> None:
    """From now on it takes commands (``well``), stalls them (``refused``), or says nothing at all to them
    (``unanswered``)."""
    board = _boards[name]
    board.mood = mood
    board.spoken.set() if mood == "well" else board.spoken.clear()


def state(name: str) -> int:
    """Which relays are on: bit 0 for the first."""
    return _boards[name].state
