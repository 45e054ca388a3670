"""Raw ``struct input_event`` of a keyboard-wedge scanner to codes.

The event and key numbers are those of the Linux headers ``input.h`` and ``input-event-codes.h``; the layouts
are in ``keyboard_layouts.json`` (compiled from xkb-data), per key without, with Shift, AltGr, and both.

What a key types:

- Caps Lock acts on keys whose shifted character is the capital of the plain one, as on a desktop.
- A dead key and a letter give the composed letter where Unicode has one; a dead key and space give the
  accent alone; anything else gives the accent alone and then itself, as Windows does.
- The keypad types digits whatever NumLock says, and ``.`` for its decimal key.
- Digits on the keypad while the left Alt is held are an Alt code, typed when Alt is released: up to 255
  with a leading 0 cp1252, without one the OEM code page (437 for us, 850 for the others), above 255 Unicode.
- Ctrl and a key give the control character of the key's character, or else of its character on a us
  keyboard: GS is Ctrl and the key of ``]``, whatever is printed on it.
- Enter, keypad Enter and Tab end a code, and so do CR, LF and TAB typed with Ctrl or as an Alt code.
"""

from __future__ import annotations

import json
import struct
import unicodedata
from importlib import resources
from typing import Final

from gateway.config import Layout
from gateway.model import Payload
from gateway.readers.line import MAX_PAYLOAD_BYTES, split_aim

EVENT: Final = struct.Struct("@llHHi")
"""struct input_event: seconds, microseconds, type, code, value; 24 bytes where long has 64 bits."""

EV_SYN: Final = 0
EV_KEY: Final = 1
EV_MSC: Final = 4
SYN_REPORT: Final = 0
SYN_DROPPED: Final = 3
KEY_STATE_BYTES: Final = 96
"""The bitmap of EVIOCGKEY: one bit for each of KEY_MAX + 1 = 768 keys."""

LEFT_CTRL, LEFT_SHIFT, RIGHT_SHIFT, LEFT_ALT, RIGHT_CTRL, RIGHT_ALT = 29, 42, 54, 56, 97, 100
CAPS_LOCK: Final = 58
_MODIFIERS: Final = frozenset((LEFT_CTRL, LEFT_SHIFT, RIGHT_SHIFT, LEFT_ALT, RIGHT_CTRL, RIGHT_ALT))
_SHIFT: Final = frozenset((LEFT_SHIFT, RIGHT_SHIFT))
_CTRL: Final = frozenset((LEFT_CTRL, RIGHT_CTRL))
_ENDS: Final = frozenset((15, 28, 96))  # Tab, Enter, keypad Enter
_KEYPAD_DIGITS: Final = dict(zip((82, 79, 80, 81, 75, 76, 77, 71, 72, 73), "0123456789", strict=True))
_KEYPAD: Final = _KEYPAD_DIGITS | {55: "*", 74: "-", 78: "+", 83: ".", 98: "/", 117: "=", 121: ","}
_MAX_ALT_DIGITS: Final = 8

# Dead key: its combining character, and what it gives alone.
_DEAD: Final = {
    "dead_grave": ("\u0300", "`"),
    "dead_acute": ("\u0301", "\u00b4"),
    "dead_circumflex": ("\u0302", "^"),
    "dead_tilde": ("\u0303", "~"),
    "dead_macron": ("\u0304", "\u00af"),
    "dead_breve": ("\u0306", "\u02d8"),
    "dead_abovedot": ("\u0307", "\u02d9"),
    "dead_diaeresis": ("\u0308", "\u00a8"),
    "dead_abovering": ("\u030a", "\u02da"),
    "dead_doubleacute": ("\u030b", "\u02dd"),
    "dead_caron": ("\u030c", "\u02c7"),
    "dead_cedilla": ("\u0327", "\u00b8"),
    "dead_ogonek": ("\u0328", "\u02db"),
}

