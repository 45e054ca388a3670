"""What a scan of the set-up code tells of a scanner: the layout that it types, the frame around its codes.

The text is known, so whatever differs is the scanner's. ``#`` and ``\\`` lie on other keys in every layout
that ASCII tells apart; y, z and the digits show the layout also of a scanner that leaves those two out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final, get_args

from gateway.config import Layout
from gateway.readers.keyboard import EV_KEY, EVENT, LEFT_CTRL, RIGHT_CTRL, KeyboardDecoder
from gateway.readers.line import ETX, STX, split_aim

TEXT: Final = "GATE-Zy#\\"
"""At most nine characters, so that the barcode fits into a terminal of 80 columns."""
BAUDRATES: Final = (9600, 115200, 19200, 38400, 57600, 4800, 2400)
"""What RS-232 scanners are set to, the usual first."""
LAYOUTS: Final[tuple[Layout, ...]] = get_args(Layout)

_PATIENT: Final = 1_000_000
"""Microseconds between two keys that may belong to one code here; a gate is told what was really seen."""
_USUAL_GAP: Final = 50_000
_ENTER: Final = 28
_C: Final = 46


@dataclass(slots=True, frozen=True)
class Learned:
    """What one scan says of its scanner."""

    code: bytes
    """What was scanned, without frame and AIM identifier. Never shown."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Keys of the reader's table that are not the default."""
    notes: tuple[str, ...] = ()
    """For the technician."""
    layout_known: bool = True
    """False: a keyboard that typed something else than the set-up code."""


def from_serial(data: bytes, baudrate: int = BAUDRATES[0]) -> Learned | None:
    """Takes all the bytes of one scan; None for noise, as another speed of the line makes it."""
    settings: dict[str, Any] = {} if baudrate == BAUDRATES[0] else {"baudrate": baudrate}
    notes = []
    body = data
    if body.startswith(STX) and ETX in body:
        settings["framing"] = "stx_etx"
        body = body[1 : body.rindex(ETX)]
    elif ended := re.fullmatch(rb"(?s)(.*?)[\r\n\t]+", body):
        body = ended[1]
    else:
        settings["framing"] = "idle"
        notes.append("it ends codes with silence alone: set its suffix to CR if you can")
    payload = split_aim(body, strip=True)
    if payload.aim is not None:
        settings["strip_aim"] = True
        notes.append("it sends the AIM identifier, which is taken off")
    code = payload.data
    if not code or not _readable(code):
        return None
    before, found, after = code.partition(TEXT.encode())
    if found and (before or after):
        notes.append(
            f"it adds {(before + after).decode()!r} to each code: take that out of its settings, "
            "or no card will be known"
        )
    return Learned(code, settings, tuple(notes))


def from_hidpos(code: bytes) -> Learned:
    """HID POS has nothing to agree on."""
    return Learned(code)


def from_keyboard(typed: dict[Layout, bytes], longest_gap: int) -> Learned:
    """Takes what each layout makes of the same key presses, and the longest pause between two (µs)."""
    settings: dict[str, Any] = {}
    notes = []
    if longest_gap > _USUAL_GAP // 2:
        settings["idle_ms"] = min(5000, max(100, longest_gap * 4 // 1000))
        notes.append(f"it types slowly: pauses of {longest_gap // 1000} ms")
    stripped = {}
    aims = set()
    for layout, code in typed.items():
        payload = split_aim(code, strip=True)
        stripped[layout] = payload.data
        if payload.aim is not None:
            aims.add(layout)
    for left_out in ("", "\\", "#\\"):
        wanted = "".join(char for char in TEXT if char not in left_out)
        for swapped in (False, True):
            text = (wanted.swapcase() if swapped else wanted).encode()
            if fitting := [layout for layout in LAYOUTS if stripped.get(layout) == text]:
                layout = fitting[0]
                if layout != "us":
                    settings["layout"] = layout
                if layout in aims:
                    settings["strip_aim"] = True
                    notes.append("it sends the AIM identifier, which is taken off")
                if left_out:
                    notes.append(f"it leaves out {' and '.join(left_out)}: set it to its Alt mode")
                if swapped:
                    notes.append(
                        "it mixes up capitals and small letters: switch Caps Lock off in its settings"
                    )
                return Learned(stripped[layout], settings, tuple(notes))
    return Learned(stripped.get("us", b""), settings, tuple(notes), layout_known=False)


class EveryLayout:
    """The same key presses through the decoder of each layout. Bytes of the event device in, codes out."""

    def __init__(self) -> None:
        self._decoders = {layout: KeyboardDecoder(layout, _PATIENT) for layout in LAYOUTS}
        self._rest = b""
        self._held: set[int] = set()
        self._last: int | None = None
        self._gap = 0
        self._keys = 0
        self.by_hand = ""
        """``enter`` or ``ctrl-c``: somebody pressed that on this keyboard, without a code before it."""

    def feed(self, data: bytes) -> Learned | None:
        """Gives what was learned when a code has ended."""
        learned = None
        data = self._rest + data
        whole = len(data) - len(data) % EVENT.size
        self._rest = data[whole:]
        for place in range(0, whole, EVENT.size):
            event = data[place : place + EVENT.size]
            self._look(event)
            typed = {}
            for layout, decoder in self._decoders.items():
                for payload in decoder.feed(event):
                    # split_aim(strip=False) has left the identifier in.
                    typed[layout] = payload.data
            if typed:
                learned = from_keyboard(typed, self._gap)
                self._last, self._gap, self._keys = None, 0, 0
        return learned

    def _look(self, event: bytes) -> None:
        seconds, micros, kind, key, value = EVENT.unpack(event)
        if kind != EV_KEY:
            return
        if value == 0:
            self._held.discard(key)
        elif value == 1:
            at = seconds * 1_000_000 + micros
            if self._last is not None:
                self._gap = max(self._gap, at - self._last)
            self._last = at
            if key == _C and self._held & {LEFT_CTRL, RIGHT_CTRL}:
                self.by_hand = "ctrl-c"
            elif key == _ENTER and not self._keys:
                self.by_hand = "enter"
            self._held.add(key)
            self._keys += 1


def _readable(code: bytes) -> bool:
    try:
        return code.decode().isprintable()
    except UnicodeDecodeError:
        return False