Levels = tuple[str, str, str, str]
"""What a key gives plain, with Shift, with AltGr, with both: a character, a name in _DEAD, or nothing."""


def load_layout(layout: Layout) -> dict[int, Levels]:
    """The table of a layout, by key number."""
    text = resources.files("gateway.readers").joinpath("keyboard_layouts.json").read_text(encoding="utf-8")
    data = json.loads(text)
    return {data["codes"][key]: tuple(levels) for key, levels in data[layout].items()}


class KeyboardDecoder:
    """Any split of the same bytes gives the same payloads; nothing raises; memory is bounded.

    ``gap`` (microseconds, by the events' own times) is the silence between two key presses that tears a code.
    ``dropped`` counts the scans thrown away: torn, too long, or lost in the kernel's buffer.
    ``needs_keys`` asks the owner for ``keys``: events were lost, the state of the modifiers with them.
    """

    def __init__(
        self, layout: Layout, gap: int, strip_aim: bool = False, max_bytes: int = MAX_PAYLOAD_BYTES
    ) -> None:
        self.dropped = 0
        self.needs_keys = False
        self._keys = load_layout(layout)
        self._us = self._keys if layout == "us" else load_layout("us")
        self._oem = "cp437" if layout == "us" else "cp850"
        self._gap = gap
        self._strip_aim = strip_aim
        self._max = max_bytes
        self._events = b""
        """The beginning of an event whose rest has not been read."""
        self._code = bytearray()
        self._dead = ""
        self._alt_digits = ""
        self._held: set[int] = set()
        self._caps = False
        self._last = 0
        """When a key was last pressed."""
        self._unsynced = False
        """Events up to the next SYN_REPORT are leftovers of a lost report."""
        self._skip = False
        """Keys belong to a code whose beginning was lost, until it ends or silence falls."""
        self._skip_counted = False
        self._done: list[Payload] = []

    @property
    def pending(self) -> bool:
        """A code is half read: silence is worth a ``flush``."""
        return bool(self._code or self._dead or self._alt_digits)

    def feed(self, data: bytes) -> list[Payload]:
        """Takes events as they were read, in pieces of any size; gives the codes that ended in them."""
        data = self._events + data
        whole = len(data) - len(data) % EVENT.size
        self._events = data[whole:]
        for seconds, micros, kind, code, value in EVENT.iter_unpack(data[:whole]):
            if kind == EV_KEY:
                if value == 1:  # 2 is the kernel's autorepeat
                    self._pressed(code, seconds * 1_000_000 + micros)
                elif value == 0:
                    self._released(code)
            elif kind == EV_SYN:
                if code == SYN_DROPPED:
                    self._overflowed(seconds * 1_000_000 + micros)
                elif code == SYN_REPORT:
                    self._unsynced = False
        done, self._done = self._done, []
        return done

    def flush(self) -> list[Payload]:
        """To be called after silence: throws away a torn code. Always gives an empty list."""
        if self.pending:
            self._discard(count=True)
        return []

    def keys(self, bitmap: bytes, at: int) -> None:
        """Takes the keys that are held (EVIOCGKEY's answer) and when that was asked, on the events' clock.

        To be called at the start and whenever ``needs_keys``. The kernel takes the key events that waited out
        of its buffer with the answer, so the code that is being typed has lost some: its rest is ignored."""
        self._held = {
            key for key in _MODIFIERS if key >> 3 < len(bitmap) and bitmap[key >> 3] >> (key & 7) & 1
        }
        self.needs_keys = False
        self._last = at
        self._discard(count=self.pending)

    def _overflowed(self, at: int) -> None:
        self._discard(count=True)
        self._unsynced = True
        self.needs_keys = True
        # The kernel stamps SYN_DROPPED with the time of the newest event. Without this the lost events
        # would look like silence, and the rest of their code like a new one.
        self._last = at
        self._held.clear()
        self._caps = False

    def _discard(self, count: bool) -> None:
        """Drop what has come of this code and skip what still comes of it; count it once."""
        if count and not (self._skip and self._skip_counted):
            self.dropped += 1
            self._skip_counted = True
        self._skip = True
        self._clear()

    def _clear(self) -> None:
        self._code.clear()
        self._dead = ""
        self._alt_digits = ""

    def _pressed(self, key: int, at: int) -> None:
        silence = at - self._last
        self._last = at
        if self._unsynced:
            return
        if silence > self._gap:
            self.dropped += self.pending
            self._clear()
            self._skip = self._skip_counted = False
        if key in _MODIFIERS:
            self._held.add(key)
        elif key == CAPS_LOCK:
            self._caps = not self._caps
        elif key in _ENDS:
            self._end()
        else:
            self._typed(key)

    def _released(self, key: int) -> None:
        if self._unsynced:
            return
        self._held.discard(key)
        if key == LEFT_ALT and self._alt_digits:
            digits, self._alt_digits = self._alt_digits, ""
            self._character(self._alt_code(digits))

    def _typed(self, key: int) -> None:
        held = self._held
        if LEFT_ALT in held and key in _KEYPAD_DIGITS:
            self._alt_digits = (self._alt_digits + _KEYPAD_DIGITS[key])[:_MAX_ALT_DIGITS]
            return
        if key in _KEYPAD:
            self._character(_KEYPAD[key])
            return
        if key not in self._keys:
            return
        ctrl = not held.isdisjoint(_CTRL)
        shift = not held.isdisjoint(_SHIFT)
        # Ctrl and Alt together are AltGr to Windows, and some scanners type it so.
        if RIGHT_ALT in held or (ctrl and LEFT_ALT in held):
            self._character(self._keys[key][2 + shift])
        elif ctrl:
            self._character(_control(self._keys[key][shift]) or _control(self._us[key][shift]))
        elif LEFT_ALT not in held:
            plain, shifted = self._keys[key][:2]
            if self._caps and plain.isalpha() and plain.upper() == shifted:
                shift = not shift
            self._character(shifted if shift else plain)

    def _alt_code(self, digits: str) -> str:
        number = int(digits)
        if number > 255:
            return "" if number > 0x10FFFF or 0xD800 <= number <= 0xDFFF else chr(number)
        if not digits.startswith("0"):
            return bytes((number,)).decode(self._oem)
        try:
            return bytes((number,)).decode("cp1252")
        except UnicodeDecodeError:  # the five holes of cp1252 are C1 control characters to Windows
            return chr(number)

    def _character(self, char: str) -> None:
        """Take one character, a dead key's name, or nothing at all."""
        dead, self._dead = self._dead, ""
        if not dead:
            if char in _DEAD:
                self._dead = char
            else:
                self._put(char)
            return
        combining, alone = _DEAD[dead]
        if char == " ":
            self._put(alone)
        elif char in _DEAD:
            self._put(alone)
            self._put(_DEAD[char][1])
        else:
            composed = unicodedata.normalize("NFC", char + combining) if char else ""
            if len(composed) == 1:
                self._put(composed)
            else:
                self._put(alone)
                self._put(char)

    def _put(self, char: str) -> None:
        if char in ("\r", "\n", "\t"):
            self._end()
        elif self._skip:
            self._discard(count=bool(char))
        elif len(self._code) + len(data := char.encode()) > self._max:
            self._discard(count=True)
        else:
            self._code += data

    def _end(self) -> None:
        if self._dead:
            self._character(" ")
        if self._code:
            self._done.append(split_aim(bytes(self._code), self._strip_aim))
        self._clear()
        self._skip = self._skip_counted = False


def _control(char: str) -> str:
    """The control character that Ctrl makes of this one, or nothing."""
    upper = char.upper()
    return chr(ord(upper) & 0x1F) if len(upper) == 1 and "@" <= upper <= "_" else ""
